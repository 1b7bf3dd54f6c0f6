"""Shared parts of the benchmarks: processes of their own, medians over several runs, and one table at the end."""

import contextlib
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# Groups of the processes that run now.
_running: set[int] = set()


@dataclass
class Row:
    """A line of the table: one measure of this application, beside that of each peer.

    Attributes:
        name: The measured quantity.
        unit: Unit of the values. Units that end in "/s" are better if larger, seconds and GiB if smaller.
        ours: One value for each run.
        peers: One value for each run, by the peer's name.
        limit: The limit of the machine or the aim, in words.
    """

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=dict)
    limit: str = ""

    def format(self) -> str:
        """Formats the line: `name  ours unit  [peer  value  ratio]...  limit`. A ratio above 1 says that ours is better."""
        ours = statistics.median(self.ours)
        line = f"{self.name:<46}{_round(ours):>9} {self.unit:<9}"
        for name, values in self.peers.items():
            value = statistics.median(values)
            ratio = ours / value if self.unit.endswith("/s") else value / ours
            line += f"  {name} {_round(value)} ({ratio:.2f})"
        return line + (f"  | {self.limit}" if self.limit else "")


def _round(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Table:
    """The rows of all runs by name; each run adds a value to them."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, name: str, unit: str, ours: float | None, peers: dict[str, float | None] | None = None, limit: str = "") -> None:
        """Adds the values of one run; None stands for a value that could not be measured."""
        row = self.rows.setdefault(name, Row(name, unit))
        row.limit = limit
        row.ours += [] if ours is None else [ours]
        for peer, value in (peers or {}).items():
            if value is not None:
                row.peers.setdefault(peer, []).append(value)
        if row.ours:
            print(row.format(), flush=True)

    def save(self, path: Path) -> None:
        """Writes all rows as JSON."""
        path.write_text(json.dumps([asdict(row) for row in self.rows.values()], indent=1) + "\n")

    def print(self, runs: int) -> None:
        """Prints all rows, the medians of the runs."""
        print(f"\nmedians of {runs} run(s); in brackets the ratio ours / theirs, above 1 if ours is better")
        for row in self.rows.values():
            if row.ours:
                print(row.format())


def run(
    script: str, step: str, environment: dict[str, str] | None = None, timeout: float | None = None, **options: Any
) -> dict[str, Any] | None:
    """Runs `benchmarks/<script>.py --step step --name value ...` in a fresh process; returns the JSON it prints last, or None.

    A process that fails, or takes longer than `timeout` seconds, is reported in a line and measured as nothing. One missing peer does
    not end the others.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--step", step]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    full = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **(environment or {})}
    reason = None
    # It leads a group, so that the processes that it started end with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=full, cwd=ROOT, start_new_session=True
    ) as process:
        _running.add(process.pid)
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            reason = f"not done after {timeout:.0f} s"
        finally:
            _running.discard(process.pid)
    if reason is None and process.returncode:
        reason = (errors.strip().splitlines() or ["killed"])[-1]
    if reason is not None:
        given = {name: value for name, value in options.items() if not isinstance(value, Path)}
        backend = full.get("KERAS_BACKEND", "")
        print(f"  not measured: {script} {step} {backend} {given}: {reason:.300}", flush=True)
        return None
    return json.loads(output.splitlines()[-1])


def end_all() -> None:
    """Ends all processes that run now, with those that they started."""
    for group in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def take_turn() -> None:
    """Waits until no other process measures, and measures then to its end. The variable BENCH_TURN names the file that they lock.

    Processes may thus load their libraries while another one measures. Without the variable there is no other.
    """
    path = os.environ.get("BENCH_TURN")
    if path:
        # The lock lasts as long as the number, which nobody closes.
        fcntl.flock(os.open(path, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)


def make_fit(trainer, data) -> Callable[[int], None]:
    """Makes a function that trains so many steps on endless data through `Trainer.fit`, as train.py does, and waits for the last."""
    from modules.run.finite import StepCallbacks

    def fit(steps: int) -> None:
        callbacks = StepCallbacks([], trainer)
        trainer.fit(data, epochs=1, steps_per_epoch=steps, callbacks=callbacks, shuffle=False, verbose=0)

    return fit


def make_spec(preprocessing, num_classes: int):
    """Makes the data set `bench` of drawn files: one channel, and labels that hold the class indices themselves.

    Args:
        preprocessing: A `modules.data.preprocess.Preprocessing`.
        num_classes: `K`, the background included.

    Returns:
        A `modules.data.spec.DatasetSpec` for `read_case` and `prepare_cases`. It cannot find its cases, nor draw a phantom.
    """
    from modules.data.case import LabelRule
    from modules.data.spec import DatasetSpec

    def refuse(root: Path, **_: Any):
        raise ValueError(f"Expected cases made by the benchmark. Received: a search in {root}.")

    return DatasetSpec(
        name="bench",
        title="Drawn scans",
        url="",
        licence="",
        terms="",
        channels=("T1",),
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        label_rule=LabelRule({index: index for index in range(num_classes)}),
        preprocessing=preprocessing,
        find=refuse,
        write_phantom=refuse,
    )


def rate(step: Callable[[], Any], seconds: float) -> float:
    """Measures calls of `step` a second: the median of as many as fit into `seconds`, at least one. Call `step` once before."""
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        now = time.perf_counter()
        step()
        times.append(time.perf_counter() - now)
    return 1 / statistics.median(times)


def describe() -> str:
    """Describes the machine and the versions in one line."""
    from importlib.metadata import PackageNotFoundError, version

    def find(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    names = ("tensorflow", "keras", "jax", "torch", "monai", "nnunetv2", "openvino", "isal")
    cpu = next((line.partition(":")[2].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU")
    return f"{cpu}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, {', '.join(map(find, names))}"


def _read(path: str) -> Sequence[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else ()
