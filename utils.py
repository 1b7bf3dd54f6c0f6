"""What the three commands share: the console, the log, and how an error becomes one line and an exit status."""

import logging
import signal
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("mri")


class _ConsoleHandler(logging.Handler):
    """Writes to standard output without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)


def start_log(*, quiet: bool = False) -> None:
    """Sends messages, or only warnings if `quiet`, to the console; a run's folder adds a file, see `modules.run.folder.RunFolder`."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        if isinstance(handler, _ConsoleHandler):
            log.removeHandler(handler)
    log.addHandler(_ConsoleHandler(logging.WARNING if quiet else logging.INFO))


def run_command(name: str, command: Callable[[], None]) -> int:
    """Runs a command; an error the user can mend becomes one line on standard error and exit status 2.

    The traceback goes to the run's log, where there is one. SIGTERM, which clusters send before they take a machine back, ends it
    like Ctrl-C.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0
