"""The folder of a run: its files by name, the writing of each as a whole, and the claim of the process that trains there."""

import contextlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import modules
from modules.data import documents
from modules.data.documents import check_fields, read_json
from modules.data.files import TEMPORARY, hold, name_failure, replace_file
from modules.predict.bundle import DESCRIPTION_FILE, copy_bundle, recover
from modules.run.plan import Plan
from modules.run.settings import Settings

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so nothing keeps two trainings out of one folder there.
    fcntl = None

log = logging.getLogger("mri")
REMEDY = "Start the run anew."


class RunFolder:
    """A run's folder. Only this class knows the names of its files.

    The folder is a context manager: inside, messages also go to its `log.txt`. Only the process that created or claimed the folder may
    train there. The operating system ends that claim with the process, however the process ends.

    Attributes:
        path: The folder's path.
    """

    def __init__(self, path: Path) -> None:
        """Takes the folder's path; the folder need not exist yet."""
        self.path = Path(path)
        # A run without a name of its own is named by its time, and by a number where another began in the same second.
        self._numbered = False
        self._lock: int | None = None
        self._handler: logging.Handler | None = None

    @classmethod
    def name(cls, settings: Settings, network: str = "") -> "RunFolder":
        """Names a new run below `--runs`: by `--name`, or by data set, network and time."""
        parts = (settings.dataset, network or settings.network, f"{datetime.now():%Y%m%d-%H%M%S}")
        run = cls(Path(settings.runs) / (settings.name or "-".join(filter(None, parts))))
        run._numbered = not settings.name
        return run

    # ------------------------------------------------------------------------------------------------------------------ files

    @property
    def record(self) -> Path:
        """The record of the run: settings, environment and the case ids of each split."""
        return self.path / "run.json"

    @property
    def plan(self) -> Path:
        """The plan, see `modules.run.plan`."""
        return self.path / "plan.json"

    @property
    def fingerprint(self) -> Path:
        """The measurements of the training cases."""
        return self.path / "fingerprint.json"

    @property
    def data(self) -> Path:
        """The data files with their splits and hashes."""
        return self.path / "data.json"

    @property
    def proof(self) -> Path:
        """The hash of the weights after the first steps."""
        return self.path / "proof.json"

    @property
    def history(self) -> Path:
        """The table with a row an epoch."""
        return self.path / "history.csv"

    @property
    def scores(self) -> Path:
        """The table with a row a test case and class."""
        return self.path / "scores.csv"

    @property
    def judged(self) -> Path:
        """The table of the test cases with their predicted Dice."""
        return self.path / "judged.csv"

    @property
    def summary(self) -> Path:
        """The test means with their intervals. It is written last, so a run that has it is finished."""
        return self.path / "summary.json"

    @property
    def subgroups(self) -> Path:
        """The test means of groups of people, where somebody gave a table of these."""
        return self.path / "subgroups.json"

    @property
    def report(self) -> Path:
        """The page for people that shows all this."""
        return self.path / "report.html"

    @property
    def tracking(self) -> Path:
        """The identity of the run at a tracking server."""
        return self.path / "tracking.json"

    @property
    def log(self) -> Path:
        """The messages of the run, with their times."""
        return self.path / "log.txt"

    @property
    def figures(self) -> Path:
        """The folder of the pictures."""
        return self.path / "figures"

    @property
    def bundle(self) -> Path:
        """The folder of the best model."""
        return self.path / "bundle"

    @property
    def init(self) -> Path:
        """The folder of the model that the run began from. The folds of a cross-validation share one."""
        shared = self.path.with_name("init")
        return shared if self.path.name.startswith("fold_") and (shared / DESCRIPTION_FILE).is_file() else self.path / "init"

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoint"

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def export(self) -> Path:
        """The folder of the model for other programs."""
        return self.path / "export"

    @property
    def workers(self) -> Path:
        """The folder of what workers are told, and of their logs."""
        return self.path / "workers"

    @property
    def ensemble(self) -> Path:
        """The folder of the models that a cross-validation chose."""
        return self.path / "ensemble"

    @property
    def whole(self) -> Path:
        """The run to resume: the cross-validation that this run is a fold of, or the run itself."""
        return next((path for path in list(self.path.parents)[:2] if RunFolder(path).record.is_file()), self.path)

    def list_folds(self, number: int, name: str = "") -> list["RunFolder"]:
        """Lists the folders of the folds of a cross-validation, or of its mode or pair of modes `name`; they need not exist."""
        return [RunFolder(self.path / name / f"fold_{fold}") for fold in range(number)]

    # --------------------------------------------------------------------------------------------------- creation and claim

    def check_new(self) -> None:
        """Checks that the run can be made, before any data is read.

        Raises:
            ValueError: If a run of that name exists.
            OSError: If its folder cannot be made.
        """
        if self.path.exists() and not self._numbered:
            raise self._taken()
        place = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            received = f"{place}, {'where nothing can be written' if place.is_dir() else 'which is none'}"
            raise OSError(f"Expected a folder to write runs to. Received: {received}. Choose `--runs`.")

    def _taken(self) -> ValueError:
        return ValueError(
            f"Expected a new name for the run. Received: {self.path}, which exists. Choose `--name`, or `--resume {self.path}`."
        )

    def create(
        self,
        settings: Settings,
        plan: Plan | None = None,
        data: Any = None,
        fingerprint: Any = None,
        parts: Mapping[str, Path] = {},
        **details: Any,
    ) -> None:
        """Makes the folder with all that a resume needs, at once or not at all, and claims it.

        A run named by its time takes the next free number if its name is taken. `path` then ends in -2, -3 and so on.

        Args:
            settings: The settings of the run.
            plan: The plan of the run; a cross-validation has none of its own.
            data: The data files, see `modules.run.proof`.
            fingerprint: The measurements of the training cases, see `modules.data.fingerprint`.
            parts: Finished runs to copy into the folder, by their place there.
            **details: Further entries of `run.json`.

        Raises:
            ValueError: If a run of that name exists.
            OSError: If the folder cannot be made.
        """
        self.check_new()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._make_draft()
        try:
            draft.path.chmod(0o755)  # `mkdtemp` keeps other users out.
            draft.figures.mkdir()
            write_json(draft.record, {"config": settings.to_json(), "version": modules.__version__, **details})
            if plan is not None:
                write_json(draft.plan, plan.to_json())
            if data is not None:
                write_json(draft.data, data)
            if fingerprint is not None:
                write_json(draft.fingerprint, fingerprint)
            for place, part in parts.items():
                shutil.copytree(part, draft.path / place, ignore=shutil.ignore_patterns(".lock", f"{TEMPORARY}*"))
            source = RunFolder(next(iter(parts.values()))).init if parts else Path(settings.init)
            if settings.init and self.init.parent == self.path and (source.is_dir() or not parts):
                copy_bundle(source, draft.init)
            self._take_name(draft)
            self._lock, draft._lock = draft._lock, None
        finally:
            draft.release()
            shutil.rmtree(draft.path, ignore_errors=True)

    def _make_draft(self) -> "RunFolder":
        """Makes a claimed folder of a temporary name, and removes those that killed commands left beside it."""
        with name_failure(self.path), hold(self.path.parent) as held:
            for leftover in self.path.parent.glob(f"{TEMPORARY}*") if held else ():
                with contextlib.suppress(OSError):
                    if not (leftover / ".lock").is_file():
                        leftover.rmdir()
                        continue
                    with hold(leftover / ".lock", wait=False) as free:
                        if free:
                            shutil.rmtree(leftover)
            draft = RunFolder(Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{self.path.name[:40]}-", dir=self.path.parent)))
            draft.claim()
        return draft

    def _take_name(self, draft: "RunFolder") -> None:
        first = self.path
        for number in itertools.count(2):
            try:
                # A rename onto an empty folder succeeds. Ours is not empty, so one of two runs that begin at once fails here.
                if not self.path.exists():
                    draft.path.rename(self.path)
                    return
            except OSError:
                if not self.path.exists():
                    raise
            if not self._numbered:
                raise self._taken()
            self.path = first.with_name(f"{first.name}-{number}")

    def claim(self) -> None:
        """Claims the folder for this process.

        Raises:
            ValueError: If another process trains there, or the run is finished.
        """
        self._check_unfinished()
        self._take_lock()
        try:
            # The process that trained here may have finished the run just before it let go of the lock.
            self._check_unfinished()
        except ValueError:
            self.release()
            raise

    def _check_unfinished(self) -> None:
        if self.finished:
            raise ValueError(f"Expected an interrupted run. Received: {self.path}, which is finished. Start a new one.")

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"Expected a run that nobody trains. Received: {self.path}, which another process trains. Wait for it."
            ) from error
        except OSError as error:
            # Some network file systems know no locks.
            log.warning("no lock on %s (%s): nothing keeps a second training out of this run", self.path, error)
        self._lock = lock

    def release(self) -> None:
        """Ends the claim."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sweep(self) -> None:
        """Removes the temporary files that a killed command left behind, and nothing else. A bundle that was moved aside comes back."""
        recover(self.bundle)
        for path in list(self.path.rglob(f"{TEMPORARY}*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def __enter__(self) -> "RunFolder":
        if self._lock is not None or fcntl is None:
            # A file name that is not UTF-8 is told with escapes, so that the log stays a text.
            self._handler = _RunLog(self.log, encoding="utf-8", errors="backslashreplace")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            log.addHandler(self._handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._handler is not None:
            if kind is not None and issubclass(kind, Exception):
                # The console shows one line of the error, and the log shows the traceback. On a full disk the first error is reported.
                with contextlib.suppress(OSError):
                    log.debug("stopped by an error", exc_info=error)
            log.removeHandler(self._handler)
            with contextlib.suppress(OSError):
                self._handler.close()
            self._handler = None
        self.release()

    # ---------------------------------------------------------------------------------------------------------------- reading

    @property
    def finished(self) -> bool:
        """True if the run was scored."""
        return self.summary.is_file()

    def read_record(self) -> dict[str, Any]:
        """Reads `run.json`.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not what a run wrote.
        """
        if not self.record.is_file():
            raise FileNotFoundError(f"Expected a run in {self.path}. Received: no {self.record.name} there. Give a folder under runs/.")
        record = read_json(self.record, REMEDY)
        check_fields(record, {"config": documents.anything()}, self.record, REMEDY, others=True)
        return record

    def read_settings(self) -> Settings:
        """Reads the settings of the run; raises as `read_record`."""
        return Settings.from_json(self.read_record()["config"], str(self.record))

    def read_plan(self) -> Plan:
        """Reads the plan of the run; raises ValueError if it is not there, or not what a run wrote."""
        if not self.plan.is_file():
            raise ValueError(
                f"Expected the plan of a run in {self.plan}. Received: none, as of a run that version 0.1 began. Start the run anew."
            )
        return Plan.from_json(read_json(self.plan, REMEDY), str(self.plan))


class _RunLog(logging.FileHandler):
    """The log of a run. One that cannot be written ends the run, as any other of its files does."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raises OSError in the place of a traceback on the console."""
        with name_failure(Path(self.baseFilename)):
            raise


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by way of a temporary name; NaN becomes null."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(without_nan(content), indent=2, default=str) + "\n", encoding="utf-8")


def without_nan(content: Any) -> Any:
    """Replaces NaN by None, at any depth of dicts and lists, because JSON has no NaN."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and content != content else content
