"""Compares where files that belong together lie in the world, and brings one onto the grid of the other.

Two files are compared by their affines and shapes, never by shapes alone. The grids are the same where each corner voxel of one lies
within `TOLERANCE` of a voxel of its partner. A grid that is only stored in another order is turned, which loses nothing. A label of
another resolution over the same box of space is taken from the nearest voxel. Anything else is refused.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

# In voxels of the image. Files of one grid differ by less than a thousandth; a shift that a reader could see is larger.
TOLERANCE = 0.05


def align(
    array: np.ndarray, affine: np.ndarray | None, shape: Sequence[int], target: np.ndarray | None, *, resample: bool = False
) -> np.ndarray | None:
    """Brings an array onto the grid of an image in world space.

    Args:
        array: `(*S, ...)`, with the spatial axes first.
        affine: `(4, 4)`, its voxels to mm; None for pictures, which have no place in the world.
        shape: Of the image, of the same rank.
        target: The image's affine.
        resample: Whether an array of another resolution over the same box of space is taken from the nearest voxel.

    Returns:
        The array itself if the grids are the same, a view if only the order differs, a copy if it was resampled. None if it lies elsewhere.
    """
    rank = len(shape)
    own = array.shape[:rank]
    if affine is None or target is None:
        return array if own == tuple(shape) else None
    if not (np.isfinite(affine).all() and np.isfinite(target).all()):
        return None
    try:
        # From the array's voxels to those of the image.
        change = np.linalg.solve(np.asarray(target, np.float64), np.asarray(affine, np.float64))
    except np.linalg.LinAlgError:
        # No direction can be compared: the headers have to be the same.
        return array if own == tuple(shape) and np.array_equal(affine, target) else None
    axes = _match_axes(change, rank)
    if axes is None or not _stays_in_plane(change, own, rank):
        return None
    steps = [change[axis, source] for axis, source in enumerate(axes)]
    flipped = tuple(axis for axis, step in enumerate(steps) if step < 0)
    # The first and the last voxel of the array along each axis of the image, and what they should be.
    first = change[:rank, 3]
    ends = [sorted((first[axis], first[axis] + steps[axis] * (own[source] - 1))) for axis, source in enumerate(axes)]
    skew = _measure_skew(change, own, axes)
    sizes = tuple(own[source] for source in axes)
    turned = np.flip(array.transpose(*axes, *range(rank, array.ndim)), flipped)
    wanted = [(0, size - 1) for size in shape]
    if sizes == tuple(shape) and skew + np.abs(np.subtract(ends, wanted)).max() <= TOLERANCE:
        return array if not flipped and axes == tuple(range(rank)) else turned
    edges = [(low - abs(step) / 2, high + abs(step) / 2) for (low, high), step in zip(ends, steps, strict=True)]
    box = [(-0.5, size - 0.5) for size in shape]
    if resample and skew + np.abs(np.subtract(edges, box)).max() <= TOLERANCE:
        nearest = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(sizes, shape, strict=True)]
        return turned[np.ix_(*nearest)]
    return None


def describe_grid(shape: Sequence[int], affine: np.ndarray | None) -> str:
    """Describes a grid in a few words for an error: size, voxel, orientation and the place of its first voxel."""
    size = "x".join(map(str, shape))
    if affine is None:
        return f"{size} without a place in the world"
    if not np.isfinite(affine).all():
        return f"{size} with an affine that is not finite"
    from nibabel import aff2axcodes

    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)]
    codes = "".join(code or "?" for code in aff2axcodes(affine))
    first = ", ".join(f"{value:.1f}" for value in affine[:3, 3])
    return f"{size} of {'x'.join(f'{value:.3g}' for value in spacing)} mm, {codes}, first voxel at ({first}) mm"


def _match_axes(change: np.ndarray, rank: int) -> tuple[int, ...] | None:
    """Finds which axis of the array runs along each axis of the image; None where two run along the same."""
    axes = tuple(int(axis) for axis in np.abs(change[:rank, :rank]).argmax(axis=1))
    return axes if len(set(axes)) == rank else None


def _measure_skew(change: np.ndarray, shape: Sequence[int], axes: Sequence[int]) -> float:
    """Measures how far, in voxels of the image, an axis of the array leaves the one it should run along, at its far end."""
    rank = len(shape)
    off = np.abs(change[:rank, :rank]) * (np.asarray(shape) - 1)
    for axis, source in enumerate(axes):
        off[axis, source] = 0
    return float(off.sum(axis=1).max())


def _stays_in_plane(change: np.ndarray, shape: Sequence[int], rank: int) -> bool:
    """Returns whether a slice lies in the plane of the other, within a tenth of a voxel; a volume always does."""
    if rank == 3:
        return True
    corners = product(*((0, size - 1) for size in shape))
    return all(abs(change[2, :2] @ corner + change[2, 3]) <= 2 * TOLERANCE for corner in corners)
