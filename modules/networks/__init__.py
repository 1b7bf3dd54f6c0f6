"""Networks: one file each, found by its name.

`modules/networks/<name>.py` defines `build(input_shape, num_classes, *, ...options) -> keras.Model`, a functional model from
`(B, *P, C)` to logits `(B, *P, K)`; a docstring whose first line is the help text; and `DIVISOR`, what every spatial size must be
a multiple of. Files whose name begins with an underscore hold what several networks share.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

NETWORKS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def build(name: str, input_shape: tuple[int, ...], num_classes: int, **options: Any):
    """Builds a network that returns logits.

    Args:
        name: One of `NETWORKS`.
        input_shape: `(*P, C)`.
        num_classes: `K` with background. Two classes get one logit, that of the foreground; more get one each.
        **options: The network's own options; None means its default.

    Returns:
        A functional `keras.Model` from `(B, *P, C)` to `(B, *P, K)`, or `(B, *P, 1)` for two classes.

    Raises:
        ValueError: For an unknown network or option, listing the valid ones, and for a shape that does not divide, naming
            the nearest that does.
    """
    if name not in NETWORKS:
        raise ValueError(f"Expected `network` in {NETWORKS}. Received: {name!r}.")
    module = importlib.import_module(f"{__name__}.{name}")
    options = {key: value for key, value in options.items() if value is not None}
    known = list(inspect.signature(module.build).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Expected options of network '{name}' in {tuple(known)}. Received: {unknown[0]!r}.")
    spatial = tuple(input_shape[:-1])
    nearest = tuple(max(module.DIVISOR, round(size / module.DIVISOR) * module.DIVISOR) for size in spatial)
    if spatial != nearest:
        raise ValueError(
            f"Expected a shape whose sizes are multiples of {module.DIVISOR} for network '{name}'. Received: {spatial}. "
            f"The nearest valid one is {nearest}."
        )
    return module.build(tuple(input_shape), 1 if num_classes == 2 else num_classes, **options)


def with_head(network):
    """Appends the float32 sigmoid (one logit) or softmax: the whole model that is saved, exported and predicted with."""
    import keras

    logits = network.output
    activation = "sigmoid" if logits.shape[-1] == 1 else "softmax"
    probabilities = keras.layers.Activation(activation, dtype="float32", name="probabilities")(logits)
    return keras.Model(network.input, probabilities, name=network.name)
