"""Answers of the server: what a model is, and what was found in a scan."""

import io
import json
import zipfile
from typing import Any

from starlette.responses import JSONResponse, Response

import modules
from modules.api.predictor import Predictor, Saved
from modules.data.files import suffix_of
from modules.predict.bundle import INTENDED_USE

ANSWERS = ("zip", "json", "label")


def describe_model(predictor: Predictor, name: str) -> dict[str, Any]:
    """Describes a model to those who send it scans: classes with their values in a label map, and channels."""
    return {
        "model": name,
        "version": modules.__version__,
        "intended_use": INTENDED_USE,
        "classes": [{"name": row.name, "value": row.value, "colour": row.colour} for row in predictor.segments],
        "background": {"name": predictor.class_names[0], "value": predictor.label_values[0]},
        "label_values": sorted(set(predictor.label_values)),
        "channels": list(predictor.channels),
        "spatial_dims": predictor.spatial_dims,
        "engines": list(predictor.engines),
    }


def make_answer(kind: str, saved: Saved, name: str) -> Response:
    """Makes the answer to a prediction: results as JSON, the label map's file, or a zip of both."""
    label = f"label{suffix_of(saved.label)}"
    kept = ("shape", "spacing_mm", "seconds", "check", "check_reasons", "distance", "classes")
    results: dict[str, Any] = {"model": name, "version": modules.__version__, "intended_use": INTENDED_USE, "label": label}
    results |= {key: saved.result[key] for key in kept} | {"departures": saved.departures}
    if kind == "json":
        return JSONResponse(results)
    data = saved.label.read_bytes()
    if kind == "label":
        return _attach(data, label, "application/octet-stream")
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(label, data)
        archive.writestr("results.json", json.dumps(results, indent=1))
    return _attach(target.getvalue(), "prediction.zip", "application/zip")


def _attach(data: bytes, name: str, media_type: str) -> Response:
    return Response(data, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})
