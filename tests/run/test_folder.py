"""The folder of a run: it appears whole, one process claims it, and it is found again."""

import errno
import json
import logging
import os

import pytest

from modules.data.files import TEMPORARY, replace_file
from modules.run.folder import RunFolder, write_json
from modules.run.settings import Settings
from modules.run.verify import read_data, read_origin, read_proof, read_scored_weights


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
    take_name = RunFolder._take_name

    def begin_meanwhile(self, draft):
        monkeypatch.setattr(RunFolder, "_take_name", take_name)
        second.create(Settings("oasis"))
        take_name(self, draft)

    monkeypatch.setattr(RunFolder, "_take_name", begin_meanwhile)
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


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_what_a_killed_command_left_is_swept_away_and_nothing_else(tmp_path):
    own = [".git/HEAD", ".notes", ".lock", "figures/dice.png", "figures/.DS_Store", "bundle/model.keras"]
    parts = [
        "figures/X-dice.png",
        "bundle/Xa/openvino.bin",
        "Xbundle.old/model.keras",
        "Xbundle.new/model.keras",
        "predictions/Xscan.nii.gz",
    ]
    _touch(tmp_path, *own, *(name.replace("X", TEMPORARY) for name in parts))
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / ".git")
    RunFolder(tmp_path).sweep()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(own)


def test_a_new_run_sweeps_what_killed_ones_left_beside_it(tmp_path):
    dead, alive = (RunFolder(tmp_path / f"{TEMPORARY}{name}") for name in ("dead", "alive"))
    for run in (dead, alive):
        _touch(run.path, "run.json")
        run.claim()
    dead.release()
    (tmp_path / f"{TEMPORARY}empty").mkdir()
    _touch(tmp_path, f"{TEMPORARY}users/notes")
    new = RunFolder(tmp_path / "new")
    new.create(Settings("oasis"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.path.name, f"{TEMPORARY}users", "new"]
    with pytest.raises(ValueError, match="which another process trains"):
        RunFolder(new.path).claim()
    for run in (alive, new):
        run.release()


def test_everything_unfinished_has_the_name_that_a_sweep_knows(tmp_path, monkeypatch):
    seen = []

    def look(*_):
        seen.extend(path.name for path in tmp_path.iterdir())

    with replace_file(tmp_path / f"{'long' * 60}.csv"):
        look()
    monkeypatch.setattr(RunFolder, "claim", look)
    RunFolder(tmp_path / "run").create(Settings("oasis"))
    assert len(seen) == 3
    assert all(name.startswith(TEMPORARY) for name in seen if not name.startswith("long"))


def test_a_bundle_that_was_moved_aside_comes_back_in_a_sweep(tmp_path):
    _touch(tmp_path, f"{TEMPORARY}bundle.old/model.keras")
    RunFolder(tmp_path).sweep()
    assert (tmp_path / "bundle" / "model.keras").is_file()


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path):
    # Each is named before any of them is made.
    runs = [RunFolder.name(Settings("oasis", runs=str(tmp_path))) for _ in range(3)]
    first = runs[0].path.name
    for run in runs:
        run.path = tmp_path / first
        run.create(Settings("oasis"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, f"{first}-2", f"{first}-3"]
    assert [run.path.name for run in runs] == [first, f"{first}-2", f"{first}-3"]
    with pytest.raises(ValueError, match=r"-2, which another process trains"):
        RunFolder(runs[1].path).claim()


def test_a_name_that_cannot_be_had_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Expected a new name for the run"):
        RunFolder.name(Settings("oasis", runs=str(tmp_path), name="a")).check_new()
    with pytest.raises(OSError, match=r"Expected a folder to write runs to. Received: .*file, which is none. Choose `--runs`"):
        RunFolder.name(Settings("oasis", runs=str(tmp_path / "file" / "runs"))).check_new()
    RunFolder.name(Settings("oasis", runs=str(tmp_path / "new" / "runs"))).check_new()
    # A disk that is read-only, to root too.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match=r"Received: .*, where nothing can be written. Choose `--runs`"):
        RunFolder.name(Settings("oasis", runs=str(tmp_path / "new" / "runs"))).check_new()
    assert not (tmp_path / "new").exists()


def test_a_run_that_finished_while_another_waited_is_not_claimed(tmp_path, monkeypatch):
    run, lock = RunFolder(tmp_path), RunFolder._take_lock

    def finish_meanwhile(self):
        lock(self)
        write_json(tmp_path / "summary.json", {})

    monkeypatch.setattr(RunFolder, "_take_lock", finish_meanwhile)
    with pytest.raises(ValueError, match="Expected an interrupted run. Received: .*, which is finished"):
        run.claim()
    monkeypatch.undo()
    (tmp_path / "summary.json").unlink()
    run.claim()
    run.release()


def test_a_log_that_cannot_be_written_is_named_and_the_first_error_is_told(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "a")
    run.create(Settings("oasis"))
    log = logging.getLogger("mri")
    log.setLevel(logging.DEBUG)

    def fail(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def tell(error=None):
        with run:
            monkeypatch.setattr(logging.FileHandler, "flush", fail)
            if error:
                raise error
            log.info("inside")

    with pytest.raises(OSError, match=r"Expected to write .*log.txt to its end. Received: No space left on device"):
        tell()
    with pytest.raises(ValueError, match="the first"):
        tell(ValueError("the first"))


def test_names_that_are_not_utf8_are_logged(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.create(Settings("oasis"))
    with run:
        logging.getLogger("mri").info("scan %s", os.fsdecode(b"p\xe9.nii.gz"))
    assert "p\\udce9.nii.gz" in run.log.read_text(encoding="utf-8")


def test_nan_becomes_null(tmp_path):
    write_json(tmp_path / "a.json", {"dice": [float("nan"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": [None, 1.0]}


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        (
            "plan.json",
            None,
            lambda run: run.read_plan(),
            "Expected the plan of a run in .*plan.json. Received: none, as of a run that version 0.1",
        ),
        (
            "plan.json",
            '{"preprocessing": 3, "sampler": null, "window": [64, 64]}',
            lambda run: run.read_plan(),
            "Expected the field `mode` in .*plan.json. Received: none of that name. Start the run anew",
        ),
        ("run.json", '{"config": 3}', lambda run: run.read_settings(), "Expected settings by name in .*run.json. Received: 3"),
        ("proof.json", "[]", read_proof, r"Expected an object with fields in .*proof.json. Received: \[\]"),
        ("proof.json", '{"steps": -1, "weights_sha256": ""}', read_proof, "Expected a whole number from 1 .* for `steps` in .*proof.json"),
        ("run.json", "{", read_origin, "Expected JSON in .*run.json. Received: Expecting property name"),
        ("run.json", '{"config": {}, "backend": 3}', read_origin, "Expected the field `precision` in .*run.json"),
        (
            "data.json",
            '{"a.nii": "train"}',
            read_data,
            "Expected files with split and SHA-256 in .*data.json. Received: {'a.nii'",
        ),
        ("summary.json", "[" * 100_000, read_scored_weights, "Expected JSON in .*summary.json. Received: values nested more than 64 deep"),
        ("proof.json", None, read_proof, "Expected the first steps of a run in .*proof.json. Received: none yet"),
    ],
)
def test_what_no_run_wrote_is_refused_in_one_line(tmp_path, name, text, read, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(RunFolder(tmp_path))
