"""Values that lie far from all others, by the median and the median distance from it, which a few wrong values do not move."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# An unusual value differs from the median by this factor at least, however alike the others are.
LEAST_FACTOR = 1.5
# Iglewicz and Hoaglin, How to detect and handle outliers, 1993.
_MOST_DEVIATIONS = 3.5
# Of fewer values none is unusual.
_LEAST_VALUES = 5
# A value so far from the median differs from others that are equal but for rounding.
_EQUAL = 1e4


class Outlier(NamedTuple):
    """A value far from all others.

    Attributes:
        place: Its place in the list of values.
        value: The value.
        median: The median of all values.
        z: Its distance from the median in robust standard deviations; infinite where most values are equal.
    """

    place: int
    value: float
    median: float
    z: float


def measure_deviations(values: np.ndarray) -> np.ndarray:
    """Measures how many robust standard deviations each value `(n, ...)` lies above the median along the first axis, or below it (-)."""
    middle = np.median(values, axis=0)
    distance = values - middle
    # The factor 1.4826 makes the median distance the standard deviation of normal values.
    spread = 1.4826 * np.median(np.abs(distance), axis=0)
    return distance / np.maximum(spread, 1e-6 * np.maximum(np.abs(middle), 1e-12))


def measure_factors(values: np.ndarray) -> np.ndarray:
    """Measures the factor, 1 or more, between each value `(n, ...)` and the median; NaN where both are 0."""
    middle = np.median(values, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.abs(values / middle), np.abs(middle / values))


def find_outliers(values: Sequence[float], *, relative: bool = False) -> list[Outlier]:
    """Finds values at more than 3.5 robust standard deviations and a factor of 1.5 from the median, the farthest first.

    Args:
        values: Finite numbers.
        relative: Whether values, all above 0, are compared by their logarithms: half and double are then equally far.
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) < _LEAST_VALUES:
        return []
    compared = np.log(numbers) if relative else numbers
    deviations = measure_deviations(compared)
    deviations = np.where(np.abs(deviations) > _EQUAL, np.copysign(math.inf, deviations), deviations)
    unusual = np.flatnonzero((np.abs(deviations) > _MOST_DEVIATIONS) & ~(measure_factors(numbers) < LEAST_FACTOR))
    median = float(np.median(numbers))
    found = [Outlier(int(place), float(numbers[place]), median, float(deviations[place])) for place in unusual]
    return sorted(found, key=lambda outlier: -abs(outlier.z))
