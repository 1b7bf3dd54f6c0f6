"""Losses: one plain function each, from integer labels and logits to one number per sample.

Every function here takes `label (B, *P)` of class indices and `logits (B, *P, K)` and returns `(B,)` float32. `K` is the number
of classes with background, or 1 for a binary task: then the one logit is that of the foreground. A new loss is a new public
function of these two arguments; `--loss`, its help and the tests find it by its name.
"""

import inspect
from collections.abc import Callable

import keras
from keras import ops

# In voxels, added to both sides of the overlap ratios: a class that is absent and not predicted costs nothing, and one that is
# absent but predicted still has a gradient that makes it smaller.
SMOOTH = 1.0


def bce(label, logits):
    """Binary cross-entropy of the one foreground logit, averaged over voxels.

    Args:
        label: `(B, *P)` integers, 0 or 1.
        logits: `(B, *P, 1)`.

    Returns:
        `(B,)`, at least 0.

    Raises:
        ValueError: If there is more than one logit a voxel.
    """
    if logits.shape[-1] != 1:
        raise ValueError(
            f"Expected one logit a voxel for the loss 'bce'. Received: {logits.shape[-1]}. Use 'ce', or choose one `--target`."
        )
    return _voxel_mean(_negative_log_likelihood(label, logits))


def ce(label, logits):
    """Cross-entropy of the softmax over classes (of the sigmoid for one logit), averaged over voxels.

    Args:
        label: `(B, *P)` integers in [0, K).
        logits: `(B, *P, K)`, or `(B, *P, 1)` for a binary task.

    Returns:
        `(B,)`, at least 0.
    """
    return _voxel_mean(_negative_log_likelihood(label, logits))


def dice(label, logits):
    """Soft Dice loss: 1 minus the mean over foreground classes of `(2 |P Y| + s) / (|P| + |Y| + s)`.

    Sums run over the voxels of one sample and `s` is `SMOOTH`. After Milletari et al., V-Net, 2016, without squares.

    Args:
        label: `(B, *P)` integers in [0, K).
        logits: `(B, *P, K)`, or `(B, *P, 1)` for a binary task.

    Returns:
        `(B,)` in [0, 1]; 0 where no foreground is present or predicted.
    """
    intersection, total = _foreground_overlap(label, logits)
    return 1.0 - ops.mean((2.0 * intersection + SMOOTH) / (total + SMOOTH), axis=-1)


def iou(label, logits):
    """Soft intersection-over-union (Jaccard) loss: 1 minus the mean over foreground classes of `(|P Y| + s) / (|P u Y| + s)`.

    Args:
        label: `(B, *P)` integers in [0, K).
        logits: `(B, *P, K)`, or `(B, *P, 1)` for a binary task.

    Returns:
        `(B,)` in [0, 1]; never below `dice`. After Rahman and Wang, Optimizing Intersection-Over-Union, 2016.
    """
    intersection, total = _foreground_overlap(label, logits)
    return 1.0 - ops.mean((intersection + SMOOTH) / (total - intersection + SMOOTH), axis=-1)


def dice_ce(label, logits):
    """The sum of `dice` and `ce`: overlap for small structures, cross-entropy for a steady gradient (Isensee et al., 2021)."""
    return dice(label, logits) + ce(label, logits)


LOSSES: dict[str, Callable] = {
    name: value
    for name, value in list(globals().items())
    if inspect.isfunction(value) and value.__module__ == __name__ and not name.startswith("_")
}


class SegmentationLoss(keras.losses.Loss):
    """Lets `keras.Model.compile` use one of the functions above.

    Passing the bare function would not do: Keras's own wrapper squeezes the last axis of a single logit, and every Keras loss
    casts integer labels to float first.
    """

    def __init__(self, name: str) -> None:
        """Looks up `name` in `LOSSES`; raises ValueError, listing the names, where it is not there."""
        if name not in LOSSES:
            raise ValueError(f"Expected `loss` in {tuple(LOSSES)}. Received: {name!r}.")
        super().__init__(name=name)
        self._function = LOSSES[name]

    def call(self, y_true, y_pred):
        """Returns the loss of each sample, `(B,)`."""
        return self._function(ops.cast(y_true, "int32"), ops.cast(y_pred, "float32"))


def _voxel_mean(values):
    return ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=-1)


def _negative_log_likelihood(label, logits):
    """`(B, *P)`, the negative logarithm of the probability given to the right class."""
    if logits.shape[-1] == 1:
        logit = logits[..., 0]
        return ops.softplus(logit) - ops.cast(label, logit.dtype) * logit
    # Not keras.ops.sparse_categorical_crossentropy: on the torch backend its gradient fails for channels-last maps.
    chosen = ops.sum(logits * ops.one_hot(label, logits.shape[-1], dtype=logits.dtype), axis=-1)
    return ops.logsumexp(logits, axis=-1) - chosen


def _foreground_overlap(label, logits):
    """`(B, F)` sums over voxels for the foreground classes: probability times label, and probability plus label."""
    num_classes = logits.shape[-1]
    if num_classes == 1:
        probabilities = ops.sigmoid(logits)
        truth = ops.cast(label, logits.dtype)[..., None]
    else:
        probabilities = ops.softmax(logits, axis=-1)[..., 1:]
        truth = ops.one_hot(label, num_classes, dtype=logits.dtype)[..., 1:]
    axes = tuple(range(1, len(logits.shape) - 1))
    return ops.sum(probabilities * truth, axis=axes), ops.sum(probabilities, axis=axes) + ops.sum(truth, axis=axes)
