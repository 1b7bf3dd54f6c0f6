"""An engine or a memory that fails in the middle of a batch costs one case."""

import queue
from types import SimpleNamespace

import numpy as np
import pytest
from test_bundle import make_bundle

import predict
from modules.predict import engines
from modules.predict.bundle import ModelBundle
from modules.predict.engines import OpenVinoModel


class ResourceExhaustedError(Exception):
    """Stands for TensorFlow's, which is known by its name alone."""


def _compile(error):
    """A model of OpenVINO that fails for samples as bright as 200 somewhere within each batch."""

    def compute(inputs, share_inputs):
        if inputs[..., 0].max() > 0.5:
            raise error
        return [np.full((*inputs.shape[:-1], 3), 1 / 3, np.float32)]

    model = object.__new__(OpenVinoModel)
    model._path, model._requests = "openvino.xml", queue.LifoQueue()
    model._requests.put(SimpleNamespace(infer=compute))
    model.input_shape, model.output_shape = (None, 16, 32, 1), (None, 16, 32, 3)
    return model


@pytest.fixture
def scans(write_picture, tmp_path):
    """Three pictures, of which `b` is too much."""
    for name in "abc":
        picture = np.full((16, 32), 10, np.uint8)
        picture[0, 0] = 0
        write_picture(f"images/{name}.png", picture if name != "b" else picture * 20)
    return tmp_path / "images"


@pytest.fixture
def load(monkeypatch):
    """Makes predict.py use a model that fails with an error for the bright picture."""

    def use(error):
        from dataclasses import replace

        from modules.data.preprocess import Preprocessing

        bundle = replace(
            make_bundle(), preprocessing=Preprocessing(2, intensity="fixed", scale=255.0), model=_compile(error), engine="openvino"
        )
        monkeypatch.setattr(ModelBundle, "load", lambda *_: bundle)
        monkeypatch.setattr(predict, "identify", lambda run: "x")
        monkeypatch.setattr(predict, "read_channels", lambda run: ("T1",))

    return use


ERRORS = [
    (
        RuntimeError("Exception from src/inference\n  [CPU] out of luck"),
        "Expected OpenVINO to compute openvino.xml. Received: Exception from src/",
    ),
    (MemoryError(), "Expected enough memory to predict"),
    (ResourceExhaustedError("OOM when allocating"), "Received: OOM when allocating. Resample it, or use a larger machine"),
]


@pytest.mark.parametrize(("error", "message"), ERRORS)
def test_one_case_that_cannot_be_computed_does_not_end_the_others(scans, load, tmp_path, capsys, error, message):
    load(error)
    assert predict.main([str(scans), "--model", "x", "--output", str(tmp_path / "out")]) == predict.SOME_FAILED
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "b.png" in lines[0]
    assert sorted(path.name for path in (tmp_path / "out").glob("*_prediction.png")) == ["a_prediction.png", "c_prediction.png"]


@pytest.mark.parametrize(("error", "message"), ERRORS)
def test_a_single_case_that_cannot_be_computed_is_one_line(scans, load, tmp_path, capsys, error, message):
    load(error)
    assert predict.main([str(scans / "b.png"), "--model", "x", "--output", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert "b.png" in lines[0]


def test_a_defect_of_ours_is_not_hidden(scans, load, tmp_path):
    load(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        predict.main([str(scans), "--model", "x", "--output", str(tmp_path / "out")])


def test_a_keras_that_fails_on_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "model.keras").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"Expected a Keras model in .*model.keras. Received: .*Train or copy it again.$"):
        engines.load_model("keras", tmp_path, "model.keras")
