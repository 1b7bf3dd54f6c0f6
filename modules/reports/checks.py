"""Checks of a picture's arguments, with errors that say what is expected."""

import math
from collections.abc import Sequence

import numpy as np


def check_image(image: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    """Returns an image as an array (*S, C); raises ValueError unless its spatial axes are those named and its values finite."""
    image = np.asarray(image)
    names = ", ".join(axes)
    if image.ndim not in (len(axes), len(axes) + 1) or image.size == 0:
        raise ValueError(f"Expected `image` of shape ({names}) or ({names}, C). Received: {image.shape}.")
    if image.dtype.kind not in "biuf":
        raise ValueError(f"Expected `image` of a real type. Received: {image.dtype}.")
    if not np.isfinite(image).all():
        raise ValueError("Expected `image` with finite values. Received: NaN or infinity.")
    return image[..., np.newaxis] if image.ndim == len(axes) else image


def check_classes(name: str, classes: np.ndarray, shape: tuple[int, ...], class_names: Sequence[str]) -> np.ndarray:
    """Returns a class map as an array; raises ValueError unless it has this shape, an integer type and known values."""
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
    return classes


def check_spacing(spacing_mm: Sequence[float], axes: Sequence[str]) -> tuple[float, ...]:
    """Returns the spacing as floats; raises ValueError unless it is one positive number for each of the named axes."""
    spacing = tuple(float(value) for value in spacing_mm)
    if len(spacing) != len(axes) or not all(0 < value < math.inf for value in spacing):
        count = {2: "two", 3: "three"}[len(axes)]
        raise ValueError(f"Expected `spacing_mm` as {count} positive numbers ({', '.join(axes)}). Received: {spacing_mm}.")
    return spacing


def check_scores(scores: dict[str, float] | None, class_names: Sequence[str]) -> dict[str, float]:
    """Returns the scores, or an empty dict for None; raises ValueError if they name an unknown class."""
    scores = scores or {}
    unknown = sorted(set(scores) - set(class_names))
    if unknown:
        raise ValueError(f"Expected `scores` for classes in {tuple(class_names)}. Received: {unknown}.")
    return scores
