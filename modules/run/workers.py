"""Workers: processes here, jobs of a Slurm array or tasks of Ray, each of which runs one of our commands.

A command whose worker was lost is begun again; what it had finished stays on the disk that all workers share. `open_workers` gives the
function that starts commands, and a `Crew` keeps count of them.
"""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modules.data.documents import to_line
from modules.run.signals import END_WITH_PARENT

# A command is begun at most so many times.
ATTEMPTS = 3
# Seconds between two looks at the workers.
POLL_SECONDS = 1.0
_WORKER_FLAGS = ("workers", "slurm", "ray")
# The options of `subprocess.run`, which is all that another machine is told to call: its output comes back as text.
_CAPTURE: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
_CAPTURE |= {"text": True, "errors": "backslashreplace"}

log = logging.getLogger("mri")


@dataclass(frozen=True)
class WorkerOptions:
    """The workers that the flags ask for.

    Attributes:
        kind: "local" for processes on this machine, "slurm" or "ray".
        number: The most that work at the same time; 0 where the user left it open.
        parameters: The options of Slurm or Ray, by name.
    """

    kind: str
    number: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


class WorkerLost(Exception):
    """A worker that ended without a word, as where its machine went down."""


class Ended(NamedTuple):
    """The end of a command: its exit status, and all that it wrote to its console."""

    status: int
    text: str

    @property
    def error(self) -> str:
        """The signal that killed it, or the last line that it wrote, which is its error where it failed."""
        if self.status < 0:
            return f"killed by signal {-self.status}"
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), f"exit status {self.status}")


class Job(NamedTuple):
    """A command on a worker.

    Attributes:
        is_done: Tells whether it ended.
        finish: Returns its end, or raises WorkerLost.
        cancel: Asks it to stop, as SIGTERM does.
    """

    is_done: Callable[[], bool]
    finish: Callable[[], Ended]
    cancel: Callable[[], object]


Submit = Callable[[Sequence[Sequence[str]]], list[Job]]


# ------------------------------------------------------------------------------------------------------------------ flags


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --workers, --slurm and --ray. A flag that is not given is no attribute of what the parser returns."""
    parser.add_argument(
        "--workers", type=int, default=argparse.SUPPRESS, metavar="N", help="divide the work among N processes; a lost one's is done again"
    )
    parser.add_argument(
        "--slurm",
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="run the workers as a Slurm array (pip install submitit), with options of sbatch: time=120 mem=16GB partition=gpu",
    )
    parser.add_argument(
        "--ray",
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="run the workers on Ray (pip install ray), with address=HOST:PORT and options of a task: num_cpus=4 num_gpus=1",
    )


def take_worker_options(given: dict[str, Any]) -> WorkerOptions | None:
    """Takes the flags of `add_worker_flags` out of those that were given; None where there is none.

    Raises:
        ValueError: For flags that contradict each other, or a value that is none.
    """
    number, slurm, ray = (given.pop(name, None) for name in _WORKER_FLAGS)
    if slurm is not None and ray is not None:
        raise ValueError("Expected either --slurm or --ray. Received: both. Leave one out.")
    if number is not None and number < 1:
        raise ValueError(f"Expected `workers` of 1 or more. Received: {number}.")
    if slurm is not None:
        parameters = _read_parameters("slurm", slurm)
        if "time" not in parameters and parameters.get("cluster") != "local":
            raise ValueError("Expected --slurm time=MINUTES: the most that a job may take. Received: none. Add it.")
        return WorkerOptions("slurm", number or 0, parameters)
    if ray is not None:
        return WorkerOptions("ray", number or 0, _read_parameters("ray", ray))
    return None if number is None else WorkerOptions("local", number)


def strip_worker_flags(argv: Sequence[str] | None) -> list[str]:
    """Returns a command line, None for the process's own, without the flags of `add_worker_flags`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_worker_flags(parser)
    return parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))[1]


def _read_parameters(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Reads NAME=VALUE; a value that looks like a number is one."""
    parameters: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"Expected NAME=VALUE after --{flag}. Received: {text}. Name paths before the flag.")
        try:
            parameters[name] = float(value) if "." in value else int(value)
        except ValueError:
            parameters[name] = value
    return parameters


# ---------------------------------------------------------------------------------------------------------------- workers


def make_command(script: Path, *arguments: str) -> list[str]:
    """Makes the command of a worker: a script of this program, which ends when the process that began it is gone."""
    return ["env", f"{END_WITH_PARENT}=1", sys.executable, str(script.absolute()), *arguments]


@contextmanager
def open_workers(options: WorkerOptions, folder: Path) -> Generator[Submit, None, None]:
    """Yields the function that starts commands on workers, all of one call as one array where there are arrays.

    Commands run in the folder that this process works in, so all machines must know it under one path.

    Args:
        options: What the flags say.
        folder: Where Slurm's scripts and logs go.

    Raises:
        ModuleNotFoundError: Without submitit or Ray, where they are asked for.
        ValueError: For an option that they do not know, or a machine without Slurm.
    """
    if options.kind == "slurm":
        try:
            yield _open_slurm(options, folder)
        finally:
            # submitit hands commands and results over in pickles, which nobody shall read later.
            for path in folder.glob("*.pkl"):
                path.unlink(missing_ok=True)
    elif options.kind == "ray":
        import ray

        try:
            yield _open_ray(options)
        finally:
            ray.shutdown()
    else:
        yield lambda commands: [_start_process(command) for command in commands]


def _start_process(command: Sequence[str]) -> Job:
    """Starts a process of this machine. Ctrl-C reaches this process alone, which cancels the others."""
    output = tempfile.TemporaryFile()  # noqa: SIM115  (it is closed when the process has ended)
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def finish() -> Ended:
        status = process.wait()
        with output:
            output.seek(0)
            return Ended(status, output.read().decode("utf-8", "backslashreplace"))

    return Job(lambda: process.poll() is not None, finish, process.terminate)


def _open_slurm(options: WorkerOptions, folder: Path) -> Submit:
    # Its own set-up of logging would close the handlers of ours, the run's log among them.
    os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
    import submitit

    parameters = dict(options.parameters)
    cluster = parameters.pop("cluster", "slurm")
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise ValueError("Expected Slurm's sbatch on this machine for --slurm. Received: none. Log in to a node that has it, or use --ray.")
    parameters |= {"array_parallelism": options.number} if options.number else {}
    executor = submitit.AutoExecutor(folder, cluster=cluster)
    try:
        executor.update_parameters(name="mri", **{f"slurm_{name}": value for name, value in parameters.items()})
    except (NameError, TypeError, ValueError) as error:
        raise ValueError(f"Expected options of sbatch after --slurm. Received: {to_line(error, 600)}") from error
    if cluster == "local":
        # Its default would end each process after minutes.
        executor.update_parameters(timeout_min=60 * 24 * 365)

    def finish(job: Any) -> Ended:
        try:
            done = job.result()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            raise WorkerLost(to_line(error, 300)) from error
        return Ended(done.returncode, done.stdout)

    def submit(commands: Sequence[Sequence[str]]) -> list[Job]:
        with executor.batch():
            jobs = [executor.submit(subprocess.run, list(command), cwd=os.getcwd(), **_CAPTURE) for command in commands]
        return [Job(job.done, lambda job=job: finish(job), job.cancel) for job in jobs]

    return submit


def _open_ray(options: WorkerOptions) -> Submit:
    import ray

    parameters = dict(options.parameters)
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address=parameters.pop("address", None), log_to_driver=False, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        # Ray would end this process in its own way, without our line and exit status.
        signal.signal(signal.SIGTERM, before)
    try:
        run = ray.remote(max_retries=0, **parameters)(subprocess.run)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected options of a Ray task after --ray. Received: {to_line(error, 600)}") from error

    def finish(reference: Any) -> Ended:
        try:
            done = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise WorkerLost(to_line(error, 300)) from error
        return Ended(done.returncode, done.stdout)

    def is_done(reference: Any) -> bool:
        return bool(ray.wait([reference], timeout=0)[0])

    def submit(commands: Sequence[Sequence[str]]) -> list[Job]:
        references = [run.remote(list(command), cwd=os.getcwd(), **_CAPTURE) for command in commands]
        return [
            Job(lambda one=one: is_done(one), lambda one=one: finish(one), lambda one=one: ray.cancel(one, force=True))
            for one in references
        ]

    return submit


# ------------------------------------------------------------------------------------------------------------------- crew


@dataclass
class _Task:
    make_command: Callable[[], Sequence[str]]
    attempts: int = 0
    cancelled: bool = False
    job: Job | None = None


class Crew:
    """The commands that are to be done. Leaving the block cancels those that still run."""

    def __init__(self, submit: Submit, most: int = 0, accepted: Sequence[int] = (0,)) -> None:
        """Takes the workers.

        Args:
            submit: The function that starts commands, from `open_workers`.
            most: The most commands at the same time; 0 for all.
            accepted: The exit statuses of commands that did what they could.
        """
        self._submit, self._most, self._accepted = submit, most, accepted
        self._tasks: dict[str, _Task] = {}

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._tasks):
            self.cancel(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the commands that have not ended."""
        return tuple(self._tasks)

    def add(self, name: str, make_command: Callable[[], Sequence[str]]) -> None:
        """Adds a command, which the next `poll` starts. It is made anew for each attempt: a training that has begun is resumed."""
        self._tasks[name] = _Task(make_command)

    def cancel(self, name: str) -> None:
        """Asks a command to stop; it is not begun again."""
        task = self._tasks[name]
        task.cancelled = True
        if task.job is not None:
            task.job.cancel()

    def wait(self) -> Generator[tuple[str, Ended], None, None]:
        """Yields the name and the end of each command, until all have ended."""
        while self._tasks:
            yield from self.poll().items()
            if self._tasks:
                time.sleep(POLL_SECONDS)

    def poll(self) -> dict[str, Ended]:
        """Starts what waits, and returns the ends of the commands that have ended for good since the last call."""
        ended = {}
        for name, task in list(self._tasks.items()):
            if task.job is None and task.cancelled:
                ended[name] = Ended(130, "cancelled")
            elif task.job is not None and task.job.is_done():
                end = _finish(task.job)
                task.job = None
                if end.status in self._accepted or task.cancelled or task.attempts == ATTEMPTS:
                    ended[name] = end
                else:
                    log.warning("%s is begun again: %s", name, end.error)
        for name in ended:
            del self._tasks[name]
        self._start_waiting()
        return ended

    def _start_waiting(self) -> None:
        running = sum(task.job is not None for task in self._tasks.values())
        waiting = [task for task in self._tasks.values() if task.job is None and not task.cancelled]
        waiting = waiting[: self._most - running] if self._most else waiting
        if not waiting:
            return
        for task, job in zip(waiting, self._submit([task.make_command() for task in waiting]), strict=True):
            task.attempts, task.job = task.attempts + 1, job


def _finish(job: Job) -> Ended:
    try:
        return job.finish()
    except WorkerLost as error:
        return Ended(1, f"its worker was lost: {error}")
