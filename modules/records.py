"""The folder of a run: made whole, found again, and the JSON files in it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modules.volume import replace_file


def make_run_folder(folder: Path, **records: Any) -> None:
    """Creates a run's folder with a `<name>.json` of each record, all at once: without them it could not be resumed.

    Raises:
        ValueError: If a run of that name exists.
    """
    if folder.exists():
        raise ValueError(f"Expected a new name for the run. Received: {folder}, which exists. Choose `--name`, or `--resume {folder}`.")
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "figures").mkdir(parents=True)
    for name, record in records.items():
        write_json(temporary / f"{name}.json", record)
    temporary.rename(folder)


def sweep(folder: Path) -> None:
    """Removes what a killed run left half written under temporary names; a bundle that it had just moved aside is kept."""
    for path in list(folder.rglob(".*")):
        if path.name != ".bundle.old":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def list_runs(runs: Iterable[Path]) -> list[Path]:
    """The runs themselves, or their folds where they are cross-validations."""
    return [part for run in runs for part in sorted(run.glob("fold_*"), key=lambda path: int(path.name[5:])) or [run]]


def load_run(folder: Path) -> dict[str, Any]:
    """Reads a run's `run.json`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not what a run wrote.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"Expected a run in {folder}. Received: no run.json there. Give a folder under runs/.")
    record = read_json(path)
    if not isinstance(record, dict) or "config" not in record:
        raise ValueError(f"Expected what a run wrote in {path}. Received: no settings. Start the run anew.")
    return record


def read_json(path: Path) -> Any:
    """Reads JSON that a run wrote; raises ValueError naming the file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected what a run wrote in {path}. Received: {error!r}. Start the run anew.") from error


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run that finished last.

    Raises:
        FileNotFoundError: If none has finished.
    """
    finished = sorted(runs.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise FileNotFoundError(f"Expected a finished run in {runs}/. Received: none. Train one, or name one with `--model`.")
    return finished[-1].parent


def write_json(path: Path, record: Any) -> None:
    """Writes JSON by way of a temporary name; NaN becomes null."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(without_nan(record), indent=2, default=str) + "\n")


def without_nan(record: Any) -> Any:
    """Replaces NaN by None, at any depth of dicts and lists: JSON has no NaN."""
    if isinstance(record, dict):
        return {key: without_nan(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [without_nan(value) for value in record]
    return None if isinstance(record, float) and record != record else record
