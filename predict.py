"""Predicts label maps for scans, each on its own grid: `python predict.py image.nii.gz`.

The model knows its preprocessing and classes. Without `--model` the run that finished last gives the model. `--export` writes a run's
model for other programs instead.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import utils
from dataset import DATASETS
from modules import score_tables, scoring
from modules.data.case import Predicted
from modules.data.files import NIFTI_SUFFIXES, SUFFIXES, suffix_of
from modules.data.formats import write_label_like, write_probabilities_like
from modules.predict import engines
from modules.predict.bundle import ModelBundle
from modules.predict.cases import predict_cases
from modules.predict.export import DESCRIPTION, FORMATS, export_model
from modules.predict.inputs import find_images, make_cases
from modules.predict.progress import PredictionProgress
from modules.run.flags import OneLineParser
from modules.run.folder import RunFolder, find_newest_run, list_runs
from utils import log


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("predict.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    utils.start_log()
    if options.export:
        export(options)
        return
    runs = list_runs(Path(run) for run in options.model or [find_newest_run()])
    files = find_images(options.paths, [spec.label_rule for spec in DATASETS.values()])
    bundles = [ModelBundle.load(run, options.engine) for run in runs]
    cases = make_cases(files, Path(options.labels) if options.labels else None, bundles[0])
    names = [f"{run} ({bundle.engine})" for run, bundle in zip(runs, bundles, strict=True)]
    log.info("%d case(s), model %s: %s", len(cases), ", ".join(names), ", ".join(bundles[0].class_names))

    output = Path(options.output or "predictions")
    with PredictionProgress(len(cases), "predicting") as progress:
        settings = progress.options(overlap=options.overlap, mirror=options.mirror)
        predicted = progress.count(predict_cases(bundles, cases, settings, keep_probabilities=options.probabilities))
        written = write_predictions(predicted, bundles[0], output)
        scores = list(scoring.score_predictions(written, bundles[0].class_names))
    if options.labels:
        score_tables.write_scores(output / "scores.csv", scores)
        for line in score_tables.format_summary(score_tables.summarise(scores)):
            log.info("%s", line)
    log.info("label maps and pictures: %s", output)


def export(options: Namespace) -> None:
    """Writes the model of the one run in `options.paths` for other programs.

    Raises:
        ValueError: If there is not exactly one run, or `modules.predict.export.export_model` refuses.
    """
    runs = list_runs(Path(path) for path in options.paths)
    if len(runs) != 1:
        raise ValueError(f"Expected one run to export. Received: {', '.join(map(str, runs))}. Name one of them.")
    bundle = ModelBundle.load(runs[0], "keras")
    path = export_model(bundle, options.export, Path(options.output or RunFolder(runs[0]).export))
    log.info("model: %s, and how it is used: %s", path, path.with_name(DESCRIPTION))


def write_predictions(predicted: Iterable[Predicted], bundle: ModelBundle, output: Path) -> Iterator[Predicted]:
    """Writes label map, overlay and kept probabilities of each case, and passes the case on."""
    from modules import reports

    for item in predicted:
        case, image, source = item.case, item.image, item.case.image_paths[0]
        write_label_like(
            output / f"{case.case_id}_prediction{suffix_of(source)}", bundle.label_rule.to_file_values(item.prediction), source
        )
        maps = (image.array, item.prediction, bundle.class_names)
        geometry = {"spacing_mm": image.spacing_mm, "affine": image.affine}
        reports.draw_overlay(output / f"{case.case_id}_overlay.png", *maps, title=case.case_id, **geometry)
        if item.probabilities is not None:
            suffix = suffix_of(source) if suffix_of(source) in NIFTI_SUFFIXES else ".npz"
            write_probabilities_like(output / f"{case.case_id}_probabilities{suffix}", item.probabilities, source)
        yield item


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = OneLineParser(prog="predict.py", description="Predicts label maps for scans, each on its own grid.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"files, folders or globs of {', '.join(SUFFIXES)}; for --export the run")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="RUN",
        help="runs, cross-validations or bundles; several models are averaged (default: the run under runs/ that finished last)",
    )
    parser.add_argument(
        "--engine",
        choices=engines.ENGINES,
        default="auto",
        help="engine that computes the model; auto: on a CPU OpenVINO, if it is installed and the model was converted, else Keras",
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="fraction of a window that its neighbour shares (default %(default)s)")
    parser.add_argument("--mirror", action="store_true", help="average over flips too: a little better, 4 to 8 times as slow")
    parser.add_argument("--output", metavar="DIR", help="where to write (default predictions, or export in the run's folder)")
    parser.add_argument("--labels", metavar="DIR", help="folder of reference labels: writes scores.csv and prints the means")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
    parser.add_argument(
        "--export",
        choices=FORMATS,
        help="predict nothing; write the model of the run PATH for other programs, and how to use it",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.overlap < 1:
        raise ValueError(f"Expected `overlap` from 0 to below 1. Received: {options.overlap}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
