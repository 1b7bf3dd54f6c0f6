"""Batches, and augmentation of arrays, for the tests of augmentation."""

import keras
import numpy as np
from helpers import SHAPES
from keras import ops

from modules.model.augment import apply

COMPILED = {}


def apply_to_arrays(image, label, parameters, swaps=()):
    """Calls `apply` on arrays. Under JAX the call is compiled, because JAX would else compile each operation on its own."""
    function = COMPILED.get(swaps, lambda *arguments: apply(*arguments, left_right_swaps=swaps))
    if keras.backend.backend() == "jax" and swaps not in COMPILED:
        import jax

        function = COMPILED[swaps] = jax.jit(function)
    tensors = {name: ops.convert_to_tensor(value) for name, value in parameters.items()}
    results = function(ops.convert_to_tensor(image), ops.convert_to_tensor(label), tensors)
    return tuple(ops.convert_to_numpy(result) for result in results)


def make_batch(rank, channels=1, number=2, seed=0, shape=None):
    """Makes an image `(number, *shape, channels)` of noise and a label of five classes."""
    rng = np.random.default_rng(seed)
    shape = shape or SHAPES[rank]
    image = rng.normal(size=(number, *shape, channels)).astype("float32")
    return image, rng.integers(0, 5, (number, *shape)).astype("int32")
