"""The bound on memory of a prediction: which scans are read, how many windows are computed together, and which sums lie on disk.

Nothing can be chosen about reading a scan, so its memory is estimated from the header. What a window takes is measured. What is left
when a scan lies in memory decides about the rest.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.case import Case, Volume
from modules.data.formats import read_grid
from modules.hardware import read_memory, read_peak, reset_peak
from modules.predict.bundle import ModelBundle
from modules.predict.windows import Tiling

GIB = 1 << 30
# Libraries that are loaded with the first scan, to write files, draw pictures and score, and what these steps take for a usual scan.
RESERVE = 160 << 20


class WindowCost(NamedTuple):
    """The bytes that a model takes while it predicts: for a batch of one window, and for each further window."""

    first: int
    more: int


class MemoryLimit:
    """The most memory that a process may take, and the choices that keep it."""

    def __init__(self, limit_gib: float, bundles: Sequence[ModelBundle], batch_sizes: Sequence[int], disk: Path) -> None:
        """Predicts windows of zeros with each model, to measure what they take.

        Args:
            limit_gib: The limit in GiB.
            bundles: The models of the prediction, as `predict_cases` gets them.
            batch_sizes: Windows that each model predicts together where there is memory enough.
            disk: A folder. Sums for which there is no memory are kept on its disk.

        Raises:
            ValueError: If a model does not fit with a single window.
        """
        self._bytes, self._reserve = int(limit_gib * GIB), RESERVE
        self._given = f"{limit_gib:g} GiB"
        self._bundles = bundles
        self._disk = disk
        self._costs = [self._measure_windows(bundle, most) for bundle, most in zip(bundles, batch_sizes, strict=True)]
        self._kept = read_memory()

    def admits(self, case: Case, *, alone: bool) -> bool:
        """Tells whether a case can be read beside what memory holds now.

        Raises:
            ValueError: If it cannot, and no other case is in memory, naming its file.
        """
        shape, needed = estimate_reading(case, self._bundles)
        taken = read_memory()
        if alone:
            # What has been taken since the start, and is no scan, are libraries that the reserve was for.
            self._reserve = max(0, RESERVE - max(0, taken - self._kept))
        needed += taken
        if needed <= self._limit or not alone:
            return needed <= self._limit
        raise ValueError(
            f"Expected a scan that can be read within `--max-memory` {self._given}. Received: {'x'.join(map(str, shape))} voxels in "
            f"{case.image_paths[0]}, for about {self._format(needed)} with the program. Give more, or resample the scan."
        )

    def fit(self, tilings: Sequence[Sequence[Tiling]], kept_bytes: int) -> list[tuple[int, Path | None]]:
        """Chooses batch size and place of the slab for each model, for cases that lie in memory.

        Args:
            tilings: The windows of these cases, for each model.
            kept_bytes: Memory for the results of a case.

        Returns:
            Windows predicted together, and the folder for the slab or None for memory.

        Raises:
            MemoryError: If not even one window and no slab fit.
        """
        # A plane is on its way through several steps, on the network's grid and on the scan's.
        planes = sum(8 * max(4 * math.prod(tiling.shape[1:]) * tiling.num_classes for tiling in own) for own in tilings)
        room = self._limit - read_memory() - kept_bytes - planes
        slabs = [max(tiling.slab_bytes for tiling in own) for own in tilings]
        shared = share_room(room, slabs, self._costs, [own[0].batch_size for own in tilings])
        if shared is None:
            raise MemoryError(f"too little left of `--max-memory` {self._given} beside the scan for one window")
        return [(batch_size, self._disk if on_disk else None) for batch_size, on_disk in shared]

    @property
    def _limit(self) -> int:
        return self._bytes - self._reserve

    def _format(self, needed: int) -> str:
        """Formats the limit that would hold so many bytes, rounded up."""
        return f"{math.ceil(10 * (needed + self._reserve) / GIB) / 10:.1f} GiB"

    def _measure_windows(self, bundle: ModelBundle, most: int) -> WindowCost:
        """Measures what batches of up to `most` windows take, besides what the model keeps from one batch to the next."""
        window = np.zeros((1, *bundle.window.shape, len(bundle.channels)), np.float32)
        # Flips and weights make two copies of the output.
        copies = 8 * math.prod(bundle.window.shape) * bundle.num_maps
        least = window.nbytes + copies
        before = read_memory()
        self._check(before + least, bundle)
        # The first call also makes what is kept.
        peak = _find_peak(bundle, window)
        self._check(peak, bundle)
        kept, more = read_memory(), peak - before
        first = _find_peak(bundle, window) - kept
        number = min(most, int((self._limit - kept) // max(more, least)))
        if number > 1:
            more = (_find_peak(bundle, np.repeat(window, number, axis=0)) - kept - first) // (number - 1)
        return WindowCost(max(first + copies, least), max(more + copies, least))

    def _check(self, needed: int, bundle: ModelBundle) -> None:
        if needed > self._limit:
            raise ValueError(
                f"Expected `--max-memory` of {self._format(needed)} or more, which the program takes with one window of {bundle.window}. "
                f"Received: {self._given}. Give more, or a model with smaller windows."
            )


def _find_peak(bundle: ModelBundle, windows: np.ndarray) -> int:
    """Returns the peak of memory, in bytes, while a model predicts windows."""
    reset_peak()
    bundle.model.predict_on_batch(windows)
    return read_peak()


def estimate_reading(case: Case, bundles: Sequence[ModelBundle]) -> tuple[tuple[int, ...], int]:
    """Estimates the shape of a scan and the bytes that reading and preprocessing it takes, from the header; ((), 0) without one.

    These are 4 bytes a voxel and channel for the image, and as many for what the network sees. Normalising copies the foreground of one
    channel, in float64. Resampling needs four copies at once, of the grid in its largest state.
    """
    channels, volume = len(bundles[0].channels), None
    # A picture's header says nothing, and pictures are small. An error of the header is told when the file is read.
    with contextlib.suppress(OSError, ValueError):
        array, affine, spacing_mm = read_grid(case.image_paths[0], (case.series or ("",))[0])
        volume = Volume(np.broadcast_to(np.float32(0), (*array.shape[:-1], channels)), affine, spacing_mm)
    if volume is None or volume.array.ndim - 1 != bundles[0].preprocessing.spatial_dims:
        return (), 0
    voxels, total = math.prod(volume.array.shape[:-1]), 0
    for bundle in bundles:
        # The header does not show the foreground. To look for it in so many voxels as a lying header promises would fill the memory.
        geometry = replace(bundle.preprocessing, foreground_crop=False).measure(volume)
        largest = math.prod(map(max, geometry.grid, geometry.shape))
        resampled = 16 * channels * largest if geometry.grid != geometry.shape else 0
        total = max(total, 4 * channels * voxels + max((4 * channels + 12) * voxels, resampled))
    # All models see the scan at once.
    return volume.array.shape[:-1], total + 4 * channels * voxels * (len(bundles) - 1)


def share_room(room: int, slabs: Sequence[int], costs: Sequence[WindowCost], batch_sizes: Sequence[int]) -> list[tuple[int, bool]] | None:
    """Shares memory among models: smaller batches come first, and then slabs on disk, which take longer.

    Args:
        room: Bytes that are left.
        slabs: Bytes of each model's slab.
        costs: Bytes that each model takes for the windows of a batch.
        batch_sizes: The largest batch of each model.

    Returns:
        The batch size of each model, and whether its slab lies on disk. None if single windows do not fit.
    """
    chosen, on_disk = list(batch_sizes), [False] * len(slabs)
    models = range(len(slabs))

    def take(i: int) -> int:
        return costs[i].first + costs[i].more * (chosen[i] - 1)

    while sum(take(i) + (0 if on_disk[i] else slabs[i]) for i in models) > room:
        if max(chosen) > 1:
            largest = max((i for i in models if chosen[i] > 1), key=take)
            chosen[largest] = (chosen[largest] + 1) // 2
        elif not all(on_disk):
            on_disk[max((i for i in models if not on_disk[i]), key=lambda i: slabs[i])] = True
        else:
            return None
    return list(zip(chosen, on_disk, strict=True))
