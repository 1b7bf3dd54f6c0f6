"""The network with what only a training needs: augmentation within the compiled step, and the loss on what came out of it."""

from collections.abc import Callable, Sequence

import keras

from modules.augment import apply


class Trainer(keras.Model):
    """Trains a network it shares its weights with; the network itself knows nothing of it.

    Samples are dicts of `image (B, *P, C)`, `label (B, *P)` and, for training, the parameters of `modules.augment.draw_parameters`.
    The label goes through the step with its image, as both are warped together.
    """

    def __init__(
        self, network: keras.Model, loss: Callable, overlap: keras.metrics.Metric, left_right_swaps: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Args: network: from images to logits; loss: of `(label, logits)`; overlap: a metric of them; left_right_swaps: pairs of
        classes that change places with left and right.
        """
        # Half precision is the network's business: coordinates of a large volume need all their bits.
        super().__init__(name=network.name, autocast=False)
        self.network = network
        self.overlap = overlap
        self._loss = loss
        self._swaps = tuple(left_right_swaps)
        # The network is built; without this JAX would run a whole step, operation by operation, to find out.
        self.built = True

    def call(self, inputs, training=False):
        """Returns logits and the label that belongs to them."""
        image, label = inputs["image"], inputs["label"]
        parameters = {name: value for name, value in inputs.items() if name not in ("image", "label")}
        if parameters:
            image, label = apply(image, label, parameters, left_right_swaps=self._swaps)
        return self.network(image, training=training), label

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean loss of a batch."""
        logits, label = y_pred
        return self._loss(label, logits)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Adds a batch to the running metrics and returns them."""
        logits, label = y_pred
        self.overlap.update_state(label, logits)
        return self.get_metrics_result()
