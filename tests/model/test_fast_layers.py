"""Layers in the form that JAX computes fast, beside Keras's own."""

import keras
import numpy as np
import pytest

from modules import networks
from modules.model.fast_layers import replace_calls, speed_up

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="the logits are JAX's own product")


def _compare(layer, shape, rtol=1e-5):
    inputs = keras.Input(shape)
    network = keras.Model(inputs, layer(inputs))
    for weight in network.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    before = keras.ops.convert_to_numpy(network(images))
    replace_calls(network)
    after = keras.ops.convert_to_numpy(network(images))
    np.testing.assert_allclose(after, before, rtol=rtol, atol=1e-5)
    return "call" in vars(layer)


@pytest.mark.parametrize(("layer", "shape", "replaced"), [
    (keras.layers.MaxPooling2D(), (4, 6, 3), True),
    (keras.layers.MaxPooling3D((1, 2, 3)), (3, 4, 6, 2), True),
    (keras.layers.MaxPooling2D(), (5, 6, 3), True),
    (keras.layers.MaxPooling2D(3, strides=2), (5, 7, 3), False),
    (keras.layers.Conv2DTranspose(5, 2, strides=2), (3, 4, 3), True),
    (keras.layers.Conv2DTranspose(5, 2, strides=2, use_bias=False), (3, 4, 3), True),
    (keras.layers.Conv3DTranspose(4, (1, 2, 3), strides=(1, 2, 3)), (2, 3, 2, 3), True),
    (keras.layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (3, 4, 3), False),
    (keras.layers.Conv2DTranspose(5, 2, strides=2, activation="relu"), (3, 4, 3), False),
    (keras.layers.Conv2D(5, 3), (5, 4, 3), False),
    (keras.layers.Conv2D(5, 1, strides=2), (4, 4, 3), False),
    (keras.layers.Conv2D(5, 1, activation="relu"), (4, 4, 3), False),
    (keras.layers.Conv2D(4, 1, groups=2), (4, 4, 2), False),
])  # fmt: skip
def test_values_are_those_of_keras(layer, shape, replaced):
    assert _compare(layer, shape) == replaced


@on_jax
def test_logits_multiply_in_the_networks_precision_and_sum_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        # bfloat16 keeps 8 bits, so 1/256 is lost beside 1 in a factor, but not in a sum of products.
        layer = keras.layers.Conv2D(1, 1, dtype="float32", kernel_initializer="ones")
        inputs = keras.Input((1, 1, 2))
        network = keras.Model(inputs, layer(inputs))
        replace_calls(network)
        outputs = network(np.array([[[[1, 2**-12]]]], "float32"))
        rounded = network(np.array([[[[1 + 2**-12, 0]]]], "float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert float(outputs[0, 0, 0, 0]) == 1 + 2**-12
    assert float(rounded[0, 0, 0, 0]) == 1


def test_nothing_changes_without_a_gpu():
    network = networks.build("unet2d", (16, 16, 1), 2, base_filters=2, levels=1)
    speed_up(network)
    assert not any("call" in vars(layer) for layer in network.layers)


@on_jax
@pytest.mark.parametrize("name", ["unet2d", "plain_unet"])
def test_a_whole_network_keeps_its_logits_and_gradients(name):
    import jax

    network = networks.build(name, (16, 16, 1), 3, base_filters=4, levels=2)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype("float32")
    target = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype("float32")
    weights, rest = ([weight.value for weight in group] for group in (network.trainable_variables, network.non_trainable_variables))

    def measure(weights):
        logits, _ = network.stateless_call(weights, rest, images, training=True)
        return ((logits - target) ** 2).mean(), logits

    (_, before), slopes = jax.value_and_grad(measure, has_aux=True)(weights)
    replace_calls(network)
    (_, after), others = jax.value_and_grad(measure, has_aux=True)(weights)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    for slope, other in zip(slopes, others, strict=True):
        np.testing.assert_allclose(other, slope, rtol=1e-3, atol=1e-4)
