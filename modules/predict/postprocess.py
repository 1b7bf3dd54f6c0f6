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

from modules.predict.objects import find_enclosed, find_objects

KINDS = ("keep_largest", "remove_small", "fill_holes")
# The target of `keep_largest` that means the foreground of all classes together.
FOREGROUND = 0


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
        voxel = measure_voxel(spacing_mm, prediction.ndim)
        for step in self.steps:
            _change(prediction, step, voxel)

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
    """Tells of objects of so many voxels, each of the size `voxel`, which of them are smaller than `size`.

    Of one scan a header and an affine say sizes that differ in the last digits, so that a rounding below `size` counts as equal.
    """
    return voxels * voxel < size * (1 - 1e-6)


def find_holes(label: np.ndarray, index: int) -> np.ndarray:
    """Finds the background in holes of a class of a label map `(*S)`: a boolean `(*S)`."""
    return find_enclosed(label != index) & (label == 0)


def _change(label: np.ndarray, step: Step, voxel: float) -> None:
    """Takes a step in a label map."""
    if step.kind == "fill_holes":
        label[find_holes(label, step.target)] = step.target
        return
    mask = label == step.target if step.target else label > 0
    objects = find_objects(mask)
    if step.kind == "remove_small":
        gone = is_small(objects.voxels, voxel, step.size)
    else:
        gone = np.arange(len(objects.voxels)) != np.argmax(objects.voxels) if len(objects.voxels) else np.zeros(0, bool)
    if gone.any():
        mask[mask] = objects.spread(gone)
        label[mask] = 0
