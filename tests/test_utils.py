"""Settings, presets and flags, and how errors reach the user."""

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import utils
from dataset import DATASETS
from modules import augment, devices
from modules.model import losses, optimizers
from modules.networks._blocks import NORMS
from modules.run.folder import list_runs, make_run_folder, newest_run, sweep, write_json
from utils import PRESETS, Settings, StopRequest, parse_training, run_command


def test_precedence_defaults_preset_flags():
    config = parse_training(["--dataset", "oasis"]).config
    assert config == Settings(dataset="oasis", **DATASETS["oasis"].defaults)
    config = parse_training(["--preset", "oasis_unet2d"]).config
    assert (config.dataset, config.batch_size, config.epochs, config.learning_rate, config.weight_decay) == ("oasis", 64, 15, 1e-4, 5e-4)
    config = parse_training(["--preset", "oasis_unet2d", "--epochs", "3"]).config
    assert (config.batch_size, config.epochs) == (64, 3)
    config = parse_training(["--dataset", "hipmri", "--demo", "--target", "bone", "bladder"]).config
    assert (config.base_filters, config.target) == (16, ("bone", "bladder"))


def test_no_flag_gives_no_config():
    assert parse_training([]).config is None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_short(name):
    values = utils._read_preset(name)
    assert set(values) <= {item.name for item in fields(Settings)}
    assert len(PRESETS[name].read_text().splitlines()) < 20


def test_every_setting_has_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_training(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for item in fields(Settings):
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
        parse_training(argv)


def test_names_known_without_keras_are_those_of_the_modules():
    assert tuple(losses.LOSSES) == utils.LOSSES
    assert tuple(augment.AUGMENTATIONS) == utils.AUGMENTS
    assert (optimizers.OPTIMIZERS, optimizers.SCHEDULES) == (utils.OPTIMIZERS, utils.SCHEDULES)


def test_unknown_and_ill_typed_settings_name_their_source():
    with pytest.raises(ValueError, match=r"Expected settings in \('dataset', .*Received: 'speed' in a.toml"):
        Settings.from_json({"dataset": "oasis", "speed": 1}, "a.toml")
    with pytest.raises(ValueError, match="Expected `epochs` of type int. Received: '9' in a.toml"):
        Settings.from_json({"dataset": "oasis", "epochs": "9"}, "a.toml")


def test_config_survives_json():
    config = Settings(dataset="hipmri", target=("bone",), shape=(64, 64), dropout=0.1)
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


def test_environment_is_described_without_git_and_openvino(monkeypatch, tmp_path):
    assert ("openvino" in devices.describe_environment()["versions"]) == bool(importlib.util.find_spec("openvino"))

    def find(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setenv("PATH", str(tmp_path))
    described = devices.describe_environment()
    assert described["git_commit"] is None
    assert described["versions"]["keras"]
    assert "openvino" not in described["versions"]
    assert described["devices"]


def test_a_resumed_run_takes_its_own_settings_and_no_others(tmp_path):
    write_json(tmp_path / "run.json", {"config": Settings(dataset="oasis", epochs=3).to_json()})
    for flags in ([], ["--epochs", "3"], ["--dataset", "oasis"]):
        request = parse_training(["--resume", str(tmp_path), *flags])
        assert (request.config.epochs, request.resume) == (3, tmp_path)
    assert parse_training(["--resume", str(tmp_path), "--track", "tensorboard"]).config.track == "tensorboard"
    with pytest.raises(ValueError, match=r"Expected `epochs` 3, as .* has it. Received: 4. A run keeps its settings"):
        parse_training(["--resume", str(tmp_path), "--epochs", "4"])
    with pytest.raises(ValueError, match=r"Expected `network` '', as .* has it. Received: 'unet2d'"):
        parse_training(["--verify", str(tmp_path), "--preset", "oasis_unet2d"])


def test_a_run_folder_comes_whole_or_not_at_all(tmp_path):
    with pytest.raises(TypeError):
        make_run_folder(tmp_path / "a", run={("no", "json"): 1})
    assert not (tmp_path / "a").exists()
    make_run_folder(tmp_path / "a", run={"config": {}}, data={"x": 1})
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"run.json", "data.json", "figures"}
    with pytest.raises(ValueError, match="Expected a new name for the run"):
        make_run_folder(tmp_path / "a", run={})


def test_folds_stand_for_their_run(tmp_path):
    for number in range(11):
        (tmp_path / "whole" / f"fold_{number}").mkdir(parents=True)
    listed = list_runs([tmp_path / "one", tmp_path / "whole"])
    assert [path.name for path in listed] == ["one", *(f"fold_{number}" for number in range(11))]


def test_the_first_signal_asks_and_the_second_enforces():
    # A shell that starts tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_newest_run_is_the_one_finished_last(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a finished run in"):
        newest_run(tmp_path)
    for age, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {})
        os.utime(tmp_path / name / "summary.json", (time.time() - age, time.time() - age))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path).name == "b"


def test_what_a_killed_run_left_is_swept_away_but_for_a_bundle_moved_aside(tmp_path):
    for name in (
        "figures/.dice-abc.png",
        "bundle/.tmp/openvino.bin",
        ".bundle.old/model.keras",
        "figures/dice.png",
        ".bundle.new/model.keras",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".bundle.old/model.keras", "figures/dice.png"]


def test_nan_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"dice": [float("nan"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": [None, 1.0]}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a\n b"), 2), (FileNotFoundError("c"), 2), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_an_error_is_one_line(capsys, error, status):
    def command():
        if error:
            raise error

    assert run_command("train.py", command) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (status != 0)
    if status == 2:
        assert lines[0] == f"train.py: error: {' '.join(str(error).split())}"


def test_a_defect_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command("train.py", lambda: 1 // 0)


STEPS = """
from modules import devices
devices.start_backend(42)
import keras, numpy as np
from modules import networks
from modules.bundle import hash_weights
from modules.losses import SegmentationLoss
network = networks.build("unet2d", (256, 128, 1), 6, base_filters=16)
network.compile(optimizer="adam", loss=SegmentationLoss("dice_ce"))
draws = np.random.default_rng(0)
for _ in range(4):
    network.train_on_batch(draws.random((8, 256, 128, 1), np.float32), draws.integers(0, 6, (8, 256, 128)))
print(hash_weights(network))
"""


def test_two_processes_train_to_the_same_bits_at_full_size():
    # Small networks are repeatable whatever the threads do; only one of real size shows whether a training is.
    root = Path(utils.__file__).parent
    runs = [subprocess.run([sys.executable, "-c", STEPS], cwd=root, capture_output=True, text=True, check=True) for _ in range(2)]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout
