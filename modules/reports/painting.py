"""From intensities and class maps to painted pixels: windows, resizing, fills and contours."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.colors import to_rgb

# Differences by category of `difference_map`, from 1. They differ in lightness as well as in hue.
DIFFERENCE_NAMES: tuple[str, ...] = ("missed", "false positive", "wrong class")
DIFFERENCE_COLOURS: tuple[str, ...] = ("#35B7FF", "#FF6A00", "#FFF36B")

Window = tuple[float, float]  # the intensities that are shown black and white


def difference_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Sorts every pixel by how the prediction departs from the truth.

    Args:
        label: Integer class map (*S), 0 is background.
        prediction: Integer class map (*S).

    Returns:
        uint8 (*S): 0 same, 1 missed (foreground in `label` only), 2 false (foreground in `prediction` only), 3 wrong class
        (foreground in both, of different classes).

    Raises:
        ValueError: The shapes differ.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"Expected `prediction` of the shape of `label`, {label.shape}. Received: {prediction.shape}.")
    true, found = label != 0, prediction != 0
    return np.select([true & ~found, found & ~true, label != prediction], [1, 2, 3], 0).astype(np.uint8)


def find_windows(image: np.ndarray) -> list[Window]:
    """Finds the 1st to 99th percentile of the values that are not 0, in each channel shown.

    Args:
        image: Intensities (*S, C). Three channels are all shown; of any other number the first is.
    """
    windows = []
    for channel in range(3 if image.shape[-1] == 3 else 1):
        values = image[..., channel]
        nonzero = values[values != 0]
        windows.append(tuple(np.percentile(nonzero, (1, 99))) if nonzero.size else (0.0, 1.0))
    return windows


def window_image(image: np.ndarray, windows: Sequence[Window], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scales (rows, columns, C) to [0, 255] and to the panel.

    Returns it as shown (*size, 3), and in grey (*size) to paint on.
    """
    scaled = []
    for channel, (low, high) in zip(np.moveaxis(image, -1, 0), windows, strict=False):
        # A constant image has no contrast to show. It becomes mid-grey, and zeros stay black.
        window = (channel - low) / (high - low) if high > low else np.where(channel != 0, 0.5, 0.0)
        window = np.clip(window, 0, 1).astype(np.float32)
        scaled.append(255 * _resize_area(window, size))
    shown = np.stack(scaled if len(scaled) == 3 else scaled * 3, axis=-1)
    return shown, shown.mean(axis=-1)


def _resize_area(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture. Shrinking averages; enlarging keeps pixels square, to show no more detail than the scan has."""
    # We resize one axis at a time: OpenCV averages only if neither axis grows, and would skip columns of a thick-sliced scan.
    array = cv2.resize(array, (array.shape[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA)


def resize_classes(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a class map without blending classes, and without losing thin structures when it shrinks."""
    if size[0] >= classes.shape[0] and size[1] >= classes.shape[1]:
        return cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    resized = np.zeros(size, np.uint16)
    values, counts = np.unique(classes[classes > 0], return_counts=True)
    # Any touch of a structure claims a screen pixel. The smallest structure is painted last, on top.
    for value in values[np.argsort(-counts)]:
        resized[_resize_area((classes == value).astype(np.float32), size) > 1e-3] = value
    return resized


def _has_wide_lines(size: tuple[int, int], classes: np.ndarray) -> bool:
    """Returns whether lines are two pixels wide. They are where a voxel is at least as large."""
    return all(pixels >= 1.9 * voxels for pixels, voxels in zip(size, classes.shape, strict=True))


def paint_classes(grey: np.ndarray, classes: np.ndarray, colours: Sequence[str], opacity: float = 0.35) -> np.ndarray:
    """Paints classes from 1 over a grey panel: a fill through which the anatomy shows, and an opaque inner contour.

    Args:
        grey: The panel, (*size) in [0, 255].
        classes: Integer class map (rows, columns), of any size.
        colours: Colours of the classes from 1.
        opacity: Opacity of the fill.

    Returns:
        (*size, 3) in [0, 255].
    """
    wide = _has_wide_lines(grey.shape, classes)
    classes = resize_classes(classes.astype(np.uint16), grey.shape)
    table = 255 * np.array([(0, 0, 0), *map(to_rgb, colours)])
    painted = np.repeat(grey[..., None], 3, axis=-1)
    inside = classes > 0
    painted[inside] = (1 - opacity) * painted[inside] + opacity * table[classes[inside]]
    # The contour lies within its own class, so neighbours keep one line each and a line one pixel wide is drawn solid.
    around = cv2.getStructuringElement(*((cv2.MORPH_ELLIPSE, (5, 5)) if wide else (cv2.MORPH_CROSS, (3, 3))))
    edge = inside & (cv2.morphologyEx(classes, cv2.MORPH_GRADIENT, around) > 0)
    painted[edge] = table[classes[edge]]
    return painted


def paint_difference(grey: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Paints `difference_map` over a grey panel."""
    # The panel is darker and the paint nearly opaque, because an error of one pixel has to catch the eye before the anatomy does.
    return paint_classes(0.75 * grey, difference_map(label, prediction), DIFFERENCE_COLOURS, opacity=0.85)


def dash_contours(painted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Draws the outline of each class of a map (rows, columns) as white dashes on a copy of a panel (*size, 3)."""
    size = painted.shape[:2]
    line = 2 if _has_wide_lines(size, classes) else 1
    classes = resize_classes(classes.astype(np.uint16), size)
    dashes = np.zeros(size, np.uint8)
    lowest = cv2.erode(classes, np.ones((3, 3), np.uint8))
    for value in np.unique(classes[classes > 0]):
        outlines, _ = cv2.findContours((classes == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for columns, rows in (outline[:, 0].T for outline in outlines):
            # A dash and a gap have equal length, so that an equal contour below stays as visible as the dashes on it.
            drawn = np.arange(len(rows)) // (4 * line) % 2 == 0
            # Two classes that touch share one line, on the side of the higher.
            drawn &= lowest[rows, columns] < value
            dashes[rows[drawn], columns[drawn]] = 1
    dashes = cv2.dilate(dashes, np.ones((line, line), np.uint8))
    return np.where(dashes[..., None] > 0, 255.0, painted)
