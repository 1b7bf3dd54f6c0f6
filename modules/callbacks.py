"""What happens after each epoch: the record, the best model, the checkpoint, the progress bar."""

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from modules import reports
from modules.volume import replace_file

log = logging.getLogger("mri")


class Record(keras.callbacks.Callback):
    """Keeps a row an epoch, and writes `history.csv` and the curves anew after each.

    A row holds `epoch` (from 1), `seconds`, `images_per_s` of training alone, `learning_rate`, and the loss and every metric of
    training and of validation (`val_...`), classes in their own order.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], images_per_epoch: int) -> None:
        """Args: folder: the run's folder; class_names: the background first; images_per_epoch: what one epoch trains on."""
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._folder = folder
        # Keras hands its logs over sorted by the alphabet.
        names = ["loss", "accuracy", "mean_dice", *(f"{score}_{name}" for score in ("dice", "iou") for name in class_names[1:])]
        self._columns = [*names, *(f"val_{name}" for name in names)]
        self._images = images_per_epoch
        self._started = self._trained = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._started = self._trained = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops the training's own clock: what follows is validation."""
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the row and writes everything."""
        now = time.perf_counter()
        trained = (self._trained if self._trained > self._started else now) - self._started
        row = {
            "epoch": epoch + 1,
            "seconds": round(now - self._started, 3),
            "images_per_s": round(self._images / trained, 2),
            "learning_rate": float(self.model.optimizer.learning_rate),
        }
        row |= {name: float(logs[name]) for name in self._columns}
        self.rows.append(row)
        self.write()
        log.info(
            "epoch %3d  loss %.4f  val_loss %.4f  accuracy %.4f  mean Dice %.4f  validation %s  (%.0f s)",
            epoch + 1, row["loss"], row["val_loss"], row["val_accuracy"], row["val_mean_dice"],
            "  ".join(f"{key[9:]} {value:.3f}" for key, value in row.items() if key.startswith("val_dice_")), row["seconds"],
        )  # fmt: skip

    def write(self) -> None:
        """Writes the table and the curves."""
        with replace_file(self._folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        reports.plot_history(self.rows, self._folder / "figures")

    def state(self) -> Any:
        """What a checkpoint must hold."""
        return self.rows

    def restore(self, state: Any) -> None:
        """Takes back what `state` gave."""
        self.rows = state


class KeepBest(keras.callbacks.Callback):
    """Saves the model whenever its mean foreground Dice on the validation set is the best so far, and stops when that is long ago."""

    def __init__(self, save: Callable[[], None], patience: int, stop_at_dice: float = 0.0) -> None:
        """Args: save: keeps the model as it is now; patience: epochs without a better one before stopping, 0 for never;
        stop_at_dice: stops once every class has this Dice on the validation set, 0 for never.
        """
        super().__init__()
        self._save = save
        self._patience = patience
        self._stop_at_dice = stop_at_dice
        self._reached = False
        self.best = -math.inf
        self.best_epoch = 0
        self._last_epoch = 0

    @property
    def finished(self) -> bool:
        """Whether patience has run out or every class is good enough."""
        return self._reached or 0 < self._patience <= self._last_epoch - self.best_epoch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Compares, saves, stops. A NaN (no foreground in the validation set) counts as the worst."""
        dice = float(logs["val_mean_dice"])
        dice = -1.0 if math.isnan(dice) else dice
        self._last_epoch = epoch + 1
        if dice > self.best:
            self.best, self.best_epoch = dice, epoch + 1
            self._save()
        # A class that the validation set lacks is NaN and never good enough: nobody measured it.
        if self._stop_at_dice > 0 and all(value >= self._stop_at_dice for key, value in logs.items() if key.startswith("val_dice_")):
            self._reached = True
            if self.best_epoch != epoch + 1:
                # This is the model that was asked for, although another had a better mean.
                self.best, self.best_epoch = dice, epoch + 1
                self._save()
            log.info("stopped: every class has a validation Dice of %.4f or more", self._stop_at_dice)
            self.model.stop_training = True
        elif self.finished:
            log.info("stopped: no better validation Dice than %.4f (epoch %d) for %d epochs", self.best, self.best_epoch, self._patience)
            self.model.stop_training = True

    def state(self) -> Any:
        """What a checkpoint must hold."""
        return [self.best, self.best_epoch, self._last_epoch, self._reached]

    def restore(self, state: Any) -> None:
        """Takes back what `state` gave."""
        self.best, self.best_epoch, self._last_epoch, self._reached = state


class Checkpoint(keras.callbacks.Callback):
    """Writes all that a training needs to go on after the last whole epoch, in one file that is replaced whole.

    That is every variable of the model and the optimiser, the states of the dropout's random numbers among them, and the
    states of the other callbacks; the order of the samples needs nothing, being a function of seed and step.
    """

    def __init__(self, path: Path, others: Sequence[Any]) -> None:
        """Args: path: of the `.npz` file; others: callbacks with `state` and `restore`. Place this one behind them."""
        super().__init__()
        self._path = path
        self._others = others

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the checkpoint."""
        arrays = {f"variable_{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(self._variables(self.model))}
        arrays["state"] = np.array(json.dumps({"epochs": epoch + 1, "others": [other.state() for other in self._others]}))
        with replace_file(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def restore(self, model: keras.Model) -> int:
        """Puts model, optimiser and callbacks back where they were.

        Args:
            model: Compiled, of the same architecture.

        Returns:
            How many epochs are done; 0 where there is no checkpoint yet.

        Raises:
            ValueError: If the file is cut short or belongs to another model.
        """
        if not self._path.is_file():
            return 0
        model.optimizer.build(model.trainable_variables)
        variables = self._variables(model)
        try:
            with np.load(self._path, allow_pickle=False) as file:
                state = json.loads(str(file["state"]))
                arrays = [file[f"variable_{index}"] for index in range(len(variables))]
                for variable, array in zip(variables, arrays, strict=True):
                    variable.assign(array)
        except Exception as error:
            raise ValueError(f"Expected this run's checkpoint in {self._path}. Received: {error}. Start the run anew.") from error
        for other, value in zip(self._others, state["others"], strict=True):
            other.restore(value)
        return state["epochs"]

    @staticmethod
    def _variables(model: keras.Model) -> list:
        return [*model.variables, *model.optimizer.variables]


class Progress(keras.callbacks.Callback):
    """One bar over the whole training, with the time left."""

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        """Args: epochs: in all; steps: of an epoch; done: epochs before this start."""
        super().__init__()
        self._total, self._steps, self._done = epochs * steps, steps, done
        self._bar: tqdm | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Shows the bar."""
        self._bar = tqdm(
            total=self._total, initial=self._done * self._steps, desc="training", unit="step", leave=False, mininterval=1, disable=None
        )

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves it."""
        self._bar.update()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Clears it."""
        self._bar.close()
