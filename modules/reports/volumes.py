"""Pictures of a volume in three planes through its structures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.data.colours import list_colours
from modules.reports.checks import check_classes, check_image, check_scores
from modules.reports.painting import (
    DIFFERENCE_COLOURS,
    DIFFERENCE_NAMES,
    Window,
    difference_map,
    find_windows,
    paint_classes,
    paint_difference,
    window_image,
)
from modules.reports.panels import GAP, MARGIN, Entry, Panel, list_classes, write_panels
from modules.reports.views import View, choose_slice, count_voxels, find_extent, find_view

PAGE_WIDTH = 1800  # pixels, at most
_NARROWEST_PAGE = 1200

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Scan:
    """A volume turned to RAS+, and what its pictures share.

    Attributes:
        view: The view that turned it.
        image: Intensities (*S, C).
        maps: Class maps (*S) by name.
        counts: Voxels of each class in each slice along the three axes, by name; see `count_voxels`.
        windows: Black and white of each channel shown, the same in all slices.
        box: The part of S that is left when the empty margins are cut off.
    """

    view: View
    image: np.ndarray
    maps: dict[str, np.ndarray]
    counts: dict[str, list[np.ndarray]]
    windows: list[Window]
    box: Box

    @property
    def whole(self) -> Box:
        """Box of the whole volume, its margins included."""
        x, y, z = self.image.shape[:3]
        return slice(0, x), slice(0, y), slice(0, z)

    def cut(self, array: np.ndarray, axis: int, index: int, box: Box) -> np.ndarray:
        """Cuts slice `index` out of an image or a map, as it is shown and without what lies outside the box."""
        return self.view.cut(array[tuple(slice(None) if i == axis else part for i, part in enumerate(box))], axis, index)

    def measure(self, axis: int, box: Box) -> tuple[float, float]:
        """Measures height and width of the slices of a box, in millimetres, or in voxels where their size is not known."""
        return self.view.measure([part.stop - part.start for part in box], axis)

    def show(self, axis: int, index: int, box: Box, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Shows a slice of the image as pixels: in colour if it has any, and in grey."""
        height, width = (max(8, round(side * scale)) for side in self.measure(axis, box))
        return window_image(self.cut(self.image, axis, index, box).astype(np.float32), self.windows, (height, width))

    def make_bar(self, scale: float, width: float) -> tuple[int, str] | None:
        """Makes a scale bar of a round length, no longer than `width` in pixels; None where sizes are not known."""
        if self.view.spacing_mm is None:
            return None
        length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100, 200) if mm * scale <= width), default=1)
        return round(length * scale), f"{length // 10} cm" if length >= 10 else f"{length} mm"

    def format_volume(self, voxels: int) -> str:
        """Formats a number of voxels as millilitres, where their size is known."""
        if self.view.spacing_mm is None:
            return f"{voxels:,} voxels"
        millilitres = voxels * math.prod(self.view.spacing_mm) / 1000
        return f"{millilitres:,.1f} ml" if millilitres >= 10 else f"{millilitres:.2f} ml"


def prepare_scan(
    image: np.ndarray,
    maps: dict[str, np.ndarray],
    class_names: Sequence[str],
    spacing_mm: Sequence[float] | None,
    affine: np.ndarray | None,
) -> Scan:
    """Checks a stored volume and its class maps (ValueError) and turns them to RAS+, without copying them."""
    view = find_view(spacing_mm, affine)
    image = check_image(image, ("x", "y", "z"))
    maps = {name: view.turn(check_classes(name, classes, image.shape[:3], class_names)) for name, classes in maps.items()}
    image = view.turn(image)
    counts = {name: count_voxels(classes, len(class_names)) for name, classes in maps.items()}
    # About a million voxels are enough for percentiles. They are taken after turning, so the storage order does not choose them.
    step = math.ceil((math.prod(image.shape[:3]) / 2**20) ** (1 / 3))
    sample = image[::step, ::step, ::step]
    windows = find_windows(sample if np.count_nonzero(sample) > 1000 else image)
    filled = (image != 0).any(axis=-1)
    box = []
    for axis in range(3):
        occupied = filled.any(axis=tuple(other for other in range(3) if other != axis))
        for by_axis in counts.values():
            occupied = occupied | by_axis[axis][:, 1:].any(axis=1)
        box.append(find_extent(occupied, room=0.04))
    return Scan(view, image, maps, counts, windows, (box[0], box[1], box[2]))


def draw_volume_comparison(
    path: Path,
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    title: str,
    scores: dict[str, float] | None,
    spacing_mm: Sequence[float] | None,
    affine: np.ndarray | None,
) -> Path:
    """Draws image, truth, prediction and difference in three planes, a row each; see `draw_comparison`."""
    scores = check_scores(scores, class_names)
    scan = prepare_scan(image, {"label": label, "prediction": prediction}, class_names, spacing_mm, affine)
    colours = list_colours(len(class_names))
    totals = {name: counts[0].sum(axis=0) for name, counts in scan.counts.items()}
    shown_counts = scan.counts["label" if totals["label"][1:].any() else "prediction"]
    scale = _find_scale(scan, columns=4, tallest=440)
    grid = []
    for plane, axis in scan.view.planes.items():
        index = choose_slice(shown_counts[axis])
        shown, grey = scan.show(axis, index, scan.box, scale)
        truth, guess = (scan.cut(classes, axis, index, scan.box) for classes in scan.maps.values())
        painted = {
            "image": shown,
            "truth": paint_classes(grey, truth, colours),
            "prediction": paint_classes(grey, guess, colours),
            "difference": paint_difference(grey, truth, guess),
        }
        grid.append([_make_panel(scan, name, pixels, plane, index, scale) for name, pixels in painted.items()])
    entries = list_classes(class_names, colours, totals["label"] + totals["prediction"] > 0, scores)
    legends = [(0, 3, entries), (3, 4, _list_differences(scan))]
    return write_panels(path, grid, title, legends, footer=describe_page(scan), narrowest=narrowest_slot(4))


def draw_volume_overlay(
    path: Path,
    image: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    title: str,
    spacing_mm: Sequence[float] | None,
    affine: np.ndarray | None,
) -> Path:
    """Draws a volume in three planes beside the same with its prediction; see `draw_overlay`."""
    scan = prepare_scan(image, {"prediction": prediction}, class_names, spacing_mm, affine)
    colours = list_colours(len(class_names))
    heights = [scan.measure(axis, scan.box)[0] for axis in scan.view.planes.values()]
    # Planes side by side fill a page, unless the scan is flat. Then two of them are strips and go below the first.
    flat = sum(heights) <= 2 * max(heights)
    scale = _find_scale(scan, columns=2 if flat else 3, tallest=560)
    rows = []
    for plane, axis in scan.view.planes.items():
        index = choose_slice(scan.counts["prediction"][axis])
        shown, grey = scan.show(axis, index, scan.box, scale)
        painted = paint_classes(grey, scan.cut(scan.maps["prediction"], axis, index, scan.box), colours)
        rows.append([_make_panel(scan, name, pixels, plane, index, scale) for name, pixels in (("image", shown), ("prediction", painted))])
    grid = rows if flat else list(zip(*rows, strict=True))
    legends = [(0, len(grid[0]), list_volumes(scan, class_names))]
    return write_panels(path, grid, title, legends, footer=describe_page(scan), narrowest=narrowest_slot(len(grid[0])))


def describe_page(scan: Scan) -> str:
    """Describes in small print how the scan lies, and whether the pictures show all of it."""
    return scan.view.describe() + ("" if scan.box == scan.whole else " Empty margins are cut off.")


def narrowest_slot(columns: int) -> int:
    """Returns the least width of a slot in pixels at which a page is not too narrow for its title and legend."""
    return math.ceil((_NARROWEST_PAGE - 2 * MARGIN - (columns - 1) * GAP) / columns)


def widest_slot(columns: int) -> float:
    """Returns the width of a slot in pixels on the widest page."""
    return (PAGE_WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns


def list_volumes(scan: Scan, class_names: Sequence[str]) -> list[Entry]:
    """Lists the legend of the classes that are there, with the volume predicted and, if there is a label, the true one."""
    colours = list_colours(len(class_names))
    found = scan.counts["prediction"][0].sum(axis=0)
    true = scan.counts["label"][0].sum(axis=0) if "label" in scan.counts else None
    entries = []
    for value in range(1, len(class_names)):
        if found[value] or (true is not None and true[value]):
            truth = "" if true is None else f" (truth {scan.format_volume(true[value])})"
            entries.append((colours[value - 1], f"{class_names[value]}: {scan.format_volume(found[value])}{truth}"))
    return entries or [(None, "no structure found")]


def _find_scale(scan: Scan, columns: int, tallest: int) -> float:
    """Finds the screen pixels for a millimetre (or a voxel). All planes share this scale, so that they can be compared."""
    heights, widths = zip(*(scan.measure(axis, scan.box) for axis in range(3)), strict=True)
    return min(tallest / max(heights), widest_slot(columns) / max(widths))


def _make_panel(scan: Scan, name: str, pixels: np.ndarray, plane: str, index: int, scale: float) -> Panel:
    axis = scan.view.planes[plane]
    caption = f"{name}: {plane}, slice {index + 1} of {scan.image.shape[axis]}"
    narrowest = min(scan.measure(other, scan.box)[1] for other in range(3))
    bar = scan.make_bar(scale, 0.4 * scale * narrowest) if name == "image" else None
    return Panel(pixels, caption, letters=scan.view.letters(axis), bar=bar)


def _list_differences(scan: Scan) -> list[Entry]:
    """Lists the legend of the differences, with the voxels of each in the whole volume."""
    # We count a plane at a time, as `bincount` needs 64-bit integers.
    counts = np.sum([np.bincount(difference_map(*planes).ravel(), minlength=4) for planes in zip(*scan.maps.values(), strict=True)], axis=0)
    entries = []
    for colour, name, count in zip(DIFFERENCE_COLOURS, DIFFERENCE_NAMES, counts[1:].tolist(), strict=True):
        volume = "" if scan.view.spacing_mm is None else f" ({scan.format_volume(count)})"
        entries.append((colour, f"{name}: {count:,} voxels{volume}"))
    return entries
