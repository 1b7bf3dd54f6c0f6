"""Normalisation in bfloat16 as one operation of TensorFlow, where Keras puts it together from a dozen in float32.

Keras casts a feature map to float32, and mean, variance, scaling and their gradients each read and write all of it. TensorFlow's own
operation reads and writes bfloat16 and keeps the statistics in float32, as Keras does. What computes in float32 stays as Keras has it, to
the bit: trainings in float32, and every prediction by Keras.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import keras


def fuse_normalisations(network: keras.Model) -> None:
    """Makes the network's batch and instance normalisations train by one operation each.

    Does nothing on other backends and on a GPU, where it is not measured. The layers stay Keras's own, and so do the files that hold them.
    Results change by the rounding of bfloat16.

    Args:
        network: A network, built already. Layers that do not compute in bfloat16 stay as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return
    for layer in network.layers:
        if layer.compute_dtype != "bfloat16":
            continue
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = partial(_call_batch, layer, type(layer).call)
        # With as many groups as channels, a group norm is an instance norm.
        elif isinstance(layer, keras.layers.GroupNormalization) and layer.gamma is not None and layer.groups == layer.gamma.shape[0]:
            layer.call = partial(_call_instance, layer, type(layer).call)


def _call_batch(layer: Any, plain: Callable, inputs, training=None, mask=None):
    """Computes `BatchNormalization.call` in training, its moving averages included."""
    if not (training and layer.trainable) or mask is not None or not _fits(layer, inputs):
        return plain(layer, inputs, training=training, mask=mask)
    outputs, mean, variance = _normalise(layer, inputs)
    # The operation divides by one less than the number of voxels, and Keras by their number.
    number = math.prod(inputs.shape[:-1])
    updates = ((layer.moving_mean, mean), (layer.moving_variance, variance * ((number - 1) / number)))
    for average, value in updates:
        average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _call_instance(layer: Any, plain: Callable, inputs):
    """Computes `GroupNormalization.call` with a group for each channel: a batch normalisation of each sample."""
    if not _fits(layer, inputs):
        return plain(layer, inputs)
    samples = keras.ops.split(inputs, inputs.shape[0])
    return keras.ops.concatenate([_normalise(layer, sample)[0] for sample in samples])


def _fits(layer: Any, inputs) -> bool:
    """Returns whether the operation can compute the layer: known sizes, channels last, and both scale and offset."""
    return (
        inputs.dtype == "bfloat16"
        and None not in inputs.shape
        and layer.axis in (-1, len(inputs.shape) - 1)
        and layer.scale
        and layer.center
    )


def _normalise(layer: Any, inputs) -> tuple:
    """Returns the normalised `(B, *P, C)`, and the `(C,)` float32 mean and variance over the rest."""
    import tensorflow as tf

    channels = inputs.shape[-1]
    # The operation knows two spatial axes only; how the voxels lie does not matter to it.
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(inputs, (inputs.shape[0], -1, 1, channels)),
        scale=tf.convert_to_tensor(layer.gamma),
        offset=tf.convert_to_tensor(layer.beta),
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=layer.epsilon,
        is_training=True,
    )
    return tf.reshape(outputs, inputs.shape), mean, variance
