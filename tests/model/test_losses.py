"""Losses against numbers worked out by hand; this file also runs under the other backends."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from loss_helpers import compute_loss as _value
from loss_helpers import draw_sample as _draw

from modules.model import losses
from modules.model.loss_spec import parse_loss
from modules.model.losses import LOSSES, SegmentationLoss

LOG3 = math.log(3)
BINARY_LABEL = np.array([[[1, 0], [0, 0]]])
# The sigmoid of log 3 is 3/4, and that of -log 3 is 1/4. Foreground predicted: 3/4 + 3/4 = 6/4; labelled: 1; both: 3/4.
BINARY_LOGITS = np.array([[[LOG3, -LOG3], [-LOG3, -LOG3]]])[..., None]
# Softmax of (log 2, 0, 0) is (1/2, 1/4, 1/4), of (0, log 2, 0) is (1/4, 1/2, 1/4). So class 1: both 1/2, predicted 3/4, labelled 1;
# class 2: both 0, predicted 1/2, labelled 0.
TERNARY_LABEL = np.array([[[0, 1]]])
TERNARY_LOGITS = np.array([[[[math.log(2), 0, 0], [0, math.log(2), 0]]]])
OVERLAPS = ("dice", "iou", "tversky", "focal_tversky", "generalised_dice")
CASES = [(name, channels) for name in LOSSES for channels in (1, 4) if (name, channels) != ("bce", 4)]
every_loss = pytest.mark.parametrize(("name", "channels"), CASES)


def _value_and_gradient(function, logits, dtype="float32", compiled=False):
    """Computes the losses and the gradient of their sum; with `compiled` as one program, by the running backend's own means."""
    logits = ops.cast(ops.convert_to_tensor(logits, "float32"), dtype)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def run(logits):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = function(logits)
            return value, tape.gradient(value, logits)

        value, gradient = tf.function(run, jit_compile=True)(logits) if compiled else run(logits)
    elif backend == "jax":
        import jax

        run = jax.value_and_grad(lambda logits: (function(logits).sum(), function(logits)), has_aux=True)
        (_, value), gradient = jax.jit(run)(logits) if compiled else run(logits)
    else:
        import torch

        logits.requires_grad_(True)
        # "aot_eager" traces forward and backward into graphs without the C++ compiler that the default needs.
        value = (torch.compile(function, backend="aot_eager") if compiled else function)(logits)
        value.sum().backward()
        value, gradient = value.detach(), logits.grad
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    return ops.convert_to_numpy(value), ops.convert_to_numpy(ops.cast(gradient, "float32"))


def _draw_extremes(channels):
    """Makes five samples: sure and right, sure and wrong, undecided, no foreground and none found, no foreground but some found."""
    label = np.repeat(_draw(channels, batch=1)[0], 5, axis=0)
    label[3:] = 0
    right = np.where(label[..., None] == np.arange(channels), 1e4, -1e4) if channels > 1 else 2e4 * label[..., None] - 1e4
    return label, np.stack([right[0], -right[1], 0 * right[2], right[3], -right[4]])


def test_every_loss_is_listed():
    assert tuple(LOSSES) == ("bce", "ce", "focal", "dice", "iou", "tversky", "focal_tversky", "generalised_dice", "dice_ce")
    assert {name for name, _ in CASES} == set(LOSSES)


# -------------------------------------------------------------------------------------------------------------------- by hand


def test_binary_losses_by_hand():
    # False positive 6/4 - 3/4, false negative 1 - 3/4.
    dice = 1 - (2 * 0.75 + 1) / (1.5 + 1 + 1)
    tversky = 1 - (0.75 + 1) / (0.75 + 0.3 * 0.75 + 0.7 * 0.25 + 1)
    expected = {
        # Every voxel gives 3/4 to its class.
        "bce": -math.log(0.75),
        "ce": -math.log(0.75),
        "focal": -math.log(0.75) / 16,
        "dice": dice,
        "iou": 1 - (0.75 + 1) / (1.5 + 1 - 0.75 + 1),
        "tversky": tversky,
        "focal_tversky": tversky**0.75,
        # One class: its weight is 1.
        "generalised_dice": dice,
        "dice_ce": dice - math.log(0.75),
    }
    assert set(expected) == set(LOSSES)
    for name, value in expected.items():
        np.testing.assert_allclose(_value(name, BINARY_LABEL, BINARY_LOGITS), [value], rtol=1e-5, err_msg=name)


def test_three_classes_by_hand():
    dice_of_1, dice_of_2 = (2 * 0.5 + 1) / (0.75 + 1 + 1), 1 / (0.5 + 1)
    iou_of_1 = (0.5 + 1) / (0.75 + 1 - 0.5 + 1)
    # Class 1: false positive 1/4, false negative 1/2; class 2: false positive 1/2.
    tversky_of_1, tversky_of_2 = 1 - 1.5 / (0.5 + 0.3 * 0.25 + 0.7 * 0.5 + 1), 1 - 1 / (0.3 * 0.5 + 1)
    expected = {
        # Both voxels give 1/2 to their class.
        "ce": math.log(2),
        "focal": math.log(2) / 4,
        "dice": 1 - (dice_of_1 + dice_of_2) / 2,
        "iou": 1 - (iou_of_1 + dice_of_2) / 2,
        "tversky": (tversky_of_1 + tversky_of_2) / 2,
        "focal_tversky": (tversky_of_1**0.75 + tversky_of_2**0.75) / 2,
        # Class 1 has volume 1, so weight 1; the absent class 2 has weight 1.
        "generalised_dice": 1 - (2 * 0.5 + 1) / (0.75 + 1 + 0.5 + 1),
        "dice_ce": 1 - (dice_of_1 + dice_of_2) / 2 + math.log(2),
    }
    assert set(expected) == set(LOSSES) - {"bce"}
    for name, value in expected.items():
        np.testing.assert_allclose(_value(name, TERNARY_LABEL, TERNARY_LOGITS), [value], rtol=1e-5, err_msg=name)


def test_tversky_counts_what_is_missed_more_than_what_is_too_much():
    # Two of the four voxels are labelled. All predicted: TP 2, FP 2. None predicted: FN 2.
    label = np.array([[1, 1, 0, 0]])
    np.testing.assert_allclose(_value("tversky", label, np.full((1, 4, 1), 100.0)), [1 - 3 / (2 + 0.3 * 2 + 1)], rtol=1e-5)
    np.testing.assert_allclose(_value("tversky", label, np.full((1, 4, 1), -100.0)), [1 - 1 / (0.7 * 2 + 1)], rtol=1e-5)


def test_class_weights_by_hand():
    # The softmax of (log 3, 0) is (3/4, 1/4). A voxel of background and one of foreground get it; the latter weighs thrice.
    label, logits = np.array([[0, 1]]), np.array([[[LOG3, 0], [LOG3, 0]]])
    cross_entropy = (math.log(4 / 3) + 3 * math.log(4)) / 4
    focal = (math.log(4 / 3) / 16 + 3 * math.log(4) * 9 / 16) / 4
    np.testing.assert_allclose(_value("ce", label, logits, class_weights=(1, 3)), [cross_entropy], rtol=1e-5)
    np.testing.assert_allclose(_value("focal", label, logits, class_weights=(1, 3)), [focal], rtol=1e-5)
    # One logit of -log 3 says the same.
    logit = np.full((1, 2, 1), -LOG3)
    np.testing.assert_allclose(_value("bce", label, logit, class_weights=(1, 3)), [cross_entropy], rtol=1e-5)
    np.testing.assert_allclose(_value("focal", label, logit, class_weights=(1, 3)), [focal], rtol=1e-5)

    dice_of_1, dice_of_2 = 1 - (2 * 0.5 + 1) / (0.75 + 1 + 1), 1 - 1 / (0.5 + 1)
    weighted = _value("dice", TERNARY_LABEL, TERNARY_LOGITS, class_weights=(9, 1, 3))
    np.testing.assert_allclose(weighted, [(dice_of_1 + 3 * dice_of_2) / 4], rtol=1e-5)
    both = _value("dice_ce", TERNARY_LABEL, TERNARY_LOGITS, class_weights=(9, 1, 3))
    np.testing.assert_allclose(both, [(dice_of_1 + 3 * dice_of_2) / 4 + math.log(2)], rtol=1e-5)


def test_generalised_dice_by_hand():
    # Every voxel gives 1/3 to each class. Class 1: both 2/3, predicted 4/3, labelled 2; class 2: both 1/3, predicted 4/3, labelled 1.
    label, logits = np.array([[0, 1, 1, 2]]), np.zeros((1, 4, 3))
    # The weights are 1/4 and 1: (2 (1/6 + 1/3) + 1) / (10/12 + 7/3 + 1) = 2 / (25/6).
    np.testing.assert_allclose(_value("generalised_dice", label, logits), [13 / 25], rtol=1e-5)
    # Class weights 1 and 3 have mean 1 as 1/2 and 3/2: (2 (1/12 + 1/2) + 1) / (5/12 + 7/2 + 1) = (13/6) / (59/12).
    np.testing.assert_allclose(_value("generalised_dice", label, logits, class_weights=(9, 1, 3)), [33 / 59], rtol=1e-5)


def test_batch_dice_by_hand():
    # The first sample: both 3/4, predicted 6/4, labelled 1. The second, without foreground: 0, 1, 0.
    label = np.concatenate([BINARY_LABEL, np.zeros_like(BINARY_LABEL)])
    logits = np.concatenate([BINARY_LOGITS, np.full_like(BINARY_LOGITS, -LOG3)])
    np.testing.assert_allclose(_value("dice", label, logits), [1 - 2.5 / 3.5, 1 - 1 / 2], rtol=1e-5)
    np.testing.assert_allclose(_value("dice", label, logits, batch=True), [1 - 2.5 / 4.5] * 2, rtol=1e-5)


def test_an_absent_class_costs_nothing_unless_predicted():
    label = np.zeros((1, 4, 4))
    expected = {"dice": 1 - 1 / 17, "iou": 1 - 1 / 17, "tversky": 1 - 1 / (0.3 * 16 + 1), "generalised_dice": 1 - 1 / 17}
    for name, value in {**expected, "focal_tversky": expected["tversky"] ** 0.75}.items():
        assert _value(name, label, np.full((1, 4, 4, 1), -100.0)) == pytest.approx(0, abs=1e-6)
        assert _value(name, label, np.full((1, 4, 4, 1), 100.0)) == pytest.approx(value)


# ----------------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("shape", [(4, 15), (4, 3, 5)])
@every_loss
def test_one_value_a_sample_right_beats_wrong_and_extremes_are_finite(name, shape, channels):
    label = np.random.default_rng(0).integers(0, max(2, channels), (3, *shape))
    right = 100.0 * (label[..., None] == np.arange(channels)) if channels > 1 else 200.0 * label[..., None] - 100.0
    good, bad = _value(name, label, right), _value(name, label, -right)
    assert good.shape == (3,)
    assert np.isfinite(good).all()
    assert np.isfinite(bad).all()
    np.testing.assert_allclose(good, 0, atol=1e-5)
    assert (bad > 0.5).all()
    # Each sample on its own: the value does not depend on its neighbours in the batch.
    np.testing.assert_allclose(_value(name, label[1:2], -right[1:2]), bad[1:2], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@every_loss
def test_gradients_are_finite(name, channels, dtype):
    label, logits = _draw_extremes(channels)
    label = ops.convert_to_tensor(label, "int32")
    value, gradient = _value_and_gradient(lambda logits: LOSSES[name](label, logits), logits, dtype)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value[[0, 3]], 0, atol=1e-5)
    assert (value[[1, 4]] > 0.5).all()
    # Every logit learns something in the undecided sample.
    assert (gradient[2] != 0).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_compiled_losses_are_the_same(channels):
    label, logits = _draw_extremes(channels)
    label = ops.convert_to_tensor(label, "int32")
    options = {"class_weights": tuple(range(max(2, channels))), "batch": True}

    names = [name for name, k in CASES if k == channels]
    if keras.backend.backend() == "torch":
        # Keras runs PyTorch uncompiled unless asked, and tracing them all would take a minute.
        names = ["focal_tversky", "dice_ce"]

    def compute(logits):
        return ops.stack([LOSSES[name](label, logits, **options) for name in names])

    value, gradient = _value_and_gradient(compute, logits)
    compiled_value, compiled_gradient = _value_and_gradient(compute, logits, compiled=True)
    assert np.isfinite(compiled_value).all()
    assert np.isfinite(compiled_gradient).all()
    np.testing.assert_allclose(compiled_value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compiled_gradient, gradient, rtol=1e-4, atol=1e-6)


@every_loss
def test_options_that_change_nothing(name, channels):
    label, logits = _draw(channels)
    values = _value(name, label, logits)
    np.testing.assert_allclose(_value(name, label, logits, class_weights=[2.5] * max(2, channels)), values, rtol=1e-5)
    np.testing.assert_allclose(_value(name, label[:1], logits[:1], batch=True), values[:1], rtol=1e-6)
    if name in ("bce", "ce", "focal"):
        np.testing.assert_array_equal(_value(name, label, logits, batch=True), values)


@every_loss
def test_the_order_of_samples_does_not_matter(name, channels):
    label, logits = _draw(channels)
    order = [2, 0, 1]
    np.testing.assert_allclose(_value(name, label[order], logits[order]), _value(name, label, logits)[order], rtol=1e-5)
    pooled = _value(name, label, logits, batch=True)
    np.testing.assert_allclose(_value(name, label[order], logits[order], batch=True), pooled[order], rtol=1e-5)
    if name in OVERLAPS:
        np.testing.assert_allclose(pooled, pooled[0])


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bce"])
def test_two_logits_say_the_same_as_one(name):
    label, logits = _draw(1)
    pairs = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    for options in ({}, {"class_weights": (1, 5), "batch": True}):
        np.testing.assert_allclose(_value(name, label, pairs, **options), _value(name, label, logits, **options), rtol=1e-5)


def test_a_sample_whose_voxels_all_weigh_nothing_costs_nothing():
    label, logits = _draw(4)
    label[0] = 0
    values = _value("ce", label, logits, class_weights=(0, 1, 1, 1))
    assert values[0] == 0
    assert (values[1:] > 0).all()


# --------------------------------------------------------------------------------------------------------------------- errors


def test_bce_refuses_several_logits():
    with pytest.raises(ValueError, match="one logit a voxel for the loss 'bce'. Received: 3"):
        _value("bce", np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 3)))


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 6), (1, 2, 3, 1)])
def test_a_label_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"Expected `label` of shape \(1, 2, 3\), as the logits without their classes. Received: \(1, "):
        _value("dice", np.zeros(shape), np.zeros((1, 2, 3, 4)))


@pytest.mark.parametrize("name", ["ce", "dice"])
@pytest.mark.parametrize("weights", [(1, 2), (1, -1, 1), (1, math.nan, 1), (1, math.inf, 1), (1, 0, 0)])
def test_wrong_class_weights(name, weights):
    with pytest.raises(ValueError, match=r"Expected `class_weights` as 3 numbers of 0 or more, the background's first.*Received: \(1.0, "):
        _value(name, TERNARY_LABEL, TERNARY_LOGITS, class_weights=weights)


def test_one_logit_has_two_class_weights():
    with pytest.raises(ValueError, match="Expected `class_weights` as 2 numbers"):
        _value("ce", BINARY_LABEL, BINARY_LOGITS, class_weights=(1,))


# ---------------------------------------------------------------------------------------------------------------------- Keras


def test_the_keras_loss_reads_names_too():
    with pytest.raises(ValueError, match=r"Expected `loss` as a name in \('bce', .*Received: 'hinge'"):
        SegmentationLoss("hinge")


def test_a_sum_weights_its_terms_and_computes_what_they_share_once(monkeypatch):
    label, logits = _draw(4)
    options = {"class_weights": (1, 2, 3, 4), "batch": True}
    terms = {"dice": 2.0, "focal": 0.5, "ce": 1.0, "tversky": 0.25}
    expected = sum(weight * _value(name, label, logits, **options).mean() for name, weight in terms.items())
    calls = []
    inner = losses._Voxels._log_probabilities.func
    monkeypatch.setattr(losses._Voxels._log_probabilities, "func", lambda voxels: calls.append(1) or inner(voxels))
    loss = SegmentationLoss("dice:2+focal:0.5+ce+tversky:0.25", **options)
    assert float(loss(label, logits)) == pytest.approx(float(expected), rel=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("spec", ["dice_ce", "dice:1+focal:0.5"])
def test_keras_trains_with_it_in_the_binary_task(spec):
    # Keras's own wrapper of functions would squeeze the single logit away and broadcast (B, H, W) against (B, H).
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 1)])
    model.compile(optimizer="sgd", loss=SegmentationLoss(spec))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("float32")
    labels = np.random.default_rng(1).integers(0, 2, (2, 4, 4)).astype("int32")
    logits = ops.convert_to_numpy(model(images))
    expected = sum(weight * _value(name, labels, logits).mean() for name, weight in parse_loss(spec, tuple(LOSSES)))
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(float(expected), rel=1e-5)
    assert float(model.train_on_batch(images, labels)) == pytest.approx(float(expected), rel=1e-5)
    assert model.evaluate(images, labels, verbose=0) < expected


# ------------------------------------------------------------------------------------------------------ ignored voxels and regions


@pytest.mark.parametrize("weighted", [False, True])
@every_loss
def test_ignored_voxels_cost_nothing_and_have_no_gradient(name, channels, weighted):
    label, logits = _draw(channels)
    ignored = np.zeros(label.shape, bool)
    ignored[:, -3:] = True
    weights = list(range(1, max(2, channels) + 1)) if weighted else None
    loss = SegmentationLoss(name, weights, ignore=255)
    value, gradient = _value_and_gradient(lambda logits: loss.call(np.where(ignored, 255, label), logits), logits)
    np.testing.assert_allclose(value, _value(name, label[:, :-3], logits[:, :-3], class_weights=weights), rtol=2e-5)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()
    # Nothing is ignored in these, and nothing is judged.
    np.testing.assert_allclose(
        ops.convert_to_numpy(loss.call(label, ops.convert_to_tensor(logits, "float32"))),
        _value(name, label, logits, class_weights=weights),
        rtol=2e-5,
    )
    value, gradient = _value_and_gradient(lambda logits: loss.call(np.full(label.shape, 255), logits), logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert not gradient.any()


REGIONS = ((1, 2), (2,))


def test_regions_by_hand():
    # Probabilities of the whole 3/4, 3/4, 1/4 and of the core 1/4, 3/4, 3/4. Label: whole, core (thus both), nothing.
    label = np.array([[[1, 2, 0]]])
    logits = np.array([[[[LOG3, -LOG3], [LOG3, LOG3], [-LOG3, LOG3]]]])
    # Whole: both 6/4, predicted 7/4, labelled 2. Core: both 3/4, predicted 7/4, labelled 1.
    dice = 1 - (4 / 4.75 + 2.5 / 3.75) / 2
    # The right answer has 3/4 five times and 1/4 once: the core is found in voxel 3.
    ce = (5 * math.log(4 / 3) + math.log(4)) / 6

    def compute(spec, **options):
        loss = SegmentationLoss(spec, regions=REGIONS, **options)
        return ops.convert_to_numpy(loss.call(label, ops.convert_to_tensor(logits, "float32"))).tolist()

    assert compute("dice") == pytest.approx([dice])
    assert compute("bce") == compute("ce") == pytest.approx([ce])
    assert compute("dice_ce") == pytest.approx([dice + ce])
    # The weights of the regions are 1/4 and 3/4; that of the background does nothing.
    assert compute("dice", class_weights=(7, 1, 3)) == pytest.approx([1 - (4 / 4.75 + 3 * 2.5 / 3.75) / 4])
    assert compute("ce", class_weights=(7, 1, 3)) == pytest.approx([(3 * math.log(4 / 3) + 3 * (2 * math.log(4 / 3) + math.log(4))) / 12])
    with pytest.raises(ValueError, match="Expected `class_weights` as 3 numbers"):
        compute("ce", class_weights=(1, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_regions_that_do_not_overlap_cost_what_binary_tasks_do(name):
    label, logits = _draw(4)
    logits = logits[..., 1:]
    loss = SegmentationLoss(name, regions=((1,), (2,), (3,)))
    value = ops.convert_to_numpy(loss.call(label, ops.convert_to_tensor(logits, "float32")))
    if name == "generalised_dice":
        # It balances the regions, so that it is no mean of them.
        assert ((value > 0) & (value < 1)).all()
        return
    apart = [_value(name, (label == index).astype(int), logits[..., index - 1 : index]) for index in (1, 2, 3)]
    np.testing.assert_allclose(value, np.mean(apart, axis=0), rtol=2e-5)
