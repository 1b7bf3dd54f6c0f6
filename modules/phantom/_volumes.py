"""Phantoms in the layouts of 3-D data sets: HipMRI, IBSR18 and the Medical Segmentation Decathlon.

The anatomies of `pelvis` and `brain` are drawn as (slices, rows, columns). Slices run from inferior to superior, and rows from
anterior to posterior. Columns run from the patient's right to the left, as radiologists look at a picture.
"""

import json
from pathlib import Path

import numpy as np
from nibabel.eulerangles import euler2mat

from modules.phantom._files import SPLITS, check_count, check_counts, check_shape, list_subjects, write_nifti, write_once
from modules.phantom.brain import draw_brain
from modules.phantom.hippocampus import HIPPOCAMPUS_CLASSES, draw_hippocampus
from modules.phantom.pelvis import draw_pelvis_anatomy, get_pelvis_spacing, render_pelvis

_IBSR_FOLDERS = dict(zip(SPLITS, ("Training_Set", "Validation_Set", "Test_Set"), strict=True))
# Figures of the real set: voxels of a volume, its three in-plane spacings, its distance of slices, brightest voxels of some subjects.
_IBSR_SHAPE, _IBSR_SPACINGS_MM, _IBSR_SLICE_MM = (256, 128, 256), (1.0, 0.9375, 0.8370536), 1.5
_IBSR_MAXIMA = (79, 158, 90, 1289, 173, 141, 215, 94, 307)

_MSD_TEST_NUMBERS = (2, 5)


def _make_affine(spacing_mm, origin) -> np.ndarray:
    """Returns the affine of axis-parallel voxels; a negative spacing turns its axis round."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin
    return affine


def _name_hipmri3d(index: int, week: int) -> tuple[str, str]:
    """Returns the paths of image and label of a scan within the data set."""
    if index == 1:  # the other release's naming
        image, label = f"B{5 + index:03d}_Week{week}_LFOV.nii.gz", f"B{5 + index:03d}_Week{week}_SEMANTIC.nii.gz"
    else:
        image, label = (f"Case_{5 + index:03d}_Week{week}_{end}.nii.gz" for end in ("LFOV", "SEMANTIC_LFOV"))
    if index == 7:  # each file lies in a folder of its own name
        image, label = (f"{name.removesuffix('.gz')}/{name.removesuffix('.gz')}" for name in (image, label))
    return f"semantic_MRs_anon/{image}", f"semantic_labels_anon/{label}"


def write_hipmri3d(root: Path, *, seed: int = 42, subjects: int = 12, shape: tuple[int, int, int] = (128, 128, 64)) -> Path:
    """Writes pelves as HipMRI 3-D: `semantic_MRs_anon/Case_005_Week1_LFOV.nii.gz` and its `SEMANTIC` twin.

    Images are int16 and labels uint8. Axes run to left, posterior, superior (LPS). The quirks of the real set are there. Every fourth
    patient has two weeks, and Case_007 is of another shape. Case_012 lies as `.nii` in a folder of the same name. The second patient
    is named as in the other release, `B006_Week0_LFOV.nii.gz` with `B006_Week0_SEMANTIC.nii.gz`.

    Args:
        root: Folder to make; one that exists is returned untouched.
        seed: With the subject's number the only source of randomness.
        subjects: Patients. More of them leave the earlier ones as they are.
        shape: Voxels of a scan in the axis order of the files; the real ones have (256, 256, 128). With fewer columns (axis 0) than
            rows it shows a strip, see `draw_pelvis`.

    Returns:
        `root`.

    Raises:
        ValueError: If `subjects` is negative or `shape` is not three sizes of at least 16.
    """
    check_count("subjects", subjects, 0)
    check_shape(shape)

    def fill(folder: Path) -> None:
        for name in ("semantic_MRs_anon", "semantic_labels_anon"):
            (folder / name).mkdir()
        for index in range(subjects):
            rng = np.random.default_rng([seed, index])
            anatomy = draw_pelvis_anatomy(rng)
            columns, rows, slices = shape
            if index == 2:
                columns, slices = columns + columns // 8, slices - slices // 8
            spacing_mm = np.array(get_pelvis_spacing((slices, rows, columns))[::-1]) * (-1, -1, 1)
            affine = _make_affine(spacing_mm, -spacing_mm * (np.array([columns, rows, slices]) - 1) / 2)
            for week in (0,) if index in (1, 7) else (1, 2) if index % 4 == 0 else (1,):
                image, label = render_pelvis(anatomy, rng, (slices, rows, columns))
                for name, array in zip(_name_hipmri3d(index, week), (image.round().astype(np.int16), label), strict=True):
                    (folder / name).parent.mkdir(exist_ok=True)
                    write_nifti(folder / name, array.transpose(2, 1, 0), affine)

    return write_once(root, fill)


def write_ibsr18(
    root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (6, 2, 2), shape: tuple[int, int, int] = (96, 64, 96)
) -> Path:
    """Writes brains as IBSR18: `Training_Set/IBSR_07/IBSR_07.nii.gz` with `IBSR_07_seg.nii.gz`; no labels in `Test_Set`.

    Files are int16 of (*shape, 1) with a fourth zoom of 0. Axes run to right, anterior, superior (RAS). The extent is that of the
    real set, with three spacings in the sagittal and axial axes. The brightest voxels are those of the real set too, 79 to 1,289.
    Labels are 1 CSF (of the ventricles only), 2 grey matter, 3 white matter.

    Args:
        root: Folder to make; one that exists is returned untouched.
        seed: With the subject's number the only source of randomness.
        subjects: Subjects in training, validation and test set. More of them leave the earlier ones as they are.
        shape: Voxels of a scan in the axis order of the files; the real ones have (256, 128, 256).

    Returns:
        `root`.

    Raises:
        ValueError: If a count is negative or `shape` is not three sizes of at least 16.
    """
    check_counts(subjects)
    check_shape(shape)

    def fill(folder: Path) -> None:
        for name in _IBSR_FOLDERS.values():
            (folder / name).mkdir()
        for split, index in list_subjects(subjects):
            plane_mm = _IBSR_SPACINGS_MM[index // 3 % 3]
            real_mm = (plane_mm, _IBSR_SLICE_MM, plane_mm)
            right_mm, front_mm, up_mm = spacing_mm = [
                step * real / size for step, real, size in zip(real_mm, _IBSR_SHAPE, shape, strict=True)
            ]
            image, label = draw_brain(
                np.random.default_rng([seed, index]), shape[::-1], spacing_mm=(up_mm, front_mm, right_mm), label_sulci=False
            )
            image *= _IBSR_MAXIMA[index % len(_IBSR_MAXIMA)] / image.max()
            affine = _make_affine(spacing_mm, (-spacing_mm[0] * (shape[0] - 1), 0, 0))
            case_id = f"IBSR_{7 + index:02d}"
            case = folder / _IBSR_FOLDERS[split] / case_id
            case.mkdir()
            for name, array in ((case_id, image.round()), (f"{case_id}_seg", label)):
                if split != "test" or name == case_id:
                    array = array[:, ::-1, ::-1].transpose(2, 1, 0)[..., None].astype(np.int16)
                    write_nifti(case / f"{name}.nii.gz", array, affine, last_zoom=0)

    return write_once(root, fill)


def _describe_msd(training: list[int], nnunet: bool) -> dict:
    """Returns the content of `dataset.json`."""
    names = [name.capitalize() for name in HIPPOCAMPUS_CLASSES[1:]]
    if nnunet:
        return {
            "name": "Hippocampus phantom",
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, **{name: value for value, name in enumerate(names, 1)}},
            "numTraining": len(training),
            "file_ending": ".nii.gz",
        }
    return {
        "name": "Hippocampus phantom",
        "description": "Anterior and posterior part of a hippocampus drawn by formula",
        "reference": "none: no patient was scanned",
        "licence": "as the program that drew it",
        "tensorImageSize": "4D",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", **{str(value): name for value, name in enumerate(names, 1)}},
        "numTraining": len(training),
        "numTest": len(_MSD_TEST_NUMBERS),
        "training": [
            {"image": f"./imagesTr/hippocampus_{number:03d}.nii.gz", "label": f"./labelsTr/hippocampus_{number:03d}.nii.gz"}
            for number in training
        ],
        "test": [f"./imagesTs/hippocampus_{number:03d}.nii.gz" for number in _MSD_TEST_NUMBERS],
    }


def _draw_msd_case(seed: int, number: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image (*S, 2), label (*S) and affine of one case; S differs from `shape` by up to two voxels an axis."""
    rng = np.random.default_rng([seed, number])
    width, depth, height = (size + int(more) for size, more in zip(shape, rng.integers(-2, 3, 3), strict=True))
    image, label = draw_hippocampus(rng, (width, depth, height))
    affine = _make_affine((1, 1, 1), (1, 1, 1))
    if number % 3 == 0:
        affine[:3, :3] = euler2mat(*np.radians(rng.uniform(-7, 7, 3)))
    if number == 1:
        return np.clip(image * 150, 0, 255).round().astype(np.uint8), label, affine
    return image * np.float32(rng.uniform(800, 2500)), label.astype(np.float32) if number == 3 else label, affine


def write_folder(root: Path, *, seed: int = 42, subjects: int = 12, shape: tuple[int, int, int] = (40, 56, 40)) -> Path:
    """Writes hippocampi as a user's own folder: `images/p01.nii.gz`, T1 alone, with `labels/p01.nii.gz`, and `labels/labels.csv`.

    Arguments, result and errors are those of `write_msd`.
    """
    check_count("subjects", subjects, 0)
    check_shape(shape)

    def fill(folder: Path) -> None:
        for name in ("images", "labels"):
            (folder / name).mkdir()
        names = [f"{value},{name}\n" for value, name in enumerate(HIPPOCAMPUS_CLASSES)]
        (folder / "labels" / "labels.csv").write_text("".join(["value,name\n", *names]))
        for number in range(1, subjects + 1):
            image, label, affine = _draw_msd_case(seed, number, shape)
            write_nifti(folder / "images" / f"p{number:02d}.nii.gz", image[..., 0], affine)
            write_nifti(folder / "labels" / f"p{number:02d}.nii.gz", label, affine)

    return write_once(root, fill)


def write_msd(root: Path, *, seed: int = 42, subjects: int = 16, shape: tuple[int, int, int] = (40, 56, 40), nnunet: bool = False) -> Path:
    """Writes hippocampi as the Medical Segmentation Decathlon: `imagesTr`, `labelsTr`, `imagesTs` and `dataset.json`.

    Images hold T1 and T2 along a last axis, and voxels are 1 mm. Axes run to right, anterior, superior (RAS). The quirks of the real
    set are there. Shapes vary. Case 1 is uint8 and the others are float32. The label of case 3 is float32 and the others are uint8.
    The grid of every third case is turned by a few degrees. Two images, cases 2 and 5, are for testing and have no label.

    Args:
        root: Folder to make; one that exists is returned untouched.
        seed: With the case's number the only source of randomness.
        subjects: Labelled cases. More of them leave the earlier ones as they are.
        shape: Voxels about which the shapes vary by up to two an axis.
        nnunet: Whether to write the raw layout of nnU-Net v2 instead: one file a channel, `case_001_0000.nii.gz`.

    Returns:
        `root`.

    Raises:
        ValueError: If `subjects` is negative or `shape` is not three sizes of at least 16.
    """
    check_count("subjects", subjects, 0)
    check_shape(shape)
    training = [number for number in range(1, subjects + len(_MSD_TEST_NUMBERS) + 1) if number not in _MSD_TEST_NUMBERS][:subjects]

    def fill(folder: Path) -> None:
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / name).mkdir()
        (folder / "dataset.json").write_text(json.dumps(_describe_msd(training, nnunet), indent=1) + "\n")
        stem = "case" if nnunet else "hippocampus"
        for number in (*training, *_MSD_TEST_NUMBERS):
            image, label, affine = _draw_msd_case(seed, number, shape)
            images = folder / ("imagesTs" if number in _MSD_TEST_NUMBERS else "imagesTr")
            if nnunet:
                for channel in range(2):
                    write_nifti(images / f"{stem}_{number:03d}_{channel:04d}.nii.gz", image[..., channel], affine)
            else:
                write_nifti(images / f"{stem}_{number:03d}.nii.gz", image, affine)
            if number not in _MSD_TEST_NUMBERS:
                write_nifti(folder / "labelsTr" / f"{stem}_{number:03d}.nii.gz", label, affine)

    return write_once(root, fill)
