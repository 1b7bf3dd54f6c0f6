"""Folds that workers train: the weights and scores of one command, also where a worker is killed; their time and their errors."""

import json
import os
import sys
from pathlib import Path

import pytest
from command_helpers import TINY, expect_one_line

import train
from modules import backend_choice
from modules.run import training_parts, workers
from modules.run.folder import RunFolder
from modules.run.settings import Settings
from modules.run.training_parts import make_training_command, train_fold_parts
from modules.run.workers import Ended, Job, WorkerOptions

# train.py, of which fold 0 is killed once when its network is trained and not scored yet.
KILLED_ONCE = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, {root})
import train

marker, evaluate = Path({marker}), train.evaluate


def kill_once(splits, run, *rest):
    if run.path.name == "fold_0" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    evaluate(splits, run, *rest)


train.evaluate = kill_once
sys.exit(train.main())
"""


def _train_folds(folder, data, *flags):
    places = ["--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", "whole"]
    fixed = ["--dataset", "oasis", "--data", str(data), *TINY, "--epochs", "1", "--folds", "2", "--postprocess", "none"]
    assert train.main([*fixed, "--augment", "none", *places, *flags]) == 0
    return folder / "runs" / "whole"


def test_folds_by_workers_are_those_of_one_command(phantoms, tmp_path, monkeypatch, capsys):
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        pytest.skip("one backend suffices")
    one = _train_folds(tmp_path / "one", phantoms / "oasis")
    script = tmp_path / "killed_once.py"
    root = str(Path(train.__file__).parent)
    script.write_text(KILLED_ONCE.replace("{root}", repr(root)).replace("{marker}", repr(str(tmp_path / "killed"))))
    monkeypatch.setattr(train, "__file__", str(script))
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.2)
    two = _train_folds(tmp_path / "two", phantoms / "oasis", "--workers", "2")
    assert (tmp_path / "killed").exists()
    assert "fold_0 is begun again: killed by signal 9" in capsys.readouterr().out
    for fold in range(2):
        summaries = [json.loads((run / f"fold_{fold}" / "summary.json").read_text()) for run in (one, two)]
        assert summaries[0]["bundle_weights_sha256"] == summaries[1]["bundle_weights_sha256"]
        assert summaries[0]["test"] == summaries[1]["test"]
    assert (one / "scores.csv").read_bytes() == (two / "scores.csv").read_bytes()
    assert (one / "summary.json").read_bytes() == (two / "summary.json").read_bytes()
    expect_one_line(capsys, train.main(["--resume", str(two), "--workers", "2"]), "Expected an interrupted run. Received: ")


def test_a_training_leaves_the_test_cases_unseen_until_it_is_resumed(phantoms, tmp_path, monkeypatch):
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        pytest.skip("one backend suffices")
    seen, evaluate = [], train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda splits, *rest: seen.append(len(splits["test"])) or evaluate(splits, *rest))
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "a"]
    fixed = ["--dataset", "oasis", "--data", str(phantoms / "oasis"), *TINY, "--epochs", "1", "--postprocess", "none"]
    run = RunFolder(tmp_path / "runs" / "a")
    for flags in ([*fixed, *places], ["--resume", str(run.path)]):
        assert train.main([*flags, "--train-only"]) == 0
        assert not run.finished
        assert not run.scores.exists()
        assert run.bundle.is_dir()
    assert seen == []
    assert train.main(["--resume", str(run.path)]) == 0
    assert run.finished
    assert seen == [4]


def test_commands_of_trainings_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(backend_choice, "_GIVEN", False)
    whole = RunFolder(tmp_path / "whole")
    (fold,) = whole.list_folds(1, "slice")
    command = make_training_command(Path("/p/train.py"), fold, Settings("oasis", epochs=3), whole.workers, "--devices", "2")
    config = tmp_path / "whole" / "workers" / "slice" / "fold_0.json"
    start = ["env", "MRI_END_WITH_PARENT=1", sys.executable, "/p/train.py"]
    name = ["--config", str(config), "--name", "fold_0", "--runs", str(tmp_path / "whole" / "slice")]
    assert command == [*start, *name, "--devices", "2"]
    assert Settings.from_json(json.loads(config.read_text())["config"], "") == Settings("oasis", epochs=3)
    fold.path.mkdir(parents=True)
    fold.record.write_text("{}")
    assert make_training_command(Path("/p/train.py"), fold, Settings("oasis"), whole.workers) == [*start, "--resume", str(fold.path)]


def test_time_is_shared_and_a_fold_that_fails_is_named(tmp_path, monkeypatch):
    run, asked = RunFolder(tmp_path / "whole"), []

    def start(command):
        fold = RunFolder(Path(command[command.index("--runs") + 1], command[command.index("--name") + 1]))
        asked.append(json.loads(Path(command[command.index("--config") + 1]).read_text())["config"])
        if fold.path.name != "fold_1":
            fold.path.mkdir(parents=True)
            fold.summary.write_text("{}")
        return Job(lambda: True, lambda: Ended(0 if fold.finished else 2, "some\ntrain.py: error: Expected a GPU."), lambda: None)

    monkeypatch.setattr(workers, "_start_process", start)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0)
    runs = {"": run.list_folds(3)}
    with pytest.raises(ValueError, match=r"Expected every fold to be trained. Received: Expected a GPU. in .*fold_1. Mend that, and go on"):
        train_fold_parts(run, runs, {"": Settings("oasis", minutes=30.0, folds=3)}, Path("train.py"), WorkerOptions("local", 2), share=0.9)
    # Two workers train three folds one after the other, so that each has half of the time. The one that fails is begun thrice.
    assert [config["minutes"] for config in asked] == [13.5] * 5
    assert sorted(config["fold"] for config in asked) == [0, 1, 1, 1, 2]
    # Only what is missing is trained, in the part of the time that it had before.
    for given, on_gpu, minutes in (({"minutes": 30.0}, False, 15.0), ({}, False, 30.0), ({}, True, None), ({"epochs": 3}, False, None)):
        asked.clear()
        monkeypatch.setattr(training_parts, "has_nvidia", lambda on_gpu=on_gpu: on_gpu)
        with pytest.raises(ValueError, match="Expected every fold"):
            train_fold_parts(run, runs, {"": Settings("oasis", **given, folds=3)}, Path("train.py"), WorkerOptions("local", 2))
        # Of all folds together a CPU has an hour, and a GPU the whole recipe.
        assert [(config["fold"], config["minutes"]) for config in asked] == [(1, minutes)] * 3
