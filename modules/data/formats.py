"""The file formats: files as arrays with their geometry, and label maps back in a scan's own format.

`modules.data.nifti` decodes ordinary NIfTI-1 files, and nibabel reads all others. `modules.data.volume_formats` reads the formats of ITK
and of FreeSurfer, and `modules.data.dicom` reads DICOM series. Libraries are imported only where they are needed: a command that only
prints its help reads no file.
"""

import errno
import functools
import hashlib
import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from modules.data.dicom import list_series_files, read_series
from modules.data.documents import to_line
from modules.data.files import (
    DETACHED_SUFFIXES,
    FREESURFER_SUFFIXES,
    ITK_SUFFIXES,
    LEAST_MM,
    MOST_MM,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    SUFFIXES,
    hash_file,
    replace_file,
    suffix_of,
)
from modules.data.nibabel_files import Grid, HeaderError, import_nibabel, load_nifti, open_nifti, read_header
from modules.data.nifti import decode_nifti
from modules.data.pictures import check_png, check_tiff
from modules.data.series import is_dicom
from modules.data.volume_formats import list_data_files, read_itk, read_mgh, write_itk, write_mgh

# No memory holds more numbers. A header that promises them lies.
_MOST_NUMBERS = 1 << 40
# No scanner is a kilometre long.
_FARTHEST_MM = 1e6


class StoredImage(NamedTuple):
    """One file as it was read, not checked yet.

    Attributes:
        array: `(*S, C)` in the file's own integers, or float32. Real or scaled numbers are always float32. Axes of length one are
            dropped.
        affine: `(4, 4)`, voxel indices of the file to millimetres (RAS+); None for pictures.
        spacing_mm: The voxel's size along each axis of `S`; ones for pictures.
    """

    array: np.ndarray
    affine: np.ndarray | None
    spacing_mm: tuple[float, ...]


def write_label_like(path: Path, label: np.ndarray, reference: Path, affine: np.ndarray | None = None, note: str = "") -> None:
    """Writes a label map on the reference's own grid, in the format that the suffix of `path` says.

    A scan gets the smallest of uint8, int16 and int32 that holds the values, whatever type the image has: viewers take real numbers
    for intensities. Pictures get one channel of 8 or 16 bits. A NIfTI of a NIfTI keeps shape, affine and codes of its header.

    Args:
        path: File to write; its suffix is one that `name_result_suffix(reference)` gives, with or without a wanted format.
        label: `(*S)` non-negative integers, in the file's values (not class indices).
        reference: The image that was predicted.
        affine: Of that image as it was read; not needed where both files are NIfTI, nor for pictures.
        note: Text for the header of a NIfTI, an extension of the kind "comment".

    Raises:
        ValueError: If the affine is needed and not there, or SimpleITK is needed and not installed.
    """
    suffix, largest = suffix_of(path), int(label.max(initial=0))
    with replace_file(path) as temporary:
        if suffix in PICTURE_SUFFIXES:
            _write_picture(temporary, label.astype(np.uint8 if largest <= 255 else np.uint16))
            return
        label = label.astype(next(kind for kind in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(kind).max))
        if suffix not in NIFTI_SUFFIXES:
            write = write_mgh if suffix in FREESURFER_SUFFIXES else write_itk
            write(temporary, to_volume(label), _require(affine, path))
            return
        if suffix_of(reference) in NIFTI_SUFFIXES:
            source = open_nifti(reference)
            shape = source.shape if np.prod(source.shape) == label.size else source.shape[:3]
            image = _make_like(label.reshape(shape), source)
        else:
            image = _make_nifti(to_volume(label), _require(affine, path))
        image.header.set_intent("label")
        # The extensions of the scan's header speak of the scan.
        image.header.extensions.clear()
        if note:
            image.header.extensions.append(import_nibabel().nifti1.Nifti1Extension("comment", note.encode()))
        import_nibabel().save(image, temporary)


def write_probabilities_like(path: Path, probabilities: np.ndarray, reference: Path, affine: np.ndarray | None = None) -> None:
    """Writes `(*S, K)` float32 probabilities: a NIfTI with a last axis of K on the reference's grid, or `.npz` for pictures.

    The affine is needed as by `write_label_like`.
    """
    probabilities = probabilities.astype(np.float32)
    with replace_file(path) as temporary:
        if suffix_of(reference) in PICTURE_SUFFIXES:
            np.savez_compressed(temporary, probabilities=probabilities)
            return
        if suffix_of(reference) in NIFTI_SUFFIXES:
            source = open_nifti(reference)
            # NIfTI keeps its first three axes for space, so a slice gets a third axis of one before the classes.
            image = _make_like(probabilities.reshape(*(*source.shape, 1)[:3], probabilities.shape[-1]), source)
        else:
            image = _make_nifti(to_volume(probabilities, values=1), _require(affine, path))
        import_nibabel().save(image, temporary)


def to_volume(array: np.ndarray, values: int = 0) -> np.ndarray:
    """Gives an array `(*S, ...)` of a slice a third axis in space, of one voxel; its last `values` axes are none in space."""
    spatial = array.ndim - values
    return array.reshape(*array.shape[:spatial], *(1,) * (3 - spatial), *array.shape[spatial:])


def list_files(path: Path, series: str = "") -> list[Path]:
    """Lists the files that `read_file` reads: the file itself, a header and its voxels, or those of a DICOM series.

    Raises:
        FileNotFoundError, ValueError: If a header or a folder cannot be read.
    """
    suffix = suffix_of(path)
    if suffix in DETACHED_SUFFIXES:
        return list_data_files(path)
    return list_series_files(path, series) if not suffix and path.is_dir() else [path]


def hash_source(path: Path, series: str = "") -> str:
    """Returns the SHA-256 of the bytes that `read_file` hands to `on_bytes`."""
    files = list_files(path, series)
    return hash_file(path) if files == [path] else hashlib.sha256(b"".join(bytes.fromhex(hash_file(file)) for file in files)).hexdigest()


def read_file(path: Path, on_bytes: Callable[[bytes], object] | None = None, series: str = "") -> StoredImage:
    """Reads one file, or a DICOM series, without checking its values.

    Args:
        path: A file of one of `SUFFIXES`, a DICOM file, or a folder with a DICOM series.
        on_bytes: Called once: with the file's bytes as they lie on disk, or with the SHA-256 of each of `list_files` if they are several.
        series: SeriesInstanceUID, number or description of the series; "" for the only one that can be used.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the file is empty, cut short, or of another format than its name says.
    """
    suffix = suffix_of(path)
    try:
        data = _read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if isinstance(error, IsADirectoryError) and not suffix:
            return _place(path, *read_series(path, series, on_bytes))
        raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check the path.") from error
    except OSError as error:
        raise ValueError(f"Expected a file that can be read in {path}. Received: {error.strerror}. Check its permissions.") from error
    if not data:
        raise ValueError(f"Expected an image in {path}. Received: an empty file. Copy or download it again.")
    if suffix in NIFTI_SUFFIXES:
        stored = _read_nifti(path, data)
    elif suffix in PICTURE_SUFFIXES:
        stored = _read_picture(path, data)
    elif suffix in FREESURFER_SUFFIXES:
        stored = _place(path, *read_mgh(path, data))
    elif suffix in ITK_SUFFIXES:
        stored = _place(path, *read_itk(path, data))
    elif is_dicom(path):
        stored = _place(path, *read_series(path))
    else:
        raise ValueError(f"Expected a file ending in {', '.join(SUFFIXES)}, or DICOM. Received: {path}.")
    if on_bytes is not None:
        others = list_files(path)[1:] if suffix in DETACHED_SUFFIXES else []
        on_bytes(b"".join(hashlib.sha256(part).digest() for part in (data, *map(_read_bytes, others))) if others else data)
    return stored


def _place(path: Path, grid: Grid, array: np.ndarray | None) -> StoredImage:
    """Makes the record of a file that another module has read. Without an array it is one zero, seen from everywhere."""
    shape, zooms, affine = grid
    layout, spacing = _find_layout(shape, zooms, affine, path)
    if array is None:
        array = np.broadcast_to(np.float32(0), layout)
    elif array.dtype.kind == "f":
        array = to_float32(array)
    return StoredImage(array.reshape(layout), _put_kept_first(affine, shape), spacing)


def _read_bytes(path: Path) -> bytes:
    # Each system call hands Python's lock to another thread, which for small files costs more than the call. A file object makes
    # twice as many calls as these.
    # A pipe without a writer would be waited for.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no plain file", str(path))
        size = status.st_size
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):  # one call reads no more than 2 GiB
            data += more
        return data
    finally:
        os.close(file)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Converts an array to float32, rounded as nibabel does it: 64-bit integers twice. A float32 array is returned itself."""
    if array.dtype == np.float32:
        return array
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        array = array.astype(np.float64)
    return array.astype(np.float32)


def _read_nifti(path: Path, data: bytes) -> StoredImage:
    try:
        shape, zooms, affine, array = decode_nifti(data, path.name.lower().endswith(".gz")) or load_nifti(path, data)
    except HeaderError:
        raise
    except Exception as error:  # a damaged header can make nibabel and zlib fail in any way
        raise _explain_nifti(path, error) from error
    layout, spacing = _find_layout(shape, zooms, affine, path)
    return StoredImage(array.reshape(layout), _put_kept_first(affine, shape), spacing)


def read_grid(path: Path, series: str = "") -> StoredImage:
    """Reads where the voxels of a volume lie, without the voxels: the array has their shape and is one zero, seen from everywhere.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If its header cannot be read, or holds no true geometry.
    """
    suffix = suffix_of(path)
    if not suffix and path.exists():
        return _place(path, *read_series(path, series, voxels=False))
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check the path.")
    if suffix in ITK_SUFFIXES:
        return _place(path, *read_itk(path, voxels=False))
    if suffix in FREESURFER_SUFFIXES:
        with path.open("rb") as file:
            return _place(path, *read_mgh(path, file.read(1 << 16), voxels=False))
    try:
        grid = read_header(path)
    except HeaderError:
        raise
    except Exception as error:  # a damaged header can make nibabel and zlib fail in any way
        raise _explain_nifti(path, error) from error
    return _place(path, grid, None)


def _explain_nifti(path: Path, error: Exception) -> ValueError:
    return ValueError(f"Expected a whole NIfTI file in {path}. Received: {to_line(error)}. Copy or download it again.")


def _find_layout(shape: Sequence[int], zooms: Sequence[float], affine: np.ndarray, path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Returns the shape `(*S, C)` that a file's array takes, and the size of a voxel in mm along each axis of `S`.

    The affine alone says where voxels lie, so their size is the length of its columns. Where the header's own size differs by no more
    than rounding, its number is kept, because it is the one that people wrote.

    Raises:
        ValueError: If the array is no slice or volume, or the geometry is not finite or absurd.
    """
    # The first three axes are space, and the axes behind them are channels. Axes of length one are neither.
    kept = [axis for axis, size in enumerate(shape[:3]) if size > 1]
    channels = [size for size in shape[3:] if size > 1] or [1]
    if len(kept) < 2 or len(channels) > 1 or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"Expected a slice or a volume in {path}. Received: an array of shape {tuple(shape)}.")
    if not np.isfinite(affine).all():
        raise ValueError(f"Expected a finite geometry in {path}. Received: NaN or infinity in its affine. Mend its header.")
    if (farthest := float(np.abs(affine[:3, 3]).max())) > _FARTHEST_MM:
        raise ValueError(
            f"Expected a first voxel within {_FARTHEST_MM:g} mm of the origin in {path}. Received: {farthest:g} mm. Mend its header."
        )
    spacing = []
    for axis in kept:
        with np.errstate(over="ignore"):
            length, zoom = float(np.linalg.norm(affine[:3, axis])), float(zooms[axis])
        if not math.isfinite(zoom):
            raise ValueError(f"Expected a finite voxel size in {path}. Received: {zoom} along axis {axis}. Mend its header.")
        spacing.append(zoom if abs(length - zoom) <= 1e-4 * zoom else length)
        for size in (length, zoom):
            if not LEAST_MM <= size <= MOST_MM:
                raise ValueError(
                    f"Expected voxels of {LEAST_MM:g} to {MOST_MM:g} mm in {path}. Received: {size:g} mm along axis {axis}. "
                    "Mend its header."
                )
    return (*(shape[axis] for axis in kept), channels[0]), tuple(spacing)


def _put_kept_first(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Orders the columns of an affine as the axes of the array that is returned, of which those of length one are dropped."""
    order = sorted(range(3), key=lambda axis: axis >= len(shape) or shape[axis] == 1)
    return affine if order == [0, 1, 2] else affine[:, [*order, 3]]


def _read_picture(path: Path, data: bytes) -> StoredImage:
    # OpenCV gets the bytes, not the file's name, because it mangles some names and only warns when it fails.
    cv2 = _import_cv2()
    try:
        if suffix_of(path) == ".png":
            data = check_png(data)
        else:
            check_tiff(data)
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise ValueError("pixels that OpenCV cannot decode")
    except (ValueError, cv2.error) as error:
        kind, reason = suffix_of(path)[1:4].upper().replace("TIF", "TIFF"), error.err if isinstance(error, cv2.error) else error
        raise ValueError(
            f"Expected a whole {kind} of one picture in {path}. Received: {to_line(reason)}. Convert it, or copy or download it again."
        ) from error
    if array.ndim == 2:
        array = array[..., np.newaxis]
    elif array.shape[-1] == 3:
        array = array[..., ::-1]
    elif array.shape[-1] == 4:
        array = array[..., [2, 1, 0, 3]]
    # TIFF allows real numbers. They become float32, as in NIfTI files.
    return StoredImage(to_float32(array) if array.dtype.kind == "f" else array, None, (1.0, 1.0))


def _require(affine: np.ndarray | None, path: Path) -> np.ndarray:
    if affine is None:
        raise ValueError(f"Expected the affine of the image for {path}. Received: none, so that nothing says where it lies.")
    return affine


def _make_like(array: np.ndarray, source: Any) -> Any:
    """Makes a NIfTI image with the header of another."""
    header = source.header.copy()
    header.set_data_dtype(array.dtype)
    header["cal_min"] = header["cal_max"] = 0
    return type(source)(array, source.affine, header)


def _make_nifti(array: np.ndarray, affine: np.ndarray) -> Any:
    """Makes a NIfTI image of an array `(X, Y, Z, ...)` that lies where an affine (RAS+ mm) says."""
    image = import_nibabel().Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    return image


def _write_picture(path: Path, array: np.ndarray) -> None:
    encoded, data = _import_cv2().imencode(suffix_of(path), array)
    if not encoded:
        raise ValueError(f"Expected a picture that OpenCV can write as {path.suffix}. Received: {array.dtype} {array.shape}.")
    data.tofile(path)


# Our own error says once what is wrong with a file. OpenCV would write its own lines beside it.
@functools.cache
def _import_cv2() -> ModuleType:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
