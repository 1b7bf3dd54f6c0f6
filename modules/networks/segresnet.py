"""SegResNet after Myronenko, 2018: a residual encoder, a light decoder that adds its skips, group norm; 2-D and 3-D."""

import math

import keras
from keras import layers

from modules.networks._blocks import CONVOLUTION, SPATIAL_DROPOUT, check_norm, normalise

# Residual blocks of the encoder from full resolution down; deeper levels have as many as the last.
BLOCKS_DOWN = (1, 2, 2, 4)
NUM_GROUPS = 8
RANKS = (2, 3)


def build(
    input_shape: tuple[int, ...],
    num_logits: int,
    *,
    base_filters: int = 8,
    levels: int = 3,
    norm: str = "group",
    dropout: float = 0.0,
) -> keras.Model:
    """Builds an encoder with 1, 2, 2 and 4 residual blocks from full resolution down, and a decoder with one at each level.

    The network follows "3D MRI brain tumor segmentation using autoencoder regularization", without the autoencoder. The paper has 32
    base filters and a dropout of 0.2; the defaults here are those of MONAI.

    Args:
        input_shape: `(*P, C)` of two or three spatial sizes, multiples of `2**levels`.
        num_logits: Channels of the output.
        base_filters: Filters of the first level; each deeper one has twice as many.
        levels: Number of times that the resolution is halved.
        norm: "group" (of eight groups), "instance" or "batch".
        dropout: Rate, of whole channels, after the first convolution.

    Returns:
        A functional model from `(B, *P, C)` to logits `(B, *P, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`.
    """
    check_norm(norm, ("batch", "group", "instance"))
    rank = len(input_shape) - 1
    inputs = keras.Input(input_shape, name="image")
    x, skips = _convolve(inputs, base_filters), []
    if dropout:
        x = SPATIAL_DROPOUT[rank](dropout)(x)
    for level in range(levels + 1):
        if level:
            x = _convolve(x, base_filters * 2**level, strides=2)
        for _ in range(BLOCKS_DOWN[min(level, len(BLOCKS_DOWN) - 1)]):
            x = _add_residual(x, norm)
        skips.append(x)
    skips.pop()
    for skip in reversed(skips):
        x = _convolve(x, skip.shape[-1], size=1)
        x = _add_residual(layers.Add()([skip, _upsample(x)]), norm)
    logits = CONVOLUTION[rank](num_logits, 1, dtype="float32", name="logits")(_activate(x, norm))
    return keras.Model(inputs, logits, name="segresnet")


def _add_residual(x, norm: str):
    filters = x.shape[-1]
    residual = _convolve(_activate(x, norm), filters)
    residual = _convolve(_activate(residual, norm), filters)
    return layers.Add()([x, residual])


def _activate(x, norm: str):
    return layers.ReLU()(normalise(x, norm, groups=math.gcd(NUM_GROUPS, x.shape[-1])))


def _convolve(x, filters: int, size: int = 3, strides: int = 1):
    convolution = CONVOLUTION[len(x.shape) - 2]
    return convolution(filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)


def _upsample(x):
    """Doubles every spatial size by linear interpolation."""
    if len(x.shape) == 4:
        return layers.UpSampling2D(interpolation="bilinear")(x)
    # Keras's UpSampling3D only repeats voxels, but linear interpolation is separable. The first pass goes along two axes, with the
    # third folded into the channels. The second goes along the third, with those two folded into one.
    depth, height, width, channels = x.shape[1:]
    x = layers.Reshape((depth, height, width * channels))(x)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = layers.Reshape((4 * depth * height, width, channels))(x)
    x = layers.UpSampling2D((1, 2), interpolation="bilinear")(x)
    return layers.Reshape((2 * depth, 2 * height, 2 * width, channels))(x)
