"""Reads what `train.py --compare` compares: runs, folders with a `scores.csv`, and folders of anyone's label maps."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from modules import score_tables, scoring
from modules.data.case import Case, LabelRule, Predicted, Volume, place_in_volume, read_case, read_label, require_label
from modules.data.class_tables import choose_classes
from modules.data.documents import read_json
from modules.data.files import index_images, stem_of, suffix_of
from modules.data.label_values import survey_labels
from modules.data.layout_names import LABEL_ENDING, OUTPUTS
from modules.data.regions import Region, list_parts
from modules.predict.bundle import find_bundle, read_description
from modules.predict.progress import PredictionProgress
from modules.run.folder import REMEDY, RunFolder
from modules.run.listing import find_best_trial, list_runs
from modules.run.settings import Settings
from modules.scoring import LEVELS, Score

# Settings that say where things lie or how a run is watched.
_INCIDENTAL = ("name", "runs", "cache", "data", "cases", "subjects", "track", "checkpoint_minutes", "demo")
_MOST_NAMED = 3

log = logging.getLogger("mri")


@dataclass(frozen=True)
class Contestant:
    """One model's scores of test cases, and what the model took.

    Attributes:
        name: A name that no other has.
        path: Its folder.
        scores: The scores, of one level once `check_alike` has seen them.
        costs: `minutes`, `parameters`, `peak_bytes`, `epochs`, `device`, as far as they are known.
        settings: What was set, and below `plan.` what the plan decided, by name.
    """

    name: str
    path: Path
    scores: Sequence[Score]
    costs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class _Guide(NamedTuple):
    """The meaning of label maps: a `CaseRules` of `modules.data.case`, with the names of classes and cases.

    Attributes:
        class_names: The classes, the background first.
        label_rule: The way files store them.
        regions: What each class consists of, where classes overlap.
        spatial_dims: 2 for slices, 3 for volumes.
        cases: Names of the cases to score; None for all that there are.
        tolerance_mm: The tolerance of the runs that the label maps are compared with.
    """

    class_names: tuple[str, ...]
    label_rule: LabelRule
    regions: tuple[Region, ...]
    spatial_dims: int
    cases: frozenset[str] | None = None
    tolerance_mm: tuple[float, ...] = ()

    def check_image(self, image: Volume, name: str) -> None:
        """Takes any image: it is a label map."""


def read_contestants(
    paths: Sequence[Path], labels: Path | None = None, classes: Sequence[str] = (), tolerance_mm: Sequence[float] = ()
) -> list[Contestant]:
    """Reads runs and folders.

    Args:
        paths: Runs, cross-validations, outputs of `predict.py --labels`, and folders of label maps.
        labels: The folder of the references of label maps.
        classes: The classes of label maps, as the setting of that name; without it those of the first run, or of `labels`.
        tolerance_mm: The tolerance for label maps; without it that of the first run, or the size of a voxel.

    Raises:
        FileNotFoundError: If a folder is not there, a run has no scores, or a label map or its reference is missing.
        ValueError: If a file cannot be read, or label maps come without references.
    """
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"Expected a run or a folder of label maps at {path}. Received: no such folder. Check the path.")
    names = _name_all(paths)
    # A search stands for its best trial, and keeps its own name.
    paths = [find_best_trial(path) for path in paths]
    found: dict[int, Contestant] = {}
    for number, path in enumerate(paths):
        if (run := RunFolder(path)).scores.is_file() or run.record.is_file():
            found[number] = Contestant(names[number], path, score_tables.read_scores(run.scores), *_read_run(run))
    maps = [path for number, path in enumerate(paths) if number not in found]
    if maps and labels is None:
        raise ValueError(
            f"Expected a run, or --labels with the references of label maps. Received: {maps[0]} without scores.csv. Add --labels, or name "
            "a finished run."
        )
    if labels is not None and not labels.is_dir():
        raise FileNotFoundError(f"Expected a folder of reference labels at {labels}. Received: no such folder. Check the path.")
    if labels is not None and maps:
        guide = _find_guide(list(found.values()), labels, classes)
        guide = guide._replace(tolerance_mm=tuple(tolerance_mm)) if tolerance_mm else guide
        for number, path in enumerate(paths):
            if number not in found:
                found[number] = Contestant(names[number], path, _score_maps(path, labels, guide))
    return [found[number] for number in range(len(paths))]


def check_alike(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Checks that all were tested on the same cases with the same labels, and returns them with the scores of one level.

    Scans count where all have them, else slices.

    Raises:
        ValueError: If classes, cases or labels differ; it names the two and what differs.
    """
    level = next((level for level in reversed(LEVELS) if all(any(s.level == level for s in one.scores) for one in contestants)), None)
    if level is None:
        kinds = ", ".join(f"{one.name}: {'/'.join(sorted({score.level for score in one.scores})) or 'nothing'}" for one in contestants)
        raise ValueError(f"Expected scores of scans, or of slices, from all. Received: {kinds}. Compare models of one kind of test cases.")
    contestants = [replace(one, scores=[score for score in one.scores if score.level == level]) for one in contestants]
    first = contestants[0]
    for other in contestants[1:]:
        _check_pair(first, other)
    return contestants


def find_different(contestants: Sequence[Contestant]) -> dict[str, list[Any]]:
    """Finds the settings in which runs differ, `{name: [value of each]}`; None where one is not known, as of label maps.

    A run of an earlier version has the default of a setting that it did not know.
    """
    # JSON has lists in the place of tuples.
    defaults = {item.name: [] if item.default == () else item.default for item in fields(Settings) if item.default is not MISSING}
    names = dict.fromkeys(name for one in contestants for name in one.settings)
    table = {name: [one.settings.get(name, defaults.get(name)) if one.settings else None for one in contestants] for name in names}
    known = [place for place, one in enumerate(contestants) if one.settings]
    return {name: row for name, row in table.items() if any(row[place] != row[known[0]] for place in known)}


def _check_pair(first: Contestant, other: Contestant) -> None:
    ours, theirs = ({(score.case, score.class_name): score for score in one.scores} for one in (first, other))
    classes, other_classes = (list(dict.fromkeys(name for _, name in table)) for table in (ours, theirs))
    if set(classes) != set(other_classes):
        raise ValueError(
            f"Expected the classes of {first.name}: {', '.join(classes)}. Received: {', '.join(other_classes)} in {other.name}. Compare "
            "models of the same classes."
        )
    lacking, more = (sorted({case for case, _ in one.keys() - two.keys()}) for one, two in ((ours, theirs), (theirs, ours)))
    if lacking or more:
        parts = [f"{other.name} lacks {_list_names(lacking)}"] if lacking else []
        parts += [f"{first.name} lacks {_list_names(more)}"] if more else []
        raise ValueError(
            f"Expected the same test cases from {first.name} and {other.name}. Received: {'; '.join(parts)}. Compare models that were "
            "tested on the same cases."
        )
    for (case, name), score in ours.items():
        label, number = theirs[case, name].reference, theirs[case, name].reference_voxels
        if (score.reference and label and score.reference != label) or score.reference_voxels != number:
            raise ValueError(
                f"Expected the same label of {case} for {first.name} and {other.name}. Received: {score.reference_voxels} and {number} "
                f"voxels of {name}, hashes {score.reference or 'unknown'} and {label or 'unknown'}. Score both with the same labels."
            )


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def _name_all(paths: Sequence[Path]) -> list[str]:
    """Names folders by their last part, or by the whole path where two share it; a folder that comes again has a number."""
    places = [path.resolve() for path in paths]
    names = [place.name if len({other for other in places if other.name == place.name}) == 1 else str(place) for place in places]
    return [f"{name} ({names[:number].count(name) + 1})" if name in names[:number] else name for number, name in enumerate(names)]


# --------------------------------------------------------------------------------------------------------------------- runs


def _read_run(run: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads costs and settings of a run, or of all folds of a cross-validation. They are for people, so that nothing is demanded."""
    if not run.record.is_file():
        return {}, {}
    folds = [RunFolder(path) for path in list_runs([run.path])]
    summaries, plans, records = ([_read_object(getattr(fold, name)) for fold in folds] for name in ("summary", "plan", "record"))
    seconds, peaks = ([value for one in summaries if (value := _to_number(one.get(name)))] for name in ("seconds", "peak_bytes"))
    devices = dict.fromkeys(str(name) for record in records for name in record.get("devices") or ())
    plan = plans[0]
    costs = {
        "minutes": round(sum(seconds) / 60, 1) if seconds else None,
        "parameters": _to_number((plan.get("costs") or {}).get("weights")),
        "peak_bytes": max(peaks, default=None),
        "epochs": plan.get("epochs"),
        "device": ", ".join(devices) or None,
    }
    config = run.read_record()["config"]
    decided = {name: value for name, value in plan.items() if name not in ("costs", "reasons", "recipe")}
    # What the plan chose in the place of settings also holds some of its own fields.
    decided |= {name: value for name, value in (plan.get("recipe") or {}).items() if name not in decided}
    settings = {name: value for name, value in config.items() if name not in _INCIDENTAL} if isinstance(config, dict) else {}
    return costs, settings | _flatten(decided, "plan.")


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, REMEDY) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _to_number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


# --------------------------------------------------------------------------------------------------------------- label maps


def _find_guide(runs: Sequence[Contestant], labels: Path, classes: Sequence[str]) -> _Guide:
    """Finds what label maps mean: from the model of the first run that has one, else from the references and what lies beside them."""
    cases = frozenset(score.case for score in runs[0].scores) if runs else None
    for run in runs:
        members = list_runs([run.path])
        if RunFolder(members[0]).bundle.is_dir():
            description = read_description(find_bundle(members[0]))
            rule = description["label_rule"]
            values = {int(value): index for value, index in rule["values"].items()}
            renames = tuple((pattern, replacement) for pattern, replacement in rule["renames"])
            rule = LabelRule(values, tuple(rule["output_values"]), renames, str(run.path))
            if classes:
                log.warning("--classes has no effect: label maps have the classes and values of %s", run.path)
            regions = tuple(Region(tuple(region["parts"]), region["painted"]) for region in description["regions"])
            tolerance = run.settings.get("tolerance_mm") or ()
            spatial_dims = description["preprocessing"]["spatial_dims"]
            return _Guide(tuple(description["class_names"]), rule, regions, spatial_dims, cases, tuple(tolerance))
    files = list(_index_cases(labels).values())
    if not files:
        raise FileNotFoundError(f"Expected reference labels in {labels}. Received: none. Check the path.")
    surveys = survey_labels(files)
    found = choose_classes(files, surveys, classes, [labels, labels.parent])
    return _Guide(found.names, LabelRule(found.values, source=str(labels)), found.regions, surveys[0].rank, cases)


def _score_maps(folder: Path, labels: Path, guide: _Guide) -> list[Score]:
    """Scores the label maps in a folder against the references of their names."""
    maps, references = _index_cases(folder), _index_cases(labels)
    paired = _pair_references(maps if guide.cases is None else guide.cases, references, guide.label_rule)
    # A run's table also names scans that its slices make up: these have no reference.
    wanted = sorted(paired.keys() & maps.keys())
    if guide.cases is not None and (lacking := sorted(paired.keys() - maps.keys())):
        raise FileNotFoundError(
            f"Expected a label map of each test case in {folder}. Received: none of {_list_names(lacking)}. Predict them too."
        )
    if not wanted:
        raise FileNotFoundError(
            f"Expected label maps in {folder} with the names of references in {labels}. Received: {_list_names(sorted(maps)) or 'none'} "
            f"and {_list_names(sorted(references)) or 'none'}. Rename them alike."
        )
    with PredictionProgress(len(wanted), f"scoring {folder.name}") as progress:
        predicted = progress.count(_read_maps([(name, maps[name], paired[name]) for name in wanted], guide))
        scores = list(scoring.score_predictions(predicted, guide.class_names, guide.regions, tolerance_mm=guide.tolerance_mm))
    for name, parts in zip(guide.class_names[1:], list_parts(guide.class_names, guide.regions), strict=True):
        of_class = [score for score in scores if score.class_name == name]
        if any(score.reference_voxels for score in of_class) and not any(score.voxels for score in of_class):
            values = ", ".join(str(guide.label_rule.output_values[part]) for part in parts)
            log.warning("no label map in %s holds %s, although references do; it has the value %s there", folder, name, values)
    return scores


def _index_cases(folder: Path) -> dict[str, Path]:
    """Maps each case to its label map in a folder: `a` to `a.nii.gz`, to `a_prediction.nii.gz` or to `a_seg.nii.gz`.

    Raises:
        ValueError: If two files belong to one case.
    """
    prediction, *others = OUTPUTS
    found: dict[str, Path] = {}
    for stem, path in index_images(folder).items():
        if stem.endswith(tuple(others)):
            continue
        name = LABEL_ENDING.sub("", stem.removesuffix(prediction)) or stem
        other = found.setdefault(name, path)
        if other is not path:
            raise ValueError(f"Expected one label map of {name} in {folder}. Received: {other.name} and {path.name}. Move one elsewhere.")
    return found


def _pair_references(names: Iterable[str], references: Mapping[str, Path], rule: LabelRule) -> dict[str, Path]:
    """Finds the references of cases, each by its name or by the name that the data set gives its label; others are left out."""
    suffixes = sorted({suffix_of(path) for path in references.values()})
    found = {}
    for name in names:
        renamed = [LABEL_ENDING.sub("", stem_of(Path(rule.name_label(name + suffix)))) for suffix in suffixes]
        if other := next((other for other in (name, *renamed) if other in references), None):
            found[name] = references[other]
    return found


def _read_maps(files: Sequence[tuple[str, Path, Path]], guide: _Guide) -> Iterator[Predicted]:
    """Reads label maps, each as its name, its file and that of its reference, onto the references' grids."""
    cases = []
    for name, path, reference in files:
        volume_id, place = place_in_volume(name) if guide.spatial_dims == 2 else (None, 0)
        # Nobody says who was scanned.
        cases.append(Case(name, "", (reference,), path, None, volume_id, place))
    # Slices of one scan must follow one another.
    for case in sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index)):
        # The reference takes the image's part, so that `read_case` brings the label map onto its grid.
        image, prediction = read_case(case, guide)
        label = read_label(case.image_paths[0], guide.label_rule)
        yield Predicted(case, image, label, require_label(case, prediction))
