"""From a volume as it lies on disk to what a network sees, and the exact way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.volume import Volume

INTENSITIES = ("min_max", "fixed")


@dataclass(frozen=True)
class Geometry:
    """What `Preprocessing.restore` needs to know of the input.

    Attributes:
        shape: `S`, the spatial shape before cropping and padding.
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """Intensities and grid that a network expects.

    Attributes:
        shape: `P`, the spatial shape after cropping or padding about the centre.
        intensity: "min_max" scales each case's channel to [0, 1]; "fixed" gives `(x / scale - mean) / std`.
        scale: For "fixed": divides first, 255 for 8-bit pictures.
        mean: For "fixed": the training set's mean after scaling.
        std: For "fixed": the training set's standard deviation after scaling.
    """

    shape: tuple[int, ...]
    intensity: str = "min_max"
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.intensity not in INTENSITIES:
            raise ValueError(f"Expected `intensity` in {INTENSITIES}. Received: {self.intensity!r}.")

    def check(self, image: Volume, channels: Sequence[str], name: str) -> None:
        """Raises ValueError, naming `name`, where an image is not of the kind that this preprocessing was made for.

        That is: another rank, another number of channels than `channels` names, or, for "fixed", brighter than `scale`.
        """
        rank, number, expected = image.array.ndim - 1, image.array.shape[-1], len(self.shape)
        if rank != expected:
            raise ValueError(f"Expected a {expected}-D image for this model. Received: {rank}-D, {image.array.shape[:-1]}, in {name}.")
        if number != len(channels):
            raise ValueError(f"Expected {len(channels)} channel(s) ({', '.join(channels)}) for this model. Received: {number} in {name}.")
        brightest = float(image.array.max())
        if self.intensity == "fixed" and brightest > self.scale:
            raise ValueError(f"Expected intensities up to {self.scale:g}. Received: {brightest:g} in {name}. Convert it to that range.")

    def apply(self, image: Volume) -> tuple[np.ndarray, Geometry]:
        """Normalises intensities, then crops or pads about the centre.

        Args:
            image: A volume whose array is `(*S, C)` float32.

        Returns:
            `(*P, C)` float32, and the `Geometry` to come back with. Padding takes each channel's darkest value.
        """
        spatial = image.array.shape[:-1]
        if len(spatial) != len(self.shape):
            raise ValueError(f"Expected an image of {len(self.shape)} dimensions. Received: {len(spatial)}, shape {spatial}.")
        array = self._normalise(image.array)
        darkest = array.min(axis=tuple(range(array.ndim - 1)))
        return fit_shape(array, self.shape, fill=darkest), Geometry(spatial)

    def apply_label(self, label: np.ndarray) -> np.ndarray:
        """Crops or pads a label `(*S)` to `(*P)`; padding is background."""
        return fit_shape(label[..., np.newaxis], self.shape)[..., 0]

    def restore(self, array: np.ndarray, geometry: Geometry, fill: Sequence[float] | float = 0.0) -> np.ndarray:
        """Puts `(*P, K)` back on the input grid `(*S, K)`; what the network never saw becomes `fill` (a value, or one a channel)."""
        return fit_shape(array, geometry.shape, fill=fill)

    def unseen(self, shape: Sequence[int]) -> int:
        """How many voxels of an input of shape `S` the network does not see because they lie outside the crop."""
        seen = math.prod(min(size, target) for size, target in zip(shape, self.shape, strict=True))
        return math.prod(shape) - seen

    def _normalise(self, array: np.ndarray) -> np.ndarray:
        if self.intensity == "fixed":
            return ((array / np.float32(self.scale)) - np.float32(self.mean)) / np.float32(self.std)
        axes = tuple(range(array.ndim - 1))
        low = array.min(axis=axes)
        extent = array.max(axis=axes) - low
        # A constant channel carries nothing: it becomes 0 rather than a division by zero.
        return (array - low) / np.where(extent > 0, extent, 1).astype(np.float32)


def fit_shape(array: np.ndarray, shape: Sequence[int], fill: Sequence[float] | float = 0.0) -> np.ndarray:
    """Crops or pads each spatial axis of `(*S, C)` about the centre to `shape`.

    Cropping drops `(size - target) // 2` at the start of an axis and padding adds `(target - size) // 2` there, so that the
    one undoes the other exactly: `fit_shape(fit_shape(a, larger), a.shape)` is `a`.
    """
    if array.shape[:-1] == tuple(shape):
        return array
    result = np.empty((*shape, array.shape[-1]), array.dtype)
    result[...] = fill
    source, target = [], []
    for size, wanted in zip(array.shape[:-1], shape, strict=True):
        common = min(size, wanted)
        source.append(slice((size - common) // 2, (size - common) // 2 + common))
        target.append(slice((wanted - common) // 2, (wanted - common) // 2 + common))
    result[tuple(target)] = array[tuple(source)]
    return result
