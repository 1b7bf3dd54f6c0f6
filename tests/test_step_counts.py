"""The counts of a training step: within their limits, and beyond where a layer computes in float32."""

import importlib
import json
from pathlib import Path

import keras
import pytest

BACKEND = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="it counts operations of TensorFlow")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="it counts operations of JAX")


@pytest.fixture
def counting(monkeypatch):
    """The script, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("step_counts")


@on_tensorflow
def test_a_step_is_within_its_limits(counting, capsys):
    # In Keras's form, instance norm makes even more maps in float32 than batch norm.
    assert counting.main(["--rank", "2", "--norm", "instance"]) == 0
    counts = json.loads(capsys.readouterr().out)
    # The logits, and backwards the gradients of their input and of their kernel.
    assert counts["float32_convolutions"] == 3
    # The input of the logits, and its gradient.
    assert counts["float32_maps"] == 2
    assert keras.config.dtype_policy().name == "float32"


@on_tensorflow
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


@on_jax
def test_a_step_of_jax_is_within_its_limits_and_one_of_keras_is_not(counting, capsys):
    assert counting.main(["--rank", "2", "--norm", "batch"]) == 0
    counts = json.loads(capsys.readouterr().out)
    # Backwards the products of the logits with their input, and with their kernel.
    assert counts["float32_convolutions"] == 2
    assert counting.main(["--rank", "2", "--norm", "batch", "--plain"]) == 1
    plain = json.loads(capsys.readouterr().out)
    # The pooling's gradient scatters; the transposed convolution and its kernel's gradient lay zeros.
    assert plain["beyond"] == {"float32_convolutions": "3, limit 2", "scatters": "1, limit 0", "enlarged": "2, limit 0"}


PROGRAM = """
  func.func public @main(%arg0: tensor<5x8x8x16xbf16>) -> (tensor<5x8x8x3xf32>) {
    %0 = call @block(%arg0) : (tensor<5x8x8x16xbf16>) -> tensor<5x8x8x16xf32>
    %1 = call @block(%arg0) : (tensor<5x8x8x16xbf16>) -> tensor<5x8x8x16xf32>
    %2 = stablehlo.convolution(%0, %k) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {stride = [1, 1], \
lhs_dilate = [1, 1]} {batch_group_count = 1 : i64} : (tensor<5x8x8x16xf32>, tensor<1x1x16x3xf32>) -> tensor<5x8x8x3xf32>
    %3 = stablehlo.exponential %2 : tensor<5x8x8x3xf32>
    %4 = stablehlo.exponential %s : tensor<f32>
    %5 = stablehlo.compare  EQ, %l, %c,  SIGNED : (tensor<5x8x8xi32>, tensor<5x8x8xi32>) -> tensor<5x8x8xi1>
    %6 = stablehlo.compare  GT, %l, %c,  SIGNED : (tensor<5x8x8xi32>, tensor<5x8x8xi32>) -> tensor<5x8x8xi1>
    %7 = stablehlo.convert %3 : (tensor<5x8x8x3xf32>) -> tensor<5x8x8x3xbf16>
    %8 = "stablehlo.select_and_scatter"(%x, %y, %z) <{window_dimensions = array<i64: 1, 2, 2, 1>}> ({
      %9 = stablehlo.add %a, %b : tensor<bf16>
    return %3 : tensor<5x8x8x3xf32>
  }
  func.func private @block(%arg0: tensor<5x8x8x16xbf16>) -> tensor<5x8x8x16xf32> {
    %0 = stablehlo.convolution(%arg0, %k) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {stride = [1, 1], \
lhs_dilate = [2, 2]} {batch_group_count = 1 : i64} : (tensor<5x8x8x16xbf16>, tensor<3x3x16x16xbf16>) -> tensor<5x8x8x16xbf16>
    %1 = stablehlo.transpose %0, dims = [3, 0, 1, 2] : (tensor<5x8x8x16xbf16>) -> tensor<16x5x8x8xbf16>
    %2 = stablehlo.transpose %k, dims = [1, 0] : (tensor<16x3xf32>) -> tensor<3x16xf32>
    %3 = stablehlo.convert %arg0 : (tensor<5x8x8x16xbf16>) -> tensor<5x8x8x16xf32>
    return %3 : tensor<5x8x8x16xf32>
  }
"""


def test_a_program_by_hand(counting):
    assert counting.count_operations(PROGRAM) == {
        "float32_convolutions": 1,
        # The function is called twice.
        "float32_casts": 2,
        "transposes": 2,
        "class_masks": 1,
        "softmaxes": 1,
        "scatters": 1,
        "enlarged": 2,
    }
