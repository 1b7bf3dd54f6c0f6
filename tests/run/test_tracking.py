"""Tracking of any kind: failures stop nothing, what was missed is sent later, and none writes nothing."""

import logging
from pathlib import Path

import pytest
from tracking_helpers import MEANS, NAN
from tracking_helpers import make_row as _row
from tracking_helpers import open_run_tracker as _open
from tracking_helpers import train_on as _train

from modules.run.folder import RunFolder
from modules.run.tracking import Tracker

pytestmark = pytest.mark.usefixtures("_environment")


class _Sink:
    """Remembers its calls, and fails as long as it is told to."""

    def __init__(self):
        self.epochs, self.summary, self.status, self.broken = [], None, None, False

    def find_last_epoch(self):
        return max(self.epochs, default=0)

    def log_epoch(self, values, epoch):
        self._fail()
        self.epochs.append(epoch)

    def log_summary(self, values, epoch):
        self._fail()
        self.summary = values, epoch

    def close(self, status):
        self._fail()
        self.status = status

    def _fail(self):
        if self.broken:
            raise ConnectionError("http://user:secret@server is away.")


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("mri"), "propagate", True)
    caplog.set_level(logging.WARNING, "mri")
    return caplog


def test_a_failure_is_one_warning_and_what_was_missed_is_sent_at_the_end(run, warnings):
    sink = _Sink()
    with Tracker(RunFolder(run), sink) as tracker:
        _train(run, tracker, 1, 2)
        sink.broken = True
        _train(run, tracker, 3, 5)
        sink.broken = False
        _train(run, tracker, 6, 6)
        assert sink.epochs == [1, 2]
        tracker.log_summary(MEANS)
    assert sink.epochs == [1, 2, 3, 4, 5, 6]
    assert sink.summary[1] == 6
    assert sink.status == "FINISHED"
    assert warnings.messages == ["tracking failed: http://server is away; the training goes on without it"]


def test_what_stays_away_stops_nothing(run, warnings):
    sink = _Sink()
    sink.broken = True
    with Tracker(RunFolder(run), sink) as tracker:
        _train(run, tracker, 1, 3)
        tracker.log_summary(MEANS)
    assert (sink.epochs, sink.summary, sink.status) == ([], None, None)
    assert len(warnings.messages) == 1


def test_none_writes_nothing(run):
    before = sorted(run.rglob("*"))
    with _open("none", run) as tracker:
        tracker.log_row(_row(1))
        tracker.log_summary(MEANS)
    assert sorted(run.rglob("*")) == before


def test_an_unknown_kind_is_refused(run):
    with pytest.raises(ValueError, match=r"^Expected `track` in \('none', 'mlflow', 'tensorboard'\). Received: 'wandb'.$"):
        _open("wandb", run)


def test_names_of_classes_become_names_of_metrics():
    sink = _Sink()
    tracker = Tracker(RunFolder(Path()), sink)
    tracker.log_summary({"volume": {"necrotic/core (T1+)": {"dice": 0.5}, "mean": {"dice": NAN}}})
    assert sink.summary == ({"test_volume/dice_necrotic_core _T1__": 0.5}, 0)


def test_a_damaged_history_is_named(run):
    (run / "history.csv").write_text("epoch,loss\n1,0.5\n2,")
    with pytest.raises(ValueError, match=r"Expected what a run wrote in .*history.csv. Received: .* Remove it: a resume writes it anew"):
        _open("tensorboard", run)
