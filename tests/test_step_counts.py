"""The counts of a training step: within their limits, and beyond where a layer computes in float32."""

import importlib
import json
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it counts operations of TensorFlow")


@pytest.fixture
def counting(monkeypatch):
    """The script, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("step_counts")


def test_a_step_is_within_its_limits(counting, capsys):
    # In Keras's form, instance norm makes even more maps in float32 than batch norm.
    assert counting.main(["--rank", "2", "--norm", "instance"]) == 0
    counts = json.loads(capsys.readouterr().out)
    # The logits, and backwards the gradients of their input and of their kernel.
    assert counts["float32_convolutions"] == 3
    # The input of the logits, and its gradient.
    assert counts["float32_maps"] == 2
    assert keras.config.dtype_policy().name == "float32"


def test_a_layer_in_float32_is_found(counting, monkeypatch, capsys):
    def build_island(rank, norm):
        inputs = keras.Input((*(counting.SIZE,) * rank, 1))
        x = keras.layers.Conv2D(counting.FILTERS, 3, padding="same")(inputs)
        x = keras.layers.Conv2D(counting.FILTERS, 3, padding="same", dtype="float32")(x)
        return keras.Model(inputs, keras.layers.Conv2D(counting.CLASSES, 1, dtype="float32")(x))

    monkeypatch.setattr(counting, "build_network", build_island)
    assert counting.main(["--rank", "2", "--norm", "batch"]) == 1
    beyond = json.loads(capsys.readouterr().out)["beyond"]
    assert set(beyond) == {"float32_convolutions", "float32_maps"}
    assert beyond["float32_convolutions"] == "6, limit 3"
