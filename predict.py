"""Predicts label maps for scans, each on its own grid: `python predict.py image.nii.gz`.

The model knows its preprocessing and classes; without `--model` the run that finished last is taken. `--export` writes a run's model
for other programs instead.
"""

import glob
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import dataset
import utils
from modules import engines, records, scoring
from modules.bundle import ModelBundle, Predicted, predict_cases
from modules.export import DESCRIPTION, FORMATS, export_model
from modules.volume import NIFTI_SUFFIXES, SUFFIXES, Case, stem_of, suffix_of, write_label_like, write_probabilities_like
from utils import log

OUTPUTS = ("_prediction", "_overlay", "_probabilities")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("predict.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    utils.start_log()
    if options.export:
        export(options)
        return
    runs = records.list_runs(Path(run) for run in options.model or [records.newest_run()])
    files = find_images(options.paths)
    bundles = [ModelBundle.load(run, options.engine) for run in runs]
    cases = make_cases(files, Path(options.labels) if options.labels else None, bundles[0])
    names = [f"{run} ({bundle.engine})" for run, bundle in zip(runs, bundles, strict=True)]
    log.info("%d case(s), model %s: %s", len(cases), ", ".join(names), ", ".join(bundles[0].class_names))

    output = Path(options.output or "predictions")
    with utils.PredictionProgress(len(cases), "predicting") as progress:
        settings = progress.settings(overlap=options.overlap, mirror=options.mirror)
        predicted = progress.count(predict_cases(bundles, cases, settings, keep_probabilities=options.probabilities))
        written = write_predictions(predicted, bundles[0], output)
        scores = list(scoring.score_predictions((item[:4] for item in written), bundles[0].class_names))
    if options.labels:
        scoring.write_scores(output / "scores.csv", scores)
        for line in scoring.format_summary(scoring.summarise(scores)):
            log.info("%s", line)
    log.info("label maps and pictures: %s", output)


def export(options: Namespace) -> None:
    """Writes the model of the one run in `options.paths` for other programs.

    Raises:
        ValueError: If there is not exactly one, and for what `modules.export.export_model` refuses.
    """
    runs = records.list_runs(Path(path) for path in options.paths)
    if len(runs) != 1:
        raise ValueError(f"Expected one run to export. Received: {', '.join(map(str, runs))}. Name one of them.")
    bundle = ModelBundle.load(runs[0], "keras")
    path = export_model(bundle, options.export, Path(options.output or runs[0] / "export"))
    log.info("model: %s, and how it is used: %s", path, path.with_name(DESCRIPTION))


def find_images(paths: Sequence[str]) -> list[Path]:
    """Resolves files, folders (with all that is below them) and globs to images; leaves out their labels and earlier output.

    Raises:
        FileNotFoundError: If a path matches nothing.
        ValueError: If a file is of a kind that is not read here, or two would be written under one name.
    """
    files: list[Path] = []
    for path in paths:
        if Path(path).is_file():
            found = [Path(path)]
        else:
            below = Path(path).rglob("*") if Path(path).is_dir() else (Path(name) for name in glob.glob(path, recursive=True))
            found = sorted(file for file in below if file.is_file() and suffix_of(file) and not file.name.startswith("."))
            found = [file for file in found if not stem_of(file).endswith(OUTPUTS)]
        if not found:
            raise FileNotFoundError(f"Expected images ({', '.join(SUFFIXES)}) at {path}. Received: none there. Check the path.")
        files += found
    rules = [spec.label_name for spec in dataset.DATASETS.values()]
    # By name alone: data sets keep labels beside the images or in a folder of their own.
    labels = {rule(file.name) for file in files for rule in rules if rule(file.name) != file.name}
    images: dict[str, Path] = {}
    for file in files:
        if file.name in labels:
            continue
        if not suffix_of(file):
            raise ValueError(f"Expected an image ({', '.join(SUFFIXES)}). Received: {file}.")
        if images.setdefault(stem_of(file), file) != file:
            raise ValueError(
                f"Expected images of different names. Received: {images[stem_of(file)]} and {file}. Predict them in two calls."
            )
    return list(images.values())


def make_cases(files: Sequence[Path], labels: Path | None, bundle: ModelBundle) -> list[Case]:
    """Makes a case of each image, with the label that the model's data set would have for it in the folder `labels` or below it.

    Files `<name>_0000`, `<name>_0001`, ... (nnU-Net's way) are the channels of one case.

    Raises:
        FileNotFoundError: If `labels` is given and holds none for an image.
        ValueError: If it holds several.
    """
    spec = dataset.DATASETS.get(bundle.provenance.get("dataset", ""))
    candidates: dict[str, list[Path]] = {}
    for path in labels.rglob("*") if labels is not None else ():
        candidates.setdefault(path.name, []).append(path)
    cases = []
    for paths in group_channels(files, len(bundle.channels)):
        file, name = paths[0], stem_of(paths[0])
        volume_id, index = dataset.place_in_volume(name) if bundle.preprocessing.spatial_dims == 2 else (None, 0)
        if len(paths) > 1:
            name = name.removesuffix("_0000")
        label = None
        if labels is not None:
            names = dict.fromkeys([spec.label_name(file.name), file.name] if spec else [file.name])
            found = next(filter(None, ([path for path in candidates.get(other, ()) if path != file] for other in names)), [])
            if not found:
                raise FileNotFoundError(f"Expected a label for {file}. Received: no {' or '.join(names)} in {labels}.")
            if len(found) > 1:
                raise ValueError(f"Expected one label for {file}. Received: {found[0]} and {found[1]}. Name a folder with one of them.")
            label = found[0]
        cases.append(Case(name, volume_id or name, paths, label, None, volume_id, index))
    return sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index))


def group_channels(files: Sequence[Path], channels: int) -> list[tuple[Path, ...]]:
    """Puts files `<name>_0000`, `<name>_0001`, ... of one case together, for a model of several channels; others stay alone.

    Raises:
        FileNotFoundError: If a channel's file is not among `files`.
    """
    if channels == 1:
        return [(file,) for file in files]
    given = set(files)
    groups, grouped = [], set()
    for first in files:
        if stem_of(first).endswith("_0000"):
            stem = stem_of(first).removesuffix("_0000")
            group = tuple(first.with_name(f"{stem}_{channel:04d}{suffix_of(first)}") for channel in range(channels))
            for file in group:
                if file not in given:
                    raise FileNotFoundError(f"Expected {channels} channels of {first}. Received: no {file.name}. Give all its files.")
            groups.append(group)
            grouped |= set(group)
    return groups + [(file,) for file in files if file not in grouped]


def write_predictions(predicted: Iterable[Predicted], bundle: ModelBundle, output: Path) -> Iterator[Predicted]:
    """Writes label map, overlay and, where they were kept, probabilities of each case, and passes the case on."""
    from modules import reports

    for item in predicted:
        case, image, source = item.case, item.image, item.case.image_paths[0]
        write_label_like(output / f"{case.case_id}_prediction{suffix_of(source)}", bundle.to_file_values(item.prediction), source)
        drawn = (image.array, item.prediction, bundle.class_names)
        geometry = {"spacing_mm": image.spacing_mm, "affine": image.affine}
        reports.draw_overlay(output / f"{case.case_id}_overlay.png", *drawn, title=case.case_id, **geometry)
        if item.probabilities is not None:
            suffix = suffix_of(source) if suffix_of(source) in NIFTI_SUFFIXES else ".npz"
            write_probabilities_like(output / f"{case.case_id}_probabilities{suffix}", item.probabilities, source)
        yield item


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = utils.OneLineParser(prog="predict.py", description="Predicts label maps for scans, each on its own grid.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"files, folders or globs of {', '.join(SUFFIXES)}; for --export the run")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="RUN",
        help="runs, cross-validations or bundles; of several models the mean (default: the run under runs/ that finished last)",
    )
    parser.add_argument(
        "--engine",
        choices=engines.ENGINES,
        default="auto",
        help="what computes the model; auto: on a CPU OpenVINO, where it is installed and the model was converted, else Keras",
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="share of a window that its neighbour has too (default %(default)s)")
    parser.add_argument("--mirror", action="store_true", help="average over flips too: better by a little, 4 to 8 times as slow")
    parser.add_argument("--output", metavar="DIR", help="where to write (default predictions, or export in the run's folder)")
    parser.add_argument("--labels", metavar="DIR", help="folder of reference labels: writes scores.csv and prints the means")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
    parser.add_argument(
        "--export",
        choices=FORMATS,
        help="write the model of the run PATH for other programs, and how it is used; no prediction",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.overlap < 1:
        raise ValueError(f"Expected `overlap` from 0 to below 1. Received: {options.overlap}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
