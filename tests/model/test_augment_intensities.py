"""Augmentation of intensities against results by hand and statistics; this file also runs under the other backends."""

import numpy as np
import pytest
from augment_helpers import apply_to_arrays as _apply
from augment_helpers import make_batch as _make_batch
from helpers import EVERYTHING, SHAPES
from helpers import draw_batch as _draw_batch
from helpers import make_certain as _certain
from scipy import ndimage

from modules.data.draws import BIAS_POINTS


def test_gamma_contrast_and_brightness_by_hand():
    values = np.array([2.0, 4, 4, 6], "float32")  # Mean 4, standard deviation sqrt(2).
    image, label = values.reshape(1, 2, 2, 1), np.zeros((1, 2, 2), "int32")
    # Scaled to [0, 1] they are 0, 1/2, 1/2, 1; squared 0, 1/4, 1/4, 1, of mean 3/8 and variance 9/64. Mean 4 and variance 2 return.
    bent, _ = _apply(image, label, _draw_batch(_certain(gamma=2), (2, 2), number=1))
    scale = np.sqrt(2) / np.sqrt(9 / 64)
    np.testing.assert_allclose(bent.ravel(), 4 + scale * (np.array([0, 0.25, 0.25, 1]) - 0.375), rtol=1e-5)
    stretched, _ = _apply(image, label, _draw_batch(_certain(contrast=1.5), (2, 2), number=1))
    np.testing.assert_allclose(stretched.ravel(), [1, 4, 4, 7])
    brighter, _ = _apply(image, label, _draw_batch(_certain(brightness=-0.5), (2, 2), number=1))
    np.testing.assert_allclose(brighter.ravel(), values - np.sqrt(2) / 2, rtol=1e-6)


def test_channels_have_strengths_of_their_own():
    image, label = _make_batch(2, channels=3)
    parameters = _draw_batch(_certain(brightness=1, gamma=2), SHAPES[2], channels=3)
    parameters["brightness"][:, 1] = 0
    parameters["gamma"][:, :2] = 1
    changed, _ = _apply(image, label, parameters)
    deviation = image.std(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(changed[..., 0], (image + deviation)[..., 0], atol=1e-5)
    np.testing.assert_array_equal(changed[..., 1], image[..., 1])
    assert not np.allclose(changed[..., 2], (image + deviation)[..., 2], atol=0.1)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_an_empty_sample_stays_finite(value):
    image, label = np.full((2, *SHAPES[2], 1), value, "float32"), np.zeros((2, *SHAPES[2]), "int32")
    changed, _ = _apply(image, label, _draw_batch(EVERYTHING, SHAPES[2]), ((1, 2),))
    np.testing.assert_allclose(changed, value, atol=1e-5)


def test_noise_is_normal_and_independent():
    shape, number = (64, 64), 8
    image, label = np.zeros((number, *shape, 2), "float32"), np.zeros((number, *shape), "int32")
    image[:, ::2] = 2  # Standard deviation 1.
    parameters = _draw_batch(_certain(noise=0.5), shape, channels=2, number=number)
    noise = (_apply(image, label, parameters)[0] - image) / 0.5
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * count)
    assert abs((noise**3).mean()) < 4 * np.sqrt(15 / count)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / count)
    assert np.abs(noise).max() < 5
    # Nothing is correlated: no two samples or channels, and no voxel with its neighbours or one half a sample away.
    rows = noise.transpose(0, 3, 1, 2).reshape(number * 2, -1)
    assert np.abs(np.corrcoef(rows) - np.eye(number * 2)).max() < 5 / 64
    for lag in (1, 2, 3, 16, 64, 65, 128, 2048):
        assert abs((rows[:, lag:] * rows[:, :-lag]).mean()) < 4 / np.sqrt(count), lag
    spectrum = np.abs(np.fft.fft2(noise, axes=(1, 2))) ** 2 / 4096
    assert spectrum.max() < 20  # Exponential with mean 1: the largest of 65,536 values is about 11; a pattern gives hundreds.

    again = (_apply(image, label, parameters)[0] - image) / 0.5
    np.testing.assert_array_equal(again, noise)
    for changed in ([[1, 0]], [[0, 1]]):
        other = (_apply(image, label, {**parameters, "noise_seed": parameters["noise_seed"] + np.int32(changed)})[0] - image) / 0.5
        assert abs((other * noise).mean()) < 4 / np.sqrt(count)


@pytest.mark.parametrize("rank", [2, 3])
def test_bias_field_is_smooth_with_mean_about_one(rank):
    shape = (24,) * rank
    image, label = np.zeros((4, *shape, 1), "float32"), np.zeros((4, *shape), "int32")
    image[:, :1], image[:, 1:] = -1, 3  # The field multiplies the distance from the darkest value.
    parameters = _draw_batch(_certain(bias=1), shape, number=4)
    assert parameters["bias"].shape == (4, *(BIAS_POINTS,) * rank)
    changed, _ = _apply(image, label, parameters)
    np.testing.assert_array_equal(changed[:, 0], -1)
    field = (changed[:, 1:, ..., 0] + 1) / 4
    np.testing.assert_allclose(field.mean(axis=tuple(range(1, rank + 1))), 1, atol=0.1)
    assert field.std() > 0.1
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(1, rank + 1)) < 0.1
    assert max(np.abs(np.diff(field, n=2, axis=axis)).max() for axis in range(1, rank + 1)) < 0.03


@pytest.mark.parametrize("effect", [{"blur": 1.0}, {"lowres": 0.5}, {"lowres": 0.6}])
def test_blur_and_low_resolution_keep_the_mean_and_remove_detail(effect):
    image, label = _make_batch(3, shape=(16, 20, 18))
    image += 5
    changed, _ = _apply(image, label, _draw_batch(_certain(**effect), (16, 20, 18)))
    np.testing.assert_allclose(changed.mean(axis=(1, 2, 3)), image.mean(axis=(1, 2, 3)), atol=0.05)
    assert (changed.std(axis=(1, 2, 3)) < 0.6 * image.std(axis=(1, 2, 3))).all()
    flat = np.full_like(image, 2.5)
    np.testing.assert_allclose(_apply(flat, label, _draw_batch(_certain(**effect), (16, 20, 18)))[0], 2.5, rtol=1e-6)


def test_blur_is_gaussian():
    image, label = np.zeros((1, 21, 21, 1), "float32"), np.zeros((1, 21, 21), "int32")
    image[0, 10, 10] = 1
    changed, _ = _apply(image, label, {"blur": np.array([[1.5, 0]], "float32")})
    expected = ndimage.gaussian_filter1d(image[0, ..., 0].astype(np.float64), 1.5, axis=0, mode="constant", truncate=8)
    np.testing.assert_allclose(changed[0, ..., 0], expected, atol=1e-4)
