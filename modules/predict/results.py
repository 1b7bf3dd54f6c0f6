"""Volumes, voxels and components of each class of each scan, for `results.json` and `volumes.csv`.

Both files are made of the record that `modules.predict.batch` keeps, so that a call which was killed loses none of them.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import modules
from modules.data.case import Predicted
from modules.data.files import replace_file
from modules.data.regions import Region, find_mask, list_parts
from modules.predict.bundle import INTENDED_USE, ModelBundle
from modules.predict.class_files import list_segments, list_values, write_class_files
from modules.predict.objects import find_objects

RESULTS_FILE, VOLUMES_FILE = "results.json", "volumes.csv"
COLUMNS = ("level", "subject", "case", "class", "voxels", "ml", "components")


class Size(NamedTuple):
    """The voxels of a class in a label map, and their volume in ml; None where nobody knows it."""

    voxels: int
    ml: float | None


def measure_sizes(
    prediction: np.ndarray, class_names: Sequence[str], regions: Sequence[Region] = (), spacing_mm: Sequence[float] | None = None
) -> dict[str, Size]:
    """Measures the size of each class but the background; see `measure_classes` for the arguments and for what has no volume."""
    voxel_ml = math.prod(spacing_mm) / 1000 if spacing_mm is not None and prediction.ndim == 3 else None
    counts = np.bincount(prediction.ravel(), minlength=256)
    sizes = {}
    for name, parts in zip(class_names[1:], list_parts(class_names, regions), strict=True):
        voxels = int(counts[list(parts)].sum())
        # Seven digits are all that a header in float32 is worth.
        sizes[name] = Size(voxels, None if voxel_ml is None else float(f"{voxels * voxel_ml:.7g}"))
    return sizes


def measure_classes(
    prediction: np.ndarray, class_names: Sequence[str], regions: Sequence[Region] = (), spacing_mm: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Measures each class but the background.

    Args:
        prediction: `(*S)` class indices.
        class_names: Names of all classes, the background first.
        regions: What each class consists of, where classes overlap.
        spacing_mm: The voxel's size along each axis of `S`; None where nobody knows it.

    Returns:
        Of each class `name`, `voxels`, `ml` and `components`. `ml` is None for a slice, which has no thickness, and where the voxel's size
        is not known. Voxels that touch at a face, an edge or a corner are one component.
    """
    sizes = measure_sizes(prediction, class_names, regions, spacing_mm)
    parts = list_parts(class_names, regions)
    return [
        {"name": name, **size._asdict(), "components": len(find_objects(find_mask(prediction, members)).voxels)}
        for (name, size), members in zip(sizes.items(), parts, strict=True)
    ]


def make_result(item: Predicted, bundles: Sequence[ModelBundle], seconds: float) -> dict[str, Any]:
    """Makes the result of one case, as plain values for the record.

    Args:
        item: The predicted case.
        bundles: The models that predicted it.
        seconds: The time that it took.
    """
    case, image, first = item.case, item.image, bundles[0]
    spacing_mm = image.spacing_mm if image.affine is not None else None
    measures = measure_classes(item.prediction, first.class_names, first.regions, spacing_mm)
    rows = list_segments(first)
    return {
        "subject": case.subject_id,
        "scan": case.volume_id,
        "slice": case.slice_index,
        "runs": [str(bundle.provenance.get("run") or "") for bundle in bundles],
        "shape": list(item.prediction.shape),
        "spacing_mm": None if spacing_mm is None else [float(length) for length in spacing_mm],
        "seconds": round(seconds, 2),
        "classes": [measure | {"value": row.value, "colour": row.colour} for measure, row in zip(measures, rows, strict=True)],
    }


def write_results(
    folder: Path, entries: Iterable[Mapping[str, Any]], incomplete: Iterable[str], bundle: ModelBundle, subjects: Mapping[str, str]
) -> None:
    """Writes the results of all cases of an output folder, and the files of classes; nothing where no case is finished.

    Args:
        folder: The output's folder.
        entries: The finished entries of its record, see `modules.predict.batch.Batch.list_finished`.
        incomplete: Scans of which a slice failed. They have no sum of their slices.
        bundle: The model whose classes the label maps have.
        subjects: The subject of each case by its name; others keep what an earlier call said.
    """
    ordered = sorted(entries, key=lambda entry: (entry["result"]["scan"] or entry["case"], entry["result"]["slice"], entry["case"]))
    if not ordered:
        return
    write_class_files(folder, list_values(bundle))
    cases = [_describe_case(entry, subjects) for entry in ordered]
    scans = _sum_slices(cases, set(incomplete))
    head = {"version": modules.__version__, "intended_use": INTENDED_USE}
    # A line a case: people can read it, and a folder of 100,000 slices is written in seconds.
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    for name, items in (("cases", cases), ("scans", scans)):
        parts.append(f"{json.dumps(name)}: [" + ",".join(f"\n  {json.dumps(item)}" for item in items) + "\n ]")
    _write_text(folder / RESULTS_FILE, "{\n " + ",\n ".join(parts) + "\n}\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_list_rows(cases, scans))
    _write_text(folder / VOLUMES_FILE, table.getvalue())


def _write_text(path: Path, text: str) -> None:
    """Writes a file, unless it holds that text already: a call that predicts nothing touches nothing."""
    data = text.encode("utf-8", errors="surrogateescape")
    if not path.is_file() or path.read_bytes() != data:
        with replace_file(path) as temporary:
            temporary.write_bytes(data)


def _describe_case(entry: Mapping[str, Any], subjects: Mapping[str, str]) -> dict[str, Any]:
    result = entry["result"] | {"subject": subjects.get(entry["case"], entry["result"]["subject"])}
    models = [
        {"run": run, "bundle_json_sha256": digest, "engine": engine, "computed_in": precision}
        for run, (digest, engine, precision) in zip(result["runs"], entry["made_by"]["models"], strict=True)
    ]
    kept = ("subject", "scan", "shape", "spacing_mm", "seconds", "classes")
    return {"case": entry["case"], "images": entry["images"], "files": entry["files"], "models": models} | {
        name: result[name] for name in kept
    }


def _sum_slices(cases: Sequence[Mapping[str, Any]], incomplete: set[str]) -> list[dict[str, Any]]:
    """Sums the voxels of the slices of each scan. Slices do not say how thick they are, nor which of their components touch."""
    scans: dict[str, dict[str, Any]] = {}
    for case in cases:
        if case["scan"] is None or case["scan"] in incomplete:
            continue
        scan = scans.setdefault(case["scan"], {"scan": case["scan"], "subject": case["subject"], "slices": 0, "classes": {}})
        scan["slices"] += 1
        for one in case["classes"]:
            scan["classes"][one["name"]] = scan["classes"].get(one["name"], 0) + one["voxels"]
    return [
        scan | {"classes": [{"name": name, "voxels": voxels, "ml": None, "components": None} for name, voxels in scan["classes"].items()]}
        for scan in scans.values()
    ]


def _list_rows(cases: Sequence[Mapping[str, Any]], scans: Sequence[Mapping[str, Any]]) -> Iterable[list[Any]]:
    """Lists the rows of `volumes.csv`: those of each case, and those of a scan behind its last slice."""
    of_scan = {scan["scan"]: scan for scan in scans}
    for place, case in enumerate(cases):
        level = "slice" if len(case["shape"]) == 2 else "volume"
        for one in case["classes"]:
            yield [level, case["subject"], case["case"], *_list_cells(one)]
        last = place + 1 == len(cases) or cases[place + 1]["scan"] != case["scan"]
        if last and (scan := of_scan.get(case["scan"])):
            for one in scan["classes"]:
                yield ["volume", scan["subject"], scan["scan"], *_list_cells(one)]


def _list_cells(one: Mapping[str, Any]) -> list[Any]:
    return ["" if one[name] is None else one[name] for name in ("name", "voxels", "ml", "components")]
