"""Views of volumes: every stored orientation is turned alike, and slices are chosen by their foreground."""

import itertools

import numpy as np
import pytest
from picture_helpers import store

from modules.reports.views import choose_slice, count_voxels, find_view, spread_slices

ORIENTATIONS = ["".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_turned_to_the_same_volume(volume, codes):
    stored = store(volume, codes)
    view = find_view(None, stored["affine"])
    turned = view.turn(stored["image"])
    np.testing.assert_array_equal(turned, volume["image"])
    assert np.shares_memory(turned, stored["image"])
    assert view.spacing_mm == pytest.approx((1, 1.5, 3))
    assert view.tilt_degrees == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("foreground", "expected"),
    [
        ([[0], [2], [2], [2], [0], [0]], 2),
        ([[1], [1], [0], [0], [0], [8]], 5),  # the centre, 4.1, lies in a gap
        ([[4], [9], [1], [4], [9]], 1),  # the centre, 2.2, is nearly empty; the nearest of the fullest
        ([[90, 0], [90, 0], [90, 0], [0, 0], [0, 2], [0, 2], [0, 2]], 2),  # halfway between 1 and 5 is a gap
        ([[90, 0], [90, 0], [90, 0], [90, 1], [90, 1]], 3),  # centres 2 and 3.5: the small one weighs as much
        ([[0], [0], [0], [0], [0]], 2),
        ([[7]], 0),
    ],
)
def test_slice_choice_by_hand(foreground, expected):
    counts = np.pad(np.array(foreground), ((0, 0), (1, 0)), constant_values=1000)
    assert choose_slice(counts) == expected


def test_voxels_are_counted_along_each_axis():
    classes = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    for axis, counts in enumerate(count_voxels(classes, 3)):
        expected = [[(np.take(classes, i, axis) == value).sum() for value in range(3)] for i in range(classes.shape[axis])]
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    ("occupied", "number", "expected"),
    [
        (range(2, 8), 3, [3, 5, 7]),
        (range(2, 8), 20, [2, 3, 4, 5, 6, 7]),
        (range(2, 8), 1, [5]),
        ((1, 9), 3, [2, 5, 8]),  # the gap belongs to the extent
        ((), 2, [2, 7]),
    ],
)
def test_slices_are_spread_over_the_foreground(occupied, number, expected):
    counts = np.zeros((10, 3), int)
    counts[:, 0], counts[list(occupied), 2] = 50, 1
    assert spread_slices(counts, number) == expected
