"""Logs a run to MLflow, at a server or in a local database."""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.data.documents import check_fields, read_json, text
from modules.data.files import replace_file
from modules.run.folder import RunFolder

# Older servers refuse longer values of parameters and tags.
_PARAMETER_LENGTH, _TAG_LENGTH = 500, 5000

log = logging.getLogger("mri")


class NoRunError(ValueError):
    """An error because MLflow lacks the run to go on with; its message needs no explanation added."""


class MlflowSink:
    """A run at an MLflow server or in a local database."""

    def __init__(self, run: RunFolder, uri: str, experiment: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self._run = run
        self._client = connect(uri)
        known = _read_tracking(run)
        if "mlflow_run" in known:
            entry = self._find_run(known, uri)
            self._client.update_run(entry.info.run_id, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(experiment)
            # Without this tag, recent servers show the experiment as one of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            number = found.experiment_id if found else self._client.create_experiment(experiment, tags=kind)
            entry = self._client.create_run(number, run_name=_name_run(run.path))
            with replace_file(run.tracking) as temporary:
                temporary.write_text(json.dumps({"mlflow_run": entry.info.run_id, "uri": _hide_password(uri)}) + "\n", encoding="utf-8")
        self._id = entry.info.run_id
        # A resumed run has its parameters and tags, unless it was stopped while they were sent.
        new = [Param(name, value[:_PARAMETER_LENGTH]) for name, value in parameters.items() if name not in entry.data.params]
        for chunk in _split(new, 100):
            self._client.log_batch(self._id, params=chunk)
        self._client.log_batch(
            self._id, tags=[RunTag(name, value[:_TAG_LENGTH]) for name, value in tags.items() if name not in entry.data.tags]
        )
        page = f"{_hide_password(uri).rstrip('/')}/#/experiments/{entry.info.experiment_id}/runs/{self._id}"
        log.info("tracking: %s", page if uri.startswith("http") else f"MLflow run {self._id} in {_hide_password(uri)}")

    def find_last_epoch(self) -> int:
        """Finds the last epoch that MLflow has; 0 for none."""
        with limit_waits(retries=3, seconds=30):
            return int(self._client.get_run(self._id).data.metrics.get("epoch", 0))

    def log_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the metrics of an epoch."""
        self._log_metrics(values, epoch)

    def log_summary(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the test scores, and the run's tables, pictures and bundle."""
        # The scores belong to no epoch. At step 0, MLflow draws them as bars.
        self._log_metrics(values, 0)
        # Files may be large, so we keep MLflow's own long time limits here.
        for path in (self._run.scores, self._run.summary):
            if path.is_file():
                self._client.log_artifact(self._id, str(path))
        for path in sorted(self._run.figures.glob("*.png")):
            self._client.log_artifact(self._id, str(path), "figures")
        if self._run.bundle.is_dir():
            self._client.log_artifacts(self._id, str(self._run.bundle), "bundle")

    def close(self, status: str) -> None:
        """Ends the run at MLflow with a status: FINISHED, FAILED or KILLED."""
        with limit_waits(retries=3, seconds=30):
            self._client.set_terminated(self._id, status)

    def _find_run(self, known: Mapping[str, str], uri: str):
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(known["mlflow_run"])
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            raise NoRunError(
                f"Expected the MLflow run {known['mlflow_run']} of {self._run.path} at {_hide_password(uri)}. Received: no such run. "
                f"Set MLFLOW_TRACKING_URI to {known['uri']}, or remove {self._run.tracking} to log a new one."
            )
        return run

    def _log_metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        with limit_waits(retries=3, seconds=30):
            for chunk in _split([Metric(name, value, now, step) for name, value in values.items()], 1000):
                self._client.log_batch(self._id, metrics=chunk)


def connect(uri: str):
    """Connects to an MLflow server or store."""
    # The data may come from hospitals, so nothing goes anywhere but to the named server unless the user allows it.
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


def find_uri(run: RunFolder | None) -> str:
    """Finds the address of the server or store: the environment's, else that of the run that is resumed, else the current folder's."""
    known = _read_tracking(run) if run else {}
    return os.environ.get("MLFLOW_TRACKING_URI") or known.get("uri") or f"sqlite:///{Path('mlflow.db').absolute()}"


def _read_tracking(run: RunFolder) -> dict[str, str]:
    path = run.tracking
    if not path.is_file():
        return {}
    remedy = "Remove the file to log a new one."
    content = read_json(path, remedy)
    check_fields(content, {"mlflow_run": text(), "uri": text(4_096)}, path, remedy, others=True)
    return {name: content[name] for name in ("mlflow_run", "uri")}


def _name_run(folder: Path) -> str:
    folder = folder.absolute()
    # A fold lies in the folder of the cross-validation, which is a run too.
    return folder.relative_to(RunFolder(folder).whole.parent).as_posix()


@contextlib.contextmanager
def limit_waits(*, retries: int, seconds: int) -> Generator[None, None, None]:
    """Keeps MLflow from waiting minutes for an absent server, unless the user has set how long to wait."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def explain_start(uri: str) -> Generator[None, None, None]:
    """Turns any error of MLflow within the block into one ValueError that says what to do."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"Expected the package mlflow for --track mlflow. Received: {error}. Install it: pip install mlflow") from error
    except NoRunError:
        raise
    except Exception as error:  # MLflow, the database and the network each raise errors of their own.
        remote = uri.startswith("http")
        status = getattr(error, "get_http_status_code", lambda: 0)()
        remedy = (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if status in (401, 403) else "Start it" if remote else "Mend it"
        )
        raise ValueError(
            f"Expected an MLflow {'server' if remote else 'store'} at {_hide_password(uri)}. Received: {describe_error(error)}. "
            f"{remedy}, or use --track none."
        ) from error


def _split(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _hide_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def describe_error(error: BaseException) -> str:
    """Describes the first cause of a network error, or any other error itself, in one short line."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if any(isinstance(link, OSError) for link in chain):
        error = chain[-1]
    text = " ".join(str(error).split()) or type(error).__name__
    return _hide_password(text)[:300].rstrip(".")
