"""Residual U-Net after Isensee et al., 2017: strided convolutions, context and localisation modules; 2-D and 3-D."""

import keras
from keras import layers

from modules.networks._blocks import CONVOLUTION, SPATIAL_DROPOUT, TRANSPOSED_CONVOLUTION, check_norm, name_level, normalise

RANKS = (2, 3)


def build(
    input_shape: tuple[int, ...],
    num_logits: int,
    *,
    base_filters: int = 16,
    levels: int = 4,
    norm: str = "instance",
    dropout: float = 0.3,
) -> keras.Model:
    """Builds a residual encoder of `levels + 1` resolutions and a decoder with skip connections.

    The network follows "Brain Tumor Segmentation and Radiomics Survival Prediction" with two differences. Transposed convolutions
    enlarge. The maps that are supervised below full resolution are not added to the output.

    Args:
        input_shape: `(*P, C)` of two or three spatial sizes, multiples of `2**levels`.
        num_logits: Channels of the output.
        base_filters: Filters of the first level; each deeper one has twice as many.
        levels: Number of times that the resolution is halved.
        norm: "instance", "group" or "batch".
        dropout: Rate, of whole channels, between the two convolutions of each context module.

    Returns:
        A functional model from `(B, *P, C)` to logits `(B, *P, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`.
    """
    check_norm(norm, ("batch", "group", "instance"))
    rank = len(input_shape) - 1
    inputs = keras.Input(input_shape, name="image")
    x, skips = inputs, []
    for level in range(levels + 1):
        x = _convolve(x, base_filters * 2**level, 3, strides=2 if level else 1)
        x = layers.Add()([x, _apply_context(x, norm, dropout)])
        x = _activate(x, norm)
        skips.append(x)
    skips.pop()
    for level, skip in reversed(list(enumerate(skips))):
        filters = base_filters * 2**level
        x = TRANSPOSED_CONVOLUTION[rank](filters, 2, strides=2, use_bias=False)(x)
        x = layers.Concatenate()([skip, _activate(x, norm)])
        x = _activate(_convolve(x, 2 * filters, 3), norm)
        if level:
            x = _activate(_convolve(x, filters, 1), norm, name_level(level))
    logits = CONVOLUTION[rank](num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="resunet3d")


def _apply_context(x, norm: str, dropout: float):
    """Applies the context module: two convolutions, each after normalisation and activation."""
    rank, filters = len(x.shape) - 2, x.shape[-1]
    x = _convolve(_activate(x, norm), filters, 3)
    if dropout:
        x = SPATIAL_DROPOUT[rank](dropout)(x)
    return _convolve(_activate(x, norm), filters, 3)


def _activate(x, norm: str, name: str | None = None):
    return layers.LeakyReLU(negative_slope=0.01, name=name)(normalise(x, norm))


def _convolve(x, filters: int, size: int, strides: int = 1):
    """Applies a convolution without bias, because a normalisation always follows."""
    convolution = CONVOLUTION[len(x.shape) - 2]
    return convolution(filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
