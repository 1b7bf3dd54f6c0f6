"""The cache on disk: each case is decoded and preprocessed once, and its bare numbers are read only where a sample needs them."""

import functools
import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.case import Case, read_case, require_label
from modules.data.files import fingerprint_files, replace_file, sweep
from modules.data.patches import choose_points, cut_into
from modules.data.preprocess import Preprocessing
from modules.data.ranges import measure_scan
from modules.data.regions import IGNORE
from modules.data.room import count_readers
from modules.data.spec import DatasetSpec

log = logging.getLogger("mri")

FORMAT = 8
SUFFIX = ".pack"
SLICES_A_PACK = 64
_ALIGNMENT = 64
_PIECE = 1 << 20
# Linux reads no more in one call.
_MOST_READ = 0x7FFFF000
# The state of each pack when all its checksums were last found right, see `_find_state`.
_CHECKED: dict[str, tuple[int, ...]] = {}


class PreparedCase(NamedTuple):
    """A case in the cache: its image `(*P, C)` float16, its label `(*P)` uint8 and, for volumes, its `points`.

    This record is all that memory holds of a case: some hundred bytes, as there may be a million cases.

    Attributes:
        path: The cache file, which may hold several cases.
        offset: Place of the image in the file, in bytes.
        shape: `P`.
        channels: `C`.
        darkest: Least value of each channel.
        counts: Number of listed voxels of each class.
        spacing_mm: Size of a voxel along each axis of `P`.
        digests: SHA-256 of the bytes of each image file, then of the label file.
        classes: Indices that the label holds, in ascending order; `IGNORE` is the last.
        crc32: Checksum of the case's bytes in the file.
        measured: What the scan measures, see `modules.data.ranges.measure_scan`.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    channels: int
    darkest: tuple[float, ...]
    counts: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    digests: bytes
    classes: tuple[int, ...]
    crc32: int
    measured: bytes

    @property
    def voxels(self) -> int:
        """Number of voxels of the case."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes that the case takes in the file."""
        return self.voxels * (2 * self.channels + 1) + 2 * len(self.shape) * sum(self.counts)

    @property
    def sources_sha256(self) -> list[str]:
        """SHA-256, in hexadecimal digits, of each image file, then of the label file."""
        return [self.digests[place : place + 32].hex() for place in range(0, len(self.digests), 32)]

    @property
    def points(self) -> list[np.ndarray]:
        """Voxels `(n, r)` uint16 of each class from `modules.data.patches.choose_points`; empty for a slice. They stay on disk."""
        if not self.counts:
            return []
        self.check()
        first = self.offset + self.voxels * (2 * self.channels + 1)
        flat = np.memmap(self.path, np.uint8, "r")[first : self.offset + self.size].view(np.uint16)
        return np.split(flat.reshape(-1, len(self.shape)), np.cumsum(self.counts)[:-1])

    def read(self, start: Sequence[int], window: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window: image `(*window, C)` float16 and label `(*window)` uint8. Voxels beyond the case are dark background."""
        image, label = np.empty((*window, self.channels), np.float16), np.empty(window, np.uint8)
        self.read_into(image, label, start)
        return image, label

    def read_into(self, image: np.ndarray, label: np.ndarray, start: Sequence[int]) -> None:
        """Reads the window that begins at `start` into two contiguous arrays, `(*window, C)` and `(*window)`."""
        self.check()
        if label.shape == self.shape and not any(start) and image.nbytes + label.nbytes <= _MOST_READ:
            # The whole case lies in one piece, so one system call reads it straight into the arrays.
            file = os.open(self.path, os.O_RDONLY)
            try:
                size = os.preadv(file, (image.data, label.data), self.offset)
            finally:
                os.close(file)
            if size != image.nbytes + label.nbytes:
                raise self._describe_damage()
            return
        size, middle = self.voxels * (2 * self.channels + 1), 2 * self.voxels * self.channels
        if len(self.shape) == 2:
            # To map a file for a slice takes ten times as long as to read the slice.
            data = np.fromfile(self.path, np.uint8, size, offset=self.offset)
        else:
            data = np.memmap(self.path, np.uint8, "r")[self.offset : self.offset + size]
        if len(data) != size:
            raise self._describe_damage()
        cut_into(image, data[:middle].view(np.float16).reshape(*self.shape, self.channels), start, self.darkest)
        cut_into(label, data[middle:].reshape(self.shape), start)

    def count_classes(self, num_classes: int) -> np.ndarray:
        """Counts the voxels of each class index below `num_classes`, `(num_classes,)`."""
        return np.bincount(self._read_label(), minlength=num_classes)[:num_classes]

    def find_voxels(self, index: int) -> np.ndarray:
        """Finds voxels `(n, r)` of a class: all of a slice's, or those of a volume that `points` lists."""
        return self.points[index] if self.counts else np.argwhere(self._read_label().reshape(self.shape) == index)

    def _read_label(self) -> np.ndarray:
        self.check()
        return np.fromfile(self.path, np.uint8, self.voxels, offset=self.offset + 2 * self.voxels * self.channels)

    def check(self) -> None:
        """Checks that the file is as it was when its checksums were right, or that they are right again.

        Raises:
            ValueError: If the file is gone or damaged. It may have been deleted or overwritten while a training reads it.
        """
        try:
            if _CHECKED.get(self.path) == _find_state(self.path):
                return
            cases = read_pack(Path(self.path)).values()
            whole = self in cases and _check_pack(self.path, cases)
        except OSError as error:
            raise self._describe_damage() from error
        if not whole:
            raise self._describe_damage()

    def _describe_damage(self) -> ValueError:
        return ValueError(
            f"Expected the cache's file {self.path} as it was written. Received: one that is gone or damaged. "
            "Go on with `train.py --resume RUN`, which makes it again."
        )


class Decoded(NamedTuple):
    """A case on its way to the cache; see `PreparedCase`."""

    image: np.ndarray
    label: np.ndarray
    points: Sequence[np.ndarray] = ()
    spacing_mm: Sequence[float] = ()
    digests: bytes = b""
    measured: bytes = b""


def write_pack(path: Path, cases: Mapping[str, Decoded]) -> None:
    """Writes a cache file: a line of JSON that says where each case lies, then the cases.

    The file has a temporary name until it is whole and on the disk. Its first line is followed by that line's checksum.
    """
    records, parts, offset = [], [], 0
    for key, case in cases.items():
        image = np.ascontiguousarray(case.image, np.float16)
        arrays = [image, *map(np.ascontiguousarray, (case.label.astype(np.uint8, copy=False), *case.points))]
        # The darkest value is found before rounding, because NumPy compares 16-bit numbers slowly.
        darkest = [float(np.float16(value)) for value in case.image.min(axis=tuple(range(image.ndim - 1)))]
        records.append(
            {
                "key": key,
                "offset": offset,
                "shape": case.label.shape,
                "channels": image.shape[-1],
                "darkest": darkest,
                "counts": [len(places) for places in case.points],
                "spacing_mm": [float(size) for size in case.spacing_mm],
                "digests": case.digests.hex(),
                "measured": case.measured.hex(),
                "classes": np.flatnonzero(np.bincount(arrays[1].ravel())).tolist(),
                "crc32": functools.reduce(lambda value, array: zlib.crc32(array.data, value), arrays, 0),
            }
        )
        size = sum(array.nbytes for array in arrays)
        parts += [*(array.data for array in arrays), bytes(_align(size) - size)]
        offset += _align(size)
    line = json.dumps(records).encode() + b"\n"
    line += b"%08x\n" % zlib.crc32(line)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.writelines((line.ljust(_align(len(line)), b"\0"), *parts))
        # A power cut after the rename must not leave a file of zeros.
        file.flush()
        os.fsync(file.fileno())
    _CHECKED[str(path)] = _find_state(path)


def read_pack(path: Path) -> dict[str, PreparedCase]:
    """Returns the cases of a cache file by their keys; none if the file is missing or cut short, or its first line damaged."""
    try:
        with path.open("rb") as file:
            line, checksum = file.readline(), file.readline(_ALIGNMENT)
            size = os.fstat(file.fileno()).st_size
        if int(checksum, 16) != zlib.crc32(line):
            return {}
        place, body, cases, end = str(path), _align(len(line) + len(checksum)), {}, 0
        for record in json.loads(line):
            # Cases of one size share one tuple. The name keeps a shape (2, 2, 2) apart from voxels of (2.0, 2.0, 2.0) mm, which is equal.
            own = {name: tuple(record[name]) for name in ("shape", "darkest", "counts", "spacing_mm", "classes")}
            own |= {name: _SHARED.setdefault((name, own[name]), own[name]) for name in ("shape", "spacing_mm", "classes")}
            offset, digests, measured = body + record["offset"], *(bytes.fromhex(record[name]) for name in ("digests", "measured"))
            case = PreparedCase(
                place, offset, channels=record["channels"], digests=digests, crc32=record["crc32"], measured=measured, **own
            )
            cases[record["key"]] = case
            end = offset + _align(case.size)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return cases if size == end else {}


_SHARED: dict[tuple, tuple] = {}


def share_checked(others: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, tuple[int, ...]]:
    """Takes the files that another process has checked, with their states, and returns all. One that changes is checked anew."""
    _CHECKED.update(others or {})
    return _CHECKED


def _check_pack(path: str, cases: Iterable[PreparedCase]) -> bool:
    """Returns whether all cases of a file have the checksums that they were written with; it reads an unchanged file only once."""
    state = _find_state(path)
    if _CHECKED.get(path) == state:
        return True
    with Path(path).open("rb") as file:
        for case in cases:
            file.seek(case.offset)
            checksum, left = 0, case.size
            while left and (piece := file.read(min(left, _PIECE))):
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
            if left or checksum != case.crc32:
                return False
    _CHECKED[path] = state
    return True


def _find_state(path: str | Path) -> tuple[int, ...]:
    """Returns four numbers of a file, one of which changes when somebody writes to it or replaces it."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def prepare_cases(
    cases: Sequence[Case],
    spec: DatasetSpec,
    preprocessing: Preprocessing,
    folder: Path,
) -> list[PreparedCase]:
    """Decodes and preprocesses each case once and keeps the result in `folder`.

    The key of a case is a hash of its files: path, inode, size and times of change. Its subfolder is named by the preprocessing and the
    label values. A changed file or setting is therefore decoded anew, and everything else is found again. Its checksums are checked when
    a process first opens it. A damaged file is removed with a warning, and its cases are decoded anew.

    Many slices share a file, because making a file takes as long as decoding a slice. 9,664 slices of 256x256 take 1.8 GiB of disk.
    Memory holds no more of them than the operating system cares to keep.

    Args:
        cases: Labelled cases.
        spec: Their data set, whose rules they must meet.
        preprocessing: Intensities and grid that the network expects.
        folder: The cache.

    Returns:
        One prepared case for each case, in order.

    Raises:
        FileNotFoundError, ValueError: If a file is missing or wrong; the error names it.
    """
    settings = json.dumps([FORMAT, asdict(preprocessing), len(spec.channels), sorted(spec.label_rule.values.items())])
    folder = folder / f"{spec.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    rules = replace(spec, preprocessing=preprocessing)

    def decode(case: Case) -> Decoded:
        digests: list[bytes] = []

        def keep_digest(data: bytes) -> None:
            digests.append(hashlib.sha256(data).digest())

        image, label = read_case(case, rules, keep_digest)
        label = require_label(case, label)
        check_contrast(image.array, label, case)
        array, geometry = preprocessing.apply(image)
        label = preprocessing.apply_label(label, geometry)
        # The case's name is the seed, so that a copy of the data in another folder gives the same points.
        rng = np.random.default_rng(list(case.case_id.encode(errors="surrogateescape")))
        points = choose_points(label, spec.num_parts, rng) if label.ndim == 3 else ()
        measured = measure_scan(image, geometry)
        return Decoded(array, label, points, geometry.measure_spacing(image.spacing_mm), b"".join(digests), measured)

    def prepare(missing: Sequence[tuple[str, Case]]) -> dict[str, PreparedCase]:
        pack = folder / _name_pack(key for key, _ in missing)
        write_pack(pack, {key: decode(case) for key, case in missing})
        return read_pack(pack)

    keys = [f"{case.case_id}-{fingerprint_files(_list_files(case))[:16]}{'-voxelwise' * case.ignore_geometry}" for case in cases]
    known = _find_whole(folder, set(keys))
    missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in known]
    readers = count_readers([case for _, case in missing], preprocessing, folder)
    chunk = min(SLICES_A_PACK, -(-len(missing) // (2 * (os.cpu_count() or 1)))) if preprocessing.spatial_dims == 2 else 1
    known |= _map_threads(prepare, [missing[first : first + chunk] for first in range(0, len(missing), chunk or 1)], readers)
    return [known[key] for key in keys]


def prepare_splits(
    splits: Mapping[str, Sequence[Case]], spec: DatasetSpec, preprocessing: Preprocessing, folder: str
) -> dict[str, list[PreparedCase]]:
    """Prepares the cases of each split, see `prepare_cases`."""
    return {name: prepare_cases(members, spec, preprocessing, Path(folder)) for name, members in splits.items()}


def check_contrast(image: np.ndarray, label: np.ndarray, case: Case) -> None:
    """Raises ValueError, naming the file, for an image of one value whose label holds foreground: it cannot show what the label says."""
    first = image.reshape(-1, image.shape[-1])[0]
    if label.any() and (image == first).all() and ((label > 0) & (label != IGNORE)).any():
        raise ValueError(
            f"Expected an image that shows what its label holds. Received: {first[0]:g} in every voxel of {case.image_paths[0]}. "
            "Mend it, or leave the case out."
        )


def _name_pack(keys: Iterable[str]) -> str:
    """Names the file of the cases of these keys, so that a file that was copied over another is known by its name."""
    return hashlib.sha256("\n".join(keys).encode(errors="surrogateescape")).hexdigest()[:24] + SUFFIX


def _find_whole(folder: Path, wanted: set[str]) -> dict[str, PreparedCase]:
    """Finds the wanted cases in the files of a folder, but for those in damaged files, which it removes."""

    def read(path: Path) -> dict[str, PreparedCase]:
        cases = read_pack(path)
        if cases and not wanted & cases.keys():
            return {}
        try:
            # A file under another's name would be overwritten while its own cases are read from it.
            if cases and path.name == _name_pack(cases) and _check_pack(str(path), cases.values()):
                return cases
        except OSError as error:
            log.debug("%s cannot be read: %s", path, error)
        log.warning("cache: %s is damaged; its cases are decoded anew", path)
        path.unlink(missing_ok=True)
        return {}

    sweep(folder)
    # A hidden file is one that another process still writes.
    packs = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as executor:
        return {key: case for cases in executor.map(read, packs) for key, case in cases.items()}


def _map_threads(function: Callable[[Sequence], dict], chunks: Sequence[Sequence], workers: int) -> dict:
    """Joins the results of all chunks. Threads are enough, because inflating and decoding release Python's lock."""
    from tqdm import tqdm

    executor, results = ThreadPoolExecutor(max_workers=workers), {}
    try:
        with tqdm(total=sum(map(len, chunks)), desc="reading", unit="case", disable=None, leave=False) as bar:
            for result in executor.map(function, chunks):
                results |= result
                bar.update(len(result))
    finally:
        executor.shutdown(cancel_futures=True)
    return results


def _list_files(case: Case) -> list[Path]:
    """Lists the files of a case, images before label, and checks that they are there."""
    for path in (*case.image_paths, *([case.label_path] if case.label_path else [])):
        if not path.exists():
            raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check case {case.case_id}.")
    return case.list_files()
