"""Augmentation, second half: `apply` changes a batch inside the compiled training step, in 2-D and 3-D.

`modules.data.draws.draw_parameters` draws what happens to each sample. From that, `apply` computes coordinates, fields and noise with
`keras.ops` on the accelerator. It has no state and no random ops. A run therefore replays exactly, and TensorFlow, JAX and PyTorch
augment alike. All spatial effects share one interpolation.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def apply(image, label, parameters: dict, *, left_right_swaps: Sequence[tuple[int, int]] = ()):
    """Augments a batch; meant to be called inside the compiled training step.

    The label takes the value of the nearest voxel, so that no new class appears. Outside the sample the label is background, and each
    channel of the image has its darkest value.

    Args:
        image: `(B, *P, C)` float32 of any scale: z-scores or [0, 1].
        label: `(B, *P)` integers.
        parameters: Stacked results of `draw_parameters`: each array has `B` in front.
        left_right_swaps: Pairs of classes that trade places where left and right do.

    Returns:
        Image and label, with unchanged shapes and types. Neutral parameters leave both the same to the last bit.

    Raises:
        ValueError: If the image or a parameter comes in half precision. Coordinates would then be off by tenths of a voxel.
    """
    for name, value in {"image": image, **parameters}.items():
        if (dtype := keras.backend.standardize_dtype(value.dtype)) not in ("float32", "int32"):
            raise ValueError(f"Expected `{name}` in float32. Received: {dtype}. Give the model that augments `autocast=False`.")
    axes = tuple(range(1, len(image.shape) - 1))
    # We measure the sample before any effect: the strength must not depend on how much of the sample another effect moved outside.
    deviation = ops.std(image, axis=axes, keepdims=True) if {"noise", "brightness"} & set(parameters) else None
    strength = {
        name: ops.reshape(parameters[name], (-1, *(1 for _ in axes), image.shape[-1]))
        for name in ("noise", "gamma", "contrast", "brightness")
        if name in parameters
    }
    if "matrix" in parameters:
        image, label = _warp(image, label, parameters["matrix"], parameters.get("elastic"))
        if left_right_swaps:
            label = _swap_classes(label, parameters["mirrored"], left_right_swaps)
    if "synthetic" in parameters:
        image = _draw_contrast(image, label, parameters, left_right_swaps)
    # Each effect is the image plus a difference, which is 0 for neutral parameters.
    if "bias" in parameters:
        field = _make_field(parameters["bias"][..., None], image.shape[1:-1])[:, 0]
        field = ops.exp(field - ops.mean(field, axis=axes, keepdims=True))[..., None]
        image = image + (image - ops.min(image, axis=axes, keepdims=True)) * (field - 1)
    if "blur" in parameters or "lowres" in parameters:
        image = _smooth(image, parameters.get("blur"), parameters.get("lowres"))
    if "noise" in parameters:
        image = image + _make_noise(parameters["noise_seed"], image.shape[1:]) * strength["noise"] * deviation
    if "gamma" in parameters:
        image = ops.where(strength["gamma"] == 1, image, _apply_gamma(image, strength["gamma"], axes))
    if "contrast" in parameters:
        image = image + (image - ops.mean(image, axis=axes, keepdims=True)) * (strength["contrast"] - 1)
    if "brightness" in parameters:
        image = image + strength["brightness"] * deviation
    return image, label


def _warp(image, label, matrix, elastic):
    """Moves image and label in one pass over the coordinates: the image by linear interpolation, the label by its nearest voxel.

    The corners are gathered one after the other from the flattened batch. Nothing else that we tried on a CPU was faster and could
    still rotate and bend. `ops.image.map_coordinates` takes up to eight times as long, because it treats batch and channel as axes
    too. A product of matrices along each axis is faster, but can neither rotate nor bend.
    """
    shape, channels = image.shape[1:-1], image.shape[-1]
    rank = len(shape)
    steps = [math.prod(shape[axis + 1 :]) for axis in range(rank)]
    ones = (1,) * rank
    displacement = None if elastic is None else _make_field(elastic, shape)
    index = ops.reshape(ops.arange(ops.shape(image)[0], dtype="int32") * math.prod(shape), (-1, *ones))
    nearest: Any = 0
    inside: Any = True
    weights = []
    for axis, size in enumerate(shape):
        rows = ops.reshape(matrix[:, axis], (-1, *ones, rank + 1))
        place = rows[..., rank]
        for other, length in enumerate(shape):
            line = ops.arange(length, dtype="float32") - (length - 1) / 2
            place = place + rows[..., other] * ops.reshape(line, [-1 if axis == other else 1 for axis in range(rank)])
        if displacement is not None:
            place = place + displacement[:, axis]
        # For image and label alike, a voxel reaches half its length beyond its centre.
        inside = ops.logical_and(inside, ops.abs(place) < size / 2)
        place = ops.clip(place + (size - 1) / 2, 0, size - 1)
        low = ops.floor(ops.minimum(place, max(size - 2, 0)))
        fraction = place - low
        weights.append((1 - fraction, fraction))
        index = index + ops.cast(low, "int32") * steps[axis]
        nearest = nearest + ops.cast(fraction >= 0.5, "int32") * steps[axis]
    table = ops.reshape(image, (-1,) if channels == 1 else (-1, channels))

    def interpolate(axis: int, offset: int):
        if axis == rank:
            return gather(table, index + offset)
        near, far = interpolate(axis + 1, offset), interpolate(axis + 1, offset + (steps[axis] if shape[axis] > 1 else 0))
        low, high = weights[axis] if channels == 1 else (weight[..., None] for weight in weights[axis])
        # The shorter near + fraction * (far - near) does not end at `far` exactly.
        return near * low + far * high

    moved = interpolate(0, 0)
    moved = moved[..., None] if channels == 1 else moved
    darkest = ops.min(image, axis=tuple(range(1, rank + 1)), keepdims=True)
    return ops.where(inside[..., None], moved, darkest), ops.where(inside, gather(ops.reshape(label, (-1,)), index + nearest), 0)


def gather(table, index):
    """Gathers rows of a table.

    On JAX and PyTorch the checks of `ops.take` cost more than the reading. A plain index spares them.
    """
    return ops.take(table, index, axis=0) if keras.backend.backend() == "tensorflow" else table[index]


def _swap_classes(label, mirrored, pairs: Sequence[tuple[int, int]]):
    """Exchanges the classes of each pair in the samples that are mirrored."""
    order = np.arange(max(max(pair) for pair in pairs) + 1)
    for first, second in pairs:
        order[first], order[second] = second, first
    swapped = gather(ops.convert_to_tensor(order, dtype=label.dtype), ops.cast(ops.clip(label, 0, len(order) - 1), "int32"))
    chosen = ops.reshape(mirrored, (-1, *(1 for _ in label.shape[1:]))) > 0
    return ops.where(ops.logical_and(chosen, label < len(order)), swapped, label)


# A curve ends so many standard deviations above the mean of a sample's bright voxels. What is brighter has its last intensity.
_BRIGHTEST = 2.5


def _draw_contrast(image, label, parameters: dict, pairs: Sequence[tuple[int, int]]):
    """Draws samples anew from their label maps, in the contrast of `parameters`; others stay as they are, to the last bit.

    Each class has a curve from the intensities of the sample to new ones, and a grain. Classes of a pair are one tissue on two sides. Air
    is 0 and has no grain. The other voxels get mean and standard deviation of the voxels that were brighter than the darkest, by which
    preprocessing scales a scan of any contrast.
    """
    axes, channels = tuple(range(1, len(image.shape) - 1)), image.shape[-1]
    tissues, points = parameters["curve"].shape[1], parameters["curve"].shape[3]
    tissue_of = np.arange(tissues)
    for first, second in pairs:
        tissue_of[second] = first
    tissue = gather(ops.convert_to_tensor(tissue_of, dtype="int32"), ops.cast(label, "int32"))
    sample = ops.reshape(ops.arange(ops.shape(image)[0], dtype="int32"), (-1, *(1 for _ in axes)))
    row = ((sample * tissues + tissue) * channels)[..., None] + ops.arange(channels, dtype="int32")

    darkest = ops.min(image, axis=axes, keepdims=True)
    mean, deviation = _measure(image, image > darkest, axes)
    extent = mean + _BRIGHTEST * deviation - darkest
    place = ops.clip((image - darkest) / ops.where(extent > 0, extent, 1.0), 0, 1) * (points - 1)
    low = ops.minimum(ops.floor(place), points - 2)
    curve, index = ops.reshape(parameters["curve"], (-1,)), row * points + ops.cast(low, "int32")
    drawn = gather(curve, index) * (1 - (place - low)) + gather(curve, index + 1) * (place - low)
    is_air = drawn <= 0
    grain = gather(ops.reshape(parameters["texture"], (-1,)), row) * _make_noise(parameters["texture_seed"], image.shape[1:])
    drawn = ops.where(is_air, 0.0, drawn + grain)
    own_mean, own_deviation = _measure(drawn, ops.logical_not(is_air), axes)
    drawn = (drawn - own_mean) / ops.where(own_deviation > 0, own_deviation, 1.0) * deviation + mean
    chosen = ops.reshape(parameters["synthetic"], (-1, *(1 for _ in axes), 1)) > 0
    return ops.where(chosen, drawn, image)


def _measure(image, mask, axes: tuple[int, ...]):
    """Measures mean and standard deviation of the voxels of a mask; both are 0 where it is empty."""
    weight = ops.cast(mask, "float32")
    number = ops.maximum(ops.sum(weight, axis=axes, keepdims=True), 1.0)
    mean = ops.sum(image * weight, axis=axes, keepdims=True) / number
    return mean, ops.sqrt(ops.sum(ops.square(image - mean) * weight, axis=axes, keepdims=True) / number)


def _contract(values, matrices: Sequence):
    """Multiplies each spatial axis of `(B, *g, C)` by a matrix `(n, g)`, or by one a sample `(B, n, g)`; returns `(B, C, *n)`.

    Each step multiplies the axis in front and moves it to the end. After the last step the channels are in front.
    """
    for matrix in matrices:
        shape = values.shape
        values = ops.swapaxes(ops.reshape(values, (-1, shape[1], math.prod(shape[2:]))), 1, 2)
        values = ops.reshape(ops.matmul(values, ops.swapaxes(matrix, -1, -2)), (-1, *shape[2:], matrix.shape[-2]))
    return values


def _make_field(points, shape: Sequence[int]):
    """Makes cubic B-splines `(B, C, *P)` of control points `(B, g, ..., g, C)`; one point lies beyond the sample on each side."""
    matrices = []
    for size in shape:
        number = points.shape[1]
        distance = np.abs(np.linspace(1, number - 2, size)[:, None] - np.arange(number))
        inner, outer = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
        matrices.append(ops.convert_to_tensor(np.where(distance < 1, inner, outer), dtype="float32"))
    return _contract(points, matrices)


def _smooth(image, blur, lowres):
    """Blurs the image, and samples it down and up again; one matrix for each axis does both."""
    rank = len(image.shape) - 2
    blur = ops.zeros_like(lowres) if blur is None else blur
    lowres = ops.ones_like(blur) if lowres is None else lowres
    smooth = _contract(image, [_make_smoothing(size, blur[:, axis], lowres[:, axis]) for axis, size in enumerate(image.shape[1:-1])])
    smooth = ops.moveaxis(smooth, 1, -1)
    # Accelerators round the factors of a product even where a factor is 1, so unchanged samples are taken as they were.
    changed = ops.reshape(ops.any(ops.logical_or(blur > 0, lowres < 1), axis=-1), (-1, *(1 for _ in range(rank + 1))))
    return ops.where(changed, smooth, image)


def _make_smoothing(size: int, blur, lowres):
    """Makes matrices `(B, n, n)` that average around the coarse voxels and interpolate linearly between these; rows sum to 1.

    A Gaussian stands for the average over a coarse voxel of `w` fine ones. Its variance is that of the `w` voxels,
    `(w * w - 1) / 12`, plus that of the blur.
    """
    coarse = ops.maximum(ops.round(lowres * size), 1.0)[:, None]
    factor = coarse / size
    variance = ops.square(blur)[:, None] + (1 / ops.square(factor) - 1) / 12
    line = ops.arange(size, dtype="float32")
    place = ops.clip((line + 0.5) * factor - 0.5, 0, coarse - 1)
    low = ops.floor(place)

    def average(voxel):
        distance = ((voxel + 0.5) / factor - 0.5)[..., None] - line
        # This least variance keeps the weights finite. In float32 it makes the neighbours' weights exactly 0.
        return ops.softmax(-ops.square(distance) / (2 * ops.maximum(variance, 0.0025))[..., None], axis=-1)

    fraction = (place - low)[..., None]
    return average(low) * (1 - fraction) + average(ops.minimum(low + 1, coarse - 1)) * fraction


def _apply_gamma(image, gamma, axes: tuple[int, ...]):
    """Scales the image to [0, 1], raises it to a power, and restores its mean and standard deviation."""
    darkest = ops.min(image, axis=axes, keepdims=True)
    extent = ops.max(image, axis=axes, keepdims=True) - darkest
    bent = ops.power((image - darkest) / ops.where(extent > 0, extent, 1.0), gamma)
    deviation = ops.std(bent, axis=axes, keepdims=True)
    scale = ops.std(image, axis=axes, keepdims=True) / ops.where(deviation > 0, deviation, 1.0)
    return (bent - ops.mean(bent, axis=axes, keepdims=True)) * scale + ops.mean(image, axis=axes, keepdims=True)


def _make_noise(seed, shape: Sequence[int]):
    """Makes standard normal values `(B, *shape)`, a function of `seed` `(B, 2)` and the voxel's number alone.

    The generator is counter-based in the sense of Salmon et al. (2011): it hashes each number with the two seeds.

    `keras.random` would not do. Its seeds belong to a batch, not to a sample. On PyTorch they leave the device, and every backend
    draws other values. A field drawn once, and rolled and flipped for each sample, would not do either: the network would learn it.

    The hash uses int32, which wraps around alike on every backend. JAX has no 64 bits by default, and PyTorch has hardly any unsigned
    arithmetic.
    """
    number = math.prod(shape)
    half = -(-number // 2)
    counter = ops.arange(half, dtype="int32")[None]
    bits = _hash(ops.bitwise_xor(_hash(counter + seed[:, :1]), seed[:, 1:]))
    # The method of Box and Muller: 16 bits give the radius, at most 4.85, and 16 the angle. Each pair gives two values.
    uniform = ops.cast(_shift_right(bits, 16), "float32")
    radius = ops.sqrt(-2.0 * ops.log((uniform + 0.5) / 65536))
    angle = ops.cast(ops.bitwise_and(bits, 0xFFFF), "float32") * (2 * math.pi / 65536)
    values = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)
    return ops.reshape(values[:, :number], (-1, *shape))


def _hash(values):
    """Hashes 32 bits one to one: each changed bit changes about half of the result (Wellons, hash-prospector, bias 0.11)."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):
        values = ops.bitwise_xor(values, _shift_right(values, shift)) * factor
    return ops.bitwise_xor(values, _shift_right(values, 15))


def _shift_right(values, bits: int):
    """Shifts as for unsigned integers: zeros come in from the left, not the sign."""
    return ops.bitwise_and(ops.right_shift(values, bits), (1 << (32 - bits)) - 1)
