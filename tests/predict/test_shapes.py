"""The shapes that a network is compiled for in a prediction: one, whatever the scans. Other backends run this file too."""

import keras
import nibabel as nib
import numpy as np
import pytest

from modules.data.case import Case, LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_cases


class Traced(keras.layers.Layer):
    """A layer that gives back its input, and notes each time that it is compiled."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def call(self, inputs):
        self.shapes.append(tuple(inputs.shape))
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


# A number of windows of 8x8x8: 1, 2, 8, 8, 27, and 1 that is alone.
VOLUMES = [(8, 8, 8), (12, 8, 8), (12, 12, 12), (9, 10, 11), (16, 16, 16), (5, 8, 7)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("preprocessing", "window", "shapes"),
    [
        (Preprocessing(3), (8, 8, 8), VOLUMES),
        (Preprocessing(3, shape=(8, 8, 8)), (8, 8, 8), VOLUMES),
        (Preprocessing(3), (8, 8, 1), VOLUMES),
        (Preprocessing(2), (8, 8), [shape[:2] for shape in VOLUMES]),
    ],
    ids=["patches", "whole volumes", "slices of volumes", "slices"],
)
def test_a_network_is_compiled_for_one_shape(tmp_path, preprocessing, window, shapes, mirrored):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch compiles nothing here")
    traced, window = Traced(), Window(window)
    inputs = keras.Input((*window.shape, 1))
    convolution = keras.layers.Conv3D if len(window.shape) == 3 else keras.layers.Conv2D
    model = keras.Model(inputs, convolution(2, 1, activation="softmax")(traced(inputs)))
    traced.shapes.clear()
    options = {"flipped_axes": (1,)}
    bundle = ModelBundle(model, preprocessing, window, ("background", "a"), ("T1",), LabelRule({0: 0, 1: 1}), **options)
    cases = []
    for number, shape in enumerate(shapes):
        path = tmp_path / f"case_{number}.nii"
        nib.save(nib.Nifti1Image(np.random.default_rng(number).random(shape, np.float32), np.eye(4)), path)
        cases.append(Case(path.stem, path.stem, (path,)))
    # Every chunk has cases until their windows fill a batch, so batches end at each possible number.
    predicted = list(predict_cases([bundle], cases, PredictionOptions(batch_size=4, mirror=mirrored)))
    assert [item.prediction.shape for item in predicted] == shapes
    assert traced.shapes == [(4, *window.shape, 1)]
