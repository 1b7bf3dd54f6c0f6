"""A model's judgement of its own prediction: how unlike the good cases one is, the Dice to expect, and whether a person should look.

`modules.run.learn_quality` learns it, a bundle stores it, and a prediction applies it. It never sees a true label here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from modules.predict.doubt import Doubt
from modules.predict.traits import LEAST_SHARE, Traits, compare, describe_trait, from_logit, name_group, to_logit

# A single trait counts for so many spreads at most, so that one that was nearly constant does not decide alone.
MOST_SPREADS = 8.0
# Traits that lie so far out are named as reasons.
TELLING_SPREADS = 3.0
MOST_REASONS = 3
# The part of cases whose true Dice the interval is made to hold.
CONFIDENCE = 0.9


class Judgement(NamedTuple):
    """The judgement of one predicted case.

    Attributes:
        dice: `(F,)` the predicted Dice of each class but the background; NaN where nothing is predicted of it.
        low: `(F,)` lower end of its interval.
        high: `(F,)` upper end.
        distance: How unlike good cases it is; from 1 on more than they are among themselves.
        reasons: Why somebody should look, in words; none where nobody needs to.
    """

    dice: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distance: float
    reasons: tuple[str, ...]

    @property
    def check(self) -> bool:
        """True if somebody should look at the case."""
        return bool(self.reasons)


@dataclass(frozen=True)
class Quality:
    """The judgement that a model learnt.

    Attributes:
        temperatures: The temperature of each class but the background, see `modules.predict.doubt.calibrate`.
        traits: Median and spread of each trait over the good cases, by name, with those of `modules.predict.traits.compare`.
        thumbnail: `(C, T)` mean thumbnail of the good cases.
        limit: The distance of the good cases that no more than about one in twenty exceeds.
        lines: Intercept of each class, slope and penalty, of scans within the limit and of those beyond it; see `predict_logits`.
        errors: Half widths of the interval in log odds, within the limit and beyond it.
        least_dice: The predicted Dice of each class below which somebody should look; 0 where no good case has the class.
        cases: Number of validation cases that it was learnt from.
        copies: Number of their damaged copies.
    """

    temperatures: tuple[float, ...]
    traits: Mapping[str, tuple[float, float]]
    thumbnail: tuple[tuple[float, ...], ...]
    limit: float
    lines: tuple[tuple[float, ...], tuple[float, ...]]
    errors: tuple[float, float]
    least_dice: tuple[float, ...]
    cases: int
    copies: int

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Quality":
        """Makes it of plain values that were checked before."""
        made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for name in ("lines", "thumbnail"):
            made[name] = tuple(map(tuple, values[name]))
        made["traits"] = {name: (centre, spread) for name, (centre, spread) in values["traits"].items()}
        return cls(**made)

    def judge(self, traits: Traits, doubt: Doubt, class_names: Sequence[str], least_dice: float | None = None) -> Judgement:
        """Judges a predicted case.

        Args:
            traits: Its traits, see `modules.predict.traits.measure_traits`.
            doubt: The doubt of its probabilities.
            class_names: Names of all classes, the background first.
            least_dice: The Dice below which somebody should look, in place of the learnt ones.
        """
        spreads = self.measure_spreads(traits)
        distance = combine(spreads) / self.limit
        beyond = int(distance > 1)
        logits = predict_logits(expect_dice(traits, doubt, self.temperatures, class_names), distance, self.lines[beyond])
        error = self.errors[beyond]
        dice, low, high = (from_logit(logits + shift) for shift in (0.0, -error, error))
        # A Dice of 0 counted as the least share when the error was measured, and that of 1 as the most.
        low, high = np.where(low <= LEAST_SHARE, 0.0, low), np.where(high >= 1 - LEAST_SHARE, 1.0, high)
        reasons = _name_far(spreads) if distance > 1 else []
        # A missed class has no predicted Dice, and few traits that could be unusual: its volume alone tells.
        missed = [name for name in class_names[1:] if _is_absent(traits, name) and spreads.get(f"volume/{name}#", 0) <= -TELLING_SPREADS]
        reasons += [f"no {name} found, which is rare" for name in missed]
        limits = self.least_dice if least_dice is None else [least_dice] * len(dice)
        for name, value, least in zip(class_names[1:], dice, limits, strict=True):
            if value < least:
                reasons.append(f"predicted Dice of {name} {value:.3f}, below {least:.3f}")
        return Judgement(dice, low, high, distance, tuple(reasons))

    def measure_spreads(self, traits: Traits) -> dict[str, float]:
        """Measures how many spreads each trait lies above the median of the good cases, or below it (-); a trait that is not known 0."""
        values = {**traits.values, **compare(traits.thumbnail, np.array(self.thumbnail))}
        spreads = {}
        for name, (centre, spread) in self.traits.items():
            value = values.get(name, math.nan)
            spreads[name] = float(np.clip((value - centre) / spread, -MOST_SPREADS, MOST_SPREADS)) if math.isfinite(value) else 0.0
        return spreads


def expect_dice(traits: Traits, doubt: Doubt, temperatures: Sequence[float] | np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Returns `Doubt.expect_dice` `(F,)`, but NaN also for a class that postprocessing removed altogether."""
    absent = [_is_absent(traits, name) for name in class_names[1:]]
    return np.where(absent, math.nan, doubt.expect_dice(np.array(temperatures)))


def _is_absent(traits: Traits, name: str) -> bool:
    return math.isnan(traits.values.get(f"pieces/{name}#", 1.0))


def combine(spreads: Mapping[str, float]) -> float:
    """Combines spreads to a distance: the root of their mean square within the image and within each class, of which the largest counts."""
    groups: dict[str, list[float]] = {}
    for name, spread in spreads.items():
        groups.setdefault(name_group(name), []).append(spread)
    return max((math.sqrt(float(np.mean(np.square(group)))) for group in groups.values()), default=0.0)


def predict_logits(expected: np.ndarray, distance: float, line: Sequence[float]) -> np.ndarray:
    """Predicts the log odds of the Dice of each class.

    They are the intercept of the class, and the slope times the log odds of the expected Dice, less the penalty times the logarithm of the
    distance where that is above 1.

    Args:
        expected: `(F,)` the expected Dice, see `modules.predict.doubt.Doubt`.
        distance: How unlike good cases the scan is.
        line: Intercept of each class, slope and penalty.
    """
    *intercepts, slope, penalty = line
    return np.array(intercepts) + slope * to_logit(expected) - penalty * math.log(max(distance, 1.0))


def _name_far(spreads: Mapping[str, float]) -> list[str]:
    """Names what lies farthest from the good cases, each thing once."""
    ranked = sorted(spreads, key=lambda name: -abs(spreads[name]))
    telling = [name for name in ranked if abs(spreads[name]) >= TELLING_SPREADS] or ranked[:1]
    return [f"unusual {text}" for text in list(dict.fromkeys(map(describe_trait, telling)))[:MOST_REASONS]]


def judge_together(judgements: Sequence[Judgement]) -> Judgement | None:
    """Joins the judgements that the models of an ensemble make of their common prediction: means, and a look where most of them want it.

    Returns:
        None where no model has learnt to judge.
    """
    if len(judgements) < 2:
        return judgements[0] if judgements else None
    wanting = [one for one in judgements if one.check]
    reasons = tuple(dict.fromkeys(reason for one in wanting for reason in one.reasons))[:MOST_REASONS]
    dice, low, high = (np.mean([getattr(one, name) for one in judgements], axis=0) for name in ("dice", "low", "high"))
    distance = float(np.median([one.distance for one in judgements]))
    return Judgement(dice, low, high, distance, reasons if 2 * len(wanting) >= len(judgements) else ())
