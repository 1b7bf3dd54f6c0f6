"""Networks that a model's dropout thins. Where they disagree, the model has not learnt enough.

After Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016. All other layers compute as in any prediction.
"""

import functools
import itertools
from typing import Any

from modules.predict.bundle import ModelBundle


def thin_model(bundle: ModelBundle, number: int) -> tuple[Any, ...]:
    """Makes thinned copies of a bundle's model, which share its weights.

    What a copy drops depends on its place among the copies alone. It is the same for every window, whatever windows share a batch, so
    that a prediction repeats.

    Args:
        bundle: The model, loaded for Keras.
        number: Number of copies.

    Returns:
        `keras.Model`, each.

    Raises:
        ValueError: If another engine computes the model, or it has no layer of dropout.
    """
    if bundle.engine != "keras":
        raise ValueError(
            f"Expected --engine keras beside --dropout. Received: {bundle.engine}, whose models hold no dropout. Add the flag."
        )
    import keras

    if not any(isinstance(layer, keras.layers.Dropout) for layer in bundle.model.layers):
        raise ValueError("Expected a model with dropout for --dropout. Received: one without. Train with --dropout 0.2, or leave it out.")
    return _thin(bundle.model, number)


@functools.lru_cache(maxsize=4)
def _thin(model: Any, number: int) -> tuple[Any, ...]:
    """Makes the copies once for all batches: each is compiled anew."""
    import keras

    seeds = itertools.count(1)

    def replace_dropout(layer):
        if not isinstance(layer, keras.layers.Dropout):
            return layer
        seed, whole = next(seeds), isinstance(layer, keras.layers.SpatialDropout2D | keras.layers.SpatialDropout3D)

        def drop(inputs):
            # One mask stands for all samples. Whole channels are dropped where the training dropped whole channels.
            places = [1] * (len(inputs.shape) - 2) if whole else inputs.shape[1:-1]
            return keras.random.dropout(inputs, layer.rate, noise_shape=(1, *places, inputs.shape[-1]), seed=seed)

        return keras.layers.Lambda(drop, output_shape=layer.output.shape[1:], dtype=layer.dtype_policy, name=f"{layer.name}_{seed}")

    return tuple(keras.models.clone_model(model, clone_function=replace_dropout) for _ in range(number))
