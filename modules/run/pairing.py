"""Pairs the scores of several models on the same cases, subject by subject, and tests their differences. All functions are pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modules.score_tables import estimate_difference
from modules.scoring import Score

# The scores that are compared, and what a model deserves that rightly draws nothing where another draws something.
PERFECT = {"dice": 1.0, "nsd": 1.0, "hd95_mm": 0.0, "assd_mm": 0.0, "volume_error_ml": 0.0}
# Up to so many subjects the test is exact. Beyond, the normal distribution is as good.
MOST_EXACT = 200
# Sums of the same scores in another order may differ in later digits, which would make ties into ranks.
_DIGITS = 12
# {class: {subject: (score of each model)}}
Pairs = Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Difference:
    """The difference of one score of one class between a model and the baseline.

    Attributes:
        run: The name of the model.
        baseline: The name of the baseline.
        score: One of `PERFECT`.
        class_name: The class; "mean" is the mean over the classes that a subject has.
        subjects: Number of subjects.
        mean: Mean over subjects of the model.
        baseline_mean: Mean over subjects of the baseline.
        difference: Mean over subjects of the model's score less the baseline's.
        low: Lower end of its 95 % interval, see `modules.score_tables.estimate_difference`; NaN with fewer than two subjects.
        high: Upper end.
        better: Number of subjects for which the model is better than the baseline.
        worse: Number of subjects for which it is worse.
        p: Two-sided p of Wilcoxon's signed-rank test.
        p_holm: The same, corrected for all classes and models of this score; of "mean" for all models.
    """

    run: str
    baseline: str
    score: str
    class_name: str
    subjects: int
    mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    p_holm: float


def pair_scores(models: Sequence[Sequence[Score]], key: str) -> Pairs:
    """Pairs a score by class and subject; of several classes there is a "mean" too.

    A subject's score is the mean over its cases. A cell that no model knows is left out. Where only some draw a class that is not there,
    the others deserve `PERFECT`: their score alone would be NaN. Surfaces within other tolerances do not compare, and are left out.

    Args:
        models: Scores of each model: of the same cases and classes, see `modules.run.contestants.check_alike`.
        key: One of `PERFECT`.
    """
    tables = [{(score.case, score.class_name): score for score in scores} for scores in models]
    subjects = name_subjects(models)
    cells: dict[str, dict[str, list[tuple[float, ...]]]] = {}
    for cell in tables[0]:
        scores = [table[cell] for table in tables]
        values = [getattr(score, key) for score in scores]
        known = [value for value in values if not math.isnan(value)]
        # A class that is there has NaN only where nobody knows how long a voxel is.
        unknown = any(math.isnan(value) and score.voxels + score.reference_voxels for score, value in zip(scores, values, strict=True))
        if not known or unknown or (key == "nsd" and not _tolerate_alike(scores)):
            continue
        row = tuple(PERFECT[key] if math.isnan(value) else value for value in values)
        cells.setdefault(cell[1], {}).setdefault(subjects[cell[0]], []).append(row)
    pairs = {name: {subject: _average(rows) for subject, rows in sorted(of_class.items())} for name, of_class in cells.items()}
    if pairs and len({name for _, name in tables[0]}) > 1:
        everyone = sorted({subject for of_class in pairs.values() for subject in of_class})
        pairs["mean"] = {
            subject: _average([of_class[subject] for of_class in pairs.values() if subject in of_class]) for subject in everyone
        }
    return pairs


def name_subjects(models: Sequence[Sequence[Score]]) -> dict[str, str]:
    """Names the subject of each case: what any model's table says, else the case itself."""
    subjects = {score.case: score.case for scores in models for score in scores}
    return subjects | {score.case: score.subject for scores in models for score in scores if score.subject}


def count_nameless(models: Sequence[Sequence[Score]]) -> int:
    """Counts the cases of which no table names the subject."""
    everyone = {score.case for scores in models for score in scores}
    return len(everyone - {score.case for scores in models for score in scores if score.subject})


def find_differences(names: Sequence[str], pairs: Mapping[str, Pairs]) -> list[Difference]:
    """Compares each model with the first, class by class.

    Args:
        names: Names of the models.
        pairs: What `pair_scores` returned, by score. Scores that nobody knows are left out.
    """
    differences = []
    for key, classes in pairs.items():
        rows = [_compare(names, number, key, *of_class) for number in range(1, len(names)) for of_class in classes.items()]
        for of_mean in (False, True):
            family = [place for place, row in enumerate(rows) if (row.class_name == "mean") == of_mean]
            for place, p in zip(family, correct_p([rows[place].p for place in family]), strict=True):
                rows[place] = replace(rows[place], p_holm=p)
        differences += rows
    return differences


def find_p(differences: Sequence[float] | np.ndarray) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test (Biometrics Bulletin 1:80, 1945) that paired differences lie about 0.

    Differences of 0 are left out, and equal ones share the mean of their ranks. Without any difference p is 1. Up to `MOST_EXACT`
    differences p is exact: it is the share of all choices of signs that are at least as uneven.
    """
    # We import it here because it takes a second, for which `--help` need not wait.
    from scipy import stats

    values = np.round(np.asarray(differences, float), _DIGITS)
    values = values[values != 0]
    if len(values) > MOST_EXACT:
        return float(stats.wilcoxon(values, method="asymptotic").pvalue)
    # Twice the ranks are whole numbers, with ties too.
    ranks = np.rint(2 * stats.rankdata(np.abs(values))).astype(int)
    chances = np.ones(1)
    for rank in ranks:
        # Each sign is + or - with a chance of one half.
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    positive = int(ranks[values > 0].sum())
    smaller = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(chances[: smaller + 1].sum()))


def correct_p(p: Sequence[float]) -> list[float]:
    """Corrects the p of several tests by Holm's method (Scandinavian Journal of Statistics 6:65, 1979), in the order given."""
    corrected, highest = list(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def _compare(names: Sequence[str], number: int, key: str, class_name: str, of_class: Mapping[str, tuple[float, ...]]) -> Difference:
    """Compares the model of a number with the first, without the correction for other tests."""
    ours = {subject: values[number] for subject, values in of_class.items()}
    theirs = {subject: values[0] for subject, values in of_class.items()}
    gap = estimate_difference(ours, theirs)
    gains = np.round([ours[subject] - theirs[subject] for subject in ours], _DIGITS)
    more, less = int((gains > 0).sum()), int((gains < 0).sum())
    p = find_p(gains)
    return Difference(
        run=names[number],
        baseline=names[0],
        score=key,
        class_name=class_name,
        subjects=len(of_class),
        mean=float(np.mean(list(ours.values()))),
        baseline_mean=float(np.mean(list(theirs.values()))),
        difference=gap["mean"],
        low=gap["low"],
        high=gap["high"],
        better=more if PERFECT[key] else less,
        worse=less if PERFECT[key] else more,
        p=p,
        p_holm=p,
    )


def _average(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))


def _tolerate_alike(scores: Sequence[Score]) -> bool:
    return all(math.isclose(score.tolerance_mm, scores[0].tolerance_mm, rel_tol=1e-6) for score in scores)
