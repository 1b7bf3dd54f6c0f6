"""Signals that ask a training to stop."""

import logging
import signal
import threading
from typing import Any

log = logging.getLogger("mri")


class StopRequest:
    """A context manager in which SIGTERM and Ctrl-C ask for a stop instead of enforcing it; a second signal enforces it.

    Attributes:
        made: Whether a signal has asked for a stop.
    """

    def __init__(self) -> None:
        self.made = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may handle signals. Whoever starts another thread must handle them.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        log.info("%s: stops after this step, with a checkpoint; once more to stop at once", signal.Signals(number).name)
