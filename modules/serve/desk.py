"""The queue: a bounded number of requests have a place, and one after the other is predicted."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from modules.serve.limits import Gone, Limits, Refusal

Answer = TypeVar("Answer")


class Desk:
    """The places for requests, and the threads that predict. A new request without a place is refused before it is read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.workers, "predict")
        self._taken = 0
        self._running: set[_Task] = set()
        self._last_seconds = 1.0

    @property
    def waiting(self) -> int:
        """Number of requests that are uploaded or wait."""
        return self._taken - len(self._running)

    @property
    def running_seconds(self) -> list[float]:
        """For each prediction under way the seconds since it began."""
        now = time.monotonic()
        return [round(now - task.begun, 1) for task in tuple(self._running)]

    @contextmanager
    def take_place(self) -> Generator[None, None, None]:
        """Gives a request a place for the duration of the block.

        Raises:
            Refusal: If all places are taken.
        """
        places = self._limits.queue + self._limits.workers
        if self._taken >= places:
            wait = max(1, math.ceil(self._last_seconds))
            line = f"Expected a place in the queue. Received: a request beside {places} others. Try again in {wait} s."
            raise Refusal(503, line, {"Retry-After": str(wait)})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def work(self, job: Callable[[Callable[[], None]], Answer], gone: Awaitable[None]) -> Answer:
        """Runs a job in a thread when its turn comes.

        Args:
            job: A function that is given another one, and calls it from time to time: it raises where the job shall end.
            gone: Ends when the client goes away.

        Raises:
            Gone: If the client went away. A job that had not begun never does.
            Refusal: If the job took longer than it may.
        """
        task = _Task(self._limits.seconds)
        future = self._pool.submit(self._run, task, job)
        answer, watch = asyncio.wrap_future(future), asyncio.ensure_future(gone)
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                task.stop.set()
                future.cancel()
                # A job that runs ends after its next batch, and keeps its place until then.
                await asyncio.wait({answer})
                # asyncio would log an error that nobody has looked at, with its text.
                _ = answer.cancelled() or answer.exception()
                raise Gone
            return answer.result()
        finally:
            task.stop.set()
            future.cancel()
            watch.cancel()

    def _run(self, task: "_Task", job: Callable[[Callable[[], None]], Any]) -> Any:
        task.begun = time.monotonic()
        self._running.add(task)
        try:
            task.check()
            answer = job(task.check)
            task.check()
            return answer
        finally:
            self._running.discard(task)
            self._last_seconds = time.monotonic() - task.begun


class _Task:
    """A job that runs or waits.

    Attributes:
        begun: The time at which it began, by the monotonic clock.
        stop: Set when nobody wants its answer any more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begun = math.inf
        self.stop = threading.Event()

    def check(self) -> None:
        """Raises Gone where nobody wants the answer any more, and Refusal where the time is up."""
        if self.stop.is_set():
            raise Gone
        if time.monotonic() - self.begun > self._seconds:
            line = f"Expected a scan that is predicted in {self._seconds:g} s. Received: one that takes longer. Crop or resample it."
            raise Refusal(504, line)
