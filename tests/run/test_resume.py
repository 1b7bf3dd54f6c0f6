"""Runs that are killed, stopped or damaged end as if nothing had happened, or say why not."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import make_jax_environment

import predict
import train
from benchmarks import kill_and_resume
from modules.data.files import TEMPORARY

# Runs train.py, which kills itself when it begins to fit, or when it is about to rename a certain file.
KILL = """
import os, signal, sys
import train
moment, replace = sys.argv[1], os.replace
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def replace_or_kill(source, target):
    (kill if os.path.basename(target) == moment else replace)(source, target)
os.replace = replace_or_kill
if moment == "fit":
    train.fit = kill
sys.exit(train.main(sys.argv[2:]))
"""
EPOCHS, STEPS = 3, 5
# Every step writes a checkpoint, because the moments are counted in checkpoints.
KILLED_SETTINGS = [
    *kill_and_resume.SETTINGS,
    *("--levels", "2", "--epochs", str(EPOCHS), "--patience", str(EPOCHS - 1), "--checkpoint-minutes", "1e-9"),
]


def _train(folder, backend, name, moment="never"):
    """Begins or resumes the run, until the moment of `KILL`; returns its exit status and its output."""
    run = folder / "runs" / name
    places = ["--data", str(folder / "data"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", name]
    command = ["--resume", str(run)] if run.is_dir() else [*KILLED_SETTINGS, *places]
    jax = make_jax_environment() | {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax")} if backend == "jax" else {}
    environment = os.environ | kill_and_resume.ENVIRONMENT | jax | {"KERAS_BACKEND": backend, "PYTHONPATH": str(kill_and_resume.ROOT)}
    result = subprocess.run([sys.executable, "-c", KILL, moment, *command], env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_three_times_killed_is_as_good_as_left_alone(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    kill_and_resume.draw_phantom(tmp_path)
    killed, alone = (tmp_path / "runs" / name for name in ("killed", "alone"))
    status, output = _train(tmp_path, backend, "alone")
    assert status == 0, output

    # Before the first step.
    status, output = _train(tmp_path, backend, "killed", "fit")
    assert status == -signal.SIGKILL, output
    assert (killed / "run.json").is_file()
    assert kill_and_resume.find_step(killed) == 0

    # In the middle of the second epoch, with a checkpoint that is written but has no name yet.
    step = STEPS + 3
    status, output = _train(tmp_path, backend, "killed", f"step_{step:09d}.npz")
    assert status == -signal.SIGKILL, output
    assert kill_and_resume.find_step(killed) == step - 1
    assert len(list((killed / "checkpoint").glob(f"{TEMPORARY}step_*"))) == 1

    # During the scoring: the scores are written, but the summary is not.
    status, output = _train(tmp_path, backend, "killed", "summary.json")
    assert status == -signal.SIGKILL, output
    assert f"begins at epoch 2, step {step - STEPS}" in output
    assert kill_and_resume.find_step(killed) == EPOCHS * STEPS
    assert (killed / "scores.csv").is_file()
    assert not (killed / "summary.json").exists()

    status, output = _train(tmp_path, backend, "killed")
    assert status == 0, output
    assert kill_and_resume.describe(killed) == kill_and_resume.describe(alone)
    # The lock file stays; the kernel knows who holds it.
    assert [path.name for path in killed.rglob(".*")] == [".lock"]


def _start(folder, *flags):
    command = [sys.executable, str(kill_and_resume.ROOT / "train.py"), *flags]
    return subprocess.Popen(
        command, env=os.environ | kill_and_resume.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_ends_cleanly(tmp_path, number):
    kill_and_resume.draw_phantom(tmp_path)
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "a"]
    # `nohup make test` ignores SIGHUP, and a process inherits that.
    before = signal.signal(number, signal.SIG_DFL)
    # The epochs are so many that the run does not end by itself. Only epochs and the signal write checkpoints.
    process = _start(
        tmp_path, *kill_and_resume.SETTINGS, *places, "--levels", "2", "--epochs", "999", "--patience", "0", "--checkpoint-minutes", "60"
    )
    signal.signal(number, before)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs" / "a" / "history.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert f"{number.name}: stops after this step, with a checkpoint" in output
    assert f"go on with: python train.py --resume {tmp_path / 'runs' / 'a'}" in output
    assert "Traceback" not in output
    assert list((tmp_path / "runs" / "a" / "checkpoint").glob("step_*.npz"))


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """Trains a run on data of its own; returns both. The file names of one test subject are not UTF-8."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(phantoms / "oasis", folder / "data")
    for split in ("test", "seg_test"):
        for path in (folder / "data" / f"keras_png_slices_{split}").iterdir():
            number, _, rest = path.name.removeprefix("case_").removeprefix("seg_").partition("_")
            path.rename(path.with_name(f"{path.name.split('_')[0]}_{os.fsdecode(bytes([0xE9]))}{number}_{rest}"))
    places = ["--data", str(folder / "data"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", "a"]
    small = ["--dataset", "oasis", "--base-filters", "2", "--levels", "1", "--shape", "64", "64", "--batch-size", "4", "--epochs", "1"]
    assert train.main([*small, *places]) == 0
    return folder


def test_a_run_is_proven(finished, capsys):
    run = finished / "runs" / "a"
    assert train.main(["--verify", str(run)]) == 0
    text = capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert f"data: 32 files are those of {run}, SHA-256 {summary['data_sha256']:.16}" in text
    assert f"training: the first 2 steps give the same weights, SHA-256 {summary['first_steps']['weights_sha256']:.16}" in text
    assert f"bundle: weights are those that were scored, SHA-256 {summary['bundle_weights_sha256']:.16}" in text
    assert {"code_sha256", "git_commit", "weights_sha256", "versions", "precision"} <= set(summary)
    assert "differs" not in text


def test_names_that_are_not_utf8_are_trained_scored_and_predicted(finished, tmp_path):
    run, images = finished / "runs" / "a", finished / "data" / "keras_png_slices_test"
    record = json.loads((run / "run.json").read_text())
    assert all(name.startswith("case_\udce9") for name in record["splits"]["test"])
    with (run / "scores.csv").open("rb") as file:
        assert b"case_\xe9" in file.read()
    assert list((run / "figures").glob("comparison_best_case_\udce9*.png"))
    labels = str(finished / "data" / "keras_png_slices_seg_test")
    assert predict.main([str(images), "--model", str(run), "--output", str(tmp_path), "--labels", labels]) == 0
    assert (tmp_path / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()
    assert len(list(tmp_path.glob("case_\udce9*_prediction.png"))) == len(list(images.iterdir()))


def test_a_run_whose_data_have_moved_is_proven(finished, tmp_path, capsys):
    run = tmp_path / "elsewhere"
    shutil.copytree(finished / "runs" / "a", run)
    shutil.copytree(finished / "data", tmp_path / "moved")
    assert train.main(["--verify", str(run), "--data", "nowhere"]) == 2
    assert "Expected the data set 'oasis' in the folder nowhere" in capsys.readouterr().err
    assert train.main(["--verify", str(run), "--data", str(tmp_path / "moved"), "--cache", str(tmp_path / "cache")]) == 0
    assert list((tmp_path / "cache").iterdir())
    path = next((tmp_path / "moved" / "keras_png_slices_train").iterdir())
    path.write_bytes(path.read_bytes() + b"0")
    assert train.main(["--verify", str(run), "--data", str(tmp_path / "moved")]) == 2
    assert f"Expected the data that {run} began with. Received: keras_png_slices_train/{path.name} changed." in capsys.readouterr().err


def test_a_changed_byte_is_found_although_size_and_time_are_as_before(finished, capsys):
    run, path = finished / "runs" / "a", next((finished / "data" / "keras_png_slices_test").iterdir())
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        assert train.main(["--verify", str(run)]) == 2
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    error = capsys.readouterr().err
    name = path.name.encode(errors="backslashreplace").decode()
    assert f"Expected the data that {run} began with. Received: keras_png_slices_test/{name} changed." in error


def test_what_is_cheap_is_checked_before_any_data_are_read(finished, tmp_path, capsys, monkeypatch):
    run = tmp_path / "unfinished"
    shutil.copytree(finished / "runs" / "a", run)
    (run / "summary.json").unlink()
    monkeypatch.setattr(train, "load", lambda settings: pytest.fail("it read data"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"backend": "other"}))
    (tmp_path / "file").touch()
    (run / "proof.json").unlink()
    small = ["--dataset", "oasis", "--data", str(finished / "data")]
    for flags, message in (
        (["--resume", str(run)], "Name the run's by `--backend`, or start a new run."),
        (["--resume", str(finished / "runs" / "a")], "which is finished"),
        (["--verify", str(run)], f"Expected the first steps of a run in {run / 'proof.json'}"),
        ([*small, "--runs", str(finished / "runs"), "--name", "a"], "Expected a new name for the run"),
        ([*small, "--runs", str(tmp_path / "file")], "Expected a folder to write runs to"),
    ):
        assert train.main(flags) == 2
        assert message in capsys.readouterr().err


def test_other_weights_and_another_setting_are_found(finished, tmp_path, capsys):
    for name in ("first_steps", "bundle"):
        shutil.copytree(finished / "runs" / "a", tmp_path / name)
    summary = json.loads((tmp_path / "bundle" / "summary.json").read_text())
    (tmp_path / "bundle" / "summary.json").write_text(json.dumps(summary | {"bundle_weights_sha256": "0" * 64}))
    assert train.main(["--verify", str(tmp_path / "bundle")]) == 2
    assert "Expected the weights of the bundle" in capsys.readouterr().err
    record = json.loads((tmp_path / "first_steps" / "run.json").read_text())
    record["config"]["learning_rate"] = 0.5
    (tmp_path / "first_steps" / "run.json").write_text(json.dumps(record))
    assert train.main(["--verify", str(tmp_path / "first_steps")]) == 2
    assert "Expected the weights after 2 steps of" in capsys.readouterr().err
