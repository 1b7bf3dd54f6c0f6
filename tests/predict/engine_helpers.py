"""Bundles of random weights and predictions with them, for the tests of engines."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import nibabel as nib
import numpy as np
import pytest

import predict
from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import build, with_head
from modules.predict.bundle import ModelBundle

ROOT = Path(__file__).parents[2]
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow converts and exports for all backends")


def randomise(model):
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


def save_bundle(run, dataset="hipmri", shape=(64, 64), **options):
    """Saves a bundle of random weights for slices, as training leaves it before scoring; returns it as loaded."""
    keras.utils.set_random_seed(2)
    bundle = ModelBundle(
        model=randomise(with_head(build("unet2d", (*shape, 1), 4, base_filters=4, levels=2, **options))),
        preprocessing=Preprocessing(2, shape=shape),
        window=Window(shape),
        class_names=("background", "a", "b", "c"),
        channels=("T2",),
        label_rule=LabelRule({0: 0, 3: 1, 5: 2, 9: 3}, source=dataset),
        provenance={"dataset": dataset, "seed": 2},
    )
    bundle.save(run / "bundle")
    return ModelBundle.load(run, "keras")


def predict_slice(slice_path, output, *flags):
    """Predicts by the command; returns the label map of the slice."""
    assert predict.main([str(slice_path), "--output", str(output), *flags]) == 0
    return np.asarray(nib.load(next(output.glob("*_prediction.nii.gz"))).dataobj).squeeze()


def run_python(code, *arguments):
    """Runs code in a process of its own, from the program's folder; returns what it printed last, as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def check_alike(label, expected):
    """Checks that labels are alike. An untrained network is undecided here and there: rounding may turn one voxel in ten thousand."""
    assert label.shape == expected.shape
    assert np.count_nonzero(label != expected) <= label.size / 10_000
