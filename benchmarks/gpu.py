"""Speed of this application on one GPU, beside its peers, in one table.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --rows train2d hippocampus --data Task04_Hippocampus
    KERAS_BACKEND=jax python benchmarks/gpu.py --small     # the same script with tiny sizes on a CPU: a proof of the path, no result

Everything computes in bfloat16. Networks train on each of `--backends`, and the first of these does all else; with `--small` each does all.
PyTorch and MONAI's network run channels-last under autocast, and "compiled" with `torch.compile`. The tops of training.py, hippocampus.py,
prediction.py, waiting.py and resuming.py say what is compared.

Each number comes from a process of its own. What compiles runs twice. The first time, several run beside one another: the table calls
their first step "new". The second time finds in the compilation cache what the first one made, and is measured: "known". Two processes
start beside one another then, but only one of them uses the GPU. A process that takes longer than `--limit` seconds is left out, and so is
what is not done after `--minutes`. With `--small` a process runs twice only where two results are compared.
"""

import argparse
import itertools
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import Table

from modules.compiled import list_variables

# Rank, filters, batch and size of the trained networks.
NETWORKS = {"train2d": (2, 64, 64, "256x128"), "train3d": (3, 32, 2, "128x128x128")}
SMALL = {"train2d": (2, 4, 4, "32x32"), "train3d": (3, 4, 2, "16x16x16")}
# Trainings of the seed sets with base 64: slices to train and to validate on, their size, and epochs.
SEED_SETS = {"OASIS": (9664, 1120, 256 * 256, 15), "HipMRI 2-D": (11460, 660, 256 * 128, 50)}
# A validation computes the forward pass alone.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Job:
    """One process to measure with: `benchmarks/<script>.py --step <step>` with its options.

    Attributes:
        script: Name of the script.
        step: Its step.
        options: Its options by name.
        backend: The Keras backend; "" for a peer.
        compiles: Whether it runs once before, to fill the compilation cache.
        measured: Whether it is measured. What it found when it compiled is enough for some.
    """

    script: str
    step: str
    options: tuple[tuple[str, Any], ...]
    backend: str = ""
    compiles: bool = False
    measured: bool = True


@dataclass(frozen=True)
class Work:
    """A line of the table, or several.

    Attributes:
        jobs: The processes it needs, by name.
        tell: A function that adds the lines. Its arguments are what the processes found, by name: measured, and compiling before.
    """

    jobs: Mapping[str, Job]
    tell: Callable[[Mapping[str, dict], Mapping[str, dict]], None]


class Sitting:
    """The works of one sitting, all measured with the same settings.

    Attributes:
        table: The table that the works add to.
        ceiling: FLOP/s of a large matrix product; 0 before it is measured.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Takes the options of the command, and a folder for drawn files and caches."""
        self.table, self.ceiling = Table(), 0.0
        self.folder, self.small, self.backends, self.data = folder, options.small, options.backends, options.data
        # Those that do more than train on one batch.
        self.chosen = options.backends if options.small else options.backends[:1]
        self.common = {"seconds": options.seconds, "precision": "bfloat16"}
        self.device = {"device": "cpu" if options.small else "cuda"}
        self.slices, self.hippocampi, self.volumes = (4, 1, 4) if options.small else (1000, 100, 64)

    # -------------------------------------------------------------------------------------------------------------- works

    def measure_ceiling(self) -> Iterator[Work]:
        """Yields the matrix product, whose speed is the most that a network could reach."""

        def tell(found: Mapping[str, dict], new: Mapping[str, dict]) -> None:
            self.ceiling = found["product"].get("flops", 0.0)
            self.table.add("matrix product in bfloat16", "TFLOP/s", self.ceiling / 1e12 if self.ceiling else None)

        yield Work({"product": self._job("training", "ceiling", **self.common, **self.device)}, tell)

    def train(self, row: str) -> Iterator[Work]:
        """Yields a training of one batch on each backend, beside PyTorch and MONAI."""
        rank, filters, batch, size = (SMALL if self.small else NETWORKS)[row]
        settings = self._set_training(row)
        compiled = {} if self.small else {"compiled": self._job("training", "torch", compiles=True, compile=1, **settings)}
        peers = {
            **compiled,
            "torch": self._job("training", "torch", **settings),
            "monai": self._job("training", "monai", **settings),
        }
        jobs = peers | {backend: self._job("training", "ours", backend, **settings) for backend in self.backends}

        def tell(found: Mapping[str, dict], new: Mapping[str, dict]) -> None:
            rates = {peer: found[peer].get("rate") for peer in peers}
            for backend in self.backends:
                limit = self._describe(found[backend], new.get(backend, {}))
                if "compiled" in peers:
                    limit += f"; compiled {_format_first(found['compiled'], new['compiled'])}"
                name = f"train {rank}-D, base {filters}, {batch} x {size}, {backend}"
                self.table.add(name, "samples/s", found[backend].get("rate"), rates, limit)

        yield Work(jobs, tell)

    def train_hippocampus(self) -> Iterator[Work]:
        """Yields a real training on patches of volumes."""
        settings = {"folder": self.folder, **self.common} | ({"data": self.data} if self.data else {})
        settings |= {"base_filters": 2, "batch": 1} if self.small else {}
        for backend in self.chosen:

            def tell(found: Mapping[str, dict], new: Mapping[str, dict], backend: str = backend) -> None:
                limit = f"aim 573; {self._describe(found['ours'], new['ours'])}"
                rates = {"streamed": found["streamed"].get("rate")}
                self.table.add(f"train hippocampus, 8 x 40x56x40, {backend}", "patches/s", found["ours"].get("rate"), rates, limit)

            places = {"ours": "yes" if self.small else "auto", "streamed": "no"}
            yield Work({name: self._job("hippocampus", "ours", backend, resident=wish, **settings) for name, wish in places.items()}, tell)

    def train_deterministic(self) -> Iterator[Work]:
        """Yields the cost of kernels that repeat bit for bit, and whether two processes get the same weights with and without them."""
        settings = self._set_training("train2d")
        for backend in self.chosen:

            def tell(found: Mapping[str, dict], new: Mapping[str, dict], backend: str = backend) -> None:
                repeats = (f"{name} {_compare(found[name], new[name])}" for name in ("with", "without"))
                rates = {"without": found["without"].get("rate")}
                limit = f"weights of two processes: {', '.join(repeats)}"
                self.table.add(f"train 2-D --deterministic, {backend}", "samples/s", found["with"].get("rate"), rates, limit)

            jobs = {
                "with": self._job("training", "ours", backend, compiles=True, deterministic=1, **settings),
                "without": self._job("training", "ours", backend, **settings),
            }
            yield Work(jobs, tell)

    def resume(self) -> Iterator[Work]:
        """Yields whether a deterministic training that was killed and resumed ends as one that was not."""
        for backend in self.chosen:

            def tell(found: Mapping[str, dict], new: Mapping[str, dict], backend: str = backend) -> None:
                result = new["resumed"]
                limit = f"1 for yes; killed after step {result.get('step')} of {result.get('steps')}"
                self.table.add(f"killed and resumed --deterministic, {backend}", "equal", result.get("equal"), limit=limit)

            settings = {"folder": self.folder, "base_filters": 2 if self.small else 16, "precision": "bfloat16"}
            yield Work({"resumed": self._job("resuming", "ours", backend, compiles=True, measured=False, **settings)}, tell)

    def wait_for_data(self) -> Iterator[Work]:
        """Yields the share of its speed that a training keeps on real data: read from the cache, and on the device."""
        for backend, (kind, batch) in itertools.product(self.chosen, (("slices", 64), ("patches", 8))):

            def tell(found: Mapping[str, dict], new: Mapping[str, dict], backend: str = backend, kind: str = kind) -> None:
                for name, values in found.items():
                    limit = f"aim 0.95; {values.get('rate', 0):.3g} {kind}/s"
                    self.table.add(f"{kind}, {name} / one batch, {backend}", "share/s", values.get("share"), limit=limit)

            settings: dict[str, Any] = {"folder": self.folder, "kind": kind, "precision": "bfloat16", "seconds": self.common["seconds"]}
            sizes = (1, 2, 1) if self.small else (batch, 32, 40)
            settings |= dict(zip(("batch", "base_filters", "steps"), sizes, strict=True))
            places = (("streamed", 0), ("on the device", 1))
            yield Work({name: self._job("waiting", "ours", backend, resident=place, **settings) for name, place in places}, tell)

    def predict(self) -> Iterator[Work]:
        """Yields slices and volumes a second from file to file."""
        for backend, (kind, number) in itertools.product(self.chosen, (("slices", self.slices), ("hippocampi", self.hippocampi))):

            def tell(
                found: Mapping[str, dict], new: Mapping[str, dict], backend: str = backend, kind: str = kind, number: int = number
            ) -> None:
                peers = {peer: found[peer].get("rate") for peer in ("torch", "monai")}
                self.table.add(f"predict {number} {kind}, file to file, {backend}", f"{kind}/s", found["ours"].get("rate"), peers)

            settings = {"folder": self.folder, "kind": kind, "cases": number, "batch": 2 if self.small else 16}
            jobs = {peer: self._job("prediction", peer, **settings, **self.device) for peer in ("torch", "monai")}
            jobs["ours"] = self._job("prediction", "ours", backend, compiles=False, engine="keras", **settings)
            yield Work(jobs, tell)

    def estimate(self) -> Iterator[Work]:
        """Yields the minutes of the seed sets' trainings at the measured speed, without reading, testing and compiling."""
        settings = self._set_training("train2d")

        def tell(found: Mapping[str, dict], new: Mapping[str, dict]) -> None:
            for backend in self.backends:
                rate = found[backend].get("rate")
                for name, (training, validation, voxels, epochs) in SEED_SETS.items():
                    pixels = (rate or 0) * math.prod(map(int, settings["size"].split("x")))
                    seconds = epochs * (training + FORWARD * validation) * voxels / pixels if rate else None
                    text = f"from {rate or 0:.0f} samples/s of {settings['size']} in batches of {settings['batch']}"
                    self.table.add(f"{name}, {epochs} epochs, {backend}", "min", seconds and seconds / 60, limit=text)

        yield Work({backend: self._job("training", "ours", backend, **settings) for backend in self.backends}, tell)

    def draw(self) -> list[Job]:
        """Lists the processes that draw the files which rows need."""
        shared = {"folder": self.folder}
        return [
            self._job("reading", "draw", kind="slices", cases=self.slices + 8, **shared),
            self._job("prediction", "draw", draw=("slices", "hippocampi"), cases=self.hippocampi, **shared),
            self._job("waiting", "draw", kind="patches", cases=self.volumes, **shared),
            *([] if self.data else [self._job("hippocampus", "draw", cases=8 if self.small else 208, **shared)]),
        ]

    # -------------------------------------------------------------------------------------------------------------- parts

    def _set_training(self, row: str) -> dict[str, Any]:
        rank, filters, batch, size = (SMALL if self.small else NETWORKS)[row]
        return {"rank": rank, "base_filters": filters, "batch": batch, "size": size, "late": 1, **self.common, **self.device}

    def _job(self, script: str, step: str, backend: str = "", compiles: bool | None = None, measured: bool = True, **options: Any) -> Job:
        compiles = bool(backend) and not self.small if compiles is None else compiles
        return Job(script, step, tuple(options.items()), backend, compiles, measured)

    def _describe(self, found: Mapping[str, Any], new: Mapping[str, Any]) -> str:
        """Describes the share of the matrix product's speed that a training reached, and its first steps."""
        reached = 3 * found.get("flops", 0) * found.get("rate", 0) / self.ceiling if self.ceiling else 0
        return f"{reached:.0%} of the product; first step {_format_first(found, new)}"


def _format_first(found: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Formats the seconds of a first step: of what is new, and of what is known from the compilation cache."""
    seconds = [f"{values['first']:.0f} s {name}" for name, values in (("new", new), ("known", found)) if "first" in values]
    return ", ".join(seconds) or "not measured"


def _compare(found: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if not (found.get("weights") and new.get("weights")):
        return "not compared"
    return "equal" if found["weights"] == new["weights"] else "not equal"


ROWS: dict[str, Callable[[Sitting], Iterator[Work]]] = {
    "train2d": lambda sitting: sitting.train("train2d"),
    "train3d": lambda sitting: sitting.train("train3d"),
    "hippocampus": Sitting.train_hippocampus,
    "deterministic": Sitting.train_deterministic,
    "resume": Sitting.resume,
    "waiting": Sitting.wait_for_data,
    "predict": Sitting.predict,
    "estimate": Sitting.estimate,
}
# These need drawn files.
DRAWN = {"hippocampus", "waiting", "predict"}


class Processes:
    """Runs each job once as a new one, if it compiles, and once to measure; equal jobs are one."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Takes a folder for caches, and the options of the command."""
        # The same variables as train.py sets, for the peers too.
        self._environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **list_variables(folder / "compiled")}
        # On a CPU XLA would compile volumes for minutes.
        self._environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if options.small else {}
        self._turn, self._limit = {"BENCH_TURN": str(folder / "turn")}, options.limit
        self._end = options.began + 60 * options.minutes
        workers = 1 if options.small else max(1, min(6, (os.cpu_count() or 1) // 2))
        self._many, self._two = ThreadPoolExecutor(workers), ThreadPoolExecutor(2 if workers > 1 else 1)
        self._new: dict[Job, Future] = {}
        self._found: dict[Job, Future] = {}

    def compile(self, jobs: Sequence[Job], draws: Sequence[Job]) -> None:
        """Draws files and runs the jobs that compile, several beside one another, and waits for them."""
        drawn = [self._many.submit(self._run, job, {}) for job in draws]
        # Those that need no drawn files come first.
        for job in sorted(jobs, key=lambda job: "folder" in dict(job.options)):
            if "folder" in dict(job.options):
                for future in drawn:
                    future.result()
            if job.compiles and job not in self._new:
                self._new[job] = self._many.submit(self._run, job, {}, seconds=0)
        for future in (*drawn, *self._new.values()):
            future.result()

    def measure(self, jobs: Sequence[Job]) -> None:
        """Starts to measure jobs in their order. What could not be compiled is left out."""
        for job in jobs:
            if job.measured and job not in self._found and (job not in self._new or self._new[job].result()):
                self._found[job] = self._two.submit(self._run, job, self._turn)

    def get(self, job: Job) -> tuple[dict, dict]:
        """Waits for a job, and returns what it found when measured, and what it found when new; {} for nothing."""
        return tuple(futures[job].result() if job in futures else {} for futures in (self._found, self._new))

    def close(self) -> None:
        """Ends what still runs, and starts nothing more."""
        for pool in (self._many, self._two):
            pool.shutdown(wait=False, cancel_futures=True)
        harness.end_all()

    def _run(self, job: Job, turn: Mapping[str, str], **changes: Any) -> dict:
        environment = {**self._environment, **turn, **({"KERAS_BACKEND": job.backend} if job.backend else {})}
        seconds = min(self._limit, self._end - time.perf_counter())
        if seconds <= 0:
            print(f"  not measured: {job.script} {job.step} {job.backend}: the time is over", flush=True)
            return {}
        return harness.run(job.script, job.step, environment, seconds, **{**dict(job.options), **changes}) or {}


def measure(options: argparse.Namespace, folder: Path) -> Table:
    """Measures the rows of the options; returns the table."""
    sitting = Sitting(options, folder)
    works = [work for make in (Sitting.measure_ceiling, *(ROWS[row] for row in options.rows)) for work in make(sitting)]
    jobs = [job for work in works for job in work.jobs.values()]
    processes = Processes(folder, options)
    try:
        processes.compile(jobs, sitting.draw() if DRAWN & set(options.rows) else [])
        print(f"compiled after {time.perf_counter() - options.began:.0f} s", flush=True)
        processes.measure(jobs)
        for work in works:
            results = {name: processes.get(job) for name, job in work.jobs.items()}
            work.tell(*({name: pair[index] for name, pair in results.items()} for index in range(2)))
            if options.output:
                sitting.table.save(options.output)
    finally:
        processes.close()
    return sitting.table


def main() -> None:
    """Measures the rows and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes on a CPU, on the backend of KERAS_BACKEND")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="what to measure (default all)")
    parser.add_argument("--backends", nargs="+", help="backends that train; the first does all else (default jax torch)")
    parser.add_argument("--data", type=Path, help="Task04_Hippocampus, in place of drawn volumes")
    parser.add_argument("--output", type=Path, help="file for the rows as JSON, written after each row")
    parser.add_argument("--seconds", type=float, help="about so long for each rate (default 4)")
    parser.add_argument("--limit", type=float, help="seconds after which a process is left out (default 150, with --small 900)")
    parser.add_argument("--minutes", type=float, help="what is not measured by then is left out (default 8, with --small no limit)")
    options = parser.parse_args()
    options.began = time.perf_counter()
    # `timeout` ends the command in this way; the processes that it started must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.backends = options.backends or ([os.environ.get("KERAS_BACKEND") or "tensorflow"] if options.small else ["jax", "torch"])
    options.seconds = options.seconds or (1 if options.small else 4)
    options.limit = options.limit or (900 if options.small else 150)
    options.minutes = options.minutes or (math.inf if options.small else 8)
    options.data = options.data and options.data.resolve()
    print(harness.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        measure(options, Path(name)).print(1)
    print(f"{(time.perf_counter() - options.began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
