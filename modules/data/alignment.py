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
    if affine is None and target is None:
        return array if own == tuple(shape) else None
    if affine is None or target is None:
        # A picture does not say which way its axes run, so nothing tells whether a NIfTI lies over it.
        return None
    if not (np.isfinite(affine).all() and np.isfinite(target).all()):
        return None
    if rank == 2 and not target[:3, 2].any():
        # The header of a slice often says nothing of the third axis, which then runs across its plane.
        across = np.cross(target[:3, 0], target[:3, 1]) / np.linalg.norm(target[:3, 0])
        target = np.column_stack([target[:, :2], [*across, 0], target[:, 3]])
    try:
        # From the array's voxels to those of the image.
        change = np.linalg.solve(np.asarray(target, np.float64), np.asarray(affine, np.float64))
    except np.linalg.LinAlgError:
        # No direction can be compared: the headers have to be the same.
        return array if own == tuple(shape) and np.array_equal(affine, target) else None
    axes = _match_axes(change, rank)
    if axes is None or not _stays_in_plane(change, own, rank):
        return None
    flipped = tuple(axis for axis, source in enumerate(axes) if change[axis, source] < 0)
    sizes = tuple(own[source] for source in axes)
    turned = np.flip(array.transpose(*axes, *range(rank, array.ndim)), flipped)
    if sizes == tuple(shape) and _measure_distance(change, own, shape, axes, 0) <= TOLERANCE:
        return array if not flipped and axes == tuple(range(rank)) else turned
    if resample and _measure_distance(change, own, shape, axes, 0.5) <= TOLERANCE:
        nearest = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(sizes, shape, strict=True)]
        return turned[np.ix_(*nearest)]
    return None


def describe_grid(shape: Sequence[int], affine: np.ndarray | None) -> str:
    """Describes a grid in a few words for an error: size, voxel, orientation, first and last voxel."""
    size = "x".join(map(str, shape))
    if affine is None:
        return f"{size} without a place in the world"
    if not np.isfinite(affine).all():
        return f"{size} with an affine that is not finite"
    from nibabel import aff2axcodes

    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)]
    codes = "".join(code or "?" for code in aff2axcodes(affine))
    first, last = (
        ", ".join(f"{value:.2f}" for value in affine[:3, : len(shape)] @ place + affine[:3, 3])
        for place in (np.zeros(len(shape)), np.subtract(shape, 1))
    )
    sizes = "x".join(f"{value:.3g}" for value in spacing)
    return f"{size} of {sizes} mm, {codes}, first voxel at ({first}) mm, last at ({last}) mm"


def _match_axes(change: np.ndarray, rank: int) -> tuple[int, ...] | None:
    """Finds which axis of the array runs along each axis of the image; None where two run along the same."""
    axes = tuple(int(axis) for axis in np.abs(change[:rank, :rank]).argmax(axis=1))
    return axes if len(set(axes)) == rank else None


def _measure_distance(change: np.ndarray, own: Sequence[int], shape: Sequence[int], axes: Sequence[int], margin: float) -> float:
    """Measures how far, in voxels of the image, a corner of the array lies at most from that corner of the image.

    Args:
        change: From the array's voxels to those of the image.
        own: The array's shape.
        shape: The image's shape.
        axes: The array's axis along each axis of the image.
        margin: 0 for the middles of the corner voxels, 0.5 for the corners of the box of space.
    """
    rank, farthest = len(shape), 0.0
    for ends in product((False, True), repeat=rank):
        corner = np.array([own[axis] - 1 + margin if ends[axis] else -margin for axis in range(rank)])
        place = change[:rank, :rank] @ corner + change[:rank, 3]
        for axis, source in enumerate(axes):
            last = ends[source] == (change[axis, source] > 0)
            farthest = max(farthest, abs(float(place[axis]) - (shape[axis] - 1 + margin if last else -margin)))
    return farthest


def _stays_in_plane(change: np.ndarray, shape: Sequence[int], rank: int) -> bool:
    """Returns whether a slice lies in the plane of the other, within a tenth of a voxel; a volume always does."""
    if rank == 3:
        return True
    corners = product(*((0, size - 1) for size in shape))
    return all(abs(change[2, :2] @ corner + change[2, 3]) <= 2 * TOLERANCE for corner in corners)
