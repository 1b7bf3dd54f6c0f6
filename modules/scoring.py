"""Exact scores of one case, in NumPy: what ends up in `scores.csv` and in the README."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import groupby
from pathlib import Path

import numpy as np

from modules.volume import Case, Volume, replace_file

LEVELS = ("slice", "volume")


@dataclass(frozen=True)
class Score:
    """How well one class of one case was found.

    Attributes:
        level: "slice" or "volume": what the case is.
        case: Its identifier.
        class_name: Which class.
        dice: `2 |A B| / (|A| + |B|)` in [0, 1]; NaN where the class is in neither label nor prediction.
        iou: `|A B| / |A u B|`, likewise.
        voxels: Predicted, a count.
        reference_voxels: In the label, a count.
    """

    level: str
    case: str
    class_name: str
    dice: float
    iou: float
    voxels: int
    reference_voxels: int


def score_case(label: np.ndarray, prediction: np.ndarray, class_names: Sequence[str], *, level: str, case: str) -> list[Score]:
    """Scores every foreground class of one case.

    A class absent from both has NaN and is left out of means; absent from one of the two it is 0: a model that misses an organ must
    not score better for it.

    Args:
        label: `(*S)` integers.
        prediction: `(*S)` integers.
        class_names: Of all `K` classes, the background first.
        level: "slice" or "volume".
        case: The case's identifier.

    Returns:
        A `Score` a foreground class, in the order of `class_names`.

    Raises:
        ValueError: If the shapes differ.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"Expected label and prediction of one shape. Received: {label.shape} and {prediction.shape} for {case}.")
    num_classes = len(class_names)
    pairs = np.bincount(label.ravel().astype(np.intp) * num_classes + prediction.ravel().astype(np.intp), minlength=num_classes**2).reshape(
        num_classes, num_classes
    )
    scores = []
    for index in range(1, num_classes):
        both = int(pairs[index, index])
        voxels, reference = int(pairs[:, index].sum()), int(pairs[index].sum())
        total = voxels + reference
        dice = 2 * both / total if total else math.nan
        iou = both / (total - both) if total else math.nan
        scores.append(Score(level, case, class_names[index], dice, iou, voxels, reference))
    return scores


def score_predictions(predicted: Iterable[tuple[Case, Volume, np.ndarray, np.ndarray]], class_names: Sequence[str]) -> Iterator[Score]:
    """Scores predictions as they come, and each scan that slices make up as one volume, since that is what a 3-D model is scored on.

    Args:
        predicted: Case, image, label `(*S)` and probabilities `(*S, K)`, as `ModelBundle.predict_cases` yields them; slices of one
            scan (one `volume_id`) must follow one another.
        class_names: Of all `K` classes, the background first.

    Yields:
        The scores of each case, and behind the last slice of a scan those of the scan.
    """
    for volume_id, members in groupby(predicted, key=lambda item: item[0].volume_id):
        labels, predictions = [], []
        for case, _, label, probabilities in members:
            prediction = probabilities.argmax(axis=-1).astype(np.uint8)
            yield from score_case(label, prediction, class_names, level=LEVELS[label.ndim - 2], case=case.case_id)
            if volume_id is not None:
                # Overlap does not depend on where the voxels are, so the slices of a scan need no common shape.
                labels.append(label.ravel())
                predictions.append(prediction.ravel())
        if volume_id is not None:
            yield from score_case(np.concatenate(labels), np.concatenate(predictions), class_names, level="volume", case=volume_id)


def summarise(scores: Iterable[Score]) -> dict[str, dict[str, dict[str, float]]]:
    """Means over cases: `{level: {class: {dice, iou, cases, absent}}}`, with a class "mean" over the classes.

    `cases` is how many entered the mean, `absent` how many were left out because the class was in neither label nor prediction.
    """
    scores = list(scores)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for level in LEVELS:
        of_level = [score for score in scores if score.level == level]
        classes = {}
        for name in dict.fromkeys(score.class_name for score in of_level):
            of_class = [score for score in of_level if score.class_name == name]
            present = [score for score in of_class if not math.isnan(score.dice)]
            classes[name] = {
                "dice": _mean(score.dice for score in present),
                "iou": _mean(score.iou for score in present),
                "cases": len(present),
                "absent": len(of_class) - len(present),
            }
        if classes:
            scored = [value for value in classes.values() if value["cases"]]
            classes["mean"] = {key: _mean(value[key] for value in scored) for key in ("dice", "iou")}
            result[level] = classes
    return result


def format_summary(means: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The means as the lines of a table for the console: a block a level, a line a class."""
    lines = []
    for level, classes in means.items():
        lines.append(f"{'mean over ' + level + 's':<22}{'Dice':>7}{'IoU':>8}{'scored':>8}{'absent':>8}")
        for name, value in classes.items():
            counts = f"{value['cases']:>8}{value['absent']:>8}" if "cases" in value else ""
            lines.append(f"  {name:<20}{value['dice']:>7.4f}{value['iou']:>8.4f}{counts}")
    return lines


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Writes one row a case and class."""
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        # `class` is no name for a field in Python, but it is what the column holds.
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name.replace("class_name", "class") for field in fields(Score)])
        writer.writerows(astuple(score) for score in scores)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan
