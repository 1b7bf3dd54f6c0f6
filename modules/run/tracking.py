"""Logs a run to MLflow or TensorBoard, besides the files in its folder."""

import csv
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules.run import mlflow_sink
from modules.run.folder import RunFolder
from modules.run.mlflow_sink import MlflowSink
from modules.run.settings import TRACKERS
from modules.run.tensorboard_sink import TensorBoardSink

# Older servers refuse longer names of metrics.
_NAME_LENGTH = 250

log = logging.getLogger("mri")


class Tracker:
    """A log of a run besides its folder; without a sink it does nothing.

    The tracker is a context manager. The run is FINISHED if the block ends as usual, KILLED after Ctrl-C, and FAILED after any other error.

    An open tracker never stops a training. The first failure gives one warning. The missing epochs are sent after the training, if that is
    possible then.
    """

    def __init__(self, run: RunFolder, sink: "MlflowSink | TensorBoardSink | None" = None) -> None:
        """Takes the folder of the run, and the sink to log to."""
        self._run = run
        self._sink = sink
        self._last_epoch = 0
        self._behind = self._warned = False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def catch_up(self) -> None:
        """Logs those rows of the folder's `history.csv` that are not logged yet; raises any error of the sink."""
        if self._sink is None:
            return
        self._last_epoch = self._sink.find_last_epoch()
        if self._run.history.is_file():
            try:
                with self._run.history.open(newline="", encoding="utf-8") as file:
                    rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            except (ValueError, TypeError, csv.Error) as error:
                raise ValueError(
                    f"Expected what a run wrote in {self._run.history}. Received: {error}. Remove it: a resume writes it anew."
                ) from error
            for row in rows:
                self._send_row(row)

    def log_row(self, row: Mapping[str, float]) -> None:
        """Logs an epoch, unless it was logged before the run was resumed.

        Args:
            row: A row of `history.csv`: its "epoch", from 1, and the metrics by name. NaN and infinite metrics are left out.
        """
        if not self._behind:
            self._attempt(self._send_row, row)

    def log_summary(self, means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Logs the test scores as `test_<level>/<score>_<class>`, and the files that are in the folder by now.

        Args:
            means: The means of `modules.score_tables.summarise`. NaN are left out.
        """
        self._attempt(self._send_summary, means)

    def close(self, status: str = "FINISHED") -> None:
        """Ends the tracking; afterwards the tracker does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if self._sink is not None:
            self._attempt(self._sink.close, status)
            self._sink = None

    def _send_row(self, row: Mapping[str, float]) -> None:
        if self._sink is None:
            return
        epoch = int(row["epoch"])
        if epoch > self._last_epoch:
            self._sink.log_epoch(_keep_finite(row), epoch)
            self._last_epoch = epoch

    def _send_summary(self, means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        if self._sink is None:
            return
        if self._behind:
            self.catch_up()
            self._behind = False
        values = {
            f"test_{level}/{_clean_name(f'{score}_{name}')}": value
            for level, classes in means.items()
            for name, scores in classes.items()
            for score, value in scores.items()
        }
        self._sink.log_summary({name: value for name, value in values.items() if math.isfinite(value)}, self._last_epoch)

    def _attempt(self, call: Callable[[Any], None], value: Any) -> None:
        try:
            call(value)
        except Exception as error:  # No failure of a server or a disk may end the training.
            self._behind = True
            if not self._warned:
                log.warning("tracking failed: %s; the training goes on without it", mlflow_sink.describe_error(error))
            self._warned = True


def check_tracker(kind: str, run: RunFolder | None = None) -> None:
    """Checks that a tracker can be opened, before a run's folder is made and its data are read.

    Args:
        kind: One of `TRACKERS`.
        run: The run that is resumed, if any.

    Raises:
        ValueError: For the same reasons as `open_tracker`.
    """
    if kind not in TRACKERS:
        raise ValueError(f"Expected `track` in {TRACKERS}. Received: {kind!r}.")
    if kind == "mlflow":
        uri = mlflow_sink.find_uri(run)
        with mlflow_sink.explain_start(uri), mlflow_sink.limit_waits(retries=1, seconds=10):
            mlflow_sink.connect(uri).search_experiments(max_results=1)


def open_tracker(kind: str, run: RunFolder, *, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, Any]) -> Tracker:
    """Begins to log a run, or goes on with the run at MLflow that its `tracking.json` names.

    MLflow logs to `MLFLOW_TRACKING_URI`, and without that to `mlflow.db` in the current folder, as MLflow itself does. MLflow's own
    environment variables also give user and password. TensorBoard's files go to `<folder>/tensorboard`: `train`, `validate`, `test`.

    Args:
        kind: One of `TRACKERS`.
        run: The folder. Its name is the run's name in MLflow; a fold has the name of the cross-validation before its own.
        experiment: The name that the run is listed under, that of the data set.
        parameters: All settings by name.
        tags: Further values that describe the run; mappings in it become `<name>.<key>`.

    Returns:
        The tracker, for a `with` statement. For "none" it does nothing.

    Raises:
        ValueError: For an unknown kind or a missing package. Also if the server does not answer or refuses, or lacks the run to go on
            with.
    """
    check_tracker(kind, run)
    if kind == "none":
        return Tracker(run)
    if kind == "tensorboard":
        tracker = Tracker(run, TensorBoardSink(run, _flatten(parameters)))
        tracker.catch_up()
        return tracker
    uri = mlflow_sink.find_uri(run)
    with mlflow_sink.explain_start(uri), mlflow_sink.limit_waits(retries=1, seconds=10):
        tracker = Tracker(run, MlflowSink(run, uri, experiment, _flatten(parameters), _flatten(tags)))
        tracker.catch_up()
    return tracker


def _keep_finite(row: Mapping[str, float]) -> dict[str, float]:
    return {_clean_name(name): float(value) for name, value in row.items() if math.isfinite(value)}


def _clean_name(name: str) -> str:
    """Replaces characters that the name of a class may have and that of a metric may not."""
    return re.sub(r"[^\w.\- ]", "_", name)[:_NAME_LENGTH]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens values to texts by name; those of inner mappings become `outer.inner`."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            many = isinstance(value, Sequence) and not isinstance(value, str)
            flat[prefix + name] = ", ".join(map(str, value)) if many else str(value)
    return flat
