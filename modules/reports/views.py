"""The view of a stored volume: its planes in the radiological convention, the choice of their slices, and their size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from modules.reports.checks import check_spacing

_AXES = ("x", "y", "z")
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # at the low and at the high index of each axis of RAS+


@dataclass(frozen=True)
class View:
    """The way the axes of a stored volume lie in the patient, and so on the page.

    Attributes:
        axes: The stored axis along each axis of RAS+.
        flipped: Whether the stored axis runs against that axis of RAS+.
        spacing_mm: Size of a voxel along each axis of RAS+; None where it is not known.
        anatomical: Whether there was an affine. Without one all axes stay as stored.
        tilt_degrees: The largest angle between an axis and the axis of RAS+ it is taken for.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    spacing_mm: tuple[float, ...] | None
    anatomical: bool
    tilt_degrees: float = 0.0

    @property
    def planes(self) -> dict[str, int]:
        """The axis that each plane is cut across, by the plane's name, in the order of drawing."""
        if self.anatomical:
            return {"axial": 2, "coronal": 1, "sagittal": 0}
        return {f"axis {axis}": axis for axis in range(3)}

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Returns a view, not a copy, of a stored volume (*S, ...) with its axes along RAS+."""
        array = array.transpose(*self.axes, *range(3, array.ndim))
        return array[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flipped)]

    def cut(self, array: np.ndarray, axis: int, index: int) -> np.ndarray:
        """Cuts a slice (rows, columns, ...) out of a turned volume, as it is shown.

        Anterior or superior is up. The patient's right is on the left, as if seen from the feet or face to face. In sagittal slices
        anterior is on the left.
        """
        plane = array[(slice(None),) * axis + (index,)]
        return plane[::-1, ::-1].swapaxes(0, 1) if self.anatomical else plane

    def letters(self, axis: int) -> tuple[str, str, str, str] | None:
        """Returns the directions at the left, right, upper and lower edge of a slice; None without an affine."""
        if not self.anatomical:
            return None
        across, up = (_LETTERS[other] for other in range(3) if other != axis)
        return across[1], across[0], up[1], up[0]

    def measure(self, shape: Sequence[int], axis: int) -> tuple[float, float]:
        """Measures height and width of the slices of a turned volume of this shape, in millimetres, or in voxels of unknown size."""
        first, second = (shape[other] * (self.spacing_mm or (1, 1, 1))[other] for other in range(3) if other != axis)
        return (second, first) if self.anatomical else (first, second)

    def describe(self) -> str:
        """Describes the orientation as far as a reader must know it."""
        if not self.anatomical:
            return "Axes and slices as stored: without an affine, left and right are not known."
        tilt = f" The scan is tilted by up to {self.tilt_degrees:.0f}\u00b0." if self.tilt_degrees >= 3 else ""
        return f"Patient's right on the left. Slices are counted from the patient's right, back and feet.{tilt}"


def find_view(spacing_mm: Sequence[float] | None, affine: np.ndarray | None) -> View:
    """Finds the orientation closest to RAS+.

    Args:
        spacing_mm: Size of a voxel along each stored axis; the affine's own if None.
        affine: (4, 4), voxel indices to millimetres in RAS+; None where it is not known.

    Raises:
        ValueError: `spacing_mm` is not three positive numbers, or `affine` does not map three axes.
    """
    spacing = None if spacing_mm is None else check_spacing(spacing_mm, _AXES)
    if affine is None:
        return View((0, 1, 2), (False, False, False), spacing, False)
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"Expected `affine` of shape (4, 4), finite and of full rank. Received: {affine.tolist()}.")
    orientation = nib.io_orientation(affine)
    axes = tuple(int(axis) for axis in np.argsort(orientation[:, 0]))
    sizes = voxel_sizes(affine)
    spacing = spacing or tuple(float(size) for size in sizes)
    along = min(abs(affine[row, axis]) / sizes[axis] for row, axis in enumerate(axes))
    return View(
        axes,
        tuple(bool(orientation[axis, 1] < 0) for axis in axes),
        tuple(spacing[axis] for axis in axes),
        True,
        math.degrees(math.acos(min(1.0, along))),
    )


def count_voxels(classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Counts each class in each slice along the three axes: three int64 arrays (slices, K)."""
    depth, rows, columns = classes.shape
    counts = [np.zeros((size, num_classes), np.int64) for size in classes.shape]
    row_starts, column_starts = num_classes * np.arange(rows)[:, None], num_classes * np.arange(columns)
    # We count a plane at a time: `bincount` takes 64-bit integers only, eight times the memory of a label map.
    for index in range(depth):
        plane = classes[index].astype(np.int64)
        by_row = np.bincount((plane + row_starts).ravel(), minlength=rows * num_classes).reshape(rows, num_classes)
        counts[0][index] = by_row.sum(axis=0)
        counts[1] += by_row
        counts[2] += np.bincount((plane + column_starts).ravel(), minlength=columns * num_classes).reshape(columns, num_classes)
    return counts


def choose_slice(counts: np.ndarray) -> int:
    """Chooses the slice that shows the structures best.

    It is the slice through the centre of mass. Every present class weighs the same: a prostate counts as much as the body around it.
    That slice may hold less than a quarter of the fullest one's foreground, as between two kidneys. Then it is the fullest, or the
    one nearest to the centre of several. Without any foreground it is the middle one.

    Args:
        counts: Voxels (slices, K), see `count_voxels`.
    """
    counts = counts[:, 1:]
    counts = counts[:, counts.any(axis=0)]
    if not counts.size:
        return len(counts) // 2
    shares = (counts / counts.sum(axis=0)).sum(axis=1)
    centre = float(shares @ np.arange(len(shares)) / counts.shape[1])
    if shares[round(centre)] >= shares.max() / 4:
        return round(centre)
    fullest = np.flatnonzero(shares > 0.999 * shares.max())
    return int(fullest[np.abs(fullest - centre).argmin()])


def spread_slices(counts: np.ndarray, number: int) -> list[int]:
    """Spreads up to `number` slices evenly from the first that holds foreground to the last, or over all if none does.

    Args:
        counts: Voxels (slices, K), see `count_voxels`.
        number: One or more.
    """
    occupied = np.asarray(counts[:, 1:].any(axis=1))
    extent = find_extent(occupied if occupied.any() else ~occupied)
    length = extent.stop - extent.start
    number = min(number, length)
    # Slices lie in the middle of equal shares, not at their ends: the outermost slices show next to nothing.
    return [extent.start + (2 * i + 1) * length // (2 * number) for i in range(number)]


def find_extent(occupied: np.ndarray, room: float = 0.0) -> slice:
    """Finds the range from the first to the last true element of (n,); all of it if none is true.

    `room` is added on both sides, as a share of n.
    """
    places = np.flatnonzero(occupied)
    if not places.size:
        return slice(0, len(occupied))
    added = math.ceil(room * len(occupied))
    return slice(max(0, int(places[0]) - added), min(len(occupied), int(places[-1]) + 1 + added))
