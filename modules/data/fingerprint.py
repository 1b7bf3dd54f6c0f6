"""The fingerprint of the training cases: what the plan must know of shapes, voxel sizes, intensities and classes.

`measure` reads every training case once and keeps what it measured in the cache. All else here is pure.
"""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.case import Case, Volume, read_case, require_label
from modules.data.files import fingerprint_files, replace_file
from modules.data.outliers import LEAST_FACTOR, find_outliers, measure_deviations, measure_factors
from modules.data.preprocess import Geometry, Preprocessing, find_orientation, measure_grid
from modules.data.regions import IGNORE, list_parts
from modules.data.room import count_readers
from modules.data.spec import DatasetSpec

log = logging.getLogger("mri")

# Change this number when `measure_case` measures anything else.
FORMAT = 1
# The quantiles of a channel's foreground that are kept.
QUANTILES = (0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995)
# So many voxels of a case's foreground are looked at, on a regular grid.
_SAMPLE = 1 << 15
# A case is unusual where a measure lies this many robust standard deviations from the median, and `LEAST_FACTOR` too.
_MOST_DEVIATIONS = 6.0
_MOST_NAMED = 5


@dataclass(frozen=True)
class CaseMeasures:
    """The measurements of one training case, along canonical axes.

    Attributes:
        case_id: The case.
        shape: `S`.
        spacing_mm: Size of a voxel; ones for pictures.
        orientation: The file's own orientation, such as "LPS"; "" for slices and pictures.
        box: First and one past the last voxel along each axis that is brighter than the darkest in any channel.
        empty: Share of the voxels that are as dark as the darkest in every channel.
        quantiles: `(C, 7)`: the quantiles `QUANTILES` of each channel over the labelled foreground, or over all voxels where there is none.
        means: Mean of each channel over the same voxels.
        deviations: Their standard deviation.
        voxels: Number of voxels of each class.
    """

    case_id: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    box: tuple[tuple[int, int], ...]
    empty: float
    quantiles: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    voxels: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CaseMeasures":
        """Reads what `asdict` made of a record; raises TypeError for other fields."""
        return cls(**{name: _freeze(value) for name, value in values.items()})


@dataclass(frozen=True)
class Fingerprint:
    """The measurements of all training cases, and their pool.

    Attributes:
        cases: The measurements of each case, in the order of the cases.
        subjects: Number of subjects.
    """

    cases: tuple[CaseMeasures, ...]
    subjects: int = 1

    def list_grids(self, preprocessing: Preprocessing) -> tuple[tuple[int, ...], ...]:
        """Lists the shape of each case after foreground crop and resampling, before fitting."""
        grids = []
        for case in self.cases:
            box = case.box if preprocessing.foreground_crop else tuple((0, size) for size in case.shape)
            grids.append(measure_grid(box, case.spacing_mm, preprocessing))
        return tuple(grids)

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Median voxel size along each axis."""
        return tuple(float(size) for size in np.median([case.spacing_mm for case in self.cases], axis=0))

    @cached_property
    def anisotropy(self) -> float:
        """The longest side of the median voxel over the next one; 1 for pictures."""
        *_, next_longest, longest = sorted(self.spacing_mm)
        return longest / next_longest

    @cached_property
    def foreground(self) -> float:
        """Share of the judged voxels within the boxes of all cases that any class but the background holds."""
        inside = sum(math.prod(stop - start for start, stop in case.box) for case in self.cases)
        # Regions overlap, so that their sum is too much. Ignored voxels are no background either, so that the rest is too much.
        held = sum(min(math.prod(case.shape) - case.voxels[0], sum(case.voxels[1:])) for case in self.cases)
        judged = held + sum(case.voxels[0] for case in self.cases)
        return min(1.0, held / max(1, min(inside, judged)))

    @cached_property
    def empty(self) -> float:
        """Median share of empty voxels."""
        return float(np.median([case.empty for case in self.cases]))

    @cached_property
    def voxels(self) -> tuple[int, ...]:
        """Number of voxels of each class, over all cases."""
        return tuple(int(count) for count in np.sum([case.voxels for case in self.cases], axis=0))

    @cached_property
    def cases_by_class(self) -> tuple[int, ...]:
        """Number of cases that hold each class."""
        return tuple(int(count) for count in (np.array([case.voxels for case in self.cases]) > 0).sum(axis=0))

    @cached_property
    def shown(self) -> tuple[CaseMeasures, ...]:
        """The cases whose label holds foreground, or all where none does. The intensities of the others are those of whole images."""
        return tuple(case for case in self.cases if any(case.voxels[1:])) or self.cases

    @cached_property
    def intensities(self) -> tuple[tuple[float, float, float, float], ...]:
        """Low (0.5th percentile), high (99.5th percentile), mean and standard deviation of each channel's pooled foreground.

        Each case that holds foreground weighs alike. The percentiles are those of the cases' own quantiles together.
        """
        pooled = []
        # Each quantile stands for the share of the voxels that lies nearest to it.
        edges = np.concatenate([[0], (np.array(QUANTILES[1:]) + QUANTILES[:-1]) / 2, [1]])
        shares = np.tile(np.diff(edges), len(self.shown)) / len(self.shown)
        for channel in range(len(self.shown[0].means)):
            values = np.concatenate([case.quantiles[channel] for case in self.shown])
            order = np.argsort(values)
            places = np.cumsum(shares[order]) - shares[order] / 2
            low, high = np.interp((0.005, 0.995), places, values[order])
            means, deviations = (np.array([getattr(case, name)[channel] for case in self.shown]) for name in ("means", "deviations"))
            mean = means.mean()
            # The variance of a mixture is the mean of the variances plus the variance of the means.
            pooled.append((float(low), float(high), float(mean), math.sqrt(float((deviations**2).mean() + ((means - mean) ** 2).mean()))))
        return tuple(pooled)

    def find_outliers(self, class_names: Sequence[str] = ()) -> list[str]:
        """Describes unusual cases in a sentence for each measure: another voxel size, shape, brightness or volume of a class.

        Args:
            class_names: Names of the classes whose volumes are compared, the background first. Slices have none to compare.
        """
        found = []
        for name, unit, field, cases in (
            ("voxels", " mm", "spacing_mm", self.cases),
            ("grids", " voxels", "shape", self.cases),
            ("mean intensities", "", "means", self.shown),
        ):
            values = np.array([getattr(case, field) for case in cases], np.float64)
            unusual = _find_unusual(values)
            if unusual:
                named = [f"{cases[index].case_id} {_join(values[index])}" for index in unusual[:_MOST_NAMED]]
                more = f", and {len(unusual) - _MOST_NAMED} more" if len(unusual) > _MOST_NAMED else ""
                found.append(f"unusual {name}: {', '.join(named)}{more}; the median case has {_join(np.median(values, axis=0))}{unit}")
        return found + [line for index in range(1, len(class_names)) for line in self._find_odd_volumes(index, class_names[index])]

    def _find_odd_volumes(self, index: int, name: str) -> list[str]:
        """Describes the volumes that hold unusually much or little of a class, in one sentence or none."""
        sizes = [
            (case.case_id, case.voxels[index] * math.prod(case.spacing_mm) / 1000)
            for case in self.cases
            if len(case.shape) == 3 and case.voxels[index]
        ]
        outliers = find_outliers([size for _, size in sizes], relative=True)
        if not outliers:
            return []
        named = [f"{sizes[outlier.place][0]} {outlier.value:.4g}" for outlier in outliers[:_MOST_NAMED]]
        more = f", and {len(outliers) - _MOST_NAMED} more" if len(outliers) > _MOST_NAMED else ""
        return [f"unusual volumes of {name}: {', '.join(named)}{more}; the median case has {outliers[0].median:.4g} ml"]

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns the fingerprint as plain values for `fingerprint.json`, the pool first."""
        shapes = np.array([case.shape for case in self.cases])
        pool = {
            "cases": len(self.cases),
            "subjects": self.subjects,
            "shape": {
                "least": shapes.min(axis=0).tolist(),
                "median": np.median(shapes, axis=0).tolist(),
                "most": shapes.max(axis=0).tolist(),
            },
            "spacing_mm": self.spacing_mm,
            "orientations": sorted({case.orientation for case in self.cases}),
            "empty": self.empty,
            "intensities": [dict(zip(("low", "high", "mean", "deviation"), channel, strict=True)) for channel in self.intensities],
            "classes": {
                name: {"voxels": voxels, "cases": cases}
                for name, voxels, cases in zip(class_names, self.voxels, self.cases_by_class, strict=True)
            },
            "outliers": self.find_outliers(class_names),
        }
        return {"pooled": pool, "cases": [asdict(case) for case in self.cases]}


def measure(cases: Sequence[Case], spec: DatasetSpec, folder: Path) -> Fingerprint:
    """Measures training cases, or finds again in `folder` what was measured of files that did not change since.

    Args:
        cases: Labelled cases.
        spec: Their data set.
        folder: The cache.

    Raises:
        FileNotFoundError, ValueError: If a file is missing or wrong, naming it.
    """
    path = folder / f"{spec.name}-fingerprint.json"
    rules = json.dumps([FORMAT, len(spec.channels), sorted(spec.label_rule.values.items()), spec.regions])
    keys = [f"{rules} {case.case_id} {fingerprint_files(case.list_files())} {case.ignore_geometry}" for case in cases]
    known = _read_known(path)
    missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in known]
    if missing:
        with ThreadPoolExecutor(max_workers=count_readers([case for _, case in missing], spec.preprocessing)) as executor:
            measured = executor.map(lambda item: measure_case(item[1], spec), missing)
            known |= {key: one for (key, _), one in zip(missing, measured, strict=True)}
        folder.mkdir(parents=True, exist_ok=True)
        kept = {key: asdict(one) for key, one in known.items()}
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8", errors="surrogateescape")
    return Fingerprint(tuple(known[key] for key in keys), len({case.subject_id for case in cases}))


def measure_case(case: Case, spec: DatasetSpec) -> CaseMeasures:
    """Reads and measures a labelled case; raises as `measure`."""
    image, label = read_case(case, spec)
    return measure_scan(case, image, require_label(case, label), spec)


def measure_scan(case: Case, image: Volume, label: np.ndarray, spec: DatasetSpec) -> CaseMeasures:
    """Measures a case that `read_case` has read; without a label, take one of background."""
    axes, flipped = find_orientation(image)
    geometry = Geometry(axes, flipped, (), (), ())
    array, turned = geometry.turn(image.array), geometry.turn(label)
    bright = np.asarray((array > array.min(axis=tuple(range(len(axes))))).any(axis=-1))
    box = []
    for axis, size in enumerate(bright.shape):
        places = np.flatnonzero(bright.any(axis=tuple(other for other in range(bright.ndim) if other != axis)))
        box.append((int(places[0]), int(places[-1]) + 1) if places.size else (0, size))
    chosen = np.flatnonzero((turned > 0) & (turned != IGNORE))
    if not chosen.size:
        chosen = np.arange(0, turned.size, max(1, turned.size // _SAMPLE))
    # The places of a few voxels take less memory than a turned copy of the image.
    places = np.unravel_index(chosen[:: max(1, chosen.size // _SAMPLE)], turned.shape)
    sample = np.ascontiguousarray(array[places], np.float64)
    return CaseMeasures(
        case_id=case.case_id,
        shape=bright.shape,
        spacing_mm=tuple(float(image.spacing_mm[axis]) for axis in axes),
        orientation=_name_orientation(image),
        box=tuple(box),
        empty=1 - float(bright.mean()),
        quantiles=tuple(tuple(float(f"{value:.6g}") for value in channel) for channel in np.quantile(sample, QUANTILES, axis=0).T),
        means=tuple(float(value) for value in sample.mean(axis=0)),
        deviations=tuple(float(value) for value in sample.std(axis=0)),
        voxels=_count_classes(turned, spec),
    )


def _count_classes(label: np.ndarray, spec: DatasetSpec) -> tuple[int, ...]:
    """Counts the voxels of each class; those of regions overlap, and ignored voxels count nowhere."""
    parts = np.bincount(label.ravel(), minlength=spec.num_parts)
    members = [(0,), *list_parts(spec.class_names, spec.regions)]
    return tuple(int(parts[list(indices)].sum()) for indices in members)


def _name_orientation(image: Volume) -> str:
    if image.affine is None or image.array.ndim != 4:
        return ""
    from nibabel import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(image.affine))


def _read_known(path: Path) -> dict[str, CaseMeasures]:
    """Reads what an earlier command measured; nothing where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        return {key: CaseMeasures.from_json(values) for key, values in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        log.warning("cache: %s is damaged; the cases are measured anew", path)
        return {}


def _find_unusual(values: np.ndarray) -> list[int]:
    """Finds the rows of `(n, m)` that lie far from the median in any column, farthest first."""
    deviations = np.abs(measure_deviations(values))
    unusual = (deviations > _MOST_DEVIATIONS) & ~(measure_factors(values) < LEAST_FACTOR)
    rows = np.flatnonzero(unusual.any(axis=1))
    return sorted(rows.tolist(), key=lambda row: -float(deviations[row].max()))


def _join(values: Iterable[float]) -> str:
    return "x".join(f"{value:.4g}" for value in values)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
