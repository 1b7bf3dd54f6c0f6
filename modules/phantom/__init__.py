"""Anatomies drawn by formula, written in each data set's own layout, quirks included.

A person without scans can train, predict and test on these. Nothing here is copied from a patient.
"""

from pathlib import Path

import numpy as np

from modules.phantom._files import SPLITS, check_count, check_counts, list_subjects, write_nifti, write_once, write_picture
from modules.phantom._volumes import write_folder, write_hipmri3d, write_ibsr18, write_msd
from modules.phantom.brain import BRAIN_CLASSES, draw_brain, draw_lgg
from modules.phantom.hippocampus import HIPPOCAMPUS_CLASSES, draw_hippocampus
from modules.phantom.pelvis import PELVIS_CLASSES, draw_pelvis, draw_pelvis_anatomy, render_pelvis

__all__ = [
    "BRAIN_CLASSES",
    "HIPPOCAMPUS_CLASSES",
    "PELVIS_CLASSES",
    "draw_brain",
    "draw_hippocampus",
    "draw_pelvis",
    "write_folder",
    "write_hipmri",
    "write_hipmri3d",
    "write_ibsr18",
    "write_lgg",
    "write_msd",
    "write_oasis",
]


def _make_split_folders(folder: Path, stem: str) -> None:
    """Makes the folders of images and of masks for every split, even for a split without subjects."""
    for split in SPLITS:
        (folder / f"{stem}_{split}").mkdir()
        (folder / f"{stem}_seg_{split}").mkdir()


def write_hipmri(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes pelves as HipMRI 2-D slices: `keras_slices_train/case_005_week_1_slice_0.nii.gz` and its `seg_` twin.

    The quirks of the real set are there: scans of 144 columns, trailing axes of 1, and patients of two weeks. Images have four dtypes
    and labels two. `slice_0` is the lowest.

    Args:
        root: Folder to make; one that exists is returned untouched.
        seed: With the subject's number the only source of randomness.
        subjects: Patients in train, validate and test. More of them leave the earlier ones as they are.
        slices: Slices of each scan.

    Returns:
        `root`.

    Raises:
        ValueError: If a count is negative or `slices` is below 1.
    """
    check_counts(subjects)
    check_count("slices", slices, 1)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_slices")
        for split, index in list_subjects(subjects):
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
                    write_nifti(folder / f"keras_slices_{split}" / f"case_{name}", image[number])
                    write_nifti(folder / f"keras_slices_seg_{split}" / f"seg_{name}", label[number].astype(label_type))

    return write_once(root, fill)


def write_oasis(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes brains as OASIS slices: `keras_png_slices_train/case_001_slice_0.nii.png` and its `seg_` twin.

    Pictures are 8-bit grey, 256x256, anterior to the right as in the real set. Masks hold 0, 85, 170, 255. Arguments, result and
    errors are those of `write_hipmri`.
    """
    check_counts(subjects)
    check_count("slices", slices, 1)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_png_slices")
        for split, index in list_subjects(subjects):
            image, label = draw_brain(np.random.default_rng([seed, index]), (slices, 256, 256))
            image = np.clip(image * (195 / np.percentile(image, 99.8)), 0, 255).round().astype(np.uint8)
            image, label = (np.rot90(array, -1, axes=(1, 2)) for array in (image, label * np.uint8(85)))
            for number in range(slices):
                name = f"{1 + index:03d}_slice_{number}.nii.png"
                write_picture(folder / f"keras_png_slices_{split}" / f"case_{name}", image[number])
                write_picture(folder / f"keras_png_slices_seg_{split}" / f"seg_{name}", label[number])

    return write_once(root, fill)


def write_lgg(root: Path, *, seed: int = 42, subjects: int = 15, slices: int = 16) -> Path:
    """Writes heads with a glioma as LGG: `TCGA_XX_NNNN_YYYYMMDD/TCGA_XX_NNNN_YYYYMMDD_1.tif` and `..._1_mask.tif`.

    Pictures are 256x256x3 uint8 in the order pre-contrast, FLAIR, post-contrast, with scalp and skull. Masks hold 0 and 255, and
    about half of them are empty. Slices count from 1, the lowest.

    `subjects` is one number, as the set has no official split. The other arguments, the result and the errors are those of
    `write_hipmri`.
    """
    check_count("subjects", subjects, 0)
    check_count("slices", slices, 1)

    def fill(folder: Path) -> None:
        for index in range(subjects):
            rng = np.random.default_rng([seed, index])
            image, mask = draw_lgg(rng, (slices, 256, 256))
            site = ("CS", "DU", "FG", "HT")[index % 4]
            case_id = f"TCGA_{site}_{9001 + index}_{rng.integers(1990, 2005)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
            (folder / case_id).mkdir()
            for number in range(slices):
                write_picture(folder / case_id / f"{case_id}_{number + 1}.tif", image[number])
                write_picture(folder / case_id / f"{case_id}_{number + 1}_mask.tif", mask[number] * np.uint8(255))

    return write_once(root, fill)
