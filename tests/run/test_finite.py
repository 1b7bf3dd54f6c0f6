"""A loss that is not finite ends a training: the error names the step, and nothing is kept."""

import logging
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from modules.run.callbacks import Checkpoint, KeepBest
from modules.run.finite import LossError, LossGuard, StepCallbacks

NAN, INFINITE = float("nan"), float("inf")


def _model(optimizer="sgd"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer, "mse")
    return model


def _guard(done=0, optimizer="sgd"):
    guard = LossGuard(SimpleNamespace(step=done), 10, "runs/a")
    guard.set_model(_model(optimizer))
    guard.on_epoch_begin(0)
    return guard


@pytest.mark.parametrize(("done", "batch", "step", "epoch"), [(0, 0, 1, 1), (0, 9, 10, 1), (20, 3, 24, 3), (25, 0, 26, 3)])
@pytest.mark.parametrize("loss", [NAN, INFINITE])
def test_the_error_names_the_first_such_step(done, batch, step, epoch, loss):
    guard = _guard(done)
    guard.judge(batch - 1, 0.5)
    with pytest.raises(LossError, match=rf"Expected a finite loss. Received: {loss} since step {step} \(epoch {epoch}\) in runs/a. Start"):
        guard.judge(batch, loss)


def test_a_real_training_ends_at_the_step_after_the_one_that_broke_it():
    model = _model()
    images = np.ones((12, 1), "float32")
    # The loss of batch 3 of 4 is the first that is not finite.
    images[6:9] = 1e30
    guard = LossGuard(SimpleNamespace(step=4), 4, "runs/a")
    with pytest.raises(LossError, match=r"since step 7 \(epoch 2\)"):
        model.fit(images, np.zeros((12, 1)), batch_size=3, shuffle=False, verbose=0, callbacks=StepCallbacks([guard], model, guard.judge))


def test_losses_that_wait_at_the_end_of_an_epoch_are_read_before_the_validation():
    model, seen = _model(), []
    images, targets = np.ones((3, 1)), np.zeros((3, 1))
    callbacks = StepCallbacks([], model, lambda batch, loss: seen.append(batch))
    model.fit(images, targets, batch_size=1, epochs=2, validation_data=(images, targets), verbose=0, callbacks=callbacks)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_loss_scaling_may_skip_steps_but_the_validation_must_be_finite(caplog):
    caplog.set_level(logging.WARNING, "mri")
    guard = _guard(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    guard.judge(4, NAN)
    guard.on_epoch_end(0, {"val_loss": 0.5})
    assert "the loss is not finite since step 5" in caplog.text
    guard.on_epoch_begin(1)
    guard.on_epoch_end(1, {"val_loss": 0.5})
    guard.judge(2, NAN)
    with pytest.raises(LossError, match="since step 3"):
        guard.on_epoch_end(1, {"val_loss": NAN})


def test_a_validation_that_is_not_finite_ends_the_training_only_with_broken_weights(caplog):
    caplog.set_level(logging.WARNING, "mri")
    guard = _guard(done=10)
    guard.on_epoch_end(0, {"val_loss": NAN})
    assert "epoch 1: the validation loss is nan, although every weight is finite; this epoch is not kept" in caplog.text
    guard.model.set_weights([np.full((1, 1), NAN), np.zeros(1)])
    with pytest.raises(LossError, match=r"nan in the validation after step 10 \(epoch 1\)"):
        guard.on_epoch_end(0, {"val_loss": NAN})


def test_weights_that_are_not_finite_end_a_training_although_its_losses_are_finite():
    guard = _guard(done=10)
    guard.on_epoch_end(0, {"val_loss": 1e15})
    guard.model.set_weights([np.full((1, 1), INFINITE), np.zeros(1)])
    with pytest.raises(LossError, match=r"Received: weights that are not finite after step 10 \(epoch 1\) in runs/a"):
        guard.on_epoch_end(0, {"val_loss": 1e15})


def _keep_best(logs, **options):
    saved = []
    callback = KeepBest(lambda: saved.append(callback.best_epoch), 0, **options)
    callback.set_model(SimpleNamespace(stop_training=False))
    for epoch, row in enumerate(logs):
        callback.on_epoch_end(epoch, row)
    return saved


def test_a_model_whose_validation_loss_is_not_finite_is_never_saved():
    rows = [{"val_mean_dice": 0.0, "val_loss": NAN}, {"val_mean_dice": 0.1, "val_loss": 1.0}, {"val_mean_dice": 0.9, "val_loss": INFINITE}]
    assert _keep_best(rows) == [2]
    assert _keep_best([row | {"val_dice_a": 1.0} for row in rows[2:]], stop_at_dice=0.5) == []


def test_the_least_validation_loss_decides_where_no_dice_can():
    rows = [{"val_mean_dice": NAN, "val_loss": loss} for loss in (2.0, 3.0, 1.5, 1.5, NAN)]
    assert _keep_best(rows, by_loss=True) == [1, 3]


def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "mri")
    model = _model()
    model.optimizer.build(model.trainable_variables)
    checkpoint = Checkpoint(tmp_path, [], 4)
    checkpoint.set_model(model)
    checkpoint.step = 4
    checkpoint.on_epoch_end(0)
    model.set_weights([np.full((1, 1), INFINITE), np.zeros(1)])
    checkpoint.step = 8
    checkpoint.on_epoch_end(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000004.npz"]
    assert "step 8: some weights are not finite" in caplog.text
    assert checkpoint.restore(model) == 4
    assert np.isfinite(model.get_weights()[0]).all()
