"""Exports a bundle's model for other programs: as ONNX, OpenVINO or a TensorFlow SavedModel, with a description of how to use it."""

import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from modules import devices
from modules.data.files import TEMPORARY, hash_file, replace_file
from modules.data.preprocess import LEAST_SPREAD, Preprocessing
from modules.predict.bundle import INTENDED_USE, ModelBundle
from modules.predict.convert import simplify_for_export, write_openvino
from modules.predict.engines import OPENVINO_FILES, OpenVinoModel, import_openvino
from modules.predict.export_check import RUNTIMES, Samples, check_export

FORMATS = ("onnx", "openvino", "savedmodel")
# What `--precision` may say beside `--export openvino`; the first stands for "auto".
EXPORT_PRECISIONS = ("float32", "bfloat16", "int8")
DESCRIPTION = "preprocessing.json"
_FILES = {"onnx": "model.onnx", "openvino": "openvino", "savedmodel": "saved_model"}
_PACKAGES = {"onnx": ("onnx", "tf2onnx"), "openvino": ("openvino",), "savedmodel": ()}
_CALLS = {
    "onnx": "onnxruntime.InferenceSession(file).run(None, {input: images})[0]",
    "openvino": 'openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "%s"})(images)[0]',
    "savedmodel": "tensorflow.saved_model.load(file).serve(images)",
}
_CANONICAL = "from left to right", "from back to front (posterior to anterior)", "from foot to head (inferior to superior)"

log = logging.getLogger("mri")


class Variant(NamedTuple):
    """A variant of fewer binary digits of a model for OpenVINO.

    Attributes:
        precision: "bfloat16" or "int8".
        quantise: A function that turns the float32 model in a folder into that of 8-bit integers in another; None for bfloat16.
        judge: A function from the bundle with the float32 model and the same with the variant to what the description says of their
            Dice. It raises ValueError where the variant loses too much.
    """

    precision: str
    quantise: Callable[[Path, Path], None] | None
    judge: Callable[[ModelBundle, ModelBundle], Mapping[str, Any]]


def check_exportable(kind: str) -> None:
    """Checks before any work that a format can be written here.

    Raises:
        ValueError: If the format is unknown, a package is missing, or the backend is not TensorFlow.
    """
    if kind not in FORMATS:
        raise ValueError(f"Expected a format in {FORMATS}. Received: {kind!r}.")
    if missing := [name for name in _PACKAGES[kind] if importlib.util.find_spec(name) is None]:
        packages = _PACKAGES[kind]
        raise ValueError(
            f"Expected what --export {kind} needs: {' and '.join(packages)}. Received: no {' and no '.join(missing)}. "
            f"pip install {' '.join(packages)}"
        )
    if devices.name_backend() != "tensorflow":
        raise ValueError(
            f"Expected KERAS_BACKEND=tensorflow to export. Received: {devices.name_backend()}. Set it for this command: a model that was "
            "trained under any backend loads under TensorFlow."
        )


def export_model(bundle: ModelBundle, kind: str, folder: Path, samples: Samples, variant: Variant | None = None) -> Path:
    """Writes a model and `preprocessing.json`, which says in words and numbers how to use it. The model is checked before it is kept.

    Both are written under a temporary name first. A model of another kind stays in the folder. It stays in the description too, if it
    belongs to the same bundle.

    Args:
        bundle: A bundle with its Keras model.
        kind: One of `FORMATS`, see `check_exportable`.
        folder: The folder to write to; it is made if missing.
        samples: Windows on which the exported model and Keras must agree.
        variant: The variant to write in place of the float32 model, for "openvino" only.

    Returns:
        The path of the model: a file, or the folder that holds it.

    Raises:
        ValueError: If the model cannot be converted, or computes something else. The folder is then as it was before.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILES[kind]
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as parent:
            temporary = Path(parent) / path.name
            if kind == "openvino":
                findings = _write_openvino(bundle, temporary, samples, variant)
            else:
                _write(bundle.model, kind, temporary)
                findings = _check(bundle, kind, temporary, samples)
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
    description = describe(bundle)
    models = {kind: _describe_files(path, kind, variant.precision if variant else "float32") | findings} | {
        other: known for other, known in _read_models(folder, description).items() if other != kind
    }
    with replace_file(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description | {"models": models}, indent=2) + "\n", encoding="utf-8")
    return path


def _write(model, kind: str, path: Path) -> None:
    """Writes a Keras model as ONNX or SavedModel."""
    handlers = list(logging.root.handlers)
    plain, name = (simplify_for_export(model), kind) if kind == "onnx" else (model, "tf_saved_model")
    try:
        with warnings.catch_warnings():
            # These warnings concern Keras's own use of NumPy.
            warnings.simplefilter("ignore", FutureWarning)
            plain.export(str(path), format=name, verbose=False)
    except Exception as error:  # Each of the converter's layers fails in a way of its own.
        reason = " ".join((str(error).strip() or repr(error)).splitlines()[-1].split())
        raise ValueError(f"Expected a model that can be exported as {kind}. Received: {reason}. Choose another of {FORMATS}.") from error
    finally:
        # The converters give the root logger a handler, which would print every line of ours twice.
        logging.root.handlers[:] = handlers


def _check(bundle: ModelBundle, kind: str, path: Path, samples: Samples) -> dict[str, Any]:
    """Compares an exported model with Keras where its runtime is installed, and tells the outcome to the log and the description."""
    found = check_export(bundle, kind, path, samples)
    if found is None:
        log.warning("not checked: %s is not installed; pip install %s, and export again", RUNTIMES[kind], RUNTIMES[kind])
        return {"check": None}
    log.info("%s computes what Keras does on %s, within %.3g: %s", RUNTIMES[kind], samples.origin, found.tolerance, found)
    return {"check": {"on": samples.origin} | asdict(found)}


def _write_openvino(bundle: ModelBundle, path: Path, samples: Samples, variant: Variant | None) -> dict[str, Any]:
    """Writes OpenVINO's files into a new folder and checks them; a variant of them is judged too. Returns what was found."""
    quantise = variant.quantise if variant else None
    plain = path.with_name("plain") if quantise else path
    plain.mkdir()
    found = write_openvino(bundle.model, plain, samples.images, regions=bool(bundle.regions))
    log.info("openvino computes what Keras does on %s, within %.3g: %s", samples.origin, found.tolerance, found)
    findings: dict[str, Any] = {"check": {"on": samples.origin} | asdict(found)}
    if variant is None:
        return findings
    if quantise:
        path.mkdir()
        quantise(plain, path)
    # What is no integer in an int8 model is a float32.
    models = OpenVinoModel(plain), OpenVinoModel(path, "bfloat16" if variant.precision == "bfloat16" else "float32")
    precisions = "float32", variant.precision
    one, other = (replace(bundle, model=model, engine="openvino", computed_in=name) for model, name in zip(models, precisions, strict=True))
    return findings | {"validation": dict(variant.judge(one, other))}


def describe(bundle: ModelBundle, overlap: float = 0.5) -> dict[str, Any]:
    """Describes all steps before and after the model, as values for JSON: numbers under names, and a sentence beside each.

    Args:
        bundle: The bundle.
        overlap: Overlap of windows; the default is that of `predict.py`.
    """
    shape = list(bundle.window.shape)
    volumes = bundle.preprocessing.spatial_dims == 3
    axes = [name for name, size in zip(_name_axes(volumes), bundle.window.sizes, strict=True) if size > 1]
    return {
        "about": "How to use the models in this folder without the program that made them. Do the steps in order, each with the result of "
        "the one before; lay the windows; run the model on them; turn its output into labels.",
        "intended_use": INTENDED_USE,
        "input": {
            "dtype": "float32",
            "shape": [None, *shape, len(bundle.channels)],
            "axes": ["sample, any number of them", *axes, "channel"],
            "channels": list(bundle.channels),
        },
        "steps": _describe_steps(bundle.preprocessing),
        "windows": {
            "shape": list(bundle.window.sizes),
            "overlap": overlap,
            "starts": "round(i * (size - n) / (m - 1)) for i from 0 to m - 1, m = ceil((size - n) / max(1, floor(n * (1 - overlap)))) + 1, "
            "along an axis of more than the window's n voxels; else one, at -floor((n - size) / 2)",
            "weight": "max(exp(-0.5 * ((i - (n - 1) / 2) / (n / 8))**2), 0.001) at voxel i of n, multiplied over the axes; "
            "1 along an axis with one window",
            "text": "The model sees windows of this shape, and without the axis where it is 1: slices, one by one. Voxels of a window "
            "outside of the image are each channel's smallest value. Where windows overlap, their probabilities are averaged with "
            "this weight.",
        },
        "output": {"dtype": "float32"} | _describe_output(bundle, shape),
        "postprocessing": {
            "steps": bundle.postprocessing.to_json(),
            "text": "What is done to each label map, in order. `target` is the index of a class; 0 is the whole foreground. An object is "
            "a part connected across faces, edges and corners. keep_largest makes all objects but the largest background. remove_small "
            f"does so with objects below `size`, in {'mm3' if volumes else 'pixels'}. fill_holes gives background to the class that cuts "
            "it off from the edge of the image; steps across faces do not lead out.",
        },
        "classes": _describe_classes(bundle),
        "mirrored_labels": {
            "pairs": [list(pair) for pair in bundle.mirrored_labels],
            "text": "Classes that change places when an image is flipped from left to right.",
        },
        # The hashes of the scans that it has seen are for `--init` alone.
        "provenance": json.loads(json.dumps({key: value for key, value in bundle.provenance.items() if key != "seen"}, default=str)),
    }


def _describe_output(bundle: ModelBundle, shape: Sequence[int]) -> dict[str, Any]:
    """Describes the values that the model gives, and how they become labels."""
    back = (
        "Probabilities, not labels, are put back on the scan's grid: undo the steps in reverse order, with linear interpolation, and call "
        "what the model never saw background. "
    )
    if bundle.regions:
        values = (
            "probability of each region, from 0 to 1, by a sigmoid each, in the order of `classes` without the background; they overlap"
        )
        text = (
            "A voxel begins as the background. Region by region, in order, it becomes that region's `value_in_file` where its probability "
            "is above 0.5."
        )
        return {"shape": [None, *shape, bundle.num_maps], "values": values, "text": back + text}
    binary = len(bundle.class_names) == 2
    values = "probability of each class, in the order of `classes`; they sum to 1"
    return {
        "shape": [None, *shape, 1 if binary else bundle.num_maps],
        "values": "probability of class 1, from 0 to 1; that of class 0 is the rest to 1" if binary else values,
        "text": f"{back}A voxel's label is the class of the largest probability, the first of equal ones.",
    }


def _describe_classes(bundle: ModelBundle) -> list[dict[str, Any]]:
    """Lists the classes with the value that each is written with, and regions with all the values that they hold."""
    written = bundle.label_rule.output_values
    if not bundle.regions:
        named = enumerate(zip(bundle.class_names, written, strict=True))
        return [{"index": index, "name": name, "value_in_file": value} for index, (name, value) in named]
    classes: list[dict[str, Any]] = [{"index": 0, "name": bundle.class_names[0], "value_in_file": written[0]}]
    for index, (name, region) in enumerate(zip(bundle.class_names[1:], bundle.regions, strict=True), start=1):
        held = [written[part] for part in region.parts]
        classes.append({"index": index, "name": name, "value_in_file": written[region.painted], "values_of_region": held})
    return classes


def _describe_steps(preprocessing: Preprocessing) -> list[dict[str, Any]]:
    volumes = preprocessing.spatial_dims == 3
    steps: list[dict[str, Any]] = [
        {
            "step": "read",
            "spatial_dims": preprocessing.spatial_dims,
            "text": "Intensities as float32, after the file's own slope and intercept. Axes of length one are dropped. The last axis is "
            "that of the channels, in RGB order for pictures.",
        },
        {
            "step": "orientation",
            "axes": _name_axes(volumes),
            "text": "Swap and flip axes, without resampling, to the closest canonical orientation (RAS+)."
            if volumes
            else "As in the file.",
        },
    ]
    if preprocessing.foreground_crop:
        text = "Cut to the smallest box that holds all voxels brighter than their channel's darkest."
        steps.append({"step": "foreground", "text": text})
    steps.append({"step": "intensity", "kind": preprocessing.intensity} | _describe_intensity(preprocessing))
    resampling = (
        "Voxels are areas: a linear interpolation where there are to be more, the mean over each new voxel's area where fewer."
        if preprocessing.interpolation == "linear"
        else "Voxels are areas: a cubic spline where there are to be more, the mean over each new voxel's area where fewer."
    )
    if preprocessing.spacing_mm:
        text = f"Resample to this many mm a voxel along each axis, round(size * spacing / new spacing) voxels. {resampling}"
        steps.append(
            {"step": "spacing", "spacing_mm": list(preprocessing.spacing_mm), "interpolation": preprocessing.interpolation, "text": text}
        )
    if preprocessing.shape and preprocessing.resize:
        text = f"Resample the whole field of view to this shape. {resampling}"
        steps.append({"step": "resize", "shape": list(preprocessing.shape), "interpolation": preprocessing.interpolation, "text": text})
    return steps


def _describe_intensity(preprocessing: Preprocessing) -> dict[str, Any]:
    """Describes a normalisation by its formula, with its numbers."""
    fill = (
        "A darkest value below 0 that lies further below all others than these span is a fill, as is one of 0 or more that lies 100 times "
        "as far below. It is raised to as far below the others as these span."
    )
    constant = "A channel of one value becomes 0. A foreground of one value is treated as min_max."
    foreground = "Foreground is what is brighter than the channel's smallest value."
    if preprocessing.intensity == "fixed":
        numbers = {"scale": preprocessing.scale, "mean": preprocessing.mean, "std": preprocessing.std}
        return numbers | {"formula": "(x / scale - mean) / std", "text": f"No intensity above {preprocessing.scale:g} is expected."}
    if preprocessing.intensity == "ct":
        clip = list(preprocessing.clip)
        text = "x is in Hounsfield units, after clipping where `clip` gives the least and the greatest. Voxels of a fill are clipped too."
        formula = "(clip(x, clip[0], clip[1]) - mean) / std" if clip else "(x - mean) / std"
        return {"clip": clip, "mean": preprocessing.mean, "std": preprocessing.std, "formula": formula, "text": text}
    formulas = {
        "min_max": ("(x - min) / (max - min)", f"Of each channel of each scan. A channel of one value becomes 0. {fill}"),
        "percentile": (
            "clip((x - p0.5) / (p99.5 - p0.5), 0, 1)",
            f"p are percentiles, linearly interpolated, of the foreground of each channel of each scan. {foreground} {constant}",
        ),
        "zscore": (
            "(x - mean) / std",
            f"Mean and standard deviation of the foreground of each channel of each scan. {foreground} {constant} {fill}",
        ),
    }
    formula, text = formulas[preprocessing.intensity]
    if preprocessing.intensity == "zscore" and preprocessing.scale > 1:
        least = LEAST_SPREAD * preprocessing.scale
        return {
            "least_std": least,
            "formula": formula,
            "text": f"{text} A smaller standard deviation than {least:g} is taken as {least:g}.",
        }
    return {"formula": formula, "text": text}


def _name_axes(volumes: bool) -> Sequence[str]:
    return list(_CANONICAL) if volumes else ["first of the file (rows of a picture)", "second of the file (columns of a picture)"]


def _describe_files(path: Path, kind: str, precision: str) -> dict[str, Any]:
    """Describes a model's files: path, SHA-256, precision, names of its ends, how to call it, and the versions that made it."""
    import keras
    import tensorflow as tf

    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    file, call = path.name, _CALLS[kind]
    if kind == "openvino":
        openvino = import_openvino()
        model = openvino.Core().read_model(path / OPENVINO_FILES[0])
        ends = {"input": model.input(0).get_any_name(), "output": model.output(0).get_any_name()}
        versions |= {"openvino": openvino.__version__}
        file, call = f"{path.name}/{OPENVINO_FILES[0]}", call % ("bf16" if precision == "bfloat16" else "f32")
    elif kind == "onnx":
        import onnx
        import tf2onnx

        graph = onnx.load(path, load_external_data=False).graph
        ends = {"input": graph.input[0].name, "output": graph.output[0].name}
        versions |= {"onnx": onnx.__version__, "tf2onnx": tf2onnx.__version__}
    else:
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        ends = {"input": next(iter(signature.structured_input_signature[1])), "output": next(iter(signature.structured_outputs))}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    hashes = {str(file.relative_to(path.parent)): hash_file(file) for file in files}
    return {"file": file, "precision": precision, **ends, "call": call, "files_sha256": hashes, "versions": versions}


def _read_models(folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Reads the models that the folder's description names, if it describes the same bundle."""
    try:
        known = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        models = known.pop("models") if {**known, "models": {}} == {**description, "models": {}} else {}
        return models if isinstance(models, dict) else {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        # A description that is missing or unreadable is written anew.
        return {}
