"""Disturbs trainings at random moments, resumes them, and compares their results with those of an undisturbed training.

`python benchmarks/kill_and_resume.py [--times 25] [--faults kill full readonly] [--seed 0]` uses the backend that `KERAS_BACKEND` names.
The exit status is 1 if any training fails the checks below. The faults take turns:

- kill: SIGKILL ends the training.
- full: the disk of the run and its cache becomes full.
- readonly: that disk becomes read-only.

On a full or read-only disk, a training must end by itself, with exit status 2. It must print one line that names a file on the disk, and
no traceback. It may also have ended before the fault. The script lifts the fault and resumes the training. The resumed training
must equal the undisturbed one to the bit. The script compares weights, best model, history and test scores, but no times. The training
must leave no temporary file.

The network is small. The training uses every part that has a state:

- dropout and augmentation
- an average of the weights
- heads below full resolution
- accumulated gradients
- early stopping
- a checkpoint after nearly every step

The disk is a tmpfs in a mount namespace of this script. That needs root or user namespaces. Without these, the script uses stand-ins and
says so. A limit on the size of files (EFBIG) stands for a full disk. Folders without the right to write stand for a read-only one.
"""

import argparse
import csv
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    *("--dataset", "oasis", "--base-filters", "2", "--shape", "64", "64", "--batch-size", "4", "--epochs", "6", "--patience", "5"),
    *("--dropout", "0.2", "--augment", "light", "--ema", "0.9", "--deep-supervision", "--accumulate", "2", "--clip-norm", "1"),
    *("--optimizer", "adamw", "--weight-decay", "1e-4", "--warmup-epochs", "1", "--checkpoint-minutes", "0.0005"),
]  # fmt: skip
# JAX's compiler would spend most of the time on making a tiny network fast, each time anew.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
FAULTS = ("kill", "full", "readonly")
# Set once the script runs in a mount namespace of its own.
NAMESPACE = "MRI_FAULTS_NAMESPACE"
DISK_BYTES = 64 * 2**20
# A training that does not end by itself within this time counts as hanging.
LONGEST_END_S = 120


def draw_phantom(folder: Path) -> None:
    """Writes the data that `SETTINGS` train on into `folder/data`."""
    sys.path.insert(0, str(ROOT))
    from modules import phantom

    phantom.write_oasis(folder / "data", subjects=(3, 1, 1), slices=6)


# ---------------------------------------------------------------------------------------------------------------- the disk


def enter_namespace() -> None:
    """Starts this script again in a mount namespace of its own, where the system allows that, as root or as any user."""
    if NAMESPACE in os.environ:
        return
    for flags in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *flags]
        probe = [*command, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            os.execvpe("unshare", [*command, sys.executable, *sys.argv], os.environ | {NAMESPACE: "1"})


def explain_stand_ins(faults: list[str]) -> list[str]:
    """Returns a line for each fault that is made in another way than by a mount, or not at all."""
    if NAMESPACE in os.environ:
        return []
    lines = {
        "full": "full: no tmpfs can be mounted here; a limit on the size of files (EFBIG) stands for a full disk",
        "readonly": "readonly: nothing can be mounted here; folders without the right to write (EACCES) stand for a read-only disk"
        if os.geteuid()
        else "readonly: not available, root without the right to mount writes everywhere; it is left out",
    }
    return [lines[fault] for fault in faults if fault in lines]


@contextmanager
def open_disk(disk: Path) -> Generator[None, None, None]:
    """Makes the disk of a run and its cache, and removes it with all that is on it."""
    disk.mkdir()
    if NAMESPACE in os.environ:
        _call("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk)
    try:
        yield
    finally:
        if NAMESPACE in os.environ:
            _call("umount", "--lazy", disk)
        shutil.rmtree(disk)


@contextmanager
def spoil(fault: str, disk: Path, process: int) -> Generator[None, None, None]:
    """Lets all writing to `disk` by a process fail for the duration of the block."""
    mounted = NAMESPACE in os.environ
    if fault == "full" and mounted:
        filler = disk / "filler"
        _fill(filler)
        yield
        filler.unlink()
    elif fault == "full":
        limits = resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.prlimit(process, resource.RLIMIT_FSIZE)[1]))
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limits)
    elif mounted:
        # A remount is refused while a file is open for writing. A read-only mount of the same folder over it is not.
        over = disk.with_name(f"{disk.name}.over")
        over.mkdir()
        _call("mount", "--bind", disk, over)
        _call("mount", "-o", "remount,bind,ro", over)
        _call("mount", "--bind", over, disk)
        yield
        _call("umount", "--lazy", disk)
        _call("umount", over)
        over.rmdir()
    else:
        folders = [disk, *(path for path in disk.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        yield
        for folder in folders:
            folder.chmod(0o755)


def _call(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True)


def _fill(filler: Path) -> None:
    """Writes zeros to a file until not a byte more fits on its disk."""
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


# ------------------------------------------------------------------------------------------------------------ the trainings


def train(
    folder: Path, disk: Path, ready: Callable[[], bool] = lambda: True, after: float | None = None, fault: str = "kill"
) -> tuple[int, str, float]:
    """Begins the run on a disk, or goes on with it, and disturbs it.

    Args:
        folder: The folder of the data.
        disk: The folder of the run and its cache.
        ready: Tells whether the clock may start.
        after: Seconds after that moment at which the fault begins; None for never.
        fault: The fault.

    Returns:
        Exit status, output, and the seconds from that moment to the end.
    """
    path = disk / "runs" / "run"
    places = ["--data", str(folder / "data"), "--runs", str(disk / "runs"), "--cache", str(disk / "cache"), "--name", "run"]
    command = ["--resume", str(path)] if (path / "run.json").is_file() else [*SETTINGS, *places]
    environment = os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not ready() and process.poll() is None:
            time.sleep(0.005)
        began = time.monotonic()
        try:
            output = process.communicate(timeout=after)[0]
        except subprocess.TimeoutExpired:
            if fault == "kill":
                process.send_signal(signal.SIGKILL)
                output = process.communicate()[0]
            else:
                with spoil(fault, disk, process.pid):
                    try:
                        output = process.communicate(timeout=LONGEST_END_S)[0]
                    except subprocess.TimeoutExpired:
                        process.kill()
                        output = process.communicate()[0]
        return process.returncode, output, time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def find_error(output: str) -> str:
    """Returns the line of error in a command's output; "" where there is none, or several, or a traceback."""
    lines = [line for line in output.splitlines() if line.startswith("train.py: error: ")]
    return lines[0] if len(lines) == 1 and "Traceback" not in output else ""


def disturb(folder: Path, fault: str, moment: float, expected: dict) -> tuple[bool, str]:
    """Disturbs one training at a moment, and lets it go on.

    Returns:
        Whether it went as it must, and what became of it.
    """
    disk = folder / "disk"
    with open_disk(disk):
        run = disk / "runs" / "run"
        ready = (lambda: find_step(run) > 0) if fault == "kill" else (lambda: any(disk.iterdir()))
        status, output, _ = train(folder, disk, ready, moment, fault)
        what = f"after the checkpoint of step {find_step(run)}"
        error = find_error(output)
        told = status == 0 or (status == -signal.SIGKILL if fault == "kill" else status == 2 and str(disk) in error)
        if status == 0:
            what += " (it had ended)"
        if error:
            what += f" ({error.removeprefix('train.py: error: ').replace(f'{disk}/', '')})"
        if not told:
            return False, f"{what}: exit status {status}\n{output}"
        if not (run / "summary.json").is_file():
            status, output, _ = train(folder, disk)
            if status:
                return False, f"{what}: NOT RESUMED\n{output}"
        left = sorted(str(path.relative_to(disk)) for path in disk.rglob(".mri-part-*"))
        if left:
            return False, f"{what}: LEFT BEHIND {', '.join(left)}"
        ended = describe(run)
        other = [name for name, value in ended.items() if value != expected[name]]
        other += [f"summary {name}" for name, value in ended["summary"].items() if value != expected["summary"].get(name)]
        return not other, f"{what}: {f'DIFFERENT {other}' if other else 'equal'}"


def describe(run: Path) -> dict:
    """Reads what a run ended with, less the times and the memory it took."""
    summary = json.loads((run / "summary.json").read_text())
    summary = {name: value for name, value in summary.items() if name not in ("seconds", "peak_bytes")}
    with (run / "history.csv").open() as file:
        history = [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]
    return {"summary": summary, "history": history, "scores": (run / "scores.csv").read_text()}


def find_step(run: Path) -> int:
    """The step of its newest checkpoint; 0 without one."""
    return max([int(path.stem[5:]) for path in (run / "checkpoint").glob("step_*.npz")], default=0)


def train_alone(folder: Path) -> tuple[dict, dict[str, float]]:
    """Trains undisturbed.

    Returns:
        What the run ended with, and by fault the seconds in which it may strike. A kill may from the first checkpoint on; before,
        nothing can be lost. The others may from the first file on the disk on.
    """
    disk, first = folder / "disk", []

    def ready() -> bool:
        if not first and any(disk.iterdir()):
            first.append(time.monotonic())
        return find_step(disk / "runs" / "run") > 0

    # The first training fills JAX's cache, so that the second takes as long as those that follow.
    for _ in range(2):
        first.clear()
        with open_disk(disk):
            began = time.monotonic()
            status, output, seconds = train(folder, disk, ready)
            if status:
                raise RuntimeError(f"Expected the undisturbed training to finish. Received: exit status {status}.\n{output}")
            whole = time.monotonic() - (first[0] if first else began)
            expected = describe(disk / "runs" / "run")
    return expected, {"kill": seconds, "full": whole, "readonly": whole}


def main() -> int:
    """Runs the comparison; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=25, help="trainings to disturb, one after the other (default %(default)s)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="faults that take turns (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    options = parser.parse_args()
    if set(options.faults) - {"kill"}:
        enter_namespace()
    for line in explain_stand_ins(options.faults):
        print(line)
    faults = [fault for fault in options.faults if fault != "readonly" or NAMESPACE in os.environ or os.geteuid()]
    rng = np.random.default_rng(options.seed)
    good = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_phantom(folder)
        expected, seconds = train_alone(folder)
        for number in range(options.times):
            fault = faults[number % len(faults)]
            moment = rng.uniform(0, seconds[fault])
            well, what = disturb(folder, fault, moment, expected)
            good += well
            print(f"{fault:<8} after {moment:5.2f} of {seconds[fault]:.2f} s, {what}", flush=True)
    print(f"{good} of {options.times} equal, faults {', '.join(faults)}, backend {os.environ.get('KERAS_BACKEND', 'tensorflow')}")
    return int(good != options.times)


if __name__ == "__main__":
    sys.exit(main())
