"""Learns, from the validation cases and damaged copies of them, what a model's own doubt says about the Dice of a prediction.

Validation has often few cases, so little is learnt, and each number begins at a value that needs no learning: the Dice that the calibrated
probabilities expect. Good cases are those of the validation and some of the training, as they are. Their traits say what is usual. Damaged
copies show how the Dice falls where a scan is unusual.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from modules.data.case import Case, Predicted, read_case, require_label
from modules.data.documents import to_line
from modules.predict.bundle import ModelBundle, set_quality
from modules.predict.cases import PredictionOptions, count_windows, predict_cases, predict_read
from modules.predict.doubt import Doubt, fit_temperature
from modules.predict.engines import EngineError
from modules.predict.quality import CONFIDENCE, Quality, combine, expect_dice
from modules.predict.traits import KINDS, Traits, compare, from_logit, measure_traits, to_logit
from modules.run.budget import count_affordable, was_measured
from modules.run.damage import DAMAGES, damage
from modules.run.folder import RunFolder
from modules.run.plan import Plan
from modules.scoring import LEVELS, score_case

# The most predictions that are made to learn from, by dimensions: slices of one subject are alike and cost little, so there may be more.
MOST = {2: 400, 3: 100}
# The fewest predictions that are worth it, and the part of them that are good cases.
LEAST, GOOD_SHARE = 24, 0.4
# With fewer validation subjects than these, training cases stand beside them.
FEW_SUBJECTS = 3
# The limit of the distance lies beyond this part of the good cases, and by this factor.
_WITHIN, _MARGIN = 0.95, 1.1
# Good cases that are all alike still leave this much room, in spreads.
_LEAST_LIMIT = 1.0
# What needs no learning counts as much as so many cases: more for the slope, because cases of one kind hardly tell it from the intercept.
_PRIOR_CASES, _PRIOR_OF_SLOPE = 2.0, 20.0
# The log odds of the Dice fall so much with the logarithm of the distance, before anything is learnt.
_PRIOR_PENALTY = 1.0
# An interval is at least so wide in log odds, to either side: a Dice of 0.90 may be 0.88 or 0.92.
_LEAST_ERROR = 0.2
# Where no case tells how wrong a prediction is, an interval is this wide: a Dice of 0.90 may be 0.31 or 0.99.
_UNKNOWN_ERROR = 3.0
# A predicted Dice may fall so far in log odds below those of all good cases.
_LEAST_FALL = 0.25

log = logging.getLogger("mri")


class Observation(NamedTuple):
    """A predicted case of known Dice.

    Attributes:
        subject: Who was scanned.
        origin: "validate", "train" or "damaged".
        traits: Its traits.
        doubt: The doubt of its probabilities.
        dice: `(F,)` its true Dice; NaN where a class is in neither label nor prediction.
    """

    subject: str
    origin: str
    traits: Traits
    doubt: Doubt
    dice: np.ndarray


def learn_quality(
    run: RunFolder, bundle: ModelBundle, splits: Mapping[str, Sequence[Case]], wanted: str
) -> tuple[ModelBundle, dict[str, Any]]:
    """Learns how a run's saved bundle judges its predictions, and writes it into the bundle.

    Args:
        run: The run.
        bundle: The bundle as it predicts on this machine, with all that the validation decided before.
        splits: The cases by split.
        wanted: "learn", or "none" for a bundle that judges nothing.

    Returns:
        The bundle, and the entries of `summary.json` that say what was learnt.

    Raises:
        FileNotFoundError, ValueError: If a case cannot be read or computed, naming its file.
    """
    number = _count_predictions(run.read_plan(), bundle, splits["validate"]) if wanted == "learn" else 0
    quality = learn(observe(bundle, splits["validate"], splits["train"], number), bundle.class_names) if number else None
    set_quality(run.path, quality)
    bundle = replace(bundle, quality=quality)
    if quality is None:
        return bundle, {}
    least = ", ".join(f"{name} {dice:.3f}" for name, dice in zip(bundle.class_names[1:], quality.least_dice, strict=True))
    log.info(
        "judgement of predictions, learnt from %d validation case(s) and %d damaged copies: `check this one` below a predicted Dice of %s",
        quality.cases, quality.copies, least,
    )  # fmt: skip
    told = ("temperatures", "lines", "errors", "least_dice", "limit", "cases", "copies")
    return bundle, {"quality": {name: getattr(quality, name) for name in told}}


def _count_predictions(plan: Plan, bundle: ModelBundle, cases: Sequence[Case]) -> int:
    """Counts the predictions to learn from: as many as the plan affords; 0 where a promised time is too short for the fewest."""
    image, _ = read_case(cases[0], bundle)
    rank = image.array.ndim - 1
    affordable = min(MOST[rank], count_affordable(plan, count_windows(bundle, image), rank))
    if affordable >= LEAST or not was_measured(plan):
        return max(affordable, LEAST)
    log.info("no judgement of predictions: the time of this training does not pay for learning it")
    return 0


def observe(bundle: ModelBundle, validate: Sequence[Case], train: Sequence[Case], number: int, seed: int = 0) -> list[Observation]:
    """Predicts good cases and damaged copies.

    Args:
        bundle: The model.
        validate: The validation cases.
        train: The training cases.
        number: The most predictions.
        seed: The seed of the damages.

    Raises:
        FileNotFoundError, ValueError: If a case cannot be read or computed, naming its file.
    """
    good = max(1, round(GOOD_SHARE * number))
    own = _spread(validate, max(good // 2, good - len(train)))
    others = _spread(train, good - len(own))
    observed = [
        _observe(item, bundle, origin)
        for cases, origin in ((own, "validate"), (others, "train"))
        for item in predict_cases([bundle], cases, PredictionOptions(doubt=True))
    ]
    sources = own + (others if len({case.subject_id for case in own}) < FEW_SUBJECTS else [])
    observed += [_observe(item, bundle, "damaged") for item in _predict_damaged(bundle, sources, number - len(observed), seed)]
    return observed


def _spread(cases: Sequence[Case], number: int) -> list[Case]:
    """Takes so many cases from all parts of a list."""
    places = np.linspace(0, len(cases) - 1, min(number, len(cases))) if number > 0 and cases else []
    return [cases[int(place)] for place in places]


def _predict_damaged(bundle: ModelBundle, cases: Sequence[Case], number: int, seed: int) -> Iterator[Predicted]:
    """Predicts damaged copies: each kind of damage in turn, and of each kind one case after the other.

    A copy that the model cannot compute, as where it gives NaN for such intensities, teaches nothing. It must not end the run.
    """
    for place in range(number if cases else 0):
        turn, kind = divmod(place, len(DAMAGES))
        case = cases[(turn + kind) % len(cases)]
        image, label = read_case(case, bundle)
        image, label = damage(image, require_label(case, label), list(DAMAGES)[kind], np.random.default_rng((seed, place)))
        try:
            item = predict_read([bundle], case, image, PredictionOptions(doubt=True))
        except EngineError as error:
            log.info("a damaged copy is left out (%s): %s", list(DAMAGES)[kind], to_line(error))
            continue
        yield item._replace(label=label)


def _observe(item: Predicted, bundle: ModelBundle, origin: str) -> Observation:
    names, regions = bundle.class_names, bundle.regions
    label, level = require_label(item.case, item.label), LEVELS[item.prediction.ndim - 2]
    scores = score_case(label, item.prediction, names, level=level, case=item.case.case_id, regions=regions, overlaps_only=True)
    traits = measure_traits(item.image, item.prediction, item.doubt.expect_dice(), names, regions)
    return Observation(item.case.subject_id, origin, traits, item.doubt, np.array([score.dice for score in scores]))


def learn(observed: Sequence[Observation], class_names: Sequence[str]) -> Quality:
    """Learns to judge from good cases and damaged copies.

    Args:
        observed: The observations. Of the origin "validate" there must be one or more.
        class_names: Names of all classes, the background first.
    """
    validated = [one for one in observed if one.origin == "validate"]
    good = [one for one in observed if one.origin != "damaged"]
    number = len(class_names) - 1
    truth = np.sum([one.doubt.truth for one in validated if one.doubt.truth is not None], axis=0)
    temperatures = np.array([fit_temperature(truth[index]) for index in range(number)])
    usual = _Usual(good)
    limit = max(_LEAST_LIMIT, _MARGIN * _find_quantile(_measure_apart(good), _WITHIN))
    few = len({one.subject for one in validated}) < FEW_SUBJECTS
    rows = _Rows.collect([one for one in observed if few or one.origin != "train"], temperatures, usual, limit, class_names)
    errors, predicted = rows.cross_validate()
    least = [_find_least(predicted[rows.good & (rows.classes == index)]) for index in range(number)]
    copies = sum(one.origin == "damaged" for one in observed)
    return Quality(
        temperatures=tuple(temperatures.tolist()),
        traits=usual.describe(),
        thumbnail=tuple(tuple(round(value, 4) for value in channel) for channel in usual.thumbnail.tolist()),
        limit=round(limit, 4),
        lines=rows.fit().describe(),
        errors=errors,
        least_dice=tuple(least),
        cases=len(validated),
        copies=copies,
    )


def _measure_apart(good: Sequence[Observation]) -> np.ndarray:
    """Measures how unlike the others each good case is, as a new one will be compared with all; 1 for too few to tell."""
    if len(good) < FEW_SUBJECTS:
        return np.ones(1)
    return np.array([_Usual([*good[:place], *good[place + 1 :]]).measure(one) for place, one in enumerate(good)])


class _Usual:
    """The traits of good cases: median and spread of each, and the mean thumbnail."""

    def __init__(self, good: Sequence[Observation]) -> None:
        thumbnails = np.stack([one.traits.thumbnail for one in good])
        self.thumbnail, total = thumbnails.mean(axis=0), thumbnails.sum(axis=0)
        # Each is compared with the mean of the others; one alone with itself.
        seen = [
            {**one.traits.values, **compare(own, total - own if len(good) > 1 else own)} for one, own in zip(good, thumbnails, strict=True)
        ]
        self._values = {name: [values[name] for values in seen] for name in seen[0]}
        self._quality = _make_plain(self.describe(), self.thumbnail)

    def describe(self) -> dict[str, tuple[float, float]]:
        """Returns median and spread of each trait that any good case has. Few cases spread more than they show."""
        described = {}
        for name, values in self._values.items():
            known = np.array(values)[np.isfinite(values)]
            if known.size:
                shown = float(known.std(ddof=1)) * math.sqrt(1 + 1 / known.size) if known.size > 1 else 0.0
                described[name] = (round(float(np.median(known)), 5), round(max(shown, KINDS[name.partition("/")[0]].least), 5))
        return described

    def measure(self, one: Observation) -> float:
        """Measures how unlike the good cases an observation is."""
        return combine(self._quality.measure_spreads(one.traits))


def _make_plain(traits: dict[str, tuple[float, float]], thumbnail: np.ndarray) -> Quality:
    """Makes a judgement that knows what is usual, and nothing else."""
    return Quality((), traits, tuple(map(tuple, thumbnail.tolist())), 1.0, ((), ()), (0.0, 0.0), (), 0, 0)


class _Lines(NamedTuple):
    """The lines `(F + 2,)` of scans within the limit and of those beyond it: intercept of each class, slope and penalty."""

    within: np.ndarray
    beyond: np.ndarray

    def describe(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns both lines, rounded."""
        within, beyond = (tuple(round(value, 4) for value in line.tolist()) for line in self)
        return within, beyond


class _Rows(NamedTuple):
    """A row for each class of each case that has it: what predicts its Dice, and the Dice.

    Attributes:
        inputs: `(n, F + 2)` one for its class, log odds of the expected Dice, and less the logarithm of the distance beyond the limit.
        dice: `(n,)` log odds of the true Dice.
        classes: `(n,)` the index of the class, from 0.
        good: `(n,)` whether the case is not damaged.
        subjects: `(n,)` who was scanned.
    """

    inputs: np.ndarray
    dice: np.ndarray
    classes: np.ndarray
    good: np.ndarray
    subjects: np.ndarray

    @classmethod
    def collect(
        cls, observed: Sequence[Observation], temperatures: np.ndarray, usual: _Usual, limit: float, class_names: Sequence[str]
    ) -> "_Rows":
        """Collects the rows of all cases. A class that is not predicted has no expected Dice, and no row."""
        number, rows = len(temperatures), []
        for one in observed:
            expected, distance = expect_dice(one.traits, one.doubt, temperatures, class_names), usual.measure(one) / limit
            for index in np.flatnonzero(np.isfinite(expected) & np.isfinite(one.dice)):
                inputs = [*np.eye(number)[index], float(to_logit(expected[index])), -math.log(max(distance, 1.0))]
                rows.append((inputs, float(to_logit(one.dice[index])), int(index), one.origin != "damaged", one.subject))
        columns = list(zip(*rows, strict=True)) or [[], [], [], [], []]
        inputs = np.array(columns[0], float).reshape(-1, number + 2)
        return cls(inputs, np.array(columns[1], float), np.array(columns[2], int), np.array(columns[3], bool), np.array(columns[4]))

    @property
    def beyond(self) -> np.ndarray:
        """True for each row whose case lies beyond the limit, `(n,)`."""
        return self.inputs[:, -1] < 0

    def fit(self, kept: np.ndarray | None = None) -> _Lines:
        """Fits the lines by least squares, each drawn towards one that needs no learning: of scans beyond the limit, that within it.

        Args:
            kept: `(n,)` the rows to learn from; None for all.
        """
        kept = np.ones(len(self.dice), bool) if kept is None else kept
        nothing = np.zeros(self.inputs.shape[1])
        nothing[-2:] = 1.0, _PRIOR_PENALTY
        within = self._fit_line(kept & ~self.beyond, nothing)
        return _Lines(within, self._fit_line(kept & self.beyond, within))

    def _fit_line(self, kept: np.ndarray, prior: np.ndarray) -> np.ndarray:
        inputs = self.inputs[kept]
        left = self.dice[kept] - inputs @ prior
        strength = np.full(prior.size, _PRIOR_CASES)
        strength[-2] = _PRIOR_OF_SLOPE
        return prior + np.linalg.solve(inputs.T @ inputs + np.diag(strength), inputs.T @ left)

    def cross_validate(self) -> tuple[tuple[float, float], np.ndarray]:
        """Predicts each subject by a fit to the others.

        Returns:
            The half widths of the interval in log odds, within the limit and beyond it; and the predicted log odds of all rows. With
            one subject there are no others, so all are fitted and the interval is three times as wide. Of no rows it is unknown.
        """
        predicted, beyond = np.zeros(len(self.dice)), self.beyond
        subjects = np.unique(self.subjects)
        for subject in subjects:
            own = self.subjects == subject
            lines = self.fit(None if len(subjects) == 1 else ~own)
            predicted[own] = np.where(beyond[own], self.inputs[own] @ lines.beyond, self.inputs[own] @ lines.within)
        wider = 1 + 2 / len(subjects) if 0 < len(subjects) < 10 else 1.0
        missed = np.abs(self.dice - predicted)
        near, far = (
            max(_LEAST_ERROR, wider * _find_quantile(missed[part], CONFIDENCE)) if part.any() else _UNKNOWN_ERROR
            for part in (~beyond, beyond)
        )
        return (round(near, 4), round(max(near, far), 4)), predicted


def _find_quantile(values: np.ndarray, share: float) -> float:
    """Finds the value that a new one exceeds with a chance of about 1 - `share`; the greatest where they are too few to say."""
    return float(np.quantile(values, min(1.0, share * (len(values) + 1) / len(values))))


def _find_least(logits: np.ndarray) -> float:
    """Finds the predicted Dice that is lower than those of all good cases, from their log odds; 0 where there are none."""
    if not len(logits):
        return 0.0
    fall = max(_LEAST_FALL, float(logits.std()))
    return round(float(from_logit(logits.min() - fall)), 4)
