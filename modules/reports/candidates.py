"""The candidates of a cross-validation of several modes, subject by subject."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modules.data.colours import list_colours
from modules.reports.folds import start_rows
from modules.reports.panels import INK, TEXT_POINTS, save_figure


def draw_candidates(
    path: Path,
    means: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, float]],
    *,
    chosen: str,
    title: str,
) -> Path:
    """Draws the Dice of every subject by candidate; a grey line joins the marks of one subject, and a bar marks the mean.

    Beside each row stands its paired difference to the chosen candidate, with its 95 % interval. The axis begins below the lowest
    subject, not at 0.

    Args:
        path: PNG to write; its folder is made if missing.
        means: Mean Dice of each subject by candidate; all candidates have the same subjects.
        differences: Mean, low and high of the difference to the chosen candidate, for the others.
        chosen: The name of the chosen candidate.
        title: Text above the plot, wrapped to its width.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no subject.
    """
    table = np.array([[*of_candidate.values()] for of_candidate in means.values()])
    if not table.size:
        raise ValueError("Expected `means` of subjects. Received: none. Give those of finished runs.")
    figure, axes = start_rows([f"{name} (chosen)" if name == chosen else name for name in means], title, 2, 0)
    rows = np.arange(len(table))
    axes.plot(table, rows, color="#bbbbbb", linewidth=0.6, zorder=1)
    for row, (name, values) in enumerate(zip(means, table, strict=True)):
        colour = list_colours(3)[int(name != chosen)]
        axes.scatter(values, np.full(len(values), row), s=22, color=colour, edgecolors=INK, linewidths=0.5, alpha=0.8, zorder=3)
        axes.plot([values.mean()] * 2, [row - 0.25, row + 0.25], color="black", linewidth=1.8, zorder=4)
        text = f"{values.mean():.3f}"
        if gap := differences.get(name):
            text += f", {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        axes.annotate(text, (1.02, row), xycoords=axes.get_yaxis_transform(), fontsize=TEXT_POINTS, color=INK, va="center")
    axes.set_xlim(max(-0.02, min(0.9, math.floor(20 * table.min() - 0.5) / 20)), 1.005)
    axes.set_xlabel(f"Dice of a subject, mean over its classes ({table.shape[1]} subjects)")
    return save_figure(figure, path)
