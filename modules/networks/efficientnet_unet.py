"""2-D U-Net with an EfficientNetV2 encoder (Tan and Le, 2021), from scratch or pretrained on ImageNet."""

import keras
import numpy as np
from keras import layers

from modules.networks._blocks import check_norm, double_convolution, name_level

VARIANTS = ("b0", "b1", "b2", "b3", "s", "m", "l")
STRIDES = (2, 4, 8, 16, 32)
DIVISOR = 32
RANKS = (2,)


def build(
    input_shape: tuple[int, int, int],
    num_logits: int,
    *,
    base_filters: int = 16,
    norm: str = "batch",
    dropout: float = 0.0,
    variant: str = "b0",
    pretrained: bool = False,
) -> keras.Model:
    """Builds an encoder with a map at each of five resolutions, and five decoder blocks that end at the image's own.

    Args:
        input_shape: `(rows, columns, C)`; rows and columns are multiples of 32. The image is expected normalised, not in [0, 255].
        num_logits: Channels of the output.
        base_filters: Filters of the decoder at full resolution; each deeper level has twice as many.
        norm: "batch", "batch_second", "group" or "instance", in the decoder; the encoder has batch norm.
        dropout: Rate after the decoder's two deepest blocks.
        variant: Size of the encoder: "b0" to "b3", "s", "m" or "l".
        pretrained: Whether the encoder starts from weights trained on ImageNet, which Keras downloads once and keeps.

    Returns:
        A functional model from `(B, rows, columns, C)` to logits `(B, rows, columns, num_logits)`. Its layer "encoder" can be frozen
        as a whole.

    Raises:
        ValueError: For an unknown `norm` or `variant`, and if the pretrained weights cannot be had.
    """
    check_norm(norm)
    if variant not in VARIANTS:
        raise ValueError(f"Expected `variant` in {VARIANTS}. Received: {variant!r}.")
    rows, columns, channels = input_shape
    encoder = _build_encoder((rows, columns, 3), variant, pretrained)
    inputs = keras.Input(input_shape, name="image")
    three_channels = layers.Conv2D(3, 1, name="three_channels")
    maps = encoder(three_channels(inputs))
    three_channels.set_weights([_spread_channels(channels), np.zeros(3, "float32")])

    skips, x = [inputs, *maps[:-1]], maps[-1]
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.UpSampling2D()(x)
        x = layers.Concatenate()([skip, x])
        rate = dropout if level >= len(skips) - 2 else 0.0
        x = double_convolution(x, base_filters * 2**level, norm=norm, dropout=rate, name=name_level(level))
    logits = layers.Conv2D(num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="efficientnet_unet")


def _build_encoder(input_shape: tuple[int, int, int], variant: str, pretrained: bool) -> keras.Model:
    """Builds EfficientNetV2 without its classifier, from three channels to the last block's output at each of `STRIDES`."""
    make = getattr(keras.applications, f"EfficientNetV2{variant.upper()}")
    weights = "imagenet" if pretrained else None
    try:
        network = make(include_top=False, weights=weights, input_shape=input_shape, include_preprocessing=False)
    except Exception as error:  # Keras raises a bare Exception for a failed download.
        if not pretrained:
            raise
        raise ValueError(
            f"Expected the ImageNet weights of EfficientNetV2{variant.upper()} in Keras's cache or by download. Received: "
            f"{' '.join(str(error).split())}. Connect to the network once, or train from scratch with `pretrained` False."
        ) from error
    maps = {}
    for layer in network.layers:
        # A block ends in a sum with its input. Without a sum it ends in its projection.
        if layer.name.startswith("block") and layer.name.endswith(("_add", "_project_bn", "_project_activation")):
            maps[input_shape[0] // layer.output.shape[1]] = layer.output
    return keras.Model(network.input, [maps[stride] for stride in STRIDES], name="encoder")


def _spread_channels(channels: int) -> np.ndarray:
    """Returns the 1x1 kernel, `(1, 1, C, 3)`, that repeats one or two channels, keeps three and averages more into three."""
    kernel = np.zeros((channels, 3), "float32")
    for place in range(max(channels, 3)):
        kernel[place % channels, place % 3] = 1.0
    return (kernel / kernel.sum(axis=0))[None, None]
