"""Other programs read what is exported, by its description alone."""

import json
import math

import keras
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
from modules.data.regions import Region
from modules.predict.bundle import ModelBundle
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
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"model: {folder / 'saved_model'}, and how it is used: ")
    description = json.loads((folder / "preprocessing.json").read_text())
    for known in description["models"].values():
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
        patch.setattr(keras.backend, "backend", lambda: "jax")
        assert "Expected KERAS_BACKEND=tensorflow to export. Received: jax. Set it" in refuse("--export", "savedmodel", str(run))
    # One of the two is there, whatever is installed.
    known, find = {"tf2onnx": None, "onnx": importlib.util.find_spec("json")}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: known[name] if name in known else find(name, *rest))
    assert "Received: no tf2onnx. pip install onnx tf2onnx" in refuse("--export", "onnx", str(run))
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
