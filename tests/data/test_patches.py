"""Windows and patches: every voxel is covered, neighbours share what was asked, draws stay inside and repeat."""

from itertools import pairwise

import numpy as np
import pytest

from modules.data.patches import PLANES, choose_points, cut, draw_start, list_starts, make_gaussian, make_grid
from modules.data.regions import IGNORE
from modules.data.resample import fit_shape

OVERLAPS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9)


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (10, 5, 0.0, [0, 5]),
        (10, 4, 0.0, [0, 3, 6]),
        (10, 4, 0.5, [0, 2, 4, 6]),
        (11, 4, 0.5, [0, 2, 4, 5, 7]),
        (5, 4, 0.0, [0, 1]),
        (4, 4, 0.9, [0]),
        (3, 4, 0.0, [0]),
        (3, 8, 0.5, [-2]),
        (1, 1, 0.0, [0]),
        (3, 1, 0.0, [0, 1, 2]),
    ],
)
def test_starts_by_hand(size, window, overlap, expected):
    assert list_starts(size, window, overlap) == expected


def test_grid_by_hand_has_its_first_axis_changing_slowest():
    assert make_grid((6, 3, 10), (3, 4, 5)) == [(0, 0, 0), (0, 0, 5), (3, 0, 0), (3, 0, 5)]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        make_grid((6, 3), (3,))


def _draw_axes(number):
    rng = np.random.default_rng(0)
    for _ in range(number):
        yield int(rng.integers(1, 120)), int(rng.integers(1, 50)), float(rng.choice(OVERLAPS))


def test_windows_cover_every_voxel_and_lie_inside():
    for size, window, overlap in _draw_axes(2000):
        starts = list_starts(size, window, overlap)
        covered = np.zeros(size, bool)
        for start in starts:
            covered[max(start, 0) : start + window] = True
        assert covered.all(), (size, window, overlap)
        assert starts == sorted(set(starts)), (size, window, overlap)
        if size >= window:
            assert (starts[0], starts[-1]) == (0, size - window), (size, window, overlap)


def test_neighbours_share_at_least_what_was_asked():
    for size, window, overlap in _draw_axes(2000):
        starts = list_starts(size, window, overlap)
        shared = [(window - second + first) / window for first, second in pairwise(starts)]
        # A step is never shorter than one voxel.
        assert min(shared, default=1) >= min(overlap, (window - 1) / window) - 1e-9, (size, window, overlap)


def test_no_more_windows_than_needed():
    for size, window, _ in _draw_axes(200):
        assert len(list_starts(size, window)) == max(1, -(-size // window)), (size, window)


def test_a_window_beyond_a_small_array_lies_where_fit_shape_puts_it():
    array = np.arange(1, 3 * 4 + 1).reshape(3, 4)
    for window in [(8, 9), (3, 7), (4, 4), (7, 2)]:
        start = make_grid(array.shape, window)[0]
        if window[1] >= 4:
            np.testing.assert_array_equal(cut(array, start, window, -1), fit_shape(array[..., None], window, fill=-1)[..., 0])


def test_gaussian_by_hand():
    weights = make_gaussian(9)
    assert weights.dtype == np.float32
    assert weights[4] == 1
    np.testing.assert_allclose(weights, weights[::-1])
    # The standard deviation is 9 / 8 voxels.
    np.testing.assert_allclose(weights[3], np.exp(-0.5 * (8 / 9) ** 2), rtol=1e-6)
    assert make_gaussian(96).min() == np.float32(1e-3)
    np.testing.assert_array_equal(make_gaussian(1), [1])


def test_cut_by_hand():
    array = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(cut(array, (1, 1), (2, 2)), [[5, 6], [9, 10]])
    np.testing.assert_array_equal(cut(array, (-1, 2), (3, 3), fill=-7), [[-7, -7, -7], [2, 3, -7], [6, 7, -7]])
    np.testing.assert_array_equal(cut(array, (2, -1), (2, 6), fill=-7), [[-7, 8, 9, 10, 11, -7], [-7] * 6])


def test_cut_fills_each_channel_with_its_own_value_and_keeps_the_dtype():
    array = np.ones((2, 2, 3), np.float16)
    result = cut(array, (-1, 0), (2, 2), fill=(5, 6, 7))
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result[0], [[5, 6, 7]] * 2)
    np.testing.assert_array_equal(result[1], np.ones((2, 3)))


def test_cut_copies():
    array = np.zeros((4, 4))
    for start in [(0, 0), (-1, -1)]:
        cut(array, start, (3, 3))[...] = 1
    assert not array.any()


@pytest.mark.parametrize("start", [7, -5])
def test_a_window_wholly_outside_is_all_fill(start):
    np.testing.assert_array_equal(cut(np.arange(5), (start,), (3,), fill=9), [9, 9, 9])


def test_points_are_voxels_of_their_class_without_repetition():
    label = np.random.default_rng(0).choice(4, (12, 13, 14), p=[0.7, 0.29, 0.0, 0.01]).astype(np.uint8)
    points = choose_points(label, 5, np.random.default_rng(1), limit=100)
    counts = np.bincount(label.ravel(), minlength=5)
    for index, places in enumerate(points):
        assert places.dtype == np.uint16
        assert places.shape == (min(counts[index], 100), 3)
        assert (label[tuple(places.T)] == index).all()
        assert len(np.unique(places, axis=0)) == len(places)
    assert len(points) == 5
    again = choose_points(label, 5, np.random.default_rng(1), limit=100)
    for one, other in zip(points, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_points_of_a_large_class_come_from_everywhere():
    points = choose_points(np.zeros((40, 40, 40), np.uint8), 1, np.random.default_rng(0), limit=2000)[0]
    np.testing.assert_allclose(points.mean(axis=0), 19.5, atol=1.5)
    np.testing.assert_array_equal(points.min(axis=0), 0)
    np.testing.assert_array_equal(points.max(axis=0), 39)


@pytest.fixture(scope="module")
def label():
    """A box of class 1, a thin rod of class 2 and three voxels of class 3, all away from the borders."""
    label = np.zeros((30, 24, 20), np.uint8)
    label[8:22, 8:16, 8:12] = 1
    label[10:20, 12, 9] = 2
    label[15, 13, (8, 10, 11)] = 3
    return label


def _draw_centres(label, window, number=1500, **options):
    """Returns the class at the centre of each drawn patch."""
    rng = np.random.default_rng(7)
    points = choose_points(label, 4, np.random.default_rng(0))
    starts = np.array([draw_start(rng, label.shape, window, points=points, **options) for _ in range(number)])
    return label[tuple((starts + np.array(window) // 2).T)]


def test_foreground_is_centred_on_foreground(label):
    for window in [(8, 8, 8), (7, 9, 5), (1, 1, 1)]:
        assert (_draw_centres(label, window, 200, sampling="foreground") > 0).all()


def test_foreground_draws_the_classes_that_a_case_has_evenly(label):
    # The voxels of class 3 are 3 in 448: without even classes it would be drawn 10 times of 1500, not 500 times.
    assert np.bincount(label.ravel())[1:].tolist() == [435, 10, 3]
    for absent, expected in [(None, (0, 500, 500, 500)), (2, (0, 750, 0, 750)), (1, (0, 0, 750, 750))]:
        present = np.where(label == absent, 0, label) if absent else label
        classes = _draw_centres(present, (1, 1, 1), sampling="foreground")
        np.testing.assert_allclose(np.bincount(classes, minlength=4), expected, atol=60)


def test_ignored_voxels_are_no_centre_of_a_patch(label):
    # Most of the case is ignored, and a plane of the rod and of class 1.
    sparse = np.where(np.isin(np.indices(label.shape)[0], (12, 15)), label, IGNORE)
    for sampling in ("foreground", "weighted", "judged"):
        centres = _draw_centres(sparse, (1, 1, 1), 200, sampling=sampling)
        assert not (centres == IGNORE).any()
        assert (centres == 0).any() == (sampling != "foreground")
    assert (_draw_centres(sparse, (1, 1, 1), 200, sampling="uniform") == IGNORE).any()


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [((), (0.25, 0.25, 0.25, 0.25)), ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)), ((0, 0, 2, 6), (0, 0, 0.25, 0.75))],
)
def test_weighted_gives_each_class_its_share_however_rare(label, probabilities, expected):
    # The centre of a background window may be pushed inwards, so the smallest window counts the classes.
    classes = _draw_centres(label, (1, 1, 1), sampling="weighted", probabilities=probabilities)
    np.testing.assert_allclose(np.bincount(classes, minlength=4) / len(classes), expected, atol=0.04)


def test_weighted_passes_on_the_share_of_an_absent_class(label):
    without = np.where(label == 2, 0, label)
    classes = _draw_centres(without, (1, 1, 1), sampling="weighted", probabilities=(0.1, 0.1, 0.5, 0.3))
    np.testing.assert_allclose(np.bincount(classes, minlength=4) / len(classes), (0.2, 0.2, 0, 0.6), atol=0.04)


@pytest.mark.parametrize(("sampling", "probabilities"), [("foreground", ()), ("weighted", (0, 1, 1, 1))])
def test_a_case_without_foreground_is_drawn_from_anywhere(sampling, probabilities):
    empty = np.zeros((9, 9, 9), np.uint8)
    points = choose_points(empty, 4, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    starts = {draw_start(rng, (9, 9, 9), (8, 8, 8), points=points, sampling=sampling, probabilities=probabilities) for _ in range(200)}
    assert len(starts) == 8


@pytest.mark.parametrize("sampling", ["uniform", "foreground", "weighted"])
def test_patches_stay_inside_and_hold_their_voxel(sampling):
    # One voxel in the very corner: no patch inside can be centred on it.
    label = np.zeros((10, 11, 12), np.uint8)
    label[9, 0, 11] = 1
    points = choose_points(label, 2, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    for window in [(4, 5, 6), (10, 11, 12), (1, 11, 2)]:
        for _ in range(50):
            start = draw_start(rng, label.shape, window, points=points, sampling=sampling)
            assert all(0 <= first <= size - length for first, size, length in zip(start, label.shape, window, strict=True))
            if sampling == "foreground":
                assert cut(label, start, window).any()


def test_uniform_reaches_every_place_alike():
    rng = np.random.default_rng(0)
    starts = [draw_start(rng, (6, 5), (3, 5)) for _ in range(2000)]
    assert {start[1] for start in starts} == {0}
    np.testing.assert_allclose(np.bincount([start[0] for start in starts]) / 2000, 0.25, atol=0.04)


@pytest.mark.parametrize("sampling", ["uniform", "foreground", "weighted"])
def test_a_case_smaller_than_the_window_lies_in_its_middle(label, sampling):
    points = choose_points(label, 4, np.random.default_rng(0))
    start = draw_start(np.random.default_rng(0), label.shape, (64, 8, 25), points=points, sampling=sampling)
    assert (start[0], start[2]) == (-17, -2)
    assert 0 <= start[1] <= 16


def test_the_same_generator_draws_the_same(label):
    points = choose_points(label, 4, np.random.default_rng(0))

    def draw(seed):
        rng = np.random.default_rng(seed)
        return [draw_start(rng, label.shape, (8, 8, 8), points=points, sampling="weighted") for _ in range(20)]

    assert draw(3) == draw(3) != draw(4)


def test_planes_are_named_by_the_axis_across_them():
    assert PLANES == {"sagittal": 0, "coronal": 1, "axial": 2}
