"""Shared parts of the tests of commands: a tiny training, bad input, and the messages about it."""

import json
import shutil

import train
from dataset import DATASETS
from modules.data.spec import find_cases

SLICES = ("hipmri", "oasis", "lgg")
TINY = [
    *("--epochs", "3", "--base-filters", "2", "--levels", "1", "--dropout", "0.2", "--batch-size", "4", "--shape", "64", "64"),
    # The plan would choose these by what was measured last.
    *("--optimizer", "adam", "--learning-rate", "1e-3", "--schedule", "cosine", "--warmup-epochs", "0", "--ema", "0"),
    # Not every CPU would try bfloat16. To judge predictions is learnt from many of them, so one data set does it for all.
    *("--predict-precision", "float32", "--predict-quality", "none"),
]
# One data set trains with augmentation, because runs must repeat and resume with it too, and with its own documented intensities.
OWN = {"oasis": ["--augment", "light", "--intensity", "own", "--crop", "own", "--predict-quality", "learn"]}


def train_tiny(folder, data, *flags):
    """Trains in `folder` and returns the run's folder."""
    name = f"run{len(list((folder / 'runs').glob('*')))}"
    places = ["--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", name]
    assert train.main(["--dataset", data.name, "--data", str(data), *TINY, *OWN.get(data.name, []), *places, *flags]) == 0
    return folder / "runs" / name


def read_summary(run):
    """Reads a run's summary, less its time and memory, which are never the same."""
    summary = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name not in ("seconds", "peak_bytes")}


def expect_one_line(capsys, status, message):
    """Expects exit status 2 and one line on stderr that contains the message."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1, captured.err
    assert message in lines[0]


def copy_spoilt(phantoms, tmp_path, spoil):
    """Copies the HipMRI phantom and lets `spoil(image path, label path)` ruin one test case. A run must find it at its start."""
    root = tmp_path / "hipmri"
    shutil.copytree(phantoms / "hipmri", root)
    case = next(case for case in find_cases(DATASETS["hipmri"], root) if case.split == "test")
    spoil(case.image_paths[0], case.label_path)
    return root, case
