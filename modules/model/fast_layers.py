"""Layers as JAX computes them fast on a GPU: pooling, upsampling and the logits as plain reductions and products of matrices.

XLA differentiates Keras's pooling by a scatter, and lays the zeros of a transposed convolution out in memory. It also computes float32
logits from a float32 copy of the last feature map. The functions here compute the same values, up to rounding.
"""

import math
from functools import partial
from typing import Any

import keras
from keras import ops

from modules import devices

_POOLING = (keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)
_TRANSPOSED = (keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_CONVOLUTION = (keras.layers.Conv2D, keras.layers.Conv3D)


def speed_up(network: keras.Model) -> None:
    """Makes the layers of a network compute as the module says; does nothing but on JAX and a GPU, where it is measured.

    The layers stay Keras's own, and so do the files that hold them.

    Args:
        network: A network, built already.
    """
    if keras.backend.backend() == "jax" and devices.has_gpu():
        replace_calls(network)


def replace_calls(network: keras.Model) -> None:
    """Replaces the computation of each layer that has a faster one, wherever it runs."""
    policy = keras.config.dtype_policy()
    for layer in filter(_is_plain, network.layers):
        if isinstance(layer, _POOLING) and tuple(layer.strides) == tuple(layer.pool_size):
            layer.call = partial(_pool, layer, type(layer).call)
        elif isinstance(layer, _TRANSPOSED) and tuple(layer.kernel_size) == tuple(layer.strides):
            layer.call = partial(_enlarge, layer)
        elif isinstance(layer, _CONVOLUTION) and {*layer.kernel_size, *layer.strides} == {1} and layer.compute_dtype == "float32":
            # A layer that asks for float32 casts its input before `call`. The products themselves do not need it.
            layer.call = partial(_project, layer, policy.compute_dtype)


def _is_plain(layer: Any) -> bool:
    """Returns whether a layer has no activation of its own and no groups of channels, which the functions below do not know."""
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "activation", None) in (None, keras.activations.linear)


def _pool(layer: Any, plain: Any, inputs):
    """Returns the largest value of each block, `(B, *P, C)`; borders that fill no block are Keras's business."""
    shape, steps = inputs.shape[1:-1], layer.pool_size
    if any(size % step for size, step in zip(shape, steps, strict=True)):
        return plain(layer, inputs)
    blocks = [number for size, step in zip(shape, steps, strict=True) for number in (size // step, step)]
    return ops.max(ops.reshape(inputs, (-1, *blocks, inputs.shape[-1])), axis=tuple(range(2, 2 * len(steps) + 1, 2)))


def _enlarge(layer: Any, inputs):
    """Returns the transposed convolution `(B, *P, F)`, whose blocks do not overlap: one product for each voxel."""
    steps, filters, shape = layer.strides, layer.filters, inputs.shape[1:-1]
    kernel = ops.cast(layer.kernel, inputs.dtype)
    # `(*kernel, F, C)` becomes `(C, kernel * F)`.
    kernel = ops.transpose(ops.reshape(kernel, (math.prod(steps) * filters, kernel.shape[-1])))
    blocks = ops.reshape(ops.matmul(inputs, kernel), (-1, *shape, *steps, filters))
    rank = len(steps)
    order = [0, *(axis for place in range(rank) for axis in (1 + place, 1 + rank + place)), 1 + 2 * rank]
    sizes = [size * step for size, step in zip(shape, steps, strict=True)]
    outputs = ops.reshape(ops.transpose(blocks, order), (-1, *sizes, filters))
    return outputs + ops.cast(layer.bias, outputs.dtype) if layer.use_bias else outputs


def _project(layer: Any, precision: str, inputs):
    """Returns a 1x1 convolution `(B, *P, F)` in float32, of factors in the network's precision."""
    import jax.numpy as jnp

    kernel = ops.reshape(ops.convert_to_tensor(layer.kernel), layer.kernel.shape[-2:])
    outputs = jnp.matmul(inputs.astype(precision), kernel.astype(precision), preferred_element_type=jnp.float32)
    return outputs + ops.convert_to_tensor(layer.bias) if layer.use_bias else outputs
