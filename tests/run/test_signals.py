"""Signals that ask a command to stop, and the ones that enforce it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modules.run import signals
from modules.run.signals import StopRequest, obey_signals

ROOT = Path(__file__).parents[2]
# After many other tests these signals ended a worker of pytest-xdist. Under pytest-xdist they get a process of their own.
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
alone = pytest.mark.skipif(IN_WORKER, reason="runs in a process of its own")


@pytest.fixture(autouse=True)
def _handlers():
    if IN_WORKER:
        yield
        return
    # A shell that starts tests in the background lets them ignore Ctrl-C.
    handlers = {
        signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL,
    }  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    # No other listener in this process may receive the signals.
    listener = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(listener)
    for number, handler in before.items():
        signal.signal(number, handler)


@alone
def test_the_first_signal_asks_and_the_second_enforces():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@alone
def test_a_closed_terminal_asks_however_often_it_says_so():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.made
        # The shell sends the signal once more. Afterwards a user can still end the run at once.
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@alone
def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with obey_signals("a"), StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.made


@alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_is_interrupted_and_the_handlers_come_back(number):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), obey_signals("a"):
        signal.raise_signal(number)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1


@alone
def test_a_command_that_ends_after_the_second_signal_ends_by_itself(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it was ended"))
    with obey_signals("a", grace=0.2), StopRequest():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    time.sleep(0.3)


@alone
def test_the_second_signal_is_obeyed_where_python_gets_no_turn():
    # The main thread waits in C for a lock that it holds itself, just as it would wait for a compiler.
    code = (
        "import ctypes\n"
        "from modules.run.signals import StopRequest, obey_signals\n"
        "libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)\n"
        "libc.pthread_mutex_init(lock, None)\n"
        "libc.pthread_mutex_lock(lock)\n"
        "with obey_signals('train.py', grace=0.5), StopRequest():\n"
        "    print('begun', flush=True)\n"
        "    libc.pthread_mutex_lock(lock)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        for number in (signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        time.sleep(1)
        assert process.poll() is None  # neither a single signal nor a terminal's enforces anything
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "train.py: interrupted\n"
    assert time.monotonic() - began < signals.GRACE


@pytest.mark.skipif(not IN_WORKER, reason="the tests above run here")
def test_all_of_these_pass_in_a_process_of_their_own():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
