"""The same subjects by several models, class by class."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modules.data.colours import PALETTE
from modules.reports.panels import DPI, INK, TEXT_POINTS, TITLE_POINTS, save_figure

# Blue and solid, vermilion and dashed: whoever sees no colours sees the dashes.
_STYLES: dict[str, dict[str, Any]] = {
    "better": {"color": PALETTE[4], "linestyle": "-"},
    "worse": {"color": PALETTE[5], "linestyle": (0, (3, 1.5))},
    "equal": {"color": "#999999", "linestyle": ":"},
}
_COLUMNS = 4
_LETTER, _LINE = 0.085, 0.21  # inches: width and height of the text


def draw_pairs(
    path: Path,
    names: Sequence[str],
    pairs: Mapping[str, Mapping[str, Sequence[float]]],
    captions: Mapping[str, str] | None = None,
    *,
    title: str,
) -> Path:
    """Draws a panel for each class, with a line for each subject from model to model and the mean of each model.

    A line is blue and solid where it rises, and vermilion and dashed where it falls. The axis begins below the lowest subject, not at 0.

    Args:
        path: PNG to write; its folder is made if missing.
        names: Names of the models.
        pairs: `{class: {subject: [Dice of each model]}}`.
        captions: A text below the name of each class.
        title: Text above the panels, wrapped to their width.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no subject.
    """
    tables = {name: np.array(list(of_class.values())) for name, of_class in pairs.items() if of_class}
    if not tables:
        raise ValueError("Expected `pairs` of subjects. Received: none. Give models that were tested on the same cases.")
    lowest = min(float(table.min()) for table in tables.values())
    bottom = max(-0.02, min(0.9, math.floor(20 * lowest - 0.5) / 20))
    labels = [textwrap.fill(name, 16, max_lines=2, placeholder="...") for name in names]
    figure, grid = _start_panels(len(tables), len(names), title)
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        _draw_lines(axes, table)
        caption = (captions or {}).get(name, "")
        heading = "mean over classes" if name == "mean" and len(tables) > 1 else name
        axes.set_title(f"{textwrap.fill(heading, 34)}\n{caption}", fontsize=TEXT_POINTS, color=INK, parse_math=False)
        means = [f"{label}\nmean {value:.3f}" for label, value in zip(labels, table.mean(axis=0), strict=True)]
        axes.set_xticks(range(len(names)), means, fontsize=TEXT_POINTS, parse_math=False)
        axes.set_xlim(-0.4, len(names) - 0.6)
        axes.set_ylim(bottom, 1.005)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("Dice of a subject (0 to 1, no unit)")
    return save_figure(figure, path)


def _draw_lines(axes: Axes, table: np.ndarray) -> None:
    """Draws the subjects of `(subjects, models)`, and the means above them."""
    opacity = max(0.15, min(0.8, 25 / len(table)))
    for place in range(table.shape[1] - 1):
        for row in table[:, place : place + 2]:
            kind = "better" if row[1] > row[0] else "worse" if row[1] < row[0] else "equal"
            axes.plot([place, place + 1], row, linewidth=1, alpha=opacity, zorder=2, **_STYLES[kind])
    for place, column in enumerate(table.T):
        axes.scatter(np.full(len(column), place), column, s=10, color=INK, alpha=opacity, linewidths=0, zorder=3)
        axes.plot([place - 0.2, place + 0.2], [column.mean()] * 2, color="black", linewidth=2.5, zorder=4)


def _start_panels(number: int, models: int, title: str) -> tuple[Figure, list[Axes]]:
    """Starts a figure with panels in rows below a title and a legend. Sizes are in inches."""
    columns = min(_COLUMNS, number)
    rows = math.ceil(number / columns)
    width, height, left, gap = max(2.9, 1.1 * (models + 0.5)), 3.0, 0.75, 1.45
    total = left + columns * (width + 0.45)
    lines = textwrap.wrap(title, int(10.5 * total))
    top = 0.35 + _LINE * (len(lines) + 1)
    whole = top + rows * (height + gap)
    figure = Figure(figsize=(total, whole), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    style: dict[str, Any] = {"fontsize": TITLE_POINTS, "weight": "bold", "color": INK, "va": "top", "parse_math": False}
    figure.text(0.25 / total, 1 - 0.14 / whole, "\n".join(lines), **style)
    marks = [Line2D([], [], label=f"{kind} than on its left" if kind != "equal" else kind, **line) for kind, line in _STYLES.items()]
    marks.append(Line2D([], [], color="black", linewidth=2.5, label="mean"))
    place = (0.2 / total, 1 - (top + 0.05) / whole)
    figure.legend(handles=marks, loc="lower left", bbox_to_anchor=place, ncols=4, frameon=False, fontsize=TEXT_POINTS, borderaxespad=0)
    axes = []
    for place in range(number):
        row, column = divmod(place, columns)
        x, y = left + column * (width + 0.45), whole - top - row * (height + gap) - 0.7 - height
        axes.append(figure.add_axes((x / total, y / whole, width / total, height / whole)))
    return figure, axes
