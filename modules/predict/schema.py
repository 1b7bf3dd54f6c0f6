"""The fields of a bundle's description: their types and ranges, and that they do not contradict one another, the files or the model."""

import logging
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.data.documents import (
    MOST_NAME,
    Rule,
    anything,
    check_fields,
    choice,
    flag,
    many,
    mapping,
    number,
    optional,
    refuse_field,
    shorten,
    text,
    to_line,
    whole,
)
from modules.data.files import LEAST_MM, MOST_MM
from modules.data.preprocess import INTENSITIES, INTERPOLATIONS
from modules.data.regions import IGNORE, MOST_CLASSES, Region, find_fault
from modules.predict import traits
from modules.predict.engines import OPENVINO_FILES, PRECISIONS
from modules.predict.postprocess import KINDS

MODEL_FILE = "model.keras"
DESCRIPTION_FILE = "bundle.json"
# A description holds some 10 KB. A larger limit lets the error name the field that is too long.
MOST_BYTES = 1 << 26
REMEDY = "Train or copy it again."
# Reading a label makes a table up to its largest value. Real numbers in float32 are whole up to here.
_MOST_VALUE = (1 << 24) - 1
_MOST_VOXELS = 1 << 31
# Systems and programs leave these in any folder.
_HARMLESS = ("thumbs.db", "desktop.ini", "icon\r")

log = logging.getLogger("mri")

# Rules of fields that other files have too.
SIZE = whole(1, 1 << 20)
HASH = Rule(
    "a SHA-256 of 64 hexadecimal digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
)
_VALUE = Rule(
    f"a whole number from 0 to {_MOST_VALUE:,} in digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9]{1,8}", value)) and int(value) <= _MOST_VALUE,
)
_FILE = Rule(f"one of {MODEL_FILE}, {', '.join(OPENVINO_FILES)}", lambda value: value in (MODEL_FILE, *OPENVINO_FILES))
_FIELDS = {
    "format": whole(1, 99),
    "version": text(),
    "preprocessing": anything(),
    "window": many(SIZE, 2, 3),
    # Chosen classes that are trained as one have their names joined.
    "class_names": many(text(10 * MOST_NAME, 1), 2, MOST_CLASSES, distinct=True),
    "channels": many(text(MOST_NAME), 1, 4096),
    "label_rule": anything(),
    "regions": many(anything(), 0, MOST_CLASSES),
    "mirrored_labels": many(many(whole(1, MOST_CLASSES - 1), 2, 2, distinct=True), 0, MOST_CLASSES),
    "flipped_axes": optional(many(whole(0, 2), 0, 3, distinct=True)),
    "mirror": flag(),
    "trained": anything(),
    "postprocessing": many(anything(), 0, len(KINDS) * MOST_CLASSES),
    "quality": anything(),
    "precision": choice(PRECISIONS[1:]),
    "provenance": Rule("an object", lambda value: isinstance(value, dict)),
    "intended_use": text(2_000),
    "files_sha256": mapping(_FILE, HASH, 1),
}
PREPROCESSING = {
    "spatial_dims": choice((2, 3)),
    "shape": many(SIZE, 0, 3),
    "resize": flag(),
    "spacing_mm": many(number(LEAST_MM, MOST_MM), 0, 3),
    "interpolation": choice(tuple(INTERPOLATIONS)),
    "foreground_crop": flag(),
    "intensity": choice(INTENSITIES),
    "scale": number(0, 1e30, above=True),
    "mean": number(-1e30, 1e30),
    "std": number(0, 1e30, above=True),
    "clip": many(number(-1e30, 1e30), 0, 2),
}
_BY_CHANNEL = ("quartiles", "spread", "share")
_SPAN = many(number(), 2, 2)
_TRAINED = {
    "spacing_mm": many(_SPAN, 2, 3),
    "extent_mm": many(_SPAN, 2, 3),
    "quartiles": many(many(_SPAN, 3, 3), 1, 4096),
    "spread": many(_SPAN, 1, 4096),
    "share": many(_SPAN, 1, 4096),
    "in_mm": flag(),
}
_TRAIT = Rule(
    f"a name that begins with one of {', '.join(traits.KINDS)} and a slash",
    lambda value: isinstance(value, str) and "/" in value and value.partition("/")[0] in traits.KINDS,
)
_ODDS = number(-1e3, 1e3)
_QUALITY = {
    "temperatures": many(number(0, 1e3, above=True), 1, MOST_CLASSES),
    "traits": mapping(_TRAIT, many(number(-1e30, 1e30), 2, 2)),
    "thumbnail": many(many(number(-1, 1), 1, traits.THUMBNAIL**3), 1, traits.MOST_CHANNELS),
    "limit": number(0, 1e6, above=True),
    "lines": many(many(_ODDS, 3, MOST_CLASSES + 2), 2, 2),
    "errors": many(number(0, 1e3), 2, 2),
    "least_dice": many(number(0, 1), 1, MOST_CLASSES),
    "cases": whole(0, 1 << 40),
    "copies": whole(0, 1 << 40),
}
_STEP = {"kind": choice(KINDS), "target": whole(0, MOST_CLASSES - 1), "size": number(0, 1e30)}
_REGION = {
    "parts": many(whole(1, MOST_CLASSES - 1), 1, MOST_CLASSES, distinct=True),
    "painted": whole(1, MOST_CLASSES - 1),
}
_LABEL_RULE = {
    "values": mapping(_VALUE, whole(0, IGNORE), 2),
    "output_values": many(whole(0, _MOST_VALUE), 2, MOST_CLASSES, distinct=True),
    "renames": many(many(text(), 2, 2), 0, 16),
    "source": text(),
}


def check_description(content: Any, path: Path) -> None:
    """Checks a description of the present format.

    Args:
        content: The JSON of the file, without its own hash.
        path: The file, for errors.

    Raises:
        ValueError: For a field that is missing, unknown, of a wrong type or out of range, or that contradicts another. It names both.
    """
    check_fields(content, _FIELDS, path, REMEDY)
    check_fields(content["preprocessing"], PREPROCESSING, path, REMEDY, within="preprocessing")
    check_fields(content["label_rule"], _LABEL_RULE, path, REMEDY, within="label_rule")
    for place, region in enumerate(content["regions"]):
        check_fields(region, _REGION, path, REMEDY, within=f"regions[{place}]")
    if content["trained"] is not None:
        check_fields(content["trained"], _TRAINED, path, REMEDY, within="trained")
    if content["quality"] is not None:
        check_fields(content["quality"], _QUALITY, path, REMEDY, within="quality")
    for index, step in enumerate(content["postprocessing"]):
        check_fields(step, _STEP, path, REMEDY, within=f"postprocessing[{index}]")
    faults = (*_find_wrong_sizes(content), *_find_wrong_classes(content), *_find_wrong_steps(content), *_find_wrong_quality(content))
    for name, expected, received in faults:
        raise refuse_field(name, expected, received, path, REMEDY)
    if MODEL_FILE not in content["files_sha256"]:
        raise refuse_field("files_sha256", f"an entry {MODEL_FILE}", "none", path, REMEDY)


def _find_wrong_sizes(content: Mapping[str, Any]):
    """Yields field, expected and received of sizes that contradict one another."""
    window, prepared = content["window"], content["preprocessing"]
    rank = prepared["spatial_dims"]
    if len(window) != rank:
        yield "window", f"{rank} sizes, as `preprocessing.spatial_dims` says,", str(window)
    if sum(size > 1 for size in window) < 2:
        yield "window", "2 sizes or more above 1", str(window)
    if math.prod(window) * len(content["channels"]) > _MOST_VOXELS:
        yield "window", f"sizes of at most {_MOST_VOXELS:,} numbers together", str(window)
    for name in ("shape", "spacing_mm"):
        if len(prepared[name]) not in (0, rank):
            yield f"preprocessing.{name}", f"{rank} numbers, as `preprocessing.spatial_dims` says, or none", str(prepared[name])
    if prepared["clip"] and not (len(prepared["clip"]) == 2 and prepared["clip"][0] < prepared["clip"][1]):
        yield "preprocessing.clip", "2 numbers, the smaller first, or none", str(prepared["clip"])
    for name, length in (("spacing_mm", rank), ("extent_mm", rank), *((name, len(content["channels"])) for name in _BY_CHANNEL)):
        if content["trained"] is not None and len(content["trained"][name]) != length:
            yield f"trained.{name}", f"{length} entries", shorten(content["trained"][name])
    if prepared["resize"] and prepared["shape"] and prepared["shape"] != window:
        yield "preprocessing.shape", f"the sizes of `window`, {window},", str(prepared["shape"])
    deep = window if len(window) == 3 else [1, *window]
    axes = [axis for axis, size in enumerate(deep) if size > 1]
    if content["mirror"] and not content["flipped_axes"]:
        yield "mirror", "false, or `flipped_axes` of the training", "true without them"
    if not set(content["flipped_axes"] or ()) <= set(axes):
        yield "flipped_axes", f"axes in {axes}, along which `window` has more than 1 voxel,", str(content["flipped_axes"])


def _find_wrong_classes(content: Mapping[str, Any]):
    """Yields field, expected and received of class indices that contradict one another."""
    rule, regions = content["label_rule"], tuple(Region(tuple(one["parts"]), one["painted"]) for one in content["regions"])
    number = len(rule["output_values"]) if regions else len(content["class_names"])
    values = {int(value): index for value, index in rule["values"].items()}
    if fault := find_fault(regions, content["class_names"], number):
        yield "regions", fault[0], shorten(fault[1])
    if regions and content["mirrored_labels"]:
        yield "mirrored_labels", "no pairs beside `regions`", shorten(content["mirrored_labels"])
    if len(values) < len(rule["values"]):
        yield "label_rule.values", "each value once", shorten(list(rule["values"]))
    known = set(values.values()) - {IGNORE}
    if known != set(range(number)):
        yield "label_rule.values", f"values for each class from 0 to {number - 1}", shorten(sorted(known))
    if [values.get(value) for value in rule["output_values"]] != list(range(number)):
        yield "label_rule.output_values", f"a value of each of the {number} classes, in order,", shorten(rule["output_values"])
    for pattern, replacement in rule["renames"]:
        try:
            re.sub(pattern, replacement, "")
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            yield "label_rule.renames", "regular expressions and replacements", f"{shorten(pattern)}: {to_line(error)}"
    mirrored = [index for pair in content["mirrored_labels"] for index in pair]
    if len(set(mirrored)) < len(mirrored) or max(mirrored, default=0) >= number:
        yield "mirrored_labels", f"pairs of distinct classes from 1 to {number - 1}", shorten(content["mirrored_labels"])


def _find_wrong_steps(content: Mapping[str, Any]):
    """Yields field, expected and received of steps of postprocessing that do not fit the classes or one another."""
    if content["regions"] and content["postprocessing"]:
        yield "postprocessing", "no steps beside `regions`", shorten(content["postprocessing"])
    known = set()
    for index, step in enumerate(content["postprocessing"]):
        kind, target, size = step["kind"], step["target"], step["size"]
        least, most = int(kind != "keep_largest"), len(content["class_names"]) - 1
        if not least <= target <= most:
            yield f"postprocessing[{index}].target", f"a class from {least} to {most} for {kind}", str(target)
        if (kind == "remove_small") != (size > 0):
            yield f"postprocessing[{index}].size", f"a size {'above 0' if kind == 'remove_small' else 'of 0'} for {kind}", str(size)
        if (kind, target) in known:
            yield f"postprocessing[{index}]", "each step once", f"{kind} of class {target} again"
        known.add((kind, target))


def _find_wrong_quality(content: Mapping[str, Any]):
    """Yields field, expected and received of what a model learnt of its errors and does not fit its classes and channels."""
    quality, classes = content["quality"] or {}, len(content["class_names"]) - 1
    for name in ("temperatures", "least_dice") if quality else ():
        if len(quality[name]) != classes:
            yield f"quality.{name}", f"{classes} numbers, one a class,", shorten(quality[name])
    if any(len(line) != classes + 2 for line in quality.get("lines", ())):
        yield "quality.lines", f"lists of {classes + 2} numbers", shorten(quality["lines"])
    for name, (_, spread) in quality.get("traits", {}).items():
        if not spread > 0:
            yield f"quality.traits.{name}", "a spread above 0", f"{spread:g}"
    shape = min(len(content["channels"]), traits.MOST_CHANNELS), traits.THUMBNAIL ** content["preprocessing"]["spatial_dims"]
    thumbnail = quality.get("thumbnail")
    if thumbnail and [len(channel) for channel in thumbnail] != [shape[1]] * shape[0]:
        yield "quality.thumbnail", f"{shape[0]} lists of {shape[1]} numbers", shorten(thumbnail)


def check_files(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """Checks that the files that a description lists are plain files of the folder, and warns of files that it does not list.

    Files that are not listed are never read.

    Args:
        folder: The bundle's folder.
        listed: Names with hashes, as checked by `check_description`.

    Returns:
        The listed files that are there, sorted.

    Raises:
        ValueError: If one is a link that leads out of the folder.
    """
    for name in sorted(listed):
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"Expected a file of the bundle at {path}. Received: a link out of its folder. Copy the file there.")
    known = {DESCRIPTION_FILE, *listed}
    strange = sorted(path.name for path in folder.iterdir() if path.name not in known and not _is_harmless(path.name))
    if strange:
        names = ", ".join(shorten(name)[1:-1] for name in strange[:8]) + (", ..." if len(strange) > 8 else "")
        log.warning("%s holds %d file(s) that %s does not list; they are not read: %s", folder, len(strange), DESCRIPTION_FILE, names)
    return sorted(name for name in listed if (folder / name).is_file())


def _is_harmless(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HARMLESS


def check_archive(path: Path) -> None:
    """Checks that a `.keras` file is a whole zip archive, and that it does not inflate to far more than its size.

    Raises:
        ValueError: Otherwise, naming the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # A damaged archive can make zipfile fail in any way.
        raise ValueError(f"Expected a Keras model in {path}. Received: {to_line(error)}. {REMEDY}") from error
    size = path.stat().st_size
    # Keras stores without compression.
    if inflated > 4 * size + (1 << 20):
        raise ValueError(f"Expected a Keras model in {path}. Received: {size:,} bytes that inflate to {inflated:,}. {REMEDY}")


def count_outputs(content: Mapping[str, Any]) -> int:
    """Counts the probabilities that a model must give of each voxel: one a region; else one a class, but one for two classes."""
    number = len(content["class_names"])
    return len(content["regions"]) or (1 if number == 2 else number)


def check_model(model: Any, window: Sequence[int], channels: int, outputs: int, path: Path) -> None:
    """Checks that a model has the input and output that its description says.

    Args:
        model: A `keras.Model` or a stand-in, with `input_shape` and `output_shape`.
        window: Sizes of the window.
        channels: Number of channels.
        outputs: Number of probabilities of a voxel, see `count_outputs`.
        path: The model's file, for the error.

    Raises:
        ValueError: If they differ, naming the file.
    """
    shape = tuple(size for size in window if size > 1)
    for what, expected, received in (
        ("input", (None, *shape, channels), getattr(model, "input_shape", None)),
        ("output", (None, *shape, outputs), getattr(model, "output_shape", None)),
    ):
        # OpenVINO leaves some sizes open, as None.
        fits = isinstance(received, tuple) and len(received) == len(expected)
        if not fits or any(one not in (None, other) for one, other in zip(received, expected, strict=True)):
            raise ValueError(
                f"Expected a model of {what} {expected}, as {DESCRIPTION_FILE} says, in {path}. Received: {shorten(received)}. {REMEDY}"
            )
