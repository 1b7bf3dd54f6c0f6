"""Augmentation, second half: `apply` changes a batch inside the compiled training step, in 2-D and 3-D.

`modules.data.draws.draw_parameters` draws what happens to each sample. `apply` computes coordinates, fields and noise from it through
`keras.ops` on the accelerator. It has no state and no random ops, so a run replays exactly, and TensorFlow, JAX and PyTorch augment
alike. All spatial effects go through one interpolation.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops


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
