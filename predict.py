"""Predicts label maps for scans, each on its own grid: `python predict.py image.nii.gz`.

The model knows its preprocessing and classes. Without `--model` the run that finished last gives the model. A file that cannot be
predicted does not end the others; the exit status is then 3. `--export` writes a run's model for other programs instead.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import utils
from dataset import DATASETS
from modules import score_tables, scoring
from modules.data.case import Case, Predicted
from modules.data.formats import write_label_like, write_probabilities_like
from modules.data.inventory import describe_ignored
from modules.data.regions import name_shown, to_shown
from modules.predict.batch import Batch, find_incomplete
from modules.predict.bundle import ModelBundle, identify
from modules.predict.cases import PredictionOptions, predict_cases
from modules.predict.departures import Departures
from modules.predict.export import DESCRIPTION, export_model
from modules.predict.inputs import find_images, make_cases
from modules.predict.postprocess import describe_shared
from modules.predict.progress import PredictionProgress
from modules.run.flags import parse_prediction
from modules.run.folder import RunFolder
from modules.run.listing import find_newest_run, list_models
from modules.run.report import write_predictions_report
from utils import log

SOME_FAILED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("predict.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parse_prediction(argv)
    utils.start_log()
    if options.export:
        export(options)
        return 0
    runs = list_models(Path(run) for run in options.model or [find_newest_run()])
    found = find_images(options.paths, [spec.label_rule for spec in DATASETS.values()], options.series)
    if not found.images:
        raise found.failures[0]
    bundles = [_name_labels(ModelBundle.load(run, options.engine, options.precision)) for run in runs]
    cases, unusable = make_cases(found.images, Path(options.labels) if options.labels else None, bundles[0])
    if options.ignore_geometry:
        cases = [replace(case, ignore_geometry=True) for case in cases]
    names = [f"{run} ({bundle.engine}, {bundle.computed_in})" for run, bundle in zip(runs, bundles, strict=True)]
    log.info("%d case(s), model %s: %s", len(cases), ", ".join(names), ", ".join(bundles[0].class_names))
    for remark in [*found.remarks, *describe_ignored(cases)]:
        log.info("%s", remark)
    if options.overlap != PredictionOptions.overlap and all(bundle.preprocessing.resize for bundle in bundles):
        log.warning("--overlap has no effect: the model sees each scan whole")
    steps, wanted = [bundle.postprocessing for bundle in bundles], not options.no_postprocess
    if line := describe_shared(steps, bundles[0].class_names, bundles[0].preprocessing.spatial_dims, wanted=wanted):
        log.info("%s", line)

    models = [[identify(run), bundle.engine, bundle.computed_in] for run, bundle in zip(runs, bundles, strict=True)]
    made_by = {
        "models": models,
        "overlap": options.overlap,
        "mirror": [bundle.mirror if options.mirror is None else options.mirror for bundle in bundles],
    }
    made_by |= {"ignore_geometry": True} if options.ignore_geometry else {}
    made_by |= {} if wanted else {"postprocess": False}
    batch = Batch(Path(options.output or "predictions"), made_by, probabilities=options.probabilities)
    for error in [*found.failures, *unusable]:
        batch.refuse(error)
    predict(bundles, cases, batch, options)
    log.info("%s", batch.describe())
    if batch.errors and not batch.done and not batch.skipped:
        raise batch.errors[0]
    write_predictions_report(batch.output)
    log.info("label maps and pictures: %s", batch.output)
    return SOME_FAILED if batch.errors else 0


def _name_labels(bundle: ModelBundle) -> ModelBundle:
    """Gives a bundle of format 3, which knew no names of labels, those of its data set in the catalogue."""
    spec = DATASETS.get(bundle.label_rule.source)
    if bundle.label_rule.renames or spec is None:
        return bundle
    return replace(bundle, label_rule=replace(bundle.label_rule, renames=spec.label_rule.renames))


def predict(bundles: Sequence[ModelBundle], cases: Sequence[Case], batch: Batch, options: Namespace) -> None:
    """Predicts the cases that are not there yet, and writes the scores of all that are, if `options.labels` asks for them."""
    table = batch.output / "scores.csv"
    earlier = score_tables.read_scores(table) if options.labels and table.is_file() and not options.overwrite else []
    batch.add(cases, [score.case for score in earlier] if options.labels else None, overwrite=options.overwrite)
    scores, departures = [], Departures(bundles)
    try:
        with PredictionProgress(len(batch.todo), "predicting") as progress:
            reports = {"on_failure": batch.fail, "on_image": departures.check}
            chosen = {"overlap": options.overlap, "mirror": options.mirror, "postprocess": not options.no_postprocess}
            settings = progress.options(**chosen, **reports)
            predicted = progress.count(predict_cases(bundles, batch.todo, settings, keep_probabilities=options.probabilities))
            written = write_predictions(predicted, bundles[0], batch)
            for score in scoring.score_predictions(written, bundles[0].class_names, bundles[0].regions):
                scores.append(score)
    finally:
        departures.summarise()
        # An interrupted call keeps the scores of the label maps that it leaves.
        kept = {name for case in batch.skipped for name in (case.case_id, case.volume_id)}
        scores = [score for score in earlier if score.case in kept] + scores
        incomplete = find_incomplete([*batch.failed, *(case for case in cases if case.label_path is None)])
        scores = score_tables.sort_by_case([score for score in scores if score.case not in incomplete], cases)
        if options.labels and scores:
            score_tables.write_scores(table, scores)
    if options.labels:
        for line in score_tables.format_summary(score_tables.summarise(scores)):
            log.info("%s", line)


def export(options: Namespace) -> None:
    """Writes the model of the one run in `options.paths` for other programs.

    Raises:
        ValueError: If there is not exactly one run, or `modules.predict.export.export_model` refuses.
    """
    runs = list_models(Path(path) for path in options.paths)
    if len(runs) != 1:
        names = ", ".join(map(str, runs[:8])) + (", ..." if len(runs) > 8 else "")
        raise ValueError(f"Expected one run to export. Received: {names}. Name one of them, as in --export {options.export} {runs[0]}.")
    bundle = ModelBundle.load(runs[0], "keras")
    path = export_model(bundle, options.export, Path(options.output or RunFolder(runs[0]).export))
    log.info("model: %s, and how it is used: %s", path, path.with_name(DESCRIPTION))


def write_predictions(predicted: Iterable[Predicted], bundle: ModelBundle, batch: Batch) -> Iterator[Predicted]:
    """Writes label map, overlay and kept probabilities of each case, and passes on the case unless that fails."""
    for item in predicted:
        try:
            batch.begin(item.case)
            write_prediction(item, bundle, batch.list_outputs(item.case))
            batch.finish(item.case)
        except (ValueError, OSError, MemoryError) as error:
            batch.fail(item.case, error)
        else:
            yield item


def write_prediction(item: Predicted, bundle: ModelBundle, files: Mapping[str, Path]) -> None:
    """Writes label map, overlay and kept probabilities of one case into `files`, given by kind."""
    from modules import reports

    image, source = item.image, item.case.image_paths[0]
    write_label_like(files["prediction"], bundle.label_rule.to_file_values(item.prediction), source, image.affine)
    maps = (image.array, to_shown(item.prediction, bundle.regions), name_shown(bundle.class_names, bundle.regions))
    reports.draw_overlay(files["overlay"], *maps, title=item.case.case_id, spacing_mm=image.spacing_mm, affine=image.affine)
    if item.probabilities is not None:
        write_probabilities_like(files["probabilities"], item.probabilities, source, image.affine)


if __name__ == "__main__":
    sys.exit(main())
