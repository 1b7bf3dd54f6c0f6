"""Damages change what they should and nothing else."""

import numpy as np
import pytest

from modules.data.case import Volume
from modules.run.damage import DAMAGES, damage


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("shape", [(12, 16), (8, 10, 12)])
def test_a_damage_repeats_and_keeps_label_and_image_together(kind, shape):
    rng = np.random.default_rng(1)
    image = Volume(rng.random((*shape, 2), np.float32) * 50 + 3, None, (1.0,) * len(shape))
    label = (image.array[..., 0] > 30).astype(np.uint8)
    before = image.array.copy()
    damaged, moved = damage(image, label, kind, np.random.default_rng(5))
    again, _ = damage(image, label, kind, np.random.default_rng(5))
    np.testing.assert_array_equal(damaged.array, again.array)
    np.testing.assert_array_equal(image.array, before)
    assert damaged.array.dtype == np.float32
    assert damaged.array.shape[:-1] == moved.shape
    assert np.isfinite(damaged.array).all()
    if kind == "turned":
        # Each voxel took its label along.
        np.testing.assert_array_equal(moved, (damaged.array[..., 0] > 30).astype(np.uint8))
        assert not np.array_equal(moved, label)
    else:
        np.testing.assert_array_equal(moved, label)
        assert not np.allclose(damaged.array, image.array)


def test_a_constant_image_can_be_damaged():
    image = Volume(np.full((6, 6, 6, 1), 7, np.float32), None, (1.0, 1.0, 1.0))
    for kind in DAMAGES:
        assert np.isfinite(damage(image, np.zeros((6, 6, 6), np.uint8), kind, np.random.default_rng(0))[0].array).all()
