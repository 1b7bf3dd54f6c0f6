"""The two U-Nets of nnU-Net: strides and kernel sizes of each axis. What every network must do is tested in test_networks.py."""

import keras
import numpy as np
import pytest
from keras import layers

from modules.model.trainer import reduce_label
from modules.networks import build, check_options, count_features, find_divisors, list_options, with_deep_supervision

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="is the same on every backend")

FLAT = {"levels": 2, "strides": ((1, 2, 2), (2, 2, 2)), "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3))}
FLEXIBLE = pytest.mark.parametrize("name", ["plain_unet", "residual_unet"])


@FLEXIBLE
def test_strides_and_kernels_of_each_axis(name):
    network = build(name, (6, 12, 8, 1), 3, base_filters=2, **FLAT)
    shapes = [layer.output.shape[1:-1] for layer in network.layers]
    assert set(shapes) == {(6, 12, 8), (6, 6, 4), (3, 3, 2)}
    kernels = {layer.kernel_size for layer in network.layers if isinstance(layer, layers.Conv3D) and layer.output.shape[1:-1] == (6, 12, 8)}
    assert kernels == {(1, 3, 3), (1, 1, 1)}
    ups = [layer for layer in network.layers if isinstance(layer, layers.Conv3DTranspose)]
    assert [(layer.kernel_size, layer.strides) for layer in ups] == [((2, 2, 2),) * 2, ((1, 2, 2),) * 2]
    # Lists, as JSON holds them, are the same; None stands for the default.
    again = build(name, (6, 12, 8, 1), 3, base_filters=2, levels=2, strides=[[1, 2, 2], [2, 2, 2]], kernels=None)
    assert again.count_params() > network.count_params()
    assert find_divisors(name, 3, FLAT) == (2, 4, 4)
    assert find_divisors(name, 3, {"levels": 3}) == find_divisors("unet3d", 3) == (8, 8, 8)
    with pytest.raises(
        ValueError, match=rf"multiples of \(2, 4, 4\) for network '{name}'. Received: \(6, 10, 9\). The nearest .* \(6, 8, 8\)"
    ):
        build(name, (6, 10, 9, 1), 3, **FLAT)


@FLEXIBLE
def test_strides_and_kernels_have_no_flag_and_must_fit(name):
    assert {option.name for option in list_options(name)} == {"base_filters", "levels", "norm", "dropout"}
    check_options(name, FLAT)
    for wrong, message in (
        ({"levels": 3}, r"Expected `strides` of 3 tuples of 3 numbers in \(1, 2\). Received: \(\(1, 2, 2\), \(2, 2, 2\)\)"),
        ({"strides": ((1, 2), (2, 2))}, "Expected `strides` of 2 tuples of 3 numbers"),
        ({"strides": ((1, 2, 3), (2, 2, 2))}, "Expected `strides` of 2 tuples of 3 numbers"),
        ({"kernels": ((3, 3, 3),) * 2}, r"Expected `kernels` of 3 tuples of 3 numbers in \(1, 3\)"),
        ({"kernels": ((3, 3, 5),) * 3}, r"Expected `kernels` of 3 tuples of 3 numbers in \(1, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, (8, 8, 8, 1), 2, **FLAT | wrong)
    with pytest.raises(ValueError, match=r"Expected options of network 'unet3d' in .*Received: 'strides'"):
        build("unet3d", (8, 8, 8, 1), 2, strides=((2, 2, 2),) * 3)


@FLEXIBLE
def test_deep_supervision_of_anisotropic_levels(name):
    deep = with_deep_supervision(build(name, (4, 8, 8, 1), 3, base_filters=2, **FLAT))
    assert [output.shape[1:] for output in deep.outputs] == [(4, 8, 8, 3), (4, 4, 4, 3)]
    label = np.arange(256).reshape(1, 4, 8, 8)
    # The voxel in the middle of each block of 1 x 2 x 2 stands for it.
    np.testing.assert_array_equal(reduce_label(label, deep.outputs[1]), label[:, :, 1::2, 1::2])


def test_filters_are_doubled_up_to_nnunets_most():
    assert count_features(32, 6, 2) == (32, 64, 128, 256, 512, 512, 512)
    assert count_features(32, 5, 3) == (32, 64, 128, 256, 320, 320)


def test_dropout_of_the_two_deepest_levels():
    for name in ("plain_unet", "residual_unet"):
        network = build(name, (16, 16, 1), 2, base_filters=2, levels=2, dropout=0.1)
        assert [layer.output.shape[1] for layer in network.layers if isinstance(layer, layers.Dropout)] == [8, 4]
