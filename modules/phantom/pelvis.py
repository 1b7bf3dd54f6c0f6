"""A male pelvis drawn by formula: ellipses whose centre and radii follow key heights, bent by smooth noise."""

import cv2
import numpy as np

from modules.phantom._canvas import Canvas, make_grid, measure_ellipse, scan, smooth_noise

PELVIS_CLASSES = ("background", "body", "bone", "bladder", "rectum", "prostate")
BODY, BONE, BLADDER, RECTUM, PROSTATE = range(1, 6)

# Heights covered by a stack, whatever its number of slices: perineum to sacrum.
_PELVIS_RANGE_MM = (-48.0, 62.0)

# Extent of the rows. A stack narrower than it is high shows the strip between the femoral heads, enlarged.
_FULL_FIELD_MM, _STRIP_FIELD_MM = 358.0, 318.0

# T2-weighted brightness of tissue, relative to urine.
_T2 = {"fat": 0.74, "muscle": 0.21, "bone": 0.56, "vessel": 0.05, "vein": 0.95, "gland": 0.62, "bulb": 0.66}

# Shapes are painted in this order, each row on both sides of the midline. A row is (tissue, [(z, centre x, centre y, radius x, radius
# y, degrees), ...]). Between key heights every number is interpolated.
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


def _get_field_mm(shape: tuple[int, int, int]) -> float:
    """Returns the extent of the rows of a stack (slices, rows, columns)."""
    return _FULL_FIELD_MM if shape[2] >= shape[1] else _STRIP_FIELD_MM


def get_pelvis_spacing(shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Returns the voxel size in mm of a pelvis drawn at `shape`, both (slices, rows, columns)."""
    pixel_mm = _get_field_mm(shape) / shape[1]
    return (_PELVIS_RANGE_MM[1] - _PELVIS_RANGE_MM[0]) / shape[0], pixel_mm, pixel_mm


def draw_pelvis_anatomy(rng: np.random.Generator) -> dict[str, float]:
    """Draws the anatomy that stays the same from one week of a patient to the next."""
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


def _paint_body(canvas: Canvas, z: float, anatomy: dict[str, float], fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints skin, subcutaneous fat with its strands, muscle with its seams, and everything in `_PELVIS_SHAPES`."""
    x, y, side = canvas.x, canvas.y, np.abs(canvas.x)
    girth = anatomy["girth"] + 0.06 * z
    outline = measure_ellipse(x, y, 0, 11, 160 + girth, 103 + girth)
    if z < 12:  # natal cleft
        outline = np.maximum(outline, -measure_ellipse(x, y, 0, 118, 3.5, 16 - 0.5 * z))
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
        distance = measure_ellipse(side, y, *(np.interp(z, table[0], row) for row in table[1:]))
        if tissue == "bone":
            canvas.paint(distance - 1.4, 0.42)  # cartilage and periosteal fat part bone from muscle
            canvas.paint(distance, 0.04, BONE)
            canvas.paint(distance + 2.4, anatomy["marrow"] * (_T2["bone"] + 0.07 * fine))
        elif tissue == "gland":
            canvas.paint(distance, _T2["gland"] + 0.28 * fine)
        else:
            canvas.paint(distance, _T2[tissue] + (0.08 if tissue == "fat" else 0.025) * fine)
    if z < 14:  # fibrous disc of the symphysis
        canvas.paint(measure_ellipse(x, y, 0, -44, 1.8, 10 - 0.3 * abs(z + 6)), 0.10)


def _paint_bladder(canvas: Canvas, z: float, week: dict[str, float], fine: np.ndarray) -> None:
    """Paints bright urine inside a dark wall. The wall belongs to the bladder."""
    height = (z - week["bladder_z"] - 11) / week["bladder_z"]
    if abs(height) >= 1:
        return
    width = np.sqrt(1 - height * height)
    distance = measure_ellipse(canvas.x, canvas.y, week["bladder_shift"], -12, week["bladder_x"] * width, week["bladder_y"] * width)
    canvas.paint(distance, 0.16 + 0.02 * fine, BLADDER)
    canvas.paint(distance + week["wall"], week["urine"] + 0.02 * fine)


def _paint_rectum(canvas: Canvas, z: float, anatomy: dict, week: dict, fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints a wall with mucosa, stool of mixed brightness and gas, which rises to the front of a lying patient."""
    centre_y, radius_x, radius_y = (np.interp(z, _RECTUM_PATH[:, 0], row) for row in _RECTUM_PATH.T[1:])
    centre_x = anatomy["rectum_x"] * np.sin((z + 48) / 30)
    fill = week["rectum"] if z > -20 else 1.0
    distance = measure_ellipse(canvas.x, canvas.y, centre_x, centre_y, radius_x * fill, radius_y * fill)
    canvas.paint(distance, 0.25 + 0.02 * fine, RECTUM)
    if z < -22:  # the anal canal is closed: muscle around bright mucosa
        canvas.paint(distance + 4.5, 0.50 + 0.08 * fine)
        return
    canvas.paint(distance + 2.8, 0.60)
    canvas.paint(distance + 4.2, 0.44 + 0.07 * fine + 0.06 * seam)
    level = centre_y - radius_y * fill * week["gas"]
    canvas.paint(np.maximum(distance + 4.2, canvas.y - level - seam), 0.03)


def _paint_prostate(canvas: Canvas, z: float, anatomy: dict, fine: np.ndarray, seam: np.ndarray) -> None:
    """Paints capsule, bright peripheral zone, nodular transition zone, dark fibromuscular stroma and urethra."""
    x, y, height = canvas.x, canvas.y, z / anatomy["prostate_z"]
    if abs(height) >= 1:
        return
    width = np.sqrt(1 - height * height)
    radius_x, radius_y = anatomy["prostate_x"] * width, anatomy["prostate_y"] * width
    distance = measure_ellipse(x, y, 0, 0, radius_x, radius_y)
    # Venous plexus at both flanks.
    flank = np.maximum(distance - 5.0, np.abs(y + 2) - 0.8 * radius_y)
    canvas.paint(flank, 0.55 + 0.25 * fine)
    canvas.paint(distance, 0.10, PROSTATE)
    canvas.paint(distance + 1.6, 0.74 + 0.07 * fine)
    share = anatomy["transition"] * (1 + 0.25 * height)  # the transition zone grows towards the base
    inner = measure_ellipse(x, y, 0, -0.22 * radius_y, radius_x * share, radius_y * (share + 0.08))
    canvas.paint(inner, 0.14)
    canvas.paint(inner + 1.3, np.clip(0.40 + 0.10 * fine + 0.13 * seam, 0.12, 0.8))
    canvas.paint(measure_ellipse(x, y, 0, -0.74 * radius_y, 0.34 * radius_x, 0.20 * radius_y), 0.13)
    canvas.paint(measure_ellipse(x, y, 0, 0.05 * radius_y, 2.0, 2.6), 0.72)


def render_pelvis(anatomy: dict[str, float], rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
    """Paints one week of a patient. Bladder, rectum and the scanner change, and `anatomy` stays."""
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
    heights, x, y, pixel_mm = make_grid(shape, _get_field_mm(shape), _PELVIS_RANGE_MM)
    depth, rows, columns = shape
    steady = np.random.default_rng(int(anatomy["seed"]))  # the same bends and nodules in every week
    bend_x, bend_y = (anatomy["bend"] * smooth_noise(steady, shape, (4, 11, 6)) for _ in range(2))
    seam = smooth_noise(steady, shape, (6, max(2, rows // 12), max(2, columns // 12)))
    fine = smooth_noise(rng, shape, (depth, max(2, rows // 3), max(2, columns // 3)))
    turn = np.radians(anatomy["turn"])
    x, y = (x - anatomy["shift_x"]) / anatomy["scale"], (y + 8 - anatomy["shift_y"]) / anatomy["scale"]
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    image, label = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for index, height in enumerate(heights):
        z = float(np.clip(height + anatomy["shift_z"], *_PELVIS_RANGE_MM))
        canvas = Canvas(x + bend_x[index], y + bend_y[index], pixel_mm)
        grain, nodules = fine[index], seam[index]
        _paint_body(canvas, z, anatomy, grain, nodules)
        _paint_bladder(canvas, z, week, grain)
        _paint_rectum(canvas, z, anatomy, week, grain, nodules)
        _paint_prostate(canvas, z, anatomy, grain, nodules)
        image[index], label[index] = canvas.image, canvas.label
    return week["gain"] * scan(rng, image, 0.6, week["bias"], week["noise"]), label


def draw_pelvis(rng: np.random.Generator, shape: tuple[int, int, int] = (24, 256, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Draws a male pelvis as on axial T2-weighted MRI.

    Pixels are square. A stack as wide as it is high shows the whole pelvis (358 mm). A narrower one, as in HipMRI's slices, shows the
    strip between the femoral heads (318 mm from front to back). The slices span 110 mm at any number of slices, from the perineum to
    the sacrum. A slice may lack any class but background and body.

    Args:
        rng: Source of every draw. The same state gives the same arrays.
        shape: (slices, rows, columns): inferior to superior, anterior to posterior, left and right.

    Returns:
        The image (*S) float32 >= 0 in arbitrary scanner units and the label (*S) uint8; see `PELVIS_CLASSES`.
    """
    return render_pelvis(draw_pelvis_anatomy(rng), rng, shape)
