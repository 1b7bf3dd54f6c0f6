"""Reports: one HTML page of a run, or of a folder of predictions, for people who did not make it."""

import logging
from collections.abc import Mapping
from pathlib import Path

from modules.data.spec import DatasetSpec
from modules.packages import can_draw
from modules.run.folder import RunFolder
from modules.run.listing import find_best_trial, list_runs
from modules.run.subgroups import write_subgroups

log = logging.getLogger("mri")


def write_report(run: RunFolder, about: Mapping[str, str] = {}) -> Path:
    """Writes `report.html` into a finished run's folder. Nothing is predicted: the page shows what lies there.

    Args:
        run: The run, or a cross-validation.
        about: What the data set's publisher says, for a run that did not write it down.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the run has not finished.
        ValueError: If a file of it is not what a run wrote.
    """
    # Pictures take a second to import, for which `--help` need not wait.
    from modules.run.report_page import draw_report

    run.read_record()
    if not run.finished:
        raise FileNotFoundError(f"Expected a finished run in {run.path}. Received: no {run.summary.name} there. --resume it first.")
    draw_report(run, about)
    log.info("report: %s", run.report)
    return run.report


def write_reports(path: Path, datasets: Mapping[str, DatasetSpec], people: Path | None = None) -> None:
    """Writes the report of a finished run anew; of a cross-validation those of its folds too.

    Args:
        path: The run's folder; of a search its best trial is meant.
        datasets: The catalogue, for runs that did not write down who published their data.
        people: A table of people, by which the run is scored too, see `modules.run.subgroups`.

    Raises:
        FileNotFoundError: If there is no run, or it has not finished.
        ValueError: If a file of it is not what a run wrote, or the table does not fit.
    """
    path = find_best_trial(path)
    if people:
        write_subgroups(RunFolder(path), people)
    for run in map(RunFolder, dict.fromkeys([*list_runs([path]), path])):
        spec = datasets.get(run.read_settings().dataset)
        write_report(run, spec.tell_source() if spec else {})


def write_predictions_report(folder: Path) -> None:
    """Writes `report.html` into a folder that predict.py wrote.

    Nothing is written where no case is finished, or where the packages that draw are not installed.

    Raises:
        ValueError: If a file of it is not what predict.py wrote.
    """
    if not can_draw():
        return
    from modules.reports.predictions import write_predictions_page

    if page := write_predictions_page(folder):
        log.info("report: %s", page)
