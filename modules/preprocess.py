"""From a volume as it lies on disk to what a network sees, and the exact way back.

A volume is turned to the closest canonical orientation (RAS+), cropped to its foreground, normalised, resampled and fitted to a
shape, in this order; all but the turning and the normalising are optional. The way back puts probabilities, not labels, on the
input's grid, plane by plane, so that it never holds all classes of a whole volume at once. A slice goes the same way, but is not
turned.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modules.volume import Volume

INTENSITIES = ("min_max", "percentile", "zscore", "fixed")
INTERPOLATIONS = {"linear": 1, "cubic": 3}


@dataclass(frozen=True)
class Geometry:
    """What the way back needs to know of the input.

    Attributes:
        axes: Which axis of the input each canonical axis is.
        flipped: Whether that axis runs the other way there.
        shape: The canonical spatial shape, before anything is cut.
        box: First and one past the last voxel of the foreground along each canonical axis.
        grid: Shape after resampling, before fitting.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    grid: tuple[int, ...]

    def turn(self, array: np.ndarray) -> np.ndarray:
        """A view of an array on the input's grid `(*S, ...)`, in canonical orientation."""
        array = array.transpose(*self.axes, *range(len(self.axes), array.ndim))
        return np.flip(array, [axis for axis, flipped in enumerate(self.flipped) if flipped])

    def turn_back(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `turn`."""
        array = np.flip(array, [axis for axis, flipped in enumerate(self.flipped) if flipped])
        return array.transpose(*np.argsort(self.axes), *range(len(self.axes), array.ndim))

    def measure_spacing(self, spacing_mm: Sequence[float]) -> tuple[float, ...]:
        """Voxel size after resampling along each canonical axis, from the input's."""
        sizes = zip(self.axes, self.boxed, self.grid, strict=True)
        return tuple(spacing_mm[axis] * before / after for axis, before, after in sizes)

    @property
    def boxed(self) -> tuple[int, ...]:
        """Shape of the foreground's box."""
        return tuple(stop - start for start, stop in self.box)


@dataclass(frozen=True)
class Preprocessing:
    """Intensities and grid that a network expects.

    Attributes:
        spatial_dims: 2 for slices, 3 for volumes.
        shape: `P`, the spatial shape at the end; empty for each case's own.
        resize: Whether `shape` is reached by interpolating the whole field of view instead of cropping or padding about the centre.
        spacing_mm: Voxel size to resample to, along the canonical axes; empty for each case's own.
        interpolation: Of images where they are enlarged: "linear" or "cubic"; where they shrink, voxels are averaged. Labels are
            resampled as shares of each class, never by nearest voxel.
        foreground_crop: Whether margins that are as dark as the darkest voxel are cut off.
        intensity: "min_max" scales each case's channel to [0, 1]; "percentile" does so between the 0.5 and 99.5 percentile of
            the foreground and clips; "zscore" takes mean and standard deviation of the foreground to 0 and 1; "fixed" gives
            `(x / scale - mean) / std`. Foreground here is what is brighter than the channel's darkest voxel.
        scale: For "fixed": divides first, 255 for 8-bit pictures.
        mean: For "fixed": the training set's mean after scaling.
        std: For "fixed": the training set's standard deviation after scaling.
    """

    spatial_dims: int
    shape: tuple[int, ...] = ()
    resize: bool = False
    spacing_mm: tuple[float, ...] = ()
    interpolation: str = "linear"
    foreground_crop: bool = False
    intensity: str = "min_max"
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.intensity not in INTENSITIES:
            raise ValueError(f"Expected `intensity` in {INTENSITIES}. Received: {self.intensity!r}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"Expected `interpolation` in {tuple(INTERPOLATIONS)}. Received: {self.interpolation!r}.")
        for name in ("shape", "spacing_mm"):
            value = getattr(self, name)
            if value and (len(value) != self.spatial_dims or not min(value) > 0):
                raise ValueError(f"Expected `{name}` of {self.spatial_dims} numbers above 0. Received: {value}.")

    def check(self, image: Volume, channels: Sequence[str], name: str) -> None:
        """Raises ValueError, naming `name`, where an image is not of the kind that this preprocessing was made for.

        That is: another rank, another number of channels than `channels` names, an affine that does not say which way its axes run,
        or, for "fixed", brighter than `scale`.
        """
        rank, number, expected = image.array.ndim - 1, image.array.shape[-1], self.spatial_dims
        if rank != expected:
            raise ValueError(f"Expected a {expected}-D image for this model. Received: {rank}-D, {image.array.shape[:-1]}, in {name}.")
        if number != len(channels):
            raise ValueError(f"Expected {len(channels)} channel(s) ({', '.join(channels)}) for this model. Received: {number} in {name}.")
        if rank == 3 and image.affine is not None and not np.isfinite(_orient(image.affine)).all():
            raise ValueError(f"Expected an affine that gives each axis a direction. Received: a singular one in {name}. Mend its header.")
        brightest = float(image.array.max())
        if self.intensity == "fixed" and brightest > self.scale:
            raise ValueError(f"Expected intensities up to {self.scale:g}. Received: {brightest:g} in {name}. Convert it to that range.")

    def apply(self, image: Volume) -> tuple[np.ndarray, Geometry]:
        """Brings an image to what the network sees.

        Args:
            image: A volume whose array is `(*S, C)` float32.

        Returns:
            `(*P, C)` float32, and the `Geometry` to come back with. Padding takes each channel's darkest value.
        """
        if image.array.ndim - 1 != self.spatial_dims:
            raise ValueError(f"Expected an image of {self.spatial_dims} dimensions. Received: shape {image.array.shape[:-1]}.")
        geometry = self._measure(image)
        array = geometry.turn(image.array)[tuple(slice(*side) for side in geometry.box)]
        array = _resample(self._normalise(array), geometry.grid, INTERPOLATIONS[self.interpolation])
        if self.shape and array.shape[:-1] != self.shape:
            array = fit_shape(array, self.shape, fill=array.min(axis=tuple(range(array.ndim - 1))))
        return array, geometry

    def apply_label(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Brings the label `(*S)` of an image with that geometry to `(*P)`; padding is background.

        Resampling interpolates each class's share of a voxel and takes the largest, so that a class that shrinks does not
        depend on which voxel happens to lie nearest.
        """
        label = geometry.turn(label)[tuple(slice(*side) for side in geometry.box)]
        if label.shape != geometry.grid:
            share, chosen = np.full(geometry.grid, -1.0, np.float32), np.zeros(geometry.grid, label.dtype)
            for value in np.unique(label):
                shares = _resample((label == value).astype(np.float32)[..., np.newaxis], geometry.grid, 1)[..., 0]
                larger = shares > share
                share[larger], chosen[larger] = shares[larger], value
            label = chosen
        return _to_c_order(fit_shape(label[..., np.newaxis], self.shape or geometry.grid))[..., 0]

    def restore_planes(
        self,
        planes: Iterable[np.ndarray],
        geometry: Geometry,
        fill: Sequence[float] | float = 0.0,
        order: Sequence[int] = (0, 1, 2),
    ) -> Iterator[np.ndarray]:
        """Puts probabilities back on the input's grid in canonical orientation, a plane at a time.

        Args:
            planes: `(*P[1:], K)` for each index of the first axis; for a slice, the one plane `(*P, K)`.
            geometry: From `apply`.
            fill: What the network never saw, a value or one a class.
            order: Of the canonical axes of a volume, both in what comes and in what goes: planes lie across the first.

        Yields:
            Planes `(*S[1:], K)` of the canonical grid in order; for a slice, the one plane `(*S, K)`.
        """
        # A slice is the single plane of a volume of depth one.
        deep = (1,) * (3 - self.spatial_dims)
        sizes = (deep + tuple(sizes) for sizes in (self.shape or geometry.grid, geometry.grid, geometry.boxed, geometry.shape))
        shape, grid, boxed, whole = (tuple(size[axis] for axis in order) for size in sizes)
        box = ((0, 1),) * len(deep) + geometry.box
        planes = _fit_planes(planes, shape, grid, _centre(shape, grid), fill)
        if grid != boxed:
            planes = _resample_planes(planes, grid, boxed)
        yield from _fit_planes(planes, boxed, whole, tuple(box[axis][0] for axis in order), fill)

    def restore(self, array: np.ndarray, geometry: Geometry, fill: Sequence[float] | float = 0.0) -> np.ndarray:
        """Puts `(*P, K)` back on the input's grid and orientation, `(*S, K)`; see `restore_planes`."""
        planes = list(self.restore_planes(array if self.spatial_dims == 3 else array[np.newaxis], geometry, fill))
        return geometry.turn_back(np.stack(planes) if self.spatial_dims == 3 else planes[0])

    def unseen(self, geometry: Geometry) -> int:
        """How many voxels of the resampled input the network does not see because they lie outside `shape`."""
        seen = math.prod(min(size, target) for size, target in zip(geometry.grid, self.shape or geometry.grid, strict=True))
        return math.prod(geometry.grid) - seen

    def _measure(self, image: Volume) -> Geometry:
        spatial = image.array.shape[:-1]
        axes, flipped = find_orientation(image)
        shape = tuple(spatial[axis] for axis in axes)
        box = tuple((0, size) for size in shape)
        if self.foreground_crop:
            bright = _find_foreground(image.array).any(axis=-1).transpose(axes)
            bright = np.flip(bright, [axis for axis, is_flipped in enumerate(flipped) if is_flipped])
            if bright.any():
                others = [tuple(other for other in range(bright.ndim) if other != axis) for axis in range(bright.ndim)]
                occupied = [np.flatnonzero(bright.any(axis=other)) for other in others]
                box = tuple((int(places[0]), int(places[-1]) + 1) for places in occupied)
        grid = tuple(stop - start for start, stop in box)
        if self.spacing_mm:
            spacing = [image.spacing_mm[axis] for axis in axes]
            grid = tuple(max(1, round(n * now / then)) for n, now, then in zip(grid, spacing, self.spacing_mm, strict=True))
        if self.resize and self.shape:
            grid = self.shape
        return Geometry(axes, flipped, shape, box, grid)

    def _normalise(self, array: np.ndarray) -> np.ndarray:
        if self.intensity == "fixed":
            return ((array / np.float32(self.scale)) - np.float32(self.mean)) / np.float32(self.std)
        # In the memory order of the input, whatever it is: along another one each pass would take ten times as long.
        result = np.empty_like(array, np.float32)
        for channel in range(array.shape[-1]):
            source = array[..., channel]
            low, high = darkest, brightest = float(source.min()), float(source.max())
            if self.intensity != "min_max":
                foreground = source[source > darkest]
                if foreground.size and self.intensity == "percentile":
                    low, high = (float(value) for value in np.percentile(foreground, (0.5, 99.5)))
                elif foreground.size:
                    low = float(foreground.mean(dtype=np.float64))
                    high = low + float(foreground.std(dtype=np.float64))
            if high - low <= 1e-6 * (brightest - darkest):
                # A foreground of one value has no spread: the channel's own range stands for it.
                low, high = darkest, brightest
            # A constant channel carries nothing: it becomes 0 rather than a division by zero.
            np.subtract(source, np.float32(low), out=result[..., channel])
            np.divide(result[..., channel], np.float32(high - low or 1), out=result[..., channel])
        return np.clip(result, 0, 1, out=result) if self.intensity == "percentile" else result


def find_orientation(image: Volume) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which axis of the image each canonical (RAS+) axis is, and whether it runs the other way there.

    Slices, and volumes without an affine, stay as they are. An oblique volume goes to the closest orientation; it is not resampled.
    """
    rank = image.array.ndim - 1
    if rank != 3 or image.affine is None:
        return tuple(range(rank)), (False,) * rank
    orientation = _orient(image.affine)
    axes = np.argsort(orientation[:, 0])
    return tuple(int(axis) for axis in axes), tuple(bool(orientation[axis, 1] < 0) for axis in axes)


def _orient(affine: np.ndarray) -> np.ndarray:
    # Slices need no nibabel, and whoever asks for help does not either.
    from nibabel import io_orientation

    return io_orientation(affine)


def fit_shape(array: np.ndarray, shape: Sequence[int], fill: Sequence[float] | float = 0.0) -> np.ndarray:
    """Crops or pads each spatial axis of `(*S, C)` about the centre to `shape`.

    Cropping drops `(size - target) // 2` at the start of an axis and padding adds `(target - size) // 2` there, so that the
    one undoes the other exactly: `fit_shape(fit_shape(a, larger), a.shape)` is `a`.
    """
    return _place(array, shape, _centre(array.shape[:-1], shape), fill)


def _find_foreground(array: np.ndarray) -> np.ndarray:
    """Boolean `(*S, C)`: brighter than the channel's darkest voxel."""
    return array > array.min(axis=tuple(range(array.ndim - 1)))


def _centre(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Where the first voxel of `shape` comes to lie in `target` when their centres meet; below 0 where it is cut off."""
    return tuple((new - old) // 2 if new >= old else -((old - new) // 2) for old, new in zip(shape, target, strict=True))


def _place(array: np.ndarray, shape: Sequence[int], start: Sequence[int], fill: Sequence[float] | float) -> np.ndarray:
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


def _fit_planes(planes: Iterable[np.ndarray], shape, target, start, fill) -> Iterator[np.ndarray]:
    """`_place` for a volume that comes plane by plane."""
    if tuple(shape) == tuple(target):
        yield from planes
        return
    given = 0
    plane = None
    for index, plane in enumerate(planes):
        if not 0 <= start[0] + index < target[0]:
            continue
        while given < start[0] + index:
            yield _empty_plane(plane, target, fill)
            given += 1
        yield _place(plane, target[1:], start[1:], fill)
        given += 1
    while given < target[0]:
        yield _empty_plane(plane, target, fill)
        given += 1


def _empty_plane(like: np.ndarray, target, fill) -> np.ndarray:
    plane = np.empty((*target[1:], like.shape[-1]), like.dtype)
    plane[...] = fill
    return plane


def _resample(array: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    """Resamples `(*S, C)` to `shape` over the same field of view; voxels are areas, not points, so borders stay borders.

    An axis that shrinks averages over the area of each new voxel, so that nothing thin is stepped over; one that grows is interpolated.
    """
    # The same numbers in another memory layout may be summed in another order.
    array = _to_c_order(array)
    for axis, target in enumerate(shape):
        size = array.shape[axis]
        if target < size:
            edges = np.arange(target + 1) * (size / target)
            cells = np.arange(size)
            overlap = np.minimum.outer(edges[1:], cells + 1) - np.maximum.outer(edges[:-1], cells)
            array = _mix(array, np.clip(overlap, 0, None) * (target / size), axis)
        elif target > size and order == 1:
            low, high, share = _weigh(size, target)
            weights = np.zeros((target, size))
            np.add.at(weights, (np.arange(target), low), 1 - share)
            np.add.at(weights, (np.arange(target), high), share)
            array = _mix(array, weights, axis)
    if array.shape[:-1] == tuple(shape):
        return array
    from scipy import ndimage

    factors = [new / old for new, old in zip(shape, array.shape, strict=False)]
    result = np.empty((*shape, array.shape[-1]), np.float32)
    for channel in range(array.shape[-1]):
        ndimage.zoom(array[..., channel], factors, result[..., channel], order, mode="nearest", grid_mode=True)
    return result


def _to_c_order(array: np.ndarray) -> np.ndarray:
    """`np.ascontiguousarray`, several times as fast for volumes `(X, Y, Z, 1)` whose last axis is not the fastest, as in NIfTI files."""
    if array.ndim != 4 or array.shape[-1] != 1 or array.flags.c_contiguous or array.dtype.itemsize not in (1, 2, 4):
        return np.ascontiguousarray(array)
    # A copy in the order of memory, if it has gaps or runs backwards, and then its axes from the slowest to the fastest.
    volume = np.copy(array[..., 0], order="K")
    axes = np.argsort([-stride for stride in volume.strides], kind="stable")
    packed = volume.transpose(axes)
    if axes[2] == 2 or not packed.flags.c_contiguous:
        return np.ascontiguousarray(array)
    import cv2

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


def _mix(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Replaces the voxels along an axis by weighted sums of them: `weights (target, size)`."""
    mixed = np.tensordot(weights.astype(np.float32), array, axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(mixed, 0, axis))


def _weigh(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear interpolation along one axis: lower and upper neighbour of each target voxel, and the upper one's share."""
    place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.minimum(place.astype(int), max(size - 2, 0))
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def _resample_planes(planes: Iterable[np.ndarray], shape, target) -> Iterator[np.ndarray]:
    """Linear `_resample` for a volume that comes plane by plane; no more than two planes are held."""
    low, high, share = _weigh(shape[0], target[0])
    planes = enumerate(planes)
    held: dict[int, np.ndarray] = {}
    for first, second, part in zip(low, high, share, strict=True):
        while second not in held:
            index, plane = next(planes)
            held[index] = _resample_plane(plane, target[1:])
        held = {index: plane for index, plane in held.items() if index >= first}
        yield held[first] * (1 - part) + held[second] * part if part else held[first]
    for _ in planes:
        pass


def _resample_plane(plane: np.ndarray, target) -> np.ndarray:
    for axis, wanted in enumerate(target):
        if plane.shape[axis] != wanted:
            low, high, share = _weigh(plane.shape[axis], wanted)
            share = share.reshape(-1, *(1,) * (plane.ndim - 1 - axis))
            plane = plane.take(low, axis) * (1 - share) + plane.take(high, axis) * share
    return plane
