"""Signals that ask a command to stop."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

# A second one of these enforces what the first asked for.
ENFORCING = (signal.SIGINT, signal.SIGTERM)
# A closed terminal sends this one, its shell once more. So it asks, and never enforces. Windows has no such signal.
HANGUP: int | None = getattr(signal, "SIGHUP", None)
# Seconds that a command has to end by itself after a second signal.
GRACE = 5.0
# A command with this variable in its environment ends when the process that began it is gone: nobody waits for its work any more.
END_WITH_PARENT = "MRI_END_WITH_PARENT"

log = logging.getLogger("mri")


class StopRequest:
    """A context manager in which Ctrl-C, SIGTERM and SIGHUP ask for a stop instead of enforcing it; a second signal enforces it.

    Attributes:
        made: Whether a signal has asked for a stop.
    """

    def __init__(self) -> None:
        self.made = False
        self._enforcing = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may handle signals. Whoever starts another thread must handle them.
        if threading.current_thread() is threading.main_thread():
            self._before = _handle((*ENFORCING, HANGUP), self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self._enforcing += number in ENFORCING
        if self._enforcing > 1:
            raise KeyboardInterrupt
        if not self.made:
            log.info("%s: stops after this step, with a checkpoint; once more to stop at once", signal.Signals(number).name)
        self.made = True


@contextlib.contextmanager
def obey_signals(name: str, grace: float = GRACE) -> Generator[None, None, None]:
    """Lets SIGTERM and SIGHUP interrupt a command as Ctrl-C does, and ends the process after a second signal in any case.

    Python acts on a signal between two of its own instructions. There may be none for minutes, while a network is compiled. The system's
    part of a handler runs at once, though: it writes to a socket, where another thread reads.

    Args:
        name: The command's name, for its last line.
        grace: Seconds that the command has to end by itself after a second signal.
    """
    # Only the main thread may handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handle((signal.SIGTERM, HANGUP), _interrupt)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, name, grace), daemon=True)
    watcher.start()
    if os.environ.get(END_WITH_PARENT):
        threading.Thread(target=_follow_parent, args=(os.getppid(), grace), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        # The watcher reads the end of the stream and returns.
        writer.close()
        watcher.join()
        reader.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(numbers: tuple[int | None, ...], handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Sets a handler, and returns those before. `nohup` ignores SIGHUP for its command, and so do we then."""
    wanted = [number for number in numbers if number is not None]
    return {
        number: signal.signal(number, handler) for number in wanted if number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN
    }


def _interrupt(number: int, frame: Any) -> None:
    if number == HANGUP:
        # A second one must not disturb how the command ends.
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _watch(reader: socket.socket, name: str, grace: float) -> None:
    """Ends the process where `grace` seconds after the second signal the command still runs."""
    received = 0
    while received < 2:
        data = reader.recv(64)
        if not data:
            return
        received += sum(number in ENFORCING for number in data)
    deadline = time.monotonic() + grace
    while (left := deadline - time.monotonic()) > 0:
        reader.settimeout(left)
        with contextlib.suppress(TimeoutError):
            if not reader.recv(64):
                return
    with contextlib.suppress(OSError):
        os.write(2, f"{name}: interrupted\n".encode())
    # No finally-block runs any more. Files are written under temporary names, and the system frees the run's lock.
    os._exit(130)


def _follow_parent(parent: int, grace: float) -> None:
    """Stops this process when it has another parent, as a second signal would where that does not suffice."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(130)
