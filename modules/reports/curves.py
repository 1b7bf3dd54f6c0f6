"""Training curves: loss, accuracy and Dice by epoch."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modules.data.colours import list_colours
from modules.reports.panels import DPI, INK, TEXT_POINTS, TITLE_POINTS, save_figure


def find_kept_epoch(history: Sequence[dict[str, float]], *, keeps_last: bool = False) -> int | None:
    """Finds the row of `history` whose model is kept: the one with the highest mean Dice, or the last.

    Validation decides wherever it was measured at least once. Where it has no Dice, the least validation loss decides, and without that
    the training's Dice. The earliest of equals wins.

    Args:
        history: One row an epoch, see `plot_history`.
        keeps_last: Whether the last epoch is kept instead.

    Returns:
        Index of the row (from 0), or None where no row has a finite value of these.
    """
    for key, sign in (("val_mean_dice", 1), ("val_loss", -1), ("mean_dice", 1)):
        values = sign * _read_column(history, key)
        if np.isfinite(values).any():
            return int(np.flatnonzero(np.isfinite(values))[-1] if keeps_last else np.nanargmax(values))
    return None


def plot_history(history: list[dict[str, float]], folder: Path, *, keeps_last: bool = False) -> list[Path]:
    """Writes `loss.png`, `accuracy.png` and `dice.png`.

    The epoch that is kept (`find_kept_epoch`) is marked in all three. Values that are missing, NaN or infinite leave gaps.

    Args:
        history: One row an epoch: `epoch` (from 1), `loss`, `accuracy`, `mean_dice`, `dice_<class>` for each class, and the same
            names after `val_` where the run was validated. Other keys are ignored. Classes take the colours of `PALETTE` in the order
            of their keys, as they do in the overlays; `dice_background`, if there, is grey.
        folder: Folder to write to; made if missing.
        keeps_last: Whether the last epoch is kept and not the best.

    Returns:
        The three paths.

    Raises:
        ValueError: `history` is empty, or a row has no `epoch`.
    """
    if not history or not np.isfinite(_read_column(history, "epoch")).all():
        raise ValueError(f"Expected `history` of one or more rows, each with its `epoch`. Received: {len(history)} rows.")
    folder = Path(folder)
    return [
        _plot_metric(history, "loss", "Loss", folder / "loss.png", keeps_last),
        _plot_metric(history, "accuracy", "Accuracy (share of pixels)", folder / "accuracy.png", keeps_last),
        _plot_dice(history, folder / "dice.png", keeps_last),
    ]


def _read_column(history: Sequence[dict[str, float]], key: str) -> np.ndarray:
    values = np.array([row.get(key, math.nan) for row in history], np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _start_curves(
    history: Sequence[dict[str, float]], title: str, name: str, *, height: float, right: float
) -> tuple[Figure, Axes, np.ndarray]:
    """Starts a plot; returns its figure, axes and epochs (n,). Sizes are in inches; `right` is the room for labels beside the axes."""
    width = 6.8 + right
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.75 / width, 0.55 / height, 1 - (0.95 + right) / width, 1 - 1.3 / height))
    figure.text(0.75 / width, 1 - 0.25 / height, title, fontsize=TITLE_POINTS, weight="bold", color=INK, va="center")
    epochs = _read_column(history, "epoch")
    # Room at both ends keeps markers whole and gives a single epoch a range.
    room = max(0.5, 0.02 * len(history))
    axes.set_xlim(epochs.min() - room, epochs.max() + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("Epoch")
    axes.set_ylabel(name)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes, epochs


def _draw_curve(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style) -> None:
    finite = np.isfinite(values)
    # A value between two gaps has no line through it. Only a marker shows it.
    before, after = np.r_[False, finite[:-1]], np.r_[finite[1:], False]
    marked = finite if len(values) <= 25 else finite & ~before & ~after
    axes.plot(epochs, values, **style)
    axes.plot(epochs[marked], values[marked], "o", markersize=3.5, color=style["color"], alpha=style.get("alpha"))


def _finish_curves(history: Sequence[dict[str, float]], figure: Figure, axes: Axes, path: Path, keeps_last: bool) -> Path:
    kept = find_kept_epoch(history, keeps_last=keeps_last)
    if kept is not None:
        epoch, measured = history[kept]["epoch"], np.isfinite(_read_column(history, "val_mean_dice")).any()
        dice = history[kept]["val_mean_dice" if measured else "mean_dice"]
        name = f"{'last' if keeps_last else 'best'} epoch {epoch:.0f} ({'validation' if measured else 'training'} Dice {dice:.3f})"
        axes.axvline(epoch, color="#777777", linewidth=1.2, linestyle=":", label=name, zorder=1)
    if axes.get_legend_handles_labels()[0]:
        # The legend lies above the axes, where no curve can run under it.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=TEXT_POINTS, borderaxespad=0.2)
    return save_figure(figure, path)


def _plot_metric(history: Sequence[dict[str, float]], key: str, name: str, path: Path, keeps_last: bool) -> Path:
    figure, axes, epochs = _start_curves(history, f"{name.split(' (')[0]} by epoch", name, height=4.2, right=0)
    training, validation = _read_column(history, key), _read_column(history, f"val_{key}")
    kept = find_kept_epoch(history, keeps_last=keeps_last)
    for values, label, colour, style in ((training, "training", "#0072B2", "--"), (validation, "validation", "#D55E00", "-")):
        if np.isfinite(values).any():
            _draw_curve(axes, epochs, values, color=colour, linestyle=style, linewidth=1.6, label=label)
            if kept is not None:
                axes.plot(epochs[kept], values[kept], "D", markersize=7, color=colour, markeredgecolor="white", zorder=4)
    if not np.isfinite([training, validation]).any():
        axes.text(0.5, 0.5, f"no finite `{key}`", transform=axes.transAxes, ha="center", color=INK)
    return _finish_curves(history, figure, axes, path, keeps_last)


def _plot_dice(history: Sequence[dict[str, float]], path: Path, keeps_last: bool) -> Path:
    keys = dict.fromkeys(key.removeprefix("val_") for row in history for key in row)
    names = [key.removeprefix("dice_") for key in keys if key.startswith("dice_")]
    colours = [_darken(colour, 0.62) for colour in list_colours(len(set(names) - {"background"}) + 1)]
    curves: list[tuple[str, str, str, float]] = [(n, f"dice_{n}", "#999999" if n == "background" else colours.pop(0), 1.5) for n in names]
    if len(names) != 1:  # the mean of one class would only hide it
        curves.append(("mean", "mean_dice", "black", 2.2))
    # A class that validation never met is labelled with its value from training, and its name says so.
    measured = {key for _, key, *_ in curves if np.isfinite(_read_column(history, f"val_{key}")).any()}
    curves = [(name if key in measured else f"{name} (training)", key, colour, width) for name, key, colour, width in curves]
    longest = max(len(name) for name, *_ in curves)
    figure, axes, epochs = _start_curves(
        history, "Dice by class and epoch", "Dice", height=max(4.2, 1.3 + 0.18 * len(curves)), right=0.75 + 0.085 * longest
    )
    axes.set_ylim(0, 1)
    ends = []
    for name, key, colour, width in curves:
        training, validation = _read_column(history, key), _read_column(history, f"val_{key}")
        _draw_curve(axes, epochs, training, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
        _draw_curve(axes, epochs, validation, color=colour, linestyle="-", linewidth=width)
        final = validation if key in measured else training
        known = np.flatnonzero(np.isfinite(final))
        if known.size:
            ends.append((final[known[-1]], epochs[known[-1]], name, colour))
    _label_ends(figure, axes, ends)
    axes.plot([], [], color=INK, linestyle="-", linewidth=1.5, label="validation")
    axes.plot([], [], color=INK, linestyle="--", linewidth=0.8, label="training")
    return _finish_curves(history, figure, axes, path, keeps_last)


def _label_ends(figure: Figure, axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes name and last value to the right of each curve's end. Labels that would overlap are moved apart."""
    if not ends:
        return
    ends = sorted(ends)
    step = 13 / 72 / (axes.get_position().height * figure.get_figheight())
    # On the way up, each label keeps clear of the one below. On the way back down, the top must stay at or under 1.
    heights = [value for value, *_ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + step)
    heights[-1] = min(heights[-1], 1.0)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - step)
    for (value, epoch, name, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{name} {value:.3f}",
            (epoch, value),
            (1.03, height),
            xycoords="data",
            textcoords=axes.get_yaxis_transform(),
            color=_darken(colour, 0.42),
            fontsize=TEXT_POINTS,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def _darken(colour: str, lightest: float) -> str:
    """Darkens a colour that was made for a dark scan until it can be seen on white paper."""
    red, green, blue = to_rgb(colour)
    factor = min(1.0, lightest / (0.3 * red + 0.59 * green + 0.11 * blue + 1e-6))
    return to_hex((factor * red, factor * green, factor * blue))
