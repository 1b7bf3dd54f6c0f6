"""Plain U-Net of nnU-Net v2 (Isensee et al., 2021): strided convolutions, instance norm, leaky ReLU; 2-D and 3-D."""

import keras
from keras import layers

from modules.networks import count_features
from modules.networks._blocks import CONVOLUTION, LEAK, check_norm, convolve, decode, fill_stages

RANKS = (2, 3)


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
    """Builds `levels + 1` encoder stages and `levels` decoder stages of two convolutions each, with skip connections.

    The first convolution of each deeper stage reduces the resolution. Filters double from stage to stage, up to 512 in 2-D and 320
    in 3-D. Convolutions before a normalisation have no bias, which nnU-Net's have: there it does nothing.

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
    x, skips = inputs, []
    for stage, filters in enumerate(count_features(base_filters, levels, rank)):
        for step in (strides[stage - 1] if stage else 1, 1):
            x = layers.LeakyReLU(LEAK)(convolve(x, filters, kernels[stage], norm=norm, strides=step))
        if dropout and stage >= levels - 1:
            x = layers.Dropout(dropout)(x)
        skips.append(x)
    x = decode(skips, strides, kernels, norm=norm, convolutions=2)
    logits = CONVOLUTION[rank](num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="plain_unet")
