"""OpenVINO computes what Keras does, on every network."""

import keras
import numpy as np
import pytest
from engine_helpers import on_tensorflow
from engine_helpers import randomise as _randomise

from modules.networks import NETWORKS, build, find_divisor, find_ranks, with_head
from modules.predict import convert, engines
from modules.run.proof import hash_weights

TRANSFORMER = {"hidden_size": 8, "mlp_size": 8, "num_layers": 4, "num_heads": 2, "base_filters": 2}
SMALLER = {"unetr": TRANSFORMER, "residual_unet": {"base_filters": 4, "levels": 2}}
CASES = [
    *((name, rank, SMALLER.get(name, {"base_filters": 4})) for name in NETWORKS for rank in find_ranks(name)),
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


def _flip_kernel(weights):
    weights[0] = weights[0][::-1]


def _scale_kernel(weights):
    weights[0] = 1.05 * weights[0]


def _lose_bias(weights):
    weights[-1] = np.zeros_like(weights[-1])


@on_tensorflow
@pytest.mark.parametrize("spoil", [_flip_kernel, _scale_kernel, _lose_bias])
def test_a_layer_that_is_converted_wrongly_is_refused(tmp_path, monkeypatch, spoil):
    pytest.importorskip("openvino")
    monkeypatch.setattr(convert, "has_nvidia", lambda: False)
    model = _build("unet2d", 2, {"base_filters": 2, "levels": 1})
    right = convert._convert

    def convert_wrongly(model, folder):
        weights = model.get_weights()
        wrong = list(weights)
        spoil(wrong)
        model.set_weights(wrong)
        right(model, folder)
        model.set_weights(weights)

    monkeypatch.setattr(convert, "_convert", convert_wrongly)
    with pytest.raises(ValueError, match=r"Expected probabilities of OpenVINO within 0\.0\d+ of Keras's. Received: a difference of \d"):
        convert.write_openvino(model, tmp_path, _images(model, 2))


@on_tensorflow
def test_a_steep_network_may_differ_by_more_and_keeps_its_weights(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(convert, "has_nvidia", lambda: False)
    model = _build("unet2d", 2, {"base_filters": 2, "levels": 1, "norm": "instance"})
    images = _images(model, 2)
    flat = convert.write_openvino(model, tmp_path, images)
    weights = model.get_weights()
    # The last kernel makes the logits 100 times as large, and a rounding of them too.
    model.set_weights([*weights[:-2], 100 * weights[-2], 100 * weights[-1]])
    before = hash_weights(model)
    steep = convert.write_openvino(model, tmp_path, images)
    assert flat.rounding < steep.rounding
    assert convert.LEAST_TOLERANCE < steep.tolerance <= convert.MOST_TOLERANCE
    assert hash_weights(model) == before


class _Constant:
    """A model without layers whose probabilities do not depend on its input."""

    layers = ()

    def __init__(self, probabilities):
        self.probabilities = np.array(probabilities, np.float32)

    def __call__(self, images, training):
        return self.probabilities

    def get_weights(self):
        return []

    def set_weights(self, weights):
        assert weights == []


def test_the_check_counts_by_hand(monkeypatch):
    monkeypatch.setattr(convert, "has_nvidia", lambda: False)
    images = np.zeros((1, 2, 1), np.float32)
    right, turned = [[[0.501, 0.499], [0.9, 0.1]]], [[[0.499, 0.501], [0.9, 0.1]]]
    found = convert._compare(_Constant(right), np.array(turned, np.float32), images, regions=False)
    assert found.difference == pytest.approx(0.002, rel=1e-4)
    assert (found.rounding, found.tolerance, found.voxels, found.changed) == (0, convert.LEAST_TOLERANCE, 2, 1)
    assert str(found) == "a difference of 0.002, where the model's own rounding is 0; 1 of 2 voxels change their class"
    # Regions are found one by one: here the second one is gone, and the first is the more probable one before and after.
    before, after = [[[0.9, 0.6], [0.9, 0.1]]], [[[0.9, 0.4], [0.9, 0.1]]]
    assert convert._compare(_Constant(before), np.array(after, np.float32), images, regions=True).changed == 1
    assert convert._compare(_Constant(before), np.array(after, np.float32), images, regions=False).changed == 0
    # One probability is that of the foreground.
    assert convert._compare(_Constant([[[0.6], [0.1]]]), np.array([[[0.4], [0.1]]], np.float32), images, regions=False).changed == 1
    # The tolerance follows from the model's own rounding, but for very small and very large ones.
    for rounding, tolerance in ((1e-9, 1e-4), (1e-4, 8e-4), (1.0, 1e-2)):
        monkeypatch.setattr(convert, "_measure_rounding", lambda *_, rounding=rounding: rounding)
        assert convert._compare(_Constant(right), np.array(right, np.float32), images, regions=False).tolerance == pytest.approx(tolerance)
    monkeypatch.setattr(convert, "has_nvidia", lambda: True)
    assert convert._compare(_Constant(right), np.array(turned, np.float32), images, regions=False).tolerance == convert.MOST_TOLERANCE


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


def test_a_model_of_another_process_has_no_name_twice():
    # Counted anew, the names of layers begin without a number, and so do those of what is made later.
    keras.utils.clear_session()
    model = _build("resunet3d", 3, {"base_filters": 2, "levels": 1})
    assert "add" in [layer.name for layer in model.layers]
    keras.utils.clear_session()
    plain = convert.simplify_for_export(model)
    assert not [layer for layer in plain.layers if isinstance(layer, keras.layers.GroupNormalization)]


def test_another_backend_converts_in_a_process_of_tensorflow(tmp_path):
    pytest.importorskip("openvino")
    model = _build("unet2d", 2, {"base_filters": 2, "levels": 1, "norm": "group"})
    convert._convert_elsewhere(model, tmp_path)
    images = _images(model, 3)
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(engines.OpenVinoModel(tmp_path).predict_on_batch(images), expected, atol=1e-5)
