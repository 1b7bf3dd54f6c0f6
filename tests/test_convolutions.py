"""The fast gradients of 3-D convolutions are those of TensorFlow, and layers that use them stay what they are."""

import keras
import numpy as np
import pytest

from modules import networks
from modules.convolutions import convolve, speed_up_gradients

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="they are TensorFlow's")


def _differentiate(function, image, kernel, upstream):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch((image, kernel))
        output = function(image, kernel)
        total = tf.reduce_sum(output * upstream)
    return output, *tape.gradient(total, (image, kernel))


# The last is large enough for the matrix products of whole volumes.
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 6), (2, 1, 7), (3, 48, 50)])
def test_output_and_gradients_are_those_of_tensorflow(size, shape):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    image, upstream = (tf.constant(rng.standard_normal((2, *shape, channels)), tf.float32) for channels in (3, 4))
    kernel = tf.constant(rng.standard_normal((size,) * 3 + (3, 4)), tf.float32)
    ours = _differentiate(convolve, image, kernel, upstream)
    theirs = _differentiate(lambda image, kernel: tf.nn.conv3d(image, kernel, (1,) * 5, "SAME"), image, kernel, upstream)
    for one, other in zip(ours, theirs, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-6)


def test_by_hand():
    import tensorflow as tf

    # A single voxel of 1 in the middle of a row of three: its neighbours' upstream gradients become the kernel's.
    image = tf.constant([0.0, 1, 0], shape=(1, 1, 1, 3, 1))
    kernel = tf.constant(np.arange(27.0), tf.float32, shape=(3, 3, 3, 1, 1))
    upstream = tf.constant([5.0, 6, 7], shape=(1, 1, 1, 3, 1))
    output, for_image, for_kernel = _differentiate(convolve, image, kernel, upstream)
    assert output.numpy().ravel().tolist() == [14, 13, 12]
    # 12, 13 and 14 are the kernel's middle row.
    assert for_image.numpy().ravel().tolist() == [5 * 13 + 6 * 12, 5 * 14 + 6 * 13 + 7 * 12, 6 * 14 + 7 * 13]
    expected = np.zeros((3, 3, 3))
    expected[1, 1] = [7, 6, 5]
    np.testing.assert_array_equal(for_kernel.numpy()[..., 0, 0], expected)


def test_a_network_trains_alike_and_is_saved_alike(tmp_path):
    image = np.random.default_rng(0).standard_normal((2, 8, 8, 8, 1)).astype(np.float32)
    target = np.random.default_rng(1).integers(0, 3, (2, 8, 8, 8))
    weights, configurations = [], []
    for fast in (False, True):
        keras.utils.set_random_seed(1)
        network = networks.build("unet3d", (8, 8, 8, 1), 3, base_filters=4)
        if fast:
            assert speed_up_gradients(network) == 15
        configurations.append([layer.__class__ for layer in network.layers])
        network.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for _ in range(3):
            network.train_on_batch(image, target)
        weights.append(network.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert configurations[0] == configurations[1]
    network.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored.predict_on_batch(image), network.predict_on_batch(image))


def test_other_layers_are_left_alone():
    inputs = keras.Input((8, 8, 8, 2))
    for options in (
        {"strides": 2},
        {"padding": "valid"},
        {"dilation_rate": 2},
        {"groups": 2},
        {"kernel_size": 5},
        {"dtype": "mixed_bfloat16"},
    ):
        layer = keras.layers.Conv3D(2, **{"kernel_size": 3, "padding": "same", **options})
        assert speed_up_gradients(keras.Model(inputs, layer(inputs))) == 0
    assert speed_up_gradients(keras.Model(inputs, keras.layers.Conv3D(2, 3, padding="same")(inputs))) == 1
