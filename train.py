"""Trains a network on a data set and scores it on the test split: `python train.py --dataset hipmri`.

Without arguments it says which data sets it knows, which of them are there, and what to type next.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import dataset
import utils
from modules import scoring
from modules.bundle import ModelBundle, hash_weights
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
    spec = dataset.DATASETS[config.dataset]
    if config.demo:
        log.info("phantom: %s", spec.write_phantom(config.data_folder(), seed=config.seed))
    cases = dataset.find_cases(spec, config.data_folder())
    splits, remarks = dataset.split_cases(cases, (config.validate_fraction, config.test_fraction), config.seed)
    spec, output_values = dataset.choose_target(spec, config.target)
    preprocessing = replace(spec.preprocessing, shape=config.shape or spec.preprocessing.shape)
    network = _build_network(config, spec, preprocessing.shape)
    # Every file is read before the run begins, those of the test too: a broken one must not be found after hours.
    files = {name: dataset.prepare_cases(members, spec, preprocessing, Path(config.cache)) for name, members in splits.items()}

    environment = utils.describe_environment() | {"data_fingerprint": dataset.fingerprint_splits(files)}
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
        model=_with_head(network),
        preprocessing=preprocessing,
        class_names=spec.class_names,
        channels=spec.channels,
        label_values=spec.label_values,
        output_values=output_values,
        provenance={"dataset": config.dataset, "run": folder.name, "seed": config.seed, **environment},
    )
    try:
        best_epoch = fit(config, bundle, network, files, folder)
        score(config, splits["test"], folder, {"best_epoch": best_epoch, "weights_sha256": hash_weights(network)})
    except KeyboardInterrupt:
        log.info("the finished epochs are kept; go on with: python train.py --resume %s", folder)
        raise


def fit(config: RunConfig, bundle: ModelBundle, network, files: dict[str, list[Path]], folder: Path) -> int:
    """Trains `network`, which the bundle's model shares its weights with; saves the best bundle; returns its epoch (from 1)."""
    import keras

    from modules.callbacks import Checkpoint, KeepBest, Progress, Record
    from modules.losses import SegmentationLoss
    from modules.metrics import Overlap

    shape, channels = bundle.preprocessing.shape, len(bundle.channels)
    steps = math.ceil(len(files["train"]) / config.batch_size)
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, config.epochs * steps)
    network.compile(
        optimizer=keras.optimizers.Adam(rate, weight_decay=config.weight_decay or None),
        loss=SegmentationLoss(config.loss),
        metrics=[Overlap(bundle.class_names)],
    )
    record = Record(folder, bundle.class_names, steps * config.batch_size)
    keep_best = KeepBest(lambda: bundle.save(folder / "bundle"), config.patience)
    checkpoint = Checkpoint(folder / "checkpoint" / "last.npz", [record, keep_best])
    done = checkpoint.restore(network)
    log.info("%s: %s weights, %d steps an epoch, begins at epoch %d", config.network, f"{network.count_params():,}", steps, done + 1)
    if not keep_best.finished:
        settings = {"batch_size": config.batch_size, "seed": config.seed}
        network.fit(
            dataset.make_pipeline(files["train"], shape, channels, training=True, first_step=done * steps, **settings),
            validation_data=dataset.make_pipeline(files["validate"], shape, channels, training=False, **settings),
            initial_epoch=done,
            epochs=config.epochs,
            steps_per_epoch=steps,
            callbacks=[record, keep_best, checkpoint, Progress(config.epochs, steps, done)],
            shuffle=False,
            verbose=0,
        )
    return keep_best.best_epoch


def score(config: RunConfig, cases: Sequence[dataset.Case], folder: Path, summary: dict) -> None:
    """Scores the saved bundle on the test cases as they lie on disk, slice by slice and as whole scans; draws three of them."""
    from modules import reports

    bundle = ModelBundle.load(folder / "bundle")
    progress = tqdm(
        bundle.predict_cases(cases, config.batch_size), total=len(cases), desc="scoring", unit="case", leave=False, disable=None
    )
    scores = list(scoring.score_predictions(progress, bundle.class_names))
    scoring.write_scores(folder / "scores.csv", scores)
    means = scoring.summarise(scores)
    for line in scoring.format_summary(means):
        log.info("%s", line)
    examples = choose_examples(scores, cases)
    drawn = bundle.predict_cases(examples.values(), config.batch_size)
    for name, (case, image, label, probabilities) in zip(examples, drawn, strict=True):
        dice = {item.class_name: item.dice for item in scores if item.level == "slice" and item.case == case.case_id}
        reports.draw_comparison(
            folder / "figures" / f"comparison_{name}_{case.case_id}.png",
            image.array,
            label,
            probabilities.argmax(axis=-1),
            bundle.class_names,
            title=f"{case.case_id} ({name} test slice)",
            scores=dice,
            spacing_mm=image.spacing_mm,
        )
    replace(bundle, provenance={**bundle.provenance, "scores": utils.without_nan(means)}).save(folder / "bundle")
    utils.write_json(folder / "summary.json", {**summary, "bundle_weights_sha256": hash_weights(bundle.model), "test": means})
    log.info("pictures: %s\nnext: python predict.py IMAGE --model %s", folder / "figures", folder)


def choose_examples(scores: Sequence[scoring.Score], cases: Sequence[dataset.Case]) -> dict[str, dataset.Case]:
    """The best, median and worst slice by mean Dice among those whose label holds any foreground (else among all)."""
    dice: dict[str, list[float]] = {}
    occupied = set()
    for item in scores:
        if item.level == "slice":
            # A class that is in neither label nor prediction says nothing about a slice.
            dice.setdefault(item.case, []).extend([] if math.isnan(item.dice) else [item.dice])
            if item.reference_voxels:
                occupied.add(item.case)
    by_id = {case.case_id: case for case in cases}
    ranked = sorted((sum(values) / max(len(values), 1), case) for case, values in dice.items() if case in occupied or not occupied)
    return {name: by_id[ranked[place][1]] for name, place in (("best", -1), ("median", len(ranked) // 2), ("worst", 0))}


def _build_network(config: RunConfig, spec: dataset.DatasetSpec, shape: tuple[int, ...]):
    """Builds the network before anything is written, so that a wrong option costs nothing."""
    utils.seed_everything(config.seed)
    from modules import networks
    from modules.losses import SegmentationLoss

    if len(shape) != spec.spatial_dims:
        raise ValueError(f"Expected `shape` of {spec.spatial_dims} sizes for '{spec.name}'. Received: {shape}.")
    options = {"base_filters": config.base_filters, "norm": config.norm, "dropout": config.dropout}
    network = networks.build(config.network, (*shape, len(spec.channels)), len(spec.class_names), **options)
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


def _with_head(network):
    from modules.networks import with_head

    return with_head(network)


def _introduce() -> None:
    """Says what there is and what to type next."""
    log.info("Data sets (python train.py --dataset NAME [--data FOLDER]):")
    for spec in dataset.DATASETS.values():
        folder = utils.default_data_folder(spec.name)
        place = f"found in {folder}" if folder.is_dir() else f"not in {folder}; {spec.url}"
        log.info("  %-8s %s\n           %s\n           %s: %s", spec.name, spec.title, place, spec.licence, spec.terms)
    log.info("Presets (python train.py --preset NAME): %s", ", ".join(utils.PRESETS))
    found = next((name for name in dataset.DATASETS if utils.default_data_folder(name).is_dir()), None)
    log.info("Next: python train.py --dataset %s", found or "hipmri --demo   (a drawn pelvis, a few minutes)")


if __name__ == "__main__":
    sys.exit(main())
