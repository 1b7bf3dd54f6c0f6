"""Combines a cross-validation of several modes: scores them and their pairs out of fold, chooses, and writes one ensemble."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations

from modules import score_tables, scoring
from modules.data import documents
from modules.data.case import Case
from modules.data.documents import check_fields, read_json
from modules.predict.bundle import ModelBundle
from modules.predict.cases import predict_cases
from modules.predict.ensemble import write_ensemble
from modules.predict.progress import PredictionProgress
from modules.run.choice import Candidate, choose, describe_candidates, format_candidates
from modules.run.folder import REMEDY, RunFolder, without_nan, write_json
from modules.run.settings import Settings

log = logging.getLogger("mri")


def combine(run: RunFolder, settings: Settings, tests: Sequence[Sequence[Case]], subjects: Mapping[str, str]) -> None:
    """Chooses the best mode or pair of modes, and writes the scores of the choice, its ensemble, a picture and the summary.

    Args:
        run: The folder of the cross-validation; all its folds are finished.
        settings: The settings of the cross-validation, with `modes`.
        tests: The test cases of each fold.
        subjects: `{case or volume identifier: subject}`.

    Raises:
        FileNotFoundError, ValueError: If a fold lacks its scores or its model, or a case cannot be read.
    """
    from modules import reports

    scored: dict[tuple[str, ...], list[list[scoring.Score]]] = {
        (mode,): [score_tables.read_scores(fold.scores) for fold in run.list_folds(settings.folds, mode)] for mode in settings.modes
    }
    for pair in combinations(settings.modes, 2):
        scored[pair] = [_score_pair(run, pair, fold, cases, settings.tolerance_mm) for fold, cases in enumerate(tests)]
    costs = {mode: _read_costs(run.list_folds(settings.folds, mode)) for mode in settings.modes}
    candidates = [
        Candidate(members, [score for fold in folds for score in fold], *(sum(part) for part in zip(*map(costs.get, members), strict=True)))
        for members, folds in scored.items()
    ]
    choice = choose(candidates, subjects)
    chosen = choice.chosen
    described = describe_candidates(candidates, choice)
    for line in format_candidates(described, chosen.name):
        log.info("%s", line)
    log.info("chosen: %s, %s", chosen.name, choice.reason)
    members = {f"{mode}_{fold.path.name}": fold.path for mode in chosen.members for fold in run.list_folds(settings.folds, mode)}
    write_ensemble(run.ensemble, members, chosen=chosen.name, reason=choice.reason, candidates=without_nan(described))
    score_tables.write_scores(run.scores, chosen.scores)
    title = f"{settings.dataset} by {chosen.name}: each subject tested once in {settings.folds} folds"
    tested = {f"fold {fold}": scores for fold, scores in enumerate(scored[chosen.members])}
    others = f"{settings.dataset}: modes and pairs on subjects that they never saw, difference to the chosen one with 95 % interval"
    reports.draw_candidates(run.figures / "candidates.png", choice.subjects, choice.differences, chosen=chosen.name, title=others)
    reports.draw_folds(run.figures / "folds.png", tested, subjects, title=title)
    intervals = score_tables.estimate_intervals(chosen.scores, subjects)
    write_json(run.summary, {"chosen": chosen.name, "reason": choice.reason, "candidates": described, "test": intervals})
    log.info("%d models in one folder that may be moved anywhere: %s", len(members), run.ensemble)


def _score_pair(
    run: RunFolder, pair: Sequence[str], fold: int, cases: Sequence[Case], tolerance_mm: Sequence[float]
) -> list[scoring.Score]:
    """Scores the averaged probabilities of two modes on the test cases of a fold; scores that are there already are read."""
    path = run.list_folds(fold + 1, "+".join(pair))[fold].scores
    if not path.is_file():
        bundles = [ModelBundle.load(run.list_folds(fold + 1, mode)[fold].path) for mode in pair]
        with PredictionProgress(len(cases), f"scoring {'+'.join(pair)}") as progress:
            predicted = progress.count(predict_cases(bundles, cases, progress.options()))
            scores = list(scoring.score_predictions(predicted, bundles[0].class_names, bundles[0].regions, tolerance_mm=tolerance_mm))
        path.parent.mkdir(parents=True, exist_ok=True)
        score_tables.write_scores(path, scores)
    return score_tables.read_scores(path)


def _read_costs(folds: Sequence[RunFolder]) -> tuple[int, float]:
    """Reads the weights of one fold's network, and the seconds of all trainings."""
    rules = {"seconds": documents.number(0)}
    seconds = 0.0
    for fold in folds:
        summary = read_json(fold.summary, REMEDY)
        check_fields(summary, rules, fold.summary, REMEDY, others=True)
        seconds += summary["seconds"]
    return int(folds[0].read_plan().costs.get("weights", 0)), seconds
