"""Regions: named classes that may overlap, such as a whole tumour and its core.

A label map holds parts, which exclude one another: class indices from 0, the background. A region is the union of some parts. A network
gives one probability a region. A prediction is a label map again: it paints the regions in order, each with one of its parts.

Without regions every class is a part of its own, and an empty tuple of regions says so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The index of voxels in a label map that nobody judged. They count in no loss and no score, and are never predicted.
IGNORE = 255
# Indices are uint8. One is `IGNORE`, and one marks values that no rule knows while a label is read.
MOST_CLASSES = 254


class Region(NamedTuple):
    """A region, by class indices of the label map.

    Attributes:
        parts: The indices whose union the region is, ascending and from 1.
        painted: The one of them that a prediction is painted with, over all earlier regions.
    """

    parts: tuple[int, ...]
    painted: int


def list_parts(class_names: Sequence[str], regions: Sequence[Region]) -> list[tuple[int, ...]]:
    """Lists the indices in a label map that make up each class but the background."""
    return [region.parts for region in regions] or [(index,) for index in range(1, len(class_names))]


def find_mask(label: np.ndarray, parts: Sequence[int]) -> np.ndarray:
    """Finds the voxels of a label map `(*S)` that are one of the parts; it takes a byte a voxel."""
    mask = label == parts[0]
    for part in parts[1:]:
        mask |= label == part
    return mask


def count_parts(class_names: Sequence[str], regions: Sequence[Region]) -> int:
    """Counts the indices that a label map may hold besides `IGNORE`, the background included."""
    return 1 + max(max(parts) for parts in list_parts(class_names, regions))


def paint_regions(probabilities: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Paints probabilities `(*S, R)`, one a region, to a label map `(*S)` uint8: each region above 0.5, later ones over earlier ones."""
    label = np.zeros(probabilities.shape[:-1], np.uint8)
    for place, region in enumerate(regions):
        label[probabilities[..., place] > 0.5] = region.painted
    return label


def to_shown(label: np.ndarray, regions: Sequence[Region], ignored: int = 0) -> np.ndarray:
    """Turns a label map `(*S)` uint8 into class indices for a picture, where a voxel shows one class.

    Of the regions that hold a voxel the last one is shown. Ignored voxels become the index `ignored`, by default the background.
    """
    if not regions and label.max(initial=0) < IGNORE:
        return label
    table = np.arange(256, dtype=np.uint8)
    for number, region in enumerate(regions, start=1):
        table[list(region.parts)] = number
    table[IGNORE] = ignored
    return table[label]


def name_shown(class_names: Sequence[str], regions: Sequence[Region]) -> list[str]:
    """Names what a picture shows of each class: "whole tumour without core", where later regions lie over a part of it."""
    names = list(class_names)
    for place, region in enumerate(regions):
        over = [later for later in range(place + 1, len(regions)) if set(regions[later].parts) & set(region.parts)]
        # A region within another one over this one needs no mention.
        over = [one for one in over if not any(set(regions[one].parts) < set(regions[other].parts) for other in over)]
        if over:
            names[place + 1] += f" without {', '.join(class_names[later + 1] for later in over)}"
    return names


def paint_parts(regions: Sequence[Region]) -> dict[int, int]:
    """Returns the index that each part is painted with where the regions are found without a fault."""
    painted = {}
    for region in regions:
        painted |= dict.fromkeys(region.parts, region.painted)
    return painted


def find_hidden(regions: Sequence[Region]) -> list[int]:
    """Finds the regions, counted from 0, that no painted voxel belongs to because later regions lie over all of their parts."""
    painted = paint_parts(regions)
    return [place for place, region in enumerate(regions) if not any(painted[part] in region.parts for part in region.parts)]


def find_mistaken(regions: Sequence[Region]) -> list[tuple[int, int]]:
    """Finds pairs of a region, counted from 0, and a part: a painted label map says the wrong thing about that part."""
    return [
        (place, part)
        for place, region in enumerate(regions)
        for part, painted in sorted(paint_parts(regions).items())
        if (part in region.parts) != (painted in region.parts)
    ]


def find_fault(regions: Sequence[Region], class_names: Sequence[str], num_parts: int) -> tuple[str, Any] | None:
    """Finds the first thing that is wrong with regions; nothing is wrong with none.

    Args:
        regions: The regions.
        class_names: The names of the background and of each region.
        num_parts: Number of indices that the label map may hold, the background included.

    Returns:
        What is expected, in words, and what is there instead; None for regions that can be used.
    """
    if not regions:
        return None
    if len(regions) != len(class_names) - 1:
        return f"{len(class_names) - 1} regions, one for each class but the background,", len(regions)
    for region in regions:
        if list(region.parts) != sorted(set(region.parts)) or not region.parts or region.parts[0] < 1:
            return "distinct ascending parts from 1 of each region", region.parts
        if region.painted not in region.parts:
            return f"a part of {region.parts} that the region is painted with", region.painted
    parts = sorted({part for region in regions for part in region.parts})
    if parts != list(range(1, num_parts)):
        return f"regions that hold each part from 1 to {num_parts - 1}", parts
    if hidden := find_hidden(regions):
        return "regions that later ones do not hide", class_names[hidden[0] + 1]
    return None
