"""The traits of a predicted case in a few numbers: how its image and its label map look, beside those of good cases.

None of them needs the truth. A damaged scan, another sequence or another part of the body differs in some of them from the training's, also
where the network is sure of a wrong label map.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from modules.data.case import Volume
from modules.data.preprocess import Geometry, find_orientation
from modules.data.regions import Region, find_mask, list_parts
from modules.predict.objects import find_objects

# Parts that a thumbnail has along each axis.
THUMBNAIL = 8
# Channels behind these are like them, and add numbers that say nothing.
MOST_CHANNELS = 4
# So many voxels of a channel are looked at for its percentiles, on a regular grid.
_SAMPLE = 1 << 16
_LEAST_LOG = 1e-4
# A scan that is so much more like upright ones than like turned ones is upright. More says nothing more.
MOST_UPRIGHT = 0.5
# Shares nearer to 0 or 1 than this are all the same: their log odds would outweigh all others.
LEAST_SHARE = 0.005
# All classes together, where a trait is about them.
WHOLE = "the foreground"


class Kind(NamedTuple):
    """A kind of trait: what it is called, and the least spread that it is taken to have however alike a few good cases are."""

    name: str
    least: float


KINDS = {
    "spacing": Kind("voxel size", 0.1),
    "extent": Kind("field of view", 0.15),
    "quartile": Kind("spread of intensities", 0.04),
    "detail": Kind("sharpness or noise", 0.08),
    "likeness": Kind("look as a whole", 0.1),
    "turn": Kind("orientation", 0.1),
    "volume": Kind("size of {}", 0.15),
    "shape": Kind("shape of {}", 0.08),
    "pieces": Kind("pieces of {}", 0.04),
    "place": Kind("place of {}", 0.04),
    "level": Kind("intensity of {}", 0.04),
    "texture": Kind("evenness of {}", 0.02),
    "doubt": Kind("doubt about {}", 0.15),
}


class Traits(NamedTuple):
    """The traits of a case.

    Attributes:
        values: Numbers by name, such as `level/hippocampus#0`: a kind of `KINDS`, the class that it is about, if any, and a number. NaN
            where a class is absent.
        thumbnail: `(C, T)` the image shrunk to `THUMBNAIL` parts an axis, each channel with mean 0 and length 1.
    """

    values: Mapping[str, float]
    thumbnail: np.ndarray


def describe_trait(name: str) -> str:
    """Says in words what a trait is about."""
    return KINDS[name.partition("/")[0]].name.format(_name_subject(name))


def _name_subject(name: str) -> str:
    return name.partition("/")[2].rpartition("#")[0]


def name_group(name: str) -> str:
    """Names the group of a trait, within which traits are averaged: the class that it is about, "turn", or "" for the rest of the image."""
    if name.startswith("turn/"):
        return "turn"
    about = _name_subject(name)
    return "" if about == WHOLE else about


def to_logit(share: float | np.ndarray) -> np.ndarray:
    """Returns the logarithm of the odds of a share; shares are kept half a percent from 0 and 1."""
    kept = np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE)
    return np.log(kept / (1 - kept))


def from_logit(logit: float | np.ndarray) -> np.ndarray:
    """Inverts `to_logit`."""
    return 1 / (1 + np.exp(-np.asarray(logit, np.float64)))


def measure_traits(
    image: Volume,
    prediction: np.ndarray,
    expected: np.ndarray,
    class_names: Sequence[str],
    regions: Sequence[Region] = (),
) -> Traits:
    """Measures the traits of a case.

    Args:
        image: `(*S, C)` as it lies on disk.
        prediction: `(*S)` uint8 indices.
        expected: `(F,)` the Dice of each class but the background that its probabilities expect, see `modules.predict.doubt.Doubt`.
        class_names: Names of all classes, the background first.
        regions: What each class consists of, where classes overlap.
    """
    axes, flipped = find_orientation(image)
    geometry = Geometry(axes, flipped, prediction.shape, (), ())
    turned, label = geometry.turn(image.array), geometry.turn(prediction)
    spacing = np.array([image.spacing_mm[axis] for axis in axes])
    values: dict[str, float] = {}
    for axis, (size, length) in enumerate(zip(label.shape, spacing, strict=True)):
        values[f"spacing/#{axis}"] = math.log(length)
        values[f"extent/#{axis}"] = math.log(length * size)
    channels = []
    for channel in range(min(turned.shape[-1], MOST_CHANNELS)):
        voxels = turned[..., channel]
        step = max(1, math.ceil((voxels.size / _SAMPLE) ** (1 / voxels.ndim)))
        low, *quartiles, high = np.percentile(voxels[(slice(None, None, step),) * voxels.ndim], (1, 25, 50, 75, 99)).tolist()
        scale = high - low if high > low else 1.0
        channels.append((voxels, low, scale))
        values |= {f"quartile/#{channel}.{place}": (value - low) / scale for place, value in enumerate(quartiles)}
        values |= {f"detail/#{channel}.{place}": value for place, value in enumerate(_measure_detail(voxels, scale))}
    masks = [find_mask(label, parts) for parts in list_parts(class_names, regions)]
    values |= _measure_masks(masks, spacing, class_names[1:])
    for name, mask, dice in zip(class_names[1:], masks, expected, strict=True):
        values[f"doubt/{name}#"] = float(to_logit(dice)) if dice == dice else math.nan
        for place, (voxels, low, scale) in enumerate(channels):
            inside = voxels[mask]
            values[f"level/{name}#{place}"] = (float(inside.mean(dtype=np.float64)) - low) / scale if inside.size else math.nan
            values[f"texture/{name}#{place}"] = float(inside.std(dtype=np.float64)) / scale if inside.size else math.nan
    return Traits(values, np.stack([shrink(voxels) for voxels, *_ in channels]))


def _measure_detail(voxels: np.ndarray, scale: float) -> Iterator[float]:
    """Measures along each axis how steep a channel is, and how rough beside that: noise makes it rough, and a blur smooth."""
    for axis in range(voxels.ndim):
        # All voxels of a line, but not all lines.
        step = max(1, math.ceil((voxels.size / _SAMPLE) ** (1 / max(1, voxels.ndim - 1)) / 4))
        lines = voxels[tuple(slice(None) if other == axis else slice(None, None, step) for other in range(voxels.ndim))]
        slope = np.diff(lines, axis=axis)
        steep, rough = (float(np.abs(part).mean()) / scale if part.size else 0.0 for part in (slope, np.diff(slope, axis=axis)))
        yield math.log(steep + _LEAST_LOG)
        yield math.log((rough + _LEAST_LOG) / (steep + _LEAST_LOG))


def _measure_masks(masks: Sequence[np.ndarray], spacing: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Measures size, shape, pieces and place of each mask."""
    values: dict[str, float] = {}
    whole = np.logical_or.reduce(masks)
    rank, voxel = whole.ndim, float(np.prod(spacing))
    middle, voxels = _find_centre(whole), np.count_nonzero(whole)
    for axis in range(rank):
        values[f"place/{WHOLE}#{axis}"] = float(middle[axis]) / whole.shape[axis]
    for name, mask in zip(names, masks, strict=True):
        number = np.count_nonzero(mask)
        values[f"volume/{name}#"] = math.log(number * voxel + voxel)
        surface, pieces = _count_faces(mask, spacing), find_objects(mask).voxels
        values[f"shape/{name}#"] = math.log(surface / (number * voxel) ** ((rank - 1) / rank)) if surface else math.nan
        values[f"pieces/{name}#"] = float(pieces.max()) / number if number else math.nan
        # In units of the whole foreground's edge, were it a cube.
        offset = (_find_centre(mask) - middle) * spacing / (max(voxels, 1) * voxel) ** (1 / rank)
        values |= {f"place/{name}#{axis}": float(offset[axis]) for axis in range(rank) if len(masks) > 1}
    return values


def _find_centre(mask: np.ndarray) -> np.ndarray:
    """Finds the mean index of a mask along each axis; NaN for an empty one."""
    totals = [mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis)) for axis in range(mask.ndim)]
    return np.array([float(np.dot(total, np.arange(total.size)) / total.sum()) if total.any() else math.nan for total in totals])


def _count_faces(mask: np.ndarray, spacing: np.ndarray) -> float:
    """Returns the area of a mask's faces; in a slice, the length of its edges."""
    voxel = float(np.prod(spacing))
    return sum(np.count_nonzero(np.diff(mask, axis=axis)) * voxel / spacing[axis] for axis in range(mask.ndim))


def shrink(voxels: np.ndarray) -> np.ndarray:
    """Shrinks a channel `(*S)` to means over `THUMBNAIL` parts an axis, with mean 0 and length 1 together: `(THUMBNAIL ** len(S),)`."""
    for axis, size in enumerate(voxels.shape):
        # Of fewer voxels than parts each part gets the voxel that it lies in.
        starts = np.floor(np.linspace(0, size, THUMBNAIL + 1)[:-1]).astype(int)
        widths = np.maximum(np.diff([*starts, size]), 1).reshape([-1 if other == axis else 1 for other in range(voxels.ndim)])
        voxels = np.add.reduceat(voxels, starts, axis, np.float64) / widths
    flat = voxels.ravel() - voxels.mean()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1e-9 else np.zeros_like(flat)


def compare(thumbnail: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compares the thumbnail `(C, T)` of a case with that of good cases.

    Returns:
        The trait "likeness": the correlation by Fisher's transformation, of the channel where it is least. And the traits "turn": how
        much more it is like the other than like the other flipped along an axis, or with two axes swapped; `MOST_UPRIGHT` at most. What
        differs between people cancels in these. They turn negative for a scan that is flipped or turned itself.
    """
    rank = round(math.log(thumbnail.shape[1], THUMBNAIL))
    cube = other.reshape(len(other), *(THUMBNAIL,) * rank)
    turned = [np.flip(cube, axis + 1) for axis in range(rank)]
    turned += [np.swapaxes(cube, one + 1, two + 1) for one, two in combinations(range(rank), 2)]
    likeness = _correlate(thumbnail, other)
    turns = [likeness - _correlate(thumbnail, part.reshape(other.shape)) for part in turned]
    return {"likeness/#": likeness} | {f"turn/#{place}": min(turn, MOST_UPRIGHT) for place, turn in enumerate(turns)}


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    correlation = float(np.min(np.sum(one * other, axis=1) / np.maximum(lengths, 1e-9)))
    return math.atanh(min(max(correlation, -0.999), 0.999))
