"""Reads the loss of each step without making a device wait, and ends a training whose loss is no longer finite."""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from modules.run.callbacks import Checkpoint

log = logging.getLogger("mri")


class StepCallbacks(keras.callbacks.CallbackList):
    """A list of callbacks that learn of each training step, but not of its losses.

    Keras reads the losses of every step before it starts the next, and a GPU idles meanwhile. Our callbacks only count steps. They get the
    losses at the end of an epoch. `on_loss` gets the loss of each step, `AHEAD` steps later or before the validation.
    """

    # The device may be this many steps behind. Without a bound the batches that wait for it would fill its memory.
    AHEAD = 2

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        on_loss: Callable[[int, float], None] = lambda batch, loss: None,
    ) -> None:
        """Takes the callbacks in their order, the model that is fitted, and a function of a batch's number and loss."""
        super().__init__(callbacks, add_history=True, model=model)
        self._on_loss = on_loss
        self._waiting: deque = deque()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Passes the step on once the device is at most `AHEAD` steps behind."""
        self._waiting.append((batch, logs["loss"]))
        self._read_losses(self.AHEAD)
        for callback in self.callbacks:
            callback.on_train_batch_end(batch)

    def on_test_begin(self, logs: Any = None) -> None:
        """Reads the last losses, so that no broken model is validated."""
        self._read_losses(0)
        super().on_test_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reads the last losses of an epoch without validation."""
        self._read_losses(0)
        super().on_epoch_end(epoch, logs)

    def _read_losses(self, most: int) -> None:
        """Reads losses until at most so many are left."""
        while len(self._waiting) > most:
            batch, loss = self._waiting.popleft()
            self._on_loss(batch, float(ops.convert_to_numpy(loss)))


class LossError(ValueError):
    """The loss of a training is NaN or infinite. Another learning rate or other data may help, but not to go on."""


class LossGuard(keras.callbacks.Callback):
    """A callback that ends a training with `LossError` once its loss, or a weight at the end of an epoch, is not finite.

    `StepCallbacks` hands it the loss of each step two steps later, so that a device never waits. The weights of
    such a step are in no checkpoint. An epoch whose validation alone fails is not kept, and the log says so.
    A variance of a normalisation can be infinite while the loss is finite. Such a model is of no use either.

    With loss scaling the optimiser skips a step whose gradients are not finite. Then the validation at the end of the epoch decides.
    """

    def __init__(self, checkpoint: Checkpoint, steps: int, where: str) -> None:
        """Takes what the error names.

        Args:
            checkpoint: The checkpoint, which knows how many steps are done.
            steps: Steps of an epoch.
            where: The run.
        """
        super().__init__()
        self._checkpoint, self._steps, self._where = checkpoint, steps, where
        self._first_step = 0
        # The first step of the epoch whose loss was not finite, and that loss.
        self._since, self._loss = 0, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the steps done."""
        self._first_step, self._since = self._checkpoint.step, 0

    def judge(self, batch: int, loss: float) -> None:
        """Takes the mean loss of an epoch up to step `batch`, counted from 0."""
        if math.isfinite(loss) or self._since:
            return
        self._since, self._loss = self._first_step + batch + 1, loss
        if not isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            raise self._make_error(f"{loss} since step {self._since} (epoch {(self._since - 1) // self._steps + 1})")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Judges the validation loss and the weights."""
        loss = float(logs["val_loss"])
        sound = all(np.isfinite(ops.convert_to_numpy(weight)).all() for weight in self.model.weights)
        if math.isfinite(loss) and not sound:
            raise self._make_error(f"weights that are not finite after step {self._checkpoint.step} (epoch {epoch + 1})")
        if math.isfinite(loss):
            if self._since:
                log.warning("the loss is not finite since step %d; its optimiser skipped such steps, and the model is sound", self._since)
        elif self._since:
            raise self._make_error(f"{self._loss} since step {self._since} (epoch {epoch + 1})")
        elif not sound:
            raise self._make_error(f"{loss} in the validation after step {self._checkpoint.step} (epoch {epoch + 1})")
        else:
            log.warning("epoch %d: the validation loss is %s, although every weight is finite; this epoch is not kept", epoch + 1, loss)

    def _make_error(self, what: str) -> LossError:
        return LossError(
            f"Expected a finite loss. Received: {what} in {self._where}. Start a new run with a smaller `--learning-rate`, "
            "with `--clip-norm` above 0 or in `--precision float32`."
        )
