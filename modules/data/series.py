"""Finds the DICOM series in a folder by the headers of its files, and chooses one. `modules.data.dicom` reads it.

A file is DICOM by its content and not by its name: many have no suffix.
"""

import functools
import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

from modules.data.documents import to_line
from modules.data.files import suffix_of, walk_files
from modules.packages import describe_missing_format

# A file with one of these suffixes must be DICOM. Others may be.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_MARK = b"DICM"
# Kinds that hold no picture of a body, although some have pixels.
_NO_IMAGES = ("SEG", "SR", "PR", "KO", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RWV", "DOC", "FID", "AU", "ECG", "HD")
_LOCALISER = re.compile(r"(?i)(^|[^a-z])(locali[sz]ers?|loc|scouts?|survey|surview|topograms?|3[ _-]?pl(ane)?)($|[^a-z])")
_COLOURS = ("RGB", "PALETTE COLOR")
_MOST_LISTED = 12
_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "Rows"),
    *("Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ImageOrientationPatient"),
)


class Head(NamedTuple):
    """The description of a series in one DICOM file.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        number: SeriesNumber, "" where it has none.
        description: SeriesDescription.
        modality: Such as "MR".
        size: Columns and rows; zeros where it holds no picture.
        frames: Slices in the file.
        kind: Why it is no scan to predict: "a localiser", "colour", "without a place" or "no image"; "" for one that is.
    """

    uid: str
    study: str
    number: str
    description: str
    modality: str
    size: tuple[int, int]
    frames: int
    kind: str


class Series(NamedTuple):
    """The files of one series, and the head of the first; `slices` counts their frames."""

    head: Head
    files: tuple[Path, ...]
    slices: int

    def describe(self) -> str:
        """Describes the series in a few words: number, description, slices and size."""
        columns, rows = self.head.size
        kind = f", {self.head.kind}" if self.head.kind else ""
        number = self.head.number or "without a number"
        return f"{number} {self.head.description!r} ({self.slices} slice(s) of {columns}x{rows}, {self.head.modality or '?'}{kind})"

    def describe_briefly(self) -> str:
        """Names the series in an error: its number and description."""
        return f"series {self.head.number or self.head.uid} {self.head.description!r}"


class Found(NamedTuple):
    """The series of some files, in the order of their numbers, and an error for each DICOM file that cannot be read."""

    series: tuple[Series, ...]
    damaged: dict[Path, ValueError]


def is_dicom(path: Path) -> bool:
    """Tells whether a file is DICOM by its content, or has to be by its suffix. Files of other formats are not opened."""
    # A pipe without a writer would be waited for.
    if suffix_of(path) or not path.is_file():
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == _MARK
    except OSError:
        return False


def find_dicom(folder: Path) -> list[Path]:
    """Lists the DICOM files below a folder, sorted; a DICOMDIR, which only lists others, is none."""
    return [path for path in walk_files(folder) if not path.name.upper().startswith("DICOMDIR") and is_dicom(path)]


def find_series(files: Iterable[Path]) -> Found:
    """Reads the headers of DICOM files and sorts them into series.

    Raises:
        ValueError: If pydicom is not installed.
    """
    groups: dict[str, list[tuple[Path, Head]]] = {}
    damaged: dict[Path, ValueError] = {}
    import_pydicom()
    for path in files:
        try:
            status = path.stat()
            head = _read_head(path, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError) as error:
            damaged[path] = error if isinstance(error, ValueError) else ValueError(to_line(error))
        else:
            groups.setdefault(head.uid, []).append((path, head))
    series = []
    for members in groups.values():
        # A series is what most of its files are: some put a localiser's picture in front.
        kinds = [head.kind for _, head in members]
        head = members[0][1]._replace(kind=max(dict.fromkeys(kinds), key=kinds.count))
        series.append(Series(head, tuple(path for path, _ in members), sum(head.frames for _, head in members)))
    return Found(tuple(sorted(series, key=lambda one: (_to_number(one.head.number), one.head.uid))), damaged)


def choose_series(found: Found, wanted: str, place: Path) -> Series:
    """Chooses a series by SeriesInstanceUID, number or description; without one, the only series that can be predicted.

    Args:
        found: The series.
        wanted: UID, number, or description or part of it in any case; "" for none.
        place: Their folder, for errors.

    Raises:
        ValueError: If a file is damaged: nobody knows whose slice it is. Or if not exactly one series fits: the error lists them.
    """
    for error in found.damaged.values():
        raise error
    pictures = [one for one in found.series if one.head.kind != "no image"]
    if wanted:
        matches = _match(pictures, wanted)
        if len(matches) == 1:
            return matches[0]
        listed = list_series(matches or found.series)
        raise ValueError(f"Expected one DICOM series of the UID, number or description {wanted!r} in {place}. Received: {listed}.")
    usable = [one for one in pictures if not one.head.kind]
    chosen = usable or pictures
    if len(chosen) != 1:
        raise ValueError(
            f"Expected one DICOM series in {place}. Received: {list_series(found.series)}. "
            "To predict, choose one by --series UID, number or description; to train, give each a folder of its own."
        )
    return chosen[0]


def _match(series: Sequence[Series], wanted: str) -> list[Series]:
    """Returns the series that fit best: by UID, else by number, else by the whole description, else by a part of it."""
    text = wanted.strip().casefold()
    tests = (
        lambda one: one.head.uid == wanted.strip(),
        lambda one: one.head.number == text,
        lambda one: one.head.description.casefold() == text,
        lambda one: bool(text) and text in one.head.description.casefold(),
    )
    return next((matches for test in tests if (matches := [one for one in series if test(one)])), [])


def list_series(series: Sequence[Series]) -> str:
    """Lists series in one line."""
    listed = [f"{one.describe()}" for one in series[:_MOST_LISTED]]
    if len(series) > _MOST_LISTED:
        listed.append(f"and {len(series) - _MOST_LISTED} more")
    return f"{len(series)} series: {'; '.join(listed)}" if series else "no series of images"


@functools.lru_cache(maxsize=1 << 16)
def _read_head(path: Path, size: int, changed: int) -> Head:
    """Reads the head of a file. Size and time of change make sure that another file of the name is read anew."""
    data = read_header(path, _TAGS)
    try:
        return _take_head(data)
    except Exception as error:  # a damaged header can make pydicom fail in any way
        raise refuse(path, to_line(error, 300)) from error


def _take_head(data: Any) -> Head:
    image_type = [str(part).upper() for part in take_list(data, "ImageType")]
    photometric = str(data.get("PhotometricInterpretation", "")).upper()
    description, modality = (" ".join(str(data.get(name) or "").split()) for name in ("SeriesDescription", "Modality"))
    rows, columns = (take_number(data, name) for name in ("Rows", "Columns"))
    kind = ""
    if modality in _NO_IMAGES or not rows or not columns:
        kind = "no image"
    elif take_number(data, "SamplesPerPixel", 1) > 1 or photometric.startswith(("YBR", *_COLOURS)):
        kind = "colour"
    elif "LOCALIZER" in image_type or _LOCALISER.search(description):
        kind = "a localiser"
    elif take_number(data, "NumberOfFrames", 1) <= 1 and not data.get("ImageOrientationPatient"):
        kind = "without a place"
    uid = str(data.get("SeriesInstanceUID") or "")
    if not uid:
        raise ValueError("a header without SeriesInstanceUID")
    number = str(data.get("SeriesNumber") if data.get("SeriesNumber") is not None else "")
    frames = max(1, take_number(data, "NumberOfFrames", 1)) if kind != "no image" else 0
    return Head(uid, str(data.get("StudyInstanceUID") or ""), number, description, modality, (columns, rows), frames, kind)


def read_header(path: Path, tags: Sequence[str] = ()) -> Any:
    """Reads the header of a DICOM file up to its pixels.

    Args:
        path: The file.
        tags: Keywords of the elements to read; all without it.

    Returns:
        pydicom's data set.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no DICOM file, is cut or damaged; the error names it.
    """
    pydicom = import_pydicom()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise DicomError(f"Expected a DICOM file in {path}. Received: an empty file. Copy it again.")
        if file.read(132)[128:] != _MARK:
            raise refuse(path, "no mark of DICOM at byte 128")
        file.seek(0)
        bounded: Any = _BoundedFile(file, size)
        try:
            return pydicom.dcmread(bounded, stop_before_pixels=True, specific_tags=list(tags) or None)
        except _DeflatedError as error:
            line = f"Expected a DICOM file that is not deflated in {path}. Received: one that is. Convert it: dcmconv +te"
            raise DicomError(line) from error
        except Exception as error:  # a damaged header can make pydicom fail in any way
            raise refuse(path, to_line(error, 300)) from error


class _DeflatedError(Exception):
    """The error of a file that pydicom is about to inflate."""


class _BoundedFile:
    """A file that pydicom may read: never more than there is, as Python allocates what a lying length asks for, and no deflated one."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.tell, self.seek = file.tell, file.seek

    def read(self, number: int = -1) -> bytes:
        """Reads up to `number` bytes. Raises _DeflatedError without a number."""
        if number < 0:
            # pydicom asks for the rest of a file only to inflate it, whatever its size.
            raise _DeflatedError
        return self._file.read(min(number, max(0, self._size - self._file.tell())))


def take_number(data: Any, name: str, default: int = 0) -> int:
    """Takes a whole number out of a header; the default where there is none. Raises ValueError or TypeError for anything else."""
    value = data.get(name)
    return int(value) if value is not None and value != "" else default


def take_list(data: Any, name: str) -> list[Any]:
    """Takes the values of an element out of a header; an empty list where there are none."""
    value = data.get(name)
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]


class DicomError(ValueError):
    """An error of a DICOM file whose text is complete. Others come from pydicom, which decodes an element when it is first used."""


def refuse(path: Path, reason: str) -> DicomError:
    """Makes the error of a file that is no whole DICOM file."""
    return DicomError(f"Expected a whole DICOM file in {path}. Received: {reason}. Copy or download it again.")


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


@functools.cache
def import_pydicom() -> ModuleType:
    """Imports pydicom, whose own warnings would stand beside our one line.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import pydicom
        import pydicom.config
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise ValueError(describe_missing_format("pydicom", "read DICOM files")) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom
