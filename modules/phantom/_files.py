"""Helpers of every phantom's writer: a folder that is whole or not there, checked counts, files without time stamps."""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

# A coarser volume may miss a class.
LEAST_SIZE = 16

SPLITS = ("train", "validate", "test")


def write_once(root: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a sibling folder and renames it to `root`, so that a killed run leaves no half data set behind."""
    root = Path(root)
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        part = Path(folder) / root.name
        part.mkdir()
        fill(part)
        try:
            part.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process wrote the same files meanwhile
                raise
    return root


def check_count(name: str, count: int, least: int) -> None:
    """Raises ValueError if `count`, the argument of that name, is below `least`."""
    if count < least:
        raise ValueError(f"Expected `{name}` >= {least}. Received: {count}.")


def check_counts(subjects: tuple[int, int, int]) -> None:
    """Raises ValueError unless there is a number of subjects for each split and none is negative."""
    if len(subjects) != 3 or min(subjects) < 0:
        raise ValueError(f"Expected `subjects` >= 0, one number for each of train, validate and test. Received: {subjects}.")


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `shape` has three sizes, large enough for every class to be drawn."""
    if len(shape) != 3 or min(shape) < LEAST_SIZE:
        raise ValueError(f"Expected `shape` of three sizes >= {LEAST_SIZE}, in the axis order of the files. Received: {shape}.")


def list_subjects(subjects: tuple[int, int, int]) -> list[tuple[str, int]]:
    """Returns (split, index) of each subject. Indices interleave, so that a larger split leaves the other ones alone."""
    return [
        (split, 3 * number + offset) for offset, (split, count) in enumerate(zip(SPLITS, subjects, strict=True)) for number in range(count)
    ]


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, last_zoom: float | None = None) -> None:
    """Writes `array` as `.nii` or `.nii.gz`, without a time stamp, so that equal arrays give equal files.

    `affine` is the identity where it is not given. The header holds `last_zoom` for the last axis instead of the axis's own zoom.
    """
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    if last_zoom is not None:
        image.header["pixdim"][array.ndim] = last_zoom
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)


def write_picture(path: Path, array: np.ndarray) -> None:
    """Writes uint8 (height, width) or RGB (height, width, 3) in the format that the name ends in."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())
