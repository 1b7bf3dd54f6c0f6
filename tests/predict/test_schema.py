"""A bundle with nonsense in it is refused in one line that names the file and the field."""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from test_bundle import make_bundle

import predict
from modules.predict.bundle import ModelBundle, write_description

HUGE = "x" * 10_000_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved bundle; read only."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    make_bundle().save(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A bundle to spoil."""
    return shutil.copytree(saved, tmp_path / "bundle")


def _change(bundle, place, value):
    """Sets the value at a place such as "label_rule.values" (Ellipsis removes it) and mends the description's own hash."""
    content = json.loads((bundle / "bundle.json").read_text())
    del content["bundle_sha256"]
    *path, last = place.split(".") if not isinstance(place, list) else place
    parent = content
    for key in path:
        parent = parent[key]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    write_description(bundle, content)


SPANS = [[1.0, 2.0], [1.0, 2.0]]
RANGES = {"spacing_mm": SPANS, "extent_mm": SPANS, "quartiles": [[[0, 1]] * 3], "spread": [[1, 2]], "share": [[1, 2]], "in_mm": True}
STEP = {"kind": "keep_largest", "target": 1, "size": 0.0}

FIELDS = [
    ("format", 4.5, "Expected a bundle of `format` 3 to 9"),
    ("format", ..., "Expected a bundle of `format` 3 to 9"),
    ("version", 3, "for `version`"),
    ("cheese", 1, "Expected no fields but format, version"),
    ("preprocessing", None, "Expected an object with fields in `preprocessing`"),
    ("preprocessing.spatial_dims", 3, "Expected 3 sizes, as `preprocessing.spatial_dims` says for `window`"),
    ("preprocessing.spatial_dims", "2", "Expected one of 2, 3 for `preprocessing.spatial_dims`"),
    ("preprocessing.shape", [16, -32], "for `preprocessing.shape`"),
    ("preprocessing.spacing_mm", [1, math.nan], "for `preprocessing.spacing_mm`"),
    (
        "preprocessing.spacing_mm",
        [1, 1, 1],
        "says, or none for `preprocessing.spacing_mm`",
    ),
    ("preprocessing.intensity", "bright", "for `preprocessing.intensity`"),
    ("preprocessing.std", 0, "Expected a finite number above 0 and at most 1e+30 for `preprocessing.std`"),
    ("preprocessing.mean", math.inf, "for `preprocessing.mean`"),
    ("preprocessing.clip", [1, 2, 3], "for `preprocessing.clip`"),
    ("preprocessing.clip", [2, 1], "Expected 2 numbers, the smaller first, or none for `preprocessing.clip`"),
    ("preprocessing.clip", [1], "Expected 2 numbers, the smaller first, or none for `preprocessing.clip`"),
    ("preprocessing.clip", ..., "Expected the field `preprocessing.clip`"),
    ("preprocessing.resize", 1, "Expected true or false for `preprocessing.resize`"),
    ("preprocessing.scale", ..., "Expected the field `preprocessing.scale`"),
    ("preprocessing.noise", 1, "Expected no fields but spatial_dims"),
    ("window", [16], "for `window`"),
    ("window", [16, 1], "Expected 2 sizes or more above 1 for `window`"),
    ("window", [1 << 20, 1 << 20], "for `window`"),
    ("window", [32, 16], "Expected a model of input (None, 32, 16, 1), as bundle.json says"),
    ("channels", ["T1", "T2"], "Expected 2 lists of 64 numbers for `quality.thumbnail`"),
    ("channels", [], "for `channels`"),
    ("class_names", ["background", "a", "a"], "distinct"),
    ("class_names", ["background", "a", 3], "for `class_names`"),
    ("class_names", ["background", "a", HUGE], "for `class_names`"),
    ("class_names", ["background", "a", "b\x1b[2J"], "for `class_names`"),
    ("class_names", ["background", "a"], "for `label_rule.values`"),
    ("label_rule.values", {"0": 0, "85": 1, "-1": 2}, "for `label_rule.values`"),
    ("label_rule.values", {"0": 0, "85": 1, "99999999": 2}, "for `label_rule.values`"),
    ("label_rule.values", {"0": 0, "85": 1, "170": 3}, "Expected values for each class from 0 to 2 for `label_rule.values`"),
    ("label_rule.values", {"0": 0, "85": 1, "085": 2}, "Expected each value once for `label_rule.values`"),
    ("label_rule.output_values", [0, 170, 85], "for `label_rule.output_values`"),
    ("label_rule.output_values", [0, 85], "for `label_rule.output_values`"),
    ("label_rule.renames", [["(", ""]], "Expected regular expressions and replacements for `label_rule.renames`"),
    ("label_rule.renames", [["a", "\\9"]], "Expected regular expressions and replacements for `label_rule.renames`"),
    ("regions", 3, "for `regions`"),
    ("regions", [3], "Expected an object with fields in `regions[0]`"),
    ("regions", [{"parts": [1]}], "Expected the field `regions[0].painted`"),
    ("regions", [{"parts": [1, 2], "painted": 1}, {"parts": [0], "painted": 0}], "for `regions[1].parts`"),
    ("regions", [{"parts": [1, 2], "painted": 1}], "Expected 2 regions, one for each class but the background for `regions`"),
    ("regions", [{"parts": [2], "painted": 2}, {"parts": [1, 2], "painted": 1}], "Expected regions that later ones do not hide"),
    (
        "regions",
        [{"parts": [1, 2], "painted": 1}, {"parts": [2], "painted": 2}],
        "Expected no pairs beside `regions` for",
    ),
    ("label_rule.values", {"0": 0, "85": 1, "170": 256}, "for `label_rule.values`"),
    ("label_rule.values", {"0": 0, "85": 1, "170": 255}, "Expected values for each class from 0 to 2 for `label_rule.values`"),
    ("mirrored_labels", [[1, 1]], "for `mirrored_labels`"),
    ("mirrored_labels", [[1, 3]], "Expected pairs of distinct classes from 1 to 2 for `mirrored_labels`"),
    ("flipped_axes", [0], "Expected axes in [1, 2], along which `window` has more than 1 voxel for `flipped_axes`"),
    ("flipped_axes", [3], "for `flipped_axes`"),
    ("trained", 3, "Expected an object with fields in `trained`"),
    ("trained", {}, "Expected the field `trained.spacing_mm`"),
    ("trained", RANGES | {"extent_mm": [*SPANS, [1, 2]]}, "Expected 2 entries for `trained.extent_mm`"),
    ("trained", RANGES | {"spread": SPANS}, "Expected 1 entries for `trained.spread`"),
    ("trained", RANGES | {"share": [[0, math.nan]]}, "for `trained.share`"),
    ("quality", ..., "Expected the field `quality`"),
    ("quality", 3, "Expected an object with fields in `quality`"),
    ("quality.limit", 0, "Expected a finite number above 0"),
    ("quality.lines", [[0.1, 1, 1]] * 2, "Expected lists of 4 numbers for `quality.lines`"),
    ("quality.temperatures", [1.0], "Expected 2 numbers, one a class for `quality.temperatures`"),
    ("quality.traits", {"smell/a#": [0, 1]}, "for `quality.traits`"),
    ("quality.traits", {"volume/a#": [0, 0]}, "Expected a spread above 0 for `quality.traits.volume/a#`"),
    ("quality.thumbnail", [[0.5] * 63], "Expected 1 lists of 64 numbers for `quality.thumbnail`"),
    ("postprocessing", ..., "Expected the field `postprocessing`"),
    ("postprocessing", {}, "Expected a list of 0 to 762 items"),
    ("postprocessing", [3], "Expected an object with fields in `postprocessing[0]`"),
    ("postprocessing", [{"kind": "fill_holes", "target": 1}], "Expected the field `postprocessing[0].size`"),
    ("postprocessing", [STEP | {"kind": "blur"}], "'keep_largest', 'remove_small', 'fill_holes' for `postprocessing[0].kind`"),
    ("postprocessing", [STEP, STEP | {"target": 3}], "Expected a class from 0 to 2 for keep_largest for `postprocessing[1].target`"),
    ("postprocessing", [STEP | {"kind": "fill_holes", "target": 0}], "Expected a class from 1 to 2 for fill_holes"),
    ("postprocessing", [STEP | {"kind": "remove_small", "size": -2}], "for `postprocessing[0].size`"),
    ("postprocessing", [STEP | {"kind": "remove_small"}], "Expected a size above 0 for remove_small for `postprocessing[0].size`"),
    ("postprocessing", [STEP | {"size": 3.5}], "Expected a size of 0 for keep_largest for `postprocessing[0].size`"),
    ("postprocessing", [STEP, STEP], "Expected each step once for `postprocessing[1]`"),
    ("mirror", 1, "Expected true or false for `mirror`"),
    ("mirror", ..., "Expected the field `mirror`"),
    ("precision", "auto", "Expected one of 'float32', 'bfloat16' for `precision`"),
    ("precision", ..., "Expected the field `precision`"),
    ("provenance", [], "Expected an object for `provenance`"),
    ("provenance.deep", json.loads("[" * 100 + "]" * 100), "values nested more than 64 deep"),
    ("files_sha256", {}, "for `files_sha256`"),
    (["files_sha256", "model.keras"], "x", "for `files_sha256`"),
    (["files_sha256", "../model.keras"], "0" * 64, "for `files_sha256`"),
    (["files_sha256", "/etc/passwd"], "0" * 64, "for `files_sha256`"),
]


@pytest.mark.parametrize(("place", "value", "message"), FIELDS, ids=[f"{place}-{str(value)[:20]}" for place, value, _ in FIELDS])
def test_nonsense_in_a_field_is_one_line(bundle, place, value, message):
    _change(bundle, place, value)
    with pytest.raises(ValueError, match=r"^Expected [^\n]{1,900}Received: [^.\n][^\n]{0,400}\. Train [^\n]{1,60}\.$") as error:
        ModelBundle.load(bundle, "keras")
    assert message in str(error.value)
    assert str(bundle) in str(error.value)


def test_regions_have_no_steps_of_postprocessing(bundle):
    for place, value in (("mirrored_labels", []), ("postprocessing", [STEP])):
        _change(bundle, place, value)
    _change(bundle, "regions", [{"parts": [1, 2], "painted": 1}, {"parts": [2], "painted": 2}])
    with pytest.raises(ValueError, match="Expected no steps beside `regions` for `postprocessing` in .*bundle.json"):
        ModelBundle.load(bundle)


def test_nonsense_ends_predict_with_status_2(bundle, write_picture, capsys):
    image = write_picture("a.png", np.zeros((16, 32), np.uint8))
    _change(bundle, "class_names", ["background", "a", HUGE])
    assert predict.main([str(image), "--model", str(bundle)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("predict.py: error: Expected a list of 2 to 254 distinct items")
    assert (line.count("\n"), len(line) < 700) == (1, True)


def test_files_outside_of_the_bundle_are_refused(bundle):
    outside = bundle.with_name("outside.keras")
    os.replace(bundle / "model.keras", outside)
    (bundle / "model.keras").symlink_to(outside)
    with pytest.raises(ValueError, match=r"Expected a file of the bundle at .*model.keras. Received: a link out of its folder. Copy"):
        ModelBundle.load(bundle, "keras")
    (bundle / "model.keras").unlink()
    os.replace(outside, bundle / "model.keras")
    # The whole folder may be a link.
    bundle.with_name("link").symlink_to(bundle)
    assert ModelBundle.load(bundle.with_name("link"), "keras").channels == ("T1",)


def test_files_that_are_not_listed_are_named_and_not_read(bundle, caplog):
    for name in ("openvino.xml", "openvino.bin", "more.txt", ".DS_Store", "Thumbs.db"):
        (bundle / name).write_text("x")
    with caplog.at_level(logging.WARNING, "mri"):
        assert ModelBundle.load(bundle).engine == "keras"
    assert [record.getMessage().partition("holds ")[2] for record in caplog.records] == [
        "3 file(s) that bundle.json does not list; they are not read: more.txt, openvino.bin, openvino.xml"
    ]


def _rename_group(parts):
    """Renames the weights of one layer within the file, as flipped bits would."""
    data = parts["model.weights.h5"]
    with h5py.File(io.BytesIO(data)) as weights:
        names = [name for name, group in weights["layers"].items() if name.startswith("conv") and len(group["vars"])]
    parts["model.weights.h5"] = data.replace(f"{names[-1]}\0".encode(), f"{names[-1][:-1]}~\0".encode())


def _repack(bundle, change):
    """Rewrites the archive of the model and mends the hashes."""
    path, result = bundle / "model.keras", io.BytesIO()
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    change(parts)
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as target:
        for name, body in parts.items():
            target.writestr(name, body)
    path.write_bytes(result.getvalue())
    _change(bundle, ["files_sha256", "model.keras"], hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda parts: parts.update({"zeros": bytes(32 << 20)}), "bytes that inflate to 3"),
        (lambda parts: parts.pop("config.json"), "config.json"),
        (lambda parts: parts.update({"config.json": b'{"class_name": 3}'}), ""),
        (_rename_group, ""),
        (lambda parts: parts.update({"model.weights.h5": parts["model.weights.h5"][:1000]}), ""),
    ],
)
def test_a_model_file_that_lies_is_one_line(bundle, change, received):
    _repack(bundle, change)
    with pytest.raises(ValueError, match=r"^Expected a Keras model in .*model.keras. Received: [^.].*Train or copy it again.$") as error:
        ModelBundle.load(bundle, "keras")
    assert received in str(error.value)
    assert len(str(error.value)) < 800
