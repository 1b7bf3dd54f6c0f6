"""Cases and volumes: what is read from disk, what is checked on the way in, and how a label map goes back.

Every reader here either returns data that can be trusted (finite, the values that were promised, one shape within a pair) or
raises an error that names the file. Nothing is repaired silently.

NIfTI-1 files of the ordinary kind are decoded by `modules.nifti`; nibabel reads whatever else there is. nibabel and OpenCV are
imported where they are needed: a command that only prints its help reads no file.
"""

import functools
import hashlib
import logging
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from modules.nifti import decode_nifti

NIFTI_SUFFIXES = (".nii", ".nii.gz")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")
SUFFIXES = NIFTI_SUFFIXES + PICTURE_SUFFIXES

_UNKNOWN = 255
_PIECE = 1 << 16

# It can only be read by changing it, and that is not safe once there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to predict, and where it lies.

    Attributes:
        case_id: Unique within the data set; also the name used in tables and pictures.
        subject_id: Who was scanned. Splits are made by subject, never by case.
        image_paths: One file, or one a channel.
        label_path: The reference segmentation, or None where there is none.
        split: "train", "validate" or "test" where the data set has an official split, else None.
        volume_id: For a slice, the scan it was cut from: slices of one scan are also scored as one volume.
        slice_index: For a slice, its place within that scan.
    """

    case_id: str
    subject_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    split: str | None = None
    volume_id: str | None = None
    slice_index: int = 0


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are in the world; the spatial rank is 2 for a slice and 3 for a scan.

    Attributes:
        array: An image `(*S, C)` float32, or a label map `(*S)` of integers. Axes of length one in the file are dropped.
        affine: `(4, 4)`, voxel indices of the file to millimetres (RAS+); None for pictures, which have no geometry.
        spacing_mm: The voxel's size along each axis of `S`; ones for pictures.
    """

    array: np.ndarray
    affine: np.ndarray | None
    spacing_mm: tuple[float, ...]


def suffix_of(path: Path) -> str:
    """The suffix of `path` in lower case, `.nii.gz` being one; "" for a kind of file that is not read here."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def stem_of(path: Path) -> str:
    """The file's name without its suffix: `case_1.nii.gz` and `case_1.nii.png` are both `case_1`."""
    name = path.name[: len(path.name) - len(suffix_of(path))]
    # OASIS slices are called `*.nii.png` although they are plain PNG files.
    return name.removesuffix(".nii")


def read_volume(paths: Iterable[Path], on_bytes: Callable[[bytes], object] | None = None) -> Volume:
    """Reads an image, given as one file or as one file a channel.

    Args:
        paths: NIfTI, PNG or TIFF files of one shape.
        on_bytes: Called with the bytes of each file as they lie on disk, in the order of `paths`: to hash what was read
            without reading it again.

    Returns:
        A `Volume` whose array is `(*S, C)` float32 in the file's own intensities.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is empty, cut short, of another format than its name says, holds NaN or infinite values, or if
            the channels differ in shape.
    """
    volumes = []
    for path in paths:
        volume = _read_file(Path(path), on_bytes)
        _check_finite(volume.array, path)
        volumes.append(Volume(_to_float32(volume.array), volume.affine, volume.spacing_mm))
    first = volumes[0]
    if len(volumes) == 1:
        return first
    for path, volume in zip(paths, volumes, strict=True):
        if volume.array.shape != first.array.shape:
            raise ValueError(f"Expected channels of one shape, {first.array.shape[:-1]}. Received: {volume.array.shape[:-1]} in {path}.")
    return Volume(np.concatenate([volume.array for volume in volumes], axis=-1), first.affine, first.spacing_mm)


def read_label(
    path: Path, label_values: Mapping[int, int], dataset: str = "", on_bytes: Callable[[bytes], object] | None = None
) -> np.ndarray:
    """Reads a segmentation and turns the file's values into class indices.

    Args:
        path: A NIfTI, PNG or TIFF file of one channel.
        label_values: `{value in the file: class index}`; several values may mean one class.
        dataset: The data set's name, for the error text.
        on_bytes: Called with the file's bytes as they lie on disk.

    Returns:
        `(*S)` uint8 class indices.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the file cannot be read, has several channels, or holds a value that is not in `label_values`.
    """
    array = _read_file(Path(path), on_bytes).array
    if array.shape[-1] != 1:
        raise ValueError(f"Expected a label of one channel. Received: {array.shape[-1]} channels in {path}.")
    array = array[..., 0]
    if min(label_values) < 0:
        raise ValueError(f"Expected `label_values` of 0 or more. Received: {min(label_values)}.")
    label = _look_up_bytes(array, label_values)
    if label is not None:
        return label
    _check_finite(array, path)
    label = _look_up(array, label_values)
    strange = array[label == _UNKNOWN]
    if strange.size:
        raise ValueError(
            f"Expected `label` values in {tuple(sorted(label_values))}. Received: {strange.flat[0]:g} in {path} "
            f"({strange.size} pixels). Correct the file, or add the value to `label_values` of '{dataset}' in dataset.py."
        )
    return label


def read_label_of(
    case: Case,
    image: Volume,
    label_values: Mapping[int, int],
    dataset: str = "",
    on_bytes: Callable[[bytes], object] | None = None,
) -> np.ndarray:
    """Reads the label `(*S)` uint8 of a case whose image is at hand, and checks that both have one shape (else ValueError)."""
    label = read_label(case.label_path, label_values, dataset, on_bytes)
    if label.shape != image.array.shape[:-1]:
        raise ValueError(
            f"Expected image and label of one shape. Received: image {image.array.shape[:-1]} in {case.image_paths[0]}, "
            f"label {label.shape} in {case.label_path}. Remove the pair or correct it."
        )
    return label


def write_label_like(path: Path, label: np.ndarray, reference: Path) -> None:
    """Writes a label map as a file of the reference's own format, shape, affine, spacing and dtype family.

    A floating-point NIfTI gets a float32 label map, an integer one the smallest of uint8, int16 and int32 that holds the
    values, and pictures get one 8- or 16-bit channel.

    Args:
        path: Where to write; its suffix must be that of `reference`.
        label: `(*S)` non-negative integers, in the file's values (not class indices).
        reference: The image that was predicted.
    """
    largest = int(label.max(initial=0))
    with replace_file(path) as temporary:
        if suffix_of(reference) in PICTURE_SUFFIXES:
            _write_picture(temporary, label.astype(np.uint8 if largest <= 255 else np.uint16))
            return
        source = _import_nibabel().load(reference)
        if np.issubdtype(source.get_data_dtype(), np.floating):
            dtype = np.float32
        else:
            dtype = next(kind for kind in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(kind).max)
        shape = source.shape if np.prod(source.shape) == label.size else source.shape[:3]
        _write_nifti(temporary, label.astype(dtype).reshape(shape), source)


def write_probabilities_like(path: Path, probabilities: np.ndarray, reference: Path) -> None:
    """Writes `(*S, K)` float32 probabilities: a NIfTI with a last axis of K on the reference's grid, or `.npz` for pictures."""
    with replace_file(path) as temporary:
        if suffix_of(reference) in PICTURE_SUFFIXES:
            np.savez_compressed(temporary, probabilities=probabilities)
            return
        source = _import_nibabel().load(reference)
        # NIfTI keeps its first three axes for space: a slice gets a third axis of one before the classes.
        spatial = (*source.shape, 1)[:3]
        _write_nifti(temporary, probabilities.astype(np.float32).reshape(*spatial, probabilities.shape[-1]), source)


def fingerprint_files(paths: Iterable[Path]) -> str:
    """A hash that changes when a file is replaced: of each absolute path, size and time of last change (not the content)."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            folder, name = os.path.split(path)
            where = os.stat(folder or ".")
            place = os.path.join(_resolve_folder(os.path.join(os.getcwd(), folder), where.st_dev, where.st_ino), name)
        else:
            status, place = os.stat(path), os.path.realpath(path)
        digest.update(f"{place}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _resolve_folder(folder: str, device: int, inode: int) -> str:
    """The folder's path without symbolic links; device and inode are there so that a link turned elsewhere is followed anew."""
    return os.path.realpath(folder)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` on success, so no reader ever sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: libraries choose the format by it.
    handle, name = tempfile.mkstemp(prefix=f".{stem_of(path)}-", suffix=suffix_of(path) or path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_file(path: Path, on_bytes: Callable[[bytes], object] | None) -> Volume:
    """Reads one file: `(*S, C)` in the file's own integers, or float32 where it holds or means real numbers, still unchecked."""
    suffix = suffix_of(path)
    try:
        data = _read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check the path.") from error
    except OSError as error:
        raise ValueError(f"Expected a file that can be read in {path}. Received: {error.strerror}. Check its permissions.") from error
    if not data:
        raise ValueError(f"Expected an image in {path}. Received: an empty file. Copy or download it again.")
    if suffix in NIFTI_SUFFIXES:
        volume = _read_nifti(path, data)
    elif suffix in PICTURE_SUFFIXES:
        volume = _read_picture(path, data)
    else:
        raise ValueError(f"Expected a file ending in {', '.join(SUFFIXES)}. Received: {path}.")
    if on_bytes is not None:
        on_bytes(data)
    return volume


def _read_bytes(path: Path) -> bytes:
    # Each call to the system hands Python's lock to another thread, which for small files costs more than the call: a file
    # object makes twice as many as these.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(file).st_size
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):  # one call reads no more than 2 GiB
            data += more
        return data
    finally:
        os.close(file)


def _check_finite(array: np.ndarray, path: Path) -> None:
    # The greatest and the least value are infinite if any is, and NaN if any is.
    if array.dtype.kind == "f" and not (math.isfinite(array.max()) and math.isfinite(array.min())):
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"Expected finite values. Received: {count} NaN or infinite in {path}. Mend or leave out the file.")


def _to_float32(array: np.ndarray) -> np.ndarray:
    """`array` itself where it is float32 already, else in float32, rounded as nibabel does it: 64-bit numbers twice."""
    if array.dtype == np.float32:
        return array
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        array = array.astype(np.float64)
    return array.astype(np.float32)


def _look_up_bytes(array: np.ndarray, label_values: Mapping[int, int]) -> np.ndarray | None:
    """`_look_up` at ten times its speed; None where not every value is a whole number up to 255 that means a class."""
    table = bytearray([_UNKNOWN]) * 256
    for value, index in label_values.items():
        if value < 256:
            table[value] = index
    if array.dtype == np.uint8 and all(label_values.get(index) == index for index in range(len(label_values))):
        # Most files hold the indices themselves.
        return array if array.max(initial=0) < len(label_values) else None
    order = "F" if array.flags.f_contiguous else "C"
    flat = array.ravel(order)
    label = np.empty(flat.shape, np.uint8)
    # In pieces that stay in the processor's cache: fresh memory for each step over a whole volume costs more than the steps.
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


def _look_up(array: np.ndarray, label_values: Mapping[int, int]) -> np.ndarray:
    """The class index of each value, uint8, and `_UNKNOWN` for values outside the table, fractions included."""
    lookup = np.full(max(label_values) + 2, _UNKNOWN, np.uint8)
    for value, index in label_values.items():
        lookup[value] = index
    # Exact for all integers that can be in the table. Its last entry stays unknown.
    array = array.astype(np.float64)
    inside = (array >= 0) & (array < len(lookup) - 1) & (array == np.rint(array))
    return lookup[np.where(inside, array, len(lookup) - 1).astype(np.int32)]


def _read_nifti(path: Path, data: bytes) -> Volume:
    try:
        shape, zooms, affine, array = decode_nifti(data, path.name.lower().endswith(".gz")) or _load_nifti(path)
    except Exception as error:  # a damaged header can make nibabel and zlib fail in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected a whole NIfTI file in {path}. Received: {reason}. Copy or download it again.") from error
    # The first three axes are space, what comes behind them are channels; axes of length one are neither.
    kept = [axis for axis, size in enumerate(shape[:3]) if size > 1]
    channels = [size for size in shape[3:] if size > 1] or [1]
    if len(kept) < 2 or len(channels) > 1:
        raise ValueError(f"Expected a slice or a volume in {path}. Received: an array of shape {shape}.")
    spacing = [zoom if zoom > 0 else 1.0 for zoom in zooms]
    array = array.reshape([*(shape[axis] for axis in kept), channels[0]])
    return Volume(array, affine, tuple(spacing[axis] for axis in kept))


def _load_nifti(path: Path) -> tuple[tuple[int, ...], list[float], np.ndarray, np.ndarray]:
    """Shape, zooms, affine and float32 array of whatever nibabel can read."""
    source = _import_nibabel().load(path)
    if source.get_data_dtype().kind not in "iuf":
        raise ValueError(f"values of type {source.get_data_dtype()}, which are no intensities")
    if 0 in source.shape:
        raise ValueError(f"an array of shape {source.shape}")
    array = source.get_fdata(dtype=np.float32, caching="unchanged")
    return source.shape, [float(zoom) for zoom in source.header.get_zooms()], np.asarray(source.affine), array


def _read_picture(path: Path, data: bytes) -> Volume:
    # Bytes and not the file's name, because OpenCV mangles some names and only warns when it fails.
    if suffix_of(path) == ".png" and not _is_whole_png(data):
        raise ValueError(f"Expected a whole PNG picture in {path}. Received: a file cut or damaged. Copy or download it again.")
    cv2 = _import_cv2()
    try:
        _, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"Expected a picture in {path}. Received: {error.err}. Copy or download it again.") from error
    if len(pages) != 1:
        raise ValueError(f"Expected a whole PNG or TIFF of one picture in {path}. Received: {len(pages)} pictures. Split or copy it again.")
    array = pages[0]
    if array.ndim == 2:
        array = array[..., np.newaxis]
    elif array.shape[-1] == 3:
        array = array[..., ::-1]
    elif array.shape[-1] == 4:
        array = array[..., [2, 1, 0, 3]]
    # Pictures of real numbers, which TIFF allows, are as NIfTI files of them.
    return Volume(_to_float32(array) if array.dtype.kind == "f" else array, None, (1.0, 1.0))


def _is_whole_png(data: bytes) -> bool:
    """Follows the chunks of a PNG and their check sums to the last, before libpng can print a line of its own about them."""
    place, kind = 8, b""
    while kind != b"IEND":
        size = int.from_bytes(data[place : place + 4], "big")
        body, check = data[place + 4 : place + 8 + size], data[place + 8 + size : place + 12 + size]
        if len(check) < 4 or zlib.crc32(body) != int.from_bytes(check, "big"):
            return False
        place, kind = place + 12 + size, body[:4]
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def _write_nifti(path: Path, array: np.ndarray, source) -> None:
    header = source.header.copy()
    header.set_data_dtype(array.dtype)
    header["cal_min"] = header["cal_max"] = 0
    _import_nibabel().save(type(source)(array, source.affine, header), path)


def _write_picture(path: Path, array: np.ndarray) -> None:
    encoded, data = _import_cv2().imencode(suffix_of(path), array)
    if not encoded:
        raise ValueError(f"Expected a picture that OpenCV can write as {path.suffix}. Received: {array.dtype} {array.shape}.")
    data.tofile(path)


# What is wrong with a file is said once, by our own error; these two libraries would write their own lines beside it.
@functools.cache
def _import_nibabel() -> ModuleType:
    import nibabel

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    return nibabel


@functools.cache
def _import_cv2() -> ModuleType:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
