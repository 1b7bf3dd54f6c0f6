"""A volume slice by slice, on one page."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.data.colours import list_colours
from modules.reports.painting import dash_contours, paint_classes
from modules.reports.panels import Panel, write_panels
from modules.reports.views import View, find_extent, spread_slices
from modules.reports.volumes import PAGE_WIDTH, Box, Scan, list_volumes, narrowest_slot, prepare_scan, widest_slot


def draw_montage(
    path: Path,
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    spacing_mm: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
    plane: str | None = None,
    count: int = 20,
) -> Path:
    """Draws slices spread evenly over the structures of a volume: the prediction in colour, the truth as white dashes.

    Slices are cut down to the structures of truth and prediction with some room around them.

    Args:
        path: PNG to write; its folder is made if missing.
        image: Intensities (x, y, z) or (x, y, z, C), shown as in `draw_comparison`.
        label: Integer class map (x, y, z), or None without a truth.
        prediction: Integer class map (x, y, z).
        class_names: K names, background first.
        title: Text above the panels, wrapped to their width.
        spacing_mm: Size of a voxel along each axis; by default the affine's, or cubes of unknown size.
        affine: (4, 4), voxel indices to millimetres in RAS+; without it axes are shown as stored.
        plane: Name of the plane that is drawn: "axial", "coronal" or "sagittal". Without an affine it is the axis that the slices are
            cut across: "axis 0", "axis 1" or "axis 2". The default has the largest spacing between its slices, the first named of
            equals.
        count: Number of slices at most.

    Returns:
        `path`.

    Raises:
        ValueError: Shapes, types, class values, `spacing_mm`, `affine`, `plane` or `count` do not fit one another.
    """
    if count < 1:
        raise ValueError(f"Expected `count` of 1 or more. Received: {count}.")
    maps = {"prediction": prediction} if label is None else {"prediction": prediction, "label": label}
    scan = prepare_scan(image, maps, class_names, spacing_mm, affine)
    planes = scan.view.planes
    if plane is not None and plane not in planes:
        known = "" if scan.view.anatomical else " without `affine`"
        raise ValueError(f"Expected `plane` in {tuple(planes)}{known}. Received: {plane!r}.")
    plane = plane or _find_thickest(scan.view)
    axis, colours = planes[plane], list_colours(len(class_names))
    counts = [sum(by_axis) for by_axis in zip(*scan.counts.values(), strict=True)]
    indices = spread_slices(counts[axis], count)
    box = _find_box(scan, counts)
    columns, scale = _find_columns(scan.measure(axis, box), len(indices))
    panels = []
    for index in indices:
        _, grey = scan.show(axis, index, box, scale)
        painted = paint_classes(grey, scan.cut(scan.maps["prediction"], axis, index, box), colours)
        if label is not None:
            painted = dash_contours(painted, scan.cut(scan.maps["label"], axis, index, box))
        bar = None if panels else scan.make_bar(scale, 0.4 * painted.shape[1])
        panels.append(Panel(painted, note=str(index + 1), letters=scan.view.letters(axis), bar=bar))
    grid = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    legend = list_volumes(scan, class_names) + ([] if label is None else [("white", "truth: white dashes")])
    footer = f"{plane.capitalize()}: {len(indices)} of {scan.image.shape[axis]} slices, cut down to the structures. "
    return write_panels(path, grid, title, [(0, columns, legend)], footer=footer + scan.view.describe(), narrowest=narrowest_slot(columns))


def _find_thickest(view: View) -> str:
    spacing = view.spacing_mm or (1, 1, 1)
    # Spacings read back from an affine differ by rounding.
    return next(plane for plane, axis in view.planes.items() if spacing[axis] > 0.999 * max(spacing))


def _find_box(scan: Scan, counts: Sequence[np.ndarray]) -> Box:
    """Finds the box around the structures with some room on all sides, but without the empty margins."""
    around = [find_extent(np.asarray(by_class[:, 1:].any(axis=1)), room=0.07) for by_class in counts]
    x, y, z = (slice(max(one.start, other.start), min(one.stop, other.stop)) for one, other in zip(around, scan.box, strict=True))
    return x, y, z


def _find_columns(size: tuple[float, float], count: int) -> tuple[int, float]:
    """Spreads panels of a size (height, width) over a page.

    Returns the number of panels in a row, and the screen pixels for one unit of their size.
    """
    fits = []
    for columns in range(1, count + 1):
        height = 0.75 * PAGE_WIDTH / math.ceil(count / columns)
        fits.append((columns, min(widest_slot(columns) / size[1], height / size[0])))
    return max(fits, key=lambda fit: fit[1])  # the first of equals, which has the fuller rows
