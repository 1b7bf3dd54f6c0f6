"""Pictures of probabilities beside frequencies, and of predicted beside true Dice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modules.data.colours import list_colours
from modules.reports.panels import DPI, INK, TEXT_POINTS, TITLE_POINTS, save_figure

_MARKERS = "os^Dvp*XPh"


def draw_reliability(
    path: Path, bins: Mapping[str, Sequence[Mapping[str, float]]], judged: Mapping[str, Sequence[Sequence[float]]], *, title: str
) -> Path:
    """Draws a reliability diagram and, where cases were judged, their true over their predicted Dice. What is right lies on the diagonal.

    Args:
        path: PNG to write; its folder is made if missing.
        bins: Of each class the bins with `probability` and `frequency`, see `modules.run.calibration.list_bins`.
        judged: Of each class the judged cases: predicted Dice, its low and high end, true Dice, and 1 for a case to check, else 0.
        title: Text above the panels.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no class.
    """
    if not bins:
        raise ValueError("Expected `bins` of classes. Received: none. Give those of test cases with labels.")
    known = {name: rows for name, rows in judged.items() if rows}
    figure = Figure(figsize=(10.4 if known else 5.4, 5.6), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=TITLE_POINTS, weight="bold", color=INK, parse_math=False)
    panels = figure.subplots(1, 2 if known else 1, squeeze=False)[0]
    colours = list_colours(len(bins) + 1)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": colours[place % len(colours)], "marker": _MARKERS[place % len(_MARKERS)]} for place, name in enumerate(bins)
    }
    for name, rows in bins.items():
        places = [row["probability"] for row in rows], [row["frequency"] for row in rows]
        panels[0].plot(*places, label=name, markeredgecolor=INK, markeredgewidth=0.5, markersize=6, **styles[name])
    _finish(panels[0], "Probability of the class after calibration", "Part of these voxels that are of the class", 0.0)
    if known:
        lowest = min(min(row[0], row[3]) for rows in known.values() for row in rows)
        for name, rows in known.items():
            _draw_cases(panels[1], rows, styles[name])
        bottom = max(0.0, min(0.9, int(20 * lowest - 0.5) / 20))
        _finish(panels[1], "Predicted Dice of a case, with its 90 % interval\n(ring: check this one)", "True Dice", bottom)
    # Below the panels no mark can lie under it.
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=TEXT_POINTS, loc="outside lower center", ncols=4)
    return save_figure(figure, path)


def _draw_cases(axes: Axes, rows: Sequence[Sequence[float]], style: Mapping[str, Any]) -> None:
    """Draws the cases of a class, with rings about those to check."""
    opacity = max(0.15, min(0.85, 25 / len(rows)))
    for predicted, low, high, true, check in rows:
        axes.plot([low, high], [true, true], color=style["color"], linewidth=0.8, alpha=0.4 * opacity, zorder=2)
        if check:
            axes.scatter(predicted, true, s=110, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
    axes.scatter([row[0] for row in rows], [row[3] for row in rows], s=26, edgecolors=INK, linewidths=0.5, alpha=opacity, zorder=3, **style)


def _finish(axes: Axes, across: str, up: str, bottom: float) -> None:
    """Draws the diagonal, and names the axes, which both begin at `bottom`."""
    axes.plot([0, 1], [0, 1], color="#888888", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axes.set_xlim(bottom, 1.01)
    axes.set_ylim(bottom, 1.01)
    axes.set_xlabel(across, fontsize=TEXT_POINTS)
    axes.set_ylabel(up, fontsize=TEXT_POINTS)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
