"""Tells what becomes of each case as soon as it is known: a line of the log, and JSON for another program."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.data.files import append_line
from modules.hardware import read_peak, reset_peak

# What is said of a case whose label map somebody should look at.
CHECK = "check this one"

log = logging.getLogger("mri")


class CaseLog:
    """The log of a batch, case by case.

    The seconds of a case are those since the case before it. Its memory is the peak of the whole process in that time, models included.
    Slices that share a batch are computed with the first of them.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Takes the file that gets a JSON object for each case, if any. Lines of earlier calls stay.

        Raises:
            OSError: If the file cannot be written.
        """
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
            except OSError as error:
                raise OSError(
                    f"Expected a file that can be written for `--log-json`. Received: {path} ({error.strerror}). Name another."
                ) from error
        self._path = path
        self._number = self._total = 0
        self._began = time.perf_counter()

    def start(self, total: int) -> None:
        """Begins to count and to measure the cases to predict, `total` of them."""
        self._number, self._total = 0, total
        self._measure()

    def tell_done(self, name: str, files: Mapping[str, Path], reasons: Sequence[str] = ()) -> None:
        """Tells that a case was predicted, its files by kind, and why somebody should look at it, if anybody should."""
        seconds, peak_bytes = measured = self._measure()
        self._number += 1
        check = f"; {CHECK}: {'; '.join(reasons)}" if reasons else ""
        log.info("%d/%d %s: %.1f s, %.1f GiB%s", self._number, self._total, name, seconds, peak_bytes / 2**30, check)
        self._write(name, "done", measured, None, files)

    def tell_failed(self, name: str | None, error: str) -> None:
        """Tells of the error of a case, or, where `name` is None, of a path that gives no case."""
        self._number += 1
        log.error("failed: %s", error)
        self._write(name, "failed", self._measure(), error, {})

    def tell_skipped(self, name: str, files: Mapping[str, Path]) -> None:
        """Tells that a case's files are there already."""
        self._write(name, "skipped", (0.0, 0), None, files)

    def _measure(self) -> tuple[float, int]:
        """Returns the seconds and the peak of memory since the last call."""
        before, self._began = self._began, time.perf_counter()
        peak_bytes = read_peak()
        reset_peak()
        return self._began - before, peak_bytes

    def _write(self, name: str | None, status: str, measured: tuple[float, int], error: str | None, files: Mapping[str, Path]) -> None:
        if self._path is None:
            return
        record = {"case": name, "status": status, "seconds": round(measured[0], 3), "peak_bytes": measured[1], "error": error}
        try:
            append_line(self._path, json.dumps(record | {"files": {kind: str(path) for kind, path in files.items()}}))
        except OSError as failure:
            # The label maps are worth more than their log.
            log.warning("%s The log gets no more lines.", failure)
            self._path = None
