"""The command `dataset.py suggest`: which unlabelled scans to label next, with label maps to correct and a table to train on.

It writes into a new folder:

- `suggestions.csv`: all scans, those to label first in the order of choice, then the others by doubt;
- `predictions/`: the label map of each scan to label, with the names of its classes for ITK-SNAP and 3D Slicer;
- `labels/`: empty; corrected label maps go there, so that nothing that nobody looked at is ever trained on;
- `cases.csv`, `labels.csv`: for `train.py --dataset folder`, the labelled scans of the model's run and the corrected ones.
"""

import argparse
import csv
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.case import Case
from modules.data.documents import read_json, to_line
from modules.data.files import hash_file, name_result_suffix, replace_file
from modules.data.regions import IGNORE
from modules.data.spec import DatasetSpec
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases
from modules.predict.class_files import list_values, write_class_files
from modules.predict.inputs import find_images, make_cases
from modules.predict.outputs import write_maps
from modules.predict.suggestions import choose_scans, describe_scan, measure_doubt
from modules.run.division import find_labelled
from modules.run.folder import REMEDY, RunFolder
from modules.run.listing import list_models
from modules.run.seen import find_digest, read_seen

log = logging.getLogger("mri")

NUMBER = 10
SUGGESTIONS_FILE, CASES_FILE, CLASSES_FILE, PREDICTIONS, LABELS = "suggestions.csv", "cases.csv", "labels.csv", "predictions", "labels"
_MOST_SHOWN, _MOST_WARNED = 20, 5


@dataclass(frozen=True)
class _Suggestion:
    """An unlabelled scan.

    Attributes:
        case: The scan.
        doubt: See `modules.predict.suggestions.measure_doubt`.
        description: See `modules.predict.suggestions.describe_scan`.
        distance: That to the scans chosen before it; None for a scan that was not chosen.
    """

    case: Case
    doubt: float
    description: np.ndarray
    distance: float | None = None

    @property
    def name(self) -> str:
        """The name of its files: that of the case, with `_` in place of folders."""
        return self.case.case_id.replace("/", "_")

    @property
    def file(self) -> str:
        """The name of its label map."""
        return self.name + name_result_suffix(self.case.image_paths[0])


def suggest(options: argparse.Namespace, datasets: Mapping[str, DatasetSpec]) -> None:
    """Ranks unlabelled scans, and writes label maps of the first ones to correct.

    Args:
        options: The flags.
        datasets: The catalogue.

    Raises:
        FileNotFoundError, ValueError: For wrong flags, a run without a model, and where no scan is left to label.
    """
    output, run = Path(options.output), RunFolder(options.run)
    _check(options, output)
    models = list_models([run.path])
    bundles = [ModelBundle.load(path) for path in models]
    labelled = _find_labelled(run, datasets)
    cases = _find_unlabelled(options.paths, bundles[0], run, labelled, datasets)
    ranked = _rank(bundles, cases, options.number)
    chosen = [one for one in ranked if one.distance is not None]
    images = _name_columns(bundles[0], chosen[0].case)
    _write_ranking(output / SUGGESTIONS_FILE, ranked, images)
    _write_predictions(output / PREDICTIONS, bundles, chosen)
    for place, one in enumerate(chosen[:_MOST_SHOWN], 1):
        log.info("%3d  doubt %.3f  %s", place, one.doubt, one.case.case_id)
    if len(chosen) > _MOST_SHOWN:
        log.info("%d more in %s", len(chosen) - _MOST_SHOWN, output / SUGGESTIONS_FILE)
    log.info("%d of %d scan(s) to label: correct %s", len(chosen), len(ranked), output / PREDICTIONS)
    if bundles[0].regions:
        log.info("classes overlap, which no table of cases can say: add the corrected label maps to the data set's own folder")
        return
    (output / LABELS).mkdir(exist_ok=True)
    _write_table(output / CLASSES_FILE, ["index", "name"], _name_values(bundles[0]))
    _write_cases(output / CASES_FILE, labelled, chosen, images)
    ignored = " --ignore-geometry" if any(case.ignore_geometry for _, case in labelled) else ""
    log.info("move each label map that you corrected to %s", output / LABELS)
    log.info("delete the rows of the others from %s", output / CASES_FILE)
    source = run.path if len(models) == 1 else models[0]
    log.info("then: python train.py --dataset folder --cases %s --init %s%s", output / CASES_FILE, source, ignored)


def _check(options: argparse.Namespace, output: Path) -> None:
    """Raises ValueError for flags that cannot be followed."""
    if options.number < 1:
        raise ValueError(f"Expected `--number` of 1 or more. Received: {options.number}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        # Label maps that a person corrected there must not be replaced.
        raise ValueError(f"Expected a new folder for `--output`. Received: {output}, which is there already. Name another.")


# ------------------------------------------------------------------------------------------------------------------ scans


def _find_labelled(run: RunFolder, datasets: Mapping[str, DatasetSpec]) -> list[tuple[str, Case]]:
    """Finds the labelled cases of the model's run again, each with its split; none, with a line that says why, where that fails."""
    splits = run.read_record().get("splits") if run.record.is_file() else None
    if not isinstance(splits, dict):
        log.info("the labelled scans of %s are not known: it is no single run", run.path)
        return []
    try:
        settings = run.read_settings()
        _, cases = find_labelled(settings, datasets[settings.dataset])
        known = {case.case_id: case for case in cases if case.label_path is not None}
        return [(split, known[name]) for split, names in splits.items() for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the labelled scans of %s are not found again: %s", run.path, to_line(error))
        return []


def _find_unlabelled(
    paths: Sequence[str], bundle: ModelBundle, run: RunFolder, labelled: Sequence[tuple[str, Case]], datasets: Mapping[str, DatasetSpec]
) -> list[Case]:
    """Finds the scans to rank: images at `paths` that are none of the run's own.

    Raises:
        FileNotFoundError, ValueError: If there is none.
    """
    found = find_images(paths, [spec.label_rule for spec in datasets.values()])
    cases, unusable = make_cases(found.images, None, bundle)
    for remark in found.remarks:
        log.info("%s", remark)
    for error in [*found.failures, *unusable]:
        log.warning("left out: %s", to_line(error))
    if not cases:
        raise next(iter([*found.failures, *unusable]))
    places = {os.path.realpath(path) for _, case in labelled for path in case.image_paths}
    digests = _list_digests(bundle, run)
    new = [case for case in cases if not _is_known(case, places, digests)]
    if len(new) < len(cases):
        log.info("%d scan(s) are left out: the model's run has them already", len(cases) - len(new))
    if not new:
        raise ValueError(f"Expected unlabelled scans at {' '.join(paths)}. Received: only those that the run has already. Name others.")
    new = _leave_out_namesakes(new, {case.case_id for _, case in labelled})
    _warn_of_held_out(new, {case.subject_id: split for split, case in labelled if split != "train"})
    names = [_Suggestion(case, 0.0, np.empty(0)).file for case in new]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"Expected scans of different names, with _ in place of folders. Received: {twice} twice. Rename one.")
    return new


def _leave_out_namesakes(new: Sequence[Case], names: Collection[str]) -> list[Case]:
    """Leaves out scans with the name of a labelled case: a table of cases knows each name once. Raises ValueError if none is left."""
    kept = []
    for case in new:
        if _Suggestion(case, 0.0, np.empty(0)).name in names:
            log.warning("left out: %s has the name of a labelled case of the model's run. Rename it", case.image_paths[0])
        else:
            kept.append(case)
    if not kept:
        raise ValueError(f"Expected scans of other names than the labelled ones. Received: {new[0].image_paths[0]}. Rename them.")
    return kept


def _warn_of_held_out(new: Sequence[Case], held_out: Mapping[str, str]) -> None:
    """Warns of scans that look like those of a validation or test subject: to train on them would make its scores too good."""
    alike = [
        (case, subject)
        for case in new
        for subject in held_out
        if case.subject_id == subject or re.match(rf"{re.escape(subject)}[_.\-/ ]", case.case_id)
    ]
    for case, subject in alike[:_MOST_WARNED]:
        log.warning(
            "%s looks like a scan of %s, a subject of the %s split: if it is one, leave it out, or correct `subject` and `split` in %s",
            case.image_paths[0], subject, held_out[subject], CASES_FILE,
        )  # fmt: skip
    if len(alike) > _MOST_WARNED:
        log.warning("%d scans look like those of subjects that validate or test; the first %d are named", len(alike), _MOST_WARNED)


def _list_digests(bundle: ModelBundle, run: RunFolder) -> set[str]:
    """Lists the first digits of the SHA-256 of all files that the model's run has, or that its model has seen."""
    digests = {digest for files in read_seen(bundle.provenance, None, "").files.values() for digest in files}
    content = read_json(run.data, REMEDY) if run.data.is_file() else {}
    entries = content.values() if isinstance(content, dict) else ()
    return digests | {find_digest(str(entry[1])) for entry in entries if isinstance(entry, list) and len(entry) == 2}


def _is_known(case: Case, places: set[str], digests: set[str]) -> bool:
    if any(os.path.realpath(path) in places for path in case.image_paths):
        return True
    return any(find_digest(hash_file(path)) in digests for path in case.image_paths if path.is_file())


def _rank(bundles: Sequence[ModelBundle], cases: Sequence[Case], number: int) -> list[_Suggestion]:
    """Ranks scans; the first `number` are those to label. A scan that cannot be read or computed is left out with a warning."""
    from tqdm import tqdm

    failed: list[Exception] = []

    def pass_over(case: Case, error: Exception) -> None:
        failed.append(error)
        log.warning("left out: %s", to_line(error))

    names, regions = bundles[0].class_names, bundles[0].regions
    scans = []
    predicted = predict_cases(bundles, cases, PredictionOptions(on_failure=pass_over), keep_probabilities=True)
    for item in tqdm(predicted, total=len(cases), desc="ranking", unit="scan", disable=None, leave=False):
        doubt = measure_doubt(item, names, regions)
        scans.append(_Suggestion(item.case, doubt, describe_scan(item, names, regions)))
    if not scans:
        raise failed[0]
    places, distances = choose_scans([scan.doubt for scan in scans], [scan.description for scan in scans], number)
    others = sorted((scan for place, scan in enumerate(scans) if place not in places), key=lambda scan: -scan.doubt)
    return [replace(scans[place], distance=distance) for place, distance in zip(places, distances, strict=True)] + others


# ---------------------------------------------------------------------------------------------------------------- results


def _write_ranking(path: Path, ranked: Sequence[_Suggestion], images: Sequence[str]) -> None:
    """Writes all scans in their order. A distance is empty where there is none before: for the first, and for scans not chosen."""
    rows = []
    for place, one in enumerate(ranked, 1):
        distance = "" if one.distance is None or not np.isfinite(one.distance) else f"{one.distance:.4f}"
        prediction = "" if one.distance is None else f"{PREDICTIONS}/{one.file}"
        rows.append([place, one.case.case_id, f"{one.doubt:.4f}", distance, prediction, *map(os.path.abspath, one.case.image_paths)])
    _write_table(path, ["rank", "case", "doubt", "distance", "prediction", *images], rows)


def _write_predictions(folder: Path, bundles: Sequence[ModelBundle], chosen: Sequence[_Suggestion]) -> None:
    """Writes the label maps of the chosen scans, and what their values mean.

    They are predicted once more: memory need not hold the label map of every scan until all are ranked.
    """
    files = {one.case.case_id: folder / one.file for one in chosen}
    folder.mkdir(parents=True, exist_ok=True)
    for item in predict_cases(bundles, [one.case for one in chosen]):
        write_maps(item, bundles[0], {"prediction": files[item.case.case_id]}, {})
    write_class_files(folder, list_values(bundles[0]))


def _write_cases(path: Path, labelled: Sequence[tuple[str, Case]], chosen: Sequence[_Suggestion], images: Sequence[str]) -> None:
    """Writes the table of `--cases`: the run's own cases in their splits, and the chosen ones for training.

    Without the former there is no split, and the training draws one.
    """
    if other := next((case for _, case in labelled if len(case.image_paths) != len(images)), None):
        log.warning("the labelled scans, such as %s, have another number of files than the new ones: they are left out", other.case_id)
        labelled = []
    rows = [[case.case_id, *_list_places(case), os.path.abspath(case.label_path or ""), case.subject_id, split] for split, case in labelled]
    split = "train" if labelled else ""
    rows += [[one.name, *_list_places(one.case), f"{LABELS}/{one.file}", one.case.subject_id, split] for one in chosen]
    _write_table(path, ["case", *images, "label", "subject", "split"], rows)


def _list_places(case: Case) -> list[str]:
    return [os.path.abspath(path) for path in case.image_paths]


def _name_columns(bundle: ModelBundle, case: Case) -> list[str]:
    """Names the columns of a case's images; those of several files say which channel each is."""
    files = len(case.image_paths)
    return ["image"] if files == 1 else [f"image_{channel}" for channel in bundle.channels[:files]]


def _name_values(bundle: ModelBundle) -> list[list[Any]]:
    """Lists every value that a label of the model's data set may have, with the name of its class."""
    names = dict(enumerate(bundle.class_names)) | {IGNORE: "ignore"}
    return [[value, names[index]] for value, index in sorted(bundle.label_rule.values.items())]


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
