"""The log of a batch: what another program can read while it runs, and that the batch goes on without it."""

import json

import pytest

from modules.predict import case_log
from modules.predict.case_log import CaseLog


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 1.5 s at each look, and a process that took 3 GiB."""
    seconds = iter(range(100))
    monkeypatch.setattr(case_log.time, "perf_counter", lambda: 1.5 * next(seconds))
    monkeypatch.setattr(case_log, "read_peak", lambda: 3 << 30)
    monkeypatch.setattr(case_log, "reset_peak", lambda: None)


def test_each_line_can_be_read_at_once(clock, tmp_path, caplog):
    caplog.set_level("INFO", "mri")
    path = tmp_path / "logs" / "log.jsonl"
    told = CaseLog(path)
    assert path.read_text() == ""
    told.tell_failed(None, "Expected images.")
    told.tell_skipped("a", {"prediction": tmp_path / "a.nii"})
    told.start(2)
    told.tell_done("p1/b", {"prediction": tmp_path / "b.nii"})
    told.tell_failed("c", "Expected a whole file.")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"case": None, "status": "failed", "seconds": 1.5, "peak_bytes": 3 << 30, "error": "Expected images.", "files": {}},
        {"case": "a", "status": "skipped", "seconds": 0, "peak_bytes": 0, "error": None, "files": {"prediction": str(tmp_path / "a.nii")}},
        {
            "case": "p1/b",
            "status": "done",
            "seconds": 1.5,
            "peak_bytes": 3 << 30,
            "error": None,
            "files": {"prediction": str(tmp_path / "b.nii")},
        },
        {"case": "c", "status": "failed", "seconds": 1.5, "peak_bytes": 3 << 30, "error": "Expected a whole file.", "files": {}},
    ]
    assert caplog.messages == ["failed: Expected images.", "1/2 p1/b: 1.5 s, 3.0 GiB", "failed: Expected a whole file."]
    # Another call goes on with the file.
    CaseLog(path).tell_done("d", {})
    assert len(path.read_text().splitlines()) == 5


def test_a_log_that_cannot_be_written_any_more_does_not_end_the_batch(clock, tmp_path, caplog):
    caplog.set_level("INFO", "mri")
    path = tmp_path / "logs" / "log.jsonl"
    told = CaseLog(path)
    path.unlink()
    path.mkdir()
    for name in "ab":
        told.tell_done(name, {})
    assert sum("The log gets no more lines." in message for message in caplog.messages) == 1
    with pytest.raises(OSError, match=r"Expected a file that can be written for `--log-json`. Received: .*log.jsonl \(Is a directory\)"):
        CaseLog(path)
