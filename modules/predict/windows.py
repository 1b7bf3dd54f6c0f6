"""Merges windows to whole cases: batches, mirroring, weighted overlap slab by slab, and averages over models.

Planes come out as soon as no later window can alter them. No function here holds the probabilities of a whole volume, unless a window
is as deep as the volume.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from modules.data.files import TEMPORARY
from modules.data.patches import make_gaussian

# The voxels that are predicted together. A GPU is busy only with many. A CPU is as fast with few, and memory holds the maps of all of them.
GPU_VOXELS, CPU_VOXELS = 1 << 21, 1 << 18


@dataclass(frozen=True)
class Tiling:
    """The windows of one case.

    Attributes:
        shape: `P`, the shape of the case as the network sees it.
        window: The shape of one window, in the case's rank.
        starts: The first voxel of each window; the first axis varies slowest.
        num_classes: `K`.
        batch_size: Windows predicted together.
        disk: A folder on whose disk the slab of probabilities lies; None for memory.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    num_classes: int
    batch_size: int
    disk: Path | None = None

    @property
    def slab_bytes(self) -> int:
        """Bytes of the slab of probabilities under work. The image and the network need memory besides."""
        return 4 * min(self.window[0], self.shape[0]) * math.prod(self.shape[1:]) * self.num_classes

    def __str__(self) -> str:
        sizes = ["x".join(map(str, sizes)) for sizes in (self.shape, self.window)]
        return (
            f"{sizes[0]} voxels, {len(self.starts)} windows of {sizes[1]} in batches of {self.batch_size}, "
            f"{self.slab_bytes / 2**20:.0f} MiB for the slab under work{' on disk' if self.disk else ''}"
        )


def choose_batch_size(window: Sequence[int], most: int = 16, voxels: int = GPU_VOXELS) -> int:
    """Chooses how many windows are predicted together: as many as hold `voxels`, from 1 to `most`."""
    return max(1, min(most, voxels // math.prod(window)))


def predict_windows(
    predict: Callable[[np.ndarray], np.ndarray],
    windows: Iterable[np.ndarray],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda number: None,
    *,
    one_shape: bool = False,
) -> Iterator[np.ndarray]:
    """Predicts windows in batches. Zeros pad an incomplete batch, so that few shapes are compiled.

    Args:
        predict: A function from `(B, *P, C)` to `(B, *P, K)`.
        windows: `(*P, C)` each, read lazily; they may belong to different cases.
        batch_size: `B`.
        on_batch: A function called after each batch with the number of its windows.
        one_shape: Whether to pad to `B`, for a model that is compiled anew for each shape; otherwise to a power of two.

    Yields:
        `(*P, K)` for each window, in order.
    """
    windows = iter(windows)
    while batch := list(islice(windows, batch_size)):
        rows = batch_size if one_shape else min(batch_size, 2 ** (len(batch) - 1).bit_length())
        inputs = np.zeros((rows, *batch[0].shape), np.float32)
        for row, window in enumerate(batch):
            inputs[row] = window
        outputs = predict(inputs)[: len(batch)]
        on_batch(len(batch))
        yield from outputs


def mirror(
    predict: Callable[[np.ndarray], np.ndarray], axes: Sequence[int], left_right: int | None = None, swaps: Sequence[tuple[int, int]] = ()
) -> Callable[[np.ndarray], np.ndarray]:
    """Wraps `predict` so that it averages over all combinations of flips along `axes` of `(B, *P, C)`.

    Args:
        predict: A function from `(B, *P, C)` to `(B, *P, K)`.
        axes: The axes of a batch to flip.
        left_right: The axis that runs from left to right, if it is one of them.
        swaps: Pairs of classes that trade places when left and right do.
    """

    def predict_mirrored(inputs: np.ndarray) -> np.ndarray:
        total = predict(inputs).astype(np.float32)
        number = 1
        for count in range(1, len(axes) + 1):
            for chosen in combinations(axes, count):
                outputs = np.flip(predict(np.ascontiguousarray(np.flip(inputs, chosen))), chosen)
                if left_right in chosen and swaps:
                    order = list(range(outputs.shape[-1]))
                    for first, second in swaps:
                        order[first], order[second] = second, first
                    outputs = outputs[..., order]
                total = total + outputs
                number += 1
        return total / number

    return predict_mirrored


def merge_windows(outputs: Iterable[np.ndarray], tiling: Tiling) -> Iterator[np.ndarray]:
    """Merges the windows of one case. Voxels near a window's middle weigh more (Gaussian weights, Isensee et al., 2021).

    All weights are 1 along an axis with a single window, so a case of one window comes out as the network gave it.

    Args:
        outputs: `(*window, K)` in the order of `tiling.starts`. Only the windows of this case are read.
        tiling: The windows of the case.

    Yields:
        Planes `(*P[1:], K)` float32, in order.
    """
    outputs = iter(outputs)
    profiles, totals = _weigh_axes(tiling)
    depth = min(tiling.window[0], tiling.shape[0])
    # The slab is a ring: a plane takes the place of the one that went `depth` planes before it.
    slab, let_go = _make_slab((depth, *tiling.shape[1:], tiling.num_classes), tiling.disk)

    def take(index: int) -> np.ndarray:
        plane = slab[index % depth] / _weigh_plane(totals, index)
        slab[index % depth] = 0
        let_go()
        return plane

    first = 0
    for start in tiling.starts:
        # Windows are ordered by their start, so the planes before this start are complete.
        while first < start[0]:
            yield take(first)
            first += 1
        ranges = [
            (max(begin, 0), min(begin + length, size)) for begin, length, size in zip(start, tiling.window, tiling.shape, strict=True)
        ]
        inside = tuple(slice(low - begin, high - begin) for (low, high), begin in zip(ranges, start, strict=True))
        place = tuple(slice(low, high) for low, high in ranges)
        weighted = next(outputs)[inside] * _multiply_outer([profile[part] for profile, part in zip(profiles, inside, strict=True)])
        for index, plane in enumerate(weighted, start=place[0].start):
            slab[(index % depth, *place[1:])] += plane
            let_go()
    for index in range(first, tiling.shape[0]):
        yield take(index)


def _make_slab(shape: tuple[int, ...], folder: Path | None) -> tuple[np.ndarray, Callable[[], object]]:
    """Makes an array of zeros, and a function that takes out of memory what was touched of it, where it lies on the disk of a folder.

    Raises:
        MemoryError: If the disk has no room for it.
    """
    if folder is None:
        return np.zeros(shape, np.float32), lambda: None
    size = 4 * math.prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The file has no name, so nothing is left of it however the process ends. The map keeps it alive.
        with tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY) as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # On a full disk the system would otherwise kill the process in the middle of its work.
                os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise MemoryError(f"no {size / 2**30:.1f} GiB on the disk of {folder} ({error.strerror})") from error
    slab = np.frombuffer(mapped, np.float32).reshape(shape)
    if not hasattr(mmap, "MADV_DONTNEED"):
        return slab, lambda: None
    return slab, lambda: mapped.madvise(mmap.MADV_DONTNEED)


def _weigh_axes(tiling: Tiling) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the window's weights along each axis, and their sum over all windows at each voxel of the axis.

    Windows lie on a full grid, and the weights are a product over axes. Their sum is therefore such a product too, and needs no array of
    the volume's size.
    """
    profiles, totals = [], []
    for axis, (size, length) in enumerate(zip(tiling.shape, tiling.window, strict=True)):
        starts = sorted({start[axis] for start in tiling.starts})
        profile = np.ones(length, np.float32) if len(starts) == 1 else make_gaussian(length)
        total = np.zeros(size, np.float32)
        for start in starts:
            low, high = max(start, 0), min(start + length, size)
            total[low:high] += profile[low - start : high - start]
        profiles.append(profile)
        totals.append(total)
    return profiles, totals


def _multiply_outer(profiles: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the outer product of one profile an axis, `(*window, 1)`."""
    result = np.ones(1, np.float32)
    for profile in reversed(profiles):
        result = np.multiply.outer(profile, result)
    return result


def _weigh_plane(totals: Sequence[np.ndarray], plane: int) -> np.ndarray:
    """Returns the sum of the windows' weights at each voxel of one plane, `(*P[1:], 1)`."""
    return totals[0][plane] * _multiply_outer(totals[1:])


def average_planes(streams: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Averages the probabilities of several models, plane by plane."""
    for planes in zip(*streams, strict=True):
        yield planes[0] if len(planes) == 1 else np.mean(planes, axis=0)
