"""A brain drawn by formula, with a head around it for LGG. The zero crossings of a random wave field fold its cortex."""

import numpy as np

from modules.phantom._canvas import Canvas, make_grid, measure_ellipse, measure_ellipsoid, scan, smooth_noise

BRAIN_CLASSES = ("background", "csf", "grey_matter", "white_matter", "tumour")
CSF, GREY, WHITE, TUMOUR = range(1, 5)

# Heights covered by a stack, whatever its number of slices: cerebellum to vertex.
_BRAIN_RANGE_MM = (-43.0, 58.0)
_BRAIN_FIELD_MM = 230.0
# Middle of a whole brain, from the end of its stem to the vertex. A volume of a given spacing is centred there.
_BRAIN_MIDDLE_MM, _STEM_END_MM = 1.0, -60.0

# Brightness of background, CSF, grey matter, white matter, tumour.
_T1 = np.array([0.0, 0.17, 0.52, 0.80, 0.36], np.float32)
_LGG_CHANNELS = {  # pre-contrast T1, FLAIR, post-contrast T1
    "pre": np.array([0.05, 0.09, 0.25, 0.31, 0.19], np.float32),
    "flair": np.array([0.05, 0.06, 0.33, 0.27, 0.62], np.float32),
    "post": np.array([0.05, 0.10, 0.27, 0.32, 0.22], np.float32),
}
_CEREBRUM_CENTRE, _CEREBRUM_RADII = (0.0, 0.0, 4.0), (66.0, 84.0, 58.0)
_WAVES = 9
_FOLDING = 18.0  # radians per radius: nearly forty sulci around the largest slice


def _draw_brain_anatomy(rng: np.random.Generator, tumour: bool) -> dict:
    """Draws the sizes, the waves that fold the cortex and, if wanted, the place of a tumour."""
    ranges = {
        "scale": (0.94, 1.04),
        "turn": (-5, 5),
        "shift_x": (-4, 4),
        "shift_y": (-5, 5),
        "width": (0.96, 1.05),
        "ventricle": (0.85, 1.5),
        "sulcus": (1.15, 1.5),
        "cortex": (3.2, 3.9),
        "depth": (15, 20),
        "fissure": (1.6, 2.3),
    }
    anatomy: dict = {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}
    directions = rng.standard_normal((_WAVES, 3))
    anatomy["waves"] = _FOLDING * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    anatomy["phases"] = rng.uniform(0, 2 * np.pi, _WAVES)
    place = [rng.choice([-1, 1]) * rng.uniform(26, 38), rng.uniform(-42, 34), rng.uniform(4, 22)]
    size = [rng.uniform(15, 24), rng.uniform(17, 27), rng.uniform(22, 30)]
    anatomy["tumour"] = (place, size) if tumour else None
    return anatomy


def _measure_brain(x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns signed distances in mm to the surface of the cerebrum and to that of cerebellum and brain stem."""
    side = np.abs(x)
    cerebrum = measure_ellipsoid(x * (1 - 0.0012 * y), y, z, _CEREBRUM_CENTRE, _CEREBRUM_RADII)
    if z < -20:  # below its base only temporal and frontal lobes remain; the cut is flat, and no cortex covers it
        cerebrum = np.full_like(x, 99)
    temporal = measure_ellipsoid(side, y, z, (40, -14, -19), (22, 36, 23))
    frontal = measure_ellipsoid(side, y, z, (14, -46, -16), (19, 27, 14))
    cerebellum = measure_ellipsoid(side, y, z, (19, 42, -31), (31, 28, 21))
    stem = measure_ellipse(x, y, 0, 12, 14, 13) if _STEM_END_MM < z < -8 else np.full_like(x, 99)
    return np.minimum(np.minimum(cerebrum, temporal), frontal), np.minimum(cerebellum, stem)


def _measure_sulci(
    x: np.ndarray, y: np.ndarray, z: float, depth: np.ndarray, bend: np.ndarray, anatomy: dict, pixel_mm: float | None
) -> np.ndarray:
    """Returns the distance in mm to the nearest cleft: sulci, the fissure between the hemispheres, Sylvian fissures.

    Sulci are sheets that run inwards where a sum of random plane waves on the unit sphere crosses zero. `pixel_mm` measures their
    width within the slice, which opens those that lie flat in it. None measures it in space.
    """
    u, v, w = ((axis - c) / r for axis, c, r in zip((x, y, z), _CEREBRUM_CENTRE, _CEREBRUM_RADII, strict=True))
    norm = np.sqrt(u * u + v * v + w * w) + 1e-3
    u, v, w = u / norm, v / norm, w / norm
    real, imaginary, slopes = np.zeros_like(x), np.zeros_like(x), np.zeros((3, *x.shape), np.float32)
    for (a, b, c), phase in zip(anatomy["waves"], anatomy["phases"], strict=True):
        angle = np.float32(a) * u + np.float32(b) * v + np.float32(c) * w + np.float32(phase)
        real += np.cos(angle)
        sine = np.sin(angle)
        imaginary += sine
        if pixel_mm is None:
            slopes -= np.array([a, b, c], np.float32)[:, None, None] * sine
    # Value over slope is the distance to the crossing. The floor keeps sheets that lie flat in the slice from filling it.
    if pixel_mm is None:  # the waves live on the sphere, so outward slopes do not count
        unit, radii = np.stack([u, v, w]), np.array(_CEREBRUM_RADII, np.float32)[:, None, None]
        slope = np.linalg.norm((slopes - (slopes * unit).sum(axis=0) * unit) / (radii * norm), axis=0)
    else:
        slope = np.hypot(*np.gradient(real)) / pixel_mm
        slope = np.maximum(slope, 0.45 * np.hypot(real, imaginary) * _FOLDING / 72)
    sulcus = np.abs(real) / np.maximum(slope, 1e-3)
    sulcus = np.hypot(sulcus, np.maximum(0, depth - anatomy["depth"] - 4 * bend)) - anatomy["sulcus"]
    core = measure_ellipsoid(x, y, z, (0, 2, 8), (40, 44, 24))  # corpus callosum and what lies under it
    fissure = np.hypot(x + 1.2 * bend, np.maximum(0, -core)) - anatomy["fissure"]
    side = np.abs(x)
    sylvian = np.hypot(y + 8 + 0.45 * (side - 40) + 2 * bend, np.maximum(0, 37 - side))
    sylvian = np.hypot(sylvian, max(0, abs(z - 1) - 14)) - 2.2
    return np.minimum(np.minimum(sulcus, fissure), sylvian)


def _measure_ventricles(x: np.ndarray, y: np.ndarray, z: float, size: float) -> np.ndarray:
    """Returns the signed distance in mm to the lateral (butterfly), third and fourth ventricles."""
    side = np.abs(x)
    distance = np.full_like(x, 99)
    if -4 < z < 30:
        rise = np.clip((z + 4) / 22, 0, 1)  # horns spread below, lie side by side above
        thick = size * np.sqrt(max(0.05, 1 - ((z - 12) / 18) ** 2))
        front = measure_ellipse(side, y, 9 + rise, -25 + 6 * rise, 4.4 * thick, 14 + 3 * rise, 30 - 12 * rise)
        back = measure_ellipse(side, y, 20 - 5 * rise, 29 - 9 * rise, 4.8 * thick, 17 + rise, -34 + 16 * rise)
        body = measure_ellipse(side, y, 9 + 2 * rise, 1, (1 + 3 * rise) * thick, 20)
        distance = np.minimum(np.minimum(front, back), body)
    if -12 < z < 8:
        distance = np.minimum(distance, measure_ellipse(x, y, 0, 1, 1.9 * size, 13))
    if -48 < z < -18:
        distance = np.minimum(distance, measure_ellipse(x, y, 0, 27, 6 * size, 4 * size))
    return distance


def _measure_nuclei(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Returns the signed distance in mm to thalamus, caudate head and lentiform nucleus, negative inside."""
    side = np.abs(x)
    thalamus = measure_ellipsoid(side, y + 0.5 * (12 - side), z, (11.5, 7, 6), (9, 15, 11))
    caudate = measure_ellipsoid(side, y, z, (16, -20, 9), (5.5, 11, 15))
    lentiform = measure_ellipsoid(side, y - 0.35 * (side - 26), z, (26, -5, 4), (8, 18, 13))
    return np.minimum(np.minimum(thalamus, caudate), lentiform)


def _label_brain_slice(x, y, z: float, bend: np.ndarray, warp: np.ndarray, anatomy: dict, solid: bool):
    """Returns label (height, width) uint8, distance in mm to the tumour (99 without one) and mask of the ventricles.

    With `solid`, sulci have their true width in space. Without it, they have it in the slice.
    """
    cerebrum, hind = _measure_brain(x, y, z)
    distance = np.minimum(cerebrum, hind) + 0.6 * bend
    if distance.min() >= 0:
        return np.zeros(x.shape, np.uint8), np.full(x.shape, 99, np.float32), np.zeros(x.shape, bool)
    pixel_mm = None if solid else x[0, 1] - x[0, 0]
    x, y = x + 2 * warp, y + 2 * bend
    depth, rim = -distance, 2.0
    cleft = _measure_sulci(x, y, z, depth, bend, anatomy, pixel_mm)
    is_hind = hind < cerebrum
    label = np.full(x.shape, WHITE, np.uint8)
    label[(cleft < anatomy["cortex"]) | (depth < rim + anatomy["cortex"])] = GREY
    label[_measure_nuclei(x, y, z) < 0] = GREY
    label[(cleft < 0) | (depth < rim)] = CSF
    if -24 < z < -7:  # suprasellar and ambient cisterns around the midbrain
        cistern = np.minimum(measure_ellipse(x, y, 0, -8, 9, 7), np.abs(measure_ellipse(x, y, 0, 12, 15.5, 14.5)) - 1.4)
        label[cistern < anatomy["cortex"]] = GREY
        label[cistern < 0] = CSF
    # Cerebellum: a thick cortex around the arbor vitae; the brain stem is white.
    stem = (measure_ellipse(x, y, 0, 12, 12.5, 11.5) < 0) & (z < -8)
    folia = 9 + 2.5 * np.sin(1.1 * (y + 0.4 * np.abs(x)) + 2 * bend)
    label[is_hind] = np.where(hind < -folia, WHITE, GREY)[is_hind]
    label[is_hind & ((depth < rim) | ((np.abs(x) < 1.3) & (y > 52)))] = CSF
    label[stem & (distance < 0)] = WHITE
    ventricles = _measure_ventricles(x, y, z, anatomy["ventricle"]) + 0.5 * bend < 0
    label[ventricles] = CSF
    label[distance >= 0] = 0
    mass = np.full(x.shape, 99, np.float32)
    if anatomy["tumour"] is not None:
        mass = measure_ellipsoid(x, y, z, *anatomy["tumour"]) + 2.6 * bend
        mass = np.maximum(mass, distance + 4)  # a glioma stays under the pia
        mass = np.maximum(mass, 3 - np.abs(x))  # and on its side of the falx
        label[mass < 0] = TUMOUR
    return label, mass, ventricles


def _label_brain(rng: np.random.Generator, shape, anatomy: dict, spacing_mm: tuple[float, float, float] | None = None):
    """Returns (label uint8, distance to the tumour in mm, mask of the ventricles), heights and in-plane coordinates in mm.

    The first three are (*S). `spacing_mm` is that of `draw_brain`.
    """
    if spacing_mm is None:
        heights, x, y, _ = make_grid(shape, _BRAIN_FIELD_MM, _BRAIN_RANGE_MM)
    else:
        depth_mm, height_mm, width_mm = (size * step for size, step in zip(shape, spacing_mm, strict=True))
        heights, x, y, _ = make_grid(shape, height_mm, (_BRAIN_MIDDLE_MM - depth_mm / 2, _BRAIN_MIDDLE_MM + depth_mm / 2), width_mm)
    turn = np.radians(anatomy["turn"])
    x, y = (x - anatomy["shift_x"]) / anatomy["scale"], (y - anatomy["shift_y"]) / anatomy["scale"]
    x, y = (x * np.cos(turn) + y * np.sin(turn)) / anatomy["width"], y * np.cos(turn) - x * np.sin(turn)
    bend, warp = (smooth_noise(rng, shape, (7, 16, 16)) for _ in range(2))
    solid = spacing_mm is not None
    slices = [_label_brain_slice(x, y, float(z), bend[i], warp[i], anatomy, solid) for i, z in enumerate(heights)]
    return tuple(np.stack(stack) for stack in zip(*slices, strict=True)), heights, x, y


def draw_brain(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (32, 256, 256),
    tumour: bool = False,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    label_sulci: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a skull-stripped brain as on axial T1-weighted MRI.

    Args:
        rng: Source of every draw. The same state gives the same arrays.
        shape: (slices, rows, columns): inferior to superior, anterior to posterior, left and right.
        tumour: Whether a mass of label 4, darker than white matter, grows in one hemisphere.
        spacing_mm: Voxel size in the order of `shape`. The volume is centred on the whole brain, which needs 122 mm of slices.
            Without a spacing the slices span the 101 mm from cerebellum to vertex, the rows span 230 mm, and pixels are square.
        label_sulci: Whether CSF outside the ventricles is labelled. If not, it is background that is not black, as in IBSR18.

    Returns:
        The image (*S) float32 >= 0 in arbitrary scanner units, 0 outside the brain, and the label (*S) uint8; see `BRAIN_CLASSES`.
    """
    anatomy = _draw_brain_anatomy(rng, tumour)
    (label, _, ventricles), *_ = _label_brain(rng, shape, anatomy, spacing_mm)
    grain = smooth_noise(rng, shape, (shape[0], max(2, shape[1] // 3), max(2, shape[2] // 3)))
    clean = _T1[label] * (1 + 0.035 * grain)
    gain, bias, noise = rng.uniform(500, 1500), rng.uniform(0.05, 0.11), rng.uniform(0.018, 0.035)
    image = scan(rng, clean, 0.7, bias, noise)
    # Skull stripping cuts at the brain's surface, after the scan.
    image = np.float32(gain) * image * (label > 0)
    if not label_sulci:
        label[(label == CSF) & ~ventricles] = 0
    return image, label


def _paint_head(canvas: Canvas, z: float, grain: np.ndarray, fat: float) -> None:
    """Paints scalp, skull, dura and, below the brain, muscle and orbits. The brain goes on top."""
    x, y, side = canvas.x, canvas.y, np.abs(canvas.x)
    radii = tuple(radius + 13 for radius in _CEREBRUM_RADII)
    scalp = measure_ellipsoid(x * (1 - 0.0012 * y), y, max(z, 4.0), _CEREBRUM_CENTRE, radii)
    if z < -12:  # the face and the nape are narrower than the vault
        scalp = np.maximum(scalp, measure_ellipse(x, y, 0, 4, 79 + 0.5 * (z + 12), 97))
    canvas.paint(scalp, 0.35 * fat)
    canvas.paint(scalp + 1.3, fat * (1 + 0.08 * grain))
    canvas.paint(scalp + 5.0, 0.04)  # outer table, diploe, inner table
    canvas.paint(scalp + 6.6, 0.45 * fat)
    canvas.paint(scalp + 9.0, 0.04)
    canvas.paint(scalp + 11.0, 0.08 if z > -16 else 0.16 + 0.03 * grain)
    if z < -18:
        orbit = measure_ellipsoid(side, y, z, (27, -66, -34), (16, 22, 17))
        canvas.paint(np.maximum(orbit, scalp + 5.0), 0.8 * fat)
        canvas.paint(measure_ellipsoid(side, y, z, (28, -72, -34), (11.5, 12, 12)), 0.12)


def draw_lgg(rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
    """Draws image (*S, 3) uint8 (pre-contrast, FLAIR, post-contrast) and mask (*S) bool of the tumour."""
    anatomy = _draw_brain_anatomy(rng, tumour=True)
    (label, mass, _), heights, x, y = _label_brain(rng, shape, anatomy)
    grain = smooth_noise(rng, shape, (shape[0], max(2, shape[1] // 3), max(2, shape[2] // 3)))
    patchy = smooth_noise(rng, shape, (6, shape[1] // 10, shape[2] // 10))
    pixel_mm = float(x[0, 1] - x[0, 0])
    channels = []
    for (name, values), fat in zip(_LGG_CHANNELS.items(), (0.78, 0.62, 0.80), strict=True):
        brain = values[label] * (1 + 0.04 * grain)
        brain = np.where(label == TUMOUR, brain * (1 + 0.09 * patchy), brain)
        if name == "flair":  # oedema fades into the white matter
            brain += np.where(label >= GREY, 0.22 * np.exp(-np.maximum(mass, 0) / 2.5) * (mass > 0), 0)
        if name == "post":  # vessels of the fissure take up contrast
            brain += 0.35 * ((label == CSF) & (np.abs(x) < 2.5) & (np.abs(y) > 62))
        image = np.empty(shape, np.float32)
        for index, z in enumerate(heights):
            canvas = Canvas(x, y, pixel_mm)
            _paint_head(canvas, float(z), grain[index], fat)
            image[index] = np.where(label[index] > 0, brain[index], canvas.image)
        channels.append(scan(rng, image, 0.75, rng.uniform(0.04, 0.09), rng.uniform(0.010, 0.018)))
    image = np.stack(channels, axis=-1) * rng.uniform(0.85, 1.1)
    return np.clip(image * 255, 0, 255).round().astype(np.uint8), label == TUMOUR
