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
    array = np.asarray(array)
    if array.ndim not in (rank, rank + 1) or not array.size:
        raise ValueError(f"Expected `array` of {rank} axes, and one more for channels. Received: shape {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"Expected `array` of integers or real numbers. Received: {array.dtype}. Convert it.")
    if array.dtype.kind == "f" and not (math.isfinite(array.max()) and math.isfinite(array.min())):
        raise ValueError(f"Expected finite values in `array`. Received: {int((~np.isfinite(array)).sum())} NaN or infinite. Replace them.")
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
    return Volume(to_float32(array if array.ndim > rank else array[..., np.newaxis]), affine, spacing)


def _check_affine(affine: np.ndarray) -> np.ndarray:
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"Expected a finite `affine` of shape (4, 4). Received: shape {affine.shape}, {affine.tolist()}.")
    return affine


def _check_spacing(spacing_mm: Sequence[float], rank: int) -> tuple[float, ...]:
    spacing = tuple(float(size) for size in spacing_mm)
    if len(spacing) != rank or not all(LEAST_MM <= size <= MOST_MM for size in spacing):
        raise ValueError(f"Expected voxels of {LEAST_MM:g} to {MOST_MM:g} mm along {rank} axes. Received: {spacing}.")
    return spacing
