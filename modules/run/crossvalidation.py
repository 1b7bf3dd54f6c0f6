"""Pools the scores of a cross-validation. Each subject was tested by a model that never saw it."""

import logging
from collections.abc import Mapping

from modules import score_tables
from modules.run.folder import RunFolder, write_json
from modules.run.settings import Settings

log = logging.getLogger("mri")


def pool_folds(run: RunFolder, settings: Settings, subjects: Mapping[str, str]) -> None:
    """Writes the pooled scores of all folds, their intervals over subjects, and a picture.

    Args:
        run: The folder of the cross-validation; all its folds are finished.
        settings: The settings of the cross-validation.
        subjects: `{case or volume identifier: subject}`.

    Raises:
        FileNotFoundError, ValueError: If a fold has no scores, or two folds tested the same case.
    """
    from modules import reports

    tested = {f"fold {number}": score_tables.read_scores(fold.scores) for number, fold in enumerate(run.list_folds(settings.folds))}
    scores = score_tables.pool_scores(tested)
    score_tables.write_scores(run.scores, scores)
    title = f"{settings.dataset}: each subject tested once in {settings.folds} folds"
    picture = run.figures / "folds.png"
    reports.draw_folds(picture, tested, subjects, title=title)
    intervals = score_tables.estimate_intervals(scores, subjects)
    for line in score_tables.format_intervals(intervals):
        log.info("%s", line)
    write_json(run.summary, {"test": intervals})
    log.info("picture: %s\nnext: python predict.py IMAGE --model %s", picture, run.path)
