"""The flags of predict.py."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules.backend_choice import choose_backend, choose_for_export
from modules.data.files import LABEL_FORMATS, SUFFIXES
from modules.predict import engines
from modules.predict.bundle import ModelBundle, identify
from modules.predict.cases import PredictionOptions
from modules.predict.export import EXPORT_PRECISIONS, FORMATS
from modules.predict.outputs import SAVED
from modules.predict.shards import parse_shard
from modules.run.flags import OneLineParser, add_backend_flag
from modules.run.workers import add_worker_flags, take_worker_options

# Each is compiled and computed for itself.
MOST_DROPOUT = 100


def parse_prediction(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags of predict.py; raises ValueError for an unknown flag or value, and for flags that contradict each other."""
    parser = OneLineParser(
        prog="predict.py",
        description="Predicts label maps for scans, each on its own grid.",
        epilog="Exit status: 0 all is there; 2 wrong usage, or nothing was done; 3 some scans failed and the others are there; 130 "
        "interrupted. The same command again does what is missing.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help=f"files, folders or globs of {', '.join(SUFFIXES)} or DICOM; for --export the run"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="RUN",
        help="runs, cross-validations or bundles; several models are averaged (default: the run under runs/ that finished last)",
    )
    add_backend_flag(parser)
    parser.add_argument(
        "--engine",
        choices=engines.ENGINES,
        default="auto",
        help="engine that computes the model; auto: on a CPU OpenVINO, if it is installed and the model was converted, else Keras",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(dict.fromkeys((*engines.PRECISIONS, *EXPORT_PRECISIONS))),
        default="auto",
        help="precision of OpenVINO on a CPU; auto: what the training decided on, where this CPU computes in it, else float32; beside "
        "--export openvino that of the file, float32 with auto; int8 is for such a file alone",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=PredictionOptions.overlap,
        help="fraction of a window that its neighbour shares (default %(default)s)",
    )
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average over flips too: a little better, 4 to 8 times as slow (default: what the training decided on)",
    )
    parser.add_argument(
        "--dropout",
        type=int,
        default=0,
        metavar="N",
        help="average over N models that dropout thins, where the model has dropout; with --save uncertainty their disagreement shows what "
        "it has not learnt (needs --engine keras)",
    )
    parser.add_argument("--no-postprocess", action="store_true", help="leave out the postprocessing that the model was shipped with")
    parser.add_argument("--output", metavar="DIR", help="where to write (default predictions, or export in the run's folder)")
    parser.add_argument("--labels", metavar="DIR", help="folder of reference labels: writes scores.csv and prints the means")
    parser.add_argument(
        "--subjects",
        default="",
        metavar="RULE",
        help="who was scanned, for intervals and tables: a .csv of case,subject, or a regular expression with the subject in its first "
        "group (default: as BIDS names it, else one subject a scan)",
    )
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        nargs="+",
        default=(),
        metavar="MM",
        help="with --labels: distance that the normalised surface Dice tolerates: one, or one a class (default the size of a voxel)",
    )
    parser.add_argument("--series", default="", metavar="ID", help="DICOM series to predict: its UID, number, or description or part of it")
    parser.add_argument("--ignore-geometry", action="store_true", help="use labels voxel by voxel, wherever their headers say they lie")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="predict part I of N, from 0/N, beside calls for the other parts")
    add_worker_flags(parser)
    parser.add_argument(
        "--no-results", action="store_true", help="leave results.json, volumes.csv and report.html to a later call, as one of many shards"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of the engine on a CPU (default: as many as cores)")
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help="windows computed together (default: by their size)")
    parser.add_argument(
        "--max-memory", type=float, default=0.0, metavar="GIB", help="memory of the host to keep within; scans too large for it are refused"
    )
    parser.add_argument("--log-json", metavar="FILE", help="append a JSON object for each scan: status, seconds, memory, error, files")
    parser.add_argument("--overwrite", action="store_true", help="predict all images again, also those whose label maps are there already")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
    parser.add_argument(
        "--format", choices=LABEL_FORMATS, default="", help="format of the label maps (default: the scan's own; NIfTI for DICOM)"
    )
    parser.add_argument(
        "--save",
        action="append",
        choices=SAVED,
        default=[],
        help="write more: a segmentation with names and colours for 3D Slicer, or one of DICOM for DICOM; maps of entropy and mutual "
        "information; may be given several times",
    )
    parser.add_argument(
        "--check-below",
        type=float,
        metavar="DICE",
        help="say `check this one` where the predicted Dice of a class is below this (default: what the training learnt)",
    )
    parser.add_argument(
        "--export",
        choices=FORMATS,
        help="predict nothing; write the model of the run PATH for other programs, and how to use it",
    )
    options = parser.parse_args(argv)
    options.workers = take_worker_options(vars(options))
    for name in (
        (
            "model",
            "engine",
            "overlap",
            "mirror",
            "dropout",
            "no_postprocess",
            "labels",
            "subjects",
            "tolerance_mm",
            "series",
            "ignore_geometry",
            "shard",
            "no_results",
            "threads",
            "batch_size",
            "max_memory",
            "log_json",
            "overwrite",
            "probabilities",
            "format",
            "save",
            "check_below",
        )
        if options.export
        else ()
    ):
        if getattr(options, name) != parser.get_default(name):
            flag = name.replace("_", "-")
            raise ValueError(f"Expected --export alone with a run. Received: --{flag} too, which only a prediction reads. Leave one out.")
    if options.export and options.workers:
        raise ValueError("Expected --export alone with a run. Received: workers too, which only a prediction has. Leave one out.")
    if options.precision != "auto" and options.export not in (None, "openvino"):
        raise ValueError(f"Expected --export openvino beside --precision. Received: --export {options.export}. Leave --precision out.")
    if options.precision not in engines.PRECISIONS and not options.export:
        raise ValueError(f"Expected --export openvino beside --precision {options.precision}. Received: a prediction. Export it first.")
    if options.ignore_geometry and not options.labels:
        raise ValueError("Expected --labels beside --ignore-geometry. Received: none, and only labels are compared. Name their folder.")
    if options.tolerance_mm and not options.labels:
        raise ValueError("Expected --labels beside --tolerance-mm. Received: none, and nothing is scored. Name their folder.")
    if options.tolerance_mm and not min(options.tolerance_mm) > 0:
        raise ValueError(f"Expected --tolerance-mm above 0. Received: {min(options.tolerance_mm):g}. Give mm.")
    if options.check_below is not None and not 0 <= options.check_below <= 1:
        raise ValueError(f"Expected --check-below from 0 to 1. Received: {options.check_below:g}. Give a Dice.")
    if options.dropout != 0 and not 2 <= options.dropout <= MOST_DROPOUT:
        raise ValueError(f"Expected --dropout from 2 to {MOST_DROPOUT}. Received: {options.dropout}. One model disagrees with nobody.")
    if not 0 <= options.overlap < 1:
        raise ValueError(f"Expected `overlap` from 0 to below 1. Received: {options.overlap}.")
    for name in ("threads", "batch_size", "max_memory"):
        value = getattr(options, name)
        if value != parser.get_default(name) and not 0 < value < math.inf:
            raise ValueError(f"Expected `{name}` above 0. Received: {value}. Leave it out for the default.")
    options.shard = parse_shard(options.shard)
    if options.workers and (options.shard.number > 1 or options.no_results):
        other = "--no-results" if options.no_results else f"--shard {options.shard}"
        raise ValueError(f"Expected workers without {other}. Received: both. Leave one out.")
    if options.backend or not options.export:
        choose_backend(options.backend)
    else:
        choose_for_export()
    return options


def record_choices(options: argparse.Namespace, runs: Sequence[Path], bundles: Sequence[ModelBundle]) -> dict[str, Any]:
    """Records all that a label map and its scores depend on: results of other choices do not mix with these.

    Args:
        options: The flags.
        runs: The models, as the user named them.
        bundles: The same, loaded.
    """
    choices: dict[str, Any] = {
        "models": [[identify(run), bundle.engine, bundle.computed_in] for run, bundle in zip(runs, bundles, strict=True)],
        "overlap": options.overlap,
        "mirror": [bundle.mirror if options.mirror is None else options.mirror for bundle in bundles],
    }
    choices |= {"ignore_geometry": True} if options.ignore_geometry else {}
    choices |= {"dropout": options.dropout} if options.dropout else {}
    choices |= {"postprocess": False} if options.no_postprocess else {}
    choices |= {} if options.check_below is None else {"check_below": options.check_below}
    return choices | ({"tolerance_mm": options.tolerance_mm} if options.tolerance_mm else {})
