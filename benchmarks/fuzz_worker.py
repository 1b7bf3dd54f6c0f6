"""The process of `fuzz.py` that reads mutants: with the project's own functions, and with its peer, under limits of memory.

It takes a kind and a path a line from standard input, and answers with two lines of JSON: `begun`, then the verdict.
"""

import contextlib
import json
import logging
import os
import re
import resource
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_lies import find_png_lies, find_tiff_lies

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.data import documents
from modules.data.case import LabelRule, read_header, read_label, read_volume
from modules.data.files import NIFTI_SUFFIXES, suffix_of
from modules.data.formats import _import_cv2, read_grid
from modules.data.nibabel_files import import_nibabel

GIB = 1 << 30
# The process gets this much more than it has at its beginning. A reader that wants more gets MemoryError, which counts as a fault.
ROOM = 3 * GIB
UNITS_MM = {1: 1000.0, 3: 0.001}
RULE = LabelRule({value: value for value in range(200)})
SLACK = 1 << 20


def measure_memory(name: str) -> int:
    """Returns a line of `/proc/self/status` in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])  # ty: ignore[not-subscriptable]


@contextlib.contextmanager
def measure_peak(found: dict[str, Any]):
    """Notes by how much the resident memory rises at most within the block, and how much libraries print."""
    printed = os.fstat(2).st_size
    Path("/proc/self/clear_refs").write_text("5")
    before = measure_memory("VmRSS")
    try:
        yield
    finally:
        found["extra"] = measure_memory("VmHWM") - before
        found["printed"] = os.fstat(2).st_size - printed


def judge_error(error: BaseException, path: Path) -> str:
    """Returns what is wrong with an error that the program would show; "" for one clear line that names its file."""
    if not isinstance(error, ValueError | OSError):
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    text = str(error)
    line = documents.to_line(error)
    if path.name not in line and str(path.parent) not in line:
        return f"no file named: {line[:200]}"
    if "\n" in text.strip() or len(text) > 1_200:
        return f"{len(text)} characters in {text.count(chr(10)) + 1} lines: {text[:200]!r}"
    if "Received: ." in text or "Received:" not in text:
        return f"nothing received: {line[:200]}"
    return ""


def attempt(read: Callable[[], Any], path: Path) -> tuple[Any, str, str]:
    """Reads; returns the result or None, the line of the error or "", and what is wrong with it or ""."""
    try:
        return read(), "", ""
    except BaseException as error:
        return None, documents.to_line(error), judge_error(error, path)


# ----------------------------------------------------------------------------------------------------------------- images


def expect_image(path: Path) -> tuple[dict[str, Any] | None, str, list[str]]:
    """Reads an image with its peer: nibabel or OpenCV.

    Returns:
        The result that the program must return, or None; the peer's reason to refuse the image, or ""; and parts of messages. The program
        must give one of these messages where it must refuse an image that the peer takes.
    """
    try:
        return _expect_nifti(path) if suffix_of(path) in NIFTI_SUFFIXES else _expect_picture(path)
    except BaseException as error:
        return None, documents.to_line(error), []


def _expect_nifti(path: Path) -> tuple[dict[str, Any] | None, str, list[str]]:
    source = import_nibabel().load(path)
    shape, kind = source.shape, source.get_data_dtype().kind
    array = np.asanyarray(source.dataobj) if kind not in "iuf" else source.get_fdata(dtype=np.float32, caching="unchanged")
    reasons = [*_find_damage(path, source), *_find_wrong_fields(source)]
    if kind not in "iuf":
        return None, "", [*reasons, "no intensities"]
    if 0 in shape:
        return None, "", [*reasons, "an array of shape"]
    scale = UNITS_MM.get(int(source.header["xyzt_units"]) & 7, 1.0)
    affine = np.array(source.affine, np.float64)
    affine[:3] *= scale
    kept = [axis for axis, size in enumerate(shape[:3]) if size > 1]
    others = [axis for axis in range(3) if axis not in kept]
    channels = [size for size in shape[3:] if size > 1] or [1]
    zooms = [float(zoom) * scale for zoom in source.header.get_zooms()]
    lengths = [float(np.sqrt((affine[:3, axis] ** 2).sum())) for axis in kept]
    spacing = tuple(
        zooms[axis] if abs(length - zooms[axis]) <= 1e-4 * zooms[axis] else length for axis, length in zip(kept, lengths, strict=True)
    )
    checks = {
        "Expected a slice or a volume": len(kept) >= 2 and len(channels) == 1,
        "NaN or infinity in its affine": np.isfinite(affine).all(),
        "Expected a finite voxel size": np.isfinite([zooms[axis] for axis in kept]).all(),
        "Expected voxels of 0.0001 to 5000 mm": all(1e-4 <= size <= 5e3 for size in (*lengths, *(zooms[axis] for axis in kept))),
        "Expected a first voxel within 1e+06 mm": np.abs(affine[:3, 3]).max() <= 1e6,
        "Expected finite values": np.isfinite(array).all(),
    }
    reasons += [reason for reason, holds in checks.items() if not holds]
    found = {
        "array": array.reshape([shape[axis] for axis in kept] + channels[:1]) if len(kept) >= 2 and len(channels) == 1 else None,
        "affine": affine[:, [*kept, *others, 3]],
        "spacing": spacing,
    }
    return found, "", reasons


def _find_wrong_fields(source) -> list[str]:
    """Finds fields that nibabel passes over or puts right with invented numbers, in the header as it lies in the file."""
    kind = type(source.header)
    with source.file_map["image"].get_prepare_fileobj("rb") as file:
        raw = kind(file.read(kind.sizeof_hdr), check=False)
    sizes = [float(raw["pixdim"][axis + 1]) for axis, size in enumerate(source.shape[:3]) if size > 1]
    qform = [raw[name] for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")]
    faults = {
        "in a single file": raw["vox_offset"] < kind.single_vox_offset,
        "a voxel size of 0": 0 in sizes,
        "NaN or infinity in its qform": raw["qform_code"] > 0 and not np.isfinite(qform).all(),
    }
    return [reason for reason, found in faults.items() if found]


def _find_damage(path: Path, source) -> list[str]:
    """Finds what nibabel does not look at: a gzip file's check sum, and far more content than its header promises."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return []
    most = int(source.dataobj.offset) + int(np.prod(source.shape)) * source.get_data_dtype().itemsize + SLACK
    size = 0
    # Bytes behind the last member that are none are allowed: gzip itself passes over them.
    while data[:2] == b"\x1f\x8b" and size <= most:
        # gzip passes over reserved bits of the head, which zlib refuses.
        data = data[:3] + bytes([data[3] & 31]) + data[4:]
        member = zlib.decompressobj(31)
        try:
            while not member.eof and size <= most:
                content = member.decompress(data, 1 << 20)
                size, data = size + len(content), member.unconsumed_tail
                if not (content or data or member.eof):
                    return ["Expected a whole NIfTI file"]
        except zlib.error:
            return ["Expected a whole NIfTI file"]
        data = member.unused_data
    return ["where its header promises", "Expected a whole NIfTI file"] if size > most else []


def _expect_picture(path: Path) -> tuple[dict[str, Any] | None, str, list[str]]:
    cv2 = _import_cv2()
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        return None, "cannot be decoded", []
    reasons = (find_png_lies if path.suffix == ".png" else find_tiff_lies)(path.read_bytes())
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        reasons.append("Expected finite values")
    array = array[..., np.newaxis] if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[-1]]] if array.shape[-1] > 2 else array
    return {"array": array.astype(np.float32), "affine": None, "spacing": (1.0, 1.0)}, "", reasons


def judge_image(path: Path, found: dict[str, Any]) -> None:
    """Reads an image in all ways, then with its peer, and compares."""
    with measure_peak(found):
        volume, line, fault = attempt(lambda: read_volume([path]), path)
        others = [attempt(lambda: read_label(path, RULE), path)]
        if suffix_of(path) in NIFTI_SUFFIXES:
            others += [attempt(lambda: read_grid(path), path), attempt(lambda: read_header([path]), path)]
    found["honest"] = path.stat().st_size + (0 if volume is None else 2 * volume.array.nbytes)
    tell({"begun": "peer"})
    expected, refusal, reasons = expect_image(path)
    found["line"] = line
    fault = fault or next((other[2] for other in others if other[2]), "")
    if fault:
        found["verdict"], found["why"] = "fault", fault
    elif line and refusal:
        found["verdict"] = "both refuse"
    elif line:
        known = next((reason for reason in reasons if reason in line), "")
        found["verdict"], found["why"] = ("only ours refuses", known) if known else ("difference", f"refused: {line[:300]}")
    elif expected is None or reasons:
        found["verdict"], found["why"] = "difference", f"taken, though: {refusal or reasons}"
    else:
        grid = others[1][0] if len(others) > 1 else None
        wrong = compare(volume, expected, grid)
        found["verdict"], found["why"] = ("difference", wrong) if wrong else ("equal", "")


def compare(volume, expected: dict[str, Any], grid) -> str:
    """Compares what was read with what must be; returns what differs, or ""."""
    if volume.array.shape != expected["array"].shape:
        return f"shape {volume.array.shape}, not {expected['array'].shape}"
    if not np.array_equal(volume.array, expected["array"]):
        return f"values: {int((volume.array != expected['array']).sum())} differ"
    if expected["affine"] is not None:
        if not np.array_equal(volume.affine, expected["affine"]):
            return f"affine {volume.affine.tolist()}, not {expected['affine'].tolist()}"
        if grid is None or not np.array_equal(grid.affine, volume.affine) or grid.array.shape != volume.array.shape:
            return "the header alone gives another grid"
    if not np.allclose(volume.spacing_mm, expected["spacing"], rtol=1e-12):
        return f"spacing {volume.spacing_mm}, not {expected['spacing']}"
    return ""


# -------------------------------------------------------------------------------------------------------------- documents


def judge_bundle(folder: Path, found: dict[str, Any]) -> None:
    """Loads a bundle; one that is taken must be what its description says."""
    from modules.predict.bundle import ModelBundle

    with measure_peak(found):
        bundle, line, fault = attempt(lambda: ModelBundle.load(folder, "keras"), folder / "bundle.json")
    found["honest"] = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    tell({"begun": "peer"})
    found["line"] = line
    if fault or line:
        found["verdict"], found["why"] = ("fault", fault) if fault else ("only ours refuses", describe_message(line))
        return
    content = json.loads((folder / "bundle.json").read_bytes().decode("utf-8-sig"))
    rule, prepared = content["label_rule"], content["preprocessing"]
    pairs = [
        (list(bundle.window.sizes), content["window"]),
        (list(bundle.class_names), content["class_names"]),
        (list(bundle.channels), content["channels"]),
        (
            {str(value): index for value, index in bundle.label_rule.values.items()},
            {str(int(key)): index for key, index in rule["values"].items()},
        ),
        (list(bundle.label_rule.output_values), rule["output_values"]),
        ([list(pair) for pair in bundle.label_rule.renames], rule["renames"]),
        ([{"parts": list(parts), "painted": painted} for parts, painted in bundle.regions], content["regions"]),
        ([list(pair) for pair in bundle.mirrored_labels], content["mirrored_labels"]),
        (None if bundle.flipped_axes is None else list(bundle.flipped_axes), content["flipped_axes"]),
        (bundle.postprocessing.to_json(), content.get("postprocessing", [])),
        (bundle.precision, content.get("precision", "float32")),
        (bundle.quality and json.loads(json.dumps(bundle.quality.to_json())), content.get("quality")),
        # A model that lays windows over slices needs no shape.
        ({**prepared, "shape": []} if not prepared["resize"] else prepared, json.loads(json.dumps(vars(bundle.preprocessing)))),
    ]
    wrong = [f"{ours}, not {theirs}" for ours, theirs in pairs if ours != theirs]
    found["verdict"], found["why"] = ("difference", wrong[0][:300]) if wrong else ("equal", "")


def describe_message(line: str) -> str:
    """Returns the class of a message: the field that it names, else its words without the file's name and what was received."""
    words = line.partition(" Received:")[0]
    field = re.search(r"(?:for|field) `(\w+)", words)
    return f"field {field[1]}" if field else re.sub(r" in (`\w+` of )?/\S+|/\S+", "", words)[:70]


def judge_dataset(root: Path, found: dict[str, Any]) -> None:
    """Reads a data set's description and finds its cases; what is taken must be what the file says."""
    from dataset import DATASETS
    from modules.data.spec import find_cases, load_spec

    def read():
        spec = load_spec(DATASETS["msd"], root)
        return spec, find_cases(spec, root)

    with measure_peak(found):
        result, line, fault = attempt(read, root / "dataset.json")
    found["honest"] = sum(path.stat().st_size for path in root.iterdir() if path.is_file())
    tell({"begun": "peer"})
    found["line"] = line
    if fault or line:
        found["verdict"], found["why"] = ("fault", fault) if fault else ("only ours refuses", describe_message(line))
        return
    spec, cases = result
    content = json.loads((root / "dataset.json").read_bytes().decode("utf-8-sig"))
    nnunet = "channel_names" in content
    named = content["channel_names" if nnunet else "modality"]
    # A list of one value is that value. Longer ones need `regions_class_order`, which no mutant has, and are refused.
    labels = {name: value[0] if nnunet and isinstance(value, list) else value for name, value in content["labels"].items()}
    # Each layout's own way first; the other where that gives no numbers.
    ways = (list(labels.items()), [(name, value) for value, name in labels.items()])
    pairs = next(way for way in (ways if nnunet else reversed(ways)) if all(re.fullmatch(r"\d+(\.0)?", str(value)) for _, value in way))
    pairs = sorted((int(float(value)), str(name)) for name, value in pairs)
    listed = content.get("dataset") if nnunet else content.get("training")
    expected = (
        tuple(named[key] for key in sorted(named, key=int)),
        tuple(name for _, name in pairs if name != "ignore"),
        {value: 255 if name == "ignore" else index for index, (value, name) in enumerate(pairs)},
        len(listed) if listed else 2 if nnunet else 3,
    )
    received = (spec.channels, spec.class_names, dict(spec.label_rule.values), len(cases))
    wrong = [f"{ours}, not {theirs}" for ours, theirs in zip(received, expected, strict=True) if ours != theirs]
    found["verdict"], found["why"] = ("difference", wrong[0][:300]) if wrong else ("equal", "")


# ------------------------------------------------------------------------------------------------------------------- main


def tell(content: dict[str, Any]) -> None:
    """Writes a line of JSON for the parent, whatever libraries do with standard output."""
    os.write(ANSWERS, json.dumps(content).encode() + b"\n")


def main() -> None:
    """Reads mutants until the parent closes its end."""
    kind = sys.argv[1]
    # The program's own warnings go to its log, and are no lines of a library.
    logging.getLogger("mri").addHandler(logging.NullHandler())
    judge = {"bundle": judge_bundle, "dataset": judge_dataset}.get(kind, judge_image)
    if kind == "bundle":
        from modules import devices

        devices.import_keras()
        import keras  # noqa: F401
    elif kind != "dataset":
        _import_cv2()
        import_nibabel()
    size = 1024 * int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # ty: ignore[not-subscriptable]
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    tell({"begun": "worker"})
    for line in sys.stdin:
        found: dict[str, Any] = {"why": ""}
        judge(Path(line.rstrip("\n")), found)
        tell(found)


if __name__ == "__main__":
    # Libraries may print; only this copy of standard output is for answers.
    ANSWERS = os.dup(1)
    os.dup2(2, 1)
    main()
