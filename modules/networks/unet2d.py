"""2-D U-Net after Ronneberger et al., 2015, with padded convolutions and normalisation."""

import keras
from keras import layers

from modules.networks._blocks import check_norm, double_convolution, name_level

RANKS = (2,)


def build(
    input_shape: tuple[int, int, int],
    num_logits: int,
    *,
    base_filters: int = 32,
    levels: int = 4,
    norm: str = "batch",
    dropout: float = 0.0,
) -> keras.Model:
    """Builds as many encoder blocks as there are levels, a bottleneck, and as many decoder blocks with skip connections.

    Args:
        input_shape: `(rows, columns, C)`; rows and columns are multiples of `2**levels`.
        num_logits: Channels of the output.
        base_filters: Filters of the first block; each deeper one has twice as many.
        levels: Number of times that the resolution is halved.
        norm: "batch" or "instance" or "group" after every convolution, or "batch_second": batch norm after the second of a block
            only.
        dropout: Rate after each block of the two deepest levels.

    Returns:
        A functional model from `(B, rows, columns, C)` to logits `(B, rows, columns, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`.
    """
    check_norm(norm)
    inputs = keras.Input(input_shape, name="image")
    x, skips = inputs, []
    for level in range(levels):
        rate = dropout if level == levels - 1 else 0.0
        x = double_convolution(x, base_filters * 2**level, norm=norm, dropout=rate)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = double_convolution(x, base_filters * 2**levels, norm=norm, dropout=dropout)
    for level in reversed(range(levels)):
        filters = base_filters * 2**level
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = layers.Concatenate()([skips[level], x])
        x = double_convolution(x, filters, norm=norm, dropout=0.0, name=name_level(level))
    logits = layers.Conv2D(num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet2d")
