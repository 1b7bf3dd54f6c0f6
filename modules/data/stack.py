"""Sorts DICOM slices into one straight stack by their positions, and refuses in one line those that make none.

Instance numbers and slice thickness are never asked: both are often wrong.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.series import refuse

# Slices this near to one another, in mm, lie at one place.
_SAME_MM = 1e-3
# The most that a slice may lie beside its place: a part of the distance between slices, and of a pixel.
_MOST_UNEVEN, _MOST_SHIFTED = 0.05, 0.1
# Sine of the angle between the normal and the way from slice to slice, as for axes of other formats.
_MOST_TILT = 0.02
_SAME_ANGLE, _SAME_SIZE = 1e-3, 1e-3


class Frame(NamedTuple):
    """One slice: its place, and how its numbers become intensities.

    Attributes:
        path: Its file.
        index: Its place among the file's frames.
        identity: SOPInstanceUID of its file.
        size: Columns and rows.
        dtype: Of the numbers as they are stored.
        orientation: Directions of a row and of a column (LPS), or nothing.
        position: Of its first pixel in mm (LPS), or nothing.
        spacing: From row to row and from column to column in mm, or nothing.
        thickness: In mm; used for a single slice alone.
        slope: Factor of the numbers.
        inter: Addend after the factor.
        repeats: Values by which images of one place may differ.
    """

    path: Path
    index: int
    identity: str
    size: tuple[int, int]
    dtype: np.dtype
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    slope: float
    inter: float
    repeats: dict[str, str]


def arrange(frames: Sequence[Frame], path: Path) -> tuple[list[Frame], np.ndarray]:
    """Sorts slices along the normal of their plane.

    Returns:
        The slices and their affine, voxel indices (column, row, slice) to mm (RAS+).

    Raises:
        ValueError: If they do not make one straight stack; the file or folder is named.
    """
    first = frames[0]
    _check_alike(frames, path)
    row, column = np.reshape(first.orientation, (2, 3))
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(abs(length - 1) < 0.01 for length in lengths) or abs(row @ column) > _MOST_TILT:
        raise refuse(first.path, f"an ImageOrientationPatient of {first.orientation}, which is not two directions at right angles")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    heights = np.array([np.dot(frame.position, normal) for frame in frames])
    order = np.argsort(heights, kind="stable")
    frames, heights = [frames[index] for index in order], heights[order]
    _check_heights(frames, heights, path)
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1) if len(frames) > 1 else normal * first.thickness
    _check_straight(positions, step, normal, first, path)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * first.spacing[1], column * first.spacing[0], step])
    affine[:3, 3] = positions[0]
    # DICOM's first two axes run to the left and to the back, ours to the right and to the front.
    affine[:2] *= -1
    return frames, affine


def _check_alike(frames: Sequence[Frame], path: Path) -> None:
    """Raises ValueError unless all slices say where they lie, and have one size, direction and pixel."""
    for name, field in (
        ("PixelSpacing", "spacing"),
        ("ImageOrientationPatient", "orientation"),
        ("ImagePositionPatient", "position"),
    ):
        lacking = next((frame for frame in frames if not getattr(frame, field)), None)
        if lacking is not None:
            raise ValueError(
                f"Expected {name} in {lacking.path}. Received: none, so that nothing says "
                f"{'how large a pixel is' if field == 'spacing' else 'where the slice lies'}. Take the original series."
            )
    first = frames[0]
    for what, field, tolerance in (
        ("size", "size", 0.0),
        ("orientation", "orientation", _SAME_ANGLE),
        ("pixel spacing", "spacing", _SAME_SIZE * max(first.spacing)),
    ):
        kinds: dict[tuple, int] = {}
        for frame in frames:
            value = getattr(frame, field)
            same = next((kind for kind in kinds if max(abs(a - b) for a, b in zip(kind, value, strict=True)) <= tolerance), value)
            kinds[same] = kinds.get(same, 0) + 1
        if len(kinds) > 1:
            listed = ", ".join(f"{number} of {_join(kind, 'x' if field == 'size' else ' ')}" for kind, number in list(kinds.items())[:3])
            raise ValueError(
                f"Expected slices of one {what} in {path}. Received: {listed}{', ...' if len(kinds) > 3 else ''}. "
                "It may be a localiser or several scans: keep the slices of one."
            )


def _check_heights(frames: Sequence[Frame], heights: np.ndarray, path: Path) -> None:
    """Raises ValueError if slices lie at one place, or some are missing."""
    distances = np.diff(heights)
    same = np.flatnonzero(distances <= _SAME_MM)
    if same.size:
        one, other = frames[same[0]], frames[same[0] + 1]
        differing = next((name for name in one.repeats if one.repeats[name] != other.repeats.get(name, "")), "")
        how = ""
        if differing in other.repeats:
            how = f", which differ in {differing} ({one.repeats[differing]} and {other.repeats[differing]})"
        raise ValueError(
            f"Expected one slice at each place in {path}. Received: {_name(one, path)} and {_name(other, path)} at one place{how}, and "
            f"{same.size} such pair(s) in all. Keep one image of each slice."
        )
    if distances.size < 2:
        return
    usual = float(np.sort(distances)[(distances.size - 1) // 2])
    gaps = np.flatnonzero(distances > 1.5 * usual)
    if gaps.size:
        missing = int(np.rint(distances[gaps] / usual - 1).sum())
        raise ValueError(
            f"Expected slices {usual:.4g} mm apart in {path}. Received: a gap of {distances[gaps[0]]:.4g} mm behind slice {gaps[0] + 1} "
            f"({_name(frames[gaps[0]], path)}), so that about {max(1, missing)} of {len(frames) + max(1, missing)} slices are missing. "
            "Copy the series again."
        )


def _check_straight(positions: np.ndarray, step: np.ndarray, normal: np.ndarray, first: Frame, path: Path) -> None:
    """Raises ValueError unless slices of equal distance lie straight above one another."""
    length = float(np.linalg.norm(step))
    sine = float(np.linalg.norm(step - (step @ normal) * normal)) / length
    if sine > _MOST_TILT:
        angle = math.degrees(math.asin(min(1.0, sine)))
        raise ValueError(
            f"Expected slices straight above one another in {path}. Received: a stack that leans by {angle:.1f} degrees (gantry tilt). "
            "Resample it to a straight grid."
        )
    beside = positions - positions[0] - np.arange(len(positions))[:, None] * step
    along = beside @ normal
    across = np.linalg.norm(beside - along[:, None] * normal, axis=1)
    if (worst := float(np.abs(along).max())) > _MOST_UNEVEN * length:
        raise ValueError(
            f"Expected slices at equal distances in {path}. Received: a slice {worst:.3g} mm beside its place, where slices are "
            f"{length:.4g} mm apart. Resample the series to equal distances."
        )
    if (worst := float(across.max())) > _MOST_SHIFTED * min(first.spacing):
        raise ValueError(
            f"Expected slices straight above one another in {path}. Received: a slice that is shifted by {worst:.3g} mm within its plane. "
            "Resample the series to a straight grid."
        )


def _name(frame: Frame, place: Path) -> str:
    """Names a slice by its file below the folder of its series."""
    name = frame.path.relative_to(place).as_posix() if place in frame.path.parents else frame.path.name
    return f"{name} frame {frame.index + 1}" if frame.index else name


def _join(values: Sequence[float], separator: str) -> str:
    return separator.join(f"{value:g}" for value in values)
