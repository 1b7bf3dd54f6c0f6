"""A converted model of volumes and scans for it, shared by the tests of the Python interface."""

import keras
import nibabel as nib
import numpy as np
import pytest

from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.networks import with_head
from modules.predict import engines
from modules.predict.bundle import ModelBundle
from modules.predict.convert import convert_bundle
from modules.predict.postprocess import Postprocessing, Step

# The first axis runs from left to right but backwards, and the others are exchanged.
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 0, 2.0, -20], [0, 1.25, 0, 7], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """Makes the machine one without a GPU."""
    monkeypatch.setattr(engines, "has_nvidia", lambda: False)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A run's folder with a bundle of random weights for volumes, converted for OpenVINO; read only."""
    pytest.importorskip("openvino")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow converts for all backends")
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 16, 16, 1))
    hidden = keras.layers.Conv3D(4, 3, padding="same", activation="tanh")(image)
    bundle = ModelBundle(
        model=with_head(keras.Model(image, keras.layers.Conv3D(3, 3, padding="same")(hidden))),
        preprocessing=Preprocessing(3, intensity="zscore", spacing_mm=(1.5, 1.5, 1.5)),
        window=Window((16, 16, 16)),
        class_names=("background", "a", "b"),
        channels=("T1",),
        label_rule=LabelRule({0: 0, 10: 1, 20: 2}, source="msd"),
        postprocessing=Postprocessing((Step("remove_small", 1, 30.0),)),
    )
    run = tmp_path_factory.mktemp("api") / "run"
    bundle.save(run / "bundle")
    convert_bundle(ModelBundle.load(run, "keras"), run)
    return run


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """A NIfTI of noise, larger than the model's window."""
    array = np.random.default_rng(4).normal(100, 20, (24, 20, 18)).astype(np.float32)
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path
