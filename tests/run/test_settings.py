"""The settings: presets, sources, and what survives a file."""

import json
import math
from dataclasses import fields

import pytest

from modules.model import losses, optimizers
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_decay": math.nan}, "Expected `weight_decay` of finite numbers. Received: nan"),
        ({"clip_norm": math.nan}, "Expected `clip_norm` of finite numbers"),
        ({"learning_rate": math.inf}, "Expected `learning_rate` of finite numbers"),
        ({"spacing": (1.0, math.nan, 1.0)}, r"Expected `spacing` of finite numbers. Received: \(1.0, nan, 1.0\)"),
        ({"class_probabilities": (math.inf, 1.0)}, "Expected `class_probabilities` of finite numbers"),
        ({"network_options": {"dropout": math.nan}}, "Expected `dropout` of finite numbers"),
        ({"seed": 2**32}, "Expected `seed` up to 4294967295. Received: 4294967296"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Settings("oasis", **values)


def test_a_checkpoint_may_be_so_rare_that_it_never_comes():
    assert Settings("oasis", checkpoint_minutes=math.inf, seed=2**32 - 1).checkpoint_minutes == math.inf
