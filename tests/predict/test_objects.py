"""Objects found by their runs are those that SciPy labels voxel by voxel."""

import numpy as np
import pytest
from scipy import ndimage

from modules.predict.objects import find_enclosed, find_objects


@pytest.mark.parametrize("shape", [(7, 9), (1, 6), (6, 1), (5, 6, 7), (1, 5, 4), (4, 1, 5), (5, 4, 1), (1, 1, 1)])
def test_noise_of_any_density_and_memory_order(shape):
    rng = np.random.default_rng(sum(shape))
    for density in (0, 0.05, 0.2, 0.4, 0.7, 1):
        for _ in range(5):
            mask = rng.random(shape) < density
            expected, number = ndimage.label(mask, np.ones((3,) * mask.ndim))
            # A view in another order of memory has the same objects.
            for view in (mask, np.asfortranarray(mask), mask.T.copy().T, np.flip(np.flip(mask, 0).copy(), 0)):
                found = find_objects(view)
                np.testing.assert_array_equal(found.spread(np.arange(number)), expected[mask] - 1)
                np.testing.assert_array_equal(found.voxels, np.bincount(expected.ravel(), minlength=number + 1)[1:])
                chosen = np.arange(mask.sum()) % 3 == 0
                np.testing.assert_array_equal(found.count(chosen), np.bincount(expected[mask][chosen] - 1, minlength=number))
                # Whatever is filled in the rest is a hole of the rest.
                np.testing.assert_array_equal(find_enclosed(view), ndimage.binary_fill_holes(~mask) & mask)


def test_lines_do_not_run_on_into_the_next():
    # The end of one line and the beginning of the next are neighbours in memory alone.
    mask = np.zeros((4, 5), bool)
    mask[0, 3:] = mask[1, 0] = True
    assert find_objects(mask).voxels.tolist() == [2, 1]
    # A diagonal across the edge of a plane is none either.
    mask = np.zeros((2, 3, 3), bool)
    mask[0, 2, 1] = mask[1, 0, 1] = True
    assert find_objects(mask).voxels.tolist() == [1, 1]
    mask[0, 1, 0] = True
    assert find_objects(mask).voxels.tolist() == [3]
