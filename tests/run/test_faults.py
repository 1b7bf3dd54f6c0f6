"""Whole trainings that go wrong: each says so in one line, and leaves no result that looks good."""

import csv
import json
import os
import re
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import train
from benchmarks.kill_and_resume import spoil
from modules.data import cache
from modules.run.callbacks import HistoryWriter

CLASSES = ("body", "bone", "bladder", "rectum", "prostate")


def _draw(root, edit=lambda split, label: label):
    """Six subjects of two slices of boxes in the layout of HipMRI."""
    for split, subjects in (("train", (1, 2, 3, 4)), ("validate", (5,)), ("test", (6,))):
        for subject in subjects:
            for place in range(2):
                label = np.zeros((32, 32), np.uint8)
                for value in range(6):
                    label[5 * value + place : 5 * value + 5, 4:28] = value
                image = 20 + 30 * label + np.random.default_rng(2 * subject + place).normal(0, 3, label.shape)
                names = (f"keras_slices_{split}/case", image), (f"keras_slices_seg_{split}/seg", edit(split, label))
                for name, array in names:
                    path = root / f"{name}_{subject:03d}_week_0_slice_{place}.nii.gz"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), path)


def _train(folder, *flags):
    """Trains in `folder`; returns the exit status."""
    places = ["--data", str(folder / "data"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", "a"]
    small = ["--shape", "32", "32", "--base-filters", "2", "--levels", "1", "--norm", "instance", "--batch-size", "4", "--epochs", "2"]
    return train.main(["--dataset", "hipmri", "--schedule", "constant", *small, *places, *flags])


def _read_history(folder):
    with (folder / "runs" / "a" / "history.csv").open() as file:
        return list(csv.DictReader(file))


def _check_line(capsys, status, pattern):
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("train.py: error:")]
    assert (status, len(errors)) == (2, 1)
    assert re.search(pattern, errors[0]), errors[0]


def test_a_loss_of_nan_ends_the_training_and_leaves_no_model_of_nan(tmp_path, capsys):
    _draw(tmp_path / "data")
    status = _train(tmp_path, "--optimizer", "sgd", "--learning-rate", "1e30", "--clip-norm", "0")
    # The first step's update breaks the weights, and the second step's loss shows it.
    _check_line(capsys, status, r"Expected a finite loss. Received: (nan|inf) since step 2 \(epoch 1\) in .*runs/a. Start a new run")
    run = tmp_path / "runs" / "a"
    assert _read_history(tmp_path) == []
    assert not [name for name in ("bundle", "summary.json") if (run / name).exists()]
    assert not list(run.glob("checkpoint/*.npz"))
    assert "no checkpoint was written before; no model is kept" in (run / "log.txt").read_text()


@contextmanager
def _no_cache(folder):
    for path in list(folder.rglob("*.pack")):
        path.write_bytes(bytes(path.stat().st_size))
    yield


def test_a_disturbed_training_ends_in_a_line_and_resume_ends_as_if_left_alone(tmp_path, capsys, monkeypatch):
    _draw(tmp_path / "data")
    assert _train(tmp_path, "--epochs", "3") == 0
    run = tmp_path / "runs" / "a"
    expected = json.loads((run / "summary.json").read_text())["weights_sha256"], (run / "scores.csv").read_text()
    shutil.rmtree(tmp_path / "runs")
    write = HistoryWriter.on_epoch_end
    for epoch, fault, line in (
        (0, _no_cache(tmp_path / "cache"), r"Expected the cache's file .*pack as it was written.*--resume RUN"),
        (1, spoil("full", tmp_path, os.getpid()), rf"Expected to write {run}/\S+ to its end. Received: .*File too large.* Free some space"),
    ):
        capsys.readouterr()
        with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

            def disturb(self, number, logs=None, epoch=epoch, fault=fault, stack=stack):
                write(self, number, logs)
                if number == epoch:
                    stack.enter_context(fault)

            patch.setattr(HistoryWriter, "on_epoch_end", disturb)
            status = train.main(["--resume", str(run)]) if run.exists() else _train(tmp_path, "--epochs", "3")
        _check_line(capsys, status, line)
        assert not (run / "summary.json").exists()
    assert train.main(["--resume", str(run)]) == 0
    assert expected == (json.loads((run / "summary.json").read_text())["weights_sha256"], (run / "scores.csv").read_text())
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]

    # `--verify` finds a damaged cache too, and makes it again.
    path = max((tmp_path / "cache").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    monkeypatch.setattr(cache, "_CHECKED", {})
    assert train.main(["--verify", str(run)]) == 0
    assert f"cache: {path} is damaged; its cases are decoded anew" in capsys.readouterr().out
    assert all(cache.read_pack(path) for path in (tmp_path / "cache").rglob("*.pack"))


def test_without_foreground_the_validation_loss_decides_and_the_log_says_so(tmp_path, capsys):
    _draw(tmp_path / "data", lambda split, label: label * (split != "validate"))
    assert _train(tmp_path, "--epochs", "3", "--learning-rate", "0.003") == 0
    assert "no validation label holds any foreground: the least val_loss decides" in capsys.readouterr().out
    losses = [float(row["val_loss"]) for row in _read_history(tmp_path)]
    assert json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())["best_epoch"] == int(np.argmin(losses)) + 1


def test_an_absent_class_is_named_and_does_not_enter_the_mean(tmp_path, capsys):
    _draw(tmp_path / "data", lambda split, label: np.where((label == 4) & (split != "test"), 1, label))
    assert _train(tmp_path) == 0
    output = capsys.readouterr().out
    assert "no training label holds 'rectum': the network cannot learn it" in output
    assert output.index("no training label holds 'rectum'") < output.index("epoch   1")
    assert "the mean validation Dice of body, bone, bladder, prostate decides which epoch is kept" in output
    for row in _read_history(tmp_path):
        mean = np.mean([float(row[f"val_dice_{name}"]) for name in CLASSES if name != "rectum"])
        assert float(row["val_mean_dice"]) == pytest.approx(mean, abs=1e-5)


def test_a_training_without_any_foreground_is_refused_before_its_run_is_made(tmp_path, capsys):
    _draw(tmp_path / "data", lambda split, label: label * (split != "train"))
    _check_line(
        capsys, _train(tmp_path), "Expected body, bone, .* in the training labels of 'hipmri'. Received: only background in 8 cases"
    )
    assert not (tmp_path / "runs").exists()


def test_a_model_that_finds_only_background_is_said_to(tmp_path, capsys):
    # The prostate is one pixel, and the learning rate is too small to learn anything.
    def edit(split, label):
        point = np.zeros_like(label)
        point[16, 16] = 5
        return point

    _draw(tmp_path / "data", edit)
    assert _train(tmp_path, "--target", "prostate", "--loss", "bce", "--epochs", "4", "--learning-rate", "0.1") == 0
    assert "the model predicts only background in all test cases. Likely causes:" in capsys.readouterr().out


def test_a_fill_of_minus_32768_trains_with_finite_losses(tmp_path):
    _draw(tmp_path / "data")
    for path in Path(tmp_path / "data").glob("keras_slices_t*/*.nii.gz"):
        source = nib.load(path)
        array = np.asarray(source.dataobj).astype(np.float32) / 1000
        array[:3] = -32768
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    assert _train(tmp_path, "--intensity", "zscore") == 0
    assert all(np.isfinite([float(row["loss"]), float(row["val_loss"])]).all() for row in _read_history(tmp_path))
