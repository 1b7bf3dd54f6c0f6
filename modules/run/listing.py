"""Finds the runs and models that a user's folder stands for: folds, the members of an ensemble, the best trial of a search."""

from collections.abc import Iterable
from pathlib import Path

from modules.data.documents import read_json
from modules.predict.ensemble import find_ensemble, list_members
from modules.run.folder import REMEDY, RunFolder
from modules.run.settings import MODES

# The storage of a search for settings, in its folder.
SEARCH_FILE = "search.jsonl"


def list_runs(runs: Iterable[Path]) -> list[Path]:
    """Lists the runs, and in place of a cross-validation its folds, mode by mode, and of a search its best trial.

    Raises:
        ValueError: If a search is not finished.
    """
    runs = [find_best_trial(run) for run in runs]
    return [part for run in runs for part in _find_folds(run) or [part for mode in MODES for part in _find_folds(run / mode)] or [run]]


def list_models(runs: Iterable[Path]) -> list[Path]:
    """Lists the models that predict together: the members of an ensemble, the folds of a cross-validation, and single runs.

    Raises:
        ValueError: If an ensemble was altered, or a search or a cross-validation of several modes has not chosen yet.
    """
    models: list[Path] = []
    for run in runs:
        if (ensemble := find_ensemble(run)) is not None:
            models += list_members(ensemble)
            continue
        modes = [] if _find_folds(run) else [run / mode for mode in MODES if _find_folds(run / mode)]
        if modes:
            names = " or ".join(map(str, modes))
            raise ValueError(f"Expected a finished cross-validation. Received: {run}, without a chosen mode. --resume it, or name {names}.")
        models += list_runs([run])
    return models


def find_newest_run(runs: Path = Path("runs")) -> Path:
    """Finds the run that finished last.

    Raises:
        FileNotFoundError: If none has finished.
    """
    finished = [run for run in map(RunFolder, sorted(runs.glob("*"))) if run.finished]
    if not finished:
        raise FileNotFoundError(f"Expected a finished run in {runs}/. Received: none. Train one, or name one with `--model`.")
    return max(finished, key=lambda run: run.summary.stat().st_mtime).path


def _find_folds(run: Path) -> list[Path]:
    """Finds the folds in a folder, in their order."""
    return sorted((path for path in run.glob("fold_*") if path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))


def find_best_trial(run: Path) -> Path:
    """Finds the best trial of a search; another folder stands for itself.

    Raises:
        ValueError: If the search is not finished.
    """
    if not (run / SEARCH_FILE).is_file():
        return run
    if not RunFolder(run).finished:
        raise ValueError(f"Expected a finished search. Received: {run}, which is not. Go on with it by --resume, or name a trial in it.")
    return run / str(read_json(RunFolder(run).summary, REMEDY)["best_trial"])
