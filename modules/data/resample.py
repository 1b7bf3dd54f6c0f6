"""Arrays on other grids: cropping, padding and resampling, whole or plane by plane.

Nothing here knows of scans or networks. Voxels are areas, not points, so the borders of the field of view stay where they are.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def fit_shape(array: np.ndarray, shape: Sequence[int], fill: Sequence[float] | float = 0.0) -> np.ndarray:
    """Crops or pads each spatial axis of `(*S, C)` about the centre to `shape`.

    Cropping drops `(size - target) // 2` at the start of an axis, and padding adds `(target - size) // 2` there. The one thus undoes
    the other exactly: `fit_shape(fit_shape(a, larger), a.shape)` is `a`.
    """
    return place(array, shape, centre(array.shape[:-1], shape), fill)


def centre(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Finds the place of the first voxel of `shape` in `target` when their centres meet; below 0 where the voxel is cut off."""
    return tuple((new - old) // 2 if new >= old else -((old - new) // 2) for old, new in zip(shape, target, strict=True))


def place(array: np.ndarray, shape: Sequence[int], start: Sequence[int], fill: Sequence[float] | float) -> np.ndarray:
    """Puts `(*S, C)` into an array of `shape` full of `fill` so that its first voxel comes to lie at `start`."""
    if array.shape[:-1] == tuple(shape):
        return array
    result = np.empty((*shape, array.shape[-1]), array.dtype)
    result[...] = fill
    source, target = [], []
    for size, wanted, first in zip(array.shape[:-1], shape, start, strict=True):
        low, high = max(first, 0), min(first + size, wanted)
        source.append(slice(low - first, high - first))
        target.append(slice(low, high))
    result[tuple(target)] = array[tuple(source)]
    return result


def fit_planes(planes: Iterable[np.ndarray], shape, target, start, fill) -> Iterator[np.ndarray]:
    """Does the work of `place` for a volume that comes plane by plane."""
    if tuple(shape) == tuple(target):
        yield from planes
        return
    given = 0
    plane: np.ndarray | None = None
    for index, plane in enumerate(planes):
        if not 0 <= start[0] + index < target[0]:
            continue
        while given < start[0] + index:
            yield _empty_plane(plane, target, fill)
            given += 1
        yield place(plane, target[1:], start[1:], fill)
        given += 1
    if plane is None:
        raise ValueError("Expected at least one plane to fit. Received: none.")
    while given < target[0]:
        yield _empty_plane(plane, target, fill)
        given += 1


def _empty_plane(like: np.ndarray, target, fill) -> np.ndarray:
    plane = np.empty((*target[1:], like.shape[-1]), like.dtype)
    plane[...] = fill
    return plane


def resample(array: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    """Resamples `(*S, C)` to `shape` over the same field of view. Voxels are areas, not points, so borders stay borders.

    An axis that shrinks averages over the area of each new voxel, so that nothing thin is stepped over. An axis that grows is
    interpolated.
    """
    # In another memory layout the same numbers may be summed in another order.
    array = to_c_order(array)
    for axis, target in enumerate(shape):
        size = array.shape[axis]
        if target < size:
            edges = np.arange(target + 1) * (size / target)
            cells = np.arange(size)
            overlap = np.minimum.outer(edges[1:], cells + 1) - np.maximum.outer(edges[:-1], cells)
            array = _sum_weighted(array, np.clip(overlap, 0, None) * (target / size), axis)
        elif target > size and order == 1:
            low, high, share = _find_neighbours(size, target)
            weights = np.zeros((target, size))
            np.add.at(weights, (np.arange(target), low), 1 - share)
            np.add.at(weights, (np.arange(target), high), share)
            array = _sum_weighted(array, weights, axis)
    if array.shape[:-1] == tuple(shape):
        return array
    from scipy import ndimage

    factors = [new / old for new, old in zip(shape, array.shape, strict=False)]
    result = np.empty((*shape, array.shape[-1]), np.float32)
    for channel in range(array.shape[-1]):
        ndimage.zoom(array[..., channel], factors, result[..., channel], order, mode="nearest", grid_mode=True)
    return result


def to_c_order(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order, as `np.ascontiguousarray` does.

    It is several times as fast for volumes `(X, Y, Z, 1)` whose last axis is not the fastest, as in NIfTI files.
    """
    if array.ndim != 4 or array.shape[-1] != 1 or array.flags.c_contiguous or array.dtype.itemsize not in (1, 2, 4):
        return np.ascontiguousarray(array)
    # The copy lies in the order of memory, even if the array has gaps or runs backwards. `axes` go from the slowest to the fastest.
    volume = np.copy(array[..., 0], order="K")
    axes = np.argsort([-stride for stride in volume.strides], kind="stable")
    packed = volume.transpose(axes)
    if axes[2] == 2 or not packed.flags.c_contiguous:
        return np.ascontiguousarray(array)
    try:
        import cv2
    except ModuleNotFoundError:  # a light installation goes without it, only slower
        return np.ascontiguousarray(array)
    # OpenCV turns planes in blocks that fit the processor's cache, and does not ask what its numbers mean.
    packed = packed.view(f"u{array.dtype.itemsize}" if array.dtype.itemsize < 4 else np.float32)
    last, (slow, middle, fast) = list(axes).index(2), packed.shape
    if last == 0:
        turned = cv2.transpose(packed.reshape(slow, -1)).reshape(middle, fast, slow)
        order = (axes[1], axes[2])
    else:
        turned = np.empty((slow, fast, middle), packed.dtype)
        for plane, result in zip(packed, turned, strict=True):
            cv2.transpose(plane, result)
        order = (axes[0], axes[2])
    # Rows along the last axis are whole now.
    turned = turned if order == (0, 1) else turned.swapaxes(0, 1)
    return np.ascontiguousarray(turned).view(array.dtype)[..., np.newaxis]


def _sum_weighted(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Replaces the voxels along an axis by weighted sums of them; `weights` is `(target, size)`."""
    mixed = np.tensordot(weights.astype(np.float32), array, axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(mixed, 0, axis))


def _find_neighbours(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lower and upper neighbour of each target voxel along one axis, and the upper one's share, for linear interpolation."""
    place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.minimum(place.astype(int), max(size - 2, 0))
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def resample_planes(planes: Iterable[np.ndarray], shape, target) -> Iterator[np.ndarray]:
    """Does the work of a linear `resample` for a volume that comes plane by plane. It holds no more than two planes."""
    low, high, share = _find_neighbours(shape[0], target[0])
    numbered = enumerate(planes)
    held: dict[int, np.ndarray] = {}
    for first, second, part in zip(low, high, share, strict=True):
        while second not in held:
            index, plane = next(numbered)
            held[index] = _resample_plane(plane, target[1:])
        held = {index: plane for index, plane in held.items() if index >= first}
        yield held[first] * (1 - part) + held[second] * part if part else held[first]
    for _ in numbered:
        pass


def _resample_plane(plane: np.ndarray, target) -> np.ndarray:
    for axis, wanted in enumerate(target):
        if plane.shape[axis] != wanted:
            low, high, share = _find_neighbours(plane.shape[axis], wanted)
            share = share.reshape(-1, *(1,) * (plane.ndim - 1 - axis))
            plane = plane.take(low, axis) * (1 - share) + plane.take(high, axis) * share
    return plane
