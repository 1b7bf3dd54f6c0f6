"""Anatomies drawn by formula, written in each data set's own layout, quirks included.

A person without scans can train, predict and test on these. Nothing here is copied from a patient.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

from modules.phantom.brain import BRAIN_CLASSES, draw_brain, draw_lgg
from modules.phantom.pelvis import PELVIS_CLASSES, draw_pelvis, draw_pelvis_anatomy, render_pelvis

__all__ = ["BRAIN_CLASSES", "PELVIS_CLASSES", "draw_brain", "draw_pelvis", "write_hipmri", "write_lgg", "write_oasis"]

SPLITS = ("train", "validate", "test")


def _write_once(root: Path, fill: Callable[[Path], None]) -> Path:
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


def _check_counts(subjects: tuple[int, ...], slices: int) -> None:
    """Raises ValueError unless there is at least one slice and no count is negative."""
    if len(subjects) not in (1, 3) or min(subjects) < 0:
        raise ValueError(f"Expected `subjects` >= 0, one number for each of train, validate and test. Received: {subjects}.")
    if slices < 1:
        raise ValueError(f"Expected `slices` >= 1. Received: {slices}.")


def _list_subjects(subjects: tuple[int, int, int]) -> list[tuple[str, int]]:
    """Returns (split, index) of each subject; indices interleave, so that a larger split leaves the other ones alone."""
    return [
        (split, 3 * number + offset) for offset, (split, count) in enumerate(zip(SPLITS, subjects, strict=True)) for number in range(count)
    ]


def _make_split_folders(folder: Path, stem: str) -> None:
    """Makes the folders of images and of masks of every split, those without subjects too."""
    for split in SPLITS:
        (folder / f"{stem}_{split}").mkdir()
        (folder / f"{stem}_seg_{split}").mkdir()


def _write_nifti(path: Path, array: np.ndarray) -> None:
    """Writes `array` with an identity affine; without a time stamp, so that equal arrays give equal files."""
    image = nib.Nifti1Image(array, np.eye(4), dtype=array.dtype)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_picture(path: Path, array: np.ndarray) -> None:
    """Writes uint8 (height, width) or RGB (height, width, 3) in the format that the name ends in."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def write_hipmri(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes pelves as HipMRI 2-D slices: `keras_slices_train/case_005_week_1_slice_0.nii.gz` and its `seg_` twin.

    The quirks of the real set are there: scans of 144 columns, trailing axes of 1, four image and two label dtypes, patients
    of two weeks. `slice_0` is the lowest.

    Args:
        root: folder to make; one that exists is returned untouched.
        seed: with the subject's number the only source of randomness.
        subjects: patients in train, validate and test. More of them leave the earlier ones as they are.
        slices: slices of each scan.

    Returns:
        `root`.

    Raises:
        ValueError: if a count is negative or `slices` is below 1.
    """
    _check_counts(subjects, slices)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_slices")
        for split, index in _list_subjects(subjects):
            rng = np.random.default_rng([seed, index])
            anatomy = draw_pelvis_anatomy(rng)
            shape = (slices, 256, 144 if index % 5 == 3 else 128)
            image_type = (np.float64, np.int16, np.uint16, np.float32)[index % 4]
            label_type = (np.uint8, np.float64)[index // 2 % 2]
            for week in range(1, 3 if index % 4 == 0 else 2):
                image, label = render_pelvis(anatomy, rng, shape)
                image = (image if np.issubdtype(image_type, np.floating) else image.round()).astype(image_type)
                if index % 5 == 2:
                    image, label = image[..., None], label[..., None]
                for number in range(slices):
                    name = f"{5 + index:03d}_week_{week}_slice_{number}.nii.gz"
                    _write_nifti(folder / f"keras_slices_{split}" / f"case_{name}", image[number])
                    _write_nifti(folder / f"keras_slices_seg_{split}" / f"seg_{name}", label[number].astype(label_type))

    return _write_once(root, fill)


def write_oasis(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes brains as OASIS slices: `keras_png_slices_train/case_001_slice_0.nii.png` and its `seg_` twin.

    Pictures are 8-bit grey, 256x256, anterior to the right as in the real set; masks hold 0, 85, 170, 255. Arguments, result
    and errors are those of `write_hipmri`.
    """
    _check_counts(subjects, slices)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_png_slices")
        for split, index in _list_subjects(subjects):
            image, label = draw_brain(np.random.default_rng([seed, index]), (slices, 256, 256))
            image = np.clip(image * (195 / np.percentile(image, 99.8)), 0, 255).round().astype(np.uint8)
            image, label = (np.rot90(array, -1, axes=(1, 2)) for array in (image, label * np.uint8(85)))
            for number in range(slices):
                name = f"{1 + index:03d}_slice_{number}.nii.png"
                _write_picture(folder / f"keras_png_slices_{split}" / f"case_{name}", image[number])
                _write_picture(folder / f"keras_png_slices_seg_{split}" / f"seg_{name}", label[number])

    return _write_once(root, fill)


def write_lgg(root: Path, *, seed: int = 42, subjects: int = 15, slices: int = 16) -> Path:
    """Writes heads with a glioma as LGG: `TCGA_XX_NNNN_YYYYMMDD/TCGA_XX_NNNN_YYYYMMDD_1.tif` and `..._1_mask.tif`.

    Pictures are 256x256x3 uint8 in the order pre-contrast, FLAIR, post-contrast, with scalp and skull; masks hold 0 and 255,
    and about half of them are empty. Slices count from 1, the lowest.

    `subjects` is one number, as the set has no official split; other arguments, result and errors are those of `write_hipmri`.
    """
    _check_counts((subjects,), slices)

    def fill(folder: Path) -> None:
        for index in range(subjects):
            rng = np.random.default_rng([seed, index])
            image, mask = draw_lgg(rng, (slices, 256, 256))
            site = ("CS", "DU", "FG", "HT")[index % 4]
            case_id = f"TCGA_{site}_{9001 + index}_{rng.integers(1990, 2005)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
            (folder / case_id).mkdir()
            for number in range(slices):
                _write_picture(folder / case_id / f"{case_id}_{number + 1}.tif", image[number])
                _write_picture(folder / case_id / f"{case_id}_{number + 1}_mask.tif", mask[number] * np.uint8(255))

    return _write_once(root, fill)
