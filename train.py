"""Trains a network on a data set and scores it on the test split: `python train.py --dataset hipmri`.

Without arguments it says which data sets it knows, which of them are there, and what to type next.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dataset
import utils
from modules import devices, folds, networks, proof, records, scoring, tracking
from modules.bundle import ModelBundle, add_provenance, convert_bundle, hash_weights, predict_cases
from modules.cache import PreparedCase
from modules.patches import PLANES
from modules.pipeline import PatchDraw, count_samples, derive_window, make_pipeline
from modules.preprocess import Preprocessing
from modules.volume import Case
from utils import RunConfig, log

ROOT = Path(__file__).parent
# So many steps are trained again by --verify.
PROOF_STEPS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("train.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    utils.start_log()
    request = utils.parse_training(argv)
    if request.config is None:
        _introduce()
        return
    devices.start_hosts(*request.joined)
    utils.start_log(quiet=not devices.is_main())
    several = devices.find_share()[1] > 1
    if several and (request.verify or (request.config.folds and request.config.fold is None)):
        raise ValueError("Expected a single training for several hosts. Received: --verify, or --folds. Give --hosts 1, or one --fold.")
    if request.verify:
        for run in records.list_runs([request.verify]):
            verify(RunConfig.from_mapping(records.load_run(run)["config"], f"{run}/run.json"), run, request.devices)
    elif request.config.folds and request.config.fold is None:
        train_folds(request.config, request.resume, request.devices)
    else:
        train(request.config, request.resume, resume=request.resume is not None, limit=request.devices)


def train(config: RunConfig, folder: Path | None = None, resume: bool = False, limit: int | None = None) -> Path:
    """Trains, scores and draws one run, or goes on with it, on at most `limit` devices a host; returns its folder."""
    track = config.track if devices.is_main() else "none"
    tracking.check_tracker(track, folder if resume else None)
    job = prepare(config, limit)
    config = job.config
    folder = folder or utils.name_run(config)
    environment = devices.describe_environment() | {"data_sha256": proof.hash_manifest(job.manifest), "code_sha256": proof.hash_code(ROOT)}
    environment |= {"precision": job.precision, "devices": job.devices}
    if resume:
        _check_unchanged(folder, environment, job.manifest)
        devices.on_main(lambda: records.sweep(folder))
    else:
        case_ids = {name: [case.case_id for case in members] for name, members in job.splits.items()}
        record = {"config": config.to_json(), **environment, "splits": case_ids}
        devices.on_main(lambda: records.make_run_folder(folder, run=record, data=job.manifest))
    if devices.is_main():
        utils.start_log(folder / "log.txt")
    log.info("run: %s  (%s, %s, %s)", folder, environment["backend"], ", ".join(environment["devices"]), job.precision)
    for line in job.remarks + dataset.describe_splits(job.splits):
        log.info("%s", line)
    bundle = job.make_bundle({"dataset": config.dataset, "run": folder.name, "seed": config.seed, **environment})
    with tracking.open_tracker(track, folder, experiment=config.dataset, parameters=config.to_json(), tags=environment) as tracker:
        try:
            best_epoch = fit(config, bundle, job, folder, tracker)
            summary = {"best_epoch": best_epoch, "weights_sha256": hash_weights(job.network), **environment}
            devices.distribute([])
            devices.on_main(lambda: score(config, job.splits["test"], folder, summary, tracker))
        except KeyboardInterrupt:
            log.info("stopped; go on with: python train.py --resume %s", folder if folder.name != f"fold_{config.fold}" else folder.parent)
            raise
    return folder


@dataclass(frozen=True)
class Job:
    """All that a training needs before it begins.

    Attributes:
        config: The settings, completed by what the data set and its scans decide.
        spec: The data set, reduced to the chosen classes.
        output_values: The value each class is written with in a file.
        splits, remarks: Cases by split, and what there is to tell about them.
        prepared: The same cases, decoded and preprocessed.
        preprocessing, window: What the network sees, see `ModelBundle`.
        network: From images to logits.
        precision: That it computes in.
        devices: Names of those that share each batch.
        manifest: The data files and their hashes.
    """

    config: RunConfig
    spec: dataset.DatasetSpec
    output_values: tuple[int, ...]
    splits: dict[str, list[Case]]
    remarks: list[str]
    prepared: dict[str, list[PreparedCase]]
    preprocessing: Preprocessing
    window: tuple[int, ...]
    network: Any
    precision: str
    devices: list[str]
    manifest: proof.Manifest

    def make_bundle(self, provenance: dict[str, Any]) -> ModelBundle:
        """The model with its head and all it needs to predict, sharing the network's weights."""
        return ModelBundle(
            model=networks.with_head(self.network),
            preprocessing=self.preprocessing,
            window=self.window,
            class_names=self.spec.class_names,
            channels=self.spec.channels,
            label_values=self.spec.label_values,
            output_values=self.output_values,
            mirrored_labels=self.spec.mirrored_indices(),
            provenance=provenance,
        )

    def count_steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(count_samples(self.prepared["train"], self.window, self.draw()) / self.config.batch_size)

    def draw(self) -> PatchDraw | None:
        """How training patches are drawn; None for slices and volumes."""
        config = self.config
        return PatchDraw(config.sampling, config.patches_per_case, config.class_probabilities) if config.mode == "patch" else None


def prepare(config: RunConfig, limit: int | None = None) -> Job:
    """Finds, splits, reads and preprocesses the data, and builds the network: whatever may be wrong shows before a run begins."""
    root = config.data_folder()
    if config.demo:
        devices.on_main(lambda: log.info("phantom: %s", dataset.DATASETS[config.dataset].write_phantom(root, seed=config.seed)))
    spec = dataset.load_spec(config.dataset, root)
    cases = dataset.find_cases(spec, root)
    splits, remarks = split(config, cases)
    spec, output_values = dataset.choose_target(spec, config.target)
    config = config.complete(spec)
    devices.start_backend(config.seed, config.deterministic)
    precision = devices.choose_precision(config.precision)
    names = devices.choose_devices(limit, config.batch_size)
    devices.distribute(names)
    window = find_window(config, spec)
    # A wrong option should cost nothing; only a size that follows from the scans has to wait until they are read.
    network = _build_network(config, spec, window) if window else None
    # Every file is read before the run begins, those of the test too: a broken one must not be found after hours.
    prepared, preprocessing, window = read_cases(config, spec, splits, window)
    network = network or _build_network(config, spec, window)
    config = replace(config, shape=tuple(size for size in window if size > 1))
    hashes = [digest for members in prepared.values() for case in members for digest in case.sources_sha256]
    manifest = proof.make_manifest(splits, root, hashes)
    return Job(config, spec, output_values, splits, remarks, prepared, preprocessing, window, network, precision, names, manifest)


def split(config: RunConfig, cases: Sequence[Case]) -> tuple[dict[str, list[Case]], list[str]]:
    """Divides cases by subject, for one of the folds or without any; returns them by split, and what there is to tell about it."""
    if config.fold is None:
        return dataset.split_cases(cases, (config.validate_fraction, config.test_fraction), config.seed)
    return folds.split_folds(cases, config.folds, config.fold, config.validate_fraction, config.seed)


def find_window(config: RunConfig, spec: dataset.DatasetSpec) -> tuple[int, ...]:
    """What the network sees at once (see `ModelBundle`), as far as it is known before the scans are; else empty."""
    shape = config.shape or spec.preprocessing.shape
    if config.mode == "slice" and spec.spatial_dims == 3 and shape:
        plane = PLANES[config.plane]
        return (*shape[:plane], 1, *shape[plane:])
    return shape


def read_cases(
    config: RunConfig, spec: dataset.DatasetSpec, splits: dict[str, list[Case]], window: tuple[int, ...]
) -> tuple[dict[str, list[PreparedCase]], Preprocessing, tuple[int, ...]]:
    """Decodes and preprocesses all cases; returns them by split, the preprocessing, and the window, which it chooses if it is empty."""

    def read(preprocessing: Preprocessing) -> dict[str, list[PreparedCase]]:
        return {name: dataset.prepare_cases(members, spec, preprocessing, Path(config.cache)) for name, members in splits.items()}

    preprocessing, prepared = config.adapt(spec.preprocessing), None
    if not window:
        prepared = read(preprocessing)
        shapes = [case.shape for case in prepared["train"]]
        window = derive_window(shapes, config.mode, PLANES[config.plane], networks.find_divisor(config.network))
        log.info("size of a %s, from the training scans: %s", config.mode, "x".join(str(size) for size in window if size > 1))
    if spec.spatial_dims == 2 or config.mode == "volume":
        # Slices are cropped or padded, as the references do; whole volumes are resampled.
        preprocessing = replace(preprocessing, shape=window, resize=config.mode == "volume")
        prepared = None
    return prepared or read(preprocessing), preprocessing, window


def fit(config: RunConfig, bundle: ModelBundle, job: Job, folder: Path, tracker: tracking.Tracker) -> int:
    """Trains the network, which the bundle's model shares its weights with; saves the best bundle; returns its epoch (from 1)."""
    from modules.callbacks import Checkpoint, FirstSteps, KeepBest, Progress, Record, StepCallbacks
    from modules.trainer import UseAverages

    steps = job.count_steps()
    total = config.epochs * steps
    writes = devices.is_main()
    trainer = make_trainer(job, steps)

    def save_best() -> None:
        # All hosts put the averages in, one saves them.
        with trainer.averaged():
            if writes:
                bundle.save(folder / "bundle")

    def write_proof(model) -> None:
        if writes:
            records.write_json(folder / "proof.json", {"steps": proof_steps, "weights_sha256": hash_weights(model.network)})

    record = Record(folder, bundle.class_names, config.batch_size, write=writes, on_row=tracker.log_row)
    keep_best = KeepBest(save_best, config.patience, config.stop_at_dice)
    proof_steps = min(PROOF_STEPS, steps)
    with utils.StopRequest() as stop:
        stops = devices.agree(lambda: stop.made)
        checkpoint = Checkpoint(
            folder / "checkpoint", [record, keep_best], steps, minutes=config.checkpoint_minutes, stop=stops, write=writes
        )
        done = checkpoint.restore(trainer)
        first = f"epoch {done // steps + 1}" + (f", step {done % steps + 1}" if done % steps else "")
        log.info("%s: %s weights, %d steps an epoch, begins at %s", config.network, f"{job.network.count_params():,}", steps, first)
        proven = FirstSteps(proof_steps, done, write_proof)
        # The checkpoint comes after all that it stands for: what is written before it is written again after a resume.
        callbacks = [UseAverages(trainer), record, keep_best, proven, checkpoint, *([Progress(total, checkpoint)] if writes else [])]
        # An epoch that was interrupted is finished first: Keras knows no epochs of different lengths within one fit.
        epoch, inside = divmod(done, steps)
        for begin, end in ((epoch, epoch + 1), (epoch + 1, config.epochs)) if inside else ((epoch, config.epochs),):
            if begin >= end or keep_best.finished:
                break
            trainer.fit(
                make_training_data(job, checkpoint.step),
                validation_data=make_pipeline(job.prepared["validate"], training=False, **_pipeline_settings(job)),
                initial_epoch=begin,
                epochs=end,
                steps_per_epoch=steps - checkpoint.step % steps,
                callbacks=StepCallbacks(callbacks, trainer),
                shuffle=False,
                verbose=0,
            )
    return keep_best.best_epoch


def make_trainer(job: Job, steps: int):
    """Compiles what trains the job's network, `steps` batches an epoch."""
    import keras

    from modules.losses import SegmentationLoss
    from modules.metrics import Overlap
    from modules.optimizers import make_optimizer, make_schedule
    from modules.trainer import Trainer

    config = job.config
    updates = steps / config.accumulate
    warmup = math.ceil(config.warmup_epochs * updates)
    rate = make_schedule(
        config.schedule, config.learning_rate, math.ceil(config.epochs * updates), warmup_steps=warmup, cycles=config.cycles
    )
    decoupled = config.optimizer == "adamw"
    loss = SegmentationLoss(config.loss, _weigh_classes(config, job.prepared["train"], len(job.spec.class_names)), config.batch_dice)
    deep = networks.with_deep_supervision(job.network) if config.deep_supervision else None
    trainer = Trainer(
        job.network,
        loss,
        Overlap(job.spec.class_names),
        job.spec.mirrored_indices(),
        deep=deep,
        l2=0.0 if decoupled else config.weight_decay / devices.count_replicas(),
        average=config.ema,
    )
    optimizer = make_optimizer(
        config.optimizer, rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm, accumulate=config.accumulate
    )
    if job.precision == "float16":
        # Small gradients would vanish in it.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    trainer.compile(optimizer=optimizer)
    return trainer


def make_training_data(job: Job, first_step: int):
    """The endless training pipeline from a step on."""
    settings = {"draw": job.draw(), "change": _make_change(job), "first_step": first_step}
    return make_pipeline(job.prepared["train"], training=True, **settings, **_pipeline_settings(job))


def _pipeline_settings(job: Job) -> dict[str, Any]:
    config = job.config
    settings = {"window": job.window, "channels": len(job.spec.channels), "batch_size": config.batch_size, "seed": config.seed}
    return settings | {"share": devices.find_share()}


def _weigh_classes(config: RunConfig, cases: Sequence[PreparedCase], num_classes: int) -> tuple[float, ...] | None:
    """Weights of the classes in the loss: inverse to how often they occur, with a mean of 1; None for equal ones."""
    if config.class_weights == "none":
        return None
    counts = np.sum([case.count_classes(num_classes) for case in cases], axis=0)
    weights = 1 / np.maximum(counts, 1)
    weights = weights / weights.mean()
    log.info("weights of the classes in the loss: %s", ", ".join(f"{weight:.4g}" for weight in weights))
    return tuple(float(weight) for weight in weights)


def _make_change(job: Job):
    """What draws the augmentation of one sample from a generator, or None."""
    from modules.augment import AUGMENTATIONS, draw_parameters

    augmentation = AUGMENTATIONS[job.config.augment]
    if augmentation is None:
        return None
    shape = tuple(size for size in job.window if size > 1)
    # Volumes are in canonical orientation, whose first axis runs from left to right; of 2-D files nobody knows.
    left_right = 0 if job.preprocessing.spatial_dims == 3 and job.window[0] > 1 else None

    def change(rng: np.random.Generator, spacing_mm: Sequence[float]) -> dict[str, np.ndarray]:
        return draw_parameters(rng, augmentation, shape, len(job.spec.channels), spacing_mm=spacing_mm, left_right=left_right)

    return change


def score(config: RunConfig, cases: Sequence[Case], folder: Path, summary: dict, tracker: tracking.Tracker) -> None:
    """Scores the saved bundle on the test cases as they lie on disk, slices also as whole scans; draws three of them."""
    from modules import reports

    # What predict.py will compute with is what is scored.
    saved = ModelBundle.load(folder, "keras")
    convert_bundle(saved, folder)
    bundle = ModelBundle.load(folder)
    log.info("scored by engine %s", bundle.engine)
    with utils.PredictionProgress(len(cases), "scoring") as progress:
        predicted = predict_cases([bundle], cases, progress.settings())
        scores = list(scoring.score_predictions((item[:4] for item in progress.count(predicted)), bundle.class_names))
    scoring.write_scores(folder / "scores.csv", scores)
    means = scoring.summarise(scores)
    for line in scoring.format_summary(means):
        log.info("%s", line)
    examples = choose_examples(scores, cases)
    for name, item in zip(examples, predict_cases([bundle], examples.values()), strict=True):
        case, geometry = item.case, {"spacing_mm": item.image.spacing_mm, "affine": item.image.affine}
        dice = {score.class_name: score.dice for score in scores if score.case == case.case_id}
        drawn = (item.image.array, item.label, item.prediction, bundle.class_names)
        title = f"{case.case_id} ({name} test case)"
        reports.draw_comparison(folder / "figures" / f"comparison_{name}_{case.case_id}.png", *drawn, title=title, scores=dice, **geometry)
        if item.label.ndim == 3:
            reports.draw_montage(folder / "figures" / f"montage_{name}_{case.case_id}.png", *drawn, title=title, **geometry)
    add_provenance(folder, scores=records.without_nan(means))
    first_steps = records.read_json(folder / "proof.json")
    intervals = scoring.estimate_intervals(scores, scoring.map_subjects(cases))
    records.write_json(
        folder / "summary.json",
        {
            **summary,
            "first_steps": first_steps,
            "bundle_weights_sha256": hash_weights(saved.model),
            "engine": bundle.engine,
            "test": means,
            "intervals": intervals,
        },
    )
    tracker.log_summary(means)
    log.info("pictures: %s\nnext: python predict.py IMAGE --model %s", folder / "figures", folder)


def choose_examples(scores: Sequence[scoring.Score], cases: Sequence[Case]) -> dict[str, Case]:
    """The best, median and worst case by mean Dice among those whose label holds any foreground (else among all)."""
    by_id = {case.case_id: case for case in cases}
    dice: dict[str, list[float]] = {}
    occupied = set()
    for item in scores:
        # Slices are also scored as the scans they make up, which are no cases.
        if item.case in by_id:
            # A class that is in neither label nor prediction says nothing about a case.
            dice.setdefault(item.case, []).extend([] if math.isnan(item.dice) else [item.dice])
            if item.reference_voxels:
                occupied.add(item.case)
    ranked = sorted((sum(values) / max(len(values), 1), case) for case, values in dice.items() if case in occupied or not occupied)
    # Of one or two test cases there are not three to show: the better name wins.
    names = {0: "worst"} | {len(ranked) // 2: "median"} | {len(ranked) - 1: "best"}
    return {name: by_id[ranked[place][1]] for place, name in reversed(names.items())}


def train_folds(config: RunConfig, resume: Path | None, limit: int | None) -> None:
    """Trains and scores every fold below one folder, then scores all subjects together: each was tested by a model that never saw it."""
    folder = resume or utils.name_run(config)
    if resume is None:
        records.make_run_folder(folder, run={"config": config.to_json()})
    elif (folder / "summary.json").is_file():
        raise ValueError(f"Expected an interrupted run. Received: {folder}, which is finished. Start a new one.")
    runs = {f"fold {fold}": folder / f"fold_{fold}" for fold in range(config.folds)}
    for fold, run in enumerate(runs.values()):
        if not (run / "summary.json").is_file():
            train(replace(config, fold=fold), run, resume=run.is_dir(), limit=limit)
    from modules import reports

    utils.start_log(folder / "log.txt")
    spec = dataset.load_spec(config.dataset, config.data_folder())
    subjects = scoring.map_subjects(dataset.find_cases(spec, config.data_folder()))
    tested = {name: scoring.read_scores(run / "scores.csv") for name, run in runs.items()}
    scores = scoring.pool_scores(tested)
    scoring.write_scores(folder / "scores.csv", scores)
    title = f"{config.dataset}: each subject tested once in {config.folds} folds"
    reports.draw_folds(folder / "figures" / "folds.png", tested, subjects, title=title)
    intervals = scoring.estimate_intervals(scores, subjects)
    for line in scoring.format_intervals(intervals):
        log.info("%s", line)
    records.write_json(folder / "summary.json", {"test": intervals})
    log.info("picture: %s\nnext: python predict.py IMAGE --model %s", folder / "figures" / "folds.png", folder)


def verify(config: RunConfig, run: Path, limit: int | None = None) -> None:
    """Checks that a run's data, program and model are those it was made of and with, and that its first steps give the same weights again.

    Raises:
        ValueError: Naming what is not the same.
    """
    record, files, expected = records.load_run(run), *(records.read_json(run / name) for name in ("data.json", "proof.json"))
    root = config.data_folder()
    # From the bytes on disk: the cache trusts sizes and times, and a proof must not.
    spec = dataset.load_spec(config.dataset, root)
    splits, _ = split(config, dataset.find_cases(spec, root))
    proof.check_data(files, proof.make_manifest(splits, root), run)
    log.info("data: %d files are those of %s, SHA-256 %.16s...", len(files), run, record["data_sha256"])
    job = prepare(config, limit)
    now = devices.describe_environment() | {"devices": job.devices, "code_sha256": proof.hash_code(ROOT)}
    for name in ("backend", "devices", "python", "versions", "code_sha256"):
        if now[name] != record[name]:
            log.warning("%s differs: %s had %s, here it is %s", name, run, record[name], now[name])
    trainer = make_trainer(job, job.count_steps())
    trainer.fit(make_training_data(job, 0), epochs=1, steps_per_epoch=expected["steps"], shuffle=False, verbose=0)
    proof.check_equal(f"weights after {expected['steps']} steps", expected["weights_sha256"], hash_weights(job.network), run)
    log.info("training: the first %d steps give the same weights, SHA-256 %.16s...", expected["steps"], expected["weights_sha256"])
    if (run / "summary.json").is_file():
        summary = records.read_json(run / "summary.json")
        model = ModelBundle.load(run, "keras").model
        proof.check_equal("weights of the bundle", summary["bundle_weights_sha256"], hash_weights(model), run)
        log.info("bundle: weights are those that were scored, SHA-256 %.16s...", summary["bundle_weights_sha256"])


def _build_network(config: RunConfig, spec: dataset.DatasetSpec, window: tuple[int, ...]):
    """Builds the network, and asks the loss about it, before the run's folder is made: a wrong option leaves nothing behind."""
    from modules.losses import SegmentationLoss

    shape = tuple(size for size in window if size > 1)
    network = networks.build(config.network, (*shape, len(spec.channels)), len(spec.class_names), **config.network_options())
    SegmentationLoss(config.loss)(np.zeros((1, *shape)), np.zeros((1, *network.output.shape[1:])))
    if config.deep_supervision:
        networks.with_deep_supervision(network)
    return network


def _check_unchanged(run: Path, environment: dict, manifest: proof.Manifest) -> None:
    """Refuses to resume a finished run, and one whose data, split or backend are no longer what it began with."""
    if (run / "summary.json").exists():
        raise ValueError(f"Expected an interrupted run. Received: {run}, which is finished. Start a new one.")
    begun = records.load_run(run)
    proof.check_data(records.read_json(run / "data.json"), manifest, run)
    for name in ("backend", "precision"):
        proof.check_equal(name, begun[name], environment[name], run)
    for name in ("devices", "versions", "code_sha256"):
        if begun[name] != environment[name]:
            log.warning("%s differs from what %s began with: the weights may not be those of an uninterrupted run", name, run)


def _introduce() -> None:
    """Says what there is and what to type next."""
    log.info("Data sets (python train.py --dataset NAME [--data FOLDER]):")
    for spec in dataset.DATASETS.values():
        folder = utils.default_data_folder(spec.name)
        place = f"found in {folder}" if folder.is_dir() else f"not in {folder}; {spec.url}"
        log.info("  %-9s %s\n            %s\n            %s: %s", spec.name, spec.title, place, spec.licence, spec.terms)
    log.info("Networks (--network NAME):")
    for name, summary in networks.describe().items():
        log.info("  %-17s %s", name, summary)
    log.info("Losses (--loss NAME): %s", ", ".join(utils.LOSSES))
    log.info("Presets (--preset NAME): %s", ", ".join(utils.PRESETS))
    found = next((name for name in dataset.DATASETS if utils.default_data_folder(name).is_dir()), None)
    log.info("Next: python train.py --dataset %s", found or "hipmri --demo   (a drawn pelvis, a few minutes)")


if __name__ == "__main__":
    sys.exit(main())
