"""Augmentation, first half: the draws for each sample, in NumPy. `modules.model.augment` applies them.

`draw_parameters` is a pure function of its generator. It gives a few small arrays for each sample. Their shapes do not depend on the
draw: an effect that is not drawn has its neutral value. The effects on intensities follow the order of an acquisition: the contrast of
the tissues, the coil's field, the resolution, the noise, then the scaling for display.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modules.data.regions import IGNORE

# Control points of the cubic B-splines along each axis; one lies beyond the sample on each side. Seven span four intervals; TorchIO
# uses seven for elastic deformation (Perez-Garcia et al., 2021). Five span two intervals, as smooth as a coil's field.
ELASTIC_POINTS = 7
BIAS_POINTS = 5
# A cubic B-spline deformation in 3-D cannot fold if no control point moves further than this share of their distance. In 2-D a share
# of 0.48 would do (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline functions, 2000).
FOLD_LIMIT = 0.4
# Voxels more anisotropic than this turn only within their fine plane, as in nnU-Net: across it there is too little to see.
ANISOTROPY = 3.0
NEUTRAL = {
    "rotation": 0, "scaling": 1, "shear": 0, "shift": 0, "elastic": 0, "bias": 0, "blur": 0, "lowres": 1, "noise": 0, "gamma": 1,
    "contrast": 1, "brightness": 0,
}  # fmt: skip
SPATIAL = ("rotation", "scaling", "shear", "shift", "elastic")
# A synthetic contrast gives each value of a label map a curve of its own, from the sample's intensities to new ones in (0, 1].
TISSUES, CURVE_POINTS = 256, 6
# The curve of a class spans at most this much, so that the class stays one tissue. That of the background spans everything.
TISSUE_SPREAD = 0.5
# Largest standard deviation of the grain within a tissue, and the darkest tissue. Air has no signal: 0.
TEXTURE, DARKEST_TISSUE = 0.1, 0.1
# In most sequences and wherever a brain was cut out the darkest background is air; in the others it is any tissue.
AIR_SHARE = 0.5


@dataclass(frozen=True)
class Effect:
    """The probability of an effect and the range of its strength. Strengths are drawn uniformly, factors on a logarithmic scale.

    Attributes:
        probability: Probability of the effect, for each sample.
        low: Least value.
        high: Largest value.
    """

    probability: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Augmentation:
    """The effects that may be drawn, with their probabilities and strengths; none by default.

    A voxel here is a voxel of the finest axis. Where `spacing_mm` says that voxels are anisotropic, coarser axes change as much in
    mm.

    Attributes:
        flip: Probability of mirroring, for each axis on its own.
        rotation: Degrees: in the plane in 2-D, about each of the three axes in 3-D. See `ANISOTROPY`.
        scaling: Factor of size, the same along all axes; above 1 enlarges.
        shear: Tangent of the angle, for each pair of axes.
        shift: Share of the extent, for each axis.
        elastic: Largest displacement of a control point along an axis, in voxels, bounded by `FOLD_LIMIT`. The field itself moves a
            voxel by a fifth to a quarter of it (standard deviation).
        bias: Largest logarithm of the multiplicative field at a control point. The field's own logarithm spans about three quarters
            of it.
        blur: Standard deviation of a Gaussian in voxels, for each axis on its own.
        lowres: Factor of the resolution, at most 1: the image is sampled down by it and up again.
        noise: Standard deviation of Gaussian noise, in standard deviations of the image.
        gamma: Exponent, on the image's own range. Mean and standard deviation are restored.
        contrast: Factor of the distance from the mean.
        brightness: Addend, in standard deviations of the image.
        synthetic: Probability that a sample is drawn anew from its label map, in a contrast that no scanner need have.
    """

    flip: float = 0.0
    synthetic: float = 0.0
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


# "strong" follows nnU-Net's default (Isensee et al., 2021; nnUNetTrainer of version 2) for rotation in 3-D, blur, low resolution,
# gamma and contrast. It differs in these points. 2-D slices turn no further than volumes. Sizes change less, because a whole slice
# has no margin that could come in. Brightness is added: on normalised images a factor would be contrast again. Noise is stronger.
# Gamma is never inverted. Shear and shift are additional, as are elastic deformation and bias field, both after TorchIO. "full" leaves
# out shear, shift and elastic deformation, as nnU-Net does; plans of long trainings take it, and presets keep "strong". "light" has
# no effect that could hide a small structure. "mild" does not flip: bodies do not lie upside down, and a short training learns faster
# where front and back stay apart. Its bias field, gamma and contrast stand for other scanners and coils. "synthetic" follows the idea
# of SynthSeg (Billot et al., 2023): half of its samples have random intensities for each class, so that a network learns shapes and not
# one contrast. It does not flip either. Its blur and low resolution are frequent, because edges drawn from a label map are too sharp.
_STRONG = Augmentation(
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
)
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "mild": Augmentation(
        rotation=Effect(0.3, -15, 15),
        scaling=Effect(0.3, 0.85, 1.15),
        bias=Effect(0.3, 0.3, 1.0),
        noise=Effect(0.15, 0.0, 0.15),
        gamma=Effect(0.3, 0.75, 1.35),
        contrast=Effect(0.2, 0.8, 1.2),
        brightness=Effect(0.2, -0.2, 0.2),
    ),
    "light": Augmentation(
        flip=0.5,
        rotation=Effect(0.3, -10, 10),
        scaling=Effect(0.3, 0.9, 1.1),
        gamma=Effect(0.2, 0.85, 1.2),
        contrast=Effect(0.2, 0.9, 1.1),
        brightness=Effect(0.2, -0.1, 0.1),
    ),
    "strong": _STRONG,
    "full": replace(_STRONG, shear=Effect(), shift=Effect(), elastic=Effect()),
    "synthetic": Augmentation(
        synthetic=0.5,
        rotation=Effect(0.3, -15, 15),
        scaling=Effect(0.3, 0.85, 1.15),
        bias=Effect(0.5, 0.3, 1.5),
        blur=Effect(0.5, 0.5, 1.0),
        lowres=Effect(0.5, 0.33, 1.0),
        noise=Effect(0.3, 0.0, 0.2),
        gamma=Effect(0.3, 0.7, 1.5),
        contrast=Effect(0.2, 0.8, 1.2),
        brightness=Effect(0.2, -0.2, 0.2),
    ),
}


def has_flips(name: str) -> bool:
    """Returns whether an augmentation of `AUGMENTATIONS` mirrors samples."""
    augmentation = AUGMENTATIONS[name]
    return augmentation is not None and augmentation.flip > 0


@dataclass(frozen=True)
class Drawer:
    """Draws the augmentation of one sample after another, see `draw_parameters`. It is plain data, for processes that read.

    Attributes:
        augmentation: The effects that may be drawn.
        shape: `P` of the samples.
        channels: `C` of the images.
        left_right: The axis that runs from left to right, if there is one.
    """

    augmentation: Augmentation
    shape: tuple[int, ...]
    channels: int
    left_right: int | None = None

    def __call__(self, rng: np.random.Generator, spacing_mm: Sequence[float]) -> dict[str, np.ndarray]:
        """Draws the parameters of a sample whose voxels have this size."""
        return draw_parameters(rng, self.augmentation, self.shape, self.channels, spacing_mm=spacing_mm, left_right=self.left_right)


def list_effects(augmentation: Augmentation | None) -> dict[str, Augmentation]:
    """Splits an augmentation into its effects for pictures of them: each alone, certain, and as strong as it gets."""
    if augmentation is None:
        return {}
    effects = {name: replace(Augmentation(), **{name: 1.0}) for name in ("flip", "synthetic") if getattr(augmentation, name)}
    for name, neutral in NEUTRAL.items():
        effect = getattr(augmentation, name)
        if effect.probability:
            effects[name] = replace(Augmentation(), **{name: _make_strongest(effect, neutral)})
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
    """Draws the parameters with which `modules.model.augment.apply` changes one sample.

    `augmentation` alone decides which arrays there are. Effects of probability 0 have none, and `apply` then spends no time on them.
    The number of draws does not depend on it: a generator in the same state draws the same rotation, whatever else is switched on.

    Args:
        rng: Source of every draw.
        augmentation: The effects that may be drawn.
        shape: `P` of the sample, of rank `r`, 2 or 3.
        channels: `C` of the image.
        spacing_mm: Size of the voxels; by default they are as long as wide. With it, shapes turn rigidly in mm.
        flips: Axes that may be mirrored; by default all. Give none where classes have sides and it is not known which axis runs from
            left to right.
        left_right: The axis that runs from left to right, if there is one.

    Returns:
        Arrays by name, float32 if not said otherwise. `matrix` is `(r, r + 1)`, from voxels of the result to voxels of the sample,
        both counted from the middle. `mirrored` is `()` int32, 1 where left and right changed places. `elastic` is `(7, ..., 7, r)`:
        displacements of control points in voxels. `bias` is `(5, ..., 5)`: logarithms at control points. `blur` is `(r,)` in voxels,
        and `lowres` is `(r,)`. `noise`, `gamma`, `contrast` and `brightness` are `(C,)`. `noise_seed` is `(2,)` int32. `synthetic` is
        `()` int32, 1 where the sample is drawn from its label map. `curve` is `(256, C, 6)`: new intensities of each value of a label at
        six places from the darkest to the brightest of the sample; 0 stands for air. `texture` is `(256, C)`, and `texture_seed` is
        `(2,)` int32.

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

    mirrored = (rng.random(rank) < augmentation.flip) & np.array([axis in flips for axis in range(rank)])
    matrix = _draw_matrix(rng, augmentation, np.asarray(shape), spacing)
    matrix[mirrored] *= -1
    drawn = {"matrix": matrix, "mirrored": np.array(left_right is not None and mirrored[left_right], np.int32)}
    most = np.minimum(_draw_values(rng, augmentation, "elastic") * finest, FOLD_LIMIT * (np.asarray(shape) - 1) / (ELASTIC_POINTS - 3))
    drawn["elastic"] = rng.uniform(-1, 1, (ELASTIC_POINTS,) * rank + (rank,)) * most
    drawn["bias"] = rng.uniform(-1, 1, (BIAS_POINTS,) * rank) * _draw_values(rng, augmentation, "bias")
    drawn["blur"] = _draw_values(rng, augmentation, "blur", rank) * finest
    # The factor applies to the finest axis. An axis that is already coarser than the result stays as it is.
    drawn["lowres"] = np.minimum(_draw_values(rng, augmentation, "lowres") / finest, 1)
    for name in ("noise", "gamma", "contrast", "brightness"):
        drawn[name] = _draw_values(rng, augmentation, name, channels)
    drawn["noise_seed"] = rng.integers(-(2**31), 2**31, 2).astype(np.int32)

    kept = {name for name in NEUTRAL if getattr(augmentation, name).probability > 0}
    if augmentation.flip > 0 or kept.intersection(SPATIAL):
        kept |= {"matrix", "mirrored"}
    if "noise" in kept:
        kept.add("noise_seed")
    if augmentation.synthetic > 0:
        # These draws are the last ones, so that they move no other.
        contrast = _draw_contrast(rng, augmentation.synthetic, channels)
        drawn |= contrast
        kept |= set(contrast)
    return {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in drawn.items() if name in kept}


def _make_strongest(effect: Effect, neutral: float) -> Effect:
    """Returns the effect, certain, at the end of its range that is farther from doing nothing."""
    value = max(effect.high, effect.low, key=(lambda end: abs(math.log(end / neutral))) if neutral else abs)
    return Effect(1.0, value, value)


def _draw_contrast(rng: np.random.Generator, probability: float, channels: int) -> dict[str, np.ndarray]:
    """Draws the contrast of a synthetic sample: a curve and a grain for each tissue, in each channel.

    The curve of a class is nearly flat. Its slope keeps some of the structure within the class, turned about as often as not. The
    background is many tissues, so that its curve goes anywhere: it keeps the structure of skull and neck, in other intensities.
    """
    middle = rng.uniform(DARKEST_TISSUE, 1, (TISSUES, channels, 1))
    spread = rng.uniform(0, TISSUE_SPREAD, (TISSUES, channels, 1))
    curve = np.clip(middle + spread * rng.uniform(-0.5, 0.5, (TISSUES, channels, CURVE_POINTS)), DARKEST_TISSUE, 1)
    # Nobody knows what ignored voxels are.
    curve[[0, IGNORE]] = rng.uniform(DARKEST_TISSUE, 1, (2, channels, CURVE_POINTS))
    if rng.random() < AIR_SHARE:
        curve[0, :, 0] = 0
    return {
        "curve": curve,
        "texture": rng.uniform(0, TEXTURE, (TISSUES, channels)),
        "texture_seed": rng.integers(-(2**31), 2**31, 2).astype(np.int32),
        "synthetic": np.array(rng.random() < probability, np.int32),
    }


def _draw_values(rng: np.random.Generator, augmentation: Augmentation, name: str, size: int | tuple[int, ...] = ()) -> np.ndarray:
    """Draws values of an effect, or returns its neutral one. The generator moves on by as much in both cases."""
    effect, neutral = getattr(augmentation, name), NEUTRAL[name]
    chance, share = rng.random(), rng.random(size)
    if chance >= effect.probability:
        return np.full(size, float(neutral))
    if neutral:
        return effect.low ** (1 - share) * effect.high**share
    return effect.low + (effect.high - effect.low) * share


def _draw_matrix(rng: np.random.Generator, augmentation: Augmentation, shape: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Draws the matrix `(r, r + 1)`: rotation, shear and scaling in mm, then the shift, all in voxels from the middle."""
    rank = len(shape)
    linear = np.eye(rank)
    planes = [(0, 1)] if rank == 2 else [(1, 2), (2, 0), (0, 1)]
    for (first, second), degrees in zip(planes, _draw_values(rng, augmentation, "rotation", len(planes)), strict=True):
        # Most samples do not turn, and a product takes longer than the question.
        if degrees and max(spacing[first] / spacing[second], spacing[second] / spacing[first]) <= ANISOTROPY:
            turn = np.eye(rank)
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            turn[[first, first, second, second], [first, second, first, second]] = cosine, -sine, sine, cosine
            linear = linear @ turn
    shear = _draw_values(rng, augmentation, "shear", (rank, rank))
    linear = linear @ (np.eye(rank) + shear * (1 - np.eye(rank))) / _draw_values(rng, augmentation, "scaling")
    shift = _draw_values(rng, augmentation, "shift", rank) * shape
    return np.concatenate([linear * spacing / spacing[:, None], shift[:, None]], axis=1)
