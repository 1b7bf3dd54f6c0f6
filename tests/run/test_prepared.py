"""The bundle of a prepared run: it says what the training made its network used to."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import make_fingerprint, make_spec

from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.run.prepared import PreparedRun
from modules.run.settings import Settings


@pytest.mark.parametrize(
    ("augment", "sizes", "axes"),
    [
        *(("none", (4, 4, 4), ()), ("light", (4, 4, 4), (0, 1, 2)), ("light", (4, 1, 4), (0, 2)), ("light", (4, 4), (1, 2))),
        ("synthetic", (4, 4, 4), ()),
    ],
)
def test_a_bundle_knows_flips_and_contrasts_of_its_training(augment, sizes, axes):
    inputs = keras.Input((4, 4, 1))
    spec = make_spec(Preprocessing(len(sizes)), {0: 0, 1: 1})
    plan = SimpleNamespace(window=Window(sizes), preprocessing=spec.preprocessing, network="unet2d", levels=1)
    cases = {"train": [SimpleNamespace(classes=(0, 1), measured=np.zeros(1 + 2 * len(sizes) + 5, np.float32).tobytes())]}
    network = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    prepared = PreparedRun(Settings("d", augment=augment), spec, plan, {}, [], cases, network, "float32", [], {}, make_fingerprint([sizes]))
    bundle = prepared.make_bundle({})
    assert bundle.flipped_axes == axes
    assert bundle.trained.quartiles == (((0, 1) if augment == "synthetic" else (0, 0),) * 3,)
