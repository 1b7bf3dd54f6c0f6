"""Trains a network on a data set and scores it on the test split: `python train.py --dataset hipmri`.

Without arguments it says which data sets it knows, which of them are there, and what to type next.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import dataset
import utils
from modules import networks, scoring
from modules.bundle import ModelBundle, hash_weights, predict_cases
from modules.cache import PreparedCase, fingerprint_splits
from modules.patches import PLANES
from modules.pipeline import PatchDraw, count_samples, derive_window, make_pipeline
from modules.preprocess import Preprocessing
from modules.volume import Case
from utils import RunConfig, log


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("train.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    utils.start_log()
    config, resumed = utils.parse_training(argv)
    if config is None:
        _introduce()
        return
    if config.demo:
        log.info("phantom: %s", dataset.DATASETS[config.dataset].write_phantom(config.data_folder(), seed=config.seed))
    spec = dataset.load_spec(config.dataset, config.data_folder())
    cases = dataset.find_cases(spec, config.data_folder())
    splits, remarks = dataset.split_cases(cases, (config.validate_fraction, config.test_fraction), config.seed)
    spec, output_values = dataset.choose_target(spec, config.target)
    config = config.complete(spec)
    window = find_window(config, spec)
    # A wrong option should cost nothing; only a size that follows from the scans has to wait until they are read.
    network = _build_network(config, spec, window) if window else None
    # Every file is read before the run begins, those of the test too: a broken one must not be found after hours.
    prepared, preprocessing, window = prepare(config, spec, splits, window)
    network = network or _build_network(config, spec, window)
    config = replace(config, shape=tuple(size for size in window if size > 1))

    environment = utils.describe_environment() | {"data_fingerprint": fingerprint_splits(prepared)}
    if resumed:
        _check_unchanged(resumed, environment)
    folder = resumed or utils.make_run_folder(config)
    utils.start_log(folder / "log.txt")
    log.info("run: %s  (%s, %s)", folder, environment["backend"], ", ".join(environment["devices"]))
    for line in remarks + dataset.describe_splits(splits):
        log.info("%s", line)
    if not resumed:
        case_ids = {name: [case.case_id for case in members] for name, members in splits.items()}
        utils.write_json(folder / "run.json", {"config": config.to_json(), **environment, "splits": case_ids})

    bundle = ModelBundle(
        model=networks.with_head(network),
        preprocessing=preprocessing,
        window=window,
        class_names=spec.class_names,
        channels=spec.channels,
        label_values=spec.label_values,
        output_values=output_values,
        mirrored_labels=spec.mirrored_indices(),
        provenance={"dataset": config.dataset, "run": folder.name, "seed": config.seed, **environment},
    )
    try:
        best_epoch = fit(config, bundle, network, prepared, folder)
        score(config, splits["test"], folder, {"best_epoch": best_epoch, "weights_sha256": hash_weights(network)})
    except KeyboardInterrupt:
        log.info("the finished epochs are kept; go on with: python train.py --resume %s", folder)
        raise


def find_window(config: RunConfig, spec: dataset.DatasetSpec) -> tuple[int, ...]:
    """What the network sees at once (see `ModelBundle`), as far as it is known before the scans are; else empty."""
    shape = config.shape or spec.preprocessing.shape
    if config.mode == "slice" and spec.spatial_dims == 3 and shape:
        plane = PLANES[config.plane]
        return (*shape[:plane], 1, *shape[plane:])
    return shape


def prepare(
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


def fit(config: RunConfig, bundle: ModelBundle, network, prepared: dict[str, list[PreparedCase]], folder: Path) -> int:
    """Trains `network`, which the bundle's model shares its weights with; saves the best bundle; returns its epoch (from 1)."""
    import keras

    from modules.callbacks import Checkpoint, KeepBest, Progress, Record
    from modules.losses import SegmentationLoss
    from modules.metrics import Overlap
    from modules.trainer import Trainer

    draw = None
    if config.mode == "patch":
        draw = PatchDraw(config.sampling, config.patches_per_case, config.class_probabilities)
    steps = math.ceil(count_samples(prepared["train"], bundle.window, draw) / config.batch_size)
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, config.epochs * steps)
    loss = SegmentationLoss(config.loss, _weigh_classes(config, prepared["train"], len(bundle.class_names)), config.batch_dice)
    trainer = Trainer(network, loss, Overlap(bundle.class_names), bundle.mirrored_labels)
    trainer.compile(optimizer=keras.optimizers.Adam(rate, weight_decay=config.weight_decay or None))
    record = Record(folder, bundle.class_names, steps * config.batch_size)
    keep_best = KeepBest(lambda: bundle.save(folder / "bundle"), config.patience, config.stop_at_dice)
    checkpoint = Checkpoint(folder / "checkpoint" / "last.npz", [record, keep_best])
    done = checkpoint.restore(trainer)
    log.info("%s: %s weights, %d steps an epoch, begins at epoch %d", config.network, f"{network.count_params():,}", steps, done + 1)
    if not keep_best.finished:
        settings = {"window": bundle.window, "channels": len(bundle.channels), "batch_size": config.batch_size, "seed": config.seed}
        change = _make_change(config, bundle)
        trainer.fit(
            make_pipeline(prepared["train"], training=True, draw=draw, change=change, first_step=done * steps, **settings),
            validation_data=make_pipeline(prepared["validate"], training=False, **settings),
            initial_epoch=done,
            epochs=config.epochs,
            steps_per_epoch=steps,
            callbacks=[record, keep_best, checkpoint, Progress(config.epochs, steps, done)],
            shuffle=False,
            verbose=0,
        )
    return keep_best.best_epoch


def _weigh_classes(config: RunConfig, cases: Sequence[PreparedCase], num_classes: int) -> tuple[float, ...] | None:
    """Weights of the classes in the loss: inverse to how often they occur, with a mean of 1; None for equal ones."""
    if config.class_weights == "none":
        return None
    counts = np.sum([case.count_classes(num_classes) for case in cases], axis=0)
    weights = 1 / np.maximum(counts, 1)
    weights = weights / weights.mean()
    log.info("weights of the classes in the loss: %s", ", ".join(f"{weight:.4g}" for weight in weights))
    return tuple(float(weight) for weight in weights)


def _make_change(config: RunConfig, bundle: ModelBundle):
    """What draws the augmentation of one sample from a generator, or None."""
    from modules.augment import AUGMENTATIONS, draw_parameters

    augmentation = AUGMENTATIONS[config.augment]
    if augmentation is None:
        return None
    shape = tuple(size for size in bundle.window if size > 1)
    # Volumes are in canonical orientation, whose first axis runs from left to right; of 2-D files nobody knows.
    left_right = 0 if bundle.preprocessing.spatial_dims == 3 and bundle.window[0] > 1 else None

    def change(rng: np.random.Generator, spacing_mm: Sequence[float]) -> dict[str, np.ndarray]:
        return draw_parameters(rng, augmentation, shape, len(bundle.channels), spacing_mm=spacing_mm, left_right=left_right)

    return change


def score(config: RunConfig, cases: Sequence[Case], folder: Path, summary: dict) -> None:
    """Scores the saved bundle on the test cases as they lie on disk, slices also as whole scans; draws three of them."""
    from modules import reports

    bundle = ModelBundle.load(folder / "bundle")
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
    replace(bundle, provenance={**bundle.provenance, "scores": utils.without_nan(means)}).save(folder / "bundle")
    utils.write_json(folder / "summary.json", {**summary, "bundle_weights_sha256": hash_weights(bundle.model), "test": means})
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


def _build_network(config: RunConfig, spec: dataset.DatasetSpec, window: tuple[int, ...]):
    """Builds the network before the run's folder is made, so that a wrong option leaves nothing behind."""
    utils.seed_everything(config.seed)
    from modules.losses import SegmentationLoss

    shape = tuple(size for size in window if size > 1)
    network = networks.build(config.network, (*shape, len(spec.channels)), len(spec.class_names), **config.network_options())
    SegmentationLoss(config.loss)(np.zeros((1, *shape)), np.zeros((1, *network.output.shape[1:])))
    return network


def _check_unchanged(run: Path, environment: dict) -> None:
    """Refuses to resume a finished run, and one whose data, split or backend are no longer what it began with."""
    if (run / "summary.json").exists():
        raise ValueError(f"Expected an interrupted run. Received: {run}, which is finished. Start a new one.")
    begun = utils.load_run(run)
    for name, what in (("data_fingerprint", "data and split"), ("backend", "backend")):
        if environment[name] != begun[name]:
            raise ValueError(
                f"Expected the {what} that {run} began with, {begun[name]:.16}. Received: {environment[name]:.16}. "
                "Restore it, or start a new run."
            )


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
