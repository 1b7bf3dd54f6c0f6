"""From a volume as it lies on disk to the input of a network, and the exact way back.

A volume is turned to the closest canonical orientation (RAS+), cropped to its foreground, normalised, resampled and fitted to a
shape, in this order. Only the turning and the normalising are always done. A slice goes the same way, but is not turned.

The way back puts probabilities, not labels, on the input's grid. It goes plane by plane, so that it never holds all classes of a
whole volume at once.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modules.data.case import Volume
from modules.data.resample import centre, fit_planes, fit_shape, resample, resample_planes, to_c_order

INTENSITIES = ("min_max", "percentile", "zscore", "fixed", "ct")
# The cache holds float16, which ends here.
MOST = float(np.finfo(np.float16).max)
# Differences and products of larger intensities may leave float32.
_BRIGHTEST = 1e30
# This is the cosine of an angle of 88.9 degrees between two axes. Rounding in a header is far from it.
_LARGEST_COSINE = 0.02
# "zscore" divides by at least this share of `scale`. Noise would otherwise become as bright as tissue.
LEAST_SPREAD = 0.05
INTERPOLATIONS = {"linear": 1, "cubic": 3}


# Bytes of the machine's memory; 0 where the system does not say.
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


@dataclass(frozen=True)
class Geometry:
    """The geometry of an input, as the way back needs it.

    Attributes:
        axes: The input's axis for each canonical axis.
        flipped: Whether that axis runs the other way in the input.
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
        """Returns a view of an array on the input's grid `(*S, ...)`, in canonical orientation."""
        array = array.transpose(*self.axes, *range(len(self.axes), array.ndim))
        return np.flip(array, tuple(axis for axis, flipped in enumerate(self.flipped) if flipped))

    def turn_back(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of a canonical array in the input's orientation; the inverse of `turn`."""
        array = np.flip(array, tuple(axis for axis, flipped in enumerate(self.flipped) if flipped))
        return array.transpose(*np.argsort(self.axes), *range(len(self.axes), array.ndim))

    def measure_spacing(self, spacing_mm: Sequence[float]) -> tuple[float, ...]:
        """Returns the voxel size after resampling along each canonical axis, from the input's."""
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
        interpolation: Interpolation of images where they are enlarged: "linear" or "cubic". Where they shrink, voxels are averaged.
            Labels are resampled as shares of each class, never by nearest voxel.
        foreground_crop: Whether margins that are as dark as the darkest voxel are cut off.
        intensity: "min_max" scales each case's channel to [0, 1]. "percentile" does so between the 0.5 and 99.5 percentile of the
            foreground and clips. "zscore" takes mean and standard deviation of the foreground to 0 and 1. "fixed" gives
            `(x / scale - mean) / std`. "ct" clips to `clip` and gives `(x - mean) / std`: Hounsfield units mean the same in each scan. The
            foreground here is every voxel brighter than the channel's darkest. A fill far
            from all others is brought to one range of the others beside them, see `_find_floor` and `_find_ceiling`.
        scale: Divisor that "fixed" applies first, 255 for 8-bit pictures. Where it is above 1, "zscore" divides by a twentieth of it
            at least, so that a slice of noise stays dark.
        mean: Mean of the training set after scaling, for "fixed"; of its foreground, for "ct".
        std: The standard deviation likewise.
        clip: Least and greatest intensity that "ct" keeps; empty for all.
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
    clip: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.intensity not in INTENSITIES:
            raise ValueError(f"Expected `intensity` in {INTENSITIES}. Received: {self.intensity!r}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"Expected `interpolation` in {tuple(INTERPOLATIONS)}. Received: {self.interpolation!r}.")
        for name in ("shape", "spacing_mm"):
            value = getattr(self, name)
            if value and (len(value) != self.spatial_dims or not min(value) > 0 or math.inf in value):
                raise ValueError(f"Expected `{name}` of {self.spatial_dims} finite numbers above 0. Received: {value}.")
        if self.clip and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise ValueError(f"Expected `clip` of two numbers, the smaller first. Received: {self.clip}.")

    def check(self, image: Volume, channels: Sequence[str], name: str) -> None:
        """Raises ValueError, naming `name`, for an image of another kind than this preprocessing was made for.

        Such an image has another rank, or another number of channels than `channels` names. Its affine may not say which way its axes run.
        Its axes may not be at right angles, so that no voxel size gives its volumes and distances. For "fixed", it may be brighter than
        `scale`. After resampling, it may be larger than memory.
        """
        rank, number, expected = image.array.ndim - 1, image.array.shape[-1], self.spatial_dims
        if rank != expected:
            raise ValueError(f"Expected a {expected}-D image for this model. Received: {rank}-D, {image.array.shape[:-1]}, in {name}.")
        if number != len(channels):
            raise ValueError(f"Expected {len(channels)} channel(s) ({', '.join(channels)}) for this model. Received: {number} in {name}.")
        if rank == 3 and image.affine is not None and not np.isfinite(_orient(image.affine)).all():
            raise ValueError(f"Expected an affine that gives each axis a direction. Received: a singular one in {name}. Mend its header.")
        _check_angles(image, name)
        self._check_size(image, name)
        brightest = float(image.array.max())
        largest = max(brightest, -float(image.array.min()))
        if largest > _BRIGHTEST:
            raise ValueError(
                f"Expected intensities within {_BRIGHTEST:g} of 0. Received: {largest:g} in {name}. Divide them, or leave it out."
            )
        if self.intensity == "fixed" and brightest > self.scale:
            raise ValueError(f"Expected intensities up to {self.scale:g}. Received: {brightest:g} in {name}. Convert it to that range.")

    def _check_size(self, image: Volume, name: str) -> None:
        """Raises ValueError, naming `name`, for an image that would not fit in memory once it is resampled, or would be one voxel."""
        if not self.spacing_mm or not _MEMORY:
            return
        grid = self.measure(image).grid
        if max(grid) == 1:
            raise ValueError(
                f"Expected a resampled volume of more than one voxel. Received: one voxel of {_format_mm(self.spacing_mm)} mm for "
                f"{'x'.join(map(str, image.array.shape[:-1]))} voxels of {_format_mm(image.spacing_mm)} mm in {name}. "
                "Mend its header, or choose a smaller `--spacing`."
            )
        size = 4 * math.prod(grid) * image.array.shape[-1]
        # The image, a copy on the way, and the probabilities under work.
        if 3 * size > _MEMORY:
            raise ValueError(
                f"Expected a resampled volume that fits in {_MEMORY / 2**30:.0f} GiB of memory. Received: "
                f"{'x'.join(f'{length:,}' for length in grid)} voxels, {size / 2**30:,.0f} GiB, of {_format_mm(self.spacing_mm)} mm from "
                f"voxels of {_format_mm(image.spacing_mm)} mm in {name}. Mend its header, or choose a larger `--spacing`."
            )

    def apply(self, image: Volume) -> tuple[np.ndarray, Geometry]:
        """Turns an image into the input of the network.

        Args:
            image: A volume whose array is `(*S, C)` float32.

        Returns:
            `(*P, C)` float32 in the range of float16, and the `Geometry` for the way back. Padding takes each channel's darkest value.
        """
        if image.array.ndim - 1 != self.spatial_dims:
            raise ValueError(f"Expected an image of {self.spatial_dims} dimensions. Received: shape {image.array.shape[:-1]}.")
        geometry = self.measure(image)
        array = geometry.turn(image.array)[tuple(slice(*side) for side in geometry.box)]
        array = resample(self._normalise(array), geometry.grid, INTERPOLATIONS[self.interpolation])
        if self.shape and array.shape[:-1] != self.shape:
            array = fit_shape(array, self.shape, fill=array.min(axis=tuple(range(array.ndim - 1))))
        if array.max() > MOST or array.min() < -MOST:
            array = np.clip(array, -MOST, MOST)
        return array, geometry

    def apply_label(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Brings the label `(*S)` of an image with that geometry to `(*P)`; padding is background.

        Resampling interpolates each class's share of a voxel and takes the largest. A class that shrinks thus does not depend on
        which voxel happens to lie nearest.
        """
        label = geometry.turn(label)[tuple(slice(*side) for side in geometry.box)]
        if label.shape != geometry.grid:
            share, chosen = np.full(geometry.grid, -1.0, np.float32), np.zeros(geometry.grid, label.dtype)
            for value in np.unique(label):
                shares = resample((label == value).astype(np.float32)[..., np.newaxis], geometry.grid, 1)[..., 0]
                larger = shares > share
                share[larger], chosen[larger] = shares[larger], value
            label = chosen
        return to_c_order(fit_shape(label[..., np.newaxis], self.shape or geometry.grid))[..., 0]

    def restore_planes(
        self,
        planes: Iterable[np.ndarray],
        geometry: Geometry,
        fill: Sequence[float] | float = 0.0,
        order: Sequence[int] = (0, 1, 2),
    ) -> Iterator[np.ndarray]:
        """Puts probabilities back on the input's grid in canonical orientation, a plane at a time.

        Args:
            planes: Plane `(*P[1:], K)` for each index of the first axis; for a slice, the one plane `(*P, K)`.
            geometry: From `apply`.
            fill: Value of the voxels that the network never saw: one number, or one for each class.
            order: Order of a volume's canonical axes, for the planes that come and for those that go. Planes lie across the first
                axis.

        Yields:
            Planes `(*S[1:], K)` of the canonical grid in order; for a slice, the one plane `(*S, K)`.
        """
        # A slice is the single plane of a volume of depth one.
        deep = (1,) * (3 - self.spatial_dims)
        sizes = (deep + tuple(sizes) for sizes in (self.shape or geometry.grid, geometry.grid, geometry.boxed, geometry.shape))
        shape, grid, boxed, whole = (tuple(size[axis] for axis in order) for size in sizes)
        box = ((0, 1),) * len(deep) + geometry.box
        planes = fit_planes(planes, shape, grid, centre(shape, grid), fill)
        if grid != boxed:
            planes = resample_planes(planes, grid, boxed)
        yield from fit_planes(planes, boxed, whole, tuple(box[axis][0] for axis in order), fill)

    def restore(self, array: np.ndarray, geometry: Geometry, fill: Sequence[float] | float = 0.0) -> np.ndarray:
        """Puts `(*P, K)` back on the input's grid and orientation, `(*S, K)`; see `restore_planes`."""
        planes = list(self.restore_planes(array if self.spatial_dims == 3 else array[np.newaxis], geometry, fill))
        return geometry.turn_back(np.stack(planes) if self.spatial_dims == 3 else planes[0])

    def measure(self, image: Volume) -> Geometry:
        """Finds where the voxels of an image will lie, without changing it."""
        spatial = image.array.shape[:-1]
        axes, flipped = find_orientation(image)
        shape = tuple(spatial[axis] for axis in axes)
        box = tuple((0, size) for size in shape)
        if self.foreground_crop:
            bright = np.asarray(_find_foreground(image.array).any(axis=-1)).transpose(axes)
            bright = np.flip(bright, tuple(axis for axis, is_flipped in enumerate(flipped) if is_flipped))
            if bright.any():
                others = [tuple(other for other in range(bright.ndim) if other != axis) for axis in range(bright.ndim)]
                occupied = [np.flatnonzero(bright.any(axis=other)) for other in others]
                box = tuple((int(places[0]), int(places[-1]) + 1) for places in occupied)
        return Geometry(axes, flipped, shape, box, measure_grid(box, [image.spacing_mm[axis] for axis in axes], self))

    def _normalise(self, array: np.ndarray) -> np.ndarray:
        if self.intensity == "fixed":
            return ((array / np.float32(self.scale)) - np.float32(self.mean)) / np.float32(self.std)
        if self.intensity == "ct":
            kept = np.clip(array, np.float32(self.clip[0]), np.float32(self.clip[1])) if self.clip else array
            return (kept - np.float32(self.mean)) / np.float32(self.std)
        # The result keeps the input's memory order, whatever it is. In another order each pass would take ten times as long.
        result = np.empty_like(array, np.float32)
        for channel in range(array.shape[-1]):
            source = array[..., channel]
            low, high = darkest, brightest = float(source.min()), float(source.max())
            floor = _find_floor(source, darkest, brightest)
            ceiling = brightest if floor > darkest else _find_ceiling(source, darkest, brightest)
            if self.intensity == "min_max":
                low, high = floor, ceiling
            else:
                foreground = source[source > darkest]
                if ceiling < brightest and (self.intensity == "zscore" or np.percentile(foreground, 99.5) > ceiling):
                    foreground = foreground[foreground < brightest]
                if foreground.size and self.intensity == "percentile":
                    low, high = (float(value) for value in np.percentile(foreground, (0.5, 99.5)))
                elif foreground.size:
                    low = float(foreground.mean(dtype=np.float64))
                    # A picture of a known range may show nothing but noise, as the slices above a head do.
                    least = LEAST_SPREAD * self.scale if self.scale > 1 else 0.0
                    high = low + max(least, float(foreground.std(dtype=np.float64)))
            if high - low <= 1e-6 * (ceiling - floor):
                # A foreground of one value has no spread, so the channel's own range stands for it.
                low, high = floor, ceiling
            # A constant channel carries nothing. It becomes 0, so that nothing is divided by zero.
            np.subtract(source, np.float32(low), out=result[..., channel])
            np.divide(result[..., channel], np.float32(high - low or 1), out=result[..., channel])
            if floor > darkest:
                least = np.float32((floor - low) / (high - low or 1))
                np.maximum(result[..., channel], least, out=result[..., channel])
            elif ceiling < brightest:
                np.minimum(result[..., channel], np.float32((ceiling - low) / (high - low or 1)), out=result[..., channel])
        return np.clip(result, 0, 1, out=result) if self.intensity == "percentile" else result


def measure_grid(box: Sequence[tuple[int, int]], spacing_mm: Sequence[float], preprocessing: Preprocessing) -> tuple[int, ...]:
    """Returns the shape of a case after resampling, before fitting.

    Args:
        box: First and one past the last voxel that is kept along each canonical axis.
        spacing_mm: Size of a voxel along these axes.
        preprocessing: The preprocessing.
    """
    grid = tuple(stop - start for start, stop in box)
    if preprocessing.resize and preprocessing.shape:
        return preprocessing.shape
    if not preprocessing.spacing_mm:
        return grid
    lengths = [n * now / then for n, now, then in zip(grid, spacing_mm, preprocessing.spacing_mm, strict=True)]
    # Of one scan a header and an affine say sizes that differ in the last digits. At half a voxel they would give two shapes.
    return tuple(max(1, round(round(length, 4))) for length in lengths)


def _check_angles(image: Volume, name: str) -> None:
    """Raises ValueError, naming the file `name`, for an image whose axes are not at right angles to one another."""
    if image.affine is None:
        return
    columns = image.affine[:3, : image.array.ndim - 1]
    columns = columns / np.linalg.norm(columns, axis=0)
    cosines = np.abs(np.triu(columns.T @ columns, 1))
    if (cosine := float(cosines.max())) > _LARGEST_COSINE:
        one, other = (int(axis) for axis in np.unravel_index(cosines.argmax(), cosines.shape))
        angle = math.degrees(math.acos(min(1.0, cosine)))
        raise ValueError(
            f"Expected axes at right angles in {name}. Received: axes {one} and {other} at {angle:.1f} degrees. "
            "Mend its header, or resample it to a grid without shear."
        )


def _format_mm(sizes: Sequence[float]) -> str:
    return "x".join(f"{size:g}" for size in sizes)


def find_orientation(image: Volume) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Finds the image's axis for each canonical (RAS+) axis, and whether it runs the other way in the image.

    Slices, and volumes without an affine, stay as they are. An oblique volume goes to the closest orientation; it is not resampled.
    """
    rank = image.array.ndim - 1
    if rank != 3 or image.affine is None:
        return tuple(range(rank)), (False,) * rank
    orientation = _orient(image.affine)
    axes = np.argsort(orientation[:, 0])
    return tuple(int(axis) for axis in axes), tuple(bool(orientation[axis, 1] < 0) for axis in axes)


def _orient(affine: np.ndarray) -> np.ndarray:
    # The import waits: slices need no nibabel, and neither does a command that prints its help.
    from nibabel import io_orientation

    return io_orientation(affine)


def _find_floor(source: np.ndarray, darkest: float, brightest: float) -> float:
    """Finds the least intensity of a channel that means anything.

    It is the darkest voxel's own, but where this is a fill such as -1000 or -32768 about a small object. Beside such a fill the object's
    own contrast would vanish. A fill is below 0, and lies further below all others than these span; or it lies 100 times as far below.
    It is raised to as far below the others as these span. Scanners measure magnitudes of 0 or more, so their images stay as they are.

    Args:
        source: The channel `(*S)`.
        darkest: Its least intensity.
        brightest: Its greatest intensity.
    """
    # Beside a fill all others lie in the brighter half of the range. In most images one voxel in hundreds suffices to rule that out.
    sample = source[(slice(None, None, 8),) * source.ndim]
    if ((sample > darkest) & (sample <= (darkest + brightest) / 2)).any() or darkest == brightest:
        return darkest
    least = float(source[source > darkest].min())
    span, gap = brightest - least, least - darkest
    is_fill = span > 0 and gap > span * (1 if darkest < 0 else 100)
    return least - span if is_fill else darkest


def _find_ceiling(source: np.ndarray, darkest: float, brightest: float) -> float:
    """Finds the greatest intensity of a channel that means anything; it takes what `_find_floor` takes.

    It is the brightest voxel's own, but where this is a fill such as 65535 or 1e9 beside a dark object. Such a fill lies more than 100
    times as far above all others as these span. It is lowered to as far above the others as these span.
    """
    # Beside such a fill all others lie in the darkest hundredth of the range. Nearly any image has a sampled voxel above it.
    sample = source[(slice(None, None, 8),) * source.ndim]
    if darkest == brightest or ((sample > darkest + (brightest - darkest) / 100) & (sample < brightest)).any():
        return brightest
    greatest = float(source[source < brightest].max())
    span = greatest - darkest
    return greatest + span if span > 0 and brightest - greatest > 100 * span else brightest


def _find_foreground(array: np.ndarray) -> np.ndarray:
    """Returns a boolean `(*S, C)`, true where a voxel is brighter than its channel's darkest."""
    return array > array.min(axis=tuple(range(array.ndim - 1)))
