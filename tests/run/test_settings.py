"""The settings: presets, sources, and what survives a file."""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest

from modules.data.case import Case
from modules.model import losses, optimizers
from modules.run.division import divide
from modules.run.settings import LOSSES, NETWORK_OPTIONS, OPTIMIZERS, PRESETS, SCHEDULES, Settings, read_preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_short(name):
    values = read_preset(name)
    assert set(values) <= {item.name for item in fields(Settings)} | set(NETWORK_OPTIONS)
    assert len(PRESETS[name].read_text().splitlines()) < 20


def test_names_known_without_keras_are_those_of_the_modules():
    assert tuple(losses.LOSSES) == LOSSES
    assert (optimizers.OPTIMIZERS, optimizers.SCHEDULES) == (OPTIMIZERS, SCHEDULES)


def test_unknown_and_ill_typed_settings_name_their_source():
    with pytest.raises(ValueError, match=r"Expected settings in \('dataset', .*Received: 'speed' in a.toml"):
        Settings.from_json({"dataset": "oasis", "speed": 1}, "a.toml")
    with pytest.raises(ValueError, match="Expected `epochs` of type int. Received: '9' in a.toml"):
        Settings.from_json({"dataset": "oasis", "epochs": "9"}, "a.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape": [0, 0]}, "Expected `shape` of numbers above 0. Received: --shape 0 0."),
        ({"spacing": [-1, 1, 1]}, "Expected `spacing` of numbers above 0. Received: --spacing -1 1 1."),
        ({"spacing": [1e-9, 1, 1]}, "Expected `spacing` of 0.0001 to 5000 mm. Received:"),
        ({"shape": [1 << 16, 1 << 16]}, "Expected `shape` of at most 2,147,483,648 voxels"),
        ({"optimizer": "zzz"}, r"Expected `optimizer` in \('adam', 'adamw', 'sgd'\). Received: 'zzz' in a.toml"),
        ({"network": "zzz"}, "Expected `network` in .* Received: 'zzz' in a.toml"),
        ({"name": ["x" * 10_000_000]}, "Expected `name` of type str. Received: \\['xxx.{,200} in a.toml"),
        ({"x" * 10_000_000: 1}, "Expected settings in .* Received: 'xxx.{,200} in a.toml"),
    ],
)
def test_sizes_and_numbers_are_named_by_their_flag(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.from_json({"dataset": "oasis", **values}, "a.toml")


@pytest.mark.parametrize("text", ["epochs = ", "a" * 100, "epochs = 1\nepochs = 2", "\0"])
def test_a_preset_that_is_no_toml_is_named(tmp_path, monkeypatch, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    monkeypatch.setitem(PRESETS, "mine", path)
    with pytest.raises(ValueError, match=r"^Expected TOML in .*mine.toml. Received: .*\. Correct the file.$"):
        read_preset("mine")


def test_settings_without_a_data_set_name_their_source():
    with pytest.raises(ValueError, match="Expected `dataset` among the settings in run.json. Received: none."):
        Settings.from_json({}, "run.json")


def test_config_survives_json():
    config = Settings(dataset="hipmri", target=("bone",), shape=(64, 64), network_options={"dropout": 0.1})
    assert Settings.from_json(json.loads(json.dumps(config.to_json())), "run.json") == config


def test_data_folder(monkeypatch):
    assert str(Settings(dataset="oasis", data="x").data_folder()) == "x"
    assert str(Settings(dataset="oasis", demo=True).data_folder()) == "data/oasis-phantom"
    monkeypatch.setenv("MRI_DATA", "scans")
    assert str(Settings(dataset="oasis").data_folder()) == "scans/oasis"
    monkeypatch.delenv("MRI_DATA")
    assert str(Settings(dataset="oasis").data_folder()) == "data/oasis"


def test_a_phantom_of_another_seed_lies_in_another_folder():
    assert str(Settings(dataset="oasis", demo=True, seed=7).data_folder()) == "data/oasis-phantom-seed7"


def test_a_tenth_of_the_subjects_validates_and_a_tenth_tests(tmp_path):
    cases = [Case(str(number), str(number), (Path("a.nii"),), Path("seg.nii")) for number in range(20)]
    splits, _ = divide(cases, Settings(dataset="oasis", data=str(tmp_path)))
    assert {name: len(members) for name, members in splits.items()} == {"train": 16, "validate": 2, "test": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_decay": math.nan}, "Expected a finite `weight_decay`. Received: nan"),
        ({"clip_norm": math.nan}, "Expected a finite `clip_norm`"),
        ({"learning_rate": math.inf}, "Expected a finite `learning_rate`"),
        ({"spacing": (1.0, math.nan, 1.0)}, r"Expected a finite `spacing`. Received: \(1.0, nan, 1.0\)"),
        ({"class_probabilities": (math.inf, 1.0)}, "Expected a finite `class_probabilities`"),
        ({"network_options": {"dropout": math.nan}}, "Expected a finite `dropout`"),
        ({"fold": 1}, "Expected `folds` beside `fold`. Received: fold 1 alone"),
        ({"seed": 2**32}, "Expected `seed` up to 4294967295. Received: 4294967296"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Settings("oasis", **values)


def test_a_checkpoint_may_be_so_rare_that_it_never_comes():
    assert Settings("oasis", checkpoint_minutes=math.inf, seed=2**32 - 1).checkpoint_minutes == math.inf


def test_the_folder_of_a_table_of_cases_is_the_data_folder():
    assert str(Settings("folder", cases="lists/a.csv").data_folder()) == "lists"
    assert str(Settings("folder", cases="lists/a.csv", data="scans").data_folder()) == "scans"
    with pytest.raises(ValueError, match="Expected either `demo` or `cases`. Received: both, cases 'a.csv'"):
        Settings("folder", demo=True, cases="a.csv")


@pytest.mark.parametrize(("other", "said"), [({"patience": 4}, "patience 4"), ({"stop_at_dice": 0.7}, "stop_at_dice 0.7")])
def test_the_last_epoch_is_not_kept_where_the_validation_ends_the_training(other, said):
    with pytest.raises(ValueError, match=f"Expected `keep` best beside {said}.* Received: last. Leave one out"):
        Settings("oasis", keep="last", **other)
