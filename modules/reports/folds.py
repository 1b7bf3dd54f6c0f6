"""The scores of a cross-validation, subject by subject."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modules.data.colours import list_colours
from modules.reports.panels import DPI, INK, TEXT_POINTS, TITLE_POINTS, save_figure
from modules.score_tables import estimate_intervals, score_subjects
from modules.scoring import Score

# Colours repeat after seven folds and shapes after ten, so that no two of seventy folds have both alike.
_MARKERS = "osD^vPX<>*"
_LETTER, _LINE = 0.085, 0.21  # inches: width and height of the text


def draw_folds(path: Path, folds: Mapping[str, Sequence[Score]], subjects: Mapping[str, str], *, title: str) -> Path:
    """Draws the Dice of every subject, class by class, with the mean over subjects and its 95 % interval.

    A subject's Dice is the mean over its volumes, or over its slices where there are no volumes. A class that none of them has leaves
    no mark. In the row "mean over classes" it is the mean over the classes that the subject has. Folds differ in colour, shape and
    height. The axis begins below the lowest subject, not at 0.

    Args:
        path: PNG to write; its folder is made if missing.
        folds: Scores of each fold, by the fold's name in the legend. A single run is one fold.
        subjects: `{case or volume identifier: subject}`, see `modules.score_tables.map_subjects`.
        title: Text above the plot, wrapped to its width.

    Returns:
        `path`.

    Raises:
        ValueError: If there are no scores, or a case is not in `subjects`.
    """
    scores = [score for of_fold in folds.values() for score in of_fold]
    if not scores:
        raise ValueError(f"Expected `folds` with scores. Received: none in {len(folds)} fold(s). Give those of finished runs.")
    levels = estimate_intervals(scores, subjects, keys=("dice",))
    level = "volume" if "volume" in levels else "slice"
    intervals = {name: value["dice"] for name, value in levels[level].items()}
    if len(intervals) == 2:  # the mean of one class would only repeat it
        del intervals["mean"]
    names = ["mean over classes" if name == "mean" else name for name in intervals]
    # The legend has as many columns as fit, the last being that of the interval, and then no more than fill its lines.
    entries = len(folds) + 1
    fitting = 1 + int(6 / (0.55 + _LETTER * max(map(len, folds))))
    lines = math.ceil(entries / fitting)
    figure, axes = start_rows(names, title, len(folds), lines)
    crowded = len({subjects[score.case] for score in scores}) > 25 * len(folds)
    size: dict[str, Any] = {"s": 14, "linewidths": 0.3} if crowded else {"s": 26, "linewidths": 0.5}
    lowest = 1.0
    for index, (fold, of_fold) in enumerate(folds.items()):
        dice = _list_dice(of_fold, subjects, level)
        lane = -0.1 + 0.46 * (index + 0.5) / len(folds)
        points = [(value, row + lane) for row, name in enumerate(intervals) for value in dice.get(name, ())]
        lowest = min([lowest, *(value for value, _ in points)])
        style: dict[str, Any] = {"marker": _MARKERS[index % len(_MARKERS)], "color": list_colours(len(folds) + 1)[index], "edgecolors": INK}
        axes.scatter(*np.reshape(points, (-1, 2)).T, label=fold, alpha=0.8, zorder=3, **size, **style)
    _draw_intervals(axes, list(intervals.values()))
    # The axis shows at least a tenth, so that a narrow cloud is not blown up to look wide.
    axes.set_xlim(max(-0.02, min(0.9, math.floor(20 * lowest - 0.5) / 20)), 1.005)
    axes.set_xlabel(f"Dice of a subject, mean over its {level}s (0 to 1, no unit)")
    # The legend lies above the axes, where no mark can run under it.
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=math.ceil(entries / lines), frameon=False, fontsize=TEXT_POINTS, borderaxespad=0.2
    )
    return save_figure(figure, path)


def _list_dice(scores: Sequence[Score], subjects: Mapping[str, str], level: str) -> dict[str, list[float]]:
    """Lists the known Dice of each subject by class and, under "mean", over its classes."""
    classes = score_subjects(scores, subjects, "dice").get(level, {})
    table = np.array([list(of_class.values()) for of_class in classes.values()])
    by_class = {name: column[~np.isnan(column)].tolist() for name, column in zip(classes, table, strict=True)}
    return by_class | {"mean": [float(np.nanmean(row)) for row in table.T if not np.isnan(row).all()]}


def start_rows(names: Sequence[str], title: str, folds: int, legend_lines: int) -> tuple[Figure, Axes]:
    """Starts a figure with axes that have a row for each name, below room for title and legend. Sizes are in inches."""
    left, width, right = 0.4 + _LETTER * max(map(len, names)), 5.6, 2.75
    lines = textwrap.wrap(title, int(10.5 * (left + width + right)))
    top = 0.3 + _LINE * (len(lines) + legend_lines)
    # A row has room for the lanes of its folds, and above them for the interval.
    bottom, rows = 0.6, max(0.6, 0.4 + 0.08 * folds) * len(names)
    figure_width, height = left + width + right, bottom + rows + top
    figure = Figure(figsize=(figure_width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    style: dict[str, Any] = {"fontsize": TITLE_POINTS, "weight": "bold", "color": INK, "va": "top", "parse_math": False}
    figure.text(0.25 / figure_width, 1 - 0.14 / height, "\n".join(lines), **style)
    axes = figure.add_axes((left / figure_width, bottom / height, width / figure_width, rows / height))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.hlines(np.arange(1, len(names)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="#bbbbbb", linewidth=0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_intervals(axes: Axes, intervals: Sequence[dict[str, float]]) -> None:
    """Draws mean and interval above the lanes of each row, and writes them beside it."""
    for row, value in enumerate(intervals):
        mean, low, high, number = (value[key] for key in ("mean", "low", "high", "subjects"))
        text = f"{mean:.3f} [{low:.3f}, {high:.3f}]" if number > 1 else f"{mean:.3f}"
        text = f"{text}, {number} subject{'s' if number > 1 else ''}" if number else "in no subject"
        axes.annotate(text, (1.02, row), xycoords=axes.get_yaxis_transform(), fontsize=TEXT_POINTS, color=INK, va="center")
        axes.barh(row, high - low, left=low, height=0.76, color="black", alpha=0.1, linewidth=0, zorder=1)
        errors = [[mean - low], [high - mean]] if number > 1 else None
        label = "mean, 95 % interval" if row == 0 else None
        axes.errorbar(mean, row - 0.25, xerr=errors, fmt="|", color="black", markersize=11, mew=2, lw=1.6, capsize=4, zorder=4, label=label)
