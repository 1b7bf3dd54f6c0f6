"""The choice of unlabelled scans to label next: how much a model doubts its label map of each, and how unlike one another they are.

All functions are pure. `modules.run.suggest` is the command.
"""

import math
from collections.abc import Sequence

import numpy as np

from modules.data.case import Predicted
from modules.data.regions import Region, find_mask, list_parts

# Quantiles of a scan's intensities that describe its contrast.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# A class that gets less than this part of a voxel is one that nobody claims to see.
_LEAST_VOXELS = 0.5


def measure_doubt(item: Predicted, class_names: Sequence[str], regions: Sequence[Region] = ()) -> float:
    """Measures how far a label map is from what its own probabilities expect: 1 less the expected Dice, averaged over the classes.

    The expected Dice of a class is `2 sum(p over its voxels) / (its number of voxels + sum(p))`. It is near 1 where the model is sure
    of every voxel, and falls with each voxel that could be of another class, at a border or elsewhere.

    Args:
        item: The predicted scan, with its probabilities.
        class_names: Names of the classes, the background first.
        regions: What each class consists of, where classes overlap.

    Returns:
        A number from 0 to 1. It is 1 where neither the label map nor the probabilities hold any class: such a scan was not understood.

    Raises:
        ValueError: If the probabilities were not kept.
    """
    if item.probabilities is None:
        raise ValueError(f"Expected a prediction with its probabilities. Received: none for {item.case.case_id}. Keep them.")
    doubts, first = [], 0 if regions else 1
    for number, parts in enumerate(list_parts(class_names, regions)):
        mask, chance = find_mask(item.prediction, parts), item.probabilities[..., first + number]
        total = float(mask.sum()) + float(chance.sum(dtype=np.float64))
        if total >= _LEAST_VOXELS:
            doubts.append(1 - 2 * float(chance[mask].sum(dtype=np.float64)) / total)
    return min(1.0, max(0.0, math.fsum(doubts) / len(doubts))) if doubts else 1.0


def describe_scan(item: Predicted, class_names: Sequence[str], regions: Sequence[Region] = ()) -> np.ndarray:
    """Describes a scan by a few numbers, in which unlike scans lie apart.

    These are the quantiles of each channel's intensities in standard deviations from their mean, over the voxels brighter than the darkest;
    the logarithms of the scan's extent and of the voxel's size along each axis, of each class's volume, and of the length of the whole
    foreground along its own three axes (two for slices).

    Args:
        item: The predicted scan.
        class_names: Names of the classes, the background first.
        regions: What each class consists of, where classes overlap.

    Returns:
        `(n,)` float64; `n` depends on channels, rank and classes alone.
    """
    numbers: list[float] = []
    for channel in np.moveaxis(item.image.array, -1, 0):
        bright = channel[channel > channel.min()]
        bright = bright if bright.size else channel.ravel()
        deviation = float(bright.std()) or 1.0
        numbers += ((np.quantile(bright, QUANTILES) - bright.mean()) / deviation).tolist()
    sizes, voxel = np.array(item.image.spacing_mm, np.float64), float(np.prod(item.image.spacing_mm))
    numbers += np.log(sizes).tolist() + np.log(sizes * item.prediction.shape).tolist()
    masks = [find_mask(item.prediction, parts) for parts in list_parts(class_names, regions)]
    numbers += [math.log(voxel * (1 + int(mask.sum()))) for mask in masks]
    places = np.argwhere(np.any(masks, axis=0)) * sizes
    # A foreground of one voxel is as long as the voxel.
    spread = np.cov(places.T) if len(places) > 1 else np.zeros((len(sizes), len(sizes)))
    lengths = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 0)) + sizes.min()
    return np.array(numbers + np.log(lengths).tolist())


def choose_scans(doubts: Sequence[float], descriptions: Sequence[np.ndarray], number: int) -> tuple[list[int], list[float]]:
    """Chooses scans that a model doubts and that are unlike one another.

    The first is the most doubtful. Each next one has the largest product of its doubt and its distance to the nearest chosen scan: a
    greedy k-centre (Sener and Savarese, 2018) weighted by doubt. Distances are root mean squares over the numbers that describe a scan,
    each in standard deviations over all scans.

    Args:
        doubts: A number for each scan.
        descriptions: `(n,)` for each scan.
        number: Scans to choose; all if there are fewer.

    Returns:
        The scans by their place, in the order of choice, and the distance of each to those before it; infinite for the first.
    """
    table = np.array(descriptions, np.float64)
    deviation = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(deviation > 1e-9, deviation, np.inf)
    nearest, chosen, distances = np.full(len(table), np.inf), [], []
    weights = np.array(doubts, np.float64)
    for _ in range(min(number, len(table))):
        gains = weights * nearest if chosen else weights
        # Where all scans left are like a chosen one, doubt alone decides.
        gains = gains.copy() if gains.max() > 0 else weights.copy()
        gains[chosen] = -1
        best = int(np.argmax(gains))
        chosen.append(best)
        distances.append(float(nearest[best]))
        nearest = np.minimum(nearest, np.sqrt(np.mean(np.square(table - table[best]), axis=1)))
    return chosen, distances
