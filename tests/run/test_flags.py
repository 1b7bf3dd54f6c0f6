"""The flags of train.py: precedence, help, and the error of each wrong one."""

import re
from dataclasses import fields

import pytest

from dataset import DATASETS
from modules.model import losses
from modules.networks._blocks import NORMS
from modules.run.flags import parse_training
from modules.run.folder import write_json
from modules.run.settings import PRESETS, Settings


def parse(argv):
    return parse_training(argv, DATASETS)


def test_precedence_defaults_preset_flags():
    config = parse(["--dataset", "oasis"]).settings
    assert config == Settings(dataset="oasis", **DATASETS["oasis"].defaults)
    config = parse(["--preset", "oasis_unet2d"]).settings
    assert (config.dataset, config.batch_size, config.epochs, config.learning_rate, config.weight_decay) == ("oasis", 64, 15, 1e-4, 5e-4)
    config = parse(["--preset", "oasis_unet2d", "--epochs", "3"]).settings
    assert (config.batch_size, config.epochs) == (64, 3)
    config = parse(["--dataset", "hipmri", "--demo", "--target", "bone", "bladder"]).settings
    assert (config.network_options["base_filters"], config.target) == (16, ("bone", "bladder"))


def test_a_flag_wins_over_the_data_sets_own_setting():
    assert parse(["--dataset", "ibsr18"]).settings.plane == "coronal"
    assert parse(["--dataset", "ibsr18", "--plane", "axial"]).settings.plane == "axial"


def test_no_flag_gives_no_config():
    assert parse([]).settings is None


def test_every_setting_has_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for item in fields(Settings):
        if item.name == "network_options":
            continue
        assert "--" + item.name.replace("_", "-") in text
        assert item.metadata["help"]
    words = set(re.findall(r"\w+", text))
    assert {*losses.LOSSES, *NORMS, *DATASETS, *PRESETS} <= words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "liver"], "invalid choice: 'liver'"),
        (["--epochs", "3"], "Expected --dataset in"),
        (["--dataset", "oasis", "--epochs", "three"], "invalid int value: 'three'"),
        (["--dataset", "oasis", "--epochs", "0"], "Expected `epochs` above 0. Received: 0"),
        (["--dataset", "oasis", "--test-fraction", "1"], "Expected `test_fraction` between 0 and 1"),
        (["--dataset", "oasis", "--patience", "-1"], "Expected `patience` of 0 or more"),
        (["--dataset", "oasis", "--lr", "1"], "unrecognized arguments: --lr"),
        (["--preset", "best"], "Expected --preset in .*Received: 'best'"),
        (["--resume", "x", "--verify", "x"], "Expected either --resume or --verify"),
        (["--dataset", "oasis", "--ema", "1"], "Expected `ema` from 0 to below 1. Received: 1.0"),
        (["--dataset", "oasis", "--epochs", "3", "--warmup-epochs", "3"], "Expected `warmup_epochs` below the 3 epochs"),
        (["--dataset", "oasis", "--folds", "1"], "Expected `folds` of 2 or more"),
        (["--dataset", "oasis", "--folds", "3", "--fold", "3"], "Expected `fold` from 0 to below `folds`, 3. Received: 3"),
        (["--dataset", "oasis", "--accumulate", "0"], "Expected `accumulate` above 0"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(ValueError, match=message):
        parse(argv)


def test_a_resumed_run_takes_its_own_settings_and_no_others(tmp_path):
    write_json(tmp_path / "run.json", {"config": Settings(dataset="oasis", epochs=3).to_json()})
    for flags in ([], ["--epochs", "3"], ["--dataset", "oasis"]):
        request = parse(["--resume", str(tmp_path), *flags])
        assert (request.settings.epochs, request.resume) == (3, tmp_path)
    assert parse(["--resume", str(tmp_path), "--track", "tensorboard"]).settings.track == "tensorboard"
    # Samples are the same wherever the training cases lie.
    request = parse(["--resume", str(tmp_path), "--resident", "no"])
    assert (request.settings.resident, request.places) == ("no", {"resident": "no"})
    # The places of a run may have moved, also those of a demo.
    for way in ("--resume", "--verify"):
        request = parse([way, str(tmp_path), "--data", "moved", "--cache", "other", "--runs", "here"])
        assert (request.settings.data, request.settings.cache, request.settings.runs) == ("moved", "other", "here")
        assert request.places == {"data": "moved", "cache": "other", "runs": "here", "demo": False}
    write_json(tmp_path / "run.json", {"config": Settings(dataset="oasis", epochs=3, demo=True).to_json()})
    assert str(parse(["--resume", str(tmp_path), "--data", "moved"]).settings.data_folder()) == "moved"
    with pytest.raises(ValueError, match=r"Expected `epochs` 3, as .* has it. Received: 4. A run keeps its settings"):
        parse(["--resume", str(tmp_path), "--epochs", "4"])
    with pytest.raises(ValueError, match=r"Expected `network` '', as .* has it. Received: 'unet2d'"):
        parse(["--verify", str(tmp_path), "--network", "unet2d"])


def test_a_table_of_subjects_may_have_moved_but_not_become_a_rule(tmp_path):
    write_json(tmp_path / "run.json", {"config": Settings(dataset="oasis", subjects="gone/a.csv").to_json()})
    request = parse(["--resume", str(tmp_path), "--subjects", "here/a.csv"])
    assert (request.settings.subjects, dict(request.places)) == ("here/a.csv", {"subjects": "here/a.csv"})
    with pytest.raises(ValueError, match="Expected `subjects` 'gone/a.csv', as .* has it"):
        parse(["--resume", str(tmp_path), "--subjects", "(p)"])


def test_a_run_of_an_unknown_data_set_is_named(tmp_path):
    write_json(tmp_path / "run.json", {"config": Settings(dataset="liver").to_json()})
    with pytest.raises(ValueError, match=r"Expected `dataset` in \('hipmri', .*\). Received: 'liver' in .*run.json. Start the run anew."):
        parse(["--resume", str(tmp_path)])


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_search_has_at_least_one_training(number):
    with pytest.raises(ValueError, match=f"Expected `search` of 1 training or more. Received: {number}."):
        parse_training(["--dataset", "hipmri", "--search", number], DATASETS)


@pytest.mark.parametrize("flags", [["--search", "2"], ["--train-only"]])
def test_a_training_without_a_data_set_is_no_wish_for_the_list(flags):
    with pytest.raises(ValueError, match=r"Expected --dataset in .*Received: none\."):
        parse_training(flags, DATASETS)
