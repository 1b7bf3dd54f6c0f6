"""Losses: one plain function each, from integer labels and logits to one number per sample.

Every function here is `loss(label, logits, *, class_weights=None, batch=False) -> (B,)` float32, whatever the dtype of the logits:

- `label`: `(B, *P)` class indices in [0, K).
- `logits`: `(B, *P, K)`. `K` is the number of classes with background, or 1 for a binary task. The one logit is that of the
  foreground; there are two classes all the same.
- `class_weights`: a number of 0 or more for each class, the background first; equal weights change nothing. The voxel-wise
  losses (`bce`, `ce`, `focal`) weight each voxel by its class and divide by the sum of these weights over the sample. A sample
  in which every voxel weighs 0 costs nothing. The overlap losses take the weighted mean over the foreground classes and ignore
  the weight of the background.
- `batch`: whether overlap losses sum over the voxels of the whole batch rather than of each sample ("batch Dice"). Every sample
  then gets the batch's value. The voxel-wise losses ignore it.

They raise ValueError where the label has another shape than the logits, or `class_weights` are not such numbers.

`SegmentationLoss` may also get regions, which are classes that overlap. Then there is one logit a region, and each has a sigmoid of its
own. The overlap losses take the mean over the regions, and so do the voxel-wise losses, of the binary cross-entropy of each. Class
weights weigh the regions in both means, and the background's does nothing. It may get an index to ignore, too. Voxels that are labelled
with it count in no sum and no mean.

A new loss is a new public function of these arguments. `--loss`, its help and the tests find it by its name. `SegmentationLoss`
adds several up.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import keras
from keras import ops

from modules.model.loss_spec import parse_loss

# Voxels that are added to both sides of the overlap ratios. A class that is absent and not predicted then costs nothing. A class that
# is absent but predicted still has a gradient that makes it smaller.
SMOOTH = 1.0
# Alpha weighs false positives, beta false negatives. keras.losses.Tversky names them the other way round.
TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7
FOCAL_TVERSKY_GAMMA = 4 / 3


def bce(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the binary cross-entropy of the one foreground logit, or of each region's, averaged over voxels.

    Returns:
        `(B,)`, at least 0.

    Raises:
        ValueError: If there is more than one logit a voxel, and they are not those of regions.
    """
    voxels = _prepare_voxels(label, logits)
    if voxels.num_logits != 1 and not voxels.regions:
        raise ValueError(
            f"Expected one logit a voxel for the loss 'bce'. Received: {voxels.num_logits}. Use 'ce', or choose one `--target`."
        )
    return voxels.average(voxels.negative_log_likelihood, class_weights)


def ce(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the cross-entropy `-log p` of the softmax over classes (of the sigmoid for one logit), averaged over voxels.

    Here and below, `p` is the probability given to a voxel's own class.

    Returns:
        `(B,)`, at least 0.
    """
    voxels = _prepare_voxels(label, logits)
    return voxels.average(voxels.negative_log_likelihood, class_weights)


def focal(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the focal loss `-(1 - p)^2 log p`, averaged over voxels; voxels that are already right hardly count.

    Lin et al., Focal Loss for Dense Object Detection, 2017, with gamma 2. Their balance `alpha` is `class_weights` here.

    Returns:
        `(B,)`, at least 0 and at most `ce`.
    """
    voxels = _prepare_voxels(label, logits)
    cost = voxels.negative_log_likelihood
    return voxels.average(ops.square(ops.expm1(-cost)) * cost, class_weights)


def dice(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the soft Dice loss: 1 minus the mean over foreground classes of `(2 |P Y| + s) / (|P| + |Y| + s)`.

    Sums run over the voxels of one sample and `s` is `SMOOTH`. After Milletari et al., V-Net, 2016, without squares.

    Returns:
        `(B,)` in [0, 1]; 0 where no foreground is present or predicted.
    """
    voxels = _prepare_voxels(label, logits)
    intersection, predicted, labelled = voxels.sum_foreground(batch)
    return voxels.average_classes(1.0 - (2.0 * intersection + SMOOTH) / (predicted + labelled + SMOOTH), class_weights)


def iou(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the soft intersection-over-union (Jaccard) loss.

    It is 1 minus the mean over foreground classes of `(|P Y| + s) / (|P u Y| + s)`, after Rahman and Wang, Optimizing
    Intersection-Over-Union, 2016.

    Returns:
        `(B,)` in [0, 1]; never below `dice`.
    """
    voxels = _prepare_voxels(label, logits)
    intersection, predicted, labelled = voxels.sum_foreground(batch)
    union = predicted + labelled - intersection
    return voxels.average_classes(1.0 - (intersection + SMOOTH) / (union + SMOOTH), class_weights)


def tversky(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the Tversky loss: 1 minus the mean over foreground classes of `T = (TP + s) / (TP + 0.3 FP + 0.7 FN + s)`.

    `TP = |P Y|`, `FP = |P| - TP`, `FN = |Y| - TP` and `s` is `SMOOTH`. A missed voxel costs more than a superfluous one. Salehi et
    al., Tversky Loss Function for Image Segmentation Using 3D Fully Convolutional Deep Networks, 2017.

    Returns:
        `(B,)` in [0, 1]; 0 where no foreground is present or predicted.
    """
    voxels = _prepare_voxels(label, logits)
    return voxels.average_classes(_measure_tversky(voxels, batch), class_weights)


def focal_tversky(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the focal Tversky loss: the mean over foreground classes of `(1 - T)^(1 / gamma)`, `T` as in `tversky`, gamma 4/3.

    Abraham and Khan, A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation, 2019, equation 4.
    They sum over classes, and their alpha is our beta. The exponent of 3/4 makes the last errors of a class weigh more.

    Returns:
        `(B,)` in [0, 1]; never below `tversky`.
    """
    voxels = _prepare_voxels(label, logits)
    # Rounding can leave a perfect class a little below 0.
    loss = ops.maximum(_measure_tversky(voxels, batch), 0.0)
    # This is loss^(3/4), written so that its slope at 0 is steep but finite.
    return voxels.average_classes(loss * (loss + 1e-6) ** (1.0 / FOCAL_TVERSKY_GAMMA - 1.0), class_weights)


def generalised_dice(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Computes the generalised Dice loss `1 - (2 sum_c w |P Y| + s) / (sum_c w (|P| + |Y|) + s)` over the foreground classes.

    Each class has the weight `w = (v / |Y|)^2`, where `v` is the volume of the smallest class that is present. Weights are thus at
    most 1, and `s`, which is `SMOOTH`, counts voxels of that class. An absent class has weight 1. `class_weights` multiply `w`. With
    one foreground class this is `dice`.

    Sudre et al., Generalised Dice Overlap as a Deep Learning Loss Function for Highly Unbalanced Segmentations, 2017. Their weights
    are `1 / |Y|^2`, and their sums hold the background too.

    Returns:
        `(B,)` in [0, 1]; 0 where no foreground is present or predicted.
    """
    voxels = _prepare_voxels(label, logits)
    intersection, predicted, labelled = voxels.sum_foreground(batch)
    largest = ops.max(labelled, axis=-1, keepdims=True)
    smallest = ops.min(ops.where(labelled > 0, labelled, largest), axis=-1, keepdims=True)
    smallest = ops.maximum(smallest, 1.0)  # `smallest` is 0 where no class is present.
    balance = ops.square(smallest / ops.maximum(labelled, smallest))
    intersection = voxels.average_classes(balance * intersection, class_weights)
    total = voxels.average_classes(balance * (predicted + labelled), class_weights)
    # These are means over classes, not sums, so `s` is divided by their number too.
    smooth = SMOOTH / balance.shape[-1]
    return 1.0 - (2.0 * intersection + smooth) / (total + smooth)


def dice_ce(label, logits, *, class_weights: Sequence[float] | None = None, batch: bool = False):
    """Adds `dice` and `ce`: overlap for small structures, cross-entropy for a steady gradient (Isensee et al., 2021).

    Returns:
        `(B,)`, at least 0.
    """
    voxels = _prepare_voxels(label, logits)
    return dice(label, voxels, class_weights=class_weights, batch=batch) + ce(label, voxels, class_weights=class_weights)


LOSSES: dict[str, Callable] = {
    name: value
    for name, value in list(globals().items())
    if inspect.isfunction(value) and value.__module__ == __name__ and not name.startswith("_")
}


class SegmentationLoss(keras.losses.Loss):
    """A Keras loss that is one of the functions above, or a weighted sum of several.

    The bare function would not do as a loss. Keras's own wrapper squeezes the last axis of a single logit. Every Keras loss casts
    integer labels to float first.
    """

    def __init__(
        self,
        spec: str,
        class_weights: Sequence[float] | None = None,
        batch: bool = False,
        *,
        regions: Sequence[Sequence[int]] = (),
        ignore: int | None = None,
    ) -> None:
        """Takes what is summed up, and over which classes and voxels.

        Args:
            spec: A name in `LOSSES`, or a sum such as `dice:1+focal:0.5`.
            class_weights: Passed to each loss.
            batch: Passed to each loss.
            regions: The indices in the label whose union is the region of each logit; empty where classes exclude one another.
            ignore: The index in the label of voxels that count nowhere; None where there are none.

        Raises:
            ValueError: If a name is not in `LOSSES`, naming those that are, or a weight is not above 0.
        """
        self._terms = parse_loss(spec, tuple(LOSSES))
        self._class_weights, self._batch = class_weights, batch
        self._regions, self._ignore = tuple(regions), ignore
        # TensorFlow allows no colon and no plus in the name. float16 would round labels above 2048.
        super().__init__(name="_".join(name for name, _ in self._terms), dtype="float32")

    def call(self, y_true, y_pred):
        """Returns the loss of each sample, `(B,)`."""
        voxels = _Voxels(y_true, y_pred, self._regions, self._ignore)
        return sum(
            weight * LOSSES[name](y_true, voxels, class_weights=self._class_weights, batch=self._batch) for name, weight in self._terms
        )


class _Voxels:
    """A batch of `N` voxels a sample, with the quantities that several losses share; each is computed once, on first use.

    Classes come before voxels. With a handful of classes last, PyTorch on the CPU took five times as long.
    """

    def __init__(self, label, logits, regions: Sequence[Sequence[int]] = (), ignore: int | None = None) -> None:
        # Without this check, the reshaping below would silently pair the voxels of a transposed label with the wrong logits.
        received, expected = tuple(label.shape), tuple(logits.shape)[:-1]
        # A size is None where TensorFlow does not know it yet.
        known = [pair for pair in zip(received, expected, strict=False) if None not in pair]
        if len(received) != len(expected) or any(size != other for size, other in known):
            raise ValueError(f"Expected `label` of shape {expected}, as the logits without their classes. Received: {received}.")
        self.num_logits, self.regions = logits.shape[-1], regions
        size = ops.shape(logits)[0]
        self._logits = ops.reshape(ops.moveaxis(ops.cast(logits, "float32"), -1, 1), (size, self.num_logits, -1))
        self._label = ops.reshape(ops.cast(label, "int32"), (size, 1, -1))
        # `(B, 1, N)`, 0 for ignored voxels and 1 for the others; None where all count.
        self._counted = None
        if ignore is not None:
            counted = ops.not_equal(self._label, ignore)
            self._counted, self._label = ops.cast(counted, "float32"), ops.where(counted, self._label, 0)

    @cached_property
    def _truth(self):
        """`(B, K, N)` one-hot, or one mask a region; for one logit `(B, 1, N)`, the foreground."""
        if self.regions:
            masks = [sum(ops.cast(ops.equal(self._label, part), "float32") for part in parts) for parts in self.regions]
            return ops.concatenate(masks, axis=1)
        if self.num_logits == 1:
            return ops.cast(self._label, "float32")
        # keras.ops.one_hot builds 64-bit integers first on PyTorch.
        return ops.cast(ops.equal(self._label, ops.arange(self.num_logits, dtype="int32")[:, None]), "float32")

    @cached_property
    def _log_probabilities(self):
        """`(B, K, N)`, finite for all finite logits."""
        if keras.backend.backend() != "tensorflow":
            return ops.log_softmax(self._logits, axis=1)
        # TensorFlow's own function transposes to classes last and back, which takes three times as long.
        shifted = self._logits - ops.stop_gradient(ops.max(self._logits, axis=1, keepdims=True))
        return shifted - ops.log(ops.sum(ops.exp(shifted), axis=1, keepdims=True))

    @cached_property
    def negative_log_likelihood(self):
        """`(B, N)`, the negative logarithm of the probability given to the right class; for regions `(B, R, N)`, that of each."""
        if self.regions:
            return ops.softplus((1.0 - 2.0 * self._truth) * self._logits)
        if self.num_logits == 1:
            return ops.softplus((1.0 - 2.0 * self._truth) * self._logits)[:, 0]
        # We do not use keras.ops.sparse_categorical_crossentropy: on the torch backend its gradient fails for channels-last maps.
        return -ops.sum(self._truth * self._log_probabilities, axis=1)

    @cached_property
    def _foreground_sums(self):
        """`(B, F)` sums over the voxels of a sample: probability times label, probability, and label of the foreground classes."""
        if self.num_logits == 1 or self.regions:
            probabilities, first = ops.sigmoid(self._logits), 0
        else:
            # We slice the background off the sums, not off the voxels. That spares a copy here and another in the gradient.
            probabilities, first = ops.exp(self._log_probabilities), 1
        if self._counted is not None:
            # The truth of an ignored voxel is the background, which no sum holds.
            probabilities = probabilities * self._counted
        return tuple(ops.sum(values, axis=-1)[:, first:] for values in (probabilities * self._truth, probabilities, self._truth))

    def sum_foreground(self, batch: bool):
        """Returns the `(B, F)` sums over voxels of the foreground classes: probability times label, probability, and label."""
        if not batch:
            return self._foreground_sums
        return tuple(ops.zeros_like(values) + ops.sum(values, axis=0, keepdims=True) for values in self._foreground_sums)

    def average(self, values, class_weights: Sequence[float] | None):
        """Returns the `(B,)` means of `(B, N)` values over voxels, each weighted by its class; of `(B, R, N)` over regions too."""
        if self.regions:
            return self.average_classes(self._average_counted(values, self._counted), class_weights)
        counted = None if self._counted is None else self._counted[:, 0]
        if class_weights is None:
            return self._average_counted(values, counted)
        weights = ops.convert_to_tensor(self._check_weights(class_weights), "float32")
        weights = ops.take(weights, self._label[:, 0])
        return self._average_counted(values, weights if counted is None else weights * counted)

    @staticmethod
    def _average_counted(values, weights):
        """Returns the means of values over voxels, their last axis; 0 where every voxel weighs 0."""
        if weights is None:
            return ops.mean(values, axis=-1)
        total = ops.sum(weights, axis=-1)
        return ops.sum(weights * values, axis=-1) / ops.where(total > 0, total, 1.0)

    def average_classes(self, values, class_weights: Sequence[float] | None):
        """Returns the `(B,)` means of `(B, F)` values over foreground classes."""
        if class_weights is None:
            return ops.mean(values, axis=-1)
        weights = self._check_weights(class_weights)[1:]
        return ops.sum(values * ops.convert_to_tensor([weight / sum(weights) for weight in weights], "float32"), axis=-1)

    def _check_weights(self, class_weights: Sequence[float]) -> list[float]:
        """Returns the weights as floats, scaled so that none is above 1.

        Raises:
            ValueError: If they are not what the module says.
        """
        weights = [float(weight) for weight in class_weights]
        number = self.num_logits + 1 if self.regions else max(2, self.num_logits)
        if len(weights) != number or not all(0 <= weight < math.inf for weight in weights) or not any(weights[1:]):
            raise ValueError(
                f"Expected `class_weights` as {number} numbers of 0 or more, the background's first, not 0 for all the others. "
                f"Received: {tuple(weights)}."
            )
        return [weight / max(weights) for weight in weights]


def _prepare_voxels(label, logits) -> _Voxels:
    """Prepares the voxels that a loss computes from; a sum of losses passes the same ones to each term in place of the logits."""
    return logits if isinstance(logits, _Voxels) else _Voxels(label, logits)


def _measure_tversky(voxels: _Voxels, batch: bool):
    """Returns `(B, F)`, 1 minus the Tversky index of each foreground class."""
    both, predicted, labelled = voxels.sum_foreground(batch)
    errors = TVERSKY_ALPHA * (predicted - both) + TVERSKY_BETA * (labelled - both)
    return errors / (both + errors + SMOOTH)
