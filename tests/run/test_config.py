"""The file of `--config`: its forms, its place among the settings, and the error of each wrong one."""

import json
import shutil
from dataclasses import replace

import pytest
from command_helpers import expect_one_line

import train
from dataset import DATASETS
from modules.run.flags import parse_training
from modules.run.folder import RunFolder, write_json
from modules.run.settings import Settings


def _parse(*argv):
    return parse_training(list(map(str, argv)), DATASETS).settings


def _write(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_stands_between_the_data_sets_own_settings_and_the_flags(tmp_path):
    path = _write(tmp_path, 'dataset = "ibsr18"\nepochs = 7\nlearning_rate = 1\nbase_filters = 4\nshape = [32, 32]\n')
    config = _parse("--config", path)
    # The plane is the data set's own.
    assert (config.dataset, config.epochs, config.learning_rate, config.shape, config.plane) == ("ibsr18", 7, 1, (32, 32), "coronal")
    assert dict(config.network_options) == {"base_filters": 4}
    assert _parse("--config", _write(tmp_path, 'dataset = "ibsr18"\nplane = "axial"')).plane == "axial"
    config = _parse("--config", _write(tmp_path, "epochs = 7"), "--dataset", "oasis", "--epochs", 8)
    assert (config.dataset, config.epochs) == ("oasis", 8)
    path = _write(tmp_path, json.dumps({"dataset": "oasis", "batch_size": 3, "target": ["GM"]}), "mine.json")
    assert (_parse("--config", path).batch_size, _parse("--config", path).target) == (3, ("GM",))


def test_the_demos_settings_stand_below_a_file_but_not_below_a_run(tmp_path):
    path = _write(tmp_path, 'dataset = "hipmri"\ndemo = true\nepochs = 2')
    config = _parse("--config", path)
    assert (config.epochs, config.batch_size, config.network_options["base_filters"]) == (2, 8, 16)
    begun = Settings(dataset="hipmri", demo=True, epochs=2, name="a", data="")
    write_json(tmp_path / "run.json", {"config": begun.to_json()})
    assert _parse("--config", tmp_path / "run.json") == Settings(dataset="hipmri", demo=True, epochs=2)


def test_a_flag_takes_the_place_of_the_files_other_choice(tmp_path):
    path = _write(tmp_path, 'dataset = "hipmri"\ndemo = true')
    assert (_parse("--config", path, "--data", "here").data, _parse("--config", path, "--data", "here").demo) == ("here", False)
    path = _write(tmp_path, 'dataset = "hipmri"\ndata = "there"')
    assert (_parse("--config", path, "--demo").data, _parse("--config", path, "--demo").demo) == ("", True)
    # One file serves the whole and its folds as separate commands.
    path = _write(tmp_path, 'dataset = "ibsr18"\nfolds = 2\nmodes = ["slice", "patch"]')
    single = _parse("--config", path, "--mode", "slice", "--fold", 0)
    assert (single.mode, single.modes, single.fold) == ("slice", (), 0)
    path = _write(tmp_path, 'dataset = "ibsr18"\nfolds = 2\nmode = "slice"')
    assert (_parse("--config", path, "--modes", "patch").mode, _parse("--config", path, "--modes", "patch").modes) == ("", ("patch",))


def test_a_run_gives_its_settings_but_not_its_name(runs, capsys):
    first = runs["hipmri"]
    begun = RunFolder(first).read_settings()
    assert begun.name == first.name
    for path in (first, first / "run.json"):
        assert _parse("--config", path) == replace(begun, name="")
    assert train.main(["--config", str(first), "--name", first.name]) == 2
    assert "Expected a new name for the run" in capsys.readouterr().err


def test_a_file_beside_resume_and_verify_must_agree(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(runs["hipmri"] / "run.json", run)
    for way in ("--resume", "--verify"):
        assert _parse(way, run, "--config", run) == RunFolder(run).read_settings()
        with pytest.raises(ValueError, match=r"Expected `epochs` 3, as .*run has it. Received: 4. A run keeps its settings"):
            _parse(way, run, "--config", _write(tmp_path, "epochs = 4"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "speed = 1", r"Expected settings in \('dataset', .*'epochs', .*'base_filters'.*\). Received: 'speed' in PATH"),
        ("a.toml", "epochz = 1", r"Received: 'epochz' in PATH\. Did you mean 'epochs'\?$"),
        (
            "a.json",
            '{"config": {"zzz": 1}, "version": "99.0"}',
            r"'zzz' in PATH\. The run is of version '99\.0', and this program of \d",
        ),
        ("a.toml", "epochs = '3'", "Expected `epochs` of type int. Received: '3' in PATH"),
        ("a.toml", "epochs = 0", "Expected `epochs` above 0. Received: 0. Correct PATH, or the flags beside it."),
        ("a.toml", "optimizer = 'best'", r"Expected `optimizer` in \('adam', .*\). Received: 'best' in PATH"),
        ("a.toml", "[network]\nlevels = 2", "Expected `network` of type str. Received: {'levels': 2} in PATH"),
        ("a.toml", "epochs = ", "Expected TOML in PATH. Received: Invalid value .*Correct the file."),
        ("a.json", "{", "Expected JSON in PATH. Received: .* Correct the file."),
        ("a.json", "[1]", r"Expected settings by name in PATH. Received: \[1\]. Correct the file."),
        ("a.json", '{"config": {"speed": 1}}', r"Expected settings in .* Received: 'speed' in PATH"),
        ("a.yaml", "epochs: 3", "Expected a .toml or .json file for --config. Received: PATH."),
        ("a.toml", "dataset = 'liver'", r"Expected --dataset in \('hipmri', .*\). Received: liver in PATH."),
        ("a.toml", "epochs = 3", r"Expected --dataset in \('hipmri', .*\). Received: none in PATH."),
    ],
)
def test_wrong_files_are_named(tmp_path, name, text, message):
    path = _write(tmp_path, text, name)
    with pytest.raises(ValueError, match=message.replace("PATH", str(path))):
        _parse("--config", path)


def test_a_flag_mends_a_fault_of_the_file(tmp_path):
    path = _write(tmp_path, 'dataset = "oasis"\nepochs = 50\nwarmup_epochs = 60')
    with pytest.raises(ValueError, match="Expected `warmup_epochs` below the .* epochs. Received: 60. Correct .*mine.toml"):
        _parse("--config", path)
    assert _parse("--config", path, "--epochs", 100).warmup_epochs == 60


def test_two_sources_and_a_missing_file_are_refused(tmp_path, capsys):
    status = train.main(["--preset", "oasis_unet2d", "--config", str(tmp_path / "a.toml")])
    expect_one_line(capsys, status, "Expected either --preset or --config. Received: both.")
    status = train.main(["--config", str(tmp_path / "a.toml")])
    expect_one_line(capsys, status, f"Expected a file of settings in {tmp_path / 'a.toml'} for --config. Received: no such file.")
    status = train.main(["--config", str(tmp_path)])
    expect_one_line(capsys, status, f"Expected a file of settings in {tmp_path / 'run.json'} for --config. Received: no such file.")
