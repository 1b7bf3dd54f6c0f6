"""Helpers that log as a training does, for the tests of tracking."""

import csv

from modules.run.folder import RunFolder
from modules.run.tracking import open_tracker

PARAMETERS = {"dataset": "oasis", "shape": (64, 32), "learning_rate": 1e-3, "norm": None, "demo": False, "target": (), "loss": "x" * 700}
TAGS = {"backend": "tensorflow", "versions": {"keras": "3.15.1", "numpy": "2.4.6"}, "git_commit": "0123abc", "devices": ["cpu:0", "cpu:1"]}
NAN = float("nan")
MEANS = {"slice": {"white matter": {"dice": 0.875, "hd95_mm": NAN, "cases": 4}, "mean": {"dice": 0.75}}}


def make_row(epoch):
    """Makes the history's row of an epoch."""
    return {"epoch": epoch, "loss": 1 / epoch, "val_loss": 2 / epoch, "val_dice_white matter": 0.5 if epoch > 1 else NAN}


def train_on(folder, tracker, first, last):
    """Uses the tracker as a training does."""
    rows = [make_row(epoch) for epoch in range(1, last + 1)]
    for row in rows[first - 1 :]:
        write_history(folder, rows[: row["epoch"]])
        tracker.log_row(row)


def write_history(folder, rows):
    """Writes rows as a run's `history.csv`."""
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def open_run_tracker(kind, folder):
    """Opens a tracker of this kind for the run in a folder."""
    return open_tracker(kind, RunFolder(folder), experiment="oasis", parameters=PARAMETERS, tags=TAGS)
