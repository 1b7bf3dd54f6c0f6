"""Formats scores as lines of a console table."""

import math
from collections.abc import Mapping, Sequence

# A class whose largest object holds less than this of it, on average over the labels, is one of lesions.
LEAST_LARGEST = 0.9
# The columns of the console: score, title, width, digits. A narrow one has no room for the interval. The files have all scores.
_COLUMNS = (("dice", "Dice", 22, 3), ("iou", "IoU", 8, 3), ("nsd", "NSD", 22, 3), ("hd95_mm", "HD95 mm", 24, 2))
_NARROW = 8
_LESION_COLUMNS = (
    *(("pooled_sensitivity", "sensitivity", 22, 3), ("lesion_dice", "Dice of found", 22, 3)),
    ("false_lesions", "false a scan", 24, 2),
)


def format_scores(
    means: Mapping[str, Mapping[str, Mapping[str, float]]], intervals: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
) -> list[str]:
    """Formats scores as lines of a console table: a block a level, a line a class, and mm only where a distance is known.

    Lesions have a block of their own, with the classes that `is_of_lesions` names.

    Args:
        means: Means over cases, from `summarise`.
        intervals: Means over subjects with their intervals, from `estimate_intervals`. These are shown.
    """
    lines = []
    for level, classes in intervals.items():
        own = means[level]
        columns = [
            column for column in _COLUMNS if column[0] in ("dice", "iou") or any(value[column[0]]["subjects"] for value in classes.values())
        ]
        first = max(22, *(len(name) + 4 for name in classes))
        lines.append(f"{f'{level}s, by subject':<{first}}{_name_heads(columns)}{'subjects':>10}{'absent':>8}")
        for name, value in classes.items():
            absent = own[name].get("absent", "")
            lines.append(f"  {name:<{first - 2}}{_format_cells(value, columns)}{value['dice']['subjects']:>10}{absent:>8}")
        if lesions := [name for name in classes if is_of_lesions(own[name])]:
            lines.append(f"{f'lesions of {level}s':<{first}}{_name_heads(_LESION_COLUMNS)}{'found':>16}")
            for name in lesions:
                found = f"{own[name]['all_found']:.0f} of {own[name]['all_lesions']:.0f}"
                lines.append(f"  {name:<{first - 2}}{_format_cells(classes[name], _LESION_COLUMNS)}{found:>16}")
        if any(column[0] == "nsd" for column in columns):
            tolerances = {name: f"{value['tolerance_mm']:.3g} mm" for name, value in own.items() if name != "mean"}
            alike = len(set(tolerances.values())) == 1
            texts = [next(iter(tolerances.values()))] if alike else [f"{text} ({name})" for name, text in tolerances.items()]
            lines.append(f"NSD: surfaces within {', '.join(texts)}; [95 %]: bootstrap over subjects; all scores: scores.csv")
    return lines


def is_of_lesions(means: Mapping[str, float]) -> bool:
    """Tells from a class's means of `summarise` whether it is one of lesions: its largest object is far from all of it, on average."""
    return means.get("largest_lesion", math.nan) < LEAST_LARGEST


def _name_heads(columns: Sequence[tuple[str, str, int, int]]) -> str:
    return "".join(f"{title if width == _NARROW else f'{title} [95 %]':>{width}}" for _, title, width, _ in columns)


def _format_cells(value: Mapping[str, Mapping[str, float]], columns: Sequence[tuple[str, str, int, int]]) -> str:
    """Formats a mean for each column, with its interval where there is room; one subject has no interval."""
    cells = ""
    for key, _, width, digits in columns:
        mean, low, high = (f"{value[key][part]:.{digits}f}" for part in ("mean", "low", "high"))
        cells += f"{f'{mean} [{low}, {high}]' if value[key]['subjects'] > 1 and width > _NARROW else mean:>{width}}"
    return cells
