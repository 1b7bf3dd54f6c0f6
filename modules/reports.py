"""Pictures of a run: training curves, and predictions drawn over their scans.

Everything is drawn with matplotlib's object-oriented interface and the Agg canvas, never `pyplot`: there is no global state, so
several threads may draw at once and no display is needed. Files are written under a temporary name and then renamed, so that a
reader of the run folder never meets half a picture.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

from modules.volume import replace_file

# Okabe and Ito's order (https://jfly.uni-koeln.de/color/), without black, which is lost on MRI. Green, blue, vermilion and
# purple are lighter or purer than theirs, to stand out from grey and, for the colour-blind, from each other.
PALETTE: tuple[str, ...] = ("#E69F00", "#56B4E9", "#00A878", "#F0E442", "#2A62F0", "#E0480A", "#DC8CB8")

# Differences by category 1.. of `difference_map`. They differ in lightness as well as in hue.
DIFFERENCE_NAMES: tuple[str, ...] = ("missed", "false positive", "wrong class")
DIFFERENCE_COLOURS: tuple[str, ...] = ("#35B7FF", "#FF6A00", "#FFF36B")

_DPI = 110
_INK = "#222222"
_TITLE_POINTS, _TEXT_POINTS = 11.5, 9.5
_MARGIN, _GAP, _LINE, _SWATCH = 14, 8, 20, 12  # pixels
_NARROWEST_SLOT = 200  # pixels; the legend of the differences must fit below a narrow panel

Entry = tuple[str | None, str]  # colour of the swatch, or None for no swatch, and text
Legend = tuple[int, int, list[Entry]]  # the panels it lies under, first to one past the last, and its entries


def find_best_epoch(history: Sequence[dict[str, float]]) -> int | None:
    """Finds the row of `history` with the highest mean Dice.

    Validation decides wherever it was measured at least once; otherwise training does. The earliest of equals wins.

    Args:
        history: One row an epoch, see `plot_history`.

    Returns:
        Index of the row (from 0), or None where no row has a finite mean Dice.
    """
    for key in ("val_mean_dice", "mean_dice"):
        values = _read_column(history, key)
        if np.isfinite(values).any():
            return int(np.nanargmax(values))
    return None


def difference_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Sorts every pixel by how the prediction departs from the truth.

    Args:
        label: Integer class map (*S), 0 is background.
        prediction: Integer class map (*S).

    Returns:
        uint8 (*S): 0 same, 1 missed (foreground in `label` only), 2 false (foreground in `prediction` only), 3 wrong class
        (foreground in both, of different classes).

    Raises:
        ValueError: The shapes differ.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"Expected `prediction` of the shape of `label`, {label.shape}. Received: {prediction.shape}.")
    true, found = label != 0, prediction != 0
    return np.select([true & ~found, found & ~true, label != prediction], [1, 2, 3], 0).astype(np.uint8)


def plot_history(history: list[dict[str, float]], folder: Path) -> list[Path]:
    """Writes `loss.png`, `accuracy.png` and `dice.png`.

    The best epoch (`find_best_epoch`) is marked in all three. Values that are missing, NaN or infinite leave gaps.

    Args:
        history: One row an epoch: `epoch` (from 1), `loss`, `accuracy`, `mean_dice`, `dice_<class>` for each class, and the
            same names after `val_` where the run was validated. Other keys are ignored. Classes take the colours of `PALETTE`
            in the order of their keys, as they do in the overlays; `dice_background`, if there, is grey.
        folder: Where to write; made if missing.

    Returns:
        The three paths.

    Raises:
        ValueError: `history` is empty, or a row has no `epoch`.
    """
    if not history or not np.isfinite(_read_column(history, "epoch")).all():
        raise ValueError(f"Expected `history` of one or more rows, each with its `epoch`. Received: {len(history)} rows.")
    folder = Path(folder)
    return [
        _plot_metric(history, "loss", "Loss", folder / "loss.png"),
        _plot_metric(history, "accuracy", "Accuracy (share of pixels)", folder / "accuracy.png"),
        _plot_dice(history, folder / "dice.png"),
    ]


def draw_comparison(
    path: Path,
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    scores: dict[str, float] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Draws image, truth, prediction and their difference side by side.

    Args:
        path: PNG to write; its folder is made if missing.
        image: Intensities (rows, columns) or (rows, columns, C), of any range. Three channels are shown as red, green and blue,
            of any other number the first is shown. The window is the 1st to 99th percentile of the pixels that are not 0.
        label: Integer class map (rows, columns).
        prediction: Integer class map (rows, columns).
        class_names: K names, background first.
        title: Text above the panels, wrapped to their width.
        scores: Dice in [0, 1] by class name, for the legend. NaN is shown as "absent".
        spacing_mm: Size of a pixel (row, column); square pixels without it.

    Returns:
        `path`.

    Raises:
        ValueError: Shapes, types, class values, `scores` or `spacing_mm` do not fit one another.
    """
    image = _check_image(image)
    label = _check_classes("label", label, image.shape[:2], class_names)
    prediction = _check_classes("prediction", prediction, image.shape[:2], class_names)
    scores = scores or {}
    unknown = sorted(set(scores) - set(class_names))
    if unknown:
        raise ValueError(f"Expected `scores` for classes in {tuple(class_names)}. Received: {unknown}.")
    difference = difference_map(label, prediction)
    size = _fit_panel(image.shape[:2], spacing_mm)
    shown, grey = _window_image(image, size)
    colours = _list_colours(len(class_names))
    panels = [
        ("image", shown),
        ("truth", _paint(grey, label, colours)),
        ("prediction", _paint(grey, prediction, colours)),
        # Darker and nearly opaque: an error of one pixel has to catch the eye before the anatomy does.
        ("difference", _paint(0.75 * grey, difference, DIFFERENCE_COLOURS, opacity=0.85)),
    ]
    present = set(np.unique(label)) | set(np.unique(prediction))
    classes = []
    for value, name in enumerate(class_names[1:], start=1):
        if name in scores:
            dice = scores[name]
            classes.append((colours[value - 1], f"{name}: " + ("absent" if math.isnan(dice) else f"Dice {dice:.3f}")))
        elif value in present:
            classes.append((colours[value - 1], name))
    counts = np.bincount(difference.ravel(), minlength=4)[1:]
    errors = [(c, f"{n}: {count:,} px") for c, n, count in zip(DIFFERENCE_COLOURS, DIFFERENCE_NAMES, counts, strict=True)]
    classes = classes or [(None, "no structure in truth or prediction")]
    return _write_panels(Path(path), panels, title, [(0, 3, classes), (3, 4, errors)])


def draw_overlay(
    path: Path,
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Draws an image beside the same image with its prediction; the legend counts the pixels of each class found.

    Arguments, errors and the returned path are those of `draw_comparison`.
    """
    image = _check_image(image)
    prediction = _check_classes("prediction", prediction, image.shape[:2], class_names)
    shown, grey = _window_image(image, _fit_panel(image.shape[:2], spacing_mm))
    colours = _list_colours(len(class_names))
    counts = np.bincount(prediction.ravel(), minlength=len(class_names))
    legend = [
        (colours[value - 1], f"{class_names[value]}: {counts[value]:,} px ({counts[value] / prediction.size:.1%})")
        for value in range(1, len(class_names))
        if counts[value]
    ]
    panels = [("image", shown), ("prediction", _paint(grey, prediction, colours))]
    return _write_panels(Path(path), panels, title, [(0, 2, legend or [(None, "no structure found")])])


def _list_colours(num_classes: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(num_classes - 1)]


def _check_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.float32)
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"Expected `image` of shape (rows, columns) or (rows, columns, C). Received: {image.shape}.")
    if not np.isfinite(image).all():
        raise ValueError("Expected `image` with finite values. Received: NaN or infinity.")
    return image


def _check_classes(name: str, classes: np.ndarray, shape: tuple[int, ...], class_names: Sequence[str]) -> np.ndarray:
    classes = np.asarray(classes)
    if classes.shape != shape:
        raise ValueError(f"Expected `{name}` of the shape of `image`, {shape}. Received: {classes.shape}.")
    if classes.dtype.kind not in "iub":
        raise ValueError(f"Expected `{name}` of an integer type. Received: {classes.dtype}.")
    if classes.min() < 0 or classes.max() >= len(class_names):
        raise ValueError(
            f"Expected `{name}` with values from 0 to {len(class_names) - 1}, one for each of `class_names`. "
            f"Received: {classes.min()} to {classes.max()}."
        )
    return classes.astype(np.uint16)


def _fit_panel(shape: tuple[int, ...], spacing_mm: Sequence[float] | None) -> tuple[int, int]:
    """Chooses (rows, columns) of a panel in screen pixels: true to the spacing, and of about the same area for any aspect."""
    spacing = (1.0, 1.0) if spacing_mm is None else tuple(float(value) for value in spacing_mm)
    if len(spacing) != 2 or not all(0 < value < math.inf for value in spacing):
        raise ValueError(f"Expected `spacing_mm` as two positive numbers (row, column). Received: {spacing_mm}.")
    extent = np.multiply(shape, spacing)
    area = min(max(shape[0] * shape[1], 2**17), 2**18)
    scale = min(math.sqrt(area / extent.prod()), 900 / extent[0], 512 / extent[1])
    rows, columns = (max(8, round(side)) for side in extent * scale)
    return rows, columns


def _window_image(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scales intensities to [0, 255] and to the panel: the image as shown (*size, 3), and a grey one (*size) to paint on."""
    if image.ndim == 2:
        image = image[..., None]
    channels = image if image.shape[-1] == 3 else image[..., :1]
    scaled = []
    for channel in np.moveaxis(channels, -1, 0):
        nonzero = channel[channel != 0]
        low, high = np.percentile(nonzero, (1, 99)) if nonzero.size else (0.0, 1.0)
        # A constant image has no contrast to show: mid-grey, with zeros staying black.
        window = (channel - low) / (high - low) if high > low else np.where(channel != 0, 0.5, 0.0)
        window = np.clip(window, 0, 1).astype(np.float32)
        scaled.append(255 * _resize_area(window, size))
    shown = np.stack(scaled if len(scaled) == 3 else scaled * 3, axis=-1)
    return shown, shown.mean(axis=-1)


def _resize_area(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages where it shrinks; where it enlarges, keeps pixels square, to show no more detail than the scan has."""
    # One axis at a time: OpenCV averages only if neither axis grows, and would skip columns of a thick-sliced scan.
    array = cv2.resize(array, (array.shape[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA)


def _resize_classes(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a class map without blending classes, and without losing thin structures when it shrinks."""
    if size[0] >= classes.shape[0] and size[1] >= classes.shape[1]:
        return cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    resized = np.zeros(size, np.uint16)
    values, counts = np.unique(classes[classes > 0], return_counts=True)
    # Any touch of a structure claims a screen pixel; the smallest is painted last, on top.
    for value in values[np.argsort(-counts)]:
        resized[_resize_area((classes == value).astype(np.float32), size) > 1e-3] = value
    return resized


def _paint(grey: np.ndarray, classes: np.ndarray, colours: Sequence[str], opacity: float = 0.35) -> np.ndarray:
    """Paints classes 1.. over a grey panel: a fill through which the anatomy shows, and an opaque inner contour."""
    # Two pixels wide where a voxel is at least as large, else one.
    wide = grey.shape[0] >= 1.9 * classes.shape[0] and grey.shape[1] >= 1.9 * classes.shape[1]
    classes = _resize_classes(classes, grey.shape)
    table = 255 * np.array([(0, 0, 0), *map(to_rgb, colours)])
    painted = np.repeat(grey[..., None], 3, axis=-1)
    inside = classes > 0
    painted[inside] = (1 - opacity) * painted[inside] + opacity * table[classes[inside]]
    # The contour lies within its own class, so neighbours keep one line each and a line one pixel wide is drawn solid.
    around = cv2.getStructuringElement(*((cv2.MORPH_ELLIPSE, (5, 5)) if wide else (cv2.MORPH_CROSS, (3, 3))))
    edge = inside & (cv2.morphologyEx(classes, cv2.MORPH_GRADIENT, around) > 0)
    painted[edge] = table[classes[edge]]
    return painted


def _measure_text(figure: Figure, text: str, **style) -> float:
    """Width of a text in pixels."""
    drawn = figure.text(0, 0, text, parse_math=False, **style)
    width = drawn.get_window_extent(figure.canvas.get_renderer()).width
    drawn.remove()
    return width


def _wrap_text(figure: Figure, text: str, width: float, **style) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, between words where it can."""
    columns = max(len(text), 1)
    lines = textwrap.wrap(text, columns)
    while columns > 1 and any(_measure_text(figure, line, **style) > width for line in lines):
        columns -= max(1, columns // 16)
        lines = textwrap.wrap(text, columns)
    return lines


def _write_panels(path: Path, panels: list[tuple[str, np.ndarray]], title: str, legends: list[Legend]) -> Path:
    """Lays out captioned panels in a row above their legends, everything in pixels, and writes the figure."""
    rows, columns = panels[0][1].shape[:2]
    slot = max(columns, _NARROWEST_SLOT)
    width = 2 * _MARGIN + len(panels) * (slot + _GAP) - _GAP
    figure = Figure(dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    lines = _wrap_text(figure, title, width - 2 * _MARGIN, fontsize=_TITLE_POINTS, weight="bold")
    # Down the page: title, captions, panels, legends. The height follows from the legends, so these are laid out first.
    caption_top = _MARGIN + len(lines) * (_LINE + 2) + (6 if lines else 0)
    panel_top = caption_top + _LINE
    legend_top = panel_top + rows + 10
    cells = [
        (_MARGIN + first * (slot + _GAP) + x, legend_top + y, colour, text)
        for first, last, entries in legends
        for x, y, colour, text in _arrange_legend(figure, entries, (last - first) * (slot + _GAP) - _GAP)
    ]
    height = max(y for _, y, _, _ in cells) + _LINE + _MARGIN - 4
    figure.set_size_inches((width + 0.5) / _DPI, (height + 0.5) / _DPI)  # the canvas rounds down

    def write(x: float, y: float, text: str, points: float, **style: str) -> None:
        style = {"va": "center", "color": _INK, **style}
        figure.text(x, height - y, text, fontsize=points, transform=IdentityTransform(), parse_math=False, **style)

    for i, line in enumerate(lines):
        write(_MARGIN, _MARGIN + (i + 0.5) * (_LINE + 2), line, _TITLE_POINTS, weight="bold")
    for i, (caption, panel) in enumerate(panels):
        centre = _MARGIN + i * (slot + _GAP) + slot // 2
        write(centre, caption_top + _LINE / 2 - 1, caption, _TEXT_POINTS, ha="center")
        # figimage copies pixels one to one; axes would resample the contours.
        figure.figimage(np.rint(panel).astype(np.uint8), centre - columns // 2, height - panel_top - rows, origin="upper")
    for x, y, colour, text in cells:
        if colour:
            corner = (x, height - y - (_LINE + _SWATCH) / 2)
            swatch = Rectangle(corner, _SWATCH, _SWATCH, fc=colour, ec=_INK, lw=0.6, transform=IdentityTransform())
            figure.add_artist(swatch)
        write(x + (_SWATCH + 6 if colour else 0), y + _LINE / 2, text, _TEXT_POINTS)
    return _save_figure(figure, path)


def _arrange_legend(figure: Figure, entries: list[Entry], width: int) -> list[tuple[float, float, str | None, str]]:
    """Places entries row by row in as many equal columns as fit: (x, y, colour, text), in pixels from the top left corner."""
    texts = []
    for _, text in entries:
        # A name too long for its panels is cut, not wrapped: the rows stay even.
        lines = _wrap_text(figure, text, width - _SWATCH - 24, fontsize=_TEXT_POINTS)
        texts.append(lines[0] + ("\u2026" if len(lines) > 1 else ""))
    column = max(_measure_text(figure, text, fontsize=_TEXT_POINTS) for text in texts) + _SWATCH + 24
    per_row = max(1, int((width + 18) // column))
    return [
        ((i % per_row) * column, (i // per_row) * _LINE, colour, text)
        for i, ((colour, _), text) in enumerate(zip(entries, texts, strict=True))
    ]


def _read_column(history: Sequence[dict[str, float]], key: str) -> np.ndarray:
    values = np.array([row.get(key, math.nan) for row in history], np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _start_curves(history: Sequence[dict[str, float]], title: str, name: str, *, height: float, right: float) -> tuple:
    """Figure, axes and epochs (n,) of a plot; sizes in inches, `right` is what labels need beside the axes."""
    width = 6.8 + right
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.75 / width, 0.55 / height, 1 - (0.95 + right) / width, 1 - 1.3 / height))
    figure.text(0.75 / width, 1 - 0.25 / height, title, fontsize=_TITLE_POINTS, weight="bold", color=_INK, va="center")
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
    # A value between two gaps has no line through it: only a marker shows it.
    before, after = np.r_[False, finite[:-1]], np.r_[finite[1:], False]
    marked = finite if len(values) <= 25 else finite & ~before & ~after
    axes.plot(epochs, values, **style)
    axes.plot(epochs[marked], values[marked], "o", markersize=3.5, color=style["color"], alpha=style.get("alpha"))


def _finish_curves(history: Sequence[dict[str, float]], figure: Figure, axes: Axes, path: Path) -> Path:
    best = find_best_epoch(history)
    if best is not None:
        epoch, measured = history[best]["epoch"], np.isfinite(_read_column(history, "val_mean_dice")).any()
        dice = history[best]["val_mean_dice" if measured else "mean_dice"]
        name = f"best epoch {epoch:.0f} ({'validation' if measured else 'training'} Dice {dice:.3f})"
        axes.axvline(epoch, color="#777777", linewidth=1.2, linestyle=":", label=name, zorder=1)
    if axes.get_legend_handles_labels()[0]:
        # Above the axes, where no curve can run under it.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=_TEXT_POINTS, borderaxespad=0.2)
    return _save_figure(figure, path)


def _plot_metric(history: Sequence[dict[str, float]], key: str, name: str, path: Path) -> Path:
    figure, axes, epochs = _start_curves(history, f"{name.split(' (')[0]} by epoch", name, height=4.2, right=0)
    training, validation = _read_column(history, key), _read_column(history, f"val_{key}")
    best = find_best_epoch(history)
    for values, label, colour, style in ((training, "training", "#0072B2", "--"), (validation, "validation", "#D55E00", "-")):
        if np.isfinite(values).any():
            _draw_curve(axes, epochs, values, color=colour, linestyle=style, linewidth=1.6, label=label)
            if best is not None:
                axes.plot(epochs[best], values[best], "D", markersize=7, color=colour, markeredgecolor="white", zorder=4)
    if not np.isfinite([training, validation]).any():
        axes.text(0.5, 0.5, f"no finite `{key}`", transform=axes.transAxes, ha="center", color=_INK)
    return _finish_curves(history, figure, axes, path)


def _plot_dice(history: Sequence[dict[str, float]], path: Path) -> Path:
    keys = dict.fromkeys(key.removeprefix("val_") for row in history for key in row)
    names = [key.removeprefix("dice_") for key in keys if key.startswith("dice_")]
    colours = [_darken(colour, 0.62) for colour in _list_colours(len(set(names) - {"background"}) + 1)]
    curves = [(n, f"dice_{n}", "#999999" if n == "background" else colours.pop(0), 1.5) for n in names]
    if len(names) != 1:  # the mean of one class would only hide it
        curves.append(("mean", "mean_dice", "black", 2.2))
    # A class that validation never met is labelled with what training says of it, and says so.
    measured = {key for _, key, *_ in curves if np.isfinite(_read_column(history, f"val_{key}")).any()}
    curves = [(name if key in measured else f"{name} (training)", key, *style) for name, key, *style in curves]
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
    _label_ends(axes, ends)
    axes.plot([], [], color=_INK, linestyle="-", linewidth=1.5, label="validation")
    axes.plot([], [], color=_INK, linestyle="--", linewidth=0.8, label="training")
    return _finish_curves(history, figure, axes, path)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes name and last value to the right of each curve's end; labels that would overlap are moved apart."""
    if not ends:
        return
    ends = sorted(ends)
    step = 13 / 72 / (axes.get_position().height * axes.figure.get_figheight())
    # Upwards, each keeps clear of the one below; then back down from the top, which must stay at or under 1.
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
            fontsize=_TEXT_POINTS,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def _darken(colour: str, lightest: float) -> str:
    """Takes a colour made for a dark scan down to what can be seen on white paper."""
    red, green, blue = to_rgb(colour)
    factor = min(1.0, lightest / (0.3 * red + 0.59 * green + 0.11 * blue + 1e-6))
    return to_hex((factor * red, factor * green, factor * blue))


def _save_figure(figure: Figure, path: Path) -> Path:
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return Path(path)
