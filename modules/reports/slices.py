"""Pictures of one slice: the prediction, and its departure from the truth."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.data.colours import list_colours
from modules.reports.checks import check_classes, check_image, check_scores, check_spacing
from modules.reports.painting import (
    DIFFERENCE_COLOURS,
    DIFFERENCE_NAMES,
    difference_map,
    find_windows,
    paint_classes,
    paint_difference,
    window_image,
)
from modules.reports.panels import Panel, list_classes, write_panels

_AXES = ("rows", "columns")


def draw_slice_comparison(
    path: Path,
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    title: str,
    scores: dict[str, float] | None,
    spacing_mm: Sequence[float] | None,
) -> Path:
    """Draws image, truth, prediction and their difference side by side; see `draw_comparison`."""
    image = check_image(image, _AXES).astype(np.float32)
    label = check_classes("label", label, image.shape[:2], class_names)
    prediction = check_classes("prediction", prediction, image.shape[:2], class_names)
    scores = check_scores(scores, class_names)
    shown, grey = window_image(image, find_windows(image), _fit_panel(image.shape[:2], spacing_mm))
    colours = list_colours(len(class_names))
    panels = [
        Panel(shown, "image"),
        Panel(paint_classes(grey, label, colours), "truth"),
        Panel(paint_classes(grey, prediction, colours), "prediction"),
        Panel(paint_difference(grey, label, prediction), "difference"),
    ]
    present = np.isin(np.arange(len(class_names)), np.union1d(label, prediction))
    counts = np.bincount(difference_map(label, prediction).ravel(), minlength=4)[1:]
    errors = [(c, f"{n}: {count:,} px") for c, n, count in zip(DIFFERENCE_COLOURS, DIFFERENCE_NAMES, counts, strict=True)]
    return write_panels(path, [panels], title, [(0, 3, list_classes(class_names, colours, present, scores)), (3, 4, errors)])


def draw_slice_overlay(
    path: Path, image: np.ndarray, prediction: np.ndarray, class_names: Sequence[str], title: str, spacing_mm: Sequence[float] | None
) -> Path:
    """Draws an image beside the same image with its prediction; see `draw_overlay`."""
    image = check_image(image, _AXES).astype(np.float32)
    prediction = check_classes("prediction", prediction, image.shape[:2], class_names)
    shown, grey = window_image(image, find_windows(image), _fit_panel(image.shape[:2], spacing_mm))
    colours = list_colours(len(class_names))
    counts = np.bincount(prediction.ravel().astype(np.uint16), minlength=len(class_names))
    legend = [
        (colours[value - 1], f"{class_names[value]}: {counts[value]:,} px ({counts[value] / prediction.size:.1%})")
        for value in range(1, len(class_names))
        if counts[value]
    ]
    panels = [Panel(shown, "image"), Panel(paint_classes(grey, prediction, colours), "prediction")]
    return write_panels(path, [panels], title, [(0, 2, legend or [(None, "no structure found")])])


def _fit_panel(shape: tuple[int, ...], spacing_mm: Sequence[float] | None) -> tuple[int, int]:
    """Chooses (rows, columns) of a panel in screen pixels: true to the spacing, and of about the same area for any aspect."""
    spacing = (1.0, 1.0) if spacing_mm is None else check_spacing(spacing_mm, ("row", "column"))
    extent = np.multiply(shape, spacing)
    area = min(max(shape[0] * shape[1], 2**17), 2**18)
    scale = min(math.sqrt(area / extent.prod()), 900 / extent[0], 512 / extent[1])
    rows, columns = (max(8, round(side)) for side in extent * scale)
    return rows, columns
