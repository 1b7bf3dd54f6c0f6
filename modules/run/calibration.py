"""Compares on the test cases what a model says of its errors with its errors: probabilities with frequencies, predicted with true Dice."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modules.data.case import Predicted
from modules.data.files import replace_file
from modules.predict.bundle import ModelBundle
from modules.predict.doubt import calibrate
from modules.predict.judge import judge_case
from modules.predict.quality import CONFIDENCE, Judgement
from modules.scoring import Score

BINS = 10
# A voxel whose probability lies between these, as the network gave it, is contested. The sure others would hide what happens to these.
CONTESTED = (0.01, 0.99)
# Of fewer cases a rank correlation says nothing.
_LEAST_RANKED = 4
# Programs take all but the first two columns for numbers.
COLUMNS = ("case", "class", "dice", "predicted", "low", "high", "distance", "check")


class Judged(NamedTuple):
    """One class of a judged test case; the names are those of `COLUMNS`."""

    case: str
    class_name: str
    dice: float
    predicted: float
    low: float
    high: float
    distance: float
    check: int


class Calibration:
    """Gathers the doubt and the judgements of the test cases while they are scored."""

    def __init__(self, bundle: ModelBundle) -> None:
        """Takes the model."""
        self._bundle = bundle
        self._truth = np.zeros(1)
        self._judgements: dict[str, Judgement] = {}

    def watch(self, predicted: Iterable[Predicted]) -> Iterator[Predicted]:
        """Passes predicted cases on, and keeps of each a few numbers."""
        for item in predicted:
            if item.doubt is not None and item.doubt.truth is not None:
                self._truth = self._truth + item.doubt.truth
            if judgement := judge_case(item, [self._bundle]):
                self._judgements[item.case.case_id] = judgement
            yield item

    def list_judged(self, scores: Iterable[Score]) -> list[Judged]:
        """Lists the judged classes of all cases beside their true Dice. Scans that slices make up are no cases."""
        places = {name: place for place, name in enumerate(self._bundle.class_names[1:])}
        judged = []
        for score in scores:
            one, place = self._judgements.get(score.case), places[score.class_name]
            if one is not None:
                numbers = (float(part[place]) for part in (one.dice, one.low, one.high))
                judged.append(Judged(score.case, score.class_name, score.dice, *numbers, one.distance, int(one.check)))
        return judged

    def summarise(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """Summarises both comparisons as plain values for `summary.json`."""
        names, quality = self._bundle.class_names[1:], self._bundle.quality
        if self._truth.ndim != 3:
            return {}
        temperatures = quality.temperatures if quality else (1.0,) * len(names)
        classes = {
            name: {
                "temperature": temperature,
                "ece": measure_error(truth, temperature),
                "ece_contested": measure_error(truth, temperature, *CONTESTED),
                "ece_contested_before": measure_error(truth, 1.0, *CONTESTED),
                "bins": list_bins(truth, temperature),
            }
            for name, truth, temperature in zip(names, self._truth, temperatures, strict=True)
        }
        return {"classes": classes, "predicted": summarise_judged(judged, names) if judged else None}


def list_bins(truth: np.ndarray, temperature: float) -> list[dict[str, float]]:
    """Lists the bins of a reliability diagram: ten equal parts of the probability, those that hold a voxel.

    Args:
        truth: `(2, 128)` as `modules.predict.doubt.Doubt.truth` has it of a class.
        temperature: The temperature of the class.

    Returns:
        Of each bin the mean `probability`, the `frequency` of the class, and the number of `voxels`.
    """
    shares = calibrate(temperature)[0]
    places, bins = np.minimum((BINS * shares).astype(int), BINS - 1), []
    for place in range(BINS):
        own = truth * (places == place)
        if voxels := float(own.sum()):
            bins.append({"probability": float((own * shares).sum()) / voxels, "frequency": float(own[1].sum()) / voxels, "voxels": voxels})
    return bins


def measure_error(truth: np.ndarray, temperature: float, low: float = 0.0, high: float = 1.0) -> float:
    """Measures the expected calibration error (Naeini et al., AAAI 2015).

    It is the mean distance of probability and frequency over the bins of `list_bins`, each weighed by its voxels; NaN without a voxel. The
    voxels are those whose probability lies from `low` to `high` before any temperature, so that errors of several temperatures compare.
    """
    shares = calibrate(1.0)[0]
    bins = list_bins(truth * ((shares >= low) & (shares <= high)), temperature)
    voxels = sum(one["voxels"] for one in bins)
    return sum(one["voxels"] * abs(one["probability"] - one["frequency"]) for one in bins) / voxels if voxels else math.nan


def summarise_judged(judged: Sequence[Judged], names: Sequence[str]) -> dict[str, Any]:
    """Compares predicted and true Dice, class by class. Cases that lack one of the two are left out.

    Returns:
        `classes`, of each: `cases`; `spearman`, the rank correlation, NaN of few cases; `mean_error`, of absolute differences; and
        `within`, the share of true Dice inside the interval. Beside them `cases` and how many of these are to be checked.
    """
    classes = {}
    for name in names:
        own = [one for one in judged if one.class_name == name and math.isfinite(one.dice) and math.isfinite(one.predicted)]
        true, predicted = (np.array([getattr(one, key) for one in own]) for key in ("dice", "predicted"))
        classes[name] = {
            "cases": len(own),
            "spearman": correlate_ranks(true, predicted),
            "mean_error": float(np.abs(true - predicted).mean()) if own else math.nan,
            "within": float(np.mean([one.low <= one.dice <= one.high for one in own])) if own else math.nan,
        }
    checked = {one.case: one.check for one in judged}
    return {"classes": classes, "cases": len(checked), "checked": sum(checked.values())}


def correlate_ranks(one: np.ndarray, other: np.ndarray) -> float:
    """Returns Spearman's correlation of two rows of numbers; NaN for fewer than four, or where one of them does not vary."""
    if len(one) < _LEAST_RANKED or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    ranks = [_rank(row) for row in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


def _rank(values: np.ndarray) -> np.ndarray:
    """Ranks values; equal ones share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def write_judged(path: Path, judged: Iterable[Judged]) -> None:
    """Writes the table of judged test cases."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(judged)


def describe_calibration(calibration: Mapping[str, Any]) -> list[str]:
    """Describes in lines how probabilities and predicted Dice compare with the truth."""
    lines = []
    for name, one in calibration.get("classes", {}).items():
        if one["ece_contested"] == one["ece_contested"]:
            lines.append(
                f"calibration of {name}: contested voxels are wrong about their probability by {one['ece_contested']:.3f} on average "
                f"({one['ece_contested_before']:.3f} before temperature {one['temperature']:.2f})"
            )
    if predicted := calibration.get("predicted"):
        for name, one in predicted["classes"].items():
            if one["cases"]:
                lines.append(
                    f"predicted Dice of {name}: wrong by {one['mean_error']:.3f} on average, {one['within']:.0%} of {one['cases']} case(s) "
                    f"within its {CONFIDENCE:.0%} interval"
                )
        lines.append(f"check this one: {predicted['checked']} of {predicted['cases']} test case(s)")
    return lines
