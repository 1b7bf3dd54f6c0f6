"""Callbacks of a training: the history, the best model, the checkpoints, the proof and the progress bar."""

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from modules import reports
from modules.data.files import TEMPORARY, replace_file
from modules.run.costs import format_time
from modules.run.folder import RunFolder

log = logging.getLogger("mri")


class HistoryWriter(keras.callbacks.Callback):
    """A callback that keeps a row an epoch, and rewrites `history.csv` and the curves after each epoch.

    A row holds `epoch` (from 1), `seconds`, `images_per_s` of training alone, and `learning_rate`. The loss and every metric of training
    and of validation (`val_...`) follow, with classes in their own order.
    """

    def __init__(
        self,
        run: RunFolder,
        class_names: Sequence[str],
        images_per_step: int,
        *,
        write: bool = True,
        keeps_last: bool = False,
        on_row: Callable[[dict[str, float]], None] = lambda row: None,
    ) -> None:
        """Starts with no rows.

        Args:
            run: The run folder of `history.csv` and the curves.
            class_names: Names of all classes, the background first.
            images_per_step: Images that one step trains on.
            write: Whether to write files; only one of several hosts does.
            keeps_last: Whether the last epoch is kept and not the best.
            on_row: A function called with each new row.
        """
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._run = run
        # Keras sorts its logs by the alphabet.
        names = ["loss", "accuracy", "mean_dice", *(f"{score}_{name}" for score in ("dice", "iou") for name in class_names[1:])]
        self._columns = [*names, *(f"val_{name}" for name in names)]
        self._images_per_step = images_per_step
        self._write = write
        self._keeps_last = keeps_last
        self._on_row = on_row
        self._steps = 0
        # Seconds that an interrupted epoch had taken, and the times at which this part of it and its validation began.
        self._seconds_before = self._start = self._validation_start = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._start = self._validation_start = time.perf_counter()
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts the steps."""
        self._steps = batch + 1

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops the clock of the training, because validation begins."""
        self._validation_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the row and writes everything."""
        now = time.perf_counter()
        trained = (self._validation_start if self._validation_start > self._start else now) - self._start
        row = {
            "epoch": epoch + 1,
            "seconds": round(self._seconds_before + now - self._start, 3),
            "images_per_s": round(self._images_per_step * self._steps / trained, 2),
            "learning_rate": float(self.model.optimizer.learning_rate),
        }
        row |= {name: float(logs[name]) for name in self._columns}
        self.rows.append(row)
        self._seconds_before = self._start = 0.0
        if self._write:
            self.write()
        self._on_row(row)
        classes = [name.removeprefix("val_dice_") for name in self._columns if name.startswith("val_dice_")]
        log.info(
            "epoch %3d  loss %.4f  val_loss %.4f  accuracy %.4f  mean Dice %.4f  validation Dice/IoU  %s  (%.0f s)",
            epoch + 1, row["loss"], row["val_loss"], row["val_accuracy"], row["val_mean_dice"],
            "  ".join(f"{name} {row[f'val_dice_{name}']:.3f}/{row[f'val_iou_{name}']:.3f}" for name in classes), row["seconds"],
        )  # fmt: skip

    def write(self) -> None:
        """Writes the table and the curves."""
        self.write_table()
        reports.plot_history(self.rows, self._run.figures, keeps_last=self._keeps_last)

    def write_table(self) -> None:
        """Writes the table, which has no rows before the first epoch has ended."""
        if self._write:
            with replace_file(self._run.history) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["epoch", "seconds", "images_per_s", "learning_rate", *self._columns])
                writer.writeheader()
                writer.writerows(self.rows)

    def state(self) -> Any:
        """Returns the values that a checkpoint must hold."""
        return [self.rows, self._seconds_before + (time.perf_counter() - self._start if self._start else 0.0)]

    def restore(self, state: Any) -> None:
        """Restores the values that `state` returned."""
        self.rows, self._seconds_before = state


class KeepBest(keras.callbacks.Callback):
    """A callback that saves the best model so far, and stops the training early.

    The best has the highest mean foreground Dice on the validation set. Where no validation label holds foreground, it has the least
    validation loss. With `last` each epoch counts as better than the one before.
    """

    def __init__(
        self, save: Callable[[], None], patience: int, stop_at_dice: float = 0.0, *, by_loss: bool = False, last: bool = False
    ) -> None:
        """Starts with no best model.

        Args:
            save: A function that saves the model as it is now.
            patience: Epochs without a better model before the training stops; 0 for never.
            stop_at_dice: The validation Dice at which the training stops once every class has it; 0 for never.
            by_loss: Whether the validation loss decides.
            last: Whether the last epoch is kept, whatever the validation says.
        """
        super().__init__()
        self._save = save
        self._last = last
        self._patience = patience
        self._stop_at_dice = stop_at_dice
        self._by_loss = by_loss
        self._reached = False
        self.best = -math.inf
        self.best_epoch = 0
        self._last_epoch = 0

    @property
    def finished(self) -> bool:
        """True if patience has run out or every class is good enough."""
        return self._reached or 0 < self._patience <= self._last_epoch - self.best_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares, saves and stops. A Dice of NaN counts as the worst. A model whose validation loss is not finite is never saved."""
        value = -float(logs["val_loss"]) if self._by_loss else float(logs["val_mean_dice"])
        value = -1.0 if math.isnan(value) else value
        self._last_epoch = epoch + 1
        finite = math.isfinite(float(logs.get("val_loss", 0.0)))
        if finite and (self._last or value > self.best):
            self.best, self.best_epoch = value, epoch + 1
            self._save()
        # A class that the validation set lacks is NaN and never good enough, because nobody measured it.
        classes = [dice for key, dice in logs.items() if key.startswith("val_dice_")]
        if self._stop_at_dice > 0 and finite and all(dice >= self._stop_at_dice for dice in classes):
            self._reached = True
            if self.best_epoch != epoch + 1:
                # We keep this model although another had a better mean, because this one is what the user asked for.
                self.best, self.best_epoch = value, epoch + 1
                self._save()
            log.info("stopped: every class has a validation Dice of %.4f or more", self._stop_at_dice)
            self.model.stop_training = True
        elif self.finished:
            best = f"loss than {-self.best:.4f}" if self._by_loss else f"Dice than {self.best:.4f}"
            log.info("stopped: no better validation %s (epoch %d) for %d epochs", best, self.best_epoch, self._patience)
            self.model.stop_training = True

    def state(self) -> Any:
        """Returns the values that a checkpoint must hold."""
        return [self.best, self.best_epoch, self._last_epoch, self._reached]

    def restore(self, state: Any) -> None:
        """Restores the values that `state` returned."""
        self.best, self.best_epoch, self._last_epoch, self._reached = state


class Checkpoint(keras.callbacks.Callback):
    """A callback that writes all that a training needs to go on from the very step at which it stopped.

    It writes after each epoch, at intervals of some minutes, and when asked to stop.

    A file holds every variable of the model, the optimiser and the running metrics, and the states of the other callbacks. The states of
    the dropout's random numbers are among the variables. The order of the samples and their augmentation are functions of seed and step,
    so a file need not hold them. The last two files are kept, each replaced whole.
    """

    def __init__(
        self,
        folder: Path,
        others: Sequence[Any],
        steps: int,
        *,
        minutes: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
        write: bool = True,
    ) -> None:
        """Starts at step 0. It must be the last of the callbacks that it saves.

        Args:
            folder: The folder of the files.
            others: Callbacks with `state` and `restore`.
            steps: Steps of an epoch.
            minutes: The longest time between two checkpoints, but for one step.
            stop: A function that says whether to write a checkpoint now and end the training with KeyboardInterrupt.
            write: Whether to write at all; only one of several hosts does.
        """
        super().__init__()
        self.step = 0
        self._folder = folder
        self._others = others
        self._steps = steps
        self._seconds = 60 * minutes
        self._stop = stop
        self._write = write
        self._running_metrics: list[np.ndarray] = []
        self._first_step = 0
        self._last_save = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restores the running metrics of a resumed epoch, which Keras has just reset."""
        self._first_step = self.step
        if self._running_metrics:
            for variable, array in zip(self.model.metrics_variables, self._running_metrics, strict=True):
                variable.assign(array)
            self._running_metrics = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Writes a checkpoint if it is time. After the epoch's last step `on_epoch_end` writes it instead."""
        self.step = self._first_step + batch + 1
        stop = self._stop()
        if self.step % self._steps and (stop or time.monotonic() - self._last_save > self._seconds):
            self._save()
            if stop:
                raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes a checkpoint."""
        self._save()
        if self._stop():
            raise KeyboardInterrupt

    def restore(self, model: keras.Model) -> int:
        """Restores model, optimiser and callbacks from the newest checkpoint that is whole.

        Args:
            model: A compiled model of the same architecture.

        Returns:
            The number of steps done; 0 where there is no checkpoint yet.

        Raises:
            ValueError: If no file is whole, or they belong to another model.
        """
        for leftover in self._folder.glob(f"{TEMPORARY}*") if self._write else ():
            leftover.unlink()
        model.optimizer.build(model.trainable_variables)
        variables = _list_variables(model)
        files = sorted(self._folder.glob("step_*.npz"), reverse=True)
        for path in files:
            try:
                with np.load(path, allow_pickle=False) as file:
                    state = json.loads(str(file["state"]))
                    step, others = int(state["step"]), state["others"]
                    arrays = [file[f"variable_{index}"] for index in range(len(file.files) - 1)]
                if not all(np.isfinite(array).all() for array in arrays[: len(model.variables)]):
                    raise ValueError("weights that are not finite")
            except Exception as error:  # A damaged zip file fails in many ways.
                log.warning("checkpoint %s is damaged (%s)%s", path, error, "; going on from the one before" if path != files[-1] else "")
                continue
            shapes = [tuple(variable.shape) for variable in variables]
            if [array.shape for array in arrays] != shapes:
                raise ValueError(
                    f"Expected a checkpoint of this model, {len(shapes)} arrays. Received: {path}, another's. Start the run anew."
                )
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
            for other, value in zip(self._others, others, strict=True):
                other.restore(value)
            self.step = step
            if self.step % self._steps:
                self._running_metrics = arrays[len(arrays) - len(model.metrics_variables) :]
            return self.step
        if files:
            raise ValueError(f"Expected a whole checkpoint in {self._folder}. Received: {len(files)} damaged ones. Start the run anew.")
        return 0

    def _save(self) -> None:
        if self._write:
            variables = _list_variables(self.model)
            values = [keras.ops.convert_to_numpy(variable) for variable in variables]
            self._last_save = time.monotonic()
            # The loss of the last two steps is not known yet. Nobody could go on from weights of NaN.
            if not all(np.isfinite(value).all() for value in values[: len(self.model.variables)]):
                log.warning("step %d: some weights are not finite, so no checkpoint is written", self.step)
                return
            arrays = {f"variable_{index}": value for index, value in enumerate(values)}
            arrays["state"] = np.array(json.dumps({"step": self.step, "others": [other.state() for other in self._others]}))
            # With nine digits, alphabetical order is order of time.
            with replace_file(self._folder / f"step_{self.step:09d}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            for old in sorted(self._folder.glob("step_*.npz"))[:-2]:
                old.unlink()
        self._last_save = time.monotonic()


def _list_variables(model: keras.Model) -> list:
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


class FirstSteps(keras.callbacks.Callback):
    """A callback that calls a function once, after a number of steps. A repetition of the run must then have the same weights."""

    def __init__(self, number: int, done: int, on_reached: Callable[[keras.Model], None]) -> None:
        """Starts to count.

        Args:
            number: The number of steps.
            done: Steps done before this start.
            on_reached: A function called with the model when `number` steps are done.
        """
        super().__init__()
        self._number = number
        self._done = done
        self._on_reached = on_reached

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts the steps."""
        self._done += 1
        if self._done == self._number:
            self._on_reached(self.model)


class Progress(keras.callbacks.Callback):
    """A progress bar over the whole training, with the time left; plain lines where there is no terminal."""

    def __init__(self, total: int, checkpoint: Checkpoint, *, line_seconds: float = 60.0) -> None:
        """Takes the steps of the training, and the checkpoint, which knows how many are done.

        Args:
            total: Steps of the whole training.
            checkpoint: The callback that counts the steps.
            line_seconds: Least seconds between two plain lines.
        """
        super().__init__()
        self._total, self._checkpoint, self._line_seconds = total, checkpoint, line_seconds
        self._bar: tqdm | None = None
        # Step and time of the first step that is known to be compiled, and the time of the last line.
        self._first: tuple[int, float] | None = None
        self._last_line = time.monotonic()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Shows the bar."""
        done = self._checkpoint.step
        self._bar = tqdm(total=self._total, initial=done, desc="training", unit="step", leave=False, mininterval=1, disable=None)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the bar, or writes a line where it is time for one."""
        if self._bar is None or not self._bar.disable:
            if self._bar is not None:
                self._bar.update()
            return
        step, now = self._checkpoint.step, time.monotonic()
        if self._first is None:
            # The first step waits for the compilation, so the clock begins at its end.
            self._first = step, now
        elif now - self._last_line >= self._line_seconds and step > self._first[0]:
            left = (now - self._first[1]) / (step - self._first[0]) * (self._total - step)
            log.info("step %d of %d, about %s left", step, self._total, format_time(left))
            self._last_line = now

    def on_train_end(self, logs: dict | None = None) -> None:
        """Clears the bar."""
        if self._bar is not None:
            self._bar.close()
