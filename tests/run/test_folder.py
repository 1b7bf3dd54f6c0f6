"""The folder of a run: it comes whole, is claimed by one process, and is found again."""

import json
import logging
import os
import time

import pytest

from modules.run.folder import RunFolder, find_newest_run, list_runs, write_json
from modules.run.settings import Settings


def test_a_run_folder_comes_whole_or_not_at_all(tmp_path):
    run = RunFolder(tmp_path / "a")
    with pytest.raises(TypeError):
        run.create(Settings("oasis"), data={("no", "json"): 1})
    assert list(tmp_path.iterdir()) == []
    run.create(Settings("oasis"), data={"x": 1}, backend="none")
    run.release()
    assert {path.name for path in run.path.iterdir()} == {"run.json", "data.json", "figures", ".lock"}
    assert run.read_settings() == Settings("oasis")
    assert run.read_record()["backend"] == "none"
    with pytest.raises(ValueError, match="Expected a new name for the run"):
        RunFolder(tmp_path / "a").create(Settings("oasis"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    first, second = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "a")
    claim = RunFolder.claim

    def begin_meanwhile(self):
        monkeypatch.setattr(RunFolder, "claim", claim)
        second.create(Settings("oasis"))
        claim(self)

    monkeypatch.setattr(RunFolder, "claim", begin_meanwhile)
    with pytest.raises(ValueError, match=r"Expected a new name for the run. Received: .*a, which exists"):
        first.create(Settings("hipmri"))
    assert second.read_settings().dataset == "oasis"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_run_in_training_is_not_trained_twice(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.create(Settings("oasis"))
    with run, pytest.raises(ValueError, match=r"Expected a run that nobody trains. Received: .*a, which another process trains"):
        RunFolder(run.path).claim()
    other = RunFolder(run.path)
    other.claim()
    other.release()


def test_what_is_logged_inside_is_in_its_file_with_the_reason_of_an_error(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.create(Settings("oasis"))
    log = logging.getLogger("mri")
    log.setLevel(logging.DEBUG)

    def fail():
        with run:
            log.info("inside")
            raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        fail()
    log.info("outside")
    text = run.log.read_text()
    assert "inside" in text
    assert "Traceback" in text
    assert "outside" not in text


def test_folds_stand_for_their_run(tmp_path):
    for number in range(11):
        (tmp_path / "whole" / f"fold_{number}").mkdir(parents=True)
    listed = list_runs([tmp_path / "one", tmp_path / "whole"])
    assert [path.name for path in listed] == ["one", *(f"fold_{number}" for number in range(11))]


def test_newest_run_is_the_one_finished_last(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a finished run in"):
        find_newest_run(tmp_path)
    for age, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {})
        os.utime(tmp_path / name / "summary.json", (time.time() - age, time.time() - age))
    (tmp_path / "unfinished").mkdir()
    assert find_newest_run(tmp_path).name == "b"


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
    RunFolder(tmp_path).sweep()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".bundle.old/model.keras", "figures/dice.png"]


def test_nan_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"dice": [float("nan"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": [None, 1.0]}
