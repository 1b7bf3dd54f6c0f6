"""Tells MLflow or TensorBoard how a run goes, beside what is written in its folder."""

import contextlib
import csv
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.volume import replace_file

TRACKERS = ("none", "mlflow", "tensorboard")

# Older servers refuse longer values of parameters and tags.
_PARAMETER_LENGTH, _TAG_LENGTH, _NAME_LENGTH = 500, 5000, 250

log = logging.getLogger("mri")


class Tracker:
    """Where a run is logged besides its folder; without a sink it does nothing.

    It is a context: left as usual it says FINISHED, by Ctrl-C KILLED, by any other error FAILED. Once it is open it never stops a
    training: the first failure is one warning, and what was missed is sent when the training has ended, if that is possible then.
    """

    def __init__(self, folder: Path, sink: "_Mlflow | _TensorBoard | None" = None) -> None:
        """Args: folder: the run's; sink: where to log."""
        self._folder = folder
        self._sink = sink
        self._last_epoch = 0
        self._behind = self._warned = False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def catch_up(self) -> None:
        """Logs the rows of the folder's `history.csv` that are not logged yet; raises whatever the sink does."""
        if self._sink is None:
            return
        self._last_epoch = self._sink.find_last_epoch()
        if (path := self._folder / "history.csv").is_file():
            with path.open(newline="") as file:
                rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            for row in rows:
                self._send(row)

    def log_row(self, row: Mapping[str, float]) -> None:
        """Logs an epoch, unless that was done before the run was resumed.

        Args:
            row: Of `history.csv`: its "epoch", from 1, and the metrics by name. NaN and infinite ones are left out.
        """
        if self._sink is not None and not self._behind:
            self._attempt(self._send, row)

    def log_summary(self, means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Logs the test scores as `test_<level>/<score>_<class>`, and the files that are in the folder by now.

        Args:
            means: As `scoring.summarise` gives them. NaN are left out.
        """
        if self._sink is not None:
            self._attempt(self._finish, means)

    def close(self, status: str = "FINISHED") -> None:
        """Ends it; afterwards it does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if self._sink is not None:
            self._attempt(self._sink.close, status)
            self._sink = None

    def _send(self, row: Mapping[str, float]) -> None:
        epoch = int(row["epoch"])
        if epoch > self._last_epoch:
            self._sink.log_epoch(_keep_finite(row), epoch)
            self._last_epoch = epoch

    def _finish(self, means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        if self._behind:
            self.catch_up()
            self._behind = False
        values = {
            f"test_{level}/{_clean(f'{score}_{name}')}": value
            for level, classes in means.items()
            for name, scores in classes.items()
            for score, value in scores.items()
        }
        self._sink.log_summary({name: value for name, value in values.items() if math.isfinite(value)}, self._last_epoch)

    def _attempt(self, call: Callable[[Any], None], value: Any) -> None:
        try:
            call(value)
        except Exception as error:  # Whatever a server or a disk does, the training matters more.
            self._behind = True
            if not self._warned:
                log.warning("tracking failed: %s; the training goes on without it", _describe(error))
            self._warned = True


def check_tracker(kind: str, folder: Path | None = None) -> None:
    """Finds out whether a tracker could be opened, before a run's folder is made and its data are read.

    Args:
        kind: One of `TRACKERS`.
        folder: Of a run that is resumed.

    Raises:
        ValueError: As `open_tracker`.
    """
    if kind not in TRACKERS:
        raise ValueError(f"Expected `track` in {TRACKERS}. Received: {kind!r}.")
    if kind == "mlflow":
        uri = _find_uri(folder)
        with _explain_start(uri), _limit_waits(retries=1, seconds=10):
            _connect(uri).search_experiments(max_results=1)


def open_tracker(kind: str, folder: Path, *, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, Any]) -> Tracker:
    """Begins to log a run, or goes on with it where its `tracking.json` names the one to go on with.

    MLflow logs to `MLFLOW_TRACKING_URI`, and without that to `mlflow.db` in the current folder, as MLflow itself does; user and
    password are MLflow's own environment variables too. TensorBoard's files go to `<folder>/tensorboard`: `train`, `validate`, `test`.

    Args:
        kind: One of `TRACKERS`.
        folder: The run's; its name is the run's name in MLflow, behind that of the whole for a fold.
        experiment: What the run is listed under, the name of the data set.
        parameters: All settings by name.
        tags: What else describes the run; mappings in it become `<name>.<key>`.

    Returns:
        The tracker, for a `with` statement; for "none" one that does nothing.

    Raises:
        ValueError: For an unknown kind, a missing package, a server that does not answer or refuses, and a run to go on with that is
            not there.
    """
    check_tracker(kind, folder)
    if kind == "none":
        return Tracker(folder)
    if kind == "tensorboard":
        tracker = Tracker(folder, _TensorBoard(folder, _flatten(parameters)))
        tracker.catch_up()
        return tracker
    uri = _find_uri(folder)
    with _explain_start(uri), _limit_waits(retries=1, seconds=10):
        tracker = Tracker(folder, _Mlflow(folder, uri, experiment, _flatten(parameters), _flatten(tags)))
        tracker.catch_up()
    return tracker


# ---------------------------------------------------------------------------------------------------------------- MLflow


class _NoRunError(ValueError):
    """The run to go on with is not there: says all itself."""


class _Mlflow:
    """A run at an MLflow server or in a local database."""

    def __init__(self, folder: Path, uri: str, experiment: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self._folder = folder
        self._client = _connect(uri)
        record = _read_record(folder)
        if "mlflow_run" in record:
            run = self._find_run(record, uri)
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(experiment)
            # Otherwise recent servers show it as one of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            number = found.experiment_id if found else self._client.create_experiment(experiment, tags=kind)
            run = self._client.create_run(number, run_name=_name_run(folder))
            with replace_file(folder / "tracking.json") as temporary:
                temporary.write_text(json.dumps({"mlflow_run": run.info.run_id, "uri": _hide_password(uri)}) + "\n")
        self._id = run.info.run_id
        # A run that is resumed has them, unless it was stopped before they were all there.
        new = [Param(name, value[:_PARAMETER_LENGTH]) for name, value in parameters.items() if name not in run.data.params]
        for chunk in _cut(new, 100):
            self._client.log_batch(self._id, params=chunk)
        self._client.log_batch(
            self._id, tags=[RunTag(name, value[:_TAG_LENGTH]) for name, value in tags.items() if name not in run.data.tags]
        )
        page = f"{_hide_password(uri).rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{self._id}"
        log.info("tracking: %s", page if uri.startswith("http") else f"MLflow run {self._id} in {_hide_password(uri)}")

    def find_last_epoch(self) -> int:
        with _limit_waits(retries=3, seconds=30):
            return int(self._client.get_run(self._id).data.metrics.get("epoch", 0))

    def log_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        self._log(values, epoch)

    def log_summary(self, values: Mapping[str, float], epoch: int) -> None:
        # What is not of an epoch is at step 0: MLflow draws it as bars.
        self._log(values, 0)
        # Files may be large: they get all the time that MLflow gives them.
        for path in (self._folder / "scores.csv", self._folder / "summary.json"):
            if path.is_file():
                self._client.log_artifact(self._id, str(path))
        for path in sorted((self._folder / "figures").glob("*.png")):
            self._client.log_artifact(self._id, str(path), "figures")
        if (self._folder / "bundle").is_dir():
            self._client.log_artifacts(self._id, str(self._folder / "bundle"), "bundle")

    def close(self, status: str) -> None:
        with _limit_waits(retries=3, seconds=30):
            self._client.set_terminated(self._id, status)

    def _find_run(self, record: Mapping[str, str], uri: str):
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(record["mlflow_run"])
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            raise _NoRunError(
                f"Expected the MLflow run {record['mlflow_run']} of {self._folder} at {_hide_password(uri)}. Received: no such run. "
                f"Set MLFLOW_TRACKING_URI to {record['uri']}, or remove {self._folder / 'tracking.json'} to log a new one."
            )
        return run

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        with _limit_waits(retries=3, seconds=30):
            for chunk in _cut([Metric(name, value, now, step) for name, value in values.items()], 1000):
                self._client.log_batch(self._id, metrics=chunk)


def _connect(uri: str):
    # Training data of hospitals: nothing leaves for anywhere but the server that was named, unless the user wants it to.
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _find_uri(folder: Path | None) -> str:
    record = _read_record(folder) if folder else {}
    return os.environ.get("MLFLOW_TRACKING_URI") or record.get("uri") or f"sqlite:///{Path('mlflow.db').absolute()}"


def _read_record(folder: Path) -> dict[str, str]:
    path = folder / "tracking.json"
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        return {name: str(record[name]) for name in ("mlflow_run", "uri")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"Expected an MLflow run in {path}. Received: {error!r}. Remove the file to log a new one.") from error


def _name_run(folder: Path) -> str:
    folder = folder.absolute()
    # A fold lies in the folder of all folds, which is a run of its own.
    return f"{folder.parent.name}/{folder.name}" if (folder.parent / "run.json").is_file() else folder.name


@contextlib.contextmanager
def _limit_waits(*, retries: int, seconds: int) -> Iterator[None]:
    """Keeps MLflow from waiting minutes for a server that is not there, unless the user has said how long to."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _explain_start(uri: str) -> Iterator[None]:
    """Turns whatever goes wrong with MLflow within into one ValueError that says what to do."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"Expected the package mlflow for --track mlflow. Received: {error}. Install it: pip install mlflow") from error
    except _NoRunError:
        raise
    except Exception as error:  # Of MLflow, of the database, of the network: each library has its own.
        remote = uri.startswith("http")
        status = getattr(error, "get_http_status_code", lambda: 0)()
        remedy = (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if status in (401, 403) else "Start it" if remote else "Mend it"
        )
        raise ValueError(
            f"Expected an MLflow {'server' if remote else 'store'} at {_hide_password(uri)}. Received: {_describe(error)}. "
            f"{remedy}, or use --track none."
        ) from error


# ----------------------------------------------------------------------------------------------------------- TensorBoard


class _TensorBoard:
    """Event files for TensorBoard, which is not needed to write them: TensorFlow has the writer, and each kind of data is a name."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        import tensorflow as tf

        self._tf = tf
        self._folder = folder
        self._events = folder / "tensorboard"
        self._last_epoch = max(self._read_epochs(), default=0)
        self._writers = {name: tf.summary.create_file_writer(str(self._events / name)) for name in ("train", "validate", "test")}
        if not self._last_epoch:
            lines = ["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in parameters.items())]
            self._write("train", "settings", "text", "\n".join(lines), 0)
        log.info("tracking: tensorboard --logdir %s", folder)

    def find_last_epoch(self) -> int:
        return self._last_epoch

    def log_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        # The curve of validation lies over that of training if both have one name.
        for name, value in values.items():
            split = "validate" if name.startswith("val_") else "train"
            if name != "epoch":
                self._write(split, name.removeprefix("val_"), "scalars", value, epoch)
        self._writers["validate"].flush()
        # Last: with it an epoch is whole.
        self._write("train", "epoch", "scalars", epoch, epoch)
        self._writers["train"].flush()
        self._last_epoch = epoch

    def log_summary(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._write("test", name, "scalars", value, epoch)
        for path in sorted((self._folder / "figures").glob("*.png")):
            picture = path.read_bytes()
            # Width and height stand behind the signature and the first chunk's head.
            size = [str(int.from_bytes(picture[start : start + 4], "big")) for start in (16, 20)]
            self._write("test", path.stem, "images", [*size, picture], epoch)
        self._writers["test"].flush()

    def close(self, status: str) -> None:
        self._write("train", "status", "text", status, self._last_epoch)
        for writer in self._writers.values():
            writer.close()

    def _write(self, split: str, name: str, plugin: str, value: Any, step: int) -> None:
        metadata = self._tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        metadata.data_class = {"scalars": 1, "text": 2, "images": 3}[plugin]
        tensor = self._tf.constant(value, self._tf.float32 if plugin == "scalars" else self._tf.string)
        with self._writers[split].as_default():
            self._tf.summary.write(name, tensor, step=step, metadata=metadata)

    def _read_epochs(self) -> Iterator[int]:
        for path in sorted((self._events / "train").glob("events.*")):
            # The last event of a process that was killed may be half a one.
            with contextlib.suppress(self._tf.errors.DataLossError):
                for record in self._tf.data.TFRecordDataset(str(path)):
                    event = self._tf.compat.v1.Event.FromString(record.numpy())
                    if any(value.tag == "epoch" for value in event.summary.value):
                        yield event.step


# --------------------------------------------------------------------------------------------------------------- helpers


def _keep_finite(row: Mapping[str, float]) -> dict[str, float]:
    return {_clean(name): float(value) for name, value in row.items() if math.isfinite(value)}


def _clean(name: str) -> str:
    """A class may be called anything, a metric may not."""
    return re.sub(r"[^\w.\- ]", "_", name)[:_NAME_LENGTH]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Plain texts by name, those of inner mappings as `outer.inner`."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            many = isinstance(value, Sequence) and not isinstance(value, str)
            flat[prefix + name] = ", ".join(map(str, value)) if many else str(value)
    return flat


def _cut(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _hide_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _describe(error: BaseException) -> str:
    """One short line: of what went wrong in the network the first cause, which all the libraries above it only wrap."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if any(isinstance(link, OSError) for link in chain):
        error = chain[-1]
    text = " ".join(str(error).split()) or type(error).__name__
    return _hide_password(text)[:300].rstrip(".")
