"""Cases decoded and preprocessed once, kept on disk as bare numbers that are read where they are wanted and nowhere else."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modules.patches import choose_points, cut
from modules.preprocess import Preprocessing
from modules.volume import Case, fingerprint_files, hash_file, read_label_of, read_volume, replace_file

FORMAT = 4
_ALIGNMENT = 64


@dataclass(frozen=True)
class PreparedCase:
    """A file of the cache: a line of JSON, then the image `(*P, C)` float16, the label `(*P)` uint8 and, for volumes, `points`.

    Attributes:
        path: The file; its name holds the case's identifier and the state of the files that it was made from.
    """

    path: Path

    @cached_property
    def _header(self) -> dict:
        with self.path.open("rb") as file:
            line = file.readline()
        return {"offset": -(-len(line) // _ALIGNMENT) * _ALIGNMENT, **json.loads(line)}

    @property
    def shape(self) -> tuple[int, ...]:
        """`P`."""
        return tuple(self._header["shape"])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Size of a voxel along each axis of `P`."""
        return tuple(self._header["spacing_mm"])

    @property
    def sources_sha256(self) -> list[str]:
        """Of the bytes of each file of the image, then of the label."""
        return self._header["sources_sha256"]

    @cached_property
    def points(self) -> list[np.ndarray]:
        """Some voxels `(n, r)` uint16 of each class, see `modules.patches.choose_points`; empty for a slice."""
        offset = self._header["offset"] + math.prod(self.shape) * (2 * self._header["channels"] + 1)
        counts, rank = self._header["points"], len(self.shape)
        flat = np.fromfile(self.path, np.uint16, rank * sum(counts), offset=offset).reshape(-1, rank)
        return np.split(flat, np.cumsum(counts)[:-1]) if counts else []

    def read(self, start: Sequence[int], window: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window: image `(*window, C)` float32 and label `(*window)` int32; beyond the case it is dark background."""
        offset, channels = self._header["offset"], self._header["channels"]
        data = np.memmap(self.path, np.uint8, "r")
        size = 2 * math.prod(self.shape) * channels
        image = data[offset : offset + size].view(np.float16).reshape(*self.shape, channels)
        label = data[offset + size : offset + size + math.prod(self.shape)].reshape(self.shape)
        darkest = self._header["darkest"]
        return cut(image, start, window, darkest).astype(np.float32), cut(label, start, window).astype(np.int32)

    def count_classes(self, num_classes: int) -> np.ndarray:
        """Voxels of each class, `(num_classes,)`."""
        offset, voxels = self._header["offset"], math.prod(self.shape)
        label = np.fromfile(self.path, np.uint8, voxels, offset=offset + 2 * voxels * self._header["channels"])
        return np.bincount(label, minlength=num_classes)

    def is_whole(self) -> bool:
        """Whether the file is there in full length."""
        try:
            header = self._header
        except (OSError, ValueError):
            return False
        voxels, rank = math.prod(header["shape"]), len(header["shape"])
        size = header["offset"] + voxels * (2 * header["channels"] + 1) + 2 * rank * sum(header["points"])
        return self.path.stat().st_size == size

    def write(
        self,
        image: np.ndarray,
        label: np.ndarray,
        points: Sequence[np.ndarray] = (),
        spacing_mm: Sequence[float] = (),
        sources_sha256: Sequence[str] = (),
    ) -> None:
        """Writes image `(*P, C)`, label `(*P)` and the rest under a temporary name first."""
        image = image.astype(np.float16)
        darkest = [float(value) for value in image.min(axis=tuple(range(image.ndim - 1)))]
        header = {"shape": label.shape, "channels": image.shape[-1], "darkest": darkest, "points": [len(places) for places in points]}
        header |= {"spacing_mm": [float(size) for size in spacing_mm], "sources_sha256": list(sources_sha256)}
        line = json.dumps(header).encode() + b"\n"
        with replace_file(self.path) as temporary, temporary.open("wb") as file:
            file.write(line.ljust(-(-len(line) // _ALIGNMENT) * _ALIGNMENT, b"\0"))
            for array in (image, label.astype(np.uint8), *points):
                file.write(np.ascontiguousarray(array).data)


def prepare_cases(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    *,
    dataset: str,
    channels: Sequence[str],
    label_values: Mapping[int, int],
    folder: Path,
) -> list[PreparedCase]:
    """Decodes and preprocesses each case once and keeps the result in `folder`.

    The name of a file in the cache is a hash of the case's files (path, size, time of change), of the preprocessing and of the
    label values, so a changed file or setting is decoded anew and everything else is found again. 9,664 slices of 256x256 take
    1.8 GiB of disk; memory holds no more of them than the operating system cares to keep.

    Args:
        cases: Labelled cases.
        preprocessing: What the network expects.
        dataset: The data set's name.
        channels: Names of the channels each image must have.
        label_values: `{value in the file: class index}`.
        folder: The cache.

    Returns:
        One prepared case each, in order.

    Raises:
        FileNotFoundError, ValueError: From reading, naming the file.
    """
    settings = json.dumps([FORMAT, asdict(preprocessing), len(channels), sorted(label_values.items())])
    folder = folder / f"{dataset}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    num_classes = max(label_values.values()) + 1

    def prepare(case: Case) -> PreparedCase:
        _check_files(case)
        fingerprint = fingerprint_files([*case.image_paths, case.label_path])[:16]
        prepared = PreparedCase(folder / f"{case.case_id}-{fingerprint}.raw")
        if not prepared.is_whole():
            image = read_volume(case.image_paths)
            preprocessing.check(image, channels, str(case.image_paths[0]))
            label = read_label_of(case, image, label_values, dataset)
            array, geometry = preprocessing.apply(image)
            label = preprocessing.apply_label(label, geometry)
            # By the case's name, so that the same data in another place are drawn from alike.
            rng = np.random.default_rng(list(case.case_id.encode()))
            points = choose_points(label, num_classes, rng) if label.ndim == 3 else ()
            sources = [hash_file(path) for path in (*case.image_paths, case.label_path)]
            prepared.write(array, label, points, geometry.measure_spacing(image.spacing_mm), sources)
        return prepared

    return _map_threads(prepare, cases, workers=2 * (os.cpu_count() or 1) if preprocessing.spatial_dims == 2 else (os.cpu_count() or 1))


def _map_threads(function: Callable[[Case], PreparedCase], cases: Sequence[Case], workers: int) -> list[PreparedCase]:
    # Threads are enough: inflating and decoding release Python's lock. A volume takes a gigabyte while it is prepared.
    executor = ThreadPoolExecutor(max_workers=min(16, workers))
    try:
        return list(tqdm(executor.map(function, cases), total=len(cases), desc="reading", unit="case", disable=None, leave=False))
    finally:
        executor.shutdown(cancel_futures=True)


def _check_files(case: Case) -> None:
    for path in (*case.image_paths, case.label_path):
        if not path.is_file():
            raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check case {case.case_id}.")
