"""Predicts label maps for scans, each on its own grid: `python predict.py image.nii.gz`.

The model knows its preprocessing and classes. Without `--model` the run that finished last gives the model. A file that cannot be
predicted does not end the others; the exit status is then 3. `--shard` predicts one part of the scans beside other such calls, and
`--workers` makes these calls. `--export` writes a run's model for other programs instead.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import utils
from dataset import DATASETS
from modules import score_lines, score_tables, scoring
from modules.compiled import keep_compiled
from modules.data.case import Case
from modules.data.files import hold
from modules.data.inventory import describe_ignored
from modules.data.subjects import assign_subjects
from modules.packages import can_draw
from modules.predict.batch import Batch, find_incomplete
from modules.predict.bundle import ModelBundle, read_channels
from modules.predict.case_log import CaseLog
from modules.predict.cases import PredictionOptions, choose_batch_size, predict_cases
from modules.predict.departures import Departures
from modules.predict.export import DESCRIPTION
from modules.predict.inputs import find_images, make_cases
from modules.predict.judge import can_judge, check_limit
from modules.predict.memory import MemoryLimit
from modules.predict.outputs import check_packages, part_unfit
from modules.predict.postprocess import describe_shared
from modules.predict.progress import PredictionProgress
from modules.predict.results import write_results
from modules.run.folder import RunFolder
from modules.run.listing import find_newest_run, list_models
from modules.run.prediction_flags import parse_prediction, record_choices
from modules.run.prediction_parts import predict_parts
from modules.run.report import write_predictions_report
from modules.run.settings import Settings
from modules.run.shared_scores import add_scores, list_scored
from modules.run.written import write_predictions
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
    check_packages(options.format, options.save)
    runs = list_models(Path(run) for run in options.model or [find_newest_run()])
    # Wrong paths are told before a model is loaded.
    found = find_images(options.paths, [spec.label_rule for spec in DATASETS.values()], options.series, read_channels(runs[0]))
    if not found.images:
        raise found.failures[0]
    if options.workers and not predict_parts(Path(__file__), argv, options, runs, options.workers):
        return SOME_FAILED
    if (cache := Path(Settings.cache)).is_dir():
        # A prediction makes no such folder; a training has made it here.
        keep_compiled(cache)
    bundles = [_name_labels(ModelBundle.load(run, options.engine, options.precision, options.threads)) for run in runs]
    check_limit(bundles, options.check_below)
    cases, unusable = make_cases(found.images, Path(options.labels) if options.labels else None, bundles[0])
    cases, unfit = part_unfit(cases, options.format, options.save)
    cases = assign_subjects(cases, options.subjects)
    if options.ignore_geometry:
        cases = [replace(case, ignore_geometry=True) for case in cases]
    names = [f"{run} ({bundle.engine}, {bundle.computed_in})" for run, bundle in zip(runs, bundles, strict=True)]
    part = f", of which shard {options.shard} has {len(options.shard.choose(cases))}" if options.shard.number > 1 else ""
    log.info("%d case(s)%s, model %s: %s", len(cases), part, ", ".join(names), ", ".join(bundles[0].class_names))
    for remark in [*found.remarks, *describe_ignored(cases)]:
        log.info("%s", remark)
    if options.overlap != PredictionOptions.overlap and all(bundle.preprocessing.resize for bundle in bundles):
        log.warning("--overlap has no effect: the model sees each scan whole")
    steps, dims = [bundle.postprocessing for bundle in bundles], bundles[0].preprocessing.spatial_dims
    if line := describe_shared(steps, bundles[0].class_names, dims, wanted=not options.no_postprocess):
        log.info("%s", line)

    made_by = record_choices(options, runs, bundles)
    scoring.check_tolerance(options.tolerance_mm, bundles[0].class_names)
    case_log = CaseLog(Path(options.log_json) if options.log_json else None)
    if not can_draw():
        log.info("no overlays: they need matplotlib and opencv-python-headless")
    kinds = {"probabilities": options.probabilities, "pictures": can_draw(), "label_format": options.format, "save": options.save}
    batch = Batch(Path(options.output or "predictions"), made_by, **kinds, case_log=case_log)
    for error in [*found.failures, *unusable, *unfit] if options.shard.leads else []:
        batch.refuse(error)
    predict(bundles, cases, batch, options)
    if (batch.done or options.workers) and not options.no_results:
        with batch.attempt():
            write_predictions_report(batch.output)
    log.info("%s", batch.describe())
    if batch.errors and not batch.done and not batch.skipped:
        raise batch.errors[0]
    log.info("label maps%s: %s", " and pictures" if can_draw() else "", batch.output)
    return SOME_FAILED if batch.errors else 0


def _name_labels(bundle: ModelBundle) -> ModelBundle:
    """Gives a bundle of format 3, which knew no names of labels, those of its data set in the catalogue."""
    spec = DATASETS.get(bundle.label_rule.source)
    if bundle.label_rule.renames or spec is None:
        return bundle
    return replace(bundle, label_rule=replace(bundle.label_rule, renames=spec.label_rule.renames))


def predict(bundles: Sequence[ModelBundle], cases: Sequence[Case], batch: Batch, options: Namespace) -> None:
    """Predicts those cases of this shard that are not there yet, and adds their scores if `options.labels` asks for them."""
    scored = list_scored(batch.output, overwrite=options.overwrite) if options.labels else None
    batch.add(options.shard.choose(cases), scored, overwrite=options.overwrite)
    scores, departures, memory = [], Departures(bundles), None
    if options.max_memory and batch.todo:
        sizes = [options.batch_size or choose_batch_size(bundle.window.deep, bundle.engine) for bundle in bundles]
        memory = MemoryLimit(options.max_memory, bundles, sizes, batch.output)
    spec = DATASETS.get(bundles[0].label_rule.source)
    try:
        with PredictionProgress(len(batch.todo), "predicting") as progress:
            reports = {"on_failure": batch.fail, "on_image": departures.check}
            chosen = {name: getattr(options, name) for name in ("overlap", "mirror", "dropout")} | {
                "postprocess": not options.no_postprocess
            }
            chosen |= {"doubt": can_judge(bundles) or "uncertainty" in options.save, "maps": "uncertainty" in options.save}
            settings = progress.options(**chosen, **reports, batch_size=options.batch_size, memory=memory)
            predicted = progress.count(predict_cases(bundles, batch.todo, settings, keep_probabilities=options.probabilities))
            written = write_predictions(predicted, bundles, batch, spec.codes if spec else {}, options.check_below)
            tolerance_mm = options.tolerance_mm
            for score in scoring.score_predictions(written, bundles[0].class_names, bundles[0].regions, tolerance_mm=tolerance_mm):
                scores.append(score)
    finally:
        departures.summarise()
        with batch.attempt():
            scores = add_scores(batch, scores, cases, overwrite=options.overwrite) if options.labels else []
        if not options.no_results:
            with batch.attempt(), hold(batch.record_path):
                subjects = score_tables.map_subjects(cases)
                write_results(batch.output, batch.list_finished(), find_incomplete(batch.failed), bundles[0], subjects)
    if options.labels:
        intervals = score_tables.estimate_intervals(scores, score_tables.map_subjects(cases))
        for line in score_lines.format_scores(score_tables.summarise(scores), intervals):
            log.info("%s", line)


def export(options: Namespace) -> None:
    """Writes the model of the one run in `options.paths` for other programs.

    Raises:
        ValueError: If there is not exactly one run, or `modules.run.export_run.export_run` refuses.
    """
    # A prediction need not wait for the rooms that judge a model.
    from modules.run.export_run import export_run

    runs = list_models(Path(path) for path in options.paths)
    if len(runs) != 1:
        names = ", ".join(map(str, runs[:8])) + (", ..." if len(runs) > 8 else "")
        raise ValueError(f"Expected one run to export. Received: {names}. Name one of them, as in --export {options.export} {runs[0]}.")
    folder = Path(options.output or RunFolder(runs[0]).export)
    path = export_run(runs[0], options.export, options.precision, folder, DATASETS)
    log.info("model: %s, and how it is used: %s", path, path.with_name(DESCRIPTION))


if __name__ == "__main__":
    sys.exit(main())
