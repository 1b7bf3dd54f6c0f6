"""The traits of a case drawn by hand, and what turns and damages do to them."""

import math

import numpy as np
import pytest

from modules.data.case import Volume
from modules.predict.traits import THUMBNAIL, compare, describe_trait, from_logit, measure_traits, name_group, shrink, to_logit

NAMES = ("background", "a", "b")


def _draw(shape=(16, 16, 16), spacing=(1.0, 1.0, 2.0)):
    """A volume that is brighter to the right, with a cube of class 1 and a voxel of class 2."""
    image = np.broadcast_to(np.linspace(0, 100, shape[0], dtype=np.float32)[:, None, None], shape).copy()
    label = np.zeros(shape, np.uint8)
    label[2:4, 4:6, 4:6] = 1
    label[10, 10, 10] = 2
    return Volume(image[..., None], np.diag([*spacing, 1.0]), spacing), label


def test_traits_by_hand():
    image, label = _draw()
    values = measure_traits(image, label, np.array([0.8, math.nan]), NAMES).values
    assert values["spacing/#2"] == pytest.approx(math.log(2))
    assert values["extent/#0"] == pytest.approx(math.log(16))
    # 8 voxels of 2 mm3, and one more against the logarithm of nothing.
    assert values["volume/a#"] == pytest.approx(math.log(18))
    assert values["pieces/a#"] == 1
    # A box of 2 x 2 x 4 mm has 2 faces of 4 and 4 of 8 mm2.
    assert values["shape/a#"] == pytest.approx(math.log(40 / 16 ** (2 / 3)))
    assert values["doubt/a#"] == pytest.approx(math.log(4))
    assert math.isnan(values["doubt/b#"])
    assert values["texture/b#0"] == 0
    # The foreground's centre is that of 9 voxels, 8 of them at 2.5.
    assert values["place/the foreground#0"] == pytest.approx((8 * 2.5 + 10) / 9 / 16)
    assert {name_group(name) for name in values} == {"", "a", "b"}
    assert describe_trait("volume/a#") == "size of a"
    assert describe_trait("turn/#1") == "orientation"


def test_an_absent_class_has_no_place_but_a_size():
    image, label = _draw()
    values = measure_traits(image, np.where(label == 1, 1, 0).astype(np.uint8), np.array([0.8, math.nan]), NAMES).values
    assert values["volume/b#"] == pytest.approx(math.log(2))
    assert all(math.isnan(values[name]) for name in ("shape/b#", "pieces/b#", "level/b#0", "place/b#0"))
    empty = measure_traits(image, np.zeros_like(label), np.array([math.nan] * 2), NAMES).values
    assert math.isnan(empty["place/the foreground#0"])


def test_traits_do_not_depend_on_how_a_file_stores_its_axes():
    image, label = _draw()
    affine = np.array([[0, 0, -1.0, 15], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    # Stored as (anterior, superior, left).
    turned = Volume(np.flip(image.array.transpose(1, 2, 0, 3), 2), affine, (1.0, 2.0, 1.0))
    own = measure_traits(image, label, np.array([0.8, 0.5]), NAMES)
    other = measure_traits(turned, np.flip(label.transpose(1, 2, 0), 2), np.array([0.8, 0.5]), NAMES)
    for name, value in own.values.items():
        assert other.values[name] == pytest.approx(value, abs=1e-5), name
    np.testing.assert_allclose(own.thumbnail, other.thumbnail, atol=1e-6)


def test_noise_is_rough_and_a_blur_is_smooth():
    rng = np.random.default_rng(0)
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(rng.normal(size=(32, 32, 32)), 2).astype(np.float32)
    label = np.zeros(smooth.shape, np.uint8)
    noisy = smooth + 0.3 * smooth.std() * rng.normal(size=smooth.shape).astype(np.float32)

    def measure(array):
        image = Volume(array[..., None], None, (1.0, 1.0, 1.0))
        return measure_traits(image, label, np.full(2, math.nan), NAMES).values["detail/#0.1"]

    assert measure(noisy) > measure(smooth) + 0.5 > measure(ndimage.gaussian_filter(smooth, 2)) + 0.5


def test_a_thumbnail_holds_means():
    array = np.arange(32, dtype=np.float32).reshape(16, 2)
    thumbnail = shrink(array).reshape(THUMBNAIL, THUMBNAIL)
    # Parts of two rows along the first axis; along the second, of fewer voxels than parts, the voxel that each lies in.
    means = array.reshape(8, 2, 2).mean(axis=1).repeat(4, axis=1)
    means -= means.mean()
    np.testing.assert_allclose(thumbnail, means / np.linalg.norm(means), atol=1e-6)
    assert not shrink(np.full((9, 9), 3, np.float32)).any()


def test_a_flipped_scan_is_more_like_the_flipped_good_ones():
    image = np.arange(64, dtype=np.float32).reshape(8, 8)
    good = shrink(image)[np.newaxis]
    upright = compare(good, good)
    assert upright["likeness/#"] == pytest.approx(math.atanh(0.999))
    flipped = compare(shrink(image[::-1])[np.newaxis], good)
    assert upright["turn/#0"] == 0.5 > 0 > flipped["turn/#0"]
    assert compare(shrink(image.T)[np.newaxis], good)["turn/#2"] < 0


def test_logits_come_back():
    np.testing.assert_allclose(from_logit(to_logit(np.array([0.005, 0.3, 0.995]))), [0.005, 0.3, 0.995])
    assert from_logit(to_logit(0.0)) == pytest.approx(0.005)
