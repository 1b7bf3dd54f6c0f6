"""3-D U-Net after Çiçek et al., 2016, with padded convolutions and normalisation."""

import keras
from keras import layers

from modules.networks._blocks import check_norm, double_convolution, name_level

RANKS = (3,)


def build(
    input_shape: tuple[int, int, int, int],
    num_logits: int,
    *,
    base_filters: int = 32,
    levels: int = 3,
    norm: str = "batch",
    dropout: float = 0.0,
) -> keras.Model:
    """Builds as many encoder blocks as there are levels, a bottleneck, and as many decoder blocks with skip connections.

    Each encoder block doubles its filters in its second convolution, before pooling, to avoid a bottleneck. With 32 filters, three
    levels, channels and logits the paper counts 19,069,955 parameters. It counts those of the kernels and of a bias for each
    convolution but the transposed ones, and none of batch normalisation. Here the beta of batch normalisation stands for the bias,
    and its gamma comes on top.

    Args:
        input_shape: `(*P, C)`; the three sizes are multiples of `2**levels`.
        num_logits: Channels of the output.
        base_filters: Filters of the first convolution.
        levels: Number of times that the resolution is halved.
        norm: "batch" or "instance" or "group" after every convolution, or "batch_second": batch norm after the second of a block
            only.
        dropout: Rate after each block of the two deepest levels.

    Returns:
        A functional model from `(B, *P, C)` to logits `(B, *P, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`.
    """
    check_norm(norm)
    inputs = keras.Input(input_shape, name="image")
    x, skips = inputs, []
    for level in range(levels):
        filters = base_filters * 2**level
        x = double_convolution(x, (filters, 2 * filters), norm=norm, dropout=dropout if level == levels - 1 else 0.0)
        skips.append(x)
        x = layers.MaxPooling3D()(x)
    filters = base_filters * 2**levels
    x = double_convolution(x, (filters, 2 * filters), norm=norm, dropout=dropout)
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.Conv3DTranspose(x.shape[-1], 2, strides=2, use_bias=False)(x)
        x = layers.Concatenate()([skip, x])
        x = double_convolution(x, skip.shape[-1], norm=norm, dropout=0.0, name=name_level(level))
    logits = layers.Conv3D(num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unet3d")
