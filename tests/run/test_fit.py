"""Tests of the parts of a training: its rates, seeds, sides and averages, and the step at which it goes on."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import make_spec
from keras import ops

import train
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.hardware import Hardware
from modules.run import fit as fitting
from modules.run.fit import make_trainer
from modules.run.folder import RunFolder
from modules.run.settings import Settings
from modules.run.tracking import Tracker

STEPS = 5


def _prepare(spatial_dims=2, sizes=(4, 4), **settings):
    """A prepared run of no cases, whose network is a single weight and bias."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    return SimpleNamespace(
        settings=Settings("d", **{"loss": "dice_ce", "optimizer": "adam", "schedule": "cosine", "learning_rate": 1e-3, **settings}),
        spec=make_spec(Preprocessing(spatial_dims), {0: 0, 1: 1}),
        plan=SimpleNamespace(
            epochs=settings.get("epochs", 1), steps_per_epoch=STEPS, batch_size=2, window=Window(sizes), network="tiny", sampler=None
        ),
        network=keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs)),
        precision="float32",
        splits={"train": [], "validate": []},
        prepared={"train": [], "validate": []},
    )


def _list_rates(trainer, batches):
    """The learning rate before each of so many batches, and after the last."""
    variables = trainer.trainable_variables
    rates = []
    for _ in range(batches + 1):
        rates.append(float(ops.convert_to_numpy(trainer.optimizer.learning_rate)))
        trainer.optimizer.apply([ops.zeros(variable.shape) for variable in variables], variables)
    return rates


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_ends_with_the_training_however_many_batches_are_accumulated(accumulate):
    rates = _list_rates(make_trainer(_prepare(epochs=4, accumulate=accumulate, learning_rate=0.5)), 4 * STEPS)
    # Half a cosine over twenty batches.
    np.testing.assert_allclose([rates[0], rates[10], rates[20]], [0.5, 0.25, 0], atol=1e-7)


def test_a_warm_up_takes_the_epochs_that_it_says_however_many_batches_are_accumulated():
    rates = _list_rates(make_trainer(_prepare(epochs=5, accumulate=2, learning_rate=0.5, warmup_epochs=2)), 10)
    np.testing.assert_allclose([rates[0], rates[4], rates[9], rates[10]], [0.05, 0.25, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(("optimizer", "penalty", "decay"), [("adam", 0.25, None), ("sgd", 0.25, None), ("adamw", 0.0, 0.25)])
def test_weight_decay_is_a_penalty_or_decoupled(optimizer, penalty, decay):
    trainer = make_trainer(_prepare(optimizer=optimizer, weight_decay=0.25))
    assert (trainer._l2, trainer.optimizer.weight_decay) == (penalty, decay)


@pytest.mark.parametrize(("dims", "sizes", "mirrored"), [(3, (4, 4, 4), True), (3, (1, 4, 4), False), (2, (4, 4), False)])
def test_only_samples_with_a_known_left_and_right_change_sides(dims, sizes, mirrored):
    prepared = _prepare(dims, sizes, augment="light")
    draw = fitting.make_draw_augmentation(prepared.settings, prepared.spec, prepared.plan)
    spacing = (1.0,) * len(Window(sizes).shape)
    drawn = [draw(np.random.default_rng(seed), spacing) for seed in range(20)]
    for parameters in drawn:
        # The first axis of a volume runs from left to right; half of the draws flip it.
        flips = np.linalg.det(parameters["matrix"][:, :-1]) < 0
        assert parameters["mirrored"] in ((0, 1) if mirrored else (0,))
        assert mirrored or parameters["mirrored"] == 0 or flips
    assert any(parameters["mirrored"] for parameters in drawn) == mirrored


def test_the_seed_reaches_the_pipelines():
    assert fitting._list_pipeline_options(_prepare(seed=7))["seed"] == 7


def test_the_averages_are_what_is_validated_and_saved(tmp_path, monkeypatch):
    """An epoch of one step: weights of 3 and averages of 1."""
    seen = {}
    prepared = _prepare(ema=0.5, epochs=1)

    def note(name):
        seen[name] = {float(value) for weight in prepared.network.weights for value in np.ravel(ops.convert_to_numpy(weight))}

    def run_epoch(prepared, trainer, checkpoint, keep_best, callbacks):
        for weight, average in zip(prepared.network.weights, trainer._averages, strict=True):
            weight.assign(ops.full(weight.shape, 3.0))
            average.assign(ops.full(weight.shape, 1.0))
        callbacks.on_test_begin()
        note("validated")
        callbacks.on_test_end()
        keep_best.on_epoch_end(0, {"val_mean_dice": 0.5, "val_loss": 0.5})
        note("trained on")

    monkeypatch.setattr(fitting, "_run_epochs", run_epoch)
    bundle = SimpleNamespace(class_names=("background", "a"), regions=(), save=lambda folder: note("saved"))
    run = RunFolder(tmp_path)
    assert fitting.fit(prepared, bundle, run, Tracker(run)) == 1
    assert seen == {"validated": {1.0}, "saved": {1.0}, "trained on": {3.0}}


@pytest.mark.parametrize(("step", "fits"), [(0, [(0, 0, 3, 5)]), (8, [(8, 1, 2, 2), (10, 2, 3, 5)]), (10, [(10, 2, 3, 5)]), (15, [])])
def test_a_training_goes_on_at_the_very_step(step, fits, monkeypatch):
    """Each fit as the first step of its data, its first epoch, one past its last, and its steps an epoch."""
    checkpoint, done = SimpleNamespace(step=step), []

    def fit(data, *, initial_epoch, epochs, steps_per_epoch, **options):
        done.append((data, initial_epoch, epochs, steps_per_epoch))
        checkpoint.step = epochs * STEPS

    monkeypatch.setattr(fitting, "feed_training", lambda _: nullcontext(lambda first_step, failures: first_step))
    monkeypatch.setattr(fitting, "make_validation_data", lambda *_: None)
    prepared = SimpleNamespace(plan=SimpleNamespace(steps_per_epoch=STEPS, epochs=3))
    fitting._run_epochs(prepared, SimpleNamespace(fit=fit), checkpoint, SimpleNamespace(finished=False), [])
    assert done == fits


GPU = Hardware("gpu", "a GPU", 16, 1 << 40, 1500)


@pytest.mark.parametrize(
    ("wish", "hardware", "names", "backend", "voxels", "expected"),
    [
        ("auto", Hardware(memory_bytes=1 << 40), 1, "jax", 100, None),
        ("yes", Hardware(memory_bytes=1 << 40), 1, "tensorflow", 100, "table"),
        ("no", GPU, 1, "jax", 100, None),
        ("auto", GPU, 1, "jax", 100, "table"),
        ("auto", GPU, 1, "torch", 101, "streamed, as the cases take 0.0 GB, more than 20% of the device's memory"),
        ("auto", GPU, 2, "jax", 100, "streamed, as 2 devices share each batch"),
        ("auto", GPU, 1, "tensorflow", 100, "streamed, as TensorFlow would copy them to the GPU in each step"),
        ("yes", GPU, 2, "jax", 100, "Expected --resident no or auto, as 2 devices share each batch. Received: yes. Give --resident auto."),
    ],
)
def test_cases_lie_on_the_device_where_they_can(wish, hardware, names, backend, voxels, expected, monkeypatch, caplog):
    caplog.set_level("INFO", "mri")
    # A voxel takes three bytes.
    cases = [SimpleNamespace(voxels=voxels)]
    spec, settings = SimpleNamespace(channels=("T1",)), SimpleNamespace(resident=wish)
    prepared = SimpleNamespace(settings=settings, prepared={"train": cases}, spec=spec, devices=["gpu"] * names)
    monkeypatch.setattr(fitting, "describe_hardware", lambda: hardware)
    monkeypatch.setattr(fitting.devices, "name_backend", lambda: backend)
    monkeypatch.setattr(fitting, "read_table", lambda cases, channels: {"table": np.zeros(voxels)})
    if wish == "yes" and expected != "table":
        with pytest.raises(ValueError, match=expected):
            fitting.put_on_device(prepared)
        return
    table = fitting.put_on_device(prepared)
    assert (table is not None) == (expected == "table")
    lines = {None: [], "table": ["training cases: 0.00 GB in the device's memory"]}.get(expected, [f"training cases: {expected}"])
    assert caplog.messages == lines


@pytest.mark.parametrize(("gpu", "cores", "number"), [(False, 16, None), (True, 3, None), (True, 4, 2), (True, 16, 14), (True, 64, 16)])
def test_processes_read_only_beside_a_gpu(gpu, cores, number, monkeypatch):
    monkeypatch.setattr(fitting.devices, "has_gpu", lambda: gpu)
    monkeypatch.setattr(fitting, "count_cores", lambda: cores)
    monkeypatch.setattr(fitting, "ReaderPool", lambda number: number)
    assert fitting.start_readers() == number


def test_a_run_verifies_with_its_cases_on_the_device(runs, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(runs["oasis"], run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["resident"] = "yes"
    (run / "run.json").write_text(json.dumps(record))
    assert train.main(["--verify", str(run)]) == 0
    assert "in the device's memory" in caplog.text
