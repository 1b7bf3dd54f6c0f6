"""The tools that paint pelvis and brain: smooth noise, distances to ellipses, a canvas, and a scanner that spoils the picture.

All lengths are millimetres: `x` to the right of the picture, `y` towards posterior, `z` towards superior.
"""

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], cells: tuple[int, int, int]) -> np.ndarray:
    """Returns smooth noise (*S) float32 of about unit deviation, with `cells` bumps along each axis."""
    depth, height, width = shape
    coarse = rng.standard_normal(cells, dtype=np.float32).reshape(cells[0], -1)
    coarse = cv2.resize(coarse, (coarse.shape[1], depth), interpolation=cv2.INTER_LINEAR).reshape(depth, *cells[1:])
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in coarse])


def measure_ellipse(x, y, centre_x, centre_y, radius_x, radius_y, degrees=0.0) -> np.ndarray:
    """Returns the signed distance in mm to an ellipse, negative inside, exact to first order at the edge."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / radius_x
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / radius_y
    norm = np.sqrt(u * u + v * v) + 1e-6
    return norm * (norm - 1) / np.sqrt((u / radius_x) ** 2 + (v / radius_y) ** 2 + 1e-12)


def measure_ellipsoid(x, y, z, centre, radii) -> np.ndarray:
    """Returns the signed distance in mm to an axis-parallel ellipsoid, negative inside."""
    u, v, w = ((axis - c) / r for axis, c, r in zip((x, y, z), centre, radii, strict=True))
    norm = np.sqrt(u * u + v * v + w * w) + 1e-6
    return norm * (norm - 1) / np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2 + 1e-12)


def scan(rng: np.random.Generator, image: np.ndarray, blur: float, bias: float, noise: float) -> np.ndarray:
    """Degrades a clean image (*S) as a scanner does: partial volume, coil shading, Rician noise.

    `blur` is the deviation of a Gaussian in the plane, in pixels. `bias` is the deviation of the logarithm of the shading. `noise` is
    the deviation in each of the two Gaussian channels.
    """
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in image])
    blurred *= np.exp(bias * smooth_noise(rng, image.shape, (2, 3, 3)))
    real = blurred + noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, noise * rng.standard_normal(image.shape, dtype=np.float32))


def make_grid(shape: tuple[int, int, int], field_mm: float, range_mm: tuple[float, float], width_mm: float | None = None):
    """Returns heights (slices,), in-plane `x` and `y` (height, width) in mm and the height of a pixel in mm.

    `field_mm` is the extent of the rows, and `width_mm` is that of the columns. Without `width_mm` pixels are square.
    """
    depth, height, width = shape
    pixel_mm = field_mm / height
    z = range_mm[0] + (np.arange(depth, dtype=np.float32) + 0.5) * (range_mm[1] - range_mm[0]) / depth
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) - (height - 1) / 2) * pixel_mm,
        (np.arange(width, dtype=np.float32) - (width - 1) / 2) * (width_mm / width if width_mm else pixel_mm),
        indexing="ij",
    )
    return z, x, y, pixel_mm


class Canvas:
    """One slice that is being painted. Later paint lies on top."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pixel_mm: float):
        self.x, self.y, self.pixel_mm = x, y, pixel_mm
        self.image = np.zeros(x.shape, np.float32)
        self.label = np.zeros(x.shape, np.uint8)

    def paint(self, distance: np.ndarray, value, label: int | None = None) -> None:
        """Fills where `distance` (mm) is negative, with an edge one pixel soft. `value` is a number or an image."""
        self.image += np.clip(0.5 - distance / self.pixel_mm, 0, 1) * (value - self.image)
        if label is not None:
            self.label[distance < 0] = label
