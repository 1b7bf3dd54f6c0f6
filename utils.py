"""The parts that the three commands share: console, log, and the way an error becomes one line and an exit status."""

import logging
import signal
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("mri")


class _ConsoleHandler(logging.Handler):
    """A handler that writes to standard output without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)


def start_log(*, quiet: bool = False) -> None:
    """Sends messages to the console, or only warnings if `quiet`; a run's folder adds a file, see `modules.run.folder.RunFolder`."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        if isinstance(handler, _ConsoleHandler):
            log.removeHandler(handler)
    log.addHandler(_ConsoleHandler(logging.WARNING if quiet else logging.INFO))


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command. An error that the user can mend becomes one line on standard error and exit status 2.

    The command may return an exit status of its own; None is 0. The traceback of an error goes to the run's log, where there is one.
    SIGTERM ends the command like Ctrl-C; clusters send it before they take a machine back.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        return command() or 0
    except (ValueError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
