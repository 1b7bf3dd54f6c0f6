"""Whether a deterministic training that is killed and resumed ends as one that is not; a child of gpu.py.

    python benchmarks/resuming.py --step ours --folder FOLDER

train.py trains on drawn slices with strong augmentation, dropout and an average of the weights, twice. The second time SIGKILL ends it
after its first checkpoint, and `--resume` goes on. The last checkpoints are compared: weights, their average and the optimiser's state. On
a CPU kill_and_resume.py tries more moments and faults.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

SETTINGS = [
    *("--dataset", "oasis", "--levels", "2", "--shape", "64", "64", "--batch-size", "4", "--epochs", "4", "--patience", "0"),
    *("--dropout", "0.2", "--augment", "strong", "--ema", "0.9", "--checkpoint-minutes", "0.0005", "--deterministic", "--train-only"),
]


def measure(options: argparse.Namespace) -> dict:
    """Returns 1 as `equal` if both end the same, else 0; the `step` of the checkpoint that was gone on from, and all `steps`."""
    from modules import phantom

    # Each backend has runs of its own.
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    phantom.write_oasis(folder / "data", subjects=(3, 1, 1), slices=6)
    places = ["--data", folder / "data", "--runs", folder, "--cache", folder / "cache"]
    settings = [*SETTINGS, *places, "--precision", options.precision, "--base-filters", options.base_filters]
    train([*settings, "--name", "whole"])
    train([*settings, "--name", "killed"], folder / "killed")
    step = find_step(folder / "killed")
    train(["--resume", folder / "killed", "--train-only"])
    return {"equal": float(ends_alike(folder / "whole", folder / "killed")), "step": step, "steps": find_step(folder / "whole")}


def train(arguments: list, killed: Path | None = None) -> None:
    """Runs train.py to its end, or kills it once the run in the folder `killed` has a checkpoint.

    Raises:
        RuntimeError: If it fails, or ends before it can be killed.
    """
    command = [sys.executable, str(harness.ROOT / "train.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while killed and process.poll() is None:
        if find_step(killed):
            process.kill()
        time.sleep(0.005)
    output = process.communicate()[0]
    expected = -signal.SIGKILL if killed else 0
    if process.returncode != expected:
        last = (output.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"Expected exit status {expected} of train.py. Received: {process.returncode}, {last}")


def ends_alike(one: Path, other: Path) -> bool:
    """Returns whether all variables in the last checkpoints of two runs are equal to the bit."""
    with np.load(_find_last(one)) as ours, np.load(_find_last(other)) as theirs:
        # The rest is the state of callbacks, which holds times.
        names = [name for name in ours.files if name.startswith("variable_")]
        return set(ours.files) == set(theirs.files) and all(ours[name].tobytes() == theirs[name].tobytes() for name in names)


def _find_last(run: Path) -> Path:
    return max((run / "checkpoint").glob("step_*.npz"))


def find_step(run: Path) -> int:
    """Returns the step of the run's newest checkpoint; 0 without one."""
    return int(_find_last(run).stem[5:]) if any((run / "checkpoint").glob("step_*.npz")) else 0


def main() -> None:
    """Compares and prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=("ours",), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--base-filters", type=int, default=16)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--seconds", type=float, help="nothing is timed; gpu.py gives it to all that compiles")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
