"""Which epoch is kept, when a training stops, and what a checkpoint brings back."""

import keras
import numpy as np
import pytest

from modules.callbacks import Checkpoint, KeepBest, Record


class _Model:
    stop_training = False


def _run(dice, patience, start=None):
    """Feeds one epoch a value; returns the callback, the epochs that were saved and how many were run."""
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


def test_a_checkpoint_brings_back_weights_optimiser_and_random_state(tmp_path):
    images, targets = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
    model, best = _model(4), KeepBest(lambda: None, 3)
    checkpoint = Checkpoint(tmp_path / "last.npz", [best])
    assert checkpoint.restore(model) == 0
    checkpoint.set_model(model)
    model.fit(images, targets, epochs=2, verbose=0)
    best.restore([0.5, 1, 2, False])
    checkpoint.on_epoch_end(1)
    model.fit(images, targets, epochs=2, verbose=0)

    other, other_best = _model(4), KeepBest(lambda: None, 3)
    assert Checkpoint(tmp_path / "last.npz", [other_best]).restore(other) == 2
    assert other_best.state() == [0.5, 1, 2, False]
    other.fit(images, targets, epochs=2, verbose=0)
    for ours, theirs in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path / "last.npz", [])
    model = _model(4)
    model.optimizer.build(model.trainable_variables)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0)
    (tmp_path / "last.npz").write_bytes(damage((tmp_path / "last.npz").read_bytes()))
    with pytest.raises(ValueError, match="Expected this run's checkpoint in .*last.npz"):
        checkpoint.restore(model)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "last.npz", [])
    model = _model(4)
    model.optimizer.build(model.trainable_variables)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0)
    with pytest.raises(ValueError, match="Start the run anew"):
        checkpoint.restore(_model(5))


def test_history_is_a_row_an_epoch(tmp_path):
    (tmp_path / "figures").mkdir()
    record = Record(tmp_path, ("background", "b", "a"), images_per_epoch=10)
    record.set_model(_model(2))
    names = ("accuracy", "dice_a", "dice_b", "iou_a", "iou_b", "loss", "mean_dice")
    logs = {prefix + name: 0.5 for prefix in ("", "val_") for name in names}
    for epoch in range(2):
        record.on_epoch_begin(epoch)
        record.on_test_begin()
        record.on_epoch_end(epoch, logs)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,seconds,images_per_s,learning_rate,loss,accuracy,mean_dice,dice_b,dice_a,iou_b,iou_a,val_loss,")
    assert len(lines) == 3
    assert record.rows[1]["images_per_s"] > 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"loss.png", "accuracy.png", "dice.png"}
