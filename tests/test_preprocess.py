"""Cropping, padding and intensities, and the exact way back."""

import numpy as np
import pytest

from modules.preprocess import Preprocessing, fit_shape
from modules.volume import Volume


def _volume(array):
    return Volume(np.asarray(array, np.float32), None, (1.0,) * (np.ndim(array) - 1))


@pytest.mark.parametrize("size", [(256, 128), (256, 144), (251, 97), (5, 300)])
def test_restore_undoes_apply_where_the_network_sees(size):
    label = np.random.default_rng(0).integers(0, 6, size)
    preprocessing = Preprocessing(2, shape=(256, 128))
    _, geometry = preprocessing.apply(_volume(label[..., None]))
    seen = preprocessing.apply_label(label, geometry)
    assert seen.shape == (256, 128)
    restored = preprocessing.restore(seen[..., None], geometry)[..., 0]
    assert restored.shape == size
    again = preprocessing.apply_label(restored, geometry)
    np.testing.assert_array_equal(again, seen)
    np.testing.assert_array_equal(restored[restored > 0], label[restored > 0])
    assert (restored != label).sum() <= preprocessing.unseen(geometry)


def test_centre_crop_by_hand():
    array = np.arange(5)[:, None]
    np.testing.assert_array_equal(fit_shape(array, (2,))[:, 0], [1, 2])
    np.testing.assert_array_equal(fit_shape(array, (8,), fill=-1)[:, 0], [-1, 0, 1, 2, 3, 4, -1, -1])


def test_unseen_counts_voxels_outside_the_crop():
    preprocessing = Preprocessing(2, shape=(256, 128))
    for size, unseen in (((256, 144), 256 * 16), ((200, 100), 0)):
        assert preprocessing.unseen(preprocessing.apply(_volume(np.zeros((*size, 1))))[1]) == unseen


def test_min_max_scales_each_channel_to_one_and_pads_with_its_darkest():
    image = np.stack([[[2.0, 4.0]], [[10.0, 10.0]]], axis=-1)[0]
    array, geometry = Preprocessing(2, shape=(1, 4)).apply(_volume(image[None]))
    np.testing.assert_array_equal(array[0, :, 0], [0, 0, 1, 0])
    np.testing.assert_array_equal(array[0, :, 1], [0, 0, 0, 0])
    assert geometry.shape == (1, 2)


def test_fixed_intensities_of_the_oasis_reference():
    array, _ = Preprocessing(2, shape=(1, 2), intensity="fixed", scale=255, mean=0.1317, std=0.1864).apply(_volume([[[0.0], [255.0]]]))
    np.testing.assert_allclose(array[0, :, 0], [-0.1317 / 0.1864, (1 - 0.1317) / 0.1864], rtol=1e-6)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="Expected `intensity` in"):
        Preprocessing(2, shape=(2, 2), intensity="loud")
    with pytest.raises(ValueError, match=r"Expected intensities up to 255. Received: 256 in a.png"):
        Preprocessing(2, shape=(1, 1), intensity="fixed", scale=255).check(_volume([[[256.0]]]), ("T1",), "a.png")
    with pytest.raises(ValueError, match=r"2 dimensions. Received: shape \(2, 2, 2\)"):
        Preprocessing(2, shape=(2, 2)).apply(_volume(np.zeros((2, 2, 2, 1))))
