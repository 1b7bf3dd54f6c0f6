"""Predictions by models that dropout thins: masks by hand, and maps of disagreement."""

from pathlib import Path

import keras
import numpy as np
import pytest
from command_helpers import expect_one_line
from engine_helpers import save_bundle

import predict
from modules.data.case import Case, LabelRule, Volume
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.predict.bundle import ModelBundle
from modules.predict.cases import PredictionOptions, predict_read
from modules.predict.dropout import thin_model


def _make_bundle(layer, channels=1):
    """A model of one layer and a sigmoid, so that its outputs tell what was dropped."""
    image = keras.Input((8, 8, channels))
    model = keras.Model(image, keras.layers.Activation("sigmoid")(layer(image)))
    names = tuple(map(str, range(channels)))
    return ModelBundle(model, Preprocessing(2, shape=(8, 8)), Window((8, 8)), ("b", "a"), names, LabelRule({0: 0, 1: 1}))


def _find_dropped(bundle, number, samples=3):
    """Returns what each copy drops of inputs of 1: `(number, samples, 8, 8, C)`. What is kept is doubled: its sigmoid is 0.88."""
    inputs = np.ones((samples, 8, 8, bundle.model.input_shape[-1]), np.float32)
    outputs = np.stack([np.asarray(model.predict_on_batch(inputs)) for model in thin_model(bundle, number)])
    kept = np.isclose(outputs, 1 / (1 + np.exp(-2)), atol=1e-5)
    assert (kept | np.isclose(outputs, 0.5)).all()
    return ~kept


def test_a_copy_drops_the_same_in_every_sample_and_another_copy_other_places():
    bundle = _make_bundle(keras.layers.Dropout(0.5))
    dropped = _find_dropped(bundle, 2)
    assert 0.2 < dropped.mean() < 0.8
    assert (dropped == dropped[:, :1]).all()
    assert (dropped[0] != dropped[1]).any()
    # Neither the call nor the number of samples matters.
    assert (_find_dropped(bundle, 2, samples=1) == dropped[:, :1]).all()


def test_whole_channels_are_dropped_where_the_training_dropped_them():
    dropped = _find_dropped(_make_bundle(keras.layers.SpatialDropout2D(0.5), channels=16), 2)
    assert (dropped == dropped[:, :1, :1, :1]).all()
    assert 0 < dropped[0, 0, 0, 0].mean() < 1


def test_maps_show_where_the_copies_disagree(tmp_path):
    bundle = save_bundle(tmp_path / "run", dropout=0.4)
    image = Volume(np.random.default_rng(0).random((64, 64, 1), np.float32), np.eye(4), (1.0, 1.0))

    def predict_maps(**options):
        item = predict_read([bundle], Case("one", "one", (Path("one.png"),)), image, PredictionOptions(doubt=True, maps=True, **options))
        assert item.doubt is not None
        return item.doubt.maps

    plain, thinned = predict_maps(), predict_maps(dropout=3)
    # One model, one window and no flips have nobody to disagree with.
    assert plain[..., 1].max() < 1e-5
    assert thinned[..., 1].mean() > 1e-4
    assert (thinned[..., 1] <= thinned[..., 0] + 1e-5).all()
    np.testing.assert_array_equal(predict_maps(dropout=3), thinned)


def test_what_cannot_be_thinned_is_one_line(slice_path, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"Expected --engine keras beside --dropout. Received: openvino"):
        thin_model(ModelBundle(None, Preprocessing(2), Window((8, 8)), ("b", "a"), ("T1",), LabelRule({0: 0, 1: 1}), engine="openvino"), 2)
    save_bundle(tmp_path / "run")
    call = [str(slice_path), "--model", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--engine", "keras"]
    capsys.readouterr()
    expect_one_line(capsys, predict.main([*call, "--dropout", "2"]), "Expected a model with dropout for --dropout. Received: one without.")
    expect_one_line(capsys, predict.main([*call, "--dropout", "1"]), "Expected --dropout from 2 to 100. Received: 1.")
