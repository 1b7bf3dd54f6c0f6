"""Synthetic contrast against results by hand and a reference in NumPy. This file also runs under the other backends."""

from dataclasses import replace

import numpy as np
import pytest
from augment_helpers import apply_to_arrays, make_batch
from helpers import SHAPES, draw_batch

from modules.data.draws import AUGMENTATIONS, CURVE_POINTS, TISSUES, Augmentation

SYNTHETIC = Augmentation(synthetic=1.0)


def _make_parameters(levels, texture=0.0, chosen=(1,)):
    """Makes flat curves with these levels for the classes 0, 1, ..."""
    curve = np.zeros((len(chosen), TISSUES, 1, CURVE_POINTS), np.float32)
    curve[:, : len(levels)] = np.array(levels, np.float32)[None, :, None, None]
    return {
        "synthetic": np.array(chosen, np.int32),
        "curve": curve,
        "texture": np.full((len(chosen), TISSUES, 1), texture, np.float32),
        "texture_seed": np.tile(np.array([1, 2], np.int32), (len(chosen), 1)),
    }


def test_classes_get_their_level_and_the_scan_keeps_mean_and_deviation_by_hand():
    image = np.array([0, 0, 1, 3], np.float32).reshape(1, 2, 2, 1)
    label = np.array([[[0, 0], [1, 2]]], np.int32)
    # The bright voxels 1 and 3 have mean 2 and deviation 1. Levels of 0.2 and 0.8 have mean 0.5 and deviation 0.3, so they become 1 and 3.
    # Air, 0, becomes (0 - 0.5) / 0.3 + 2.
    for levels, expected in (((0, 0.2, 0.8), [1, 3]), ((0, 0.8, 0.2), [3, 1])):
        drawn, kept = apply_to_arrays(image, label, _make_parameters(levels))
        np.testing.assert_allclose(drawn.ravel(), [1 / 3, 1 / 3, *expected], rtol=1e-5)
        np.testing.assert_array_equal(kept, label)
    # A background with a signal counts: four levels 0.9, 0.9, 0.2, 0.8 have mean 0.7.
    drawn, _ = apply_to_arrays(image, label, _make_parameters((0.9, 0.2, 0.8)))
    np.testing.assert_allclose((drawn.mean(), drawn.std()), (2, 1), rtol=1e-5)
    assert drawn[0, 0, 0, 0] == drawn.max()


def test_only_the_chosen_samples_change():
    image, label = make_batch(2, number=3)
    parameters = _make_parameters((0.1, 0.5, 0.9, 0.3, 0.7), texture=0.05, chosen=(0, 1, 0))
    drawn, _ = apply_to_arrays(image, label, parameters)
    np.testing.assert_array_equal(drawn[[0, 2]], image[[0, 2]])
    assert np.abs(drawn[1] - image[1]).max() > 0.1


@pytest.mark.parametrize("rank", [2, 3])
def test_drawn_curves_equal_the_reference(rank):
    image, label = make_batch(rank, channels=2, number=3)
    label[label == 4] = 255
    parameters = draw_batch(SYNTHETIC, SHAPES[rank], channels=2, number=3)
    parameters["texture"][:] = 0
    drawn, _ = apply_to_arrays(image, label, parameters)
    for sample in range(3):
        for channel in range(2):
            one = image[sample, ..., channel].astype(np.float64)
            bright = one[one > one.min()]
            places = np.linspace(one.min(), bright.mean() + 2.5 * bright.std(), CURVE_POINTS)
            expected = np.zeros(one.shape)
            for value in np.unique(label[sample]):
                mask = label[sample] == value
                expected[mask] = np.interp(one[mask], places, parameters["curve"][sample, value, channel])
            seen = expected[expected > 0]
            expected = (expected - seen.mean()) / seen.std() * bright.std() + bright.mean()
            np.testing.assert_allclose(drawn[sample, ..., channel], expected, atol=1e-4)


def test_both_sides_are_one_tissue():
    image, label = make_batch(2, number=1)
    parameters = {
        **_make_parameters((0.1, 0.4, 0.6, 0.8, 0.9)),
        "matrix": np.eye(2, 3, dtype=np.float32)[None],
        "mirrored": np.zeros(1, np.int32),
    }
    apart, _ = apply_to_arrays(image, label, parameters)
    joined, kept = apply_to_arrays(image, label, parameters, ((1, 3),))
    np.testing.assert_array_equal(kept, label)
    levels = [np.unique(drawn[0, ..., 0][label[0] == value].round(4)) for drawn in (apart, joined) for value in (1, 3)]
    assert levels[0] != levels[1]
    assert levels[2] == levels[3]


def test_grain_differs_by_tissue_and_air_has_none():
    image, label = make_batch(2, number=1, shape=(64, 64))
    label %= 3
    image[label == 0] = image.min()
    parameters = _make_parameters((0, 0.4, 0.6))
    parameters["texture"][0, :3, 0] = 0.1, 0.02, 0.08
    drawn, _ = apply_to_arrays(image, label, parameters)
    deviations = [drawn[0, ..., 0][label[0] == value].std() for value in range(3)]
    assert deviations[0] < 1e-6
    assert deviations[2] / deviations[1] == pytest.approx(4, rel=0.15)


def test_an_image_of_one_value_stays_finite():
    image, label = np.full((1, 8, 8, 1), 3, np.float32), np.zeros((1, 8, 8), np.int32)
    drawn, _ = apply_to_arrays(image, label, draw_batch(SYNTHETIC, (8, 8), number=1))
    assert np.isfinite(drawn).all()


def test_the_draws_move_no_other_and_keep_their_ranges():
    strong = AUGMENTATIONS["strong"]
    plain, mixed = (draw_batch(augmentation, (8, 8), number=400) for augmentation in (strong, replace(strong, synthetic=0.3)))
    assert mixed.keys() - plain.keys() == {"synthetic", "curve", "texture", "texture_seed"}
    for name, value in plain.items():
        np.testing.assert_array_equal(mixed[name], value)
    assert 0.2 < mixed["synthetic"].mean() < 0.4
    curve, air = mixed["curve"], (mixed["curve"][:, 0, 0, 0] == 0)
    assert curve.shape == (400, TISSUES, 1, CURVE_POINTS)
    assert 0.4 < air.mean() < 0.6
    assert (curve[:, 1:] >= np.float32(0.1)).all()
    assert curve.max() <= 1
    spans = np.ptp(curve, axis=-1)
    assert spans[:, 1:-1].max() <= 0.5
    assert spans[:, 255].max() > 0.8
    assert mixed["texture"].max() <= 0.1
    assert "curve" not in plain
