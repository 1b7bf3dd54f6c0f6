"""The results of `dataset.py check`, as a summary for people, as rows of `check.csv` and as records of `check.json`."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.files import PICTURE_SUFFIXES, suffix_of
from modules.data.spec import DatasetSpec
from modules.run.examine import Examined
from modules.run.findings import Scan, format_number

_MOST_KINDS = 4


def describe_scans(examined: Sequence[Examined], scans: Sequence[Scan], spec: DatasetSpec) -> list[str]:
    """Describes what was measured, a line a row; nothing of cases that cannot be read."""
    read = [(one, one.measures) for one in examined if one.measures]
    if not read:
        return []
    splits = Counter(scan.split or "in no split" for scan in scans)
    sliced = f"{len(read)} slices of {len(scans)} scans" if len(scans) < len(read) else f"{len(scans)} scans"
    grids = Counter(one.grids for one, _ in read if one.grids)
    rows = [
        ("cases", f"{sliced}, {len({one.case.subject_id for one, _ in read})} subjects", _list_kinds(splits)),
        ("shape", _list_range(zip(*(measures.shape for _, measures in read), strict=True)), ""),
        ("voxels", _list_range(zip(*(measures.spacing_mm for _, measures in read), strict=True)) + " mm", "")
        if not _is_picture(read[0][0])
        else ("voxels", "of unknown size", "pictures"),
    ]
    if spec.spatial_dims == 3:
        rows.append(("stored", _list_kinds(Counter(measures.orientation for _, measures in read)), "orientation of the files"))
    if grids:
        rows.append(("labels", _list_kinds(grids), "grid, compared with their images'"))
    for channel, name in enumerate(spec.channels):
        least, medians, most = zip(*(one.intensities[channel] for one, _ in read), strict=True)
        whole = f"{format_number(min(least))} to {format_number(max(most))}"
        rows.append((name, whole, f"intensities; medians {format_number(min(medians))} to {format_number(max(medians))}"))
    labelled = [scan for scan in scans if scan.labelled]
    for index, name in list(enumerate(spec.class_names))[1:]:
        sizes = [scan.measure_class(index) for scan in labelled if scan.voxels[index]]
        objects = [one.objects[index - 1] for scan in labelled for one in scan.slices if one.objects and one.objects[index - 1]]
        unit = "ml" if all(scan.in_ml for scan in labelled) else "pixels" if spec.spatial_dims == 2 else "voxels"
        detail = ""
        if sizes:
            least, median, most = (format_number(size) for size in np.quantile(sizes, (0, 0.5, 1)))
            detail = f"{least} to {most} {unit}, median {median}; {_list_range([objects])} object(s)"
        rows.append((name, f"in {len(sizes)} of {len(labelled)} scans", detail))
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"check  {name:<{names}}  {value:<{values}}  {detail}".rstrip() for name, value, detail in rows]


def make_record(one: Examined, split: str, spec: DatasetSpec, root: Path) -> dict[str, Any]:
    """Makes the record of a case for `check.json`; paths are relative to the data set's folder where they lie in it."""
    case, measures = one.case, one.measures
    record: dict[str, Any] = {
        "case": case.case_id,
        "subject": case.subject_id,
        "split": split or None,
        "images": [_shorten(path, root) for path in case.image_paths],
        "label": _shorten(case.label_path, root) if case.label_path else None,
        "refused": one.refusal or None,
    }
    if measures is None:
        return record
    record |= {
        "shape": list(measures.shape),
        "spacing_mm": None if _is_picture(one) else list(measures.spacing_mm),
        "orientation": measures.orientation or None,
        "label_grid": one.grids or None,
        "intensities": {
            name: dict(zip(("min", "median", "max"), values, strict=True))
            for name, values in zip(spec.channels, one.intensities, strict=True)
        },
        "classes": {
            name: {
                "voxels": measures.voxels[index],
                "ml": None if math.isnan(one.voxel_ml) else measures.voxels[index] * one.voxel_ml,
                "objects": one.objects[index - 1],
            }
            for index, name in list(enumerate(spec.class_names))[1:]
            if one.objects
        },
    }
    return record


def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a row of `check.csv` of a record: lists are joined by spaces or x, and each channel and class has columns of its own."""
    row = {name: record[name] for name in ("case", "subject", "split", "label", "refused")}
    row["images"] = " ".join(record["images"])
    for name in ("shape", "spacing_mm"):
        row[name] = "x".join(f"{size:.6g}" for size in record.get(name) or ())
    row |= {name: record.get(name) for name in ("orientation", "label_grid")}
    for channel, values in record.get("intensities", {}).items():
        row |= {f"{measure} of {channel}": f"{value:.6g}" for measure, value in values.items()}
    for name, values in record.get("classes", {}).items():
        row |= {f"{measure} of {name}": value if measure != "ml" or value is None else f"{value:.6g}" for measure, value in values.items()}
    return row


def _is_picture(one: Examined) -> bool:
    """Tells whether nothing says how large a pixel is."""
    return suffix_of(one.case.image_paths[0]) in PICTURE_SUFFIXES


def _shorten(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _list_kinds(kinds: Mapping[str, int]) -> str:
    listed = sorted(kinds.items(), key=lambda item: -item[1])
    more = f", {len(listed) - _MOST_KINDS} more kinds" if len(listed) > _MOST_KINDS else ""
    return ", ".join(f"{number} {kind}" for kind, number in listed[:_MOST_KINDS]) + more


def _list_range(axes: Iterable[Sequence[float]]) -> str:
    """Lists the least and greatest size along each axis."""
    ranges = [(min(sizes), max(sizes)) for sizes in axes]
    return " x ".join(f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}" for low, high in ranges)
