"""Residual encoder U-Net of nnU-Net (Isensee et al., 2024): a deep residual encoder, a light decoder; 2-D and 3-D."""

import keras
from keras import layers

from modules.networks import count_features
from modules.networks._blocks import CONVOLUTION, LEAK, check_norm, convolve, decode, fill_stages

# Residual blocks of the encoder from full resolution down; deeper stages have as many as the last.
BLOCKS = (1, 3, 4, 6)
RANKS = (2, 3)
_POOLING = {2: layers.AveragePooling2D, 3: layers.AveragePooling3D}


def build(
    input_shape: tuple[int, ...],
    num_logits: int,
    *,
    base_filters: int = 32,
    levels: int = 4,
    norm: str = "instance",
    dropout: float = 0.0,
    strides: tuple = (),
    kernels: tuple = (),
) -> keras.Model:
    """Builds an encoder of 1, 3, 4, 6, 6 and so on residual blocks, and a decoder of one convolution at each level.

    A convolution comes before the first stage. The first block of each deeper stage reduces the resolution: by a strided convolution,
    and beside it by the mean over the stride, followed by a convolution of size 1.

    Args:
        input_shape: `(*P, C)` of two or three spatial sizes, multiples of the product of all strides.
        num_logits: Channels of the output.
        base_filters: Filters of the first stage; each deeper one has twice as many, up to 512 in 2-D and 320 in 3-D.
        levels: Number of times that the resolution is reduced.
        norm: "instance", "group" or "batch".
        dropout: Rate after each stage of the two deepest levels.
        strides: A stride of 1 or 2 along each axis, for each level; empty for 2 everywhere.
        kernels: A kernel size of 1 or 3 along each axis, for each of the `levels + 1` stages; empty for 3 everywhere.

    Returns:
        A functional model from `(B, *P, C)` to logits `(B, *P, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`.
    """
    check_norm(norm, ("batch", "group", "instance"))
    rank = len(input_shape) - 1
    strides, kernels = fill_stages(rank, levels, strides, kernels)
    inputs = keras.Input(input_shape, name="image")
    x = layers.LeakyReLU(LEAK)(convolve(inputs, base_filters, kernels[0], norm=norm))
    skips = []
    for stage, filters in enumerate(count_features(base_filters, levels, rank)):
        x = _add_residual(x, filters, kernels[stage], norm, strides[stage - 1] if stage else (1,) * rank)
        for _ in range(BLOCKS[min(stage, len(BLOCKS) - 1)] - 1):
            x = _add_residual(x, filters, kernels[stage], norm, (1,) * rank)
        if dropout and stage >= levels - 1:
            x = layers.Dropout(dropout)(x)
        skips.append(x)
    x = decode(skips, strides, kernels, norm=norm, convolutions=1)
    logits = CONVOLUTION[rank](num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="residual_unet")


def _add_residual(x, filters: int, kernel: tuple[int, ...], norm: str, strides: tuple[int, ...]):
    rank = len(x.shape) - 2
    residual = layers.LeakyReLU(LEAK)(convolve(x, filters, kernel, norm=norm, strides=strides))
    residual = convolve(residual, filters, kernel, norm=norm)
    if max(strides) > 1:
        x = _POOLING[rank](strides)(x)
    if x.shape[-1] != filters:
        x = convolve(x, filters, (1,) * rank, norm=norm)
    return layers.LeakyReLU(LEAK)(layers.Add()([residual, x]))
