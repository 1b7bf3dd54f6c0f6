"""The parts that the three commands share: console, log, and the way an error becomes one line and an exit status."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TextIO

from modules.data.documents import to_line
from modules.hardware import is_lack_of_memory
from modules.packages import describe_missing
from modules.run.signals import obey_signals

log = logging.getLogger("mri")


class _ConsoleHandler(logging.Handler):
    """A handler that writes to standard output without breaking a progress bar. A reader that went away does not end the command."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            _silence(sys.stdout)
            log.warning("the console cannot be written any more (%s): messages go to the run's log alone", error.strerror)


def start_log(*, quiet: bool = False) -> None:
    """Sends messages to the console, or only warnings if `quiet`; a run's folder adds a file, see `modules.run.folder.RunFolder`."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        if isinstance(handler, _ConsoleHandler):
            log.removeHandler(handler)
    log.addHandler(_ConsoleHandler(logging.WARNING if quiet else logging.INFO))


def log_lines(lines: Iterable[str]) -> None:
    """Logs lines one by one."""
    for line in lines:
        log.info("%s", line)


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command. An error that the user can mend becomes one line on standard error and exit status 2.

    The command may return an exit status of its own; None is 0. The traceback of an error goes to the run's log, where there is one.
    SIGTERM ends the command like Ctrl-C; clusters send it before they take a machine back. So does SIGHUP, which a closed terminal
    sends.
    """
    _open_console()
    if "error" in sys.warnoptions:
        # PYTHONWARNINGS=error in a user's shell would end a training at the first warning of a library.
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
    try:
        with obey_signals(name):
            return command() or 0
    except KeyboardInterrupt:
        _tell(f"{name}: interrupted")
        return 130
    except Exception as error:
        if not (line := _describe(error)):
            raise
        _tell(f"{name}: error: {line}")
        return 2
    finally:
        _flush(sys.stdout)


def _describe(error: Exception) -> str:
    """Describes an error that the user can mend in one line; "" for a defect of this program."""
    if isinstance(error, ModuleNotFoundError):
        return describe_missing(error)
    if is_lack_of_memory(error):
        received = to_line(error) if str(error) else "none left"
        return f"Expected enough memory. Received: {received}. Free some, or choose smaller scans, windows or batches."
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error):
        # PyTorch has none for some operations on a GPU, such as pooling of volumes.
        return f"Expected operations that repeat bit for bit. Received: {to_line(error, 300)} Give --backend jax, or no --deterministic."
    return to_line(error) if isinstance(error, ValueError | OSError) else ""


# ---------------------------------------------------------------------------------------------------------------- console


def _open_console() -> None:
    """Makes standard output and error accept any text, even if one of them is closed or knows only ASCII."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken. Otherwise the next file that is opened would get every message of a library.
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _tell(line: str) -> None:
    """Writes a line to standard error."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _flush(stream: TextIO) -> None:
    """Writes what a stream still holds. Otherwise Python would complain at its end about a reader that went away."""
    try:
        stream.flush()
    except OSError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Redirects a stream that cannot be written any more to nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
