"""The preprocessing of a plan: margins, voxel size and intensities, as the scans ask for them. All functions are pure."""

import math
from dataclasses import replace

import numpy as np

from modules.data.fingerprint import CaseMeasures, Fingerprint
from modules.data.patches import PLANES
from modules.data.preprocess import Preprocessing
from modules.data.spec import DatasetSpec
from modules.hardware import Hardware
from modules.run.settings import Settings

# Volumes are resampled to their median voxel size where one differs from it by more than this factor.
MOST_SPACING = 1.2
# Volumes are trained by slices on a CPU from this ratio of their longest to the next side of a voxel.
SLICES_FROM = 3.0
# And from so many voxels of what is not dark.
LARGE = 4 * 64**3
# The part of an image that its dark margins must take before they are cut off.
LEAST_MARGIN = 0.25


def choose_mode(settings: Settings, spec: DatasetSpec, fingerprint: Fingerprint, hardware: Hardware) -> dict[str, str]:
    """Chooses slices for volumes that are large for a CPU, or whose voxels are much longer than wide.

    A patch that a CPU can compute then shows little, and slices learn more in the same time. They lie across the longest side of a voxel.
    Slices that the user wants lie so too where voxels are flat: across another side they would show few and long pixels.

    Returns:
        `mode` and `plane` of the slices; nothing where the general rule applies.
    """
    if spec.spatial_dims == 2:
        return {}
    # Of equal sides the last is taken, which gives axial slices.
    coarse = max(range(3), key=lambda axis: (round(fingerprint.spacing_mm[axis], 3), axis))
    plane, flat = next(name for name, axis in PLANES.items() if axis == coarse), fingerprint.anisotropy >= SLICES_FROM
    if settings.mode == "slice" or (not settings.mode and len(settings.shape) == 2):
        return {"plane": plane} if flat and not settings.plane else {}
    # A shape of three sizes asks for volumes, and so do a network and a mode that the user names.
    if settings.mode or settings.network or settings.shape or hardware.kind == "gpu":
        return {}
    voxels = float(np.median([_count_voxels(case)[1] for case in fingerprint.cases]))
    return {"mode": "slice", "plane": plane} if flat or voxels >= LARGE else {}


def choose_preprocessing(
    settings: Settings, spec: DatasetSpec, preprocessing: Preprocessing, fingerprint: Fingerprint, reasons: dict[str, str]
) -> Preprocessing:
    """Completes a preprocessing by what follows from the scans.

    Args:
        settings: The user's settings.
        spec: The data set.
        preprocessing: The preprocessing as far as no scan is needed.
        fingerprint: The fingerprint of the training cases.
        reasons: Takes the reason for each decision.

    Raises:
        ValueError: If "ct" is asked for several channels.
    """
    preprocessing = _choose_crop(settings, preprocessing, fingerprint, reasons)
    preprocessing = _choose_spacing(settings, preprocessing, fingerprint, reasons)
    return _choose_intensity(settings, spec, preprocessing, fingerprint, reasons)


def _choose_crop(settings: Settings, preprocessing: Preprocessing, fingerprint: Fingerprint, reasons: dict[str, str]) -> Preprocessing:
    """Cuts dark margins off where they take a quarter of the image or more."""
    if settings.crop:
        return preprocessing
    whole, boxes = (float(np.median(sizes)) for sizes in zip(*map(_count_voxels, fingerprint.cases), strict=True))
    crop = boxes <= (1 - LEAST_MARGIN) * whole
    reasons["window"] += f"; dark margins of {100 * (1 - boxes / whole):.0f} % are cut off" if crop else ""
    return replace(preprocessing, foreground_crop=crop)


def _count_voxels(case: CaseMeasures) -> tuple[int, int]:
    """Counts the voxels of a case, and those of its box."""
    return math.prod(case.shape), math.prod(stop - start for start, stop in case.box)


def _choose_spacing(settings: Settings, preprocessing: Preprocessing, fingerprint: Fingerprint, reasons: dict[str, str]) -> Preprocessing:
    """Chooses the voxel size that volumes are resampled to.

    That is the median along each axis, as in nnU-Net. Of an axis more than 3 times as coarse as the others, with fewer than a third of
    their voxels, it is the 10th percentile. Volumes that hardly differ stay as they are: resampling would blur them for nothing.
    """
    if preprocessing.spacing_mm or preprocessing.spatial_dims == 2 or settings.resample == "none" or settings.mode == "volume":
        reasons["spacing"] = reasons["spacing"] or ("set" if settings.resample == "none" else "no resampling")
        return preprocessing
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    # Sizes without margins count, as in nnU-Net.
    target, voxels = np.median(spacings, axis=0), np.median(fingerprint.list_grids(preprocessing), axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    anisotropic = target[coarse] > 3 * target[others].max() and voxels[coarse] * 3 < voxels[others].min()
    factor = float(np.max(np.maximum(spacings / target, target / spacings)))
    if settings.resample != "median" and factor <= MOST_SPACING:
        reasons["spacing"] = f"no resampling: voxels differ by {100 * (factor - 1):.0f} % at most"
        return preprocessing
    if anisotropic:
        target[coarse] = max(float(np.percentile(spacings[:, coarse], 10)), float(target[others].max()))
    reasons["spacing"] = "the median" + (f", the 10th percentile along axis {coarse}" if anisotropic else "")
    return replace(preprocessing, spacing_mm=tuple(float(f"{size:.6g}") for size in target))


def _choose_intensity(
    settings: Settings, spec: DatasetSpec, preprocessing: Preprocessing, fingerprint: Fingerprint, reasons: dict[str, str]
) -> Preprocessing:
    """Chooses the normalisation of intensities: Hounsfield units stay comparable, and all else is a z-score over what is not empty."""
    kind, reason = settings.intensity, "set"
    if not kind:
        ct = len(spec.channels) == 1 and spec.channels[0].upper().startswith("CT")
        kind = "ct" if ct else "zscore"
        reason = "Hounsfield units of the training foreground" if ct else "of each scan over what is not empty"
    if kind == "own":
        kind, reason = preprocessing.intensity, "the data set's own"
    reasons["intensity"] = reason
    if kind != "ct" or preprocessing.intensity == "ct":
        return replace(preprocessing, intensity=kind)
    if len(spec.channels) > 1:
        raise ValueError(f"Expected one channel for `intensity` 'ct'. Received: {len(spec.channels)}. Choose 'zscore'.")
    low, high, mean, deviation = (float(f"{value:.6g}") for value in fingerprint.intensities[0])
    return replace(preprocessing, intensity=kind, clip=(low, high) if low < high else (), mean=mean, std=deviation or 1.0)
