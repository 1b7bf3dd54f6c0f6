"""Predicts label maps for scans, each on its own grid: `python predict.py image.nii.gz`.

The model knows its preprocessing and classes; without `--model` the run that finished last is taken.
"""

import glob
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import dataset
import utils
from modules import scoring
from modules.bundle import ModelBundle
from modules.volume import NIFTI_SUFFIXES, SUFFIXES, Case, stem_of, suffix_of, write_label_like, write_probabilities_like
from utils import log

BATCH_SIZE = 16
OUTPUTS = ("_prediction", "_overlay", "_probabilities")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("predict.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    utils.start_log()
    run = Path(options.model) if options.model else utils.newest_run()
    files = find_images(options.paths)
    utils.import_keras()
    bundle = ModelBundle.load(run)
    cases = make_cases(files, Path(options.labels) if options.labels else None, bundle)
    log.info("%d image(s), model %s: %s", len(cases), run, ", ".join(bundle.class_names))

    predicted = bundle.predict_cases(cases, batch_size=min(BATCH_SIZE, len(cases)))
    predicted = tqdm(predicted, total=len(cases), desc="predicting", unit="case", leave=False, disable=None)
    written = write_predictions(predicted, bundle, Path(options.output), options.probabilities)
    if options.labels:
        scores = list(scoring.score_predictions(written, bundle.class_names))
        scoring.write_scores(Path(options.output) / "scores.csv", scores)
        for line in scoring.format_summary(scoring.summarise(scores)):
            log.info("%s", line)
    else:
        for _ in written:
            pass
    log.info("label maps and pictures: %s", options.output)


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

    Raises:
        FileNotFoundError: If `labels` is given and holds none for an image.
        ValueError: If it holds several.
    """
    spec = dataset.DATASETS.get(bundle.provenance.get("dataset", ""))
    candidates: dict[str, list[Path]] = {}
    for path in labels.rglob("*") if labels is not None else ():
        candidates.setdefault(path.name, []).append(path)
    cases = []
    for file in files:
        volume_id, index = dataset.place_in_volume(stem_of(file)) if len(bundle.preprocessing.shape) == 2 else (None, 0)
        label = None
        if labels is not None:
            names = dict.fromkeys([spec.label_name(file.name), file.name] if spec else [file.name])
            found = next(filter(None, ([path for path in candidates.get(name, ()) if path != file] for name in names)), [])
            if not found:
                raise FileNotFoundError(f"Expected a label for {file}. Received: no {' or '.join(names)} in {labels}.")
            if len(found) > 1:
                raise ValueError(f"Expected one label for {file}. Received: {found[0]} and {found[1]}. Name a folder with one of them.")
            label = found[0]
        cases.append(Case(stem_of(file), volume_id or stem_of(file), (file,), label, None, volume_id, index))
    return sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index))


def write_predictions(predicted: Iterable, bundle: ModelBundle, output: Path, probabilities_too: bool) -> Iterator:
    """Writes label map, overlay and, if asked, probabilities of each case, and passes the case on."""
    from modules import reports

    cropped = []
    for case, image, label, probabilities in predicted:
        prediction = probabilities.argmax(axis=-1).astype(np.uint8)
        source = case.image_paths[0]
        write_label_like(output / f"{case.case_id}_prediction{suffix_of(source)}", bundle.to_file_values(prediction), source)
        reports.draw_overlay(
            output / f"{case.case_id}_overlay.png",
            image.array,
            prediction,
            bundle.class_names,
            title=case.case_id,
            spacing_mm=image.spacing_mm,
        )
        if probabilities_too:
            suffix = suffix_of(source) if suffix_of(source) in NIFTI_SUFFIXES else ".npz"
            write_probabilities_like(output / f"{case.case_id}_probabilities{suffix}", probabilities, source)
        if bundle.preprocessing.unseen(image.array.shape[:-1]):
            cropped.append(source)
        yield case, image, label, probabilities
    if cropped:
        shape = bundle.preprocessing.shape
        log.info(
            "%d image(s) are larger than the model's %s: what lies outside is called background. First: %s", len(cropped), shape, cropped[0]
        )


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = utils.OneLineParser(prog="predict.py", description="Predicts label maps for scans, each on its own grid.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=f"files, folders or globs of {', '.join(SUFFIXES)}")
    parser.add_argument("--model", metavar="RUN", help="a run or a bundle (default: the run under runs/ that finished last)")
    parser.add_argument("--output", metavar="DIR", default="predictions", help="where to write (default %(default)s)")
    parser.add_argument("--labels", metavar="DIR", help="folder of reference labels: writes scores.csv and prints the means")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
