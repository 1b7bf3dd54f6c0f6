"""Helpers that compute losses and draw labels for the tests of losses."""

import numpy as np
from keras import ops

from modules.model.losses import LOSSES


def compute_loss(name, label, logits, **options):
    """Computes a loss of arrays: one value a sample."""
    label, logits = ops.convert_to_tensor(label, "int32"), ops.convert_to_tensor(logits, "float32")
    return ops.convert_to_numpy(LOSSES[name](label, logits, **options))


def draw_sample(channels, seed=0, batch=3, shape=(4, 3, 5)):
    """Draws labels and logits. With four classes, the last is absent from the first sample."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, max(2, channels), (batch, *shape))
    label[0][label[0] == 3] = 0
    return label, rng.normal(size=(batch, *shape, channels))
