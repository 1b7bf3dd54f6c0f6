"""The engine is OpenVINO where it can be and Keras elsewhere, and it starts without TensorFlow."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from engine_helpers import check_alike as _check_alike
from engine_helpers import predict_slice as _predict
from engine_helpers import run_python as _run_python
from engine_helpers import save_bundle as _save_bundle

import predict
from modules import devices, hardware
from modules.predict import convert, engines
from modules.predict.bundle import ModelBundle, set_precision
from modules.predict.convert import convert_bundle

# ----------------------------------------------------------------------------------------------------------------- choice


def test_auto_is_openvino_where_it_can_be(on_cpu, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mri")
    assert engines.choose_engine("auto", Path("b"), True) == engines.choose_engine("openvino", Path("b"), True) == "openvino"
    assert engines.choose_engine("keras", Path("b"), False) == "keras"
    assert not caplog.messages
    assert engines.choose_engine("auto", Path("b"), False) == "keras"
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    assert engines.choose_engine("auto", Path("b"), True) == "keras"
    monkeypatch.setattr(engines, "has_nvidia", lambda: True)
    assert engines.choose_engine("auto", Path("b"), True) == "keras"
    assert caplog.messages == [
        "engine keras, not openvino: no openvino.xml and openvino.bin in b; train.py writes them where openvino is installed and agrees "
        "with Keras",
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


def test_threads_bound_engine_and_opencv(on_cpu, run, monkeypatch, caplog):
    import cv2
    import tensorflow as tf

    chosen = []
    monkeypatch.setattr(cv2, "setNumThreads", chosen.append)
    bundle = ModelBundle.load(run, "openvino", "auto", 1)
    assert bundle.model._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert chosen == [1]
    monkeypatch.setattr(devices, "name_backend", lambda: "tensorflow")
    monkeypatch.setattr(devices, "import_keras", lambda: None)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", chosen.append)
    ModelBundle.load(run, "keras", "auto", 3)
    assert chosen == [1, 3, 3]
    ModelBundle.load(run, "keras")
    assert chosen == [1, 3, 3]

    def refuse(number):
        raise RuntimeError

    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", refuse)
    ModelBundle.load(run, "keras", "auto", 2)
    assert caplog.messages == ["--threads comes too late: TensorFlow was in use before"]


BY_TRAINING = [
    # What the user wants, what the training decided on, the engine, whether the CPU has bfloat16, and what is computed in.
    ("auto", "float32", "openvino", True, "float32"),
    ("auto", "bfloat16", "openvino", True, "bfloat16"),
    ("auto", "bfloat16", "openvino", False, "float32"),
    ("auto", "bfloat16", "keras", True, "float32"),
    ("float32", "bfloat16", "openvino", True, "float32"),
    ("bfloat16", "float32", "openvino", True, "bfloat16"),
]


@pytest.mark.parametrize(("precision", "decided", "engine", "able", "expected"), BY_TRAINING)
def test_the_precision_is_what_was_decided_where_the_machine_can(monkeypatch, caplog, precision, decided, engine, able, expected):
    caplog.set_level(logging.DEBUG, "mri")
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: able)
    assert engines.choose_precision(precision, decided, engine) == expected
    assert not caplog.messages


def test_a_precision_that_cannot_be_is_refused(monkeypatch):
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: False)
    with pytest.raises(ValueError, match=r"for precision 'bfloat16'. Received: a CPU without instructions for it. Give --precision auto."):
        engines.choose_precision("bfloat16", "bfloat16", "openvino")
    with pytest.raises(ValueError, match="for precision 'bfloat16'. Received: engine keras. Give --precision auto."):
        engines.choose_precision("bfloat16", "bfloat16", "keras")
    with pytest.raises(ValueError, match=r"Expected `precision` in \('auto', 'float32', 'bfloat16'\). Received: 'half'."):
        engines.choose_precision("half", "float32", "openvino")


# ---------------------------------------------------------------------------------------------------------------- bundles


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


def test_a_bundle_is_compiled_for_what_the_training_decided_on(own_run, on_cpu, monkeypatch, caplog):
    hints, openvino = [], engines.import_openvino()

    class Core(openvino.Core):
        def compile_model(self, path, device, settings):
            hints.append(settings["INFERENCE_PRECISION_HINT"])
            return super().compile_model(path, device, settings)

    monkeypatch.setattr(engines, "import_openvino", lambda: SimpleNamespace(Core=Core))
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: True)
    set_precision(own_run, "bfloat16", {"moved": 0.0001})
    loaded = [ModelBundle.load(own_run), ModelBundle.load(own_run, "auto", "float32")]
    monkeypatch.setattr(hardware, "has_cpu_bfloat16", lambda: False)
    loaded.append(ModelBundle.load(own_run))
    assert [bundle.computed_in for bundle in loaded] == ["bfloat16", "float32", "float32"]
    assert hints == ["bf16", "f32", "f32"]
    assert {bundle.precision for bundle in loaded} == {"bfloat16"}
    assert loaded[0].provenance["prediction_precision"] == {"moved": 0.0001}
    assert not caplog.messages


def test_a_bundle_says_what_the_comparison_of_engines_found(run):
    found = ModelBundle.load(run, "keras").provenance["engine_check"]
    assert found["voxels"] == 2 * 64 * 64
    assert 0 <= found["changed"] <= 4
    assert found["difference"] <= found["tolerance"]
    assert convert.LEAST_TOLERANCE <= found["tolerance"] <= convert.MOST_TOLERANCE
    assert found["rounding"] > 0


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


# --------------------------------------------------------------------------------------------------------------- commands


def test_each_engine_gives_the_same_label_map(run, slice_path, tmp_path, capsys, on_cpu):
    found = {}
    for engine in engines.ENGINES:
        found[engine] = _predict(slice_path, tmp_path / engine, "--model", str(run), "--engine", engine)
        name = "keras" if engine == "keras" else "openvino"
        assert f"1 case(s), model {run} ({name}, float32): background" in capsys.readouterr().out
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
    assert "Give --engine keras, or: train.py writes them where openvino is installed and agrees with Keras." in lines[0]
    assert predict.main([str(slice_path), *flags]) == 0
    assert "engine keras, not openvino: no openvino.xml" in capsys.readouterr().out


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
    assert len(list(tmp_path.glob("case_*"))) == 2
