"""Augmentation: random parameters drawn in NumPy, and applied to a batch inside the compiled training step, in 2-D and 3-D.

`draw_parameters` is a pure function of its generator and gives a few small arrays a sample, whose shapes do not depend on what is
drawn: an effect that is not drawn has its neutral value. `apply` computes the rest - coordinates, fields, noise - through
`keras.ops` on the accelerator, without state and without random ops, so that a run replays exactly and that TensorFlow, JAX and
PyTorch augment alike. All spatial effects go through one interpolation. The effects on intensities follow the order of an
acquisition: the coil's field, the resolution, the noise, and then how the image is scaled for display.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

# Control points of the cubic B-splines along each axis, of which one lies beyond the sample on each side. Seven span four intervals,
# and are TorchIO's number for elastic deformation (Perez-Garcia et al., 2021); five span two, as smooth as a coil's field.
ELASTIC_POINTS = 7
BIAS_POINTS = 5
# A cubic B-spline deformation cannot fold where no control point moves further than this share of the distance between them, in 3-D;
# 0.48 would do in 2-D (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline functions, 2000).
FOLD_LIMIT = 0.4
# Voxels more anisotropic than this are turned within their fine plane only, as in nnU-Net: across it, there is too little to see.
ANISOTROPY = 3.0
NEUTRAL = {
    "rotation": 0, "scaling": 1, "shear": 0, "shift": 0, "elastic": 0, "bias": 0, "blur": 0, "lowres": 1, "noise": 0, "gamma": 1,
    "contrast": 1, "brightness": 0,
}  # fmt: skip
SPATIAL = ("rotation", "scaling", "shear", "shift", "elastic")


@dataclass(frozen=True)
class Effect:
    """How often an effect is drawn, and the range its strength is drawn from: uniformly, factors on a logarithmic scale.

    Attributes:
        probability: Of being drawn, for each sample.
        low: Least value.
        high: Largest value.
    """

    probability: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Augmentation:
    """Which effects are drawn, how often and how strong. By default, none.

    "Voxel" means one of the finest axis; where `spacing_mm` says that voxels are anisotropic, coarser axes change as much in mm.

    Attributes:
        flip: Probability of mirroring, for each axis on its own.
        rotation: Degrees; in plane in 2-D, about each of the three axes in 3-D. See `ANISOTROPY`.
        scaling: Factor of size, the same along all axes; above 1 enlarges.
        shear: Tangent of the angle, for each pair of axes.
        shift: Share of the extent, for each axis.
        elastic: Largest displacement of a control point along an axis, in voxels, bounded by `FOLD_LIMIT`. The field itself moves
            a voxel by a fifth to a quarter of it (standard deviation).
        bias: Largest logarithm of the multiplicative field at a control point. The field's own logarithm
            spans about three quarters of it.
        blur: Standard deviation of a Gaussian in voxels, for each axis on its own.
        lowres: Factor of the resolution, at most 1: the image is sampled down with it and up again.
        noise: Standard deviation of Gaussian noise, in standard deviations of the image.
        gamma: Exponent, on the image's own range; mean and standard deviation are restored.
        contrast: Factor of the distance from the mean.
        brightness: What is added, in standard deviations of the image.
    """

    flip: float = 0.0
    rotation: Effect = Effect()
    scaling: Effect = Effect()
    shear: Effect = Effect()
    shift: Effect = Effect()
    elastic: Effect = Effect()
    bias: Effect = Effect()
    blur: Effect = Effect()
    lowres: Effect = Effect()
    noise: Effect = Effect()
    gamma: Effect = Effect()
    contrast: Effect = Effect()
    brightness: Effect = Effect()


# "strong" is nnU-Net's default (Isensee et al., 2021; nnUNetTrainer of version 2) for rotation in 3-D, blur, low resolution, gamma and
# contrast. It differs in this: 2-D slices turn no further than volumes; sizes change less, as a whole slice has no margin that could
# come in; brightness is added, not multiplied, which on normalised images would be contrast again; noise is stronger; gamma is
# never inverted; shear and shift are additional, as are elastic deformation and bias field, both after TorchIO. "light" has no effect
# that could hide a small structure.
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "light": Augmentation(
        flip=0.5,
        rotation=Effect(0.3, -10, 10),
        scaling=Effect(0.3, 0.9, 1.1),
        gamma=Effect(0.2, 0.85, 1.2),
        contrast=Effect(0.2, 0.9, 1.1),
        brightness=Effect(0.2, -0.1, 0.1),
    ),
    "strong": Augmentation(
        flip=0.5,
        rotation=Effect(0.2, -30, 30),
        scaling=Effect(0.2, 0.8, 1.25),
        shear=Effect(0.1, -0.1, 0.1),
        shift=Effect(0.1, -0.05, 0.05),
        elastic=Effect(0.2, 2, 8),
        bias=Effect(0.2, 0.3, 1.5),
        blur=Effect(0.2, 0.5, 1.0),
        lowres=Effect(0.25, 0.5, 1.0),
        noise=Effect(0.1, 0.0, 0.2),
        gamma=Effect(0.3, 0.7, 1.5),
        contrast=Effect(0.15, 0.75, 1.25),
        brightness=Effect(0.15, -0.25, 0.25),
    ),
}


def list_effects(augmentation: Augmentation | None) -> dict[str, Augmentation]:
    """Splits an augmentation into its effects, each alone, certain, and as strong as it gets; for pictures of them."""
    if augmentation is None:
        return {}
    effects = {"flip": Augmentation(flip=1.0)} if augmentation.flip else {}
    for name, neutral in NEUTRAL.items():
        effect = getattr(augmentation, name)
        if effect.probability:
            effects[name] = Augmentation(**{name: _strongest(effect, neutral)})
    return effects


def draw_parameters(
    rng: np.random.Generator,
    augmentation: Augmentation,
    shape: Sequence[int],
    channels: int,
    *,
    spacing_mm: Sequence[float] | None = None,
    flips: Sequence[int] | None = None,
    left_right: int | None = None,
) -> dict[str, np.ndarray]:
    """Draws what `apply` does to one sample.

    Which arrays there are depends on `augmentation` alone: those of effects whose probability is 0 are left out, and `apply` then
    spends no time on them. How many numbers are drawn does not depend on it, so that a generator in the same state draws the same
    rotation whatever else is switched on.

    Args:
        rng: Source of every draw.
        augmentation: What may be drawn.
        shape: `P` of the sample, of rank `r`, 2 or 3.
        channels: `C` of the image.
        spacing_mm: Of the voxels; by default they are as long as wide. With it, shapes turn rigidly in mm.
        flips: Axes that may be mirrored; by default all. Where classes have sides and it is not known which axis runs from left to
            right, none should be.
        left_right: The axis that runs from left to right, if there is one.

    Returns:
        Of float32, if not said otherwise: `matrix` `(r, r + 1)` from voxels of the result to voxels of the sample, both counted
        from the middle; `mirrored` `()` int32, 1 where left and right changed places; `elastic` `(7, ..., 7, r)` displacements of
        control points in voxels; `bias` `(5, ..., 5)` logarithms at control points; `blur` `(r,)` in voxels; `lowres` `(r,)`;
        `noise`, `gamma`, `contrast` and `brightness` `(C,)`; `noise_seed` `(2,)` int32.

    Raises:
        ValueError: If the rank is not 2 or 3, or if an axis or the spacing does not fit it.
    """
    rank = len(shape)
    if rank not in (2, 3):
        raise ValueError(f"Expected `shape` of a slice or a volume, rank 2 or 3. Received: {tuple(shape)}.")
    flips = tuple(range(rank)) if flips is None else tuple(flips)
    if not set(flips) <= set(range(rank)) or left_right not in (None, *range(rank)):
        raise ValueError(f"Expected `flips` and `left_right` among the axes of {tuple(shape)}. Received: {flips}, {left_right}.")
    spacing = np.ones(rank) if spacing_mm is None else np.asarray(spacing_mm, np.float64)
    if spacing.shape != (rank,) or not (spacing > 0).all():
        raise ValueError(f"Expected `spacing_mm` of {rank} positive lengths. Received: {spacing_mm}.")
    finest = spacing.min() / spacing

    mirrored = (rng.random(rank) < augmentation.flip) & np.isin(np.arange(rank), flips)
    matrix = _draw_matrix(rng, augmentation, np.asarray(shape), spacing)
    matrix[mirrored] *= -1
    drawn = {"matrix": matrix, "mirrored": np.int32(left_right is not None and mirrored[left_right])}
    most = np.minimum(_draw(rng, augmentation, "elastic") * finest, FOLD_LIMIT * (np.asarray(shape) - 1) / (ELASTIC_POINTS - 3))
    drawn["elastic"] = rng.uniform(-1, 1, (ELASTIC_POINTS,) * rank + (rank,)) * most
    drawn["bias"] = rng.uniform(-1, 1, (BIAS_POINTS,) * rank) * _draw(rng, augmentation, "bias")
    drawn["blur"] = _draw(rng, augmentation, "blur", rank) * finest
    # What is sampled down is the finest axis; one that is coarser than the result already stays as it is.
    drawn["lowres"] = np.minimum(_draw(rng, augmentation, "lowres") / finest, 1)
    for name in ("noise", "gamma", "contrast", "brightness"):
        drawn[name] = _draw(rng, augmentation, name, channels)
    drawn["noise_seed"] = rng.integers(-(2**31), 2**31, 2).astype(np.int32)

    kept = {name for name in NEUTRAL if getattr(augmentation, name).probability > 0}
    if augmentation.flip > 0 or kept.intersection(SPATIAL):
        kept |= {"matrix", "mirrored"}
    if "noise" in kept:
        kept.add("noise_seed")
    return {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in drawn.items() if name in kept}


def apply(image, label, parameters: dict, *, left_right_swaps: Sequence[tuple[int, int]] = ()):
    """Augments a batch; meant to be called inside the compiled training step.

    Labels are taken from the nearest voxel, so that no new ones appear. What comes from outside the sample is background there,
    and the channel's darkest value in the image.

    Args:
        image: `(B, *P, C)` float32 of any scale: z-scores or [0, 1].
        label: `(B, *P)` integers.
        parameters: From `draw_parameters`, stacked: each array has `B` in front.
        left_right_swaps: Pairs of classes that change places where left and right do.

    Returns:
        The two, with shapes and types as they were. With neutral parameters they are the same to the last bit.

    Raises:
        ValueError: If the image or a parameter comes in half precision, in which places are off by tenths of a voxel.
    """
    for name, value in {"image": image, **parameters}.items():
        if (dtype := keras.backend.standardize_dtype(value.dtype)) not in ("float32", "int32"):
            raise ValueError(f"Expected `{name}` in float32. Received: {dtype}. Give the model that augments `autocast=False`.")
    axes = tuple(range(1, len(image.shape) - 1))
    # Of the sample as it came: an effect's strength shall not depend on how much of the sample another has moved outside.
    deviation = ops.std(image, axis=axes, keepdims=True) if {"noise", "brightness"} & set(parameters) else None
    strength = {
        name: ops.reshape(parameters[name], (-1, *(1 for _ in axes), image.shape[-1]))
        for name in ("noise", "gamma", "contrast", "brightness")
        if name in parameters
    }
    if "matrix" in parameters:
        image, label = _warp(image, label, parameters["matrix"], parameters.get("elastic"))
        if left_right_swaps:
            label = _swap(label, parameters["mirrored"], left_right_swaps)
    # Each is written as the image plus a change, which is 0 for neutral parameters.
    if "bias" in parameters:
        field = _make_field(parameters["bias"][..., None], image.shape[1:-1])[:, 0]
        field = ops.exp(field - ops.mean(field, axis=axes, keepdims=True))[..., None]
        image = image + (image - ops.min(image, axis=axes, keepdims=True)) * (field - 1)
    if "blur" in parameters or "lowres" in parameters:
        image = _smooth(image, parameters.get("blur"), parameters.get("lowres"))
    if "noise" in parameters:
        image = image + _make_noise(parameters["noise_seed"], image.shape[1:]) * strength["noise"] * deviation
    if "gamma" in parameters:
        image = ops.where(strength["gamma"] == 1, image, _bend(image, strength["gamma"], axes))
    if "contrast" in parameters:
        image = image + (image - ops.mean(image, axis=axes, keepdims=True)) * (strength["contrast"] - 1)
    if "brightness" in parameters:
        image = image + strength["brightness"] * deviation
    return image, label


def _strongest(effect: Effect, neutral: float) -> Effect:
    """The effect, certain, at the end of its range that is farther from doing nothing."""
    value = max(effect.high, effect.low, key=(lambda end: abs(math.log(end / neutral))) if neutral else abs)
    return Effect(1.0, value, value)


def _draw(rng: np.random.Generator, augmentation: Augmentation, name: str, size: int | tuple[int, ...] = ()) -> np.ndarray:
    """Values of an effect, or its neutral one; the generator moves on by as much in both cases."""
    effect, neutral = getattr(augmentation, name), NEUTRAL[name]
    chance, share = rng.random(), rng.random(size)
    if chance >= effect.probability:
        return np.full(size, float(neutral))
    if neutral:
        return effect.low ** (1 - share) * effect.high**share
    return effect.low + (effect.high - effect.low) * share


def _draw_matrix(rng: np.random.Generator, augmentation: Augmentation, shape: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """`(r, r + 1)`: rotation, shear and scaling in mm, then the shift, all in voxels from the middle."""
    rank = len(shape)
    linear = np.eye(rank)
    planes = [(0, 1)] if rank == 2 else [(1, 2), (2, 0), (0, 1)]
    for (first, second), degrees in zip(planes, _draw(rng, augmentation, "rotation", len(planes)), strict=True):
        if max(spacing[first] / spacing[second], spacing[second] / spacing[first]) <= ANISOTROPY:
            turn = np.eye(rank)
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            turn[[first, first, second, second], [first, second, first, second]] = cosine, -sine, sine, cosine
            linear = linear @ turn
    shear = _draw(rng, augmentation, "shear", (rank, rank))
    linear = linear @ (np.eye(rank) + shear * (1 - np.eye(rank))) / _draw(rng, augmentation, "scaling")
    shift = _draw(rng, augmentation, "shift", rank) * shape
    return np.concatenate([linear * spacing / spacing[:, None], shift[:, None]], axis=1)


def _warp(image, label, matrix, elastic):
    """Moves image and label: linear interpolation of the one, nearest voxel of the other, in one pass over the coordinates.

    The corners are gathered one after the other from the flattened batch. That is the fastest of what was tried on a CPU:
    `ops.image.map_coordinates` takes up to eight times as long (it treats batch and channel as axes too), and a product of
    matrices along each axis, although faster, can neither turn nor bend.
    """
    shape, channels = image.shape[1:-1], image.shape[-1]
    rank = len(shape)
    steps = [math.prod(shape[axis + 1 :]) for axis in range(rank)]
    ones = (1,) * rank
    bend = None if elastic is None else _make_field(elastic, shape)
    index = ops.reshape(ops.arange(ops.shape(image)[0], dtype="int32") * math.prod(shape), (-1, *ones))
    nearest, inside, weights = 0, True, []
    for axis, size in enumerate(shape):
        rows = ops.reshape(matrix[:, axis], (-1, *ones, rank + 1))
        place = rows[..., rank]
        for other, length in enumerate(shape):
            line = ops.arange(length, dtype="float32") - (length - 1) / 2
            place = place + rows[..., other] * ops.reshape(line, [-1 if axis == other else 1 for axis in range(rank)])
        if bend is not None:
            place = place + bend[:, axis]
        # A voxel reaches half its length beyond its centre, for image and label alike.
        inside = ops.logical_and(inside, ops.abs(place) < size / 2)
        place = ops.clip(place + (size - 1) / 2, 0, size - 1)
        low = ops.floor(ops.minimum(place, max(size - 2, 0)))
        share = place - low
        weights.append((1 - share, share))
        index = index + ops.cast(low, "int32") * steps[axis]
        nearest = nearest + ops.cast(share >= 0.5, "int32") * steps[axis]
    table = ops.reshape(image, (-1,) if channels == 1 else (-1, channels))

    def mix(axis: int, offset: int):
        if axis == rank:
            return _gather(table, index + offset)
        near, far = mix(axis + 1, offset), mix(axis + 1, offset + (steps[axis] if shape[axis] > 1 else 0))
        low, high = weights[axis] if channels == 1 else (weight[..., None] for weight in weights[axis])
        # Not near + share * (far - near), which does not end at `far` exactly.
        return near * low + far * high

    moved = mix(0, 0)
    moved = moved[..., None] if channels == 1 else moved
    darkest = ops.min(image, axis=tuple(range(1, rank + 1)), keepdims=True)
    return ops.where(inside[..., None], moved, darkest), ops.where(inside, _gather(ops.reshape(label, (-1,)), index + nearest), 0)


def _gather(table, index):
    """Rows of a table. The plain index of JAX and PyTorch spares the checks of `ops.take`, which there cost more than the reading."""
    return ops.take(table, index, axis=0) if keras.backend.backend() == "tensorflow" else table[index]


def _swap(label, mirrored, pairs: Sequence[tuple[int, int]]):
    """Exchanges the classes of each pair in the samples that are mirrored."""
    order = np.arange(max(max(pair) for pair in pairs) + 1)
    for first, second in pairs:
        order[first], order[second] = second, first
    swapped = _gather(ops.convert_to_tensor(order, dtype=label.dtype), ops.cast(ops.clip(label, 0, len(order) - 1), "int32"))
    chosen = ops.reshape(mirrored, (-1, *(1 for _ in label.shape[1:]))) > 0
    return ops.where(ops.logical_and(chosen, label < len(order)), swapped, label)


def _contract(values, matrices: Sequence):
    """Multiplies each spatial axis of `(B, *g, C)` by a matrix `(n, g)`, or by one a sample `(B, n, g)`; returns `(B, C, *n)`.

    The axis in front is the one that is multiplied, and goes to the end: after all of them, the channels are in front.
    """
    for matrix in matrices:
        shape = values.shape
        values = ops.swapaxes(ops.reshape(values, (-1, shape[1], math.prod(shape[2:]))), 1, 2)
        values = ops.reshape(ops.matmul(values, ops.swapaxes(matrix, -1, -2)), (-1, *shape[2:], matrix.shape[-2]))
    return values


def _make_field(points, shape: Sequence[int]):
    """Cubic B-splines `(B, C, *P)` of control points `(B, g, ..., g, C)`, of which one lies beyond the sample on each side."""
    matrices = []
    for size in shape:
        number = points.shape[1]
        distance = np.abs(np.linspace(1, number - 2, size)[:, None] - np.arange(number))
        inner, outer = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
        matrices.append(ops.convert_to_tensor(np.where(distance < 1, inner, outer), dtype="float32"))
    return _contract(points, matrices)


def _smooth(image, blur, lowres):
    """Blurs, and samples down and up again; both are one matrix for each axis."""
    rank = len(image.shape) - 2
    blur = ops.zeros_like(lowres) if blur is None else blur
    lowres = ops.ones_like(blur) if lowres is None else lowres
    smooth = _contract(image, [_make_smoothing(size, blur[:, axis], lowres[:, axis]) for axis, size in enumerate(image.shape[1:-1])])
    smooth = ops.moveaxis(smooth, 1, -1)
    # Accelerators round the factors of a product, be they 1 or not.
    changed = ops.reshape(ops.any(ops.logical_or(blur > 0, lowres < 1), axis=-1), (-1, *(1 for _ in range(rank + 1))))
    return ops.where(changed, smooth, image)


def _make_smoothing(size: int, blur, lowres):
    """Matrices `(B, n, n)` with rows that sum to 1: Gaussian averages at the coarse voxels, and linear interpolation between these.

    The average over a coarse voxel of `w` fine ones is taken with a Gaussian of the same variance, `(w * w - 1) / 12`, added to that
    of the blur.
    """
    coarse = ops.maximum(ops.round(lowres * size), 1.0)[:, None]
    factor = coarse / size
    variance = ops.square(blur)[:, None] + (1 / ops.square(factor) - 1) / 12
    line = ops.arange(size, dtype="float32")
    place = ops.clip((line + 0.5) * factor - 0.5, 0, coarse - 1)
    low = ops.floor(place)

    def average(voxel):
        distance = ((voxel + 0.5) / factor - 0.5)[..., None] - line
        # The least variance keeps weights finite; with it, those of the neighbours are exactly 0 in float32.
        return ops.softmax(-ops.square(distance) / (2 * ops.maximum(variance, 0.0025))[..., None], axis=-1)

    share = (place - low)[..., None]
    return average(low) * (1 - share) + average(ops.minimum(low + 1, coarse - 1)) * share


def _bend(image, gamma, axes: tuple[int, ...]):
    """Raises the image, brought to [0, 1], to a power, and restores its mean and standard deviation."""
    darkest = ops.min(image, axis=axes, keepdims=True)
    extent = ops.max(image, axis=axes, keepdims=True) - darkest
    bent = ops.power((image - darkest) / ops.where(extent > 0, extent, 1.0), gamma)
    deviation = ops.std(bent, axis=axes, keepdims=True)
    scale = ops.std(image, axis=axes, keepdims=True) / ops.where(deviation > 0, deviation, 1.0)
    return (bent - ops.mean(bent, axis=axes, keepdims=True)) * scale + ops.mean(image, axis=axes, keepdims=True)


def _make_noise(seed, shape: Sequence[int]):
    """Standard normal values `(B, *shape)`, a function of `seed` `(B, 2)` and the voxel's number alone.

    A counter-based generator in the sense of Salmon et al. (2011): each number is hashed with the two seeds. `keras.random` would not
    do: its seeds belong to a batch, not to a sample, on PyTorch they leave the device, and every backend draws other values. A field
    drawn once, and rolled and flipped for each sample, would be learnt. The hash uses what wraps around alike everywhere, int32: JAX
    has no 64 bits by default and PyTorch hardly any unsigned arithmetic.
    """
    number = math.prod(shape)
    half = -(-number // 2)
    counter = ops.arange(half, dtype="int32")[None]
    bits = _hash(ops.bitwise_xor(_hash(counter + seed[:, :1]), seed[:, 1:]))
    # Box and Muller: 16 bits for the radius, which then reaches 4.85, and 16 for the angle; two values of each.
    uniform = ops.cast(_shift_right(bits, 16), "float32")
    radius = ops.sqrt(-2.0 * ops.log((uniform + 0.5) / 65536))
    angle = ops.cast(ops.bitwise_and(bits, 0xFFFF), "float32") * (2 * math.pi / 65536)
    values = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)
    return ops.reshape(values[:, :number], (-1, *shape))


def _hash(values):
    """A bijection of 32 bits that changes about half of them for each bit changed (Wellons, hash-prospector, bias 0.11)."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):
        values = ops.bitwise_xor(values, _shift_right(values, shift)) * factor
    return ops.bitwise_xor(values, _shift_right(values, 15))


def _shift_right(values, bits: int):
    """As for unsigned integers: zeros come in from the left, not the sign."""
    return ops.bitwise_and(ops.right_shift(values, bits), (1 << (32 - bits)) - 1)
