"""Postprocessing of label maps: the steps that a model was shipped with, and what they do to a map.

An object is a connected part of a mask; voxels that touch at a corner are connected. A hole is a part of the rest that cannot reach the
edge of the map through faces. Sizes are in mm3 for volumes. They are in pixels for slices, whose files often do not say what a pixel
measures. A slice that is a file of its own is processed on its own, and a volume as a whole, whatever rank its network has.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

KINDS = ("keep_largest", "remove_small", "fill_holes")
# The target of `keep_largest` that means the foreground of all classes together.
FOREGROUND = 0
# Voxels that are counted at a time, so that the wide integers of the counting need hardly any memory.
_CHUNK = 2**20

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: "keep_largest" makes all objects but the largest background; of equal ones the first stays. "remove_small" does so with
            objects smaller than `size`. "fill_holes" gives the background in holes of a class to the class; other classes there stay.
        target: Index of the class, or `FOREGROUND`.
        size: The least size of an object that stays, for "remove_small"; else 0. It is in mm3 for volumes and in pixels for slices.
    """

    kind: str
    target: int
    size: float = 0.0

    def describe(self, class_names: Sequence[str], spatial_dims: int) -> str:
        """Describes the step in words, for scans of 2 or 3 dimensions."""
        name = class_names[self.target] if self.target else "the whole foreground"
        if self.kind == "keep_largest":
            return f"keep the largest object of {name}"
        if self.kind == "fill_holes":
            return f"fill holes of {name}"
        return f"remove objects of {name} below {self.size:g} {'mm3' if spatial_dims == 3 else 'pixels'}"


@dataclass(frozen=True)
class Postprocessing:
    """The steps by which a label map is changed, in order.

    Attributes:
        steps: The steps; none leaves a map as it is.
    """

    steps: tuple[Step, ...] = ()

    def apply(self, prediction: np.ndarray, spacing_mm: Sequence[float]) -> None:
        """Changes a label map in place.

        Args:
            prediction: `(*S)` uint8 class indices.
            spacing_mm: The voxel's size along each axis of `S`; slices need none.
        """
        boxes = find_boxes(prediction) if self.steps else {}
        voxel = measure_voxel(spacing_mm, prediction.ndim)
        for step in self.steps:
            if (box := boxes.get(step.target)) and _change(prediction[box], step, voxel):
                # Few specks far away make the boxes large, so that the steps after the first take a fraction of its time.
                boxes = _tighten(boxes, prediction, step.target)

    def describe(self, class_names: Sequence[str], spatial_dims: int) -> list[str]:
        """Describes each step in words, for scans of 2 or 3 dimensions."""
        return [step.describe(class_names, spatial_dims) for step in self.steps]

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the steps as plain values."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> "Postprocessing":
        """Makes the steps of plain values that were checked before."""
        return cls(tuple(Step(**step) for step in steps))


# What a model does that was shipped without any step.
NOTHING = Postprocessing()


def share(models: Sequence[Postprocessing]) -> Postprocessing:
    """Returns the steps that all models of an ensemble have, in the order of the first, each with the smallest of their sizes.

    A step that some models did without was not worth it there, so their mean does without it too.
    """
    first, *others = ({(step.kind, step.target): step for step in model.steps} for model in models)
    common = [key for key in first if all(key in other for other in others)]
    return Postprocessing(tuple(replace(first[key], size=min(known[key].size for known in (first, *others))) for key in common))


def describe_shared(models: Sequence[Postprocessing], class_names: Sequence[str], spatial_dims: int, *, wanted: bool) -> str:
    """Describes in a line what the label maps of a model or of an ensemble go through; "" for nothing.

    Args:
        models: The postprocessing of each model.
        class_names: Names of all classes, the background first.
        spatial_dims: Rank of the scans, 2 or 3.
        wanted: Whether the user wants it.
    """
    most, shared = max(len(model.steps) for model in models), share(models)
    if not wanted:
        return "postprocessing: left out" if shared.steps else "--no-postprocess has no effect: there are no such steps"
    texts = shared.describe(class_names, spatial_dims)
    if most > len(texts):
        texts.append("the steps that not all models of the ensemble share are left out")
    return f"postprocessing: {'; '.join(texts)}" if texts else ""


def measure_voxel(spacing_mm: Sequence[float], spatial_dims: int) -> float:
    """Returns the size of a voxel in the unit of `Step.size`: in mm3 for volumes, and 1 for the pixel of a slice."""
    return math.prod(spacing_mm) if spatial_dims == 3 else 1.0


def is_small(voxels: np.ndarray, voxel: float, size: float) -> np.ndarray:
    """Tells of objects of so many voxels, each of the size `voxel`, which of them are smaller than `size`."""
    return voxels * voxel < size


def find_boxes(label: np.ndarray) -> dict[int, Box]:
    """Finds the smallest box that holds each class of a label map `(*S)`, by index, and at `FOREGROUND` the box of all of them."""
    # We import it here because it takes 0.2 s, for which `--help` need not wait.
    from scipy import ndimage

    boxes = {index: box for index, box in enumerate(ndimage.find_objects(label), 1) if box is not None}
    if boxes:
        sides = zip(*boxes.values(), strict=True)
        boxes[FOREGROUND] = tuple(slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in sides)
    return boxes


def find_objects(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the objects of a mask `(*S)`: int32 `(*S)` numbered from 1, and `(N,)` voxels of each."""
    from scipy import ndimage

    numbers = np.empty(mask.shape, np.int32)
    count = int(ndimage.label(mask, np.ones((3,) * mask.ndim, bool), output=numbers))
    return numbers, count_by(numbers, count)


def count_by(numbers: np.ndarray, count: int) -> np.ndarray:
    """Counts `(N,)` voxels of each number from 1 to `count` in an array of any shape."""
    counts, flat = np.zeros(count + 1, np.int64), numbers.ravel()
    # A map of noise has millions of objects, so a chunk is never shorter than their list.
    chunk = max(_CHUNK, count)
    for start in range(0, flat.size, chunk):
        counts += np.bincount(flat[start : start + chunk], minlength=count + 1)
    return counts[1:]


def find_holes(label: np.ndarray, index: int) -> np.ndarray:
    """Finds the background in holes of a class: bool `(*S)`; `label` is a map, or a box of it that holds the whole class."""
    from scipy import ndimage

    numbers = np.empty(label.shape, np.int32)
    count = int(ndimage.label(label != index, output=numbers))
    enclosed = np.ones(count + 1, bool)
    # 0 is the class itself.
    enclosed[0] = False
    for axis in range(label.ndim):
        for end in (0, -1):
            enclosed[np.take(numbers, end, axis)] = False
    if not enclosed.any():
        return np.zeros(label.shape, bool)
    return enclosed[numbers] & (label == 0)


def _change(part: np.ndarray, step: Step, voxel: float) -> bool:
    """Takes a step in the part of a label map that holds the target; returns whether objects went."""
    if step.kind == "fill_holes":
        part[find_holes(part, step.target)] = step.target
        return False
    numbers, sizes = find_objects(part == step.target if step.target else part > 0)
    gone = np.zeros(len(sizes) + 1, bool)
    if step.kind == "remove_small":
        gone[1:] = is_small(sizes, voxel, step.size)
    elif len(sizes):
        gone[1:] = np.arange(len(sizes)) != np.argmax(sizes)
    if gone.any():
        part[gone[numbers]] = 0
    return bool(gone.any())


def _tighten(boxes: Mapping[int, Box], label: np.ndarray, target: int) -> dict[int, Box]:
    """Returns the boxes of classes in a label map after objects of `target` went. Those of other classes may stay larger than need be."""
    area = boxes[target]
    found = {
        index: tuple(slice(outer.start + inner.start, outer.start + inner.stop) for outer, inner in zip(area, box, strict=True))
        for index, box in find_boxes(label[area]).items()
    }
    if target == FOREGROUND:
        return found
    others = {index: box for index, box in boxes.items() if index != target}
    return others | {index: box for index, box in found.items() if index == target}
