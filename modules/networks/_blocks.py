"""Parts that several networks share."""

import math

from keras import layers

NORMS = ("batch", "batch_second", "group", "instance")

# Keras's default of 0.99 needs some hundred steps before the moving averages mean anything. Small data sets have fewer an epoch.
BATCH_NORM_MOMENTUM = 0.9

# The slope below 0 of nnU-Net's activation.
LEAK = 0.01

# The layers of each spatial rank.
CONVOLUTION = {2: layers.Conv2D, 3: layers.Conv3D}
TRANSPOSED_CONVOLUTION = {2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose}
SPATIAL_DROPOUT = {2: layers.SpatialDropout2D, 3: layers.SpatialDropout3D}


def name_level(level: int) -> str | None:
    """Returns the name of a decoder level's last layer; None for level 0, full resolution.

    `modules.networks.with_deep_supervision` looks for the name.
    """
    return f"decoder_{level}" if level else None


def check_norm(norm: str, norms: tuple[str, ...] = NORMS) -> None:
    """Raises ValueError for a normalisation that is not in `norms`."""
    if norm not in norms:
        raise ValueError(f"Expected `norm` in {norms}. Received: {norm!r}.")


def normalise(x, norm: str, groups: int | None = None):
    """Applies batch, group or instance normalisation.

    Without `groups`, group normalisation forms as many equal groups of at least eight channels as it can, or one group.

    Raises:
        ValueError: For instance normalisation of a single voxel, which would make every value 0.
    """
    if norm.startswith("batch"):
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    channels = x.shape[-1]
    if norm == "instance":
        if math.prod(x.shape[1:-1]) == 1:
            raise ValueError(
                "Expected more than one voxel at the deepest level for `norm` 'instance'. Received: one. "
                "Use a larger shape, or `norm` 'group' or 'batch'."
            )
        groups = -1
    elif groups is None:
        groups = next(number for number in range(max(1, channels // 8), 0, -1) if channels % number == 0)
    return layers.GroupNormalization(groups=groups, epsilon=1e-5)(x)


def double_convolution(x, filters: int | tuple[int, int], *, norm: str, dropout: float, name: str | None = None):
    """Applies two 3x3 (3x3x3) convolutions, each with its normalisation and ReLU.

    "batch_second" normalises after the second only.

    Args:
        x: `(B, *P, C)`, of spatial rank 2 or 3.
        filters: Filters of both convolutions, or of each.
        norm: One of `NORMS`.
        dropout: Rate after the second convolution.
        name: Name of the last activation, where the output is to be found again.

    Returns:
        `(B, *P, filters)`.
    """
    both = (filters, filters) if isinstance(filters, int) else filters
    convolution = CONVOLUTION[len(x.shape) - 2]
    for place, number in enumerate(both):
        normalised = norm != "batch_second" or place == 1
        # A bias before a normalisation that subtracts the mean does nothing.
        x = convolution(number, 3, padding="same", use_bias=not normalised, kernel_initializer="he_normal")(x)
        if normalised:
            x = normalise(x, norm)
        x = layers.ReLU(name=name if place == 1 else None)(x)
    return layers.Dropout(dropout)(x) if dropout else x


def fill_stages(rank: int, levels: int, strides: tuple, kernels: tuple) -> tuple[tuple, tuple]:
    """Returns the strides of each level and the kernel sizes of each stage; where they are empty, 2 and 3 along every axis."""
    return strides or ((2,) * rank,) * levels, kernels or ((3,) * rank,) * (levels + 1)


def convolve(x, filters: int, kernel: tuple[int, ...], *, norm: str, strides: tuple[int, ...] | int = 1):
    """Applies a convolution and its normalisation."""
    convolution = CONVOLUTION[len(x.shape) - 2]
    # A bias before a normalisation that subtracts the mean does nothing.
    x = convolution(filters, kernel, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return normalise(x, norm)


def decode(skips: list, strides: tuple, kernels: tuple, *, norm: str, convolutions: int):
    """Goes up from the deepest stage: a transposed convolution, the skip connection and convolutions at each level.

    Args:
        skips: Output of each encoder stage, `(B, *P, C)`, from full resolution down.
        strides: Strides of each level.
        kernels: Kernel sizes of each stage.
        norm: One of `NORMS`.
        convolutions: Number of convolutions at each level.

    Returns:
        The output at full resolution.
    """
    x = skips[-1]
    for level, skip in reversed(list(enumerate(skips[:-1]))):
        enlarge = TRANSPOSED_CONVOLUTION[len(x.shape) - 2]
        x = enlarge(skip.shape[-1], strides[level], strides=strides[level])(x)
        x = layers.Concatenate()([skip, x])
        for place in range(1, convolutions + 1):
            x = convolve(x, skip.shape[-1], kernels[level], norm=norm)
            x = layers.LeakyReLU(LEAK, name=name_level(level) if place == convolutions else None)(x)
    return x
