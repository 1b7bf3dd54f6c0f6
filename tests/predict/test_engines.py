"""OpenVINO computes what Keras does, stands back where it cannot, and starts without TensorFlow; other programs read what is exported."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest

import predict
from modules.data.case import LabelRule
from modules.data.files import hash_file
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import NETWORKS, build, find_divisor, find_ranks, with_head
from modules.predict import convert, engines
from modules.predict.bundle import ModelBundle
from modules.predict.convert import convert_bundle

ROOT = Path(__file__).parents[2]
TRANSFORMER = {"hidden_size": 8, "mlp_size": 8, "num_layers": 4, "num_heads": 2, "base_filters": 2}
CASES = [
    *((name, rank, TRANSFORMER if name == "unetr" else {"base_filters": 4}) for name in NETWORKS for rank in find_ranks(name)),
    ("unet2d", 2, {"base_filters": 16, "norm": "group"}),
    ("unet2d", 2, {"base_filters": 4, "norm": "instance", "dropout": 0.5}),
    ("unet3d", 3, {"base_filters": 8, "norm": "group"}),
    ("resunet3d", 3, {"base_filters": 4, "norm": "instance"}),
]
# Both compute in float32 and sum in another order. Each is up to 7.2e-6 from float64 in a network of so many layers. Errors that point
# apart add up: to 1.5e-5 at most, depending on the CPU.
TOLERANCE = 2e-5
# The deepest level of resunet3d has few voxels here. Keras is 2.3e-5 from float64 there, and OpenVINO 1.7e-5.
ROUNDING = {"resunet3d": 5e-5}

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow converts and exports for all backends")


def _randomise(model):
    """Sets every weight, moving averages too, to a value that training could have given it."""
    rng = np.random.default_rng(5)
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        if weight.path.endswith(("gamma", "moving_variance")):
            value = rng.uniform(0.5, 1.5, value.shape)
        else:
            value = value * rng.uniform(0.8, 1.2, value.shape) + (0.1 * rng.standard_normal(value.shape) if value.ndim == 1 else 0)
        weight.assign(value.astype(np.float32))
    return model


def _build(name, rank, options, num_classes=4):
    keras.utils.set_random_seed(2)
    # With fewer voxels at the deepest level, instance normalisation would magnify the rounding of each.
    shape = ((4 if rank == 2 else 2) * find_divisor(name),) * rank
    return _randomise(with_head(build(name, (*shape, 2), num_classes, **options)))


def _images(model, number):
    return np.random.default_rng(number).standard_normal((number, *model.input_shape[1:]), np.float32)


def _name(value):
    return value.get("norm", "") if isinstance(value, dict) else None


@on_tensorflow
@pytest.mark.parametrize(("name", "rank", "options"), CASES, ids=_name)
def test_openvino_equals_keras_on_every_network(tmp_path, name, rank, options):
    pytest.importorskip("openvino")
    model = _build(name, rank, options)
    convert.write_openvino(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(engines.OPENVINO_FILES)
    converted = engines.OpenVinoModel(tmp_path)
    for number in (1, 5, 2):
        images = _images(model, number)
        expected = keras.ops.convert_to_numpy(model(images, training=False))
        assert expected.std() > 0.01
        found = converted.predict_on_batch(images)
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        assert converted.input_shape == model.input_shape
        np.testing.assert_allclose(found, expected, atol=ROUNDING.get(name, TOLERANCE), rtol=0)
        # This window comes from a scan whose axes were turned.
        turned = images.swapaxes(1, 2).copy().swapaxes(1, 2)
        np.testing.assert_array_equal(converted.predict_on_batch(turned), found)


@pytest.mark.parametrize(("name", "rank", "options"), CASES[-4:], ids=_name)
def test_the_model_to_export_is_the_same_without_group_normalisation(name, rank, options):
    model = _build(name, rank, options)
    plain = convert.simplify_for_export(model)
    assert not [layer for layer in plain.layers if isinstance(layer, keras.layers.GroupNormalization)]
    images = _images(model, 3)
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(plain(images, training=False)), expected, atol=ROUNDING.get(name, 1e-5))
    # The original model has not changed.
    assert [layer for layer in model.layers if isinstance(layer, keras.layers.GroupNormalization)]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(images, training=False)), expected)


def test_group_normalisation_without_scale_or_of_another_axis():
    inputs = keras.Input((4, 6, 8))
    x = keras.layers.GroupNormalization(4, scale=False, center=False)(inputs)
    x = keras.layers.GroupNormalization(2, axis=1)(x)
    model = _randomise(keras.Model(inputs, keras.Sequential([keras.layers.GroupNormalization(-1, epsilon=0.1)])(x)))
    images = _images(model, 2)
    plain = convert.simplify_for_export(model)
    expected, found = (keras.ops.convert_to_numpy(one(images)) for one in (model, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_backend_converts_in_a_process_of_tensorflow(tmp_path):
    pytest.importorskip("openvino")
    model = _build("unet2d", 2, {"base_filters": 2, "levels": 1, "norm": "group"})
    convert._convert_elsewhere(model, tmp_path)
    images = _images(model, 3)
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(engines.OpenVinoModel(tmp_path).predict_on_batch(images), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- choice


@pytest.fixture
def on_cpu(monkeypatch):
    """Makes the machine one without a GPU and with OpenVINO."""
    monkeypatch.setattr(engines, "sees_gpu", lambda: False)
    monkeypatch.setattr(engines, "has_openvino", lambda: True)


def test_auto_is_openvino_where_it_can_be(on_cpu, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mri")
    assert engines.choose_engine("auto", Path("b"), True) == engines.choose_engine("openvino", Path("b"), True) == "openvino"
    assert engines.choose_engine("keras", Path("b"), False) == "keras"
    assert not caplog.messages
    assert engines.choose_engine("auto", Path("b"), False) == "keras"
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    assert engines.choose_engine("auto", Path("b"), True) == "keras"
    monkeypatch.setattr(engines, "sees_gpu", lambda: True)
    assert engines.choose_engine("auto", Path("b"), True) == "keras"
    assert caplog.messages == [
        "engine keras, not openvino: no openvino.xml and openvino.bin in b; train.py writes them where openvino is installed",
        "engine keras, not openvino: the package openvino is not installed; pip install openvino",
        "engine keras: an NVIDIA GPU is here; --engine openvino uses the CPU",
    ]


def test_what_cannot_be_is_refused(on_cpu, monkeypatch):
    with pytest.raises(ValueError, match=r"Expected `engine` in \('auto', 'keras', 'openvino'\). Received: 'tpu'"):
        engines.choose_engine("tpu", Path("b"), True)
    with pytest.raises(ValueError, match=r"Received: no openvino.xml and openvino.bin in b. Give --engine keras, or: train.py writes"):
        engines.choose_engine("openvino", Path("b"), False)
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    with pytest.raises(ValueError, match=r"Received: the package openvino is not installed. Give --engine keras, or: pip install openvino"):
        engines.choose_engine("openvino", Path("b"), True)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_none(monkeypatch, hidden):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines.sees_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not engines.sees_gpu()


# --------------------------------------------------------------------------------------------------------------- bundles


def _save_bundle(run, dataset="hipmri", shape=(64, 64), **options):
    """Saves a bundle of random weights for slices, as training leaves it before scoring; returns it as loaded."""
    keras.utils.set_random_seed(2)
    bundle = ModelBundle(
        model=_randomise(with_head(build("unet2d", (*shape, 1), 4, base_filters=4, levels=2, **options))),
        preprocessing=Preprocessing(2, shape=shape),
        window=Window(shape),
        class_names=("background", "a", "b", "c"),
        channels=("T2",),
        label_rule=LabelRule({0: 0, 3: 1, 5: 2, 9: 3}, source=dataset),
        provenance={"dataset": dataset, "seed": 2},
    )
    bundle.save(run / "bundle")
    return ModelBundle.load(run, "keras")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a converted bundle; read only."""
    pytest.importorskip("openvino")
    run = tmp_path_factory.mktemp("runs") / "run"
    convert_bundle(_save_bundle(run, norm="instance"), run)
    return run


@pytest.fixture(scope="module")
def slice_path(phantoms):
    """One slice of the phantom, larger than what the model sees."""
    return sorted((phantoms / "hipmri" / "keras_slices_test").iterdir())[0]


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of `run` to spoil."""
    import shutil

    return Path(shutil.copytree(run, tmp_path / "own"))


def test_a_converted_bundle_says_what_computes_it(run, on_cpu):
    bundle, same = ModelBundle.load(run), ModelBundle.load(run, "keras")
    assert (bundle.engine, same.engine) == ("openvino", "keras")
    assert set(engines.OPENVINO_FILES) < {path.name for path in (run / "bundle").iterdir()}
    assert not list((run / "bundle").glob(".*"))
    images = np.random.default_rng(0).random((3, 64, 64, 1), np.float32)
    # Instance normalisation on JAX has a variance of fewer digits.
    np.testing.assert_allclose(bundle.model.predict_on_batch(images), same.model.predict_on_batch(images), atol=1e-4)
    with pytest.raises(ValueError, match="Received: one loaded for openvino. Load it for keras."):
        bundle.save(run / "other")


def test_a_bundle_is_converted_once(own_run):
    path = own_run / "bundle" / "openvino.bin"
    before = path.stat().st_mtime_ns
    convert_bundle(ModelBundle.load(own_run, "keras"), own_run)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", engines.OPENVINO_FILES)
def test_an_altered_engine_is_refused_and_a_missing_one_replaced_by_keras(own_run, on_cpu, caplog, name):
    caplog.set_level(logging.INFO, "mri")
    path = own_run / "bundle" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"Expected .*{name} as it was saved. Received: a file cut or altered since."):
        ModelBundle.load(own_run)
    path.unlink()
    assert ModelBundle.load(own_run).engine == "keras"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("engine keras, not openvino: no openvino.xml and openvino.bin in ")


def test_a_network_that_cannot_be_converted_loses_no_run(tmp_path, on_cpu, monkeypatch, caplog):
    pytest.importorskip("openvino")
    saved = _save_bundle(tmp_path)
    before = (tmp_path / "bundle" / "bundle.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(convert, "_convert", lambda model, folder: {}["no rule\nfor Operation"])
        patch.setattr(convert, "_convert_elsewhere", convert._convert)
        convert_bundle(saved, tmp_path)
    with monkeypatch.context() as patch:
        predict_on_batch = engines.OpenVinoModel.predict_on_batch
        patch.setattr(engines.OpenVinoModel, "predict_on_batch", lambda self, images: predict_on_batch(self, images) + 0.02)
        convert_bundle(saved, tmp_path)
    first, second = caplog.messages
    assert first.startswith("the bundle has no files for OpenVINO, Keras predicts: Expected a model that OpenVINO can convert. Received: ")
    assert "Expected probabilities of OpenVINO within" in second
    assert "\n" not in first + second
    assert (tmp_path / "bundle" / "bundle.json").read_text() == before
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["bundle.json", "model.keras"]
    assert ModelBundle.load(tmp_path).engine == "keras"
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    convert_bundle(saved, tmp_path)
    assert (tmp_path / "bundle" / "bundle.json").read_text() == before


# -------------------------------------------------------------------------------------------------------------- commands


def _predict(slice_path, output, *flags):
    assert predict.main([str(slice_path), "--output", str(output), *flags]) == 0
    return np.asarray(nib.load(next(output.glob("*_prediction.nii.gz"))).dataobj).squeeze()


def test_each_engine_gives_the_same_label_map(run, slice_path, tmp_path, capsys, on_cpu):
    found = {}
    for engine in engines.ENGINES:
        found[engine] = _predict(slice_path, tmp_path / engine, "--model", str(run), "--engine", engine)
        name = "keras" if engine == "keras" else "openvino"
        assert f"1 case(s), model {run} ({name}): background" in capsys.readouterr().out
    assert len(np.unique(found["keras"])) > 2
    np.testing.assert_array_equal(found["auto"], found["openvino"])
    _check_alike(found["openvino"], found["keras"])
    # One model for each engine predicts like two models for the same engine.
    mixed = _predict(slice_path, tmp_path / "mixed", "--model", str(run), str(run))
    _check_alike(mixed, found["keras"])


def test_an_engine_that_cannot_be_is_one_line(tmp_path, slice_path, capsys, on_cpu):
    _save_bundle(tmp_path)
    flags = ["--model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert predict.main([str(slice_path), *flags, "--engine", "openvino"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Give --engine keras, or: train.py writes them where openvino is installed." in lines[0]
    assert predict.main([str(slice_path), *flags]) == 0
    assert "engine keras, not openvino: no openvino.xml" in capsys.readouterr().out


def _run_python(code, *arguments):
    """Runs code in a process of its own, from the program's folder; returns what it printed last, as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


LIST_MODULES = """
import json, sys
try:
    import {command}
    status = {command}.main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
assert not status, status
print(json.dumps([name for name in sys.argv[0:0] + list(sys.modules) if "." not in name and sys.modules[name] is not None]))
"""


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_imports_no_library_that_takes_its_time(command):
    found = set(_run_python(LIST_MODULES.format(command=command), "--help"))
    assert not found & {"tensorflow", "keras", "jax", "torch", "openvino", "matplotlib", "scipy", "nibabel", "cv2", "tqdm"}


def test_a_prediction_with_openvino_imports_neither_keras_nor_telemetry(run, slice_path, tmp_path):
    flags = [slice_path, "--model", run, "--engine", "openvino", "--output", tmp_path]
    found = set(_run_python(LIST_MODULES.format(command="predict"), *flags))
    assert "openvino" in found
    assert not found & {"tensorflow", "keras", "jax", "torch", "openvino_telemetry"}
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".jsonl"]) == 2


# ---------------------------------------------------------------------------------------------------------------- export


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


def _check_alike(label, expected):
    """Checks that labels are alike. An untrained network is undecided here and there: rounding may turn one voxel in ten thousand."""
    assert label.shape == expected.shape
    assert np.count_nonzero(label != expected) <= label.size / 10_000


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

    assert "Expected one run to export. Received: a, b. Name one of them." in refuse("--export", "onnx", "a", "b")
    assert "Expected a trained model in" in refuse("--export", "onnx", str(tmp_path))
    assert "invalid choice: 'coreml'" in refuse("--export", "coreml", str(run))
    with monkeypatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "jax")
        assert "Expected KERAS_BACKEND=tensorflow to export. Received: jax. Set it" in refuse("--export", "savedmodel", str(run))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tf2onnx" else find(name, *rest))
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
    pictures = Preprocessing(2, shape=(8, 8), intensity="fixed", scale=255.0, mean=0.1, std=0.2)
    steps = describe(ModelBundle(None, pictures, Window((8, 8)), **fields))["steps"]
    assert {"scale": 255.0, "mean": 0.1, "std": 0.2}.items() <= steps[2].items()
    whole = Preprocessing(3, shape=(8, 8, 8), resize=True, intensity="percentile")
    steps = describe(ModelBundle(None, whole, Window((8, 8, 8)), **fields))["steps"]
    assert [step["step"] for step in steps] == ["read", "orientation", "intensity", "resize"]
