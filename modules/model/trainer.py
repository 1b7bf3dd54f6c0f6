"""The network with what only a training needs: augmentation within the compiled step, and the loss on what came out of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from modules.model.augment import apply

# Of this many steps the average of the weights forgets the first ones faster, so that it does not remember the random start.
_AVERAGE_START = 10


class Trainer(keras.Model):
    """Trains a network it shares its weights with; the network itself knows nothing of it.

    Samples are dicts of `image (B, *P, C)`, `label (B, *P)` and, for training, the parameters of `modules.augment.draw_parameters`; for
    validation, the samples' `weight (B,)`, 0 for one that only fills the batch. The label goes through the step with its image, as
    both are warped together.
    """

    def __init__(
        self,
        network: keras.Model,
        loss: Callable,
        overlap: keras.metrics.Metric,
        left_right_swaps: Sequence[tuple[int, int]] = (),
        *,
        deep: keras.Model | None = None,
        l2: float = 0.0,
        average: float = 0.0,
    ) -> None:
        """Puts them together.

        Args:
            network: From images to logits.
            loss: Of `(label, logits, sample_weight)`.
            overlap: A metric of `(label, logits, sample_weight)`.
            left_right_swaps: Pairs of classes that change places with left and right.
            deep: From images to a list of logits, at full resolution and at lower ones, of which the first are the network's own; see
                `modules.networks.with_deep_supervision`. Its loss is the mean of theirs with weights 1, 1/2, 1/4, ..., as in nnU-Net.
            l2: Weight of half the sum of all squared weights, a penalty that steers the gradient and is not reported with the loss.
            average: Momentum of an exponential moving average of the weights (Polyak); 0 keeps none. See `averaged`.
        """
        # Half precision is the network's business: coordinates of a large volume and averages need all their bits.
        super().__init__(name=network.name, autocast=False, dtype="float32")
        self.network = network
        self.deep = deep
        self.overlap = overlap
        self._loss = loss
        self._swaps = tuple(left_right_swaps)
        self._l2 = l2
        self._momentum = average
        self._averages: list[keras.Variable] = []
        if average:
            # Moving means of normalisation are averaged like weights, to which they belong. States of random numbers are not weights.
            for number, weight in enumerate(network.weights):
                copy = self.add_weight(
                    shape=weight.shape,
                    dtype=weight.dtype,
                    initializer="zeros",
                    trainable=False,
                    aggregation="mean",
                    name=f"average_{number}",
                )
                copy.assign(_copy(weight))
                self._averages.append(copy)
            self._seen = self.add_weight(shape=(), dtype="float32", initializer="zeros", trainable=False, aggregation="mean", name="seen")
        # The network is built; without this JAX would run a whole step, operation by operation, to find out.
        self.built = True

    def call(self, inputs, training=False):
        """Returns the list of logits, full resolution first, and the label that belongs to them."""
        # They come as they lie in the cache: half the bytes on the way to the device.
        image, label = ops.cast(inputs["image"], "float32"), ops.cast(inputs["label"], "int32")
        parameters = {name: value for name, value in inputs.items() if name not in ("image", "label", "weight")}
        if parameters:
            image, label = apply(image, label, parameters, left_right_swaps=self._swaps)
        if training and self._averages:
            self._update_averages()
        if training and self.deep is not None:
            return self.deep(image, training=True), label
        return [self.network(image, training=training)], label

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean loss of a batch: its value is that of the full resolution alone, its gradient that of all there is to minimise."""
        outputs, label = y_pred
        weight = x.get("weight")
        losses = [self._loss(reduce_label(label, logits), logits, weight) for logits in outputs]
        if not training or (len(losses) == 1 and not self._l2):
            return losses[0]
        total = sum(share * loss for share, loss in zip(weigh_levels(len(losses)), losses, strict=True))
        if self._l2:
            total += 0.5 * self._l2 * sum(ops.sum(ops.square(weight)) for weight in self.network.trainable_weights)
        return total + ops.stop_gradient(losses[0] - total)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Adds a batch to the running metrics and returns them."""
        outputs, label = y_pred
        self.overlap.update_state(label, outputs[0], x.get("weight"))
        return self.get_metrics_result()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averages as its weights, where averages are kept."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _update_averages(self) -> None:
        """Takes in the weights as they are before this step's update."""
        momentum = ops.minimum(self._momentum, (1.0 + self._seen) / (_AVERAGE_START + self._seen))
        for average, weight in zip(self._averages, self.network.weights, strict=True):
            average.assign(average + (1.0 - momentum) * (ops.stop_gradient(weight) - average))
        self._seen.assign_add(1.0)

    def _swap(self) -> None:
        for average, weight in zip(self._averages, self.network.weights, strict=self._averages != []):
            first, second = _copy(weight), _copy(average)
            weight.assign(second)
            average.assign(first)


class UseAverages(keras.callbacks.Callback):
    """Validates the averages of the weights instead of the weights, where the trainer keeps them."""

    def __init__(self, trainer: Trainer) -> None:
        """Args: trainer: that is fitted."""
        super().__init__()
        self._trainer = trainer
        self._scope = None

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Puts them in."""
        self._scope = self._trainer.averaged()
        self._scope.__enter__()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Takes them out again."""
        self._scope.__exit__(None, None, None)


def _copy(variable) -> np.ndarray:
    """Its value; without a copy, JAX would let two variables share one buffer, which a step then overwrites."""
    return np.array(ops.convert_to_numpy(variable))


def weigh_levels(number: int) -> list[float]:
    """Shares of the losses at full, half, a quarter, ... of the resolution: each half of the one before, 1 together."""
    weights = [0.5**level for level in range(number)]
    return [weight / sum(weights) for weight in weights]


def reduce_label(label, logits):
    """The label `(B, *P)` at the resolution of the logits: of each block of voxels the one in its middle."""
    steps = [size // small for size, small in zip(label.shape[1:], logits.shape[1:-1], strict=True)]
    if max(steps) == 1:
        return label
    return label[(slice(None), *(slice(step // 2, None, step) for step in steps))]
