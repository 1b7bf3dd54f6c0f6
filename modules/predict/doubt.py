"""The errors that the probabilities of a prediction tell of: maps of doubt, histograms to calibrate them by, and an expected Dice."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from modules.data.regions import IGNORE, find_mask

# Nothing is surer than this. A logarithm of 0 would be infinite.
LEAST = 1e-7
# Names of the voxel maps, in the order of the last axis of their file.
MAPS = ("entropy", "mutual information")
# Probabilities are counted by their logits, in steps of a quarter from -16 to 16. Float32 hardly knows surer ones.
_MOST_LOGIT, _STEP = 16.0, 0.25
LOGITS = np.arange(-_MOST_LOGIT, _MOST_LOGIT, _STEP) + _STEP / 2


class Doubt(NamedTuple):
    """The doubt of a model about its own prediction of one case, by the logits of its probabilities.

    Attributes:
        counts: `(F, 2, 128)` voxels by class but the background, or region; by whether they are outside or inside of its predicted mask,
            before postprocessing; and by the bin of `LOGITS`.
        truth: `(F, 2, 128)` the judged voxels by whether the label gives them to the class; None without a label.
        maps: `(*S, 2)` float32, the `MAPS` from 0 to 1 if they were asked for, else None.
    """

    counts: np.ndarray
    truth: np.ndarray | None = None
    maps: np.ndarray | None = None

    def expect_dice(self, temperatures: np.ndarray | float = 1.0) -> np.ndarray:
        """Returns the Dice `(F,)` that the calibrated probabilities expect; NaN where nothing is predicted.

        It is `2 E|A B| / (|A| + E|B|)`, with the predicted mask A and the unknown true mask B. A ratio of means stands for the mean of a
        ratio, which is close for masks of many voxels. It needs no training. It knows only what the probabilities know: a model that is
        sure of a wrong mask expects a high Dice.

        Args:
            temperatures: `(F,)`, one for each class, or one for all; see `calibrate`.
        """
        expected = (self.counts * calibrate(temperatures)[:, np.newaxis]).sum(axis=-1)
        voxels = self.counts[:, 1].sum(axis=-1)
        with np.errstate(invalid="ignore"):
            return np.where(voxels > 0, 2 * expected[:, 1] / (voxels + expected.sum(axis=-1)), math.nan)


def calibrate(temperatures: np.ndarray | float) -> np.ndarray:
    """Returns the probability of each bin of `LOGITS` after its logit is divided by a temperature (Guo et al., ICML 2017): `(F or 1, 128)`.

    Each class stands alone against the rest, so that regions and classes are treated alike. A temperature above 1 makes less sure.
    """
    return 1 / (1 + np.exp(-LOGITS / np.reshape(temperatures, (-1, 1))))


def fit_temperature(truth: np.ndarray) -> float:
    """Finds the temperature of one class that makes the truth most probable: the least cross-entropy, from 0.25 to 4.

    Args:
        truth: `(2, 128)` as `Doubt.truth` has it of a class, summed over cases.

    Returns:
        The temperature; 1 where the class, or all but the class, is nowhere.
    """
    if not truth.sum(axis=-1).all():
        return 1.0

    def measure_loss(power: float) -> float:
        logits = LOGITS / 2.0**power
        return float((truth[0] * np.logaddexp(0, logits) + truth[1] * np.logaddexp(0, -logits)).sum())

    # The loss is convex in the inverse of the temperature, so it has one valley. A golden section finds its floor.
    low, high, part = -2.0, 2.0, (math.sqrt(5) - 1) / 2
    for _ in range(24):
        one, other = high - part * (high - low), low + part * (high - low)
        low, high = (low, other) if measure_loss(one) <= measure_loss(other) else (one, high)
    return float(f"{2 ** ((low + high) / 2):.4g}")


def measure_entropy(probabilities: np.ndarray, *, regions: bool = False) -> np.ndarray:
    """Measures the entropy of each voxel as a share of the most that is possible: 0 is sure, and 1 means that all are as probable.

    Args:
        probabilities: `(..., K)`. Of regions it is the mean entropy of "in" or "out" over the regions.
        regions: Whether they are those of regions.

    Returns:
        `(...)` float32.
    """
    entropy = -np.sum(probabilities * np.log(np.maximum(probabilities, LEAST)), axis=-1)
    if not regions:
        return (entropy / np.float32(math.log(probabilities.shape[-1]))).astype(np.float32)
    others = 1 - probabilities
    entropy -= np.sum(others * np.log(np.maximum(others, LEAST)), axis=-1)
    return (entropy / np.float32(probabilities.shape[-1] * math.log(2))).astype(np.float32)


def add_entropy(predict: Callable[[np.ndarray], np.ndarray], *, regions: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Wraps a function from windows to probabilities `(..., K)` so that their entropy is one number more, `(..., K + 1)`.

    Whatever averages probabilities later, over flips, windows or models, averages it too. The entropy of the mean less this mean of
    entropies is the mutual information: the doubt that comes from the disagreement of those that were averaged (Houlsby et al., 2011).
    """

    def predict_both(inputs: np.ndarray) -> np.ndarray:
        probabilities = predict(inputs)
        return np.concatenate([probabilities, measure_entropy(probabilities, regions=regions)[..., np.newaxis]], axis=-1)

    return predict_both


def measure_maps(plane: np.ndarray, *, regions: bool) -> np.ndarray:
    """Measures the `MAPS` of voxels from what `add_entropy` gave and others averaged: `(..., K + 1)` to `(..., 2)`."""
    entropy = measure_entropy(plane[..., :-1], regions=regions)
    # Rounding can take a difference of two equal numbers below 0.
    return np.stack([entropy, np.maximum(entropy - plane[..., -1], 0)], axis=-1)


class DoubtTally:
    """Counts the doubt of a case plane by plane, so that nobody keeps its probabilities."""

    def __init__(self, parts: Sequence[tuple[int, ...]], *, regions: bool) -> None:
        """Takes the indices in a label map that make up each class but the background, and whether these are regions."""
        self._parts, self._regions = parts, regions
        self._counts, self._truth = (np.zeros((len(parts), 2, LOGITS.size)) for _ in range(2))

    def add(self, plane: np.ndarray, label: np.ndarray | None) -> None:
        """Counts the probabilities `(..., K)` of some voxels, and their labels `(...)` if they are known."""
        best = None if self._regions else plane.argmax(axis=-1)
        for number, parts in enumerate(self._parts):
            index = number if self._regions else number + 1
            chosen = plane[..., index] > 0.5 if best is None else best == index
            share = np.clip(plane[..., index], LEAST, 1 - LEAST)
            logits = np.log(share) - np.log1p(-share)
            bins = np.clip((logits + np.float32(_MOST_LOGIT)) / np.float32(_STEP), 0, LOGITS.size - 1).astype(np.intp)
            self._counts[number] += _count(bins, chosen)
            if label is not None:
                judged = label != IGNORE
                self._truth[number] += _count(bins[judged], find_mask(label, parts)[judged])

    def finish(self, maps: np.ndarray | None, *, labelled: bool) -> Doubt:
        """Returns the doubt of the case, with its voxel maps if there are any."""
        return Doubt(self._counts, self._truth if labelled else None, maps)


def _count(bins: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Counts voxels by whether they are chosen and by their bin: `(2, 128)`."""
    return np.bincount((bins + LOGITS.size * chosen).ravel(), minlength=2 * LOGITS.size).reshape(2, -1)
