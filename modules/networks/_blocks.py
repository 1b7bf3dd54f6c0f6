"""What several networks share."""

from keras import layers

NORMS = ("batch", "batch_second", "group", "instance")

# Keras's default of 0.99 needs some hundred steps before the moving averages mean anything; small data sets have fewer an epoch.
BATCH_NORM_MOMENTUM = 0.9


def check_norm(norm: str) -> None:
    """Raises ValueError for a normalisation that is not in `NORMS`."""
    if norm not in NORMS:
        raise ValueError(f"Expected `norm` in {NORMS}. Received: {norm!r}.")


def normalise(x, norm: str):
    """Applies batch, group (as many groups of at least eight channels as divide them) or instance normalisation."""
    if norm.startswith("batch"):
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    channels = x.shape[-1]
    groups = -1
    if norm == "group":
        groups = next(number for number in range(max(1, channels // 8), 0, -1) if channels % number == 0)
    return layers.GroupNormalization(groups=groups, epsilon=1e-5)(x)


def double_convolution(x, filters: int, *, norm: str, dropout: float, rank: int = 2):
    """Two 3x3 (3x3x3) convolutions, each with its normalisation and ReLU; "batch_second" normalises after the second only."""
    convolution = {2: layers.Conv2D, 3: layers.Conv3D}[rank]
    for place in (1, 2):
        normalised = norm != "batch_second" or place == 2
        # A bias before a normalisation that subtracts the mean does nothing.
        x = convolution(filters, 3, padding="same", use_bias=not normalised, kernel_initializer="he_normal")(x)
        if normalised:
            x = normalise(x, norm)
        x = layers.ReLU()(x)
    return layers.Dropout(dropout)(x) if dropout else x
