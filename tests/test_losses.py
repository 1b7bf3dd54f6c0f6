"""Losses against numbers worked out by hand; this file also runs under the other backends."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from modules.losses import LOSSES, SegmentationLoss

BINARY_LABEL = np.array([[[1, 0], [0, 0]]])
# Sigmoid of log 3 is 3/4, of -log 3 is 1/4.
BINARY_LOGITS = np.array([[[math.log(3), -math.log(3)], [-math.log(3), -math.log(3)]]], np.float32)[..., None]


def _value(name, label, logits):
    return ops.convert_to_numpy(LOSSES[name](ops.convert_to_tensor(label, "int32"), ops.convert_to_tensor(logits, "float32")))


def test_every_loss_is_listed():
    assert set(LOSSES) == {"bce", "ce", "dice", "iou", "dice_ce"}


def test_binary_losses_by_hand():
    # Intersection 3/4, predicted 6/4, labelled 1.
    dice = 1 - (2 * 0.75 + 1) / (1.5 + 1 + 1)
    iou = 1 - (0.75 + 1) / (1.5 + 1 - 0.75 + 1)
    expected = {"bce": -math.log(0.75), "ce": -math.log(0.75), "dice": dice, "iou": iou, "dice_ce": dice - math.log(0.75)}
    for name, value in expected.items():
        np.testing.assert_allclose(_value(name, BINARY_LABEL, BINARY_LOGITS), [value], rtol=1e-5)


def test_three_classes_by_hand():
    # Softmax of (log 2, 0, 0) is (1/2, 1/4, 1/4), of (0, log 2, 0) is (1/4, 1/2, 1/4).
    logits = np.array([[[[math.log(2), 0, 0], [0, math.log(2), 0]]]])
    label = np.array([[[0, 1]]])
    dice_of_1 = (2 * 0.5 + 1) / (0.75 + 1 + 1)
    dice_of_2 = 1 / (0.5 + 1)
    iou_of_1 = (0.5 + 1) / (0.75 + 1 - 0.5 + 1)
    np.testing.assert_allclose(_value("ce", label, logits), [math.log(2)], rtol=1e-5)
    np.testing.assert_allclose(_value("dice", label, logits), [1 - (dice_of_1 + dice_of_2) / 2], rtol=1e-5)
    np.testing.assert_allclose(_value("iou", label, logits), [1 - (iou_of_1 + dice_of_2) / 2], rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("name", "channels"), [(name, k) for name in LOSSES for k in (1, 4) if (name, k) != ("bce", 4)])
def test_one_value_a_sample_right_beats_wrong_and_extremes_are_finite(name, rank, channels):
    label = np.random.default_rng(0).integers(0, max(2, channels), (3, *(4,) * rank))
    right = 100.0 * (label[..., None] == np.arange(channels)) if channels > 1 else 200.0 * label[..., None] - 100.0
    good, bad = _value(name, label, right), _value(name, label, -right)
    assert good.shape == (3,)
    assert np.isfinite(good).all()
    assert np.isfinite(bad).all()
    np.testing.assert_allclose(good, 0, atol=1e-5)
    assert (bad > 0.5).all()
    # Each sample on its own: the value does not depend on its neighbours in the batch.
    np.testing.assert_allclose(_value(name, label[1:2], -right[1:2]), bad[1:2], rtol=1e-5)


def test_an_absent_class_costs_nothing_unless_predicted():
    label = np.zeros((1, 4, 4))
    assert _value("dice", label, np.full((1, 4, 4, 1), -100.0)) == pytest.approx(0, abs=1e-6)
    assert _value("dice", label, np.full((1, 4, 4, 1), 100.0)) == pytest.approx(1 - 1 / 17)


def test_bce_refuses_several_logits():
    with pytest.raises(ValueError, match="one logit a voxel for the loss 'bce'. Received: 3"):
        _value("bce", np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 3)))


def test_unknown_loss_lists_the_names():
    with pytest.raises(ValueError, match=r"Expected `loss` in \('bce', .*Received: 'hinge'"):
        SegmentationLoss("hinge")


def test_keras_trains_with_it_in_the_binary_task():
    # Keras's own wrapper of functions would squeeze the single logit away and broadcast (B, H, W) against (B, H).
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1)])
    model.compile(optimizer="sgd", loss=SegmentationLoss("dice_ce"))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 2, (2, 4, 4)).astype("int32")
    expected = _value("dice_ce", labels, ops.convert_to_numpy(model(images))).mean()
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(float(expected), rel=1e-5)
