"""Kills trainings with SIGKILL at random moments, resumes them, and compares their results with those of a training left alone.

`python benchmarks/kill_and_resume.py --kills 25 [--seed 0]`, under the backend that `KERAS_BACKEND` names. It trains a small network on a
drawn phantom with every part that has a state. These are dropout, augmentation, averaged weights, heads below full resolution, accumulated
gradients and early stopping. Nearly every step writes a checkpoint. Weights, best model, history (without its times) and test scores must
be equal to the bit. The exit status is 1 if any training ends otherwise.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    *("--dataset", "oasis", "--base-filters", "2", "--shape", "64", "64", "--batch-size", "4", "--epochs", "6", "--patience", "5"),
    *("--dropout", "0.2", "--augment", "light", "--ema", "0.9", "--deep-supervision", "--accumulate", "2", "--clip-norm", "1"),
    *("--optimizer", "adamw", "--weight-decay", "1e-4", "--warmup-epochs", "1", "--checkpoint-minutes", "0.0005"),
]  # fmt: skip
# Without this flag JAX's compiler would spend most of the time on making a tiny network fast, each time anew.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def draw_phantom(folder: Path) -> None:
    """Writes the data that `SETTINGS` train on into `folder/data`."""
    sys.path.insert(0, str(ROOT))
    from modules import phantom

    phantom.write_oasis(folder / "data", subjects=(3, 1, 1), slices=6)


def train(folder: Path, run: str, kill_after: float | None = None, backend: str | None = None) -> float:
    """Begins or resumes a run, and kills it `kill_after` seconds after its first checkpoint.

    Its first step ends with that checkpoint. Before it, nothing can be lost.

    Returns:
        Seconds from that checkpoint to the end of the run.
    """
    path = folder / "runs" / run
    places = ["--data", str(folder / "data"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache"), "--name", run]
    command = ["--resume", str(path)] if (path / "run.json").is_file() else [*SETTINGS, *places]
    environment = (
        os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax")} | ({"KERAS_BACKEND": backend} if backend else {})
    )
    before = find_step(path)
    with (folder / f"{run}.txt").open("a") as log:
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *command], env=environment, stdout=log, stderr=log)
        try:
            while find_step(path) == before and process.poll() is None:
                time.sleep(0.005)
            began = time.monotonic()
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"Expected {run} to finish. Received: exit status {process.returncode}.\n{(folder / f'{run}.txt').read_text()}")
    return time.monotonic() - began


def describe(run: Path) -> dict:
    """Reads the results of a run, without its times."""
    summary = json.loads((run / "summary.json").read_text())
    with (run / "history.csv").open() as file:
        history = [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]
    return {"summary": summary, "history": history, "scores": (run / "scores.csv").read_text()}


def find_step(run: Path) -> int:
    """Returns the step of a run's newest checkpoint; 0 without one."""
    return max([int(path.stem[5:]) for path in (run / "checkpoint").glob("step_*.npz")], default=0)


def main() -> int:
    """Runs the comparison; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="trainings to kill, one after the other (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_phantom(folder)
        seconds = train(folder, "alone")
        expected = describe(folder / "runs" / "alone")
        for number in range(options.kills):
            run, moment = f"killed{number}", rng.uniform(0, seconds)
            train(folder, run, moment)
            step = find_step(folder / "runs" / run)
            if not (folder / "runs" / run / "summary.json").is_file():
                train(folder, run)
            same = describe(folder / "runs" / run) == expected
            equal += same
            print(
                f"killed after {moment:5.2f} of {seconds:.2f} s, after the checkpoint of step {step}: {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{equal} of {options.kills} equal, backend {os.environ.get('KERAS_BACKEND', 'tensorflow')}")
    return int(equal != options.kills)


if __name__ == "__main__":
    sys.exit(main())
