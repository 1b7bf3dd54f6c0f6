"""Examines one case for `dataset.py check`: what is measured of it, or why it cannot be read."""

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from modules.data.alignment import align
from modules.data.cache import check_contrast
from modules.data.case import Case, Volume, read_case
from modules.data.documents import to_line
from modules.data.duplicates import hash_look, hash_voxels
from modules.data.files import PICTURE_SUFFIXES, suffix_of
from modules.data.fingerprint import CaseMeasures, measure_scan
from modules.data.formats import read_grid
from modules.data.preprocess import Geometry, find_orientation
from modules.data.regions import list_parts
from modules.data.resample import to_c_order
from modules.data.spec import DatasetSpec
from modules.predict.objects import find_objects

log = logging.getLogger("mri")

# The median intensity is that of about so many voxels.
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class Examined:
    """The measurements of one case.

    Attributes:
        case: The case.
        refusal: Why a training would refuse the case; "" where it would not.
        measures: Its shape, spacing, intensities and voxels, see `CaseMeasures`; None where it cannot be read.
        grids: How the label lies over its image: "same", "turned", "nearest voxels" or "voxel by voxel"; "" where nothing tells.
        intensities: Of each channel the least, the median of what is brighter than the least, and the greatest.
        voxel_ml: Millilitres of a voxel; NaN for slices, and where the size of a voxel is not known.
        objects: Number of connected objects of each class but the background.
        sides: For each pair of classes that mirror, how many mm the first one's centre lies further to the right than the second's.
            NaN where one is absent, or nothing says where right is.
        digest: Hash of the decoded voxels, see `hash_voxels`.
        look: Perceptual hash, see `hash_look`.
    """

    case: Case
    refusal: str = ""
    measures: CaseMeasures | None = None
    grids: str = ""
    intensities: tuple[tuple[float, float, float], ...] = ()
    voxel_ml: float = math.nan
    objects: tuple[int, ...] = ()
    sides: tuple[float, ...] = ()
    digest: str = ""
    look: bytes = b""


def examine(case: Case, spec: DatasetSpec) -> Examined:
    """Reads a case as a training does, and measures it. A file that cannot be read is no error here: `refusal` names it."""
    try:
        with keep_quiet():
            image, label = read_case(case, spec)
    except (OSError, ValueError) as error:
        return Examined(case, to_line(error))
    refusal = ""
    if label is not None:
        try:
            check_contrast(image.array, label, case)
        except ValueError as error:
            refusal = to_line(error)
    # Files have the first axis fastest. Each look at the voxels in another order would take several times as long.
    turned = to_c_order(Geometry(*find_orientation(image), (), (), ()).turn(image.array))
    known = image.affine is not None and image.array.ndim == 4
    return Examined(
        case,
        refusal,
        measure_scan(case, image, np.zeros(image.array.shape[:-1], np.uint8) if label is None else label, spec),
        _compare_grids(case, image),
        tuple(_measure_intensities(channel) for channel in turned.reshape(-1, turned.shape[-1]).T),
        math.prod(image.spacing_mm) / 1000 if known else math.nan,
        () if label is None else _count_objects(np.ascontiguousarray(label), spec),
        () if label is None else _measure_sides(label, image, spec.mirrored_indices()),
        hash_voxels(turned),
        hash_look(turned),
    )


def _measure_intensities(values: np.ndarray) -> tuple[float, float, float]:
    """Measures the least value, the median of those above it, and the greatest. The median is that of a regular sample."""
    least, greatest = float(values.min()), float(values.max())
    sample = values[:: max(1, values.size // _SAMPLE)]
    bright = sample[sample > least]
    return least, float(np.median(bright)) if bright.size else least, greatest


@contextmanager
def keep_quiet() -> Generator[None, None, None]:
    """Keeps the remarks of reading from the console: a line for each of a thousand labels would hide what matters."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _compare_grids(case: Case, image: Volume) -> str:
    """Says how the label of a case that was read lies over its image."""
    if case.label_path is None or suffix_of(case.label_path) in PICTURE_SUFFIXES:
        return ""
    label, shape = read_grid(case.label_path), image.array.shape[:-1]
    array = label.array[..., 0]
    aligned = align(array, label.affine, shape, image.affine)
    if aligned is array:
        return "same"
    if aligned is not None:
        return "turned"
    return "voxel by voxel" if case.ignore_geometry and array.shape == shape else "nearest voxels"


def _count_objects(label: np.ndarray, spec: DatasetSpec) -> tuple[int, ...]:
    """Counts the connected objects of each class but the background."""
    counts = []
    for parts in list_parts(spec.class_names, spec.regions):
        mask = label == parts[0] if len(parts) == 1 else np.isin(label, parts)
        counts.append(len(find_objects(mask).voxels) if mask.any() else 0)
    return tuple(counts)


def _measure_sides(label: np.ndarray, image: Volume, pairs: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Measures how far the centre of the first class of each pair lies to the right of the second's, in mm."""
    sides = []
    for one, other in pairs:
        places = [_find_right(label == index, image.affine) for index in (one, other)]
        sides.append(places[0] - places[1])
    return tuple(sides)


def _find_right(mask: np.ndarray, affine: np.ndarray | None) -> float:
    """Finds the world coordinate to the right (RAS+), in mm, of the centre of a mask `(*S)`; NaN without any voxel or affine."""
    total = np.count_nonzero(mask)
    if affine is None or not total:
        return math.nan
    right = float(affine[0, 3])
    for axis, size in enumerate(mask.shape):
        counts = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis))
        right += float(affine[0, axis]) * float(counts @ np.arange(size)) / total
    return right
