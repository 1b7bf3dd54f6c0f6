"""The room that reading takes, by hand: memory and disk of a volume, and how many are read at the same time."""

import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modules.data import room
from modules.data.case import Case
from modules.data.formats import StoredImage
from modules.data.preprocess import Preprocessing
from modules.data.room import Needs, count_readers, estimate_needs


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """Fixes the machine, and the headers: volumes of 10x20x30 voxels of 1 mm, but for those called "unknown"."""

    def read_grid(path, series):
        if path.name == "unknown":
            raise ValueError("no header")
        return StoredImage(np.broadcast_to(np.float32(0), (10, 20, 30, 1)), np.eye(4), (1.0, 1.0, 1.0))

    monkeypatch.setattr(room, "read_grid", read_grid)
    monkeypatch.setattr(room, "find_memory", lambda: 1_000_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


def _list(number, *names):
    return [Case(str(index), "s", tuple(map(Path, names or ("scan",)))) for index in range(number)]


@pytest.mark.parametrize(
    ("names", "preprocessing", "expected"),
    [
        # 6,000 voxels of 4 + 4 + 12 bytes, kept in 2 + 1.
        (["scan"], Preprocessing(3), Needs(120_000, 18_000)),
        (["t1", "t2"], Preprocessing(3, foreground_crop=True), Needs(168_000, 30_000)),
        # Twice as many voxels, of which each class has a share: 4 * 6,000 + (4 + 22) * 12,000.
        (["scan"], Preprocessing(3, spacing_mm=(1.0, 1.0, 0.5)), Needs(336_000, 36_000)),
        # Each has the size of the window in the end.
        (["scan"], Preprocessing(3, shape=(8, 8, 8), resize=True), Needs(120_000, 3 * 512)),
        (["unknown"], Preprocessing(3), None),
        # Slices have another rank.
        (["scan"], Preprocessing(2), None),
    ],
)
def test_the_needs_of_a_case_by_hand(names, preprocessing, expected):
    assert estimate_needs(_list(1, *names)[0], preprocessing) == expected


def test_as_many_volumes_are_read_as_half_of_the_memory_holds(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mri")
    assert count_readers(_list(40), Preprocessing(3)) == 4
    assert "reading 4 volume(s) at a time: one takes up to 0.0 GiB" in caplog.text
    # Nothing bounds slices, files without a header, or machines that do not say what they have.
    assert count_readers(_list(40), Preprocessing(2)) == 16
    assert count_readers(_list(40, "unknown"), Preprocessing(3)) == 16
    assert count_readers([], Preprocessing(3)) == 16
    for memory, readers in ((100, 1), (0, 16), (1 << 40, 16)):
        monkeypatch.setattr(room, "find_memory", lambda memory=memory: memory)
        assert count_readers(_list(40), Preprocessing(3)) == readers


def test_a_disk_that_will_not_hold_the_cache_is_told_before_anything_is_read(monkeypatch, caplog, tmp_path):
    asked = []
    for free, told in ((40 * 18_000, False), (40 * 18_000 - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: asked.append(path) or SimpleNamespace(free=free))
        count_readers(_list(40), Preprocessing(3), tmp_path / "cache" / "set")
        assert ("are free there. Free some space, or choose another `--cache`" in caplog.text) == told
    assert asked == [tmp_path, tmp_path]
