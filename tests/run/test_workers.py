"""Commands on workers: how often each is begun, how many at once, what ends them, and the flags."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_helpers import need_package

from modules.run import workers
from modules.run.signals import END_WITH_PARENT
from modules.run.workers import Crew, Ended, Job, WorkerLost, WorkerOptions, open_workers, strip_worker_flags, take_worker_options


class FakeWorkers:
    """Workers whose jobs end at once, each as `plan` says: an exit status, or None for a worker that is lost."""

    def __init__(self, plan):
        self.plan, self.arrays, self.cancelled = {name: list(ends) for name, ends in plan.items()}, [], []

    def submit(self, commands):
        self.arrays.append([command[0] for command in commands])
        return [
            Job(lambda: True, lambda name=name: self._finish(name), lambda name=name: self.cancelled.append(name))
            for name in self.arrays[-1]
        ]

    def _finish(self, name):
        status = self.plan[name].pop(0)
        if status is None:
            raise WorkerLost("node 7 is down")
        return Ended(status, f"some words\n{name} ended with {status}\n\n")


def _run(plan, **options):
    fake = FakeWorkers(plan)
    with Crew(fake.submit, **options) as crew:
        for name in plan:
            crew.add(name, lambda name=name: [name])
        ended = dict(crew.wait())
    return fake, ended


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)


def test_each_command_is_begun_until_it_ends_well_or_thrice():
    fake, ended = _run({"good": [0], "lost": [None, 0], "killed": [-9, 3], "bad": [2, 2, 2, 0]}, accepted=(0, 3))
    assert fake.arrays == [["good", "lost", "killed", "bad"], ["lost", "killed", "bad"], ["bad"]]
    assert {name: end.status for name, end in ended.items()} == {"good": 0, "lost": 0, "killed": 3, "bad": 2}
    assert ended["bad"].error == "bad ended with 2"


def test_a_worker_that_is_always_lost_says_so():
    _, ended = _run({"a": [None, None, None]})
    assert ended["a"].error == "its worker was lost: node 7 is down"


def test_no_more_than_so_many_at_once():
    fake, _ = _run({"a": [0], "b": [None, 0], "c": [0]}, most=2)
    assert fake.arrays == [["a", "b"], ["b", "c"]]


def test_what_is_cancelled_is_not_begun_again():
    fake = FakeWorkers({"a": [130], "b": [0]})
    with Crew(fake.submit, most=1) as crew:
        for name in "ab":
            crew.add(name, lambda name=name: [name])
        assert crew.poll() == {}
        crew.cancel("a")
        crew.cancel("b")
        assert crew.poll() == {"a": Ended(130, "some words\na ended with 130\n\n"), "b": Ended(130, "cancelled")}
        assert crew.names == ()
    assert (fake.arrays, fake.cancelled) == ([["a"]], ["a"])


def test_an_error_cancels_what_still_runs(tmp_path):
    jobs = []

    def fail():
        with open_workers(WorkerOptions("local"), tmp_path) as submit, Crew(submit) as crew:
            crew.add("long", lambda: ["sleep", "60"])
            crew.poll()
            jobs.append(crew._tasks["long"].job)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert jobs[0].finish() == Ended(-15, "")


CHILD = """
import sys, time

sys.path.insert(0, sys.argv[1])
import utils

utils.run_command("x", lambda: open(sys.argv[2], "w").close() or time.sleep(60))
"""


def test_a_command_ends_with_the_process_that_began_it(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    # A shell begins the command in the background, waits until it works, and is gone.
    line = '"$0" "$@" >/dev/null & echo $!; until [ -e "$3" ]; do sleep 0.1; done'
    command = ["sh", "-c", line, sys.executable, tmp_path / "child.py", Path(__file__).parents[2], tmp_path / "works"]
    shell = subprocess.run(command, env={**os.environ, END_WITH_PARENT: "1"}, stdout=subprocess.PIPE, text=True, check=True)
    assert _ends(int(shell.stdout))


def _ends(process):
    for _ in range(300):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        # The orphan of a test may stay as a zombie, where nobody collects it.
        with open(f"/proc/{process}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.1)
    return False


def test_flags_are_taken_and_stripped():
    given = {"slurm": ["time=120", "mem=16GB", "signal_delay_s=1.5"], "workers": 4, "epochs": 3}
    assert take_worker_options(given) == WorkerOptions("slurm", 4, {"time": 120, "mem": "16GB", "signal_delay_s": 1.5})
    assert given == {"epochs": 3}
    assert take_worker_options({}) is None
    assert take_worker_options({"workers": 2}) == WorkerOptions("local", 2)
    argv = ["scans", "-x", "--slurm", "time=5", "mem=1GB", "--labels", "a b", "--workers=3", "--ray", "--threads", "2"]
    assert strip_worker_flags(argv) == ["scans", "-x", "--labels", "a b", "--threads", "2"]


def test_options_that_slurm_does_not_know(tmp_path, monkeypatch):
    need_package("submitit", monkeypatch)
    with (
        pytest.raises(ValueError, match="Expected Slurm's sbatch on this machine"),
        open_workers(WorkerOptions("slurm", 2, {"time": 5}), tmp_path),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"Expected options of sbatch after --slurm. Received: .*'tme'"),
        open_workers(WorkerOptions("slurm", 2, {"cluster": "local", "tme": 5}), tmp_path),
    ):
        pass
