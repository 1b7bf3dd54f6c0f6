"""Sheets of samples: the cases of a data set with their labels, and the effects of an augmentation on one of them."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from modules.data.case import Volume
from modules.data.colours import list_colours
from modules.data.draws import Augmentation, Effect, draw_parameters, list_effects
from modules.reports.checks import check_classes, check_image, check_spacing
from modules.reports.painting import Window, find_windows, window_image
from modules.reports.panels import Panel, write_panels
from modules.reports.views import choose_slice
from modules.reports.volumes import narrowest_slot, prepare_scan, widest_slot

_CASE_COLUMNS, _EFFECT_COLUMNS, _CHECK_COLUMNS = 4, 6, 6
_TALLEST_CASE, _TALLEST_EFFECT = 420, 400  # pixels
# Pixels of a character of a remark on a picture of a check, characters of a name, and lines of remarks.
_CHARACTER, _MOST_NAME, _MOST_LINES = 10, 34, 4
_NARROWEST = 215  # pixels; the captions must fit
_UNITS = {"rotation": "\u00b0", "elastic": " vx", "blur": " vx", "noise": " SD", "brightness": " SD"}


class Checked(NamedTuple):
    """A scan for `draw_checked`.

    Attributes:
        name: Its name.
        image: The image as it is stored.
        label: Class map (*S), or None.
        remarks: What is odd about it, in few words each.
    """

    name: str
    image: Volume
    label: np.ndarray | None
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class _Cut:
    """A slice as it is shown.

    Attributes:
        image: Intensities (rows, columns, C).
        label: Class map (rows, columns).
        extent: Height and width in millimetres.
        windows: Black and white of each channel shown.
        letters: Letters at its edges, see `Panel`.
        place: Place of the slice in its volume, in words.
        footer: Small print on how the slice lies.
    """

    image: np.ndarray
    label: np.ndarray
    extent: tuple[float, float]
    windows: list[Window]
    letters: tuple[str, str, str, str] | None = None
    place: str = ""
    footer: str = "Slices are shown as they are stored."

    def fit(self, columns: int, tallest: int) -> tuple[int, int]:
        """Returns rows and columns of its panel in screen pixels, on a page of so many columns."""
        scale = min(tallest / self.extent[0], widest_slot(columns) / self.extent[1])
        return max(8, round(self.extent[0] * scale)), max(8, round(self.extent[1] * scale))


def draw_cases(
    path: Path,
    cases: Mapping[str, tuple[Volume, np.ndarray]],
    class_names: Sequence[str],
    *,
    title: str,
    plane: str = "axial",
    ignored: bool = False,
) -> Path:
    """Draws each case beside the same case with its label's contours. A volume shows the slice that shows its structures best.

    Args:
        path: PNG to write; its folder is made if missing.
        cases: Image and integer class map (*S) by name, both as they are stored. Intensities are shown as in `draw_comparison`.
        class_names: K names, background first.
        title: Text above the panels, wrapped to their width.
        plane: "axial", "coronal" or "sagittal", for volumes that have an affine. Others are cut across their last axis.
        ignored: Whether the last class is that of voxels which nobody judged. It has no say in the choice of a slice.

    Returns:
        `path`.

    Raises:
        ValueError: There is no case, or shapes, types, class values, spacing, affine or `plane` do not fit one another.
    """
    if not cases:
        raise ValueError("Expected `cases` to draw. Received: none.")
    colours, panels, footers = list_colours(len(class_names)), [], []
    for name, (image, label) in cases.items():
        cut = _cut_best(image, label, class_names, plane, ignored=ignored)
        shown, grey = window_image(cut.image, cut.windows, cut.fit(_CASE_COLUMNS, _TALLEST_CASE))
        spacing = "" if image.affine is None else f", {'x'.join(f'{size:.3g}' for size in image.spacing_mm)} mm"
        panels.append(Panel(shown, name, letters=cut.letters))
        caption = "x".join(map(str, np.shape(label))) + spacing
        panels.append(Panel(_outline(grey, cut.label, colours), caption, note=cut.place))
        footers.append(cut.footer)
    counts = np.sum([np.bincount(np.ravel(label).astype(np.uint16), minlength=len(class_names)) for _, label in cases.values()], axis=0)
    # Someone who checks a new data set has to see which class none of the cases holds.
    names = [name if count else f"{name}: in none of these" for name, count in zip(class_names, counts, strict=True)]
    grid = [panels[first : first + _CASE_COLUMNS] for first in range(0, len(panels), _CASE_COLUMNS)]
    legend = list(zip(colours, names[1:], strict=True))
    return write_panels(path, grid, title, [(0, len(grid[0]), legend)], footer=" ".join(dict.fromkeys(footers)), narrowest=_NARROWEST)


def draw_checked(
    path: Path, scans: Iterable[Checked], class_names: Sequence[str], *, title: str, plane: str = "axial", ignored: bool = False
) -> Path:
    """Draws a slice of each scan with the outlines of its label, and its remarks.

    Args:
        path: PNG to write; its folder is made if missing.
        scans: One or more. They are taken one by one, so that one at a time is in memory.
        class_names: K names, background first.
        title: Text above the panels, wrapped to their width.
        plane: As in `draw_cases`.
        ignored: As in `draw_cases`.

    Returns:
        `path`.

    Raises:
        ValueError: As in `draw_cases`.
    """
    colours, counts = list_colours(len(class_names)), np.zeros(len(class_names), np.intp)
    panels, footers = [], []
    for scan in scans:
        label = np.zeros(scan.image.array.shape[:-1], np.uint8) if scan.label is None else scan.label
        cut = _cut_best(scan.image, label, class_names, plane, ignored=ignored)
        counts += np.bincount(np.ravel(label).astype(np.uint16), minlength=len(class_names))
        _, grey = window_image(cut.image, cut.windows, cut.fit(_CHECK_COLUMNS, _TALLEST_EFFECT))
        remarks = [line for remark in scan.remarks for line in textwrap.wrap(remark, grey.shape[1] // _CHARACTER)]
        remarks = remarks[:_MOST_LINES] + (["..."] if len(remarks) > _MOST_LINES else [])
        name = ("! " if remarks else "") + scan.name
        name = name if len(name) <= _MOST_NAME else f"{name[: _MOST_NAME - 16]}\u2026{name[-15:]}"
        notes = [cut.place] if cut.place else []
        notes += ["no label"] if scan.label is None else []
        # The letter at the upper edge would lie on the remarks.
        letters = cut.letters and (*cut.letters[:2], "", cut.letters[3])
        bar = None if scan.image.affine is None else _make_bar(grey.shape[1] / cut.extent[1], grey.shape[1])
        panels.append(
            Panel(np.rint(_outline(grey, cut.label, colours)).astype(np.uint8), name, "\n".join([*notes, *remarks]), letters, bar)
        )
        footers.append(cut.footer)
    grid = [panels[first : first + _CHECK_COLUMNS] for first in range(0, len(panels), _CHECK_COLUMNS)]
    narrowest = max(_NARROWEST, narrowest_slot(len(grid[0])))
    marks = [(None, "!: a finding of the check names it")] if any(panel.caption.startswith("! ") for panel in panels) else []
    names = [name if count else f"{name}: in none of these" for name, count in zip(class_names, counts, strict=True)]
    legend = [*zip(colours, names[1:], strict=True), *marks]
    return write_panels(path, grid, title, [(0, len(grid[0]), legend)], footer=" ".join(dict.fromkeys(footers)), narrowest=narrowest)


def _make_bar(scale: float, width: int) -> tuple[int, str]:
    """Makes a scale bar of a round length, at most 0.4 of a panel's width, at so many screen pixels a millimetre."""
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm * scale <= 0.4 * width), default=1)
    return round(length * scale), f"{length} mm"


def draw_augmentation(
    path: Path,
    image: Volume,
    label: np.ndarray,
    class_names: Sequence[str],
    augmentation: Augmentation,
    *,
    title: str,
    seed: int = 42,
    plane: str = "axial",
    left_right_swaps: Sequence[tuple[int, int]] = (),
    ignored: bool = False,
) -> Path:
    """Draws the effects of an augmentation on a sample one by one, and some draws of all together.

    Each effect has three panels: the sample, the effect alone at its strongest, and the effect at a strength drawn from its range.
    All have the sample's own window, so that they can be compared. Of a volume, each panel shows the slice that shows its structures
    best. The effects were applied in 3-D.

    Args:
        path: PNG to write; its folder is made if missing.
        image: The sample that a network would get, (*P, C) float32. Volumes are in RAS+ orientation.
        label: Its integer class map (*P).
        class_names: K names, background first.
        augmentation: Augmentation whose effects are drawn.
        title: Text above the panels, wrapped to their width.
        seed: Seed of the draws.
        plane: As in `draw_cases`.
        left_right_swaps: Pairs of classes that change places where left and right do.
        ignored: As in `draw_cases`.

    Returns:
        `path`.

    Raises:
        ValueError: There is no effect, or the arguments do not fit one another.
    """
    effects = list_effects(augmentation)
    if not effects:
        raise ValueError("Expected an `augmentation` with effects. Received: one without. Choose 'light' or 'strong'.")
    original = _cut_best(image, label, class_names, plane, whole=True, ignored=ignored)
    size, colours = original.fit(_EFFECT_COLUMNS, _TALLEST_EFFECT), list_colours(len(class_names))

    def paint(cut: _Cut, caption: str) -> Panel:
        _, grey = window_image(cut.image, original.windows, size)
        # Mirrored anatomy has no left and right to name.
        return Panel(_outline(grey, cut.label, colours), caption, letters=original.letters if cut is original else None)

    def cut_changed(draws: Sequence[tuple], numbers: Sequence[int]) -> list[_Cut]:
        generators = [np.random.default_rng([seed, number]) for number in numbers]
        changed = _apply(image, label, draws, generators, left_right_swaps)
        return [
            _cut_best(replace(image, array=array), classes, class_names, plane, whole=True, ignored=ignored) for array, classes in changed
        ]

    panels = []
    for number, (name, strongest) in enumerate(effects.items()):
        drawn, flips, captions = _describe(name, strongest, augmentation)
        cuts = cut_changed([(strongest, None), (drawn, flips)], [2 * number, 2 * number + 1])
        panels.append(paint(original, f"{name}: original"))
        panels += [paint(cut, caption) for cut, caption in zip(cuts, captions, strict=True)]
    grid = [panels[first : first + _EFFECT_COLUMNS] for first in range(0, len(panels), _EFFECT_COLUMNS)]
    last = cut_changed([(augmentation, None)] * _EFFECT_COLUMNS, range(1000, 1000 + _EFFECT_COLUMNS))
    grid.append([paint(cut, f"all together, draw {number + 1}") for number, cut in enumerate(last)])
    shares = ", ".join(
        f"{name} {(value.probability if isinstance(value := getattr(augmentation, name), Effect) else value):.0%}" for name in effects
    )
    footer = f"How often each is drawn{' (flip: for each axis)' if 'flip' in effects else ''}: {shares}. vx: voxels of the finest axis. "
    present = set(np.unique(label).tolist())
    legend = [(colours[value - 1], name) for value, name in enumerate(class_names) if value and value in present]
    legends = [(0, len(grid[0]), legend or [(None, "no structure in this sample")])]
    return write_panels(path, grid, title, legends, footer=footer + original.footer, narrowest=_NARROWEST)


def _outline(grey: np.ndarray, classes: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Draws the outlines of the classes (rows, columns) over a grey panel (*size), and nothing that would hide an effect.

    Where two classes touch there is one line, in the colour and on the side of the smaller. A body around organs would otherwise draw
    its own line along each of theirs. At one pixel the two colours would blend into a third.
    """
    size = grey.shape
    counts = np.bincount(classes.ravel().astype(np.uint16), minlength=len(colours) + 1)[1:]
    largest_first = np.argsort(-counts, kind="stable")
    ranks = np.zeros(len(colours) + 1, np.uint8)
    ranks[largest_first + 1] = np.arange(1, len(colours) + 1)
    ranked = ranks[classes]
    zoom = min(pixels / voxels for pixels, voxels in zip(size, classes.shape, strict=True))
    if zoom < 1:
        # The smallest structures come through where several voxels share a pixel.
        ranked = cv2.dilate(ranked, np.ones((math.ceil(1 / zoom),) * 2, np.uint8))
    ranked = cv2.resize(ranked, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    around = cv2.getStructuringElement(*((cv2.MORPH_ELLIPSE, (5, 5)) if zoom >= 1.4 else (cv2.MORPH_CROSS, (3, 3))))
    edge = ranked > cv2.erode(ranked, around)
    table = 255 * np.array([to_rgb(colours[value]) for value in largest_first])
    painted = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    painted[edge] = table[ranked[edge] - 1]
    return painted


def _cut_best(
    image: Volume, label: np.ndarray, class_names: Sequence[str], plane: str, *, whole: bool = False, ignored: bool = False
) -> _Cut:
    """Cuts the best slice out of a volume, all of it if `whole`, else without its empty margins. A slice stays as it is."""
    if np.ndim(label) == 2:
        array = check_image(image.array, ("rows", "columns")).astype(np.float32)
        label = check_classes("label", label, array.shape[:2], class_names)
        extent = np.multiply(label.shape, check_spacing(image.spacing_mm, ("row", "column")))
        return _Cut(array, label, tuple(extent.tolist()), find_windows(array))
    scan = prepare_scan(image.array, {"label": label}, class_names, image.spacing_mm, image.affine)
    if image.affine is None:
        plane = "axis 2"
    if plane not in scan.view.planes:
        raise ValueError(f"Expected `plane` in {tuple(scan.view.planes)}. Received: {plane!r}.")
    axis = scan.view.planes[plane]
    index = choose_slice(scan.counts["label"][axis][:, : len(class_names) - ignored])
    box = scan.whole if whole else scan.box
    return _Cut(
        scan.cut(scan.image, axis, index, box).astype(np.float32),
        scan.cut(scan.maps["label"], axis, index, box),
        scan.measure(axis, box),
        scan.windows,
        scan.view.letters(axis),
        f"{plane}, {index + 1} of {scan.image.shape[axis]}",
        scan.view.describe(),
    )


def _describe(name: str, strongest: Augmentation, augmentation: Augmentation):
    """Describes one effect of an augmentation for its panels.

    Returns the effect alone and certain within its range, the axes that it may flip, and captions of the strongest and of that draw.
    """
    if name == "flip":
        return strongest, (0,), ("along all axes", "along the first axis")
    if name == "synthetic":
        return strongest, None, ("a contrast drawn at random", "another draw")
    effect, unit = getattr(augmentation, name), _UNITS.get(name, "")
    drawn = replace(Augmentation(), **{name: Effect(1.0, effect.low, effect.high)})
    span = f"\u00b1{effect.high:g}" if effect.low == -effect.high else f"{effect.low:g} to {effect.high:g}"
    return drawn, None, (f"strongest, {getattr(strongest, name).high:g}{unit}", f"drawn from {span}{unit}")


def _apply(
    image: Volume, label: np.ndarray, draws: Sequence[tuple], generators: Sequence[np.random.Generator], swaps: Sequence[tuple[int, int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Applies each (augmentation, flips) to the sample, in one batch, as `modules.model.trainer.Trainer` does it."""
    from keras import ops

    from modules.model.augment import apply

    shape, rank = label.shape, label.ndim
    left_right = 0 if rank == 3 else None
    drawn = [
        draw_parameters(rng, augmentation, shape, image.array.shape[-1], spacing_mm=image.spacing_mm, flips=flips, left_right=left_right)
        for rng, (augmentation, flips) in zip(generators, draws, strict=True)
    ]
    parameters = {name: ops.convert_to_tensor(np.stack([one[name] for one in drawn])) for name in drawn[0]}
    images = ops.convert_to_tensor(np.stack([image.array.astype(np.float32)] * len(drawn)))
    labels = ops.convert_to_tensor(np.stack([label.astype(np.int32)] * len(drawn)))
    images, labels = apply(images, labels, parameters, left_right_swaps=swaps)
    return list(zip(ops.convert_to_numpy(images), ops.convert_to_numpy(labels), strict=True))
