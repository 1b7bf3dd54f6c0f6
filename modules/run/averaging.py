"""Averages the weights of the last epochs (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018), and judges the average."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from modules.data.files import replace_file
from modules.model.trainer import Trainer

# An interrupted run may go on from the last checkpoint but one.
_KEPT = 3

log = logging.getLogger("mri")


class LastAverage(keras.callbacks.Callback):
    """A callback that averages the weights at the ends of the last epochs, moving means of normalisation included.

    Each epoch leaves a file `average_EPOCH.npz` beside the checkpoints. A run that goes on from a checkpoint reads the file of its epoch,
    so that the average is that of an uninterrupted run. It must stand before the callback that writes the checkpoint.

    Attributes:
        trainer: The trainer.
        count: Epochs in the average.
    """

    def __init__(self, trainer: Trainer, folder: Path, first_epoch: int, *, write: bool = True) -> None:
        """Starts with no epochs.

        Args:
            trainer: The trainer. Where it keeps a moving average of the weights, that one counts.
            folder: The folder of the checkpoints.
            first_epoch: The first epoch that enters, from 1.
            write: Whether to write files; only one of several hosts does.
        """
        super().__init__()
        self.count = 0
        self._means: list[np.ndarray] = []
        self.trainer, self._folder, self._first, self._write = trainer, folder, first_epoch, write

    def restore(self, epochs: int) -> None:
        """Takes the average as it was after so many epochs of the run; raises ValueError where its file is gone or damaged."""
        if epochs < self._first:
            return
        path = self._name(epochs)
        try:
            with np.load(path, allow_pickle=False) as file:
                self.count = int(file["count"])
                self._means = [file[f"mean_{index}"] for index in range(len(file.files) - 1)]
        except Exception as error:  # A damaged zip file fails in many ways.
            received = "a damaged file" if path.is_file() else "no such file"
            raise ValueError(
                f"Expected the average of the last epochs in {path}. Received: {received}. Copy it there, or start the run anew."
            ) from error

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the weights of an epoch."""
        if epoch + 1 < self._first:
            return
        with self.trainer.averaged():
            values = [np.array(keras.ops.convert_to_numpy(weight), np.float64) for weight in self.trainer.network.weights]
        means = self._means if self.count else [np.zeros_like(value) for value in values]
        self.count += 1
        self._means = [mean + (value - mean) / self.count for mean, value in zip(means, values, strict=True)]
        if self._write:
            path = self._name(epoch + 1)
            arrays = {"count": np.array(self.count)} | {f"mean_{index}": mean for index, mean in enumerate(self._means)}
            with replace_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            for old in sorted(self._folder.glob("average_*.npz"))[:-_KEPT]:
                old.unlink()

    def judge(self, validate: Callable[[], dict[str, float]], name: str, best: float, save: Callable[[], None]) -> bool:
        """Validates the average in place of the network's weights, and saves it if it is better than the kept epoch.

        Args:
            validate: A function that validates the network as it is.
            name: The value to judge by, "mean_dice", or "loss", of which less is better.
            best: The kept epoch's value, negative for a loss.
            save: A function that saves the network as it is.

        Returns:
            Whether the average was saved.
        """
        if self.count < 2:
            log.info("no average of the weights: the training ended before two of the last epochs, from epoch %d on", self._first)
            return False
        network = self.trainer.network
        own = [np.array(keras.ops.convert_to_numpy(weight)) for weight in network.weights]
        _assign(network, self._means)
        try:
            logs = validate()
            value = -float(logs["loss"]) if name == "loss" else float(logs[name])
            better = value > best
            if better:
                save()
        finally:
            _assign(network, own)
        log.info(
            "the average of the weights of the last %d epochs: validation %s %.4f, that of the kept epoch %.4f; %s is kept",
            self.count, name.replace("_", " "), abs(value), abs(best), "the average" if better else "the epoch",
        )  # fmt: skip
        return better

    def _name(self, epoch: int) -> Path:
        return self._folder / f"average_{epoch:09d}.npz"


def _assign(network: keras.Model, values: Sequence[np.ndarray]) -> None:
    for weight, value in zip(network.weights, values, strict=True):
        weight.assign(value.astype(weight.dtype))
