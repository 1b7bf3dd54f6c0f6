"""The ranges that the training cases of a network span, and how a scan to predict leaves them.

A network gets used to voxels of some size, to a field of view, and to how intensities spread. Preprocessing mends part of what differs: it
resamples where it is told to, and it scales intensities. The rest is told, because a network can be wrong about such a scan.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from modules.data.case import Volume
from modules.data.preprocess import Geometry, Preprocessing

# A voxel may be larger or smaller than the training's by this factor.
MOST_SPACING = 1.5
# A field of view may be larger or smaller than the training's by this factor.
MOST_EXTENT = 2.0
# A quartile may lie this far outside the training's range. 0 is the 1st percentile of the channel, and 1 the 99th.
MOST_SHIFT = 0.2
# The spread of intensities may leave the training's range by this factor, where no scan's own spread scales it.
MOST_SPREAD = 3.0
# So many voxels of a channel are looked at, on a regular grid: few, because every case of a training is measured.
_SAMPLE = 1 << 12
MOST_FLOAT = float(np.finfo(np.float32).max)

Span = tuple[float, float]


@dataclass(frozen=True)
class TrainingRanges:
    """The least and the greatest of what the training cases measure.

    Attributes:
        spacing_mm: Size of a voxel along each canonical axis; pixels for pictures.
        extent_mm: Extent of what preprocessing leaves of the field of view, likewise.
        quartiles: Three quartiles of each channel, see `MOST_SHIFT`.
        spread: Difference of the 99th and the 1st percentile of each channel, in the files' own intensities.
        share: Part of each channel's whole range that this spread takes.
        in_mm: Whether the files say what a voxel measures; pictures do not.
    """

    spacing_mm: tuple[Span, ...]
    extent_mm: tuple[Span, ...]
    quartiles: tuple[tuple[Span, ...], ...]
    spread: tuple[Span, ...]
    share: tuple[Span, ...]
    in_mm: bool

    @classmethod
    def pool(cls, measured: Iterable[bytes], rank: int) -> "TrainingRanges":
        """Pools the training cases, each as `measure_scan` measured it, for scans of `rank` spatial axes."""
        rows = np.stack([np.frombuffer(one, np.float32) for one in measured])
        spans = [(_shorten(low), _shorten(high)) for low, high in zip(rows.min(axis=0), rows.max(axis=0), strict=True)]
        channels = [spans[first : first + 5] for first in range(1 + 2 * rank, len(spans), 5)]
        return cls(
            spacing_mm=tuple(spans[1 : 1 + rank]),
            extent_mm=tuple(spans[1 + rank : 1 + 2 * rank]),
            quartiles=tuple(tuple(channel[:3]) for channel in channels),
            spread=tuple(channel[3] for channel in channels),
            share=tuple(channel[4] for channel in channels),
            in_mm=bool(rows[:, 0].all()),
        )

    def allow_contrasts(self) -> "TrainingRanges":
        """Returns ranges that no contrast leaves, for a network that was trained on many."""
        return replace(self, quartiles=tuple(((0.0, 1.0),) * len(spans) for spans in self.quartiles))

    def to_json(self) -> dict[str, Any]:
        """Returns the ranges as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingRanges":
        """Reads what `to_json` returned; raises KeyError, TypeError or ValueError for anything else."""

        def read_spans(spans: Sequence[Sequence[float]]) -> tuple[Span, ...]:
            return tuple((float(low), float(high)) for low, high in spans)

        plain = {name: read_spans(values[name]) for name in ("spacing_mm", "extent_mm", "spread", "share")}
        return cls(quartiles=tuple(map(read_spans, values["quartiles"])), in_mm=bool(values["in_mm"]), **plain)

    def find_departures(self, image: Volume, preprocessing: Preprocessing, channels: Sequence[str], across: int | None = None) -> list[str]:
        """Describes how a scan leaves the ranges, in parts of a sentence; none if it does not.

        Args:
            image: The scan, of the network's rank and channels.
            preprocessing: The network's preprocessing.
            channels: Names of the channels.
            across: Axis that the slices of a 2-D network lie across: nothing depends on the distance or number of slices.
        """
        rank = image.array.ndim - 1
        row = np.frombuffer(measure_scan(image, preprocessing.measure(image)), np.float32)
        axes = [axis for axis in range(rank) if axis != across] if rank == 3 else list(range(rank))
        found = []
        if bool(row[0]) == self.in_mm:
            unit = "mm" if self.in_mm else "pixels"
            spacing, extent = row[1 : 1 + rank], row[1 + rank : 1 + 2 * rank]
            # A whole field of view that is brought to one size has no spacing of its own. Resampled scans can only lack detail.
            lower = not preprocessing.spacing_mm
            if not preprocessing.resize and _leaves(spacing, self.spacing_mm, MOST_SPACING, axes, lower=lower):
                found.append(f"voxels of {_list(spacing)} {unit} (trained: {_list_spans(self.spacing_mm)})")
            if _leaves(extent, self.extent_mm, MOST_EXTENT, axes):
                found.append(f"a field of view of {_list(extent)} {unit} (trained: {_list_spans(self.extent_mm)})")
        for channel, name in enumerate(channels):
            values = row[1 + 2 * rank + 5 * channel :][:5]
            # Blank slices lie at the ends of many scans.
            blank = "one value in every voxel" if rank == 3 and values[3] == 0 and values[4] == 1 else ""
            if departure := blank or self._find_intensities(values, channel, preprocessing.intensity):
                found.append(f"{departure} in {name}" if len(channels) > 1 else departure)
        return found

    def _find_intensities(self, values: np.ndarray, channel: int, intensity: str) -> str:
        quartiles, spread, share = values[:3], values[3], values[4]
        spans = self.quartiles[channel]
        if spread <= 0:
            return ""
        if _shifts(quartiles, spans):
            inverted = "" if _shifts(1 - quartiles[::-1], spans) else " as of an inverted contrast"
            return (
                f"intensities{inverted} with quartiles at {', '.join(map(_format_percent, quartiles))} % (trained: {_list_percents(spans)})"
            )
        if intensity == "fixed" and _leaves([spread], [self.spread[channel]], MOST_SPREAD):
            return f"intensities that span {spread:.3g} (trained: {_list_spans([self.spread[channel]])})"
        if intensity == "min_max" and share < self.share[channel][0] / MOST_SPREAD:
            trained = _list_percents([self.share[channel]])
            return f"a few outliers that leave {_format_percent(share)} % of the range to the rest (trained: {trained})"
        return ""


def measure_scan(image: Volume, geometry: Geometry) -> bytes:
    """Measures what `TrainingRanges` pools.

    Args:
        image: `(*S, C)` as it lies on disk.
        geometry: Its geometry, from `Preprocessing.measure`.

    Returns:
        `(1 + 2 r + 5 C,)` float32 as bytes: a flag, spacing, extent, and five numbers for each channel. The flag is 1 for a file that says
        what a voxel measures, else 0. Spacing and extent of the box run along the canonical axes. A channel has three quartiles, spread and
        share.
    """
    spacing = [image.spacing_mm[axis] for axis in geometry.axes]
    extent = [size * length for size, length in zip(geometry.boxed, spacing, strict=True)]
    step = max(1, math.ceil((image.array[..., 0].size / _SAMPLE) ** (1 / len(spacing))))
    values = [float(image.affine is not None), *spacing, *extent]
    for channel in range(image.array.shape[-1]):
        voxels = image.array[..., channel]
        whole = float(voxels.max()) - float(voxels.min())
        sample = voxels[(slice(None, None, step),) * len(spacing)].ravel()
        low, *quartiles, high = (float(value) for value in np.percentile(sample, (1, 25, 50, 75, 99)))
        spread = high - low
        values += [(value - low) / spread if spread > 0 else 0.0 for value in quartiles]
        values += [spread, spread / whole if whole > 0 else 1.0]
    # A difference of two float32 may lie beyond float32.
    return np.clip(values, -MOST_FLOAT, MOST_FLOAT).astype(np.float32).tobytes()


def _shorten(value: float) -> float:
    """Rounds to six digits, so that float32 does not look like a measurement of nine."""
    return float(f"{value:.6g}")


def _leaves(
    values: Sequence[float] | np.ndarray, spans: Sequence[Span], factor: float, axes: Iterable[int] = (0,), *, lower: bool = True
) -> bool:
    """Tells whether a value leaves its span by a factor."""
    return any(values[axis] > spans[axis][1] * factor or (lower and values[axis] < spans[axis][0] / factor) for axis in axes)


def _shifts(quartiles: np.ndarray, spans: Sequence[Span]) -> bool:
    return any(not low - MOST_SHIFT <= value <= high + MOST_SHIFT for value, (low, high) in zip(quartiles, spans, strict=True))


def _list(values: Iterable[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)


def _list_spans(spans: Iterable[Span]) -> str:
    return " x ".join(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}" for low, high in spans)


def _list_percents(spans: Iterable[Span]) -> str:
    return ", ".join(f"{_format_percent(low)} to {_format_percent(high)}" for low, high in spans)


def _format_percent(part: float) -> str:
    return f"{100 * part:.0f}" if part >= 0.1 else f"{100 * part:.2g}"
