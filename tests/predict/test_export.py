"""Other programs read what is exported, by its description alone."""

import json
import math
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from engine_helpers import check_alike as _check_alike
from engine_helpers import on_tensorflow
from engine_helpers import predict_slice as _predict
from engine_helpers import run_python as _run_python
from engine_helpers import save_bundle as _save_bundle

import predict
from modules.data.case import LabelRule
from modules.data.files import hash_file
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.data.ranges import TrainingRanges
from modules.data.regions import Region
from modules.predict import convert, engines, export
from modules.predict.bundle import ModelBundle
from modules.predict.export_check import draw_samples
from modules.predict.postprocess import Postprocessing, Step


def _prepare_by_hand(description, image):
    """Does what `preprocessing.json` says of a slice, in its order, as someone would who has nothing else; returns windows and starts."""
    for step in description["steps"]:
        if step["step"] == "intensity":
            assert (step["kind"], step["formula"]) == ("min_max", "(x - min) / (max - min)")
            image = (image - image.min()) / (image.max() - image.min())
        else:
            assert step["step"] == "read" or step["text"] == "As in the file."
    shape, overlap = description["windows"]["shape"], description["windows"]["overlap"]
    assert shape == description["input"]["shape"][1:3]
    axes = []
    for size, n in zip(image.shape, shape, strict=True):
        m = math.ceil((size - n) / max(1, math.floor(n * (1 - overlap)))) + 1
        axes.append([round(i * (size - n) / (m - 1)) for i in range(m)])
    starts = [(top, left) for top in axes[0] for left in axes[1]]
    windows = [image[top : top + shape[0], left : left + shape[1]] for top, left in starts]
    return np.stack(windows)[..., np.newaxis].astype(description["input"]["dtype"]), starts


def _label_by_hand(description, probabilities, shape, starts):
    """Averages the windows with the weights of the description, and takes each voxel's likeliest class."""
    values = np.array([item["value_in_file"] for item in description["classes"]])
    rows, columns = probabilities.shape[1:3]
    profiles = [np.maximum(np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2), 0.001) for n in (rows, columns)]
    weight = np.multiply.outer(*profiles)[..., np.newaxis]
    total, weights = np.zeros((*shape, probabilities.shape[-1])), np.zeros((*shape, 1))
    for window, (top, left) in zip(probabilities, starts, strict=True):
        total[top : top + rows, left : left + columns] += window * weight
        weights[top : top + rows, left : left + columns] += weight
    return values[(total / weights).argmax(axis=-1)]


SERVE = """
import json, sys
import numpy as np
# TensorFlow imports Keras where there is one.
sys.modules["keras"] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], model.serve(np.load(sys.argv[2])).numpy())
print(json.dumps(sys.modules["keras"]))
"""


@on_tensorflow
def test_an_exported_model_is_used_without_keras_by_its_description_alone(own_run, slice_path, tmp_path, capsys):
    for package in ("onnx", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    for kind in ("onnx", "savedmodel"):
        assert predict.main(["--export", kind, str(own_run)]) == 0
    folder = own_run / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "preprocessing.json", "saved_model"]
    *_, lack, found, last = capsys.readouterr().out.splitlines()
    assert lack == f"no scans of the run to check on: no run.json in {own_run}, a model without its run."
    assert found.startswith("tensorflow computes what Keras does on two windows of noise, within 0.00")
    assert last.startswith(f"model: {folder / 'saved_model'}, and how it is used: ")
    description = json.loads((folder / "preprocessing.json").read_text())
    for known in description["models"].values():
        assert known["check"]["on"] == "two windows of noise"
        assert 0 <= known["check"]["difference"] <= known["check"]["tolerance"] <= 1e-2
        for name, digest in known["files_sha256"].items():
            assert hash_file(folder / name) == digest
    scan = nib.load(slice_path).get_fdata(dtype=np.float32).squeeze()
    images, starts = _prepare_by_hand(description, scan)

    known = description["models"]["onnx"]
    session = onnxruntime.InferenceSession(folder / known["file"], providers=["CPUExecutionProvider"])
    by_onnx = session.run([known["output"]], {known["input"]: images})[0]
    np.save(tmp_path / "images.npy", images)
    known = description["models"]["savedmodel"]
    assert _run_python(SERVE, folder / known["file"], tmp_path / "images.npy", tmp_path / "out.npy") is None
    by_tensorflow = np.load(tmp_path / "out.npy")

    np.testing.assert_allclose(by_onnx, by_tensorflow, atol=1e-4)
    expected = _predict(slice_path, tmp_path / "expected", "--model", str(own_run))
    for probabilities in (by_onnx, by_tensorflow):
        assert list(probabilities.shape[1:]) == description["output"]["shape"][1:]
        _check_alike(_label_by_hand(description, probabilities, scan.shape, starts), expected)


@on_tensorflow
def test_exporting_another_model_forgets_the_first(own_run, tmp_path):
    other = tmp_path / "other"
    _save_bundle(other, dataset="oasis")
    folder = tmp_path / "out"
    for run in (own_run, other):
        assert predict.main(["--export", "savedmodel", str(run), "--output", str(folder)]) == 0
    description = json.loads((folder / "preprocessing.json").read_text())
    assert (list(description["models"]), description["provenance"]["dataset"]) == (["savedmodel"], "oasis")
    assert not list(folder.glob(".*"))


@on_tensorflow
def test_an_export_that_computes_something_else_is_refused_and_leaves_nothing(own_run, capsys, monkeypatch):
    monkeypatch.setattr(convert, "has_nvidia", lambda: False)
    monkeypatch.setattr(export, "_write", lambda model, kind, path: path.mkdir())
    load = "modules.predict.export_check._load_savedmodel"

    def refuse():
        assert predict.main(["--export", "savedmodel", str(own_run)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert not (own_run / "export").exists()
        return line

    monkeypatch.setattr(load, lambda path: lambda images: np.full((*images.shape[:-1], 4), 0.25, np.float32))
    assert re.search(r"Expected probabilities of tensorflow within 0.00\d+ of Keras's. Received: a difference of 0.\d+, where", refuse())
    monkeypatch.setattr(load, lambda path: 1 / 0)
    assert refuse().endswith("Expected an exported model that tensorflow computes. Received: division by zero.")


def test_a_format_whose_runtime_is_missing_is_not_checked(run, monkeypatch, caplog):
    import importlib.util

    bundle = ModelBundle.load(run, "keras")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert export._check(bundle, "onnx", run, draw_samples(bundle)) == {"check": None}
    assert caplog.messages == ["not checked: onnxruntime is not installed; pip install onnxruntime, and export again"]


def _copy(source, target):
    shutil.copytree(source, target, dirs_exist_ok=True)


@on_tensorflow
def test_a_variant_is_kept_only_if_it_is_judged_well(own_run, tmp_path):
    bundle, folder, seen = ModelBundle.load(own_run, "keras"), tmp_path / "out", []
    samples = draw_samples(bundle)

    def judge(plain, other):
        seen.append((plain.engine, plain.computed_in, other.engine, other.computed_in))
        if len(seen) > 1:
            raise ValueError("it loses too much")
        return {"lost": 0.001}

    path = export.export_model(bundle, "openvino", folder, samples, export.Variant("bfloat16", None, judge))
    known = json.loads((folder / "preprocessing.json").read_text())["models"]["openvino"]
    assert (known["precision"], known["validation"], known["check"]["on"]) == ("bfloat16", {"lost": 0.001}, "two windows of noise")
    assert seen == [("openvino", "float32", "openvino", "bfloat16")]
    # The call that the description gives is one of Python.
    openvino = engines.import_openvino()
    names = {"openvino": openvino, "file": folder / known["file"], "images": samples.images}
    assert known["call"].endswith('{"INFERENCE_PRECISION_HINT": "bf16"})(images)[0]')
    found = eval(known["call"].replace("bf16", "f32"), names)
    np.testing.assert_allclose(found, bundle.model.predict_on_batch(samples.images), atol=1e-4)

    before = {file: hash_file(file) for file in folder.rglob("*") if file.is_file()}
    assert set(before) == {folder / "preprocessing.json", *(path / name for name in engines.OPENVINO_FILES)}
    with pytest.raises(ValueError, match="it loses too much"):
        export.export_model(bundle, "openvino", folder, samples, export.Variant("int8", _copy, judge))
    assert {file: hash_file(file) for file in folder.rglob("*") if file.is_file()} == before


def test_drawn_windows_spread_as_the_scans_of_the_training(run):
    ranges = TrainingRanges(((1, 1), (1, 1)), ((64, 64), (64, 64)), (((0.1, 0.3), (0.4, 0.6), (0.6, 0.6)),), ((150, 250),), ((1, 1),), True)
    bundle = replace(ModelBundle.load(run, "keras"), trained=ranges)
    for preprocessing, expected in (
        (Preprocessing(2, shape=(64, 64)), (0.2, 0.5, 0.6)),
        (Preprocessing(2, intensity="fixed", scale=200.0, mean=0.5, std=0.1), (-3, 0, 1)),
        (Preprocessing(2, intensity="ct", mean=40.0, std=20.0), (-3, 0, 1)),
    ):
        images, origin = draw_samples(replace(bundle, preprocessing=preprocessing))
        assert (images.shape, images.dtype, origin) == ((2, 64, 64, 1), np.float32, "two windows drawn over the training's intensities")
        assert np.percentile(images, (25, 50, 75)) == pytest.approx(expected, abs=0.02 * (expected[2] - expected[0]) + 0.01)
        assert (images[0] != images[1]).any()


def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys, monkeypatch):
    import importlib.util

    def refuse(*argv):
        assert predict.main(list(argv)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "Expected one run to export. Received: a, b. Name one of them, as in --export onnx a." in refuse("--export", "onnx", "a", "b")
    assert "Expected a trained model in" in refuse("--export", "onnx", str(tmp_path))
    assert "invalid choice: 'coreml'" in refuse("--export", "coreml", str(run))
    with monkeypatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        assert "Expected KERAS_BACKEND=tensorflow to export. Received: jax. Set it" in refuse("--export", "savedmodel", str(run))
    # One of the two is there, whatever is installed.
    known, find = {"tf2onnx": None, "onnx": importlib.util.find_spec("json")}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: known[name] if name in known else find(name, *rest))
    assert "Expected what --export onnx needs: onnx and tf2onnx. Received: no tf2onnx. pip install onnx tf2onnx" in refuse(
        "--export", "onnx", str(run)
    )
    assert not (run / "export").exists()


def test_a_description_has_the_numbers_of_every_kind_of_preprocessing():
    from modules.predict.export import describe

    fields = {"class_names": ("background", "a"), "channels": ("T1", "T2"), "label_rule": LabelRule({0: 0, 1: 1}, (0, 7))}
    volumes = Preprocessing(3, spacing_mm=(1.5, 1.0, 2.0), interpolation="cubic", foreground_crop=True, intensity="zscore")
    description = json.loads(json.dumps(describe(ModelBundle(None, volumes, Window((32, 1, 16)), **fields))))
    assert [step["step"] for step in description["steps"]] == ["read", "orientation", "foreground", "intensity", "spacing"]
    assert description["steps"][-1]["spacing_mm"] == [1.5, 1.0, 2.0]
    assert description["input"]["shape"] == [None, 32, 16, 2]
    assert [axis.split()[1] for axis in description["input"]["axes"][1:3]] == ["left", "foot"]
    assert description["output"]["shape"] == [None, 32, 16, 1]
    assert description["output"]["values"].startswith("probability of class 1")
    assert description["classes"][1] == {"index": 1, "name": "a", "value_in_file": 7}
    fields |= {"label_rule": LabelRule({0: 0, 1: 1, 4: 2}), "class_names": ("background", "whole", "core")}
    description = describe(ModelBundle(None, volumes, Window((32, 1, 16)), **fields, regions=(Region((1, 2), 1), Region((2,), 2))))
    assert description["output"]["shape"] == [None, 32, 16, 2]
    assert description["output"]["values"].startswith("probability of each region, from 0 to 1, by a sigmoid each")
    assert "becomes that region's `value_in_file` where its probability is above 0.5" in description["output"]["text"]
    assert description["classes"] == [
        {"index": 0, "name": "background", "value_in_file": 0},
        {"index": 1, "name": "whole", "value_in_file": 1, "values_of_region": [1, 4]},
        {"index": 2, "name": "core", "value_in_file": 4, "values_of_region": [4]},
    ]
    pictures = Preprocessing(2, shape=(8, 8), intensity="fixed", scale=255.0, mean=0.1, std=0.2)
    largest = Postprocessing((Step("keep_largest", 1),))
    described = describe(ModelBundle(None, pictures, Window((8, 8)), postprocessing=largest, **fields))
    assert described["postprocessing"]["steps"] == [{"kind": "keep_largest", "target": 1, "size": 0.0}]
    assert "in pixels" in described["postprocessing"]["text"]
    assert "in mm3" in description["postprocessing"]["text"]
    steps = described["steps"]
    assert {"scale": 255.0, "mean": 0.1, "std": 0.2}.items() <= steps[2].items()
    # A slice of noise divides by a twentieth of the range.
    zscore = describe(ModelBundle(None, Preprocessing(2, intensity="zscore", scale=255.0), Window((8, 8)), **fields))["steps"][2]
    assert (zscore["formula"], zscore["least_std"]) == ("(x - mean) / std", 12.75)
    for clip, formula in (((-100.0, 200.0), "(clip(x, clip[0], clip[1]) - mean) / std"), ((), "(x - mean) / std")):
        hounsfield = Preprocessing(3, intensity="ct", clip=clip, mean=50.0, std=40.0)
        step = describe(ModelBundle(None, hounsfield, Window((8, 8, 8)), **fields))["steps"][2]
        assert {"kind": "ct", "clip": list(clip), "mean": 50.0, "std": 40.0, "formula": formula}.items() <= step.items()
    whole = Preprocessing(3, shape=(8, 8, 8), resize=True, intensity="percentile")
    steps = describe(ModelBundle(None, whole, Window((8, 8, 8)), **fields))["steps"]
    assert [step["step"] for step in steps] == ["read", "orientation", "intensity", "resize"]
