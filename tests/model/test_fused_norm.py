"""Normalisation by one operation of TensorFlow, beside Keras's own."""

import keras
import numpy as np
import pytest

from modules.model.fused_norm import fuse_normalisations
from modules.networks._blocks import normalise

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the operation is TensorFlow's")


def _make_network(norm, shape, policy="mixed_bfloat16"):
    keras.config.set_dtype_policy(policy)
    try:
        # As a convolution gives it: Keras does not cast what comes to a group normalisation.
        inputs = keras.Input(shape, dtype=keras.config.dtype_policy().compute_dtype)
        network = keras.Model(inputs, normalise(inputs, norm))
    finally:
        keras.config.set_dtype_policy("float32")
    layer = network.layers[-1]
    layer.gamma.assign(np.linspace(0.5, 2, shape[-1]))
    layer.beta.assign(np.linspace(-1, 1, shape[-1]))
    return network


def _differentiate(network, images):
    """Returns the number of fused operations, and the results of a step.

    These are the outputs, the gradients with respect to images and weights, and the moving averages.
    """
    import tensorflow as tf

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = network(images, training=True)
            # A plain sum would have no gradient, because the outputs have a fixed mean.
            loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 3)
        return outputs, tape.gradient(loss, [images, *network.trainable_variables])

    outputs, gradients = step(tf.constant(images))
    graph = step.get_concrete_function(tf.constant(images)).graph
    operations = sum(operation.type == "FusedBatchNormV3" for operation in graph.get_operations())
    return operations, [np.asarray(keras.ops.cast(value, "float32")) for value in (outputs, *gradients, *network.non_trainable_variables)]


@pytest.mark.parametrize(("norm", "shape"), [("batch", (6, 4, 3)), ("instance", (6, 4, 3)), ("instance", (4, 2, 6, 3))])
def test_one_operation_computes_what_keras_does(norm, shape):
    # Means far from 0 would show a variance that is a difference of large squares.
    images = np.random.default_rng(0).normal([8, -20, 1], [1, 2, 0.5], (2, *shape)).astype("float32")
    plain, fused = (_make_network(norm, shape) for _ in range(2))
    fuse_normalisations(fused)
    (before, expected), (after, received) = _differentiate(plain, images), _differentiate(fused, images)
    # An instance normalisation is one operation a sample.
    assert (before, after) == (0, 1 if norm == "batch" else 2)
    assert len(expected) == (6 if norm == "batch" else 4)
    for before, after in zip(expected, received, strict=True):
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(after, before, rtol=2**-7, atol=2**-7 * np.abs(before).max())
    # Statistics are float32: Keras and TensorFlow differ in the order of their sums alone.
    for before, after in zip(expected[4:], received[4:], strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_nothing_else_changes(tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype("float32")
    exact = _make_network("batch", (6, 4, 3), "float32")
    fuse_normalisations(exact)
    assert "call" not in vars(exact.layers[-1])
    network = _make_network("batch", (6, 4, 3))
    expected = np.asarray(network(images, training=False))
    fuse_normalisations(network)
    # Prediction uses the moving averages, which the operation does not.
    np.testing.assert_array_equal(np.asarray(network(images, training=False)), expected)
    network.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[-1]) is keras.layers.BatchNormalization
    assert "call" not in vars(again.layers[-1])
    # An unknown number of samples is left to Keras.
    assert keras.Model(network.input, network(network.input, training=True)).output.shape == (None, 6, 4, 3)
