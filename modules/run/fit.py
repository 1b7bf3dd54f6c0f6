"""Fits the network of a prepared run: makes the trainer, its data and its callbacks, and trains."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modules import devices, networks
from modules.data.cache import PreparedCase
from modules.data.draws import AUGMENTATIONS, Drawer
from modules.data.pipeline import MOST_READERS, DrawAugmentation, make_pipeline
from modules.data.readers import ReaderPool
from modules.data.regions import IGNORE, list_parts
from modules.data.resident import choose_table, find_bases, read_table
from modules.data.spec import DatasetSpec
from modules.hardware import count_cores, describe_hardware
from modules.predict.bundle import ModelBundle, add_provenance
from modules.run.classes import describe_classes, describe_ignored_cases, find_classes
from modules.run.folder import RunFolder, write_json
from modules.run.plan import Plan
from modules.run.prepared import PreparedRun, make_loss
from modules.run.proof import hash_weights
from modules.run.settings import Settings
from modules.run.signals import StopRequest
from modules.run.tracking import Tracker

if TYPE_CHECKING:
    from modules.run.averaging import LastAverage
    from modules.run.callbacks import Checkpoint, KeepBest
    from modules.run.finite import StepCallbacks

# `--verify` trains this many steps again.
PROOF_STEPS = 10

log = logging.getLogger("mri")


def fit(prepared: PreparedRun, bundle: ModelBundle, run: RunFolder, tracker: Tracker) -> int:
    """Trains the network from the run's last checkpoint, or from the start, and saves the best bundle.

    Args:
        prepared: The prepared run.
        bundle: A bundle whose model shares its weights with the network.
        run: The folder for bundle, history, checkpoints and proof.
        tracker: The tracker that logs each epoch.

    Returns:
        The epoch of the best bundle, from 1.

    Raises:
        ValueError: If the loss is not finite, or the cache is gone or damaged.
    """
    from modules.model.trainer import UseAverages
    from modules.run.callbacks import Checkpoint, FirstSteps, HistoryWriter, KeepBest, Progress
    from modules.run.finite import LossError, LossGuard, StepCallbacks

    settings, plan = prepared.settings, prepared.plan
    steps, writes = plan.steps_per_epoch, devices.is_main()
    trainer = make_trainer(prepared)

    def save_best() -> None:
        # All hosts swap the averages in. One host saves them.
        with trainer.averaged():
            if writes:
                bundle.save(run.bundle)

    def write_proof(model) -> None:
        if writes:
            write_json(run.proof, {"steps": proof_steps, "weights_sha256": hash_weights(model.network)})

    keeps_last = settings.keep == "last"
    history = HistoryWriter(run, bundle.class_names, plan.batch_size, write=writes, keeps_last=keeps_last, on_row=tracker.log_row)
    judged = find_classes(prepared.prepared["validate"], prepared.spec.regions) - {0}
    keep_best = KeepBest(save_best, settings.patience or 0, settings.stop_at_dice, by_loss=not judged, last=keeps_last)
    proof_steps = min(PROOF_STEPS, steps)
    with StopRequest() as stop:
        stops = devices.agree(lambda: stop.made)
        checkpoint = Checkpoint(run.checkpoint, [history, keep_best], steps, minutes=settings.checkpoint_minutes, stop=stops, write=writes)
        done = checkpoint.restore(trainer)
        first = f"epoch {done // steps + 1}" + (f", step {done % steps + 1}" if done % steps else "")
        for line in describe_ignored_cases(prepared.splits, prepared.prepared):
            log.warning("%s", line)
        judges = (prepared.prepared[split] for split in ("train", "validate"))
        told = {"regions": prepared.spec.regions, "stop_at_dice": settings.stop_at_dice, "keeps_last": keeps_last}
        for line, level in describe_classes(*judges, bundle.class_names, **told):
            log.log(level, "%s", line)
        log.info("%s: %s weights, %d steps an epoch, begins at %s", plan.network, f"{prepared.network.count_params():,}", steps, first)
        proof = FirstSteps(proof_steps, done, write_proof)
        # The checkpoint comes last. Files that were written after it are then written again after a resume.
        guard = LossGuard(checkpoint, steps, str(run.path))
        average = _start_average(prepared, trainer, run, done // steps)
        callbacks: list[Any] = [UseAverages(trainer), history, guard, keep_best, proof, *([average] if average else []), checkpoint]
        callbacks += [Progress(plan.epochs * steps, checkpoint)] if writes else []
        try:
            _run_epochs(prepared, trainer, checkpoint, keep_best, StepCallbacks(callbacks, trainer, guard.judge))
        except LossError:
            back = checkpoint.restore(trainer)
            kept = f"the model of epoch {keep_best.best_epoch}" if keep_best.best_epoch else "no model"
            where = f"went back to the weights after step {back}, the last good checkpoint" if back else "no checkpoint was written before"
            log.info("%s; %s is kept", where, kept)
            history.write_table()
            raise
    if not keep_best.best_epoch:
        raise ValueError(f"Expected a finite validation loss. Received: none in any epoch of {run.path}. Lower `--learning-rate`.")
    if average is None or not _judge_average(average, prepared, bundle, run, keep_best.best, by_loss=not judged):
        return keep_best.best_epoch
    return plan.epochs


def _start_average(prepared: PreparedRun, trainer, run: RunFolder, epochs: int) -> "LastAverage | None":
    """Starts the average of the last epochs' weights after so many epochs; None where nobody asked for it."""
    from modules.run.averaging import LastAverage

    share, last = prepared.settings.average_last, prepared.plan.epochs
    if not share:
        return None
    average = LastAverage(trainer, run.checkpoint, last - max(2, round(share * last)) + 1, write=devices.is_main())
    average.restore(epochs)
    return average


def _judge_average(
    average: "LastAverage", prepared: PreparedRun, bundle: ModelBundle, run: RunFolder, best: float, *, by_loss: bool
) -> bool:
    """Validates the average of the last epochs' weights, and saves it in place of the kept epoch if it is better."""

    def validate() -> dict[str, float]:
        with name_failures() as failures:
            return average.trainer.evaluate(make_validation_data(prepared, failures), return_dict=True, verbose=0)

    def save() -> None:
        if devices.is_main():
            bundle.save(run.bundle)
            add_provenance(run.bundle, averaged_epochs=average.count)

    return average.judge(validate, "loss" if by_loss else "mean_dice", best, save)


def _run_epochs(prepared: PreparedRun, trainer, checkpoint: "Checkpoint", keep_best: "KeepBest", callbacks: "StepCallbacks") -> None:
    """Trains from the checkpoint's step to the end."""
    steps, epochs = prepared.plan.steps_per_epoch, prepared.plan.epochs
    # A fit of its own finishes an interrupted epoch, because all epochs of a fit have one length in Keras.
    epoch, inside = divmod(checkpoint.step, steps)
    with feed_training(prepared) as make_data:
        for begin, end in ((epoch, epoch + 1), (epoch + 1, epochs)) if inside else ((epoch, epochs),):
            if begin >= end or keep_best.finished:
                break
            with name_failures() as failures:
                trainer.fit(
                    make_data(checkpoint.step, failures),
                    validation_data=make_validation_data(prepared, failures),
                    initial_epoch=begin,
                    epochs=end,
                    steps_per_epoch=steps - checkpoint.step % steps,
                    callbacks=callbacks,
                    shuffle=False,
                    verbose=0,
                )


def make_trainer(prepared: PreparedRun):
    """Makes and compiles the `modules.model.trainer.Trainer` of a run's network."""
    return build_trainer(prepared.network, prepared.settings, prepared.spec, prepared.plan, _weigh_classes(prepared))


def build_trainer(network, settings: Settings, spec: DatasetSpec, plan: Plan, class_weights: tuple[float, ...] | None = None):
    """Makes and compiles a trainer.

    Args:
        network: The `keras.Model` to train.
        settings: The settings, filled by the plan.
        spec: The data set, reduced to the chosen classes.
        plan: The plan.
        class_weights: Weights of the classes in the loss; None for equal ones.
    """
    import keras

    from modules.model.metrics import Overlap
    from modules.model.optimizers import make_optimizer, make_schedule
    from modules.model.trainer import Trainer

    # Keras asks a schedule by batches, however many of them make an update.
    steps, warmup = (number * plan.steps_per_epoch for number in (plan.epochs, settings.warmup_epochs or 0))
    rate = make_schedule(settings.schedule, settings.learning_rate or 0.0, steps, warmup_steps=warmup, cycles=settings.cycles)
    decay, decoupled = settings.weight_decay or 0.0, settings.optimizer == "adamw"
    ignore = IGNORE if spec.label_rule.ignores else None
    trainer = Trainer(
        network,
        make_loss(settings, spec, class_weights),
        Overlap(spec.class_names, regions=spec.regions, ignore=ignore),
        spec.mirrored_indices(),
        deep=networks.with_deep_supervision(network) if settings.deep_supervision else None,
        l2=0.0 if decoupled else decay / devices.count_replicas(),
        average=settings.ema or 0.0,
    )
    optimizer = make_optimizer(
        settings.optimizer, rate, weight_decay=decay, clip_norm=settings.clip_norm or 0.0, accumulate=settings.accumulate
    )
    if settings.precision == "float16":
        # Without loss scaling, small gradients would vanish in float16.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    trainer.compile(optimizer=optimizer)
    return trainer


@contextmanager
def name_failures() -> Generator[list[Exception], None, None]:
    """Yields a list for the errors of reading, and raises the first of them in place of TensorFlow's, which is many lines."""
    failures: list[Exception] = []
    try:
        yield failures
    except Exception as error:
        if failures and error is not failures[0]:
            raise failures[0] from error
        raise


def make_validation_data(prepared: PreparedRun, failures: list[Exception] | None = None):
    """Makes the validation pipeline, see `modules.data.pipeline.make_pipeline`."""
    return make_pipeline(prepared.prepared["validate"], training=False, failures=failures, **_list_pipeline_options(prepared))


@contextmanager
def feed_training(prepared: PreparedRun) -> Generator[Callable[[int, list[Exception]], Any]]:
    """Yields a function of the first step and a list for errors that makes the training data, see `make_training_data`.

    In the block the training cases lie on the device, if they shall, and processes read the batches, if the machine has the cores.
    """
    table = put_on_device(prepared)
    with start_readers() or nullcontext() as pool:
        yield partial(make_training_data, prepared, table=table, pool=pool)


def start_readers() -> ReaderPool | None:
    """Starts processes that read, where a GPU would wait for the threads of this one; None on a CPU, whose cores have other work."""
    return ReaderPool(min(MOST_READERS, count_cores() - 2)) if devices.has_gpu() and count_cores() >= 4 else None


def make_training_data(
    prepared: PreparedRun,
    first_step: int,
    failures: list[Exception] | None = None,
    *,
    table: dict[str, Any] | None = None,
    pool: ReaderPool | None = None,
):
    """Makes the endless training data from a step on, see `modules.data.pipeline.make_pipeline`.

    With a `table` from `put_on_device` each batch holds the table and places in it, and its samples are the same.
    """
    pipeline = make_pipeline(
        prepared.prepared["train"],
        training=True,
        sampler=prepared.plan.sampler,
        draw_augmentation=make_draw_augmentation(prepared.settings, prepared.spec, prepared.plan),
        first_step=first_step,
        failures=failures,
        bases=None if table is None else find_bases(prepared.prepared["train"]),
        pool=pool,
        **_list_pipeline_options(prepared),
    )
    return pipeline if table is None else add_table(pipeline, table, prepared.plan.window.shape)


def add_table(pipeline, table: dict[str, Any], shape: Sequence[int]):
    """Adds the table on the device to each batch of a pipeline of places, without copying it; under JAX cuts its windows `P`."""
    if devices.name_backend() == "tensorflow":
        return pipeline.map(lambda batch: batch | table)
    from modules.model.cut import compile_cut

    # Keras copies what a `tf.data.Dataset` holds through the host, but not what a generator does. It asks a generator for tuples.
    add = compile_cut(table, shape) if devices.name_backend() == "jax" else lambda batch: batch | table
    return ((add(batch),) for batch in pipeline.as_numpy_iterator())


def put_on_device(prepared: PreparedRun) -> dict[str, Any] | None:
    """Puts all training cases into the device's memory as one table, as `--resident` says; None where batches are streamed.

    Raises:
        ValueError: If `--resident yes` asks for what cannot be.
    """
    from keras import ops

    size, obstacle = _choose_table(prepared.settings, prepared.spec, prepared.prepared, prepared.devices)
    if obstacle and prepared.settings.resident == "yes":
        raise ValueError(f"Expected --resident no or auto, as {obstacle}. Received: yes. Give --resident auto.")
    if obstacle:
        log.info("training cases: streamed, as %s", obstacle)
    if not size:
        return None
    log.info("training cases: %.2f GB in the device's memory", size / 1e9)
    table = read_table(prepared.prepared["train"], len(prepared.spec.channels))
    return {name: ops.convert_to_tensor(array) for name, array in table.items()}


def find_table(settings: Settings, spec: DatasetSpec, prepared: Mapping[str, Sequence[PreparedCase]], names: Sequence[str]) -> int:
    """Finds the bytes that the training cases take on the device; 0 where batches are streamed.

    Args:
        settings: The settings.
        spec: The data set.
        prepared: The prepared cases by split.
        names: Names of the devices that train.
    """
    return _choose_table(settings, spec, prepared, names)[0]


def _choose_table(
    settings: Settings, spec: DatasetSpec, prepared: Mapping[str, Sequence[PreparedCase]], names: Sequence[str]
) -> tuple[int, str]:
    voxels = sum(case.voxels for case in prepared["train"])
    return choose_table(settings.resident, voxels, len(spec.channels), describe_hardware(), devices.name_backend(), len(names))


def _list_pipeline_options(prepared: PreparedRun) -> dict[str, Any]:
    return {
        "window": prepared.plan.window,
        "channels": len(prepared.spec.channels),
        "batch_size": prepared.plan.batch_size,
        "seed": prepared.settings.seed,
        "host_slice": devices.find_host(),
    }


def _weigh_classes(prepared: PreparedRun) -> tuple[float, ...] | None:
    """Weighs the classes in the loss by the inverse of their frequency, with a mean of 1; None for equal weights."""
    if prepared.settings.class_weights == "none":
        return None
    spec = prepared.spec
    parts = np.sum([case.count_classes(spec.num_parts) for case in prepared.prepared["train"]], axis=0)
    counts = np.array([parts[0], *(parts[list(members)].sum() for members in list_parts(spec.class_names, spec.regions))])
    # A class in no label weighs nothing. By its frequency it would take all the weight of the others.
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0)
    weights = weights / weights[counts > 0].mean()
    log.info("weights of the classes in the loss: %s", ", ".join(f"{weight:.4g}" for weight in weights))
    return tuple(float(weight) for weight in weights)


def make_draw_augmentation(settings: Settings, spec: DatasetSpec, plan: Plan) -> DrawAugmentation | None:
    """Makes the function that draws the augmentation of one sample; None where nothing is augmented."""
    augmentation = AUGMENTATIONS[settings.augment]
    if augmentation is None:
        return None
    window, channels = plan.window, len(spec.channels)
    # Volumes are in canonical orientation, whose first axis runs from left to right. 2-D files do not say which axis does.
    left_right = 0 if spec.spatial_dims == 3 and window.sizes[0] > 1 else None
    return Drawer(augmentation, window.shape, channels, left_right)
