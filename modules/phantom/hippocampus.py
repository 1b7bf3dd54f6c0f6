"""A hippocampus drawn by formula, between structures of its own grey: a bulky head, then a body and tail that taper along a curve.

Lengths are millimetres at 40x56x40 voxels of 1 mm. `x` runs from medial to lateral, `y` towards anterior, `z` towards superior. The
structure climbs towards its tail.
"""

import numpy as np

from modules.phantom._canvas import measure_ellipsoid, scan, smooth_noise

HIPPOCAMPUS_CLASSES = ("background", "anterior", "posterior")
ANTERIOR, POSTERIOR = 1, 2

# Brightness in T1 and T2. Hippocampus, cortex and amygdala are alike on purpose: their place and shape tell them apart.
_FLUID, _GREY, _WHITE = (np.array(pair, np.float32) for pair in ((0.14, 1.00), (0.50, 0.55), (0.80, 0.36)))
_NOMINAL_SHAPE = (40, 56, 40)

_CENTRE_LINE = np.array(
    [  # y, x, z, radius; from the tip of the head to that of the tail
        (17.0, 0.0, -6.5, 4.0),
        (12.0, 0.5, -6.0, 6.6),
        (6.5, -0.5, -4.5, 7.0),
        (1.0, 1.5, -2.0, 5.4),
        (-5.0, 2.5, 1.0, 4.9),
        (-11.0, 1.5, 4.0, 4.5),
        (-16.0, -1.0, 7.5, 4.2),
        (-19.5, -4.5, 10.5, 2.6),
    ],
    np.float32,
)


def _draw_anatomy(rng: np.random.Generator) -> dict[str, float]:
    """Draws sizes, bends and the side of the head."""
    ranges = {
        "scale": (0.92, 1.06),
        "thickness": (0.88, 1.12),
        "head": (0.9, 1.15),
        "curve": (0.5, 1.8),
        "climb": (0.75, 1.2),
        "shift_x": (-2, 2),
        "shift_y": (-2, 2),
        "shift_z": (-2, 2),
        "border": (-1.5, 1.5),
        "horn": (1.0, 2.6),
        "folding": (0.55, 0.75),
    }
    anatomy = {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}
    anatomy["side"] = float(rng.choice([-1, 1]))
    return anatomy


def _measure_tube(x: np.ndarray, y: np.ndarray, z: np.ndarray, anatomy: dict[str, float]) -> np.ndarray:
    """Returns the signed distance in mm to the hippocampus, negative inside.

    The hippocampus is a row of spheres along the centre line, flattened in height.
    """
    line = np.linspace(0, len(_CENTRE_LINE) - 1, 36)
    along, across, height, radius = (np.interp(line, np.arange(len(_CENTRE_LINE)), column) for column in _CENTRE_LINE.T)
    radius = anatomy["thickness"] * radius * np.where(along > 3, anatomy["head"], 1)
    distance = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), 99, np.float32)
    spheres = np.stack([along, anatomy["curve"] * across, anatomy["climb"] * height, radius], axis=1).astype(np.float32)
    for centre_y, centre_x, centre_z, r in spheres:
        squared = (x - centre_x) ** 2 + (y - centre_y) ** 2 + (1.4 * (z - centre_z)) ** 2
        np.minimum(distance, np.sqrt(squared) - r, out=distance)
    return distance


def _paint(image: np.ndarray, distance: np.ndarray, value) -> None:
    """Fills `image` (*S, 2) where `distance` (mm) is negative, with an edge one voxel soft. `value` is (2,) or (*S, 2)."""
    image += np.clip(0.5 - distance, 0, 1)[..., None] * (value - image)


def draw_hippocampus(rng: np.random.Generator, shape: tuple[int, int, int] = _NOMINAL_SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Draws a left or a right hippocampus as on T1- and T2-weighted MRI, cut out of the temporal lobe.

    The structure fills the box whatever its size. At (40, 56, 40) it is as large as a real one in voxels of 1 mm.

    Args:
        rng: Source of every draw. The same state gives the same arrays.
        shape: (left to right, posterior to anterior, inferior to superior).

    Returns:
        The image (*S, 2) float32 >= 0, T1 and T2, of about unit range, and the label (*S) uint8; see `HIPPOCAMPUS_CLASSES`.
    """
    anatomy = _draw_anatomy(rng)
    voxel_mm = max(nominal / size for nominal, size in zip(_NOMINAL_SHAPE, shape, strict=True))
    x, y, z = np.meshgrid(*(((np.arange(n) - (n - 1) / 2) * voxel_mm).astype(np.float32) for n in shape), indexing="ij", sparse=True)
    x, y, z = (
        (axis - anatomy[name]) / anatomy["scale"] for axis, name in ((x * anatomy["side"], "shift_x"), (y, "shift_y"), (z, "shift_z"))
    )
    bend = smooth_noise(rng, shape, (6, 8, 6))
    width, depth, height = (max(2, n // 2) for n in shape)
    folds, grain = smooth_noise(rng, shape, (7, 9, 7)), smooth_noise(rng, shape, (width, depth, height))
    tube = _measure_tube(x, y, z, anatomy) + 0.7 * bend
    amygdala = measure_ellipsoid(x, y, z, (-1.0, 18.0, 5.0), (7.5, 8.0, 6.5)) + 0.7 * bend

    # Around it lie gyri with fluid between them; white matter keeps them off the hippocampus. The fluid of the cistern lies on the
    # medial side.
    gap = 3.5 - tube
    fold = 7.0 * np.abs(folds)
    image = np.broadcast_to(_WHITE, (*shape, 2)).copy()
    for edge, value in ((7.0 * anatomy["folding"], _GREY), (0.9, _FLUID)):
        _paint(image, np.maximum(fold - edge, gap) / voxel_mm, value)
    _paint(image, np.maximum(x + 13.5 + 1.5 * bend, 2.5 - tube) / voxel_mm, _FLUID)
    _paint(image, amygdala / voxel_mm, _GREY)
    # The temporal horn lies on its upper, lateral side, and the hippocampal fissure below it.
    horn = np.maximum(tube - anatomy["horn"], -(x + 1.6 * (z + 0.45 * y) - 3))
    _paint(image, np.maximum(horn, -19 - y) / voxel_mm, _FLUID)
    _paint(image, (tube - 0.7) / voxel_mm, _WHITE)  # alveus
    _paint(image, tube / voxel_mm, _GREY + np.array([0.02, 0.06], np.float32))
    image *= 1 + 0.05 * grain[..., None]

    border = y + 0.06 * x - 3.0 - anatomy["border"]
    label = np.where(tube < 0, np.where(border > 0, ANTERIOR, POSTERIOR), 0).astype(np.uint8)
    channels = [scan(rng, image[..., c], 0.55, rng.uniform(0.05, 0.10), rng.uniform(0.025, 0.045)) for c in range(2)]
    return np.stack(channels, axis=-1), label
