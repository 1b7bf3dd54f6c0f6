"""Cropping, padding and intensities, and the exact way back."""

import itertools

import numpy as np
import pytest

from modules.data.case import Volume
from modules.data.preprocess import Preprocessing
from modules.data.resample import fit_shape, to_c_order


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
    assert (restored != label).sum() <= max(0, size[0] - 256) * size[1] + max(0, size[1] - 128) * size[0]


def test_centre_crop_by_hand():
    array = np.arange(5)[:, None]
    np.testing.assert_array_equal(fit_shape(array, (2,))[:, 0], [1, 2])
    np.testing.assert_array_equal(fit_shape(array, (8,), fill=-1)[:, 0], [-1, 0, 1, 2, 3, 4, -1, -1])


def test_min_max_scales_each_channel_to_one_and_pads_with_its_darkest():
    image = np.stack([[[2.0, 4.0]], [[10.0, 10.0]]], axis=-1)[0]
    array, geometry = Preprocessing(2, shape=(1, 4)).apply(_volume(image[None]))
    np.testing.assert_array_equal(array[0, :, 0], [0, 0, 1, 0])
    np.testing.assert_array_equal(array[0, :, 1], [0, 0, 0, 0])
    assert geometry.shape == (1, 2)


def test_fixed_intensities_of_the_oasis_reference():
    array, _ = Preprocessing(2, shape=(1, 2), intensity="fixed", scale=255, mean=0.1317, std=0.1864).apply(_volume([[[0.0], [255.0]]]))
    np.testing.assert_allclose(array[0, :, 0], [-0.1317 / 0.1864, (1 - 0.1317) / 0.1864], rtol=1e-6)


def test_hounsfield_units_are_clipped_and_scaled_alike_in_each_scan():
    scan = _volume([[[-1000.0], [-100.0], [50.0], [300.0]]])
    array, _ = Preprocessing(2, intensity="ct", clip=(-100.0, 200.0), mean=50.0, std=50.0).apply(scan)
    np.testing.assert_array_equal(array[0, :, 0], [-3, -3, 0, 3])
    array, _ = Preprocessing(2, intensity="ct", mean=50.0, std=50.0).apply(scan)
    np.testing.assert_array_equal(array[0, :, 0], [-21, -3, 0, 5])
    for clip in ((1.0,), (1.0, 2.0, 3.0), (2.0, 1.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="Expected `clip` of two numbers, the smaller first. Received:"):
            Preprocessing(2, intensity="ct", clip=clip)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="Expected `intensity` in"):
        Preprocessing(2, shape=(2, 2), intensity="loud")
    with pytest.raises(ValueError, match=r"Expected intensities up to 255. Received: 256 in a.png"):
        Preprocessing(2, shape=(1, 1), intensity="fixed", scale=255).check(_volume([[[256.0]]]), ("T1",), "a.png")
    with pytest.raises(ValueError, match=r"2 dimensions. Received: shape \(2, 2, 2\)"):
        Preprocessing(2, shape=(2, 2)).apply(_volume(np.zeros((2, 2, 2, 1))))


def _scan(shape=(12, 10, 8), spacing=(1.0, 1.0, 2.0), seed=0):
    return Volume(np.random.default_rng(seed).random((*shape, 1), np.float32), np.diag((*spacing, 1.0)), spacing)


def test_a_picture_of_noise_stays_dark():
    # The foreground 1, 3 has the mean 2 and the deviation 1. A twentieth of 255 is 12.75. A second channel spans 200.
    noise, tissue = np.array([[0.0, 1.0, 3.0]]), np.array([[0.0, 55.0, 255.0]])
    pictures = Preprocessing(2, intensity="zscore", scale=255.0)
    array, _ = pictures.apply(_volume(np.stack([noise, tissue], axis=-1)))
    np.testing.assert_allclose(array[..., 0], [[-2 / 12.75, -1 / 12.75, 1 / 12.75]], atol=1e-6)
    np.testing.assert_allclose(array[..., 1], [[-1.55, -1, 1]], atol=1e-6)
    # A scan has no known range: what is faint there may be tissue.
    array, _ = Preprocessing(2, intensity="zscore").apply(_volume(noise[..., np.newaxis]))
    np.testing.assert_allclose(array[..., 0], [[-2, -1, 1]], atol=1e-6)


def test_zscore_takes_the_foreground_only_and_keeps_channels_apart():
    image = np.zeros((4, 4, 4, 2), np.float32)
    image[:2, ..., 0] = np.random.default_rng(0).uniform(5, 9, (2, 4, 4))
    image[..., 1] = 7
    array, _ = Preprocessing(3, intensity="zscore").apply(Volume(image, np.eye(4), (1.0,) * 3))
    np.testing.assert_allclose([array[:2, ..., 0].mean(), array[:2, ..., 0].std()], [0, 1], atol=1e-5)
    assert (array[2:, ..., 0] < -3).all()
    np.testing.assert_array_equal(array[..., 1], 0)  # a constant channel carries nothing


def test_percentiles_clip_outliers():
    image = np.arange(1000, dtype=np.float32).reshape(10, 10, 10, 1)
    image[9, 9, 9] = 1e6
    array, _ = Preprocessing(3, intensity="percentile").apply(Volume(image, np.eye(4), (1.0,) * 3))
    low, high = np.percentile(image[image > 0], (0.5, 99.5))
    assert (array.min(), array.max()) == (0, 1)
    np.testing.assert_allclose(array[5, 0, 0, 0], (500 - low) / (high - low), rtol=1e-5)


def test_percentiles_by_hand():
    # Squares of 0 to 999; the 999 above 0 are the foreground. Its percentiles lie at places 4.99 and 993.01 of 0 to 998:
    # 25 + 0.99 x 11 = 35.89 and 988036 + 0.01 x 1989 = 988055.89.
    image = (np.arange(1000, dtype=np.float32) ** 2).reshape(10, 10, 10, 1)
    array, _ = Preprocessing(3, intensity="percentile").apply(Volume(image, np.eye(4), (1.0,) * 3))
    np.testing.assert_allclose(array[5, 0, 0, 0], (250000 - 35.89) / 988020, rtol=1e-6)
    np.testing.assert_array_equal(array.ravel()[[4, 5, 6, 994, 995]] > 0, [False, False, True, True, True])
    np.testing.assert_array_equal(array.ravel()[[4, 5, 6, 994, 995]] < 1, [True, True, True, True, False])


def test_padding_takes_each_channels_darkest_value_whatever_it_is():
    image = np.array([[[0.25, 0.75], [0.75, 1.0]]])
    array, _ = Preprocessing(2, shape=(1, 4), intensity="fixed", mean=0.5, std=0.5).apply(_volume(image))
    np.testing.assert_array_equal(array[0], [[-0.5, 0.5], [-0.5, 0.5], [0.5, 1.0], [-0.5, 0.5]])


def test_foreground_crop_by_hand_and_back():
    image = np.full((6, 7, 8, 1), 3.0, np.float32)
    image[1:4, 2:5, 5:7] += np.random.default_rng(0).random((3, 3, 2, 1), np.float32) + 1
    preprocessing = Preprocessing(3, foreground_crop=True)
    array, geometry = preprocessing.apply(Volume(image, np.eye(4), (1.0,) * 3))
    assert (array.shape, geometry.box) == ((3, 3, 2, 1), ((1, 4), (2, 5), (5, 7)))
    restored = preprocessing.restore(np.ones((3, 3, 2, 2), np.float32), geometry, fill=(9, 8))
    inside = np.zeros((6, 7, 8), bool)
    inside[1:4, 2:5, 5:7] = True
    assert (restored[inside] == 1).all()
    assert (restored[~inside] == (9, 8)).all()


def test_spacing_keeps_the_field_of_view():
    array, geometry = Preprocessing(3, spacing_mm=(2.0, 1.0, 1.0)).apply(_scan())
    assert array.shape == (*geometry.grid, 1) == (6, 10, 16, 1)
    # Two voxels of 1 mm become one of 2 mm whose centre lies between them.
    flat = Preprocessing(3, spacing_mm=(2.0, 1.0, 2.0)).apply(_scan())[0]
    scan = _scan().array
    scaled = (scan - scan.min()) / (scan.max() - scan.min())
    np.testing.assert_allclose(flat, (scaled[0::2] + scaled[1::2]) / 2, atol=1e-6)


def test_spacing_follows_the_axes_of_a_turned_scan():
    scan = _scan((8, 12, 10), (2.0, 1.0, 1.0))
    # The axes run from inferior to superior, left to right, and posterior to anterior.
    affine = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    array, geometry = Preprocessing(3, spacing_mm=(1.0, 1.0, 1.0)).apply(Volume(scan.array, affine, scan.spacing_mm))
    assert (geometry.axes, geometry.shape, array.shape) == ((1, 2, 0), (12, 10, 8), (12, 10, 16, 1))


def test_the_voxel_size_follows_the_axes_of_a_turned_scan():
    # Stored inferior to superior, left to right, posterior to anterior, with voxels of 2, 3 and 5 mm along these.
    affine = np.array([[0, 3, 0, 0], [0, 0, 5, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    image = Volume(np.ones((8, 12, 10, 1), np.float32), affine, (2.0, 3.0, 5.0))
    assert Preprocessing(3).measure(image).measure_spacing(image.spacing_mm) == (3, 5, 2)
    # 12 voxels of 3 mm stay, 10 of 5 mm become 20 of 2.5 mm, and 8 of 2 mm become 4 of 4 mm.
    geometry = Preprocessing(3, spacing_mm=(3.0, 2.5, 4.0)).measure(image)
    assert (geometry.grid, geometry.measure_spacing(image.spacing_mm)) == ((12, 20, 4), (3, 2.5, 4))


def test_the_way_back_is_linear_and_the_same_as_scipys():
    from scipy import ndimage

    preprocessing = Preprocessing(3, shape=(7, 9, 5), resize=True)
    _, geometry = preprocessing.apply(_scan())
    probabilities = np.random.default_rng(1).random((7, 9, 5, 3), np.float32)
    restored = preprocessing.restore(probabilities, geometry)
    for index in range(3):
        expected = ndimage.zoom(probabilities[..., index], (12 / 7, 10 / 9, 8 / 5), order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(restored[..., index], expected, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_a_resampled_label_comes_back_in_place(turned):
    """A ball that is resampled to a coarser grid and back loses no more than voxels of its border."""
    shape, affine = (40, 36, 24), np.diag((1.0, 1.0, 2.0, 1.0))
    if turned:
        # Three axes in a circle: there and back are not the same turn.
        affine = np.array([[0, 0, -2.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    x, y, z = np.indices(shape)
    ball = ((x - 25) ** 2 + (y - 14) ** 2 + (2 * (z - 9)) ** 2 < 11**2).astype(np.uint8)
    preprocessing = Preprocessing(3, spacing_mm=(1.6, 1.6, 2.4), foreground_crop=True)
    spacing = (1.0, 1.0, 2.0)
    _, geometry = preprocessing.apply(Volume(ball[..., None].astype(np.float32), affine, spacing))
    small = preprocessing.apply_label(ball, geometry)
    assert small.shape == geometry.grid
    restored = preprocessing.restore(np.stack([1.0 - small, small], axis=-1), geometry, fill=(1, 0)).argmax(axis=-1)
    overlap = 2 * (restored & ball).sum() / (restored.sum() + ball.sum())
    assert overlap > 0.93
    centres = [np.argwhere(array).mean(axis=0) for array in (ball, restored)]
    np.testing.assert_allclose(*centres, atol=0.2)


def test_labels_shrink_by_share_not_by_nearest_voxel():
    label = np.zeros((9, 1, 1), np.uint8)
    label[[0, 2]] = 1  # two of the first three voxels; the middle one, which is nearest, is background
    preprocessing = Preprocessing(3, shape=(3, 1, 1), resize=True)
    image = Volume(label[..., None].astype(np.float32), np.eye(4), (1.0,) * 3)
    np.testing.assert_array_equal(preprocessing.apply_label(label, preprocessing.apply(image)[1])[:, 0, 0], [1, 0, 0])


def test_no_class_is_invented_between_two():
    label = np.repeat(np.array([1, 3], np.uint8), 8).reshape(16, 1, 1)
    preprocessing = Preprocessing(3, shape=(5, 1, 1), resize=True)
    image = Volume(label[..., None].astype(np.float32), np.eye(4), (1.0,) * 3)
    small = preprocessing.apply_label(label, preprocessing.apply(image)[1])
    assert set(np.unique(small)) == {1, 3}


def test_ignored_voxels_are_resampled_as_a_class_of_their_own():
    label = np.array([255, 255, 1, 1, 1, 255, 0, 0, 0], np.uint8).reshape(9, 1, 1)
    preprocessing = Preprocessing(3, shape=(3, 1, 1), resize=True)
    image = Volume(label[..., None].astype(np.float32), np.eye(4), (1.0,) * 3)
    np.testing.assert_array_equal(preprocessing.apply_label(label, preprocessing.apply(image)[1])[:, 0, 0], [255, 1, 0])


def test_cubic_is_sharper_than_linear_and_both_keep_a_constant():
    wave = np.sin(np.arange(24) * 0.9).astype(np.float32).reshape(24, 1, 1, 1)
    results = []
    for interpolation in ("linear", "cubic"):
        preprocessing = Preprocessing(3, shape=(48, 1, 1), resize=True, intensity="fixed", scale=2.0, interpolation=interpolation)
        array, _ = preprocessing.apply(Volume(wave, np.eye(4), (1.0,) * 3))
        results.append(np.abs(array[4:-4, 0, 0, 0] - np.sin((np.arange(48) - 0.5) / 2 * 0.9)[4:-4] / 2).max())
        constant, _ = preprocessing.apply(Volume(np.ones_like(wave), np.eye(4), (1.0,) * 3))
        np.testing.assert_allclose(constant, 0.5, atol=1e-6)
    assert results[1] < results[0] / 4


def test_a_spacing_that_leaves_one_voxel_is_refused():
    image = Volume(np.zeros((4, 5, 6, 1), np.float32), np.eye(4), (1.0, 1.0, 1.0))
    with pytest.raises(
        ValueError, match=r"more than one voxel. Received: one voxel of 1000x1000x1000 mm for 4x5x6 voxels of 1x1x1 mm in a.nii"
    ):
        Preprocessing(3, spacing_mm=(1000.0,) * 3).check(image, ("T1",), "a.nii")
    Preprocessing(3, spacing_mm=(1000.0, 1000.0, 3.0)).check(image, ("T1",), "a.nii")
    with pytest.raises(ValueError, match=r"`spacing_mm` of 3 finite numbers above 0. Received: \(inf, 1.0, 1.0\)"):
        Preprocessing(3, spacing_mm=(np.inf, 1.0, 1.0))


def test_a_singular_affine_is_refused():
    image = Volume(np.ones((4, 4, 4, 1), np.float32), np.diag((1.0, 1.0, 0.0, 1.0)), (1.0,) * 3)
    with pytest.raises(ValueError, match="Expected an affine that gives each axis a direction. Received: a singular one in a.nii"):
        Preprocessing(3).check(image, ("T1",), "a.nii")


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5)])
def test_axes_that_are_not_at_right_angles_are_refused(shape):
    # The second column is (0.75, 1, 0). Its angle to the first is that of the triangle of sides 3, 4 and 5 beside the 3: 53.1 degrees.
    affine = np.eye(4)
    affine[0, 1] = 0.75
    rules, image = Preprocessing(len(shape)), np.zeros((*shape, 1), np.float32)
    with pytest.raises(ValueError, match="right angles in a.nii. Received: axes 0 and 1 at 53.1 degrees. Mend its header"):
        rules.check(Volume(image, affine, (1.0,) * len(shape)), ("T1",), "a.nii")
    affine[0, 1] = 0.01
    rules.check(Volume(image, affine, (1.0,) * len(shape)), ("T1",), "a.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int16, np.float32, np.float64, bool])
def test_volumes_of_any_memory_order_come_out_in_c_order(dtype):
    whole = (100 * np.random.default_rng(0).random((5, 7, 9))).astype(dtype)
    parts = (slice(None), slice(None, None, -1), slice(1, 4), slice(2, 3))
    for order, part in itertools.product(itertools.permutations(range(3)), itertools.product(parts, repeat=3)):
        array = whole.transpose(order)[part][..., np.newaxis]
        turned = to_c_order(array)
        assert turned.flags.c_contiguous
        assert turned.dtype == dtype
        np.testing.assert_array_equal(turned, array)


@pytest.mark.parametrize("fill", [-1000, -32768, -1e6])
def test_a_fill_about_a_small_object_goes_one_range_below_it(fill):
    image = np.full((4, 4, 4, 1), fill, np.float32)
    image[1, 1, :, 0] = 1, 2, 3, 4
    # Mean 2.5, standard deviation sqrt(1.25), range 3: the fill becomes 1 - 3 = -2.
    expected = (np.array([1, 2, 3, 4, -2]) - 2.5) / np.sqrt(1.25)
    array, _ = Preprocessing(3, intensity="zscore").apply(Volume(image, np.eye(4), (1.0,) * 3))
    np.testing.assert_allclose([*array[1, 1, :, 0], array[0, 0, 0, 0]], expected, rtol=1e-5)
    array, _ = Preprocessing(3, intensity="min_max").apply(Volume(image, np.eye(4), (1.0,) * 3))
    np.testing.assert_allclose([*array[1, 1, :, 0], array[0, 0, 0, 0]], [1 / 2, 4 / 6, 5 / 6, 1, 0], rtol=1e-5)


def test_images_without_a_fill_keep_their_darkest_voxel():
    # In magnitude images 0 is the air; 10 and 11 lie further from it than from each other. A CT's -1024 is not far below the rest.
    for values, mean, std in (([0, 10, 11], 10.5, 0.5), ([-1024, -1000, 0, 1000], 0, np.sqrt(2e6 / 3))):
        image = np.zeros((2, 2, 1), np.float32)
        image.flat[: len(values)] = values
        image.flat[len(values) :] = values[0]
        array, _ = Preprocessing(2, intensity="zscore").apply(_volume(image))
        np.testing.assert_allclose(array.min(), (values[0] - mean) / std, rtol=1e-5)
    # For magnitudes only 100 times as far is too far.
    array, _ = Preprocessing(2, intensity="zscore").apply(_volume([[[0.0], [1001.0]], [[1002.0], [1003.0]]]))
    np.testing.assert_allclose(array[0, 0, 0], (999 - 1002) / np.sqrt(2 / 3), rtol=1e-5)


def test_what_leaves_float16_is_clipped_and_what_leaves_float32_is_refused():
    fixed = Preprocessing(2, intensity="fixed", std=1e-3)
    array, _ = fixed.apply(_volume([[[-1e6], [0.5]]]))
    assert array[0, 0, 0] == -65504
    np.testing.assert_allclose(array[0, 1, 0], 500, rtol=1e-6)
    assert np.isfinite(array.astype(np.float16)).all()
    for value in (1e31, -1e31, np.inf):
        with pytest.raises(ValueError, match=r"Expected intensities within 1e\+30 of 0. Received: .* in a.nii. Divide them"):
            Preprocessing(2, intensity="zscore").check(_volume([[[0.0], [value]]]), ("T1",), "a.nii")


@pytest.mark.parametrize("intensity", ["min_max", "percentile", "zscore"])
@pytest.mark.parametrize(("fill", "scale"), [(-9999, 1e-6), (-1e29, 1.0), (32767, 1.0), (65535, 1.0), (1e29, 1.0)])
def test_a_fill_on_either_side_leaves_the_object_its_contrast(intensity, fill, scale):
    # 200 values from 0 to 199 in a corner, and a fill about them.
    image = np.full((10, 10, 4, 1), fill, np.float64)
    image[:5, :, :] = scale * np.arange(200).reshape(5, 10, 4, 1)
    array, _ = Preprocessing(3, intensity=intensity).apply(Volume(image.astype(np.float32), np.eye(4), (1.0,) * 3))
    kept = array[:5].astype(np.float16).ravel()
    assert np.isfinite(array.astype(np.float16)).all()
    # Percentiles clip one value at either end.
    assert len(np.unique(kept)) >= 198
    assert kept.max() - kept.min() >= 0.49
    assert (np.diff(kept) >= 0).all()
    outside = array[5:].ravel()
    assert (outside <= kept.min()).all() if fill < 0 else (outside >= kept.max()).all()


def test_sizes_that_differ_in_the_last_digits_give_one_grid():
    grids = set()
    for size in (1.5, np.nextafter(np.float32(1.5), np.float32(1)), np.nextafter(np.float32(1.5), np.float32(2))):
        image = Volume(np.zeros((25, 4, 4, 1), np.float32), None, (float(size), 1.0, 1.0))
        grids.add(Preprocessing(3, spacing_mm=(1.0, 1.0, 1.0)).measure(image).grid)
    # 25 x 1.5 is 37.5, half way between two grids.
    assert grids == {(38, 4, 4)}
