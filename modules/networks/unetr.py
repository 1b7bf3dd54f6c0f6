"""UNETR after Hatamizadeh et al., 2022: a vision transformer as encoder, a convolutional decoder; 2-D and 3-D."""

import math

import keras
from keras import layers

from modules.networks._blocks import CONVOLUTION, TRANSPOSED_CONVOLUTION, check_norm, normalise

PATCH_SIZE = 16
DIVISOR = 16
RANKS = (2, 3)
# The position embedding.
BOUND_TO_SHAPE = True


def build(
    input_shape: tuple[int, ...],
    num_logits: int,
    *,
    base_filters: int = 16,
    hidden_size: int = 768,
    mlp_size: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
    norm: str = "instance",
    dropout: float = 0.0,
) -> keras.Model:
    """Builds a transformer over patches of 16 voxels a side, and a convolutional decoder.

    The decoder takes the tokens after a quarter, a half, three quarters and all of the transformer.

    Args:
        input_shape: `(*P, C)` of two or three spatial sizes, multiples of 16. The position embedding is learned for this shape.
        num_logits: Channels of the output.
        base_filters: Filters at full resolution; each deeper level of the decoder has twice as many.
        hidden_size: Length of a token; a multiple of `num_heads`.
        mlp_size: Width of the hidden layer in each transformer block.
        num_layers: Transformer blocks; a multiple of 4.
        num_heads: Attention heads.
        norm: "instance", "group" or "batch", in the decoder.
        dropout: Rate in the transformer: of embeddings, attention weights and the two layers of each block.

    Returns:
        A functional model from `(B, *P, C)` to logits `(B, *P, num_logits)`.

    Raises:
        ValueError: For an unknown `norm`, and for numbers of layers or heads that do not divide.
    """
    check_norm(norm, ("batch", "group", "instance"))
    if num_layers < 4 or num_layers % 4:
        raise ValueError(f"Expected `num_layers` to be a multiple of 4. Received: {num_layers}.")
    if hidden_size % num_heads:
        raise ValueError(f"Expected `hidden_size` to be a multiple of `num_heads`, {num_heads}. Received: {hidden_size}.")
    rank = len(input_shape) - 1
    grid = tuple(size // PATCH_SIZE for size in input_shape[:-1])
    inputs = keras.Input(input_shape, name="image")

    x, levels = _embed_patches(inputs, hidden_size, dropout), [inputs]
    for number in range(1, num_layers + 1):
        x = _transform(x, mlp_size, num_heads, dropout)
        if number % (num_layers // 4) == 0:
            tokens = layers.LayerNormalization(epsilon=1e-5)(x) if number == num_layers else x
            levels.append(layers.Reshape((*grid, hidden_size))(tokens))

    # `levels` holds the image and four maps of one resolution. Maps from early in the transformer are enlarged further.
    x = levels.pop()
    for level, skip in reversed(list(enumerate(levels))):
        filters = base_filters * 2**level
        if level == 0:
            skip = _convolve_residual(skip, filters, norm)
        else:
            skip = _enlarge(skip, filters)
            for _ in range(len(levels) - 1 - level):
                skip = _convolve_residual(_enlarge(skip, filters), filters, norm)
        x = layers.Concatenate()([_enlarge(x, filters), skip])
        x = _convolve_residual(x, filters, norm)
    logits = CONVOLUTION[rank](num_logits, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="unetr")


def _embed_patches(x, hidden_size: int, dropout: float):
    """Turns `(B, *P, C)` into `(B, N, hidden_size)`: one token for each patch, with its position."""
    *spatial, channels = x.shape[1:]
    rank = len(spatial)
    split = [part for size in spatial for part in (size // PATCH_SIZE, PATCH_SIZE)]
    num_tokens = math.prod(split[::2])
    x = layers.Reshape((*split, channels))(x)
    x = layers.Permute((*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1))(x)
    x = layers.Reshape((num_tokens, PATCH_SIZE**rank * channels))(x)
    # A bias of its own for every token is a learned position embedding.
    embedding = layers.EinsumDense(
        "bnp,pd->bnd",
        output_shape=(num_tokens, hidden_size),
        bias_axes="nd",
        bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="embedding",
    )
    x = embedding(x)
    return layers.Dropout(dropout)(x) if dropout else x


def _transform(x, mlp_size: int, num_heads: int, dropout: float):
    """Applies a transformer block: attention, then two dense layers, each after layer normalisation and added to its input."""
    hidden_size = x.shape[-1]
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    # No bias is needed: the key's would do nothing, and the block's last dense layer adds one to the same sum.
    y = layers.MultiHeadAttention(num_heads, hidden_size // num_heads, dropout=dropout, use_bias=False)(y, y)
    x = layers.Add()([x, layers.Dropout(dropout)(y) if dropout else y])
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    for size, activation in ((mlp_size, "gelu"), (hidden_size, None)):
        y = layers.Dense(size, activation=activation)(y)
        y = layers.Dropout(dropout)(y) if dropout else y
    return layers.Add()([x, y])


def _enlarge(x, filters: int):
    """Doubles every spatial size."""
    return TRANSPOSED_CONVOLUTION[len(x.shape) - 2](filters, 2, strides=2, use_bias=False)(x)


def _convolve_residual(x, filters: int, norm: str):
    """Applies two convolutions with normalisation, and adds their input.

    A convolution brings the input to as many filters where it has others.
    """
    convolution = CONVOLUTION[len(x.shape) - 2]

    def convolve(x, size):
        x = convolution(filters, size, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        return normalise(x, norm)

    y = layers.LeakyReLU(negative_slope=0.01)(convolve(x, 3))
    y = convolve(y, 3)
    if x.shape[-1] != filters:
        x = convolve(x, 1)
    return layers.LeakyReLU(negative_slope=0.01)(layers.Add()([x, y]))
