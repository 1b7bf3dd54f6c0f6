"""Cases: their records, and the one way to read them.

`read_case` reads an image with its label, checks both and turns label values into class indices. Training, scoring, pictures and
prediction all use its result. It returns data that can be trusted (finite, of the promised values, one shape within a pair) or
raises an error that names the file. It repairs nothing.
"""

import functools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from modules.data.alignment import align, describe_grid
from modules.data.formats import list_files, read_file, read_grid, to_float32
from modules.data.regions import IGNORE, MOST_CLASSES

log = logging.getLogger("mri")

_UNKNOWN = MOST_CLASSES
_TOLERANCE = 1e-3
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Case:
    """One scan or slice to predict, with the places of its files.

    Attributes:
        case_id: Identifier, unique within the data set. Tables and pictures name the case by it.
        subject_id: Person who was scanned. Splits divide subjects, never cases.
        image_paths: One file, or one file for each channel. A folder stands for a DICOM series.
        label_path: The reference segmentation, or None where there is none.
        split: "train", "validate" or "test" where the data set has an official split, else None.
        volume_id: Scan that a slice was cut from, else None. Slices of one scan are also scored as one volume.
        slice_index: Place of a slice within its scan.
        ignore_geometry: Whether a label of the image's shape is used voxel by voxel, wherever its header says that it lies.
        series: SeriesInstanceUID to read of each of `image_paths`; "", or nothing at all, for the only one that can be used.
    """

    case_id: str
    subject_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    split: str | None = None
    volume_id: str | None = None
    slice_index: int = 0
    ignore_geometry: bool = False
    series: tuple[str, ...] = ()

    def list_files(self) -> list[Path]:
        """Lists all files that the case is read from, the label last.

        Raises:
            FileNotFoundError, ValueError: If a folder or the header of several files cannot be read.
        """
        series = self.series or ("",) * len(self.image_paths)
        files = [file for path, uid in zip(self.image_paths, series, strict=True) for file in list_files(path, uid)]
        return files + (list_files(self.label_path) if self.label_path else [])


@dataclass(frozen=True)
class Volume:
    """Voxels with their place in the world. The spatial rank is 2 for a slice and 3 for a scan.

    Attributes:
        array: An image `(*S, C)` float32, or a label map `(*S)` of integers. Axes of length one in the file are dropped.
        affine: `(4, 4)`, voxel indices of the file to millimetres (RAS+); None for pictures, which have no geometry.
        spacing_mm: The voxel's size along each axis of `S`; ones for pictures.
    """

    array: np.ndarray
    affine: np.ndarray | None
    spacing_mm: tuple[float, ...]


class Predicted(NamedTuple):
    """A case with its prediction.

    Attributes:
        case: The case.
        image: The image as it was read.
        label: `(*S)` uint8 class indices and `IGNORE`, or None where the case has no label.
        prediction: `(*S)` uint8 class indices.
        probabilities: `(*S, K)` float32 if they were asked for, else None; of regions one map each, without the background.
    """

    case: Case
    image: Volume
    label: np.ndarray | None
    prediction: np.ndarray
    probabilities: np.ndarray | None = None


@dataclass(frozen=True)
class LabelRule:
    """The way a data set stores its labels. A model takes this rule along, so that it can be scored without the data set.

    Attributes:
        values: `{value in a file: class index}`; several values may mean one class. The index of values to leave out is `IGNORE`.
        output_values: Value that each class is written with, by class index.
        renames: Pairs of a regular expression and its replacement. Applied in order, they turn an image's file name into its label's.
        source: The data set's name, for error texts.
    """

    values: Mapping[int, int]
    output_values: tuple[int, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.values and min(self.values) < 0:
            raise ValueError(f"Expected `values` of 0 or more in a label rule. Received: {min(self.values)}.")
        if not self.output_values:
            first = {index: value for value, index in reversed(list(self.values.items())) if index != IGNORE}
            object.__setattr__(self, "output_values", tuple(first[index] for index in sorted(first)))

    @property
    def ignores(self) -> bool:
        """Tells if a label file may hold voxels that nobody judged."""
        return IGNORE in self.values.values()

    def name_label(self, name: str) -> str:
        """Returns the file name of the label that belongs to an image of file name `name`."""
        return rename(name, self.renames)

    def to_file_values(self, label: np.ndarray) -> np.ndarray:
        """Turns class indices `(*S)` into the values of a label file."""
        return np.asarray(self.output_values, np.min_scalar_type(max(self.output_values)))[label]


def rename(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """Applies pairs of a regular expression and its replacement to a file name, in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def place_in_volume(stem: str) -> tuple[str | None, int]:
    """Finds a slice's scan and its place there from its file's stem, `..._slice_12` or `..._12`; (None, 0) for any other stem."""
    match = re.fullmatch(r"(.+?)_(?:slice_)?(\d+)", stem)
    return (match[1], int(match[2])) if match else (None, 0)


class CaseRules(Protocol):
    """The rules that `read_case` needs. A data set and a trained model both have them."""

    @property
    def label_rule(self) -> LabelRule:
        """The way label files store the classes."""
        ...

    def check_image(self, image: Volume, name: str) -> None:
        """Raises ValueError, naming the file `name`, for an image of another kind than expected."""
        ...


def read_case(case: Case, rules: CaseRules, on_bytes: Callable[[bytes], object] | None = None) -> tuple[Volume, np.ndarray | None]:
    """Reads a case, checks it, and turns the values of its label into class indices.

    Args:
        case: The case to read.
        rules: A data set or a model.
        on_bytes: Called with the bytes of each image file, then of the label file.

    Returns:
        The image `(*S, C)` float32 and the label `(*S)` uint8 of class indices and `IGNORE`, or None where the case has no label.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file cannot be read, is not of the expected kind, or does not fit the other; the file is named.
    """
    image = read_volume(case.image_paths, on_bytes, case.series)
    rules.check_image(image, str(case.image_paths[0]))
    if case.label_path is None:
        return image, None
    label, affine = _read_label(case.label_path, rules.label_rule, on_bytes)
    if case.ignore_geometry and label.shape == image.array.shape[:-1]:
        return image, label
    return image, _align(label, affine, image, case.image_paths[0], case.label_path, "label")


def _align(array: np.ndarray, affine: np.ndarray | None, image: Volume, image_path: Path, path: Path, kind: str) -> np.ndarray:
    """Brings a label or a channel onto its image's grid; raises ValueError, naming both files, where it lies elsewhere."""
    shape = image.array.shape[:-1]
    aligned = align(array, affine, shape, image.affine, resample=kind == "label")
    if aligned is array:
        return array
    if aligned is not None:
        # Turning gives a view, and resampling a copy.
        _tell_aligned(kind, path, "turned" if np.may_share_memory(aligned, array) else "taken from the nearest voxels")
        return aligned
    if (affine is None) != (image.affine is None):
        raise ValueError(
            f"Expected image and {kind} both as volumes, or both as pictures, which have no place in the world. Received: {image_path} and "
            f"{path}. Convert one of them."
        )
    if affine is None:
        raise ValueError(
            f"Expected image and {kind} of one shape. Received: image {shape} in {image_path}, "
            f"{kind} {array.shape[: len(shape)]} in {path}. Remove the pair or correct it."
        )
    own = array.shape[: len(shape)]
    override = ", or use it voxel by voxel with `--ignore-geometry`" if kind == "label" and own == shape else ""
    raise ValueError(
        f"Expected image and {kind} over the same space. Received: image {describe_grid(shape, image.affine)} in {image_path}; "
        f"{kind} {describe_grid(own, affine)} in {path}. Resample the {kind} onto its image, or correct a header{override}."
    )


@functools.lru_cache(maxsize=1 << 16)
def _tell_aligned(kind: str, path: Path, how: str) -> None:
    """Tells how a file was brought onto its image's grid, once: a training reads each file several times."""
    log.info("%s %s has another grid over the same space than its image: %s", kind, path, how)


def require_label(case: Case, label: np.ndarray | None) -> np.ndarray:
    """Returns the label of a case that must have one; raises ValueError if it has none."""
    if label is None:
        raise ValueError(f"Expected a label for case {case.case_id}. Received: none. Add one, or leave the case out.")
    return label


def read_volume(paths: Sequence[Path], on_bytes: Callable[[bytes], object] | None = None, series: Sequence[str] = ()) -> Volume:
    """Reads an image from one file, or from one file for each channel.

    Args:
        paths: Files or folders that `read_file` reads, of one shape.
        on_bytes: Called with the bytes of each file as they lie on disk, in the order of `paths`. A caller can hash them without a
            second read. See `read_file` for what it gets of several files.
        series: Which DICOM series to read of each path, see `Case`.

    Returns:
        A `Volume` whose array is `(*S, C)` float32 in the file's own intensities.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is empty, cut short, not of the format that its name says, or holds NaN or infinite values. Also if the
            channels differ in shape.
    """
    volumes = []
    for path, uid in zip(paths, series or ("",) * len(paths), strict=True):
        volume = read_file(Path(path), on_bytes, uid)
        _check_finite(volume.array, path)
        volumes.append(Volume(to_float32(volume.array), volume.affine, volume.spacing_mm))
    first = volumes[0]
    if len(volumes) == 1:
        return first
    channels = [_align(volume.array, volume.affine, first, paths[0], path, "channel") for path, volume in zip(paths, volumes, strict=True)]
    return Volume(np.concatenate(channels, axis=-1), first.affine, first.spacing_mm)


def read_header(paths: Sequence[Path]) -> Volume:
    """Reads where the voxels of a volume lie, given as one file or as one a channel, without the voxels: all are 0.

    Raises:
        FileNotFoundError, ValueError: From reading the first file's header.
    """
    array, affine, spacing_mm = read_grid(paths[0])
    channels = len(paths) if len(paths) > 1 else array.shape[-1]
    return Volume(np.broadcast_to(np.float32(0), (*array.shape[:-1], channels)), affine, spacing_mm)


def read_label(path: Path, rule: LabelRule, on_bytes: Callable[[bytes], object] | None = None) -> np.ndarray:
    """Reads a segmentation and turns the file's values into class indices.

    Args:
        path: A file of one channel, of any format.
        rule: The way the file stores the classes.
        on_bytes: Called with the file's bytes as they lie on disk.

    Returns:
        `(*S)` uint8 class indices, and `IGNORE` where the rule says so.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the file cannot be read, has several channels, or holds a value that is not in `rule.values`.
    """
    return _read_label(path, rule, on_bytes)[0]


def _read_label(path: Path, rule: LabelRule, on_bytes: Callable[[bytes], object] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a segmentation as `read_label` does; returns it with its affine."""
    array, affine = read_label_values(path, on_bytes)
    label = _look_up_bytes(array, rule.values)
    if label is not None:
        return label, affine
    _check_finite(array, path)
    label = _look_up(array, rule.values)
    strange = array[label == _UNKNOWN]
    if strange.size:
        received = np.format_float_positional(strange.flat[0], trim="-") if array.dtype.kind == "f" else strange.flat[0]
        raise ValueError(
            f"Expected `label` values in {tuple(sorted(rule.values))}. Received: {received} in {path} "
            f"({strange.size} pixels). Correct the file, or name the value where '{rule.source}' has its classes: --classes, dataset.json "
            "or dataset.py."
        )
    return label, affine


def read_label_values(path: Path, on_bytes: Callable[[bytes], object] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a segmentation in the file's own values `(*S)`, without checking them; returns it with its affine.

    A grey picture that was saved with three equal channels, and perhaps an opaque fourth, counts as one of one channel.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the file cannot be read, or has several channels.
    """
    stored, affine, _ = read_file(Path(path), on_bytes)
    if affine is None and stored.shape[-1] in (3, 4):
        grey = stored[..., :1]
        if (stored[..., :3] == grey).all() and (stored[..., 3:] == stored.flat[-1]).all():
            stored = grey
    if stored.shape[-1] != 1:
        remedy = "Colours are no classes: save one grey value a class." if affine is None else "Save one value a voxel."
        raise ValueError(f"Expected a label of one channel. Received: {stored.shape[-1]} channels in {path}. {remedy}")
    return stored[..., 0], affine


def _check_finite(array: np.ndarray, path: Path) -> None:
    # One infinite or NaN value makes the maximum or the minimum infinite or NaN.
    if array.dtype.kind == "f" and not (math.isfinite(array.max()) and math.isfinite(array.min())):
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"Expected finite values. Received: {count} NaN or infinite in {path}. Mend or leave out the file.")


def _look_up_bytes(array: np.ndarray, values: Mapping[int, int]) -> np.ndarray | None:
    """Does the work of `_look_up` at ten times its speed.

    Returns None where any value is not a whole number up to 255 that means a class.
    """
    table = bytearray([_UNKNOWN]) * 256
    for value, index in values.items():
        if value < 256:
            table[value] = index
    if array.dtype == np.uint8 and all(values.get(index) == index for index in range(len(values))):
        # Most files hold the class indices themselves.
        return array if array.max(initial=0) < len(values) else None
    order = "F" if array.flags.f_contiguous else "C"
    flat = array.ravel(order)
    label = np.empty(flat.shape, np.uint8)
    # Pieces stay in the processor's cache. Fresh memory for each step over a whole volume would cost more than the step.
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if piece.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                small = piece.astype(np.uint8)
            if not (small == piece).all():
                return None
        elif piece.dtype == np.uint8 or (piece.min() >= 0 and piece.max() <= 255):
            small = piece.astype(np.uint8, copy=False)
        else:
            return None
        classes = bytearray(small).translate(table)
        if _UNKNOWN in classes:
            return None
        label[start : start + _PIECE] = classes
    return label.reshape(array.shape, order=order)


def _look_up(array: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Returns the class index of each value, uint8. Values outside the table become `_UNKNOWN`.

    A value within `_TOLERANCE` of a whole number means that number, because programs that resample or rescale labels leave such
    values. Any other fraction is unknown.
    """
    lookup = np.full(max(values) + 2, _UNKNOWN, np.uint8)
    for value, index in values.items():
        lookup[value] = index
    # Float64 holds every integer of the table exactly. The table's last entry stays unknown.
    array = array.astype(np.float64)
    whole = np.rint(array)
    inside = (whole >= 0) & (whole < len(lookup) - 1) & (np.abs(array - whole) <= _TOLERANCE)
    return lookup[np.where(inside, whole, len(lookup) - 1).astype(np.int32)]
