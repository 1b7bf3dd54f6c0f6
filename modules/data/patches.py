"""The places of patches in a prepared case: random ones for training, a grid of windows for validation and inference.

A window may reach beyond an array that is smaller than it. Such an array lies in the window's middle, as `fit_shape` would put it.
Everything random here is a pure function of the generator that is passed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SAMPLINGS = ("uniform", "foreground", "weighted")
# The axes of a volume in RAS+ orientation, by the plane that lies across them.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Window:
    """The part of a preprocessed case that a network sees at once.

    Attributes:
        sizes: Voxels along each axis of the case. A 2-D network on volumes has a 1 along the axis that its slices lie across.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) not in (2, 3) or min(self.sizes) < 1:
            raise ValueError(f"Expected a window of 2 or 3 sizes of 1 or more. Received: {self.sizes}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape `P` of a sample: the sizes other than 1."""
        return tuple(size for size in self.sizes if size > 1)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the case that a sample keeps."""
        return tuple(axis for axis, size in enumerate(self.sizes) if size > 1)

    @property
    def deep(self) -> tuple[int, int, int]:
        """The sizes as those of a volume: a slice is a volume of depth one."""
        first, *rest = self.sizes if len(self.sizes) == 3 else (1, *self.sizes)
        return (first, rest[0], rest[1])

    @property
    def across(self) -> int | None:
        """The axis of `deep` that slices lie across; None for a 3-D network."""
        return self.deep.index(1) if 1 in self.deep else None

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


def list_starts(size: int, window: int, overlap: float = 0.0) -> list[int]:
    """Lists the first voxels of evenly spread windows that cover `size` voxels. Neighbours share at least `overlap` of their length.

    Args:
        size: Voxels along the axis.
        window: Voxels of a window.
        overlap: Share in [0, 1).

    Returns:
        Ascending starts; one start, 0 or below, where the window is at least as long as the axis.
    """
    if size <= window:
        return [-((window - size) // 2)]
    # The step is rounded down, but not where a product such as 10 * 0.3 comes out a little below 3.
    step = max(1, math.floor(window * (1 - overlap) + 1e-9))
    number = math.ceil((size - window) / step) + 1
    return [round(index * (size - window) / (number - 1)) for index in range(number)]


def make_grid(shape: Sequence[int], window: Sequence[int], overlap: float = 0.0) -> list[tuple[int, ...]]:
    """Lists the starts `(r,)` of the windows that cover an array of `shape`. The first axis changes slowest."""
    return list(product(*(list_starts(size, length, overlap) for size, length in zip(shape, window, strict=True))))


def count_starts(shape: Sequence[int], window: Sequence[int], overlap: float = 0.0) -> int:
    """Counts the windows that `make_grid` lays, however many they are."""
    return math.prod(len(list_starts(size, length, overlap)) for size, length in zip(shape, window, strict=True))


def nth_start(shape: Sequence[int], window: Sequence[int], index: int) -> tuple[int, ...]:
    """Returns number `index` of the starts that `make_grid` lays without overlap."""
    start = []
    for size, length in zip(reversed(shape), reversed(window), strict=True):
        starts = list_starts(size, length)
        index, place = divmod(index, len(starts))
        start.append(starts[place])
    return tuple(reversed(start))


def make_gaussian(window: int) -> np.ndarray:
    """Makes Gaussian weights `(window,)` float32 along one axis: 1 in the middle, with a standard deviation of an eighth of the window.

    No weight is below 1e-3. This floor keeps a voxel in the corner of its only window from being divided by nearly nothing.
    """
    place = np.arange(window) - (window - 1) / 2
    return np.maximum(np.exp(-0.5 * (place / (window / 8)) ** 2), 1e-3).astype(np.float32)


def cut(array: np.ndarray, start: Sequence[int], window: Sequence[int], fill: Sequence[float] | float = 0) -> np.ndarray:
    """Copies a window of `(*S, ...)`. Voxels outside of the array become `fill`, a value or one a channel."""
    result = np.empty((*window, *array.shape[len(window) :]), array.dtype)
    cut_into(result, array, start, fill)
    return result


def cut_into(result: np.ndarray, array: np.ndarray, start: Sequence[int], fill: Sequence[float] | float = 0) -> None:
    """Copies the window of `(*S, ...)` that begins at `start` into `result`, as `cut` does."""
    window, shape = result.shape[: len(start)], array.shape
    if all(first >= 0 and first + length <= size for first, length, size in zip(start, window, shape, strict=False)):
        result[...] = array[tuple(slice(first, first + length) for first, length in zip(start, window, strict=True))]
        return
    result[...] = fill
    ranges = [(max(first, 0), min(first + length, size)) for first, length, size in zip(start, window, shape, strict=False)]
    if all(low < high for low, high in ranges):
        inside = tuple(slice(low - first, high - first) for (low, high), first in zip(ranges, start, strict=True))
        result[inside] = array[tuple(slice(low, high) for low, high in ranges)]


def choose_points(label: np.ndarray, num_classes: int, rng: np.random.Generator, limit: int = 4096) -> list[np.ndarray]:
    """Draws up to `limit` voxels `(n, r)` uint16 of each class of a label `(*S)`, without repetition; for `draw_start`."""
    points = []
    flat = label.ravel()
    for index in range(num_classes):
        places = np.flatnonzero(flat == index)
        if len(places) > limit:
            places = np.sort(rng.choice(places, limit, replace=False))
        points.append(np.stack(np.unravel_index(places, label.shape), axis=-1).astype(np.uint16))
    return points


def draw_start(
    rng: np.random.Generator,
    shape: Sequence[int],
    window: Sequence[int],
    *,
    points: Sequence[np.ndarray] = (),
    sampling: str = "uniform",
    probabilities: Sequence[float] = (),
) -> tuple[int, ...]:
    """Draws the first voxel of a patch.

    Args:
        rng: Source of the draw.
        shape: `S` of the case.
        window: Shape of the patch.
        points: Voxels of each class, from `choose_points`; not needed for "uniform".
        sampling: "uniform" takes any place inside. "foreground" chooses evenly among the foreground classes that the case has, as
            nnU-Net does, and centres on a voxel of that class. "weighted" chooses among all classes by `probabilities`. "judged"
            centres on any listed voxel, none of which is ignored.
        probabilities: Probability of each class for "weighted", the background first; equal without it. Classes that the case lacks
            pass their share on to the others.

    Returns:
        The patch's first voxel. The patch stays inside the case wherever the case is large enough.
    """
    room = [max(size - length, 0) for size, length in zip(shape, window, strict=True)]
    start = [int(value) for value in rng.integers(0, room, endpoint=True)]
    if sampling != "uniform":
        weights = np.array([len(places) for places in points], np.float64)
        if sampling == "foreground":
            weights = (weights > 0) * (np.arange(len(points)) > 0.0)
        elif sampling == "weighted":
            weights = (weights > 0) * np.asarray(probabilities or np.ones(len(points)))
        if weights.sum() > 0:
            places = points[rng.choice(len(points), p=weights / weights.sum())]
            centre = places[rng.integers(len(places))].astype(int)
            start = [min(max(int(c) - length // 2, 0), most) for c, length, most in zip(centre, window, room, strict=True)]
    return tuple(first if size > length else list_starts(size, length)[0] for first, size, length in zip(start, shape, window, strict=True))
