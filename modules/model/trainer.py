"""The trainer of a network: it augments within the compiled step and computes the loss on the augmented batch."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from modules.model.augment import apply
from modules.model.cut import cut_windows
from modules.model.fast_layers import speed_up
from modules.model.fused_norm import fuse_normalisations

# The weight average forgets faster in the first 10 steps, so that it does not keep the random start.
_AVERAGE_START = 10


class Trainer(keras.Model):
    """A model that trains a network and shares its weights; the network itself does not know the trainer.

    Batches are dicts of `image (B, *P, C)` and `label (B, *P)`. In training they also hold the parameters of
    `modules.data.draws.draw_parameters`. In validation they also hold `weight (B,)`, which is 0 for a sample that only fills the
    batch. The label is part of the input, because image and label are warped together. Where the cases lie on the device, a batch holds
    their table and the places of its windows instead, see `modules.model.cut`.
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
        """Connects the network with its loss and metric.

        Args:
            network: A model from images to logits.
            loss: A function of `(label, logits, sample_weight)`.
            overlap: A metric of `(label, logits, sample_weight)`.
            left_right_swaps: Pairs of classes that trade places where left and right do.
            deep: A model from images to a list of logits, see `modules.networks.with_deep_supervision`. The first are the network's own,
                at full resolution; the others have lower ones. The loss is the mean of their losses with weights 1, 1/2, 1/4, ..., as
                in nnU-Net.
            l2: Weight of half the sum of all squared weights. This penalty steers the gradient, but is not reported with the loss.
            average: Momentum of an exponential moving average of the weights (Polyak); 0 keeps none. See `averaged`.
        """
        # Only the network computes in half precision. Coordinates of a large volume, and averages, need all their bits.
        super().__init__(name=network.name, autocast=False, dtype="float32")
        fuse_normalisations(network)
        _seed_dropout(network)
        for one in (network, *([deep] if deep else [])):
            speed_up(one)
        self.network = network
        self.deep = deep
        self.overlap = overlap
        self._loss = loss
        self._left_right_swaps = tuple(left_right_swaps)
        self._l2 = l2
        self._momentum = average
        self._averages: list[keras.Variable] = []
        if average:
            # We average the moving means of normalisation too, because they belong to the weights. Random states are not weights.
            for number, weight in enumerate(network.weights):
                copy = self.add_weight(
                    shape=weight.shape,
                    dtype=weight.dtype,
                    initializer="zeros",
                    trainable=False,
                    aggregation="mean",
                    name=f"average_{number}",
                )
                copy.assign(_copy_value(weight))
                self._averages.append(copy)
            self._updates = self.add_weight(
                shape=(), dtype="float32", initializer="zeros", trainable=False, aggregation="mean", name="seen"
            )
        # The network is built already. Without this line JAX would run a whole step, operation by operation, to build the trainer.
        self.built = True

    def call(self, inputs, training=False):
        """Returns the list of logits, full resolution first, and the label that belongs to them."""
        inputs = cut_windows(inputs, self.network.input_shape[1:-1])
        # Image and label arrive in the cache's small types, which halves the bytes on the way to the device.
        image, label = ops.cast(inputs["image"], "float32"), ops.cast(inputs["label"], "int32")
        parameters = {name: value for name, value in inputs.items() if name not in ("image", "label", "weight")}
        if parameters:
            image, label = apply(image, label, parameters, left_right_swaps=self._left_right_swaps)
        if training and self._averages:
            self._update_averages()
        if training and self.deep is not None:
            return self.deep(image, training=True), label
        return [self.network(image, training=training)], label

    def compute_loss(self, x: Any = None, y=None, y_pred: Any = None, sample_weight=None, training=True):
        """Returns the mean loss of a batch.

        Its value is the loss at full resolution alone. Its gradient is that of all losses together and of the penalty.
        """
        outputs, label = y_pred
        weight = x.get("weight")
        losses = [self._loss(reduce_label(label, logits), logits, weight) for logits in outputs]
        if not training or (len(losses) == 1 and not self._l2):
            return losses[0]
        total = sum(level_weight * loss for level_weight, loss in zip(weigh_levels(len(losses)), losses, strict=True))
        if self._l2:
            total += 0.5 * self._l2 * sum(ops.sum(ops.square(weight)) for weight in self.network.trainable_weights)
        return total + ops.stop_gradient(losses[0] - total)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Adds a batch to the running metrics and returns them."""
        outputs, label = y_pred
        self.overlap.update_state(label, outputs[0], x.get("weight"))
        return self.get_metrics_result()

    @contextmanager
    def averaged(self) -> Generator[None, None, None]:
        """Swaps the averaged weights in for the duration of the block; does nothing where no averages are kept."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    def _update_averages(self) -> None:
        """Moves the averages towards the weights as they are before this step's update."""
        momentum = ops.minimum(self._momentum, (1.0 + self._updates) / (_AVERAGE_START + self._updates))
        for average, weight in zip(self._averages, self.network.weights, strict=True):
            average.assign(average + (1.0 - momentum) * (ops.stop_gradient(weight) - average))
        self._updates.assign_add(1.0)

    def _swap_weights(self) -> None:
        for average, weight in zip(self._averages, self.network.weights, strict=self._averages != []):
            weight_value, average_value = _copy_value(weight), _copy_value(average)
            weight.assign(average_value)
            average.assign(weight_value)


class UseAverages(keras.callbacks.Callback):
    """A callback that validates the averages of the weights, where the trainer keeps them, instead of the weights."""

    def __init__(self, trainer: Trainer) -> None:
        """Takes the trainer that is fitted."""
        super().__init__()
        self._trainer = trainer
        self._averaged = ExitStack()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Swaps the averages in."""
        self._averaged.enter_context(self._trainer.averaged())

    def on_test_end(self, logs: dict | None = None) -> None:
        """Swaps the weights back in."""
        self._averaged.close()


def _seed_dropout(network: keras.Model) -> None:
    """Makes dropout under PyTorch draw from the layer's own random state, which checkpoints hold, as on the other backends.

    Without a seed of the layer Keras takes PyTorch's global numbers, and a resumed training would draw others.
    """
    if keras.backend.backend() == "torch":
        for layer in network.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate:
                # The state was drawn already. This only says that it counts.
                layer.seed_generator._initial_seed = 0


def _copy_value(variable) -> np.ndarray:
    """Copies a variable's value. Without a copy, JAX would let two variables share one buffer, which a step then overwrites."""
    return np.array(ops.convert_to_numpy(variable))


def weigh_levels(number: int) -> list[float]:
    """Weighs the losses at full, half, a quarter, ... of the resolution: each weight is half the one before, and they sum to 1."""
    weights = [0.5**level for level in range(number)]
    return [weight / sum(weights) for weight in weights]


def reduce_label(label, logits):
    """Reduces the label `(B, *P)` to the resolution of the logits; the voxel in the middle of each block stands for the block."""
    steps = [size // small for size, small in zip(label.shape[1:], logits.shape[1:-1], strict=True)]
    if max(steps) == 1:
        return label
    return label[(slice(None), *(slice(step // 2, None, step) for step in steps))]
