"""The room that reading takes: how many volumes memory holds on their way into the cache, and whether the disk holds them there."""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.case import Case, Volume
from modules.data.formats import read_grid
from modules.data.preprocess import Preprocessing
from modules.hardware import find_memory

# The most cases that are read at the same time, and the part of the memory that they may take.
MOST_READERS, MEMORY_SHARE = 16, 0.5
# About so many headers are looked at, from all parts of the list.
_LOOKED_AT = 8

log = logging.getLogger("mri")


class Needs(NamedTuple):
    """The bytes that a case takes: of memory while it is prepared, and of disk in the cache."""

    memory: int
    disk: int


def count_readers(cases: Sequence[Case], preprocessing: Preprocessing, cache: Path | None = None) -> int:
    """Counts the cases to read at the same time, from their headers; warns if the disk will not hold all of them.

    A large volume takes gigabytes while it is prepared. One on each core would then end the command without a word. Slices take little.

    Args:
        cases: The cases that are to be read.
        preprocessing: The steps that they go through.
        cache: The folder that they are kept in; None where only measurements are kept.
    """
    most = min(MOST_READERS, os.cpu_count() or 1)
    if preprocessing.spatial_dims == 2:
        return most
    looked_at = [estimate_needs(case, preprocessing) for case in cases[:: max(1, len(cases) // _LOOKED_AT)]]
    known, memory = [needs for needs in looked_at if needs], find_memory()
    if not known:
        return most
    if cache is not None:
        _warn_of_disk(len(cases) * sum(needs.disk for needs in known) // len(known), cache)
    largest = max(needs.memory for needs in known)
    readers = max(1, min(most, int(MEMORY_SHARE * memory / largest))) if memory else most
    if readers < min(most, len(cases)):
        log.info("reading %d volume(s) at a time: one takes up to %.1f GiB on its way into the cache", readers, largest / 2**30)
    return readers


def estimate_needs(case: Case, preprocessing: Preprocessing) -> Needs | None:
    """Estimates what preparing a volume takes; None where no header says its size.

    In memory are the image, and what the network sees, 4 bytes a voxel and channel each. Normalising copies the foreground of one
    channel, in float64. Resampling needs four copies at once, of the grid in its largest state; so does the share of each class. The
    header does not show the margins that are cut off.
    """
    # An error of the header is told when the file is read.
    with contextlib.suppress(OSError, ValueError):
        array, affine, spacing_mm = read_grid(case.image_paths[0], (case.series or ("",))[0])
        channels = max(len(case.image_paths), array.shape[-1])
        volume = Volume(np.broadcast_to(np.float32(0), (*array.shape[:-1], channels)), affine, spacing_mm)
        if volume.array.ndim - 1 == preprocessing.spatial_dims:
            geometry = replace(preprocessing, foreground_crop=False).measure(volume)
            voxels, grid = math.prod(geometry.shape), math.prod(geometry.grid)
            largest = math.prod(map(max, geometry.shape, geometry.grid))
            resampled = max(16 * channels * largest, (4 * channels + 22) * grid) if geometry.grid != geometry.shape else 0
            kept = math.prod(preprocessing.shape or geometry.grid)
            return Needs(4 * channels * voxels + max((4 * channels + 12) * voxels, resampled), (2 * channels + 1) * kept)
    return None


def _warn_of_disk(needed: int, cache: Path) -> None:
    """Warns if the cache's disk has less room than its cases take."""
    place = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(place).free
        if needed > free:
            log.warning(
                "the cache takes up to %.1f GiB more in %s, and %.1f are free there. Free some space, or choose another `--cache`",
                needed / 2**30, cache, free / 2**30,
            )  # fmt: skip
