"""The callbacks of a training: the kept epoch, the early stop, and the restored checkpoint."""

import io
import logging
import typing
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from modules.run import callbacks
from modules.run.callbacks import Checkpoint, FirstSteps, HistoryWriter, KeepBest, Progress
from modules.run.finite import StepCallbacks
from modules.run.folder import RunFolder


class _Model:
    stop_training = False


def _run(dice, patience, start=None):
    """Gives each epoch one of the values; returns the callback, the saved epochs and the number of epochs run."""
    saved = []
    callback = KeepBest(lambda: saved.append(callback.best_epoch), patience)
    if start:
        callback.restore(start)
    callback.set_model(_Model())
    for epoch, value in enumerate(dice):
        callback.on_epoch_end(epoch, {"val_mean_dice": value})
        if callback.model.stop_training:
            break
    return callback, saved, epoch + 1


def test_the_first_of_equals_is_kept_and_nan_is_worst():
    callback, saved, epochs = _run([float("nan"), 0.2, 0.5, 0.5, 0.4], patience=0)
    assert saved == [1, 2, 3]
    assert (callback.best, callback.best_epoch, epochs) == (0.5, 3, 5)
    assert not callback.finished


def test_the_last_finite_epoch_is_kept_where_the_last_is_asked_for():
    saved = []
    callback = KeepBest(lambda: saved.append(callback.best_epoch), 0, last=True)
    callback.set_model(_Model())
    for epoch, (value, loss) in enumerate([(0.5, 0.1), (0.9, 0.1), (0.3, 0.1), (float("nan"), float("nan"))]):
        callback.on_epoch_end(epoch, {"val_mean_dice": value, "val_loss": loss})
    assert (saved, callback.best, callback.best_epoch) == ([1, 2, 3], 0.3, 3)


def test_patience_counts_from_the_best_epoch():
    callback, _, epochs = _run([0.1, 0.3, 0.2, 0.2, 0.9], patience=2)
    assert (callback.best_epoch, epochs) == (2, 4)
    assert callback.finished


def test_a_restored_callback_goes_on_where_it_was():
    first, _, _ = _run([0.1, 0.3, 0.2], patience=0)
    second = KeepBest(lambda: None, 1)
    second.restore(first.state())
    assert (second.best, second.best_epoch, second.finished) == (0.3, 2, True)


def test_stops_once_every_class_is_good_enough_and_keeps_that_model():
    epochs = [(0.9, 0.65), (0.72, 0.71), (0.99, 0.99)]
    saved = []
    callback = KeepBest(lambda: saved.append(callback.best_epoch), 0, stop_at_dice=0.7)
    callback.set_model(_Model())
    for epoch, (one, other) in enumerate(epochs[:2]):
        assert not callback.finished
        callback.on_epoch_end(epoch, {"val_mean_dice": (one + other) / 2, "val_dice_a": one, "val_dice_b": other})
    # The mean of the first epoch was better, but the second is what was asked for.
    assert (saved, callback.finished, callback.model.stop_training) == ([1, 2], True, True)
    resumed = KeepBest(lambda: None, 0, stop_at_dice=0.7)
    resumed.restore(callback.state())
    assert resumed.finished


def test_a_class_that_validation_lacks_is_never_good_enough():
    callback = KeepBest(lambda: None, 0, stop_at_dice=0.7)
    callback.set_model(_Model())
    callback.on_epoch_end(0, {"val_mean_dice": 0.9, "val_dice_a": 0.9, "val_dice_b": float("nan")})
    assert not callback.finished


def _model(units):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile(optimizer="adam", loss="mse")
    return model


def _checkpoint(folder, model, others=(), steps=4, **options):
    model.optimizer.build(model.trainable_variables)
    checkpoint = Checkpoint(folder, list(others), steps, **options)
    checkpoint.set_model(model)
    return checkpoint


def test_a_checkpoint_brings_back_weights_optimiser_and_random_state(tmp_path):
    images, targets = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
    model, best = _model(4), KeepBest(lambda: None, 3)
    checkpoint = _checkpoint(tmp_path, model, [best])
    assert checkpoint.restore(model) == 0
    model.fit(images, targets, epochs=2, verbose=0)
    best.restore([0.5, 1, 2, False])
    checkpoint.step = 8
    checkpoint.on_epoch_end(1)
    model.fit(images, targets, epochs=2, verbose=0)

    other, other_best = _model(4), KeepBest(lambda: None, 3)
    assert _checkpoint(tmp_path, other, [other_best]).restore(other) == 8
    assert other_best.state() == [0.5, 1, 2, False]
    other.fit(images, targets, epochs=2, verbose=0)
    for ours, theirs in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_the_last_two_are_kept_and_the_metrics_of_a_begun_epoch_go_on(tmp_path):
    model = _model(4)
    checkpoint = _checkpoint(tmp_path, model, minutes=0)
    checkpoint.on_epoch_begin(0)
    for batch in range(4):
        for variable in model.metrics_variables:
            variable.assign(np.full(variable.shape, batch + 1.0))
        checkpoint.on_train_batch_end(batch)
    # The end of an epoch writes a checkpoint of its own, so its last step writes none.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000002.npz", "step_000000003.npz"]
    other = _model(4)
    restored = _checkpoint(tmp_path, other)
    assert restored.restore(other) == 3
    other.reset_metrics()
    restored.on_epoch_begin(0)
    assert other.metrics_variables
    assert all(float(variable) == 3 for variable in other.metrics_variables)
    other.reset_metrics()
    restored.on_epoch_begin(1)
    assert all(float(variable) == 0 for variable in other.metrics_variables)


def test_a_checkpoint_waits_for_its_time_and_a_stop_does_not(tmp_path):
    stops = iter([False, False, True])
    checkpoint = _checkpoint(tmp_path, _model(4), minutes=60, stop=lambda: next(stops))
    checkpoint.on_epoch_begin(0)
    checkpoint.on_train_batch_end(0)
    checkpoint.on_train_batch_end(1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        checkpoint.on_train_batch_end(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000003.npz"]
    asked = _checkpoint(tmp_path / "b", _model(4), stop=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        asked.on_epoch_end(0)
    assert list((tmp_path / "b").iterdir())
    silent = _checkpoint(tmp_path / "c", _model(4), write=False)
    silent.on_epoch_end(0)
    assert not (tmp_path / "c").exists()


def _flip_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _edit(name, value):
    """Gives one array of a checkpoint another value."""

    def edit(data):
        with np.load(io.BytesIO(data)) as file:
            arrays = dict(file) | {name: value}
        np.savez(written := io.BytesIO(), **arrays)
        return written.getvalue()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"text",
        _flip_byte,
        _edit("state", np.array('{"step": 8}')),
        _edit("variable_0", np.full((3, 4), np.nan, np.float32)),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    model = _model(4)
    checkpoint = _checkpoint(tmp_path, model)
    for step in (4, 8):
        checkpoint.step = step
        checkpoint.on_epoch_end(0)
    (tmp_path / ".mri-part-step_000000012-left.npz").write_bytes(b"half")
    newest = tmp_path / "step_000000008.npz"
    newest.write_bytes(damage(newest.read_bytes()))
    assert _checkpoint(tmp_path, model).restore(model) == 4
    assert "step_000000008.npz is damaged" in caplog.text
    assert "going on from the one before" in caplog.text
    assert not list(tmp_path.glob(".step*"))
    oldest = tmp_path / "step_000000004.npz"
    oldest.write_bytes(damage(oldest.read_bytes()))
    with pytest.raises(ValueError, match="Expected a whole checkpoint in .*Received: 2 damaged ones. Start the run anew"):
        checkpoint.restore(model)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _checkpoint(tmp_path, _model(4)).on_epoch_end(0)
    other = Checkpoint(tmp_path, [], 4)
    with pytest.raises(ValueError, match="Expected a checkpoint of this model"):
        other.restore(_model(5))


def test_the_first_steps_are_called_back_once_whatever_was_done_before():
    for done, batches, expected in ((0, 3, [3]), (2, 3, [3]), (3, 3, []), (5, 3, [])):
        calls, callback = [], None
        callback = FirstSteps(3, done, lambda model, calls=calls: calls.append(model))
        callback.set_model("the model")
        for batch in range(batches):
            callback.on_train_batch_end(batch)
        assert calls == ["the model"] * len(expected)


LOGGED = ("accuracy", "dice_a", "iou_a", "loss", "mean_dice")


def test_history_is_a_row_an_epoch(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "figures").mkdir()
    record = HistoryWriter(RunFolder(tmp_path), ("background", "b", "a"), images_per_step=10)
    record.set_model(_model(2))
    names = ("accuracy", "dice_a", "dice_b", "iou_a", "iou_b", "loss", "mean_dice")
    logs = {prefix + name: 0.5 for prefix in ("", "val_") for name in names}
    logs |= {"val_dice_b": 0.75, "val_iou_b": 0.6}
    for epoch in range(2):
        record.on_epoch_begin(epoch)
        record.on_train_batch_end(0)
        record.on_test_begin()
        record.on_epoch_end(epoch, logs)
    assert "mean Dice 0.5000  validation Dice/IoU  b 0.750/0.600  a 0.500/0.500  (" in caplog.messages[1]
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,seconds,images_per_s,learning_rate,loss,accuracy,mean_dice,dice_b,dice_a,iou_b,iou_a,val_loss,")
    assert len(lines) == 3
    assert record.rows[1]["images_per_s"] > 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"loss.png", "accuracy.png", "dice.png"}


def test_an_interrupted_epoch_keeps_its_seconds_and_silent_hosts_write_nothing(tmp_path):
    rows = []
    record = HistoryWriter(RunFolder(tmp_path), ("background", "a"), images_per_step=4, write=False, on_row=rows.append)
    record.set_model(_model(2))
    record.restore([[], 100.0])
    record.on_epoch_begin(0)
    record.on_train_batch_end(1)
    assert record.state()[1] >= 100
    record.on_test_begin()
    record.on_epoch_end(0, dict.fromkeys([prefix + name for prefix in ("", "val_") for name in LOGGED], 0.5))
    assert rows == record.rows
    assert 100 <= rows[0]["seconds"] < 160
    assert record.state()[1] == 0
    assert not list(tmp_path.iterdir())


def test_steps_are_passed_on_without_reading_their_losses_until_two_later():
    class Loss:
        read = 0

        def __array__(self, *_, **__):
            Loss.read += 1
            return np.ones((), np.float32)

    class Seen(keras.callbacks.Callback):
        steps: typing.ClassVar = []

        def on_train_batch_end(self, batch, logs=None):
            self.steps.append((batch, logs, Loss.read))

    inputs = keras.Input((1,))
    callbacks = StepCallbacks([Seen()], keras.Model(inputs, keras.layers.Dense(1)(inputs)))
    for step in range(5):
        callbacks.on_train_batch_end(step, {"loss": Loss(), "other": None})
    assert Seen.steps == [(0, None, 0), (1, None, 0), (2, None, 1), (3, None, 2), (4, None, 3)]


def test_what_an_epoch_came_to_is_told_as_ever():
    class Seen(keras.callbacks.Callback):
        epochs: typing.ClassVar = []

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(logs)

    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(inputs))
    model.compile("sgd", "mse")
    data, zeros = np.ones((4, 1)), np.zeros((4, 1))
    model.fit(data, zeros, batch_size=1, epochs=2, validation_data=(data, zeros), verbose=0, callbacks=StepCallbacks([Seen()], model))
    assert len(Seen.epochs) == 2
    # A weight and a bias each fall by 0.02 times the error, in each of four steps.
    assert Seen.epochs[0]["loss"] == pytest.approx(np.mean([0.96 ** (2 * step) for step in range(4)]), rel=1e-5)
    assert Seen.epochs[0]["val_loss"] == pytest.approx(0.96**8, rel=1e-5)


def test_plain_lines_tell_the_time_left_where_there_is_no_terminal(monkeypatch, caplog):
    now, checkpoint = [0.0], SimpleNamespace(step=0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", "mri")
    progress = Progress(10, checkpoint)
    progress.on_train_begin()
    # The first step waits for the compilation: the other nine are judged by those after it.
    for step, seconds in ((1, 100), (2, 130), (3, 150), (4, 200), (5, 201)):
        checkpoint.step, now[0] = step, float(seconds)
        progress.on_train_batch_end(0)
    progress.on_train_end()
    # 30 s a step for 8 steps, then 100 s for 3 steps and 6 more. A minute lies between two lines.
    assert caplog.messages == ["step 2 of 10, about 4.0 min left", "step 4 of 10, about 3.3 min left"]
