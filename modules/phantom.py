"""Anatomies drawn by formula, written in each data set's own layout.

A person without scans can train, predict and test on these. Nothing here is copied from a patient: organs are ellipses whose
centre and radii follow key heights, bent by smooth noise; the cortex is folded along the zero crossings of a random wave
field. Millimetres throughout: `x` to the right of the picture, `y` towards posterior, `z` towards superior.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

PELVIS_CLASSES = ("background", "body", "bone", "bladder", "rectum", "prostate")
BRAIN_CLASSES = ("background", "csf", "grey_matter", "white_matter", "tumour")
BODY, BONE, BLADDER, RECTUM, PROSTATE = range(1, 6)
CSF, GREY, WHITE, TUMOUR = range(1, 5)

SPLITS = ("train", "validate", "test")

# Heights covered by a stack, whatever its number of slices: perineum to sacrum, cerebellum to vertex.
_PELVIS_RANGE_MM = (-48.0, 62.0)
_BRAIN_RANGE_MM = (-43.0, 58.0)

# Extent of the rows: a stack narrower than it is high shows the strip between the femoral heads, enlarged.
_FULL_FIELD_MM, _STRIP_FIELD_MM = 358.0, 318.0

# T2-weighted brightness of tissue, relative to urine.
_T2 = {"fat": 0.74, "muscle": 0.21, "bone": 0.56, "vessel": 0.05, "vein": 0.95, "gland": 0.62, "bulb": 0.66}

# Painted in this order, each row on both sides of the midline:
# (tissue, [(z, centre x, centre y, radius x, radius y, degrees), ...]); between key heights every number is interpolated.
# fmt: off
_PELVIS_SHAPES = (
    # Pelvic cavity and ischioanal fossae: fat between the obturator muscles.
    ("fat", [(-48, 24, 44, 17, 27, 15), (-25, 25, 42, 18, 32, 12), (-8, 22, 40, 20, 34, 8)]),
    ("fat", [(-16, 8, 20, 24, 44, 0), (5, 10, 18, 30, 52, 0), (30, 14, 20, 44, 58, 0), (62, 20, 14, 50, 58, 0)]),
    # Fat of the groin around the femoral vessels, and seams between the gluteal and thigh muscles.
    ("fat", [(-48, 56, -52, 16, 13, -25), (0, 60, -56, 18, 12, -20), (35, 70, -58, 16, 9, -15)]),
    ("fat", [(-48, 74, 52, 34, 2.6, -28), (0, 78, 56, 36, 2.6, -32), (62, 88, 50, 40, 2.2, -35)]),
    ("fat", [(-48, 40, -14, 2.0, 30, 28), (-20, 44, -22, 2.0, 24, 34), (0, 52, -30, 1.6, 16, 40)]),
    ("fat", [(-48, 78, -12, 2.0, 34, -20), (0, 92, -34, 2.0, 24, -28), (30, 98, -38, 1.8, 24, -30)]),
    # Muscles that line the cavity: levator ani, obturator internus, piriformis; rectus abdominis in front.
    ("muscle", [(-42, 12, 34, 3.2, 24, 8), (-20, 19, 24, 2.6, 30, 14), (2, 26, 14, 2.2, 26, 16)]),
    ("muscle", [(-36, 40, 18, 6, 24, 8), (0, 46, 12, 7, 33, 4), (25, 50, 8, 6, 32, 0), (44, 54, 8, 4, 20, 0)]),
    ("muscle", [(28, 56, 60, 24, 8, -24), (45, 58, 56, 30, 11, -24), (62, 60, 52, 28, 12, -26)]),
    ("muscle", [(14, 16, -66, 17, 4, 4), (62, 20, -74, 20, 6, 6)]),
    ("muscle", [(18, 78, -42, 17, 13, 25), (62, 74, -34, 18, 16, 30)]),
    # Bones: inferior ramus, pubic body, superior ramus, ischium, acetabulum, femur, ilium, sacrum and coccyx.
    ("bone", [(-50, 35, 8, 6.5, 27, -34), (-34, 26, -16, 6.5, 20, -32), (-22, 17, -36, 7, 12, -25)]),
    ("bone", [(-30, 12, -36, 7, 9, -20), (-14, 13.5, -42, 10.5, 13, -20), (6, 15, -46, 12, 9, 18), (16, 16, -49, 8, 5, 20)]),
    ("bone", [(-2, 34, -43, 12, 5, 18), (10, 40, -40, 25, 7.5, 24), (26, 54, -32, 14, 7, 28)]),
    ("bone", [(-50, 52, 36, 12, 19, 18), (-25, 55, 30, 11, 19, 10), (5, 60, 24, 10, 20, -8), (30, 64, 22, 10, 22, -20),
              (48, 69, 20, 9, 28, -22), (64, 74, 18, 8, 36, -25)]),
    ("bone", [(6, 62, -26, 9, 8, 20), (20, 62, -22, 9, 14, 0), (38, 66, -16, 9, 14, 0), (50, 70, -10, 8, 12, 0)]),
    ("bone", [(-50, 112, 4, 14, 16, 0), (-18, 112, 6, 16, 19, 0), (4, 108, 4, 27, 13, 22), (20, 98, 0, 20, 11, 20)]),
    ("bone", [(-4, 83, -2, 8, 8, 0), (2, 83, -3, 17, 17, 0), (12, 83, -4, 22, 22, 0), (20, 83, -4, 23.5, 23.5, 0),
              (30, 83, -4, 21, 21, 0), (38, 83, -4, 14, 14, 0), (42, 83, -4, 6, 6, 0)]),
    ("bone", [(-24, 0, 66, 3, 3, 0), (-8, 0, 72, 7, 5, 0), (14, 4, 77, 11, 6.5, 8), (34, 11, 79, 24, 10, 12),
              (64, 17, 76, 31, 14, 16)]),
    # Femoral artery and vein, iliac vessels; bulb of the penis; seminal vesicles.
    ("vessel", [(-48, 60, -52, 4.0, 4.0, 0), (62, 60, -44, 4.5, 4.5, 0)]),
    ("vessel", [(-48, 50, -50, 4.5, 5, 0), (62, 49, -40, 5.5, 4.5, 0)]),
    ("vein", [(14, 40, 26, 2.4, 2.4, 0), (62, 42, 18, 3, 3, 0)]),
    ("vessel", [(22, 45, 34, 2.4, 2.4, 0), (62, 47, 28, 3, 3, 0)]),
    ("bulb", [(-52, 3, -6, 10, 11, 0), (-34, 3, -3, 8, 9, 0), (-26, 2, -1, 4, 4, 0)]),
    ("gland", [(14, 9, 17, 8, 4, 12), (22, 15, 18, 15, 5.5, 10), (31, 21, 17, 13, 4.5, 4), (36, 24, 16, 7, 3, 0)]),
)
# fmt: on

_RECTUM_PATH = np.array(
    [  # z, centre y, radius x, radius y
        (-50, 33, 9, 10),
        (-25, 31, 11, 11),
        (0, 37, 15, 13),
        (25, 43, 17, 15),
        (45, 48, 17, 15),
        (64, 47, 20, 16),
    ],
    np.float32,
)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], cells: tuple[int, int, int]) -> np.ndarray:
    """Returns smooth noise (*S) float32 of about unit deviation, whose bumps number `cells` along each axis."""
    depth, height, width = shape
    coarse = rng.standard_normal(cells, dtype=np.float32).reshape(cells[0], -1)
    coarse = cv2.resize(coarse, (coarse.shape[1], depth), interpolation=cv2.INTER_LINEAR).reshape(depth, *cells[1:])
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in coarse])


def _measure_ellipse(x, y, centre_x, centre_y, radius_x, radius_y, degrees=0.0) -> np.ndarray:
    """Returns the signed distance in mm to an ellipse, negative inside, exact to first order at the edge."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / radius_x
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / radius_y
    norm = np.sqrt(u * u + v * v) + 1e-6
    return norm * (norm - 1) / np.sqrt((u / radius_x) ** 2 + (v / radius_y) ** 2 + 1e-12)


def _measure_ellipsoid(x, y, z, centre, radii) -> np.ndarray:
    """Returns the signed distance in mm to an axis-parallel ellipsoid, negative inside."""
    u, v, w = ((axis - c) / r for axis, c, r in zip((x, y, z), centre, radii, strict=True))
    norm = np.sqrt(u * u + v * v + w * w) + 1e-6
    return norm * (norm - 1) / np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2 + 1e-12)


def _scan(rng: np.random.Generator, image: np.ndarray, blur: float, bias: float, noise: float) -> np.ndarray:
    """Degrades a clean image (*S) as a scanner does: partial volume, coil shading, Rician noise.

    The deviations are those of the in-plane `blur` in pixels, of the logarithm of the shading (`bias`) and of the `noise` in
    each of the two Gaussian channels.
    """
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in image])
    blurred *= np.exp(bias * _smooth_noise(rng, image.shape, (2, 3, 3)))
    real = blurred + noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, noise * rng.standard_normal(image.shape, dtype=np.float32))


def _make_grid(shape: tuple[int, int, int], field_mm: float, range_mm: tuple[float, float]):
    """Returns heights (slices,), in-plane `x` and `y` (height, width) in mm and the pixel size in mm."""
    depth, height, width = shape
    pixel_mm = field_mm / height
    z = range_mm[0] + (np.arange(depth, dtype=np.float32) + 0.5) * (range_mm[1] - range_mm[0]) / depth
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) - (height - 1) / 2) * pixel_mm,
        (np.arange(width, dtype=np.float32) - (width - 1) / 2) * pixel_mm,
        indexing="ij",
    )
    return z, x, y, pixel_mm


class _Canvas:
    """One slice being painted: what is painted later lies on top."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pixel_mm: float):
        self.x, self.y, self.pixel_mm = x, y, pixel_mm
        self.image = np.zeros(x.shape, np.float32)
        self.label = np.zeros(x.shape, np.uint8)

    def paint(self, distance: np.ndarray, value, label: int | None = None) -> None:
        """Fills where `distance` (mm) is negative, with an edge one pixel soft; `value` is a number or an image."""
        self.image += np.clip(0.5 - distance / self.pixel_mm, 0, 1) * (value - self.image)
        if label is not None:
            self.label[distance < 0] = label


# ------------------------------------------------------------------------------------------------------------- pelvis


def _draw_pelvis_anatomy(rng: np.random.Generator) -> dict[str, float]:
    """Draws what stays the same from one week of a patient to the next."""
    ranges = {
        "scale": (0.94, 1.07),
        "turn": (-4, 4),
        "shift_x": (-5, 5),
        "shift_y": (-8, 8),
        "shift_z": (-4, 4),
        "fat": (9, 26),
        "fat_behind": (12, 24),
        "girth": (-5, 6),
        "bend": (1.0, 2.0),
        "marrow": (0.85, 1.15),
        "prostate_x": (23, 30),
        "prostate_y": (16, 21),
        "prostate_z": (21, 27),
        "transition": (0.55, 0.78),
        "rectum_x": (-5, 5),
        "seed": (0, 2**31),
    }
    return {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}


def _paint_body(canvas: _Canvas, z: float, anatomy: dict[str, float], fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints skin, subcutaneous fat with its strands, muscle with its seams, and everything in `_PELVIS_SHAPES`."""
    x, y, side = canvas.x, canvas.y, np.abs(canvas.x)
    girth = anatomy["girth"] + 0.06 * z
    outline = _measure_ellipse(x, y, 0, 11, 160 + girth, 103 + girth)
    if z < 12:  # natal cleft
        outline = np.maximum(outline, -_measure_ellipse(x, y, 0, 118, 3.5, 16 - 0.5 * z))
    fat = _T2["fat"] + 0.05 * fine - 0.35 * np.exp(-((seam / 0.10) ** 2))
    canvas.paint(outline, 0.42, BODY)
    canvas.paint(outline + 2.2, fat)
    thickness = np.where(y > 40, anatomy["fat_behind"], anatomy["fat"]) + 5 * np.exp(-((x / 40) ** 2))
    thickness = cv2.GaussianBlur(thickness.astype(np.float32), (0, 0), 12)
    canvas.paint(outline + thickness + 2 * seam, _T2["muscle"] + 0.025 * fine + 0.22 * np.exp(-((seam / 0.06) ** 2)))
    for tissue, keys in _PELVIS_SHAPES:
        table = np.array(keys, np.float32).T
        if not table[0, 0] <= z <= table[0, -1]:
            continue
        distance = _measure_ellipse(side, y, *(np.interp(z, table[0], row) for row in table[1:]))
        if tissue == "bone":
            canvas.paint(distance - 1.4, 0.42)  # cartilage and periosteal fat part bone from muscle
            canvas.paint(distance, 0.04, BONE)
            canvas.paint(distance + 2.4, anatomy["marrow"] * (_T2["bone"] + 0.07 * fine))
        elif tissue == "gland":
            canvas.paint(distance, _T2["gland"] + 0.28 * fine)
        else:
            canvas.paint(distance, _T2[tissue] + (0.08 if tissue == "fat" else 0.025) * fine)
    if z < 14:  # fibrous disc of the symphysis
        canvas.paint(_measure_ellipse(x, y, 0, -44, 1.8, 10 - 0.3 * abs(z + 6)), 0.10)


def _paint_bladder(canvas: _Canvas, z: float, week: dict[str, float], fine: np.ndarray) -> None:
    """Paints bright urine inside a dark wall; the wall belongs to the bladder."""
    height = (z - week["bladder_z"] - 11) / week["bladder_z"]
    if abs(height) >= 1:
        return
    width = np.sqrt(1 - height * height)
    distance = _measure_ellipse(canvas.x, canvas.y, week["bladder_shift"], -12, week["bladder_x"] * width, week["bladder_y"] * width)
    canvas.paint(distance, 0.16 + 0.02 * fine, BLADDER)
    canvas.paint(distance + week["wall"], week["urine"] + 0.02 * fine)


def _paint_rectum(canvas: _Canvas, z: float, anatomy: dict, week: dict, fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints a wall with mucosa, stool of mixed brightness and gas, which rises to the front of a lying patient."""
    centre_y, radius_x, radius_y = (np.interp(z, _RECTUM_PATH[:, 0], row) for row in _RECTUM_PATH.T[1:])
    centre_x = anatomy["rectum_x"] * np.sin((z + 48) / 30)
    fill = week["rectum"] if z > -20 else 1.0
    distance = _measure_ellipse(canvas.x, canvas.y, centre_x, centre_y, radius_x * fill, radius_y * fill)
    canvas.paint(distance, 0.25 + 0.02 * fine, RECTUM)
    if z < -22:  # the anal canal is closed: muscle around bright mucosa
        canvas.paint(distance + 4.5, 0.50 + 0.08 * fine)
        return
    canvas.paint(distance + 2.8, 0.60)
    canvas.paint(distance + 4.2, 0.44 + 0.07 * fine + 0.06 * seam)
    level = centre_y - radius_y * fill * week["gas"]
    canvas.paint(np.maximum(distance + 4.2, canvas.y - level - seam), 0.03)


def _paint_prostate(canvas: _Canvas, z: float, anatomy: dict, fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints capsule, bright peripheral zone, nodular transition zone, dark fibromuscular stroma and urethra."""
    x, y, height = canvas.x, canvas.y, z / anatomy["prostate_z"]
    if abs(height) >= 1:
        return
    width = np.sqrt(1 - height * height)
    radius_x, radius_y = anatomy["prostate_x"] * width, anatomy["prostate_y"] * width
    distance = _measure_ellipse(x, y, 0, 0, radius_x, radius_y)
    # Venous plexus at both flanks.
    flank = np.maximum(distance - 5.0, np.abs(y + 2) - 0.8 * radius_y)
    canvas.paint(flank, 0.55 + 0.25 * fine)
    canvas.paint(distance, 0.10, PROSTATE)
    canvas.paint(distance + 1.6, 0.74 + 0.07 * fine)
    share = anatomy["transition"] * (1 + 0.25 * height)  # the transition zone grows towards the base
    inner = _measure_ellipse(x, y, 0, -0.22 * radius_y, radius_x * share, radius_y * (share + 0.08))
    canvas.paint(inner, 0.14)
    canvas.paint(inner + 1.3, np.clip(0.40 + 0.10 * fine + 0.13 * seam, 0.12, 0.8))
    canvas.paint(_measure_ellipse(x, y, 0, -0.74 * radius_y, 0.34 * radius_x, 0.20 * radius_y), 0.13)
    canvas.paint(_measure_ellipse(x, y, 0, 0.05 * radius_y, 2.0, 2.6), 0.72)


def _render_pelvis(anatomy: dict[str, float], rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
    """Paints one week of a patient: bladder, rectum and the scanner change, `anatomy` stays."""
    ranges = {
        "bladder_x": (27, 38),
        "bladder_y": (21, 31),
        "bladder_z": (20, 30),
        "bladder_shift": (-4, 4),
        "wall": (2.2, 4.0),
        "urine": (0.92, 1.15),
        "rectum": (0.88, 1.22),
        "gas": (-0.1, 0.9),
        "gain": (170, 330),
        "bias": (0.08, 0.18),
        "noise": (0.022, 0.045),
    }
    week = {name: float(rng.uniform(*bounds)) for name, bounds in ranges.items()}
    heights, x, y, pixel_mm = _make_grid(shape, _FULL_FIELD_MM if shape[2] >= shape[1] else _STRIP_FIELD_MM, _PELVIS_RANGE_MM)
    depth, rows, columns = shape
    steady = np.random.default_rng(int(anatomy["seed"]))  # the same bends and nodules in every week
    bend_x, bend_y = (anatomy["bend"] * _smooth_noise(steady, shape, (4, 11, 6)) for _ in range(2))
    seam = _smooth_noise(steady, shape, (6, max(2, rows // 12), max(2, columns // 12)))
    fine = _smooth_noise(rng, shape, (depth, max(2, rows // 3), max(2, columns // 3)))
    turn = np.radians(anatomy["turn"])
    x, y = (x - anatomy["shift_x"]) / anatomy["scale"], (y + 8 - anatomy["shift_y"]) / anatomy["scale"]
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    image, label = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for index, height in enumerate(heights):
        z = float(np.clip(height + anatomy["shift_z"], *_PELVIS_RANGE_MM))
        canvas = _Canvas(x + bend_x[index], y + bend_y[index], pixel_mm)
        grain, nodules = fine[index], seam[index]
        _paint_body(canvas, z, anatomy, grain, nodules)
        _paint_bladder(canvas, z, week, grain)
        _paint_rectum(canvas, z, anatomy, week, grain, nodules)
        _paint_prostate(canvas, z, anatomy, grain, nodules)
        image[index], label[index] = canvas.image, canvas.label
    return week["gain"] * _scan(rng, image, 0.6, week["bias"], week["noise"]), label


def draw_pelvis(rng: np.random.Generator, shape: tuple[int, int, int] = (24, 256, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Draws a male pelvis as on axial T2-weighted MRI.

    Pixels are square. A stack as wide as it is high shows the whole pelvis (358 mm); a narrower one, as in HipMRI's slices, the
    strip between the femoral heads (318 mm from front to back). The slices span 110 mm at any number of slices, from the
    perineum to the sacrum; a slice may lack any class but background and body.

    Args:
        rng: source of every draw; the same state gives the same arrays.
        shape: (slices, rows, columns): inferior to superior, anterior to posterior, left and right.

    Returns:
        The image (*S) float32 >= 0 in arbitrary scanner units and the label (*S) uint8, see `PELVIS_CLASSES`.
    """
    return _render_pelvis(_draw_pelvis_anatomy(rng), rng, shape)


# -------------------------------------------------------------------------------------------------------------- brain

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
    cerebrum = _measure_ellipsoid(x * (1 - 0.0012 * y), y, z, _CEREBRUM_CENTRE, _CEREBRUM_RADII)
    if z < -20:  # below its base only temporal and frontal lobes remain; a flat cut, so no cortex covers it
        cerebrum = np.full_like(x, 99)
    temporal = _measure_ellipsoid(side, y, z, (40, -14, -19), (22, 36, 23))
    frontal = _measure_ellipsoid(side, y, z, (14, -46, -16), (19, 27, 14))
    cerebellum = _measure_ellipsoid(side, y, z, (19, 42, -31), (31, 28, 21))
    stem = _measure_ellipse(x, y, 0, 12, 14, 13) if z < -8 else np.full_like(x, 99)
    return np.minimum(np.minimum(cerebrum, temporal), frontal), np.minimum(cerebellum, stem)


def _measure_sulci(
    x: np.ndarray, y: np.ndarray, z: float, depth: np.ndarray, bend: np.ndarray, anatomy: dict, pixel_mm: float
) -> np.ndarray:
    """Returns the distance in mm to the nearest cleft: sulci, the fissure between the hemispheres, Sylvian fissures.

    Sulci are sheets that run inwards where a sum of random plane waves on the unit sphere crosses zero.
    """
    u, v, w = ((axis - c) / r for axis, c, r in zip((x, y, z), _CEREBRUM_CENTRE, _CEREBRUM_RADII, strict=True))
    norm = np.sqrt(u * u + v * v + w * w) + 1e-3
    u, v, w = u / norm, v / norm, w / norm
    real, imaginary = np.zeros_like(x), np.zeros_like(x)
    for (a, b, c), phase in zip(anatomy["waves"], anatomy["phases"], strict=True):
        angle = np.float32(a) * u + np.float32(b) * v + np.float32(c) * w + np.float32(phase)
        real += np.cos(angle)
        imaginary += np.sin(angle)
    # Value over slope is the distance to the crossing; the floor keeps sheets that lie flat in the slice from filling it.
    slope = np.hypot(*np.gradient(real)) / pixel_mm
    floor = 0.45 * np.hypot(real, imaginary) * _FOLDING / 72
    sulcus = np.abs(real) / np.maximum(np.maximum(slope, floor), 1e-3)
    sulcus = np.hypot(sulcus, np.maximum(0, depth - anatomy["depth"] - 4 * bend)) - anatomy["sulcus"]
    core = _measure_ellipsoid(x, y, z, (0, 2, 8), (40, 44, 24))  # corpus callosum and what lies under it
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
        front = _measure_ellipse(side, y, 9 + rise, -25 + 6 * rise, 4.4 * thick, 14 + 3 * rise, 30 - 12 * rise)
        back = _measure_ellipse(side, y, 20 - 5 * rise, 29 - 9 * rise, 4.8 * thick, 17 + rise, -34 + 16 * rise)
        body = _measure_ellipse(side, y, 9 + 2 * rise, 1, (1 + 3 * rise) * thick, 20)
        distance = np.minimum(np.minimum(front, back), body)
    if -12 < z < 8:
        distance = np.minimum(distance, _measure_ellipse(x, y, 0, 1, 1.9 * size, 13))
    if z < -18:
        distance = np.minimum(distance, _measure_ellipse(x, y, 0, 27, 6 * size, 4 * size))
    return distance


def _measure_nuclei(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Returns the signed distance in mm to thalamus, caudate head and lentiform nucleus, negative inside."""
    side = np.abs(x)
    thalamus = _measure_ellipsoid(side, y + 0.5 * (12 - side), z, (11.5, 7, 6), (9, 15, 11))
    caudate = _measure_ellipsoid(side, y, z, (16, -20, 9), (5.5, 11, 15))
    lentiform = _measure_ellipsoid(side, y - 0.35 * (side - 26), z, (26, -5, 4), (8, 18, 13))
    return np.minimum(np.minimum(thalamus, caudate), lentiform)


def _label_brain_slice(x, y, z: float, bend: np.ndarray, warp: np.ndarray, anatomy: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns label (height, width) uint8 and the distance in mm to the tumour (99 without one)."""
    cerebrum, hind = _measure_brain(x, y, z)
    distance = np.minimum(cerebrum, hind) + 0.6 * bend
    pixel_mm = x[0, 1] - x[0, 0]
    x, y = x + 2 * warp, y + 2 * bend
    depth, rim = -distance, 2.0
    cleft = _measure_sulci(x, y, z, depth, bend, anatomy, pixel_mm)
    is_hind = hind < cerebrum
    label = np.full(x.shape, WHITE, np.uint8)
    label[(cleft < anatomy["cortex"]) | (depth < rim + anatomy["cortex"])] = GREY
    label[_measure_nuclei(x, y, z) < 0] = GREY
    label[(cleft < 0) | (depth < rim)] = CSF
    if -24 < z < -7:  # suprasellar and ambient cisterns around the midbrain
        cistern = np.minimum(_measure_ellipse(x, y, 0, -8, 9, 7), np.abs(_measure_ellipse(x, y, 0, 12, 15.5, 14.5)) - 1.4)
        label[cistern < anatomy["cortex"]] = GREY
        label[cistern < 0] = CSF
    # Cerebellum: a thick cortex around the arbor vitae; the brain stem is white.
    stem = (_measure_ellipse(x, y, 0, 12, 12.5, 11.5) < 0) & (z < -8)
    folia = 9 + 2.5 * np.sin(1.1 * (y + 0.4 * np.abs(x)) + 2 * bend)
    label[is_hind] = np.where(hind < -folia, WHITE, GREY)[is_hind]
    label[is_hind & ((depth < rim) | ((np.abs(x) < 1.3) & (y > 52)))] = CSF
    label[stem & (distance < 0)] = WHITE
    label[_measure_ventricles(x, y, z, anatomy["ventricle"]) + 0.5 * bend < 0] = CSF
    label[distance >= 0] = 0
    mass = np.full(x.shape, 99, np.float32)
    if anatomy["tumour"] is not None:
        mass = _measure_ellipsoid(x, y, z, *anatomy["tumour"]) + 2.6 * bend
        mass = np.maximum(mass, distance + 4)  # a glioma stays under the pia
        mass = np.maximum(mass, 3 - np.abs(x))  # and on its side of the falx
        label[mass < 0] = TUMOUR
    return label, mass


def _label_brain(rng: np.random.Generator, shape, anatomy: dict):
    """Returns label (*S) uint8, distance to the tumour (*S), heights in mm and the brain's in-plane coordinates in mm."""
    heights, x, y, _ = _make_grid(shape, 230.0, _BRAIN_RANGE_MM)
    turn = np.radians(anatomy["turn"])
    x, y = (x - anatomy["shift_x"]) / anatomy["scale"], (y - anatomy["shift_y"]) / anatomy["scale"]
    x, y = (x * np.cos(turn) + y * np.sin(turn)) / anatomy["width"], y * np.cos(turn) - x * np.sin(turn)
    bend, warp = (_smooth_noise(rng, shape, (7, 16, 16)) for _ in range(2))
    slices = [_label_brain_slice(x, y, float(z), bend[i], warp[i], anatomy) for i, z in enumerate(heights)]
    return np.stack([s[0] for s in slices]), np.stack([s[1] for s in slices]), heights, x, y


def draw_brain(
    rng: np.random.Generator, shape: tuple[int, int, int] = (32, 256, 256), tumour: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a skull-stripped brain as on axial T1-weighted MRI, 230 mm over the rows, 101 mm over the slices.

    Args:
        rng: source of every draw; the same state gives the same arrays.
        shape: (slices, rows, columns): inferior to superior, anterior to posterior, left and right.
        tumour: whether a mass of label 4, darker than white matter, grows in one hemisphere.

    Returns:
        The image (*S) float32 >= 0 in arbitrary scanner units, 0 outside the brain, and the label (*S) uint8, see
        `BRAIN_CLASSES`.
    """
    anatomy = _draw_brain_anatomy(rng, tumour)
    label, *_ = _label_brain(rng, shape, anatomy)
    grain = _smooth_noise(rng, shape, (shape[0], max(2, shape[1] // 3), max(2, shape[2] // 3)))
    clean = _T1[label] * (1 + 0.035 * grain)
    gain, bias, noise = rng.uniform(500, 1500), rng.uniform(0.05, 0.11), rng.uniform(0.018, 0.035)
    image = _scan(rng, clean, 0.7, bias, noise)
    # Skull stripping cuts at the brain's surface, after the scan.
    return np.float32(gain) * image * (label > 0), label


# ----------------------------------------------------------------------------------------------------- LGG: head, 3 channels


def _paint_head(canvas: _Canvas, z: float, grain: np.ndarray, fat: float) -> None:
    """Paints scalp, skull, dura and, below the brain, muscle and orbits; the brain goes on top."""
    x, y, side = canvas.x, canvas.y, np.abs(canvas.x)
    radii = tuple(radius + 13 for radius in _CEREBRUM_RADII)
    scalp = _measure_ellipsoid(x * (1 - 0.0012 * y), y, max(z, 4.0), _CEREBRUM_CENTRE, radii)
    if z < -12:  # the face and the nape are narrower than the vault
        scalp = np.maximum(scalp, _measure_ellipse(x, y, 0, 4, 79 + 0.5 * (z + 12), 97))
    canvas.paint(scalp, 0.35 * fat)
    canvas.paint(scalp + 1.3, fat * (1 + 0.08 * grain))
    canvas.paint(scalp + 5.0, 0.04)  # outer table, diploe, inner table
    canvas.paint(scalp + 6.6, 0.45 * fat)
    canvas.paint(scalp + 9.0, 0.04)
    canvas.paint(scalp + 11.0, 0.08 if z > -16 else 0.16 + 0.03 * grain)
    if z < -18:
        orbit = _measure_ellipsoid(side, y, z, (27, -66, -34), (16, 22, 17))
        canvas.paint(np.maximum(orbit, scalp + 5.0), 0.8 * fat)
        canvas.paint(_measure_ellipsoid(side, y, z, (28, -72, -34), (11.5, 12, 12)), 0.12)


def _draw_lgg(rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
    """Returns image (*S, 3) uint8 - pre-contrast, FLAIR, post-contrast - and mask (*S) bool of the tumour."""
    anatomy = _draw_brain_anatomy(rng, tumour=True)
    label, mass, heights, x, y = _label_brain(rng, shape, anatomy)
    grain = _smooth_noise(rng, shape, (shape[0], max(2, shape[1] // 3), max(2, shape[2] // 3)))
    patchy = _smooth_noise(rng, shape, (6, shape[1] // 10, shape[2] // 10))
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
            canvas = _Canvas(x, y, pixel_mm)
            _paint_head(canvas, float(z), grain[index], fat)
            image[index] = np.where(label[index] > 0, brain[index], canvas.image)
        channels.append(_scan(rng, image, 0.75, rng.uniform(0.04, 0.09), rng.uniform(0.010, 0.018)))
    image = np.stack(channels, axis=-1) * rng.uniform(0.85, 1.1)
    return np.clip(image * 255, 0, 255).round().astype(np.uint8), label == TUMOUR


# ------------------------------------------------------------------------------------------------------------- writers


def _write_once(root: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a sibling folder and renames it to `root`, so that a killed run leaves no half data set behind."""
    root = Path(root)
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        part = Path(folder) / root.name
        part.mkdir()
        fill(part)
        try:
            part.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process wrote the same files meanwhile
                raise
    return root


def _check_counts(subjects: tuple[int, ...], slices: int) -> None:
    """Raises ValueError unless there is at least one slice and no count is negative."""
    if len(subjects) not in (1, 3) or min(subjects) < 0:
        raise ValueError(f"Expected `subjects` >= 0, one number for each of train, validate and test. Received: {subjects}.")
    if slices < 1:
        raise ValueError(f"Expected `slices` >= 1. Received: {slices}.")


def _list_subjects(subjects: tuple[int, int, int]) -> list[tuple[str, int]]:
    """Returns (split, index) of each subject; indices interleave, so that a larger split leaves the other ones alone."""
    return [
        (split, 3 * number + offset) for offset, (split, count) in enumerate(zip(SPLITS, subjects, strict=True)) for number in range(count)
    ]


def _make_split_folders(folder: Path, stem: str) -> None:
    """Makes the folders of images and of masks of every split, those without subjects too."""
    for split in SPLITS:
        (folder / f"{stem}_{split}").mkdir()
        (folder / f"{stem}_seg_{split}").mkdir()


def _write_nifti(path: Path, array: np.ndarray) -> None:
    """Writes `array` with an identity affine; without a time stamp, so that equal arrays give equal files."""
    image = nib.Nifti1Image(array, np.eye(4), dtype=array.dtype)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_picture(path: Path, array: np.ndarray) -> None:
    """Writes uint8 (height, width) or RGB (height, width, 3) in the format that the name ends in."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def write_hipmri(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes pelves as HipMRI 2-D slices: `keras_slices_train/case_005_week_1_slice_0.nii.gz` and its `seg_` twin.

    The quirks of the real set are there: scans of 144 columns, trailing axes of 1, four image and two label dtypes, patients
    of two weeks. `slice_0` is the lowest.

    Args:
        root: folder to make; one that exists is returned untouched.
        seed: with the subject's number the only source of randomness.
        subjects: patients in train, validate and test. More of them leave the earlier ones as they are.
        slices: slices of each scan.

    Returns:
        `root`.

    Raises:
        ValueError: if a count is negative or `slices` is below 1.
    """
    _check_counts(subjects, slices)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_slices")
        for split, index in _list_subjects(subjects):
            rng = np.random.default_rng([seed, index])
            anatomy = _draw_pelvis_anatomy(rng)
            shape = (slices, 256, 144 if index % 5 == 3 else 128)
            image_type = (np.float64, np.int16, np.uint16, np.float32)[index % 4]
            label_type = (np.uint8, np.float64)[index // 2 % 2]
            for week in range(1, 3 if index % 4 == 0 else 2):
                image, label = _render_pelvis(anatomy, rng, shape)
                image = (image if np.issubdtype(image_type, np.floating) else image.round()).astype(image_type)
                if index % 5 == 2:
                    image, label = image[..., None], label[..., None]
                for number in range(slices):
                    name = f"{5 + index:03d}_week_{week}_slice_{number}.nii.gz"
                    _write_nifti(folder / f"keras_slices_{split}" / f"case_{name}", image[number])
                    _write_nifti(folder / f"keras_slices_seg_{split}" / f"seg_{name}", label[number].astype(label_type))

    return _write_once(root, fill)


def write_oasis(root: Path, *, seed: int = 42, subjects: tuple[int, int, int] = (10, 2, 3), slices: int = 16) -> Path:
    """Writes brains as OASIS slices: `keras_png_slices_train/case_001_slice_0.nii.png` and its `seg_` twin.

    Pictures are 8-bit grey, 256x256, anterior to the right as in the real set; masks hold 0, 85, 170, 255. Arguments, result
    and errors are those of `write_hipmri`.
    """
    _check_counts(subjects, slices)

    def fill(folder: Path) -> None:
        _make_split_folders(folder, "keras_png_slices")
        for split, index in _list_subjects(subjects):
            image, label = draw_brain(np.random.default_rng([seed, index]), (slices, 256, 256))
            image = np.clip(image * (195 / np.percentile(image, 99.8)), 0, 255).round().astype(np.uint8)
            image, label = (np.rot90(array, -1, axes=(1, 2)) for array in (image, label * np.uint8(85)))
            for number in range(slices):
                name = f"{1 + index:03d}_slice_{number}.nii.png"
                _write_picture(folder / f"keras_png_slices_{split}" / f"case_{name}", image[number])
                _write_picture(folder / f"keras_png_slices_seg_{split}" / f"seg_{name}", label[number])

    return _write_once(root, fill)


def write_lgg(root: Path, *, seed: int = 42, subjects: int = 15, slices: int = 16) -> Path:
    """Writes heads with a glioma as LGG: `TCGA_XX_NNNN_YYYYMMDD/TCGA_XX_NNNN_YYYYMMDD_1.tif` and `..._1_mask.tif`.

    Pictures are 256x256x3 uint8 in the order pre-contrast, FLAIR, post-contrast, with scalp and skull; masks hold 0 and 255,
    and about half of them are empty. Slices count from 1, the lowest.

    `subjects` is one number, as the set has no official split; other arguments, result and errors are those of `write_hipmri`.
    """
    _check_counts((subjects,), slices)

    def fill(folder: Path) -> None:
        for index in range(subjects):
            rng = np.random.default_rng([seed, index])
            image, mask = _draw_lgg(rng, (slices, 256, 256))
            site = ("CS", "DU", "FG", "HT")[index % 4]
            case_id = f"TCGA_{site}_{9001 + index}_{rng.integers(1990, 2005)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
            (folder / case_id).mkdir()
            for number in range(slices):
                _write_picture(folder / case_id / f"{case_id}_{number + 1}.tif", image[number])
                _write_picture(folder / case_id / f"{case_id}_{number + 1}_mask.tif", mask[number] * np.uint8(255))

    return _write_once(root, fill)
