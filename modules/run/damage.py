"""Damages scans on purpose, as scanners, converters and people do by mistake. A model's judgement of itself is learnt from such scans."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np

from modules.data.case import Volume


def damage(image: Volume, label: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[Volume, np.ndarray]:
    """Damages a scan by a random strength; its label goes along where voxels change places.

    Args:
        image: `(*S, C)`.
        label: `(*S)`.
        kind: One of `DAMAGES`.
        rng: The source of strength and form.

    Returns:
        New arrays of the image and the label.
    """
    array, label = DAMAGES[kind](image.array, label, rng)
    return replace(image, array=np.ascontiguousarray(array, np.float32)), np.ascontiguousarray(label)


def _add_noise(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Adds normal noise of 0.15 to 1 times the spread of the intensities."""
    strength = 0.15 * 6.7 ** rng.random()
    return array + strength * _measure_spread(array) * rng.standard_normal(array.shape, np.float32), label


def _shade(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Multiplies by a smooth field from exp(-s) to exp(s), s from 0.7 to 2, as a coil far from a part of the body does."""
    places = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in array.shape[:-1]), indexing="ij", sparse=True)
    terms = [*places, *(one * other for one, other in combinations_with_replacement(places, 2))]
    field = sum((np.float32(rng.normal()) * term for term in terms), np.float32(0))
    field = 2 * (field - field.min()) / max(float(np.ptp(field)), 1e-6) - 1
    darkest = array.min(axis=tuple(range(array.ndim - 1)))
    return darkest + (array - darkest) * np.exp(np.float32(rng.uniform(0.7, 2)) * field)[..., np.newaxis], label


def _blur(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blurs with a Gaussian of 1.2 to 4 voxels, as a moving patient does."""
    from scipy import ndimage

    width = rng.uniform(1.2, 4)
    return ndimage.gaussian_filter(array, [width] * (array.ndim - 1) + [0]), label


def _change_contrast(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inverts the contrast, or bends it by a power of 1/3 or 3, as another sequence does."""
    low, high = np.percentile(array, (0, 99.9), axis=tuple(range(array.ndim - 1)))
    share = np.clip((array - low) / np.maximum(high - low, 1e-6), 0, 1)
    form = rng.integers(3)
    return (low + (high - low) * (1 - share if form == 0 else share ** (3 if form == 1 else 1 / 3))), label


def _cut_off(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Leaves 30 to 70 % of the scan along an axis, and makes the rest dark, as a field of view that missed a part does."""
    axis = int(rng.integers(array.ndim - 1))
    gone = int(rng.uniform(0.3, 0.7) * array.shape[axis])
    place = (slice(None),) * axis + (slice(None, gone) if rng.random() < 0.5 else slice(array.shape[axis] - gone, None),)
    cut = array.copy()
    cut[place] = array.min(axis=tuple(range(array.ndim - 1)))
    return cut, label


def _turn(array: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turns the voxels by a quarter or upside down while the header stays, as a careless conversion does."""
    one, other = rng.permutation(array.ndim - 1)[:2].tolist()
    turns = int(rng.integers(1, 4))
    return np.rot90(array, turns, (one, other)), np.rot90(label, turns, (one, other))


def _measure_spread(array: np.ndarray) -> np.ndarray:
    """Measures the distance of the 1st and 99th percentile of each channel, `(C,)` float32."""
    low, high = np.percentile(array, (1, 99), axis=tuple(range(array.ndim - 1)))
    return (high - low).astype(np.float32)


_Damage = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
DAMAGES: dict[str, _Damage] = {
    "noise": _add_noise,
    "bias field": _shade,
    "blur": _blur,
    "contrast": _change_contrast,
    "cut off": _cut_off,
    "turned": _turn,
}
