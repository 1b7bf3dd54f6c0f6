"""Reads one DICOM series as a volume: slices by position, intensities after their rescaling, millimetres from positions.

Slices that do not make one straight stack are refused in one line. All headers are read and judged before any pixel is decoded.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.documents import to_line
from modules.data.nibabel_files import Grid
from modules.data.series import (
    DicomError,
    choose_series,
    find_dicom,
    find_series,
    import_pydicom,
    read_header,
    refuse,
    take_list,
    take_number,
)
from modules.data.stack import Frame, arrange

log = logging.getLogger("mri")

# Packed pixels may become this many times as large, and small series larger: an empty slice packs to nearly nothing.
_MOST_PACKED, _ALWAYS_BYTES = 2_000, 1 << 26
_PACKAGES = {
    **dict.fromkeys(("4.50", "4.51", "4.57", "4.70"), "pylibjpeg pylibjpeg-libjpeg"),
    **dict.fromkeys(("4.80", "4.81"), "pyjpegls"),
    **dict.fromkeys(("4.90", "4.91", "4.201", "4.202", "4.203"), "pylibjpeg pylibjpeg-openjpeg"),
}
# What may tell apart images of one place.
_REPEATS = (
    *("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "AcquisitionNumber", "TriggerTime", "InversionTime"),
    *("ImageType", "FlipAngle", "AcquisitionTime", "ContentTime"),
)


def list_series_files(path: Path, series: str = "") -> list[Path]:
    """Lists the files of a series, sorted: those of a folder, or the one file.

    Args:
        path: A folder or a file.
        series: SeriesInstanceUID, number or description where the folder holds several series.

    Raises:
        FileNotFoundError: If the folder holds no DICOM file.
        ValueError: If not exactly one series fits, or a file is damaged.
    """
    if not path.is_dir():
        return [path]
    files = find_dicom(path)
    if not files:
        raise FileNotFoundError(f"Expected DICOM files in the folder {path}. Received: none. Name a file, or another folder.")
    return sorted(choose_series(find_series(files), series, path).files)


def read_series(
    path: Path, series: str = "", on_bytes: Callable[[bytes], object] | None = None, *, voxels: bool = True
) -> tuple[Grid, np.ndarray | None]:
    """Reads a series.

    Args:
        path: A folder, or one file of one or many frames.
        series: Which one, see `list_series_files`.
        on_bytes: Called with the file's bytes or, for a folder, with the SHA-256 of each file in the order of `list_series_files`.
        voxels: Whether to read the voxels too.

    Returns:
        The grid, and the array `(columns, rows, slices)` or None. Slices run along the normal of their plane. The array holds the
        file's own integers where they are not rescaled, else float32.

    Raises:
        FileNotFoundError: If the folder holds no DICOM file.
        ValueError: If no series or several fit, a file is damaged, or the slices make no straight stack.
    """
    files = list_series_files(path, series)
    frames, affine = _arrange_files(files, path)
    _check_promise(frames, path)
    grid = _make_grid(frames, affine)
    if not voxels:
        return grid, None
    digests: dict[Path, bytes] = {}

    def keep(file: Path, data: bytes) -> None:
        if on_bytes is not None and path.is_dir():
            digests[file] = hashlib.sha256(data).digest()
        elif on_bytes is not None:
            on_bytes(data)

    array = _read_frames(frames, grid[0], keep)
    if on_bytes is not None and path.is_dir():
        # A copy that was dropped has the bytes of its original.
        on_bytes(b"".join(digests[file] if file in digests else hashlib.sha256(file.read_bytes()).digest() for file in files))
    return grid, array


def list_slices(path: Path, series: str = "") -> list[Frame]:
    """Lists the slices of a series in the order of the last axis of the array that `read_series` returns; raises as it does."""
    return _arrange_files(list_series_files(path, series), path)[0]


def _arrange_files(files: Sequence[Path], path: Path) -> tuple[list[Frame], np.ndarray]:
    """Sorts the slices in files; returns them and their affine."""
    return arrange(_drop_copies([frame for file in files for frame in _list_frames(file)]), path)


def _make_grid(frames: Sequence[Frame], affine: np.ndarray) -> Grid:
    shape = (*frames[0].size, len(frames))
    return shape, tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0)), affine


# --------------------------------------------------------------------------------------------------------------- headers


def _list_frames(path: Path) -> list[Frame]:
    """Lists the frames of a file by its header; raises ValueError, naming it, for one that is no grey picture in a known place."""
    data = read_header(path)
    try:
        frames = max(1, take_number(data, "NumberOfFrames", 1))
        _check_kind(data, path, frames)
        per_frame = take_list(data, "PerFrameFunctionalGroupsSequence")
        shared = take_list(data, "SharedFunctionalGroupsSequence")
        if not per_frame and not shared:
            if frames > 1:
                raise refuse(path, f"{frames} frames without functional groups: nothing says where each lies")
            return [_make_frame(path, 0, data, [data])]
        if len(per_frame) != frames:
            raise refuse(path, f"{len(per_frame)} functional groups for {frames} frames")
        return [_make_frame(path, index, data, [group, *shared[:1]]) for index, group in enumerate(per_frame)]
    except DicomError:
        raise
    except Exception as error:  # a damaged header can make pydicom fail in any way
        raise refuse(path, to_line(error, 300)) from error


def _check_kind(data: Any, path: Path, frames: int) -> None:
    """Raises ValueError unless the pixels are grey, whole and can be decoded here."""
    rows, columns, bits = (take_number(data, name) for name in ("Rows", "Columns", "BitsAllocated"))
    if not rows or not columns:
        raise DicomError(f"Expected a DICOM picture in {path}. Received: a file without pixels ({data.get('Modality') or 'no modality'}).")
    photometric, samples = str(data.get("PhotometricInterpretation", "")), take_number(data, "SamplesPerPixel", 1)
    if samples > 1 or not photometric.startswith("MONOCHROME"):
        kind = f"colour ({photometric})" if photometric else "no PhotometricInterpretation"
        raise DicomError(f"Expected one grey value a pixel in {path}. Received: {kind}, so no intensities. Take the original series.")
    if "MOSAIC" in take_list(data, "ImageType"):
        raise DicomError(f"Expected one slice a picture in {path}. Received: a mosaic of slices. Convert the series, as by dcm2niix.")
    if data.get("ModalityLUTSequence"):
        raise DicomError(f"Expected a rescale slope and intercept in {path}. Received: a lookup table instead. Convert the series.")
    if bits not in (8, 16, 32, 64):
        raise refuse(path, f"{columns}x{rows} pixels of {bits} bits")
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is None:
        raise refuse(path, "no transfer syntax")
    if not syntax.is_encapsulated:
        promised, held = rows * columns * frames * bits // 8, path.stat().st_size
        if held < promised:
            raise refuse(path, f"{held} bytes where its header promises {promised}")
        return
    pydicom = import_pydicom()
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        raise DicomError(f"Expected a transfer syntax of pictures in {path}. Received: {syntax.name}. Convert the series.") from None
    if not available:
        package = _PACKAGES.get(str(syntax).removeprefix("1.2.840.10008.1.2."), "pylibjpeg")
        raise DicomError(f"Expected a decoder of {syntax.name} for {path}. Received: none is installed. Install it: pip install {package}")


def _make_frame(path: Path, index: int, data: Any, groups: Sequence[Any]) -> Frame:
    """Takes a frame out of a header.

    Args:
        path: Its file.
        index: Its place among the frames.
        data: The header.
        groups: Where to look: the header itself, or functional groups, those of the frame first.
    """
    functional = groups[0] is not data

    def look(sequence: str, name: str) -> Any:
        for group in groups if functional else ():
            members = take_list(group, sequence)
            if members and members[0].get(name) is not None:
                return members[0]
        return None if functional else data

    def take(sequence: str, name: str, number: int) -> tuple[float, ...]:
        place = look(sequence, name)
        values = take_list(place, name) if place is not None else []
        if not values:
            return ()
        numbers = tuple(float(value) for value in values)
        if len(numbers) != number or not all(map(math.isfinite, numbers)):
            raise refuse(path, f"{name} of {to_line(values, 100)} in its header")
        return numbers

    rows, columns, bits = (take_number(data, name) for name in ("Rows", "Columns", "BitsAllocated"))
    signed = take_number(data, "PixelRepresentation", -1)
    kind = "f" if signed < 0 and bits >= 32 else "i" if signed == 1 else "u"
    slope = take("PixelValueTransformationSequence", "RescaleSlope", 1) or (1.0,)
    inter = take("PixelValueTransformationSequence", "RescaleIntercept", 1) or (0.0,)
    if slope[0] == 0:
        raise refuse(path, "a RescaleSlope of 0")
    thickness = take("PixelMeasuresSequence", "SliceThickness", 1)
    return Frame(
        path,
        index,
        str(data.get("SOPInstanceUID") or path),
        (columns, rows),
        np.dtype(f"{kind}{bits // 8}"),
        take("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        take("PlanePositionSequence", "ImagePositionPatient", 3),
        take("PixelMeasuresSequence", "PixelSpacing", 2),
        thickness[0] if thickness and thickness[0] > 0 else 1.0,
        slope[0],
        inter[0],
        {name: str(data[name].value) for name in _REPEATS if name in data},
    )


def _drop_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Drops files that are in the folder twice; raises ValueError for two different files of one SOPInstanceUID."""
    kept: dict[tuple[str, int], Frame] = {}
    dropped: set[Path] = set()
    for frame in frames:
        first = kept.setdefault((frame.identity, frame.index), frame)
        if first is not frame:
            if frame.index == 0 and first.path.read_bytes() != frame.path.read_bytes():
                raise ValueError(
                    f"Expected files of different SOPInstanceUIDs. Received: {first.path} and {frame.path} with the same one, and they "
                    "differ. Remove the wrong one."
                )
            dropped.add(frame.path)
    if dropped:
        log.info("%d DICOM file(s) are there twice and are read once: %s", len(dropped), min(dropped))
    return list(kept.values())


# ---------------------------------------------------------------------------------------------------------------- pixels


def _check_promise(frames: Sequence[Frame], path: Path) -> None:
    """Raises ValueError if the headers promise far more pixels than packed files can hold."""
    promised = sum(math.prod(frame.size) * frame.dtype.itemsize for frame in frames)
    held = sum(file.stat().st_size for file in {frame.path for frame in frames})
    if promised > max(_ALWAYS_BYTES, _MOST_PACKED * held):
        raise ValueError(f"Expected whole DICOM files in {path}. Received: {held:,} bytes for pixels of {promised:,}. Copy them again.")


def _read_frames(frames: Sequence[Frame], shape: Sequence[int], keep: Callable[[Path, bytes], object]) -> np.ndarray:
    """Decodes the pixels of sorted slices into an array `(columns, rows, slices)`; `keep` gets the bytes of each file."""
    scaled = any((frame.slope, frame.inter) != (1, 0) for frame in frames) or any(frame.dtype.kind == "f" for frame in frames)
    dtype = np.dtype(np.float32) if scaled else np.result_type(*(frame.dtype for frame in frames))
    places: dict[Path, dict[int, int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.path, {})[frame.index] = place
    array = np.empty(shape, dtype, order="F")
    for path, wanted in places.items():
        data = path.read_bytes()
        keep(path, data)
        try:
            done = 0
            for index, pixels in enumerate(_decode(data)):
                place = wanted[index]
                frame = frames[place]
                if pixels.shape != frame.size[::-1]:
                    raise ValueError(f"a slice of {pixels.shape} where its header says {frame.size[::-1]}")
                if scaled:
                    with np.errstate(over="ignore", invalid="ignore"):
                        pixels = pixels.astype(np.float64) * frame.slope + frame.inter
                array[..., place] = pixels.T
                done += 1
            if done != len(wanted):
                raise ValueError(f"{done} of {len(wanted)} frames")
        except Exception as error:  # a damaged file can make a decoder fail in any way
            raise refuse(path, to_line(error, 300)) from error
    return array


def _decode(data: bytes) -> Any:
    """Yields the frames of a file as arrays `(rows, columns)`, after a look at the sizes that packed frames themselves promise."""
    pydicom = import_pydicom()
    header = pydicom.dcmread(BytesIO(data))
    number = max(1, take_number(header, "NumberOfFrames", 1))
    size = take_number(header, "Columns"), take_number(header, "Rows")
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        for packed in pydicom.encaps.generate_frames(header.PixelData, number_of_frames=number):
            own = _measure_packed(packed)
            if own is not None and own != size:
                raise ValueError(f"packed pixels of {own[0]}x{own[1]} where the header says {size[0]}x{size[1]}")
    # The faster plugin for RLE ends the program where a file is damaged.
    plugin = "pydicom" if header.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless else ""
    return pydicom.pixels.iter_pixels(header, raw=True, decoding_plugin=plugin)


def _measure_packed(packed: bytes) -> tuple[int, int] | None:
    """Returns columns and rows that a JPEG, JPEG-LS or JPEG 2000 frame says of itself; None for another kind.

    A decoder allocates these, whatever the DICOM header says.
    """
    if packed[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = (int.from_bytes(packed[place : place + 4], "big") for place in (8, 12, 16, 20))
        return right - left, bottom - top
    if packed[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(packed) and packed[place] == 0xFF:
        marker = packed[place + 1]
        # Start of frame: any JPEG's but for three markers of tables between them, and that of JPEG-LS.
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(packed[place + 7 : place + 9], "big"), int.from_bytes(packed[place + 5 : place + 7], "big")
        place += 1 if marker == 0xFF else 2 + int.from_bytes(packed[place + 2 : place + 4], "big")
    raise ValueError("packed pixels without a size")
