"""Scans that are given as arrays."""

import math
from collections.abc import Sequence

import numpy as np

from modules.data.case import Volume
from modules.data.files import LEAST_MM, MOST_MM
from modules.data.formats import to_float32


def to_volume(array: np.ndarray, affine: np.ndarray | None, spacing_mm: Sequence[float] | None, rank: int) -> Volume:
    """Makes the record of a scan that files give too, and checks what reading a file checks.

    Args:
        array: `(*S)` or `(*S, C)` finite numbers.
        affine: `(4, 4)`, voxel indices to millimetres (RAS+), or None.
        spacing_mm: The voxel's size along each axis of `S`, or None.
        rank: Number of axes of `S`, 2 or 3. A volume needs `affine` or `spacing_mm`.

    Raises:
        ValueError: If they do not fit one another, or hold NaN or infinity.
    """
    given, array = type(array).__name__, np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Expected `array` of integers or real numbers. Received: {given} of {array.dtype}. Convert it; of an image give its voxels, "
            "or its file to `predict_file`."
        )
    if array.ndim not in (rank, rank + 1) or not array.size:
        raise ValueError(f"Expected `array` of {rank} axes, and one more for channels. Received: shape {array.shape}.")
    # A number too large for float32 becomes infinite.
    with np.errstate(over="ignore"):
        image = to_float32(array if array.ndim > rank else array[..., np.newaxis])
    if not (math.isfinite(image.max()) and math.isfinite(image.min())):
        count = int((~np.isfinite(image)).sum())
        raise ValueError(f"Expected finite values in `array`. Received: {count} NaN or infinite in float32. Replace them.")
    if affine is not None and spacing_mm is not None:
        raise ValueError("Expected `affine` or `spacing_mm`. Received: both. Leave one out.")
    if affine is not None:
        affine = _check_affine(affine)
        spacing_mm = [float(length) for length in np.linalg.norm(affine[:3, :rank], axis=0)]
    elif spacing_mm is None:
        if rank == 3:
            raise ValueError("Expected `affine` or `spacing_mm` for a volume. Received: neither. Give the affine of its file.")
        # A picture has no size in mm either.
        spacing_mm = (1.0,) * rank
    spacing = _check_spacing(spacing_mm, rank)
    return Volume(image, affine, spacing)


def _check_affine(affine: np.ndarray) -> np.ndarray:
    try:
        affine = np.asarray(affine, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected an `affine` of 4 x 4 numbers. Received: {affine!r}.") from error
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"Expected a finite `affine` of shape (4, 4). Received: shape {affine.shape}, {affine.tolist()}.")
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        raise ValueError(f"Expected an `affine` whose last row is 0, 0, 0, 1. Received: {affine[3].tolist()}. Perhaps it is transposed.")
    return affine


def _check_spacing(spacing_mm: Sequence[float], rank: int) -> tuple[float, ...]:
    try:
        spacing = tuple(float(size) for size in spacing_mm)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected `spacing_mm` of {rank} numbers. Received: {spacing_mm!r}.") from error
    if len(spacing) != rank or not all(LEAST_MM <= size <= MOST_MM for size in spacing):
        raise ValueError(f"Expected voxels of {LEAST_MM:g} to {MOST_MM:g} mm along {rank} axes. Received: {spacing}.")
    return spacing
