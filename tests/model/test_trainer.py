"""The training step: its augmentation, its loss and its repetition; this file also runs under the other backends."""

import keras
import numpy as np
import pytest
from keras import ops

from modules.data.draws import AUGMENTATIONS, draw_parameters
from modules.devices import choose_precision
from modules.model.losses import SegmentationLoss
from modules.model.metrics import Overlap
from modules.model.trainer import Trainer, reduce_label, weigh_levels
from modules.networks import build, with_deep_supervision

CLASSES = ("background", "left", "right")


def _make_trainer(shape=(16, 16), swaps=()):
    keras.utils.set_random_seed(0)
    network = build("unet2d" if len(shape) == 2 else "unet3d", (*shape, 1), 3, base_filters=2, levels=1)
    trainer = Trainer(network, SegmentationLoss("dice_ce"), Overlap(CLASSES), swaps)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-2))
    return trainer


def _make_batch(shape=(16, 16), augmentation=None, seed=0):
    rng = np.random.default_rng(seed)
    batch = {"image": rng.normal(size=(2, *shape, 1)).astype("float32"), "label": rng.integers(0, 3, (2, *shape)).astype("int32")}
    if augmentation:
        left_right = 0 if len(shape) == 3 else None
        drawn = [draw_parameters(np.random.default_rng([seed, row]), augmentation, shape, 1, left_right=left_right) for row in range(2)]
        batch |= {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    return batch


def test_without_augmentation_it_is_the_network_and_the_loss():
    trainer, batch = _make_trainer(), _make_batch()
    logits = trainer.network(batch["image"], training=False)
    logs = trainer.test_on_batch(batch, return_dict=True)
    expected = ops.mean(SegmentationLoss("dice_ce").call(batch["label"], logits))
    np.testing.assert_allclose(logs["loss"], ops.convert_to_numpy(expected), rtol=1e-4)
    right = ops.convert_to_numpy(ops.argmax(logits, axis=-1)) == batch["label"]
    np.testing.assert_allclose(logs["accuracy"], right.mean(), rtol=1e-5)
    assert {"loss", "accuracy", "mean_dice", "dice_left", "iou_right"} <= set(logs)


@pytest.mark.parametrize(("shape", "name"), [((16, 16), "light"), ((16, 16, 8), "strong")])
def test_an_augmented_step_repeats_and_reaches_the_network(shape, name):
    trainer = _make_trainer(shape)
    trainer.optimizer.build(trainer.network.trainable_variables)
    variables = [*trainer.network.variables, *trainer.optimizer.variables]
    start = [ops.convert_to_numpy(variable) for variable in variables]
    ends = []
    for seed in (0, 0, 1):
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        logs = trainer.train_on_batch(_make_batch(shape, AUGMENTATIONS[name], seed), return_dict=True)
        assert np.isfinite(float(logs["loss"]))
        ends.append([ops.convert_to_numpy(weight) for weight in trainer.network.trainable_weights])
    first, again, other = ends
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not all(np.array_equal(ours, theirs) for ours, theirs in zip(first, other, strict=True))


def test_the_label_goes_with_its_image_and_sides_are_swapped():
    """After a flip of left and right, the loss sees the flipped label with the classes of the two sides exchanged."""
    trainer, batch = _make_trainer((16, 16, 8), swaps=((1, 2),)), _make_batch((16, 16, 8))
    matrix = np.concatenate([np.diag([-1.0, 1, 1]), np.zeros((3, 1))], axis=1).astype("float32")
    batch |= {"matrix": np.stack([matrix] * 2), "mirrored": np.ones(2, "int32")}
    (logits,), label = trainer(batch, training=False)
    flipped = batch["label"][:, ::-1]
    np.testing.assert_array_equal(ops.convert_to_numpy(label), np.array([0, 2, 1])[flipped])
    expected = trainer.network(np.ascontiguousarray(batch["image"][:, ::-1]), training=False)
    np.testing.assert_allclose(ops.convert_to_numpy(logits), ops.convert_to_numpy(expected), atol=1e-4)


def _make_deep(l2=0.0, average=0.0, deep=True, rate=1e-2):
    keras.utils.set_random_seed(0)
    network = build("unet2d", (32, 32, 1), 3, base_filters=2, norm="instance")
    trainer = Trainer(
        network, SegmentationLoss("ce"), Overlap(CLASSES), deep=with_deep_supervision(network) if deep else None, l2=l2, average=average
    )
    trainer.compile(optimizer=keras.optimizers.SGD(rate))
    return trainer


def test_the_loss_of_deep_supervision_is_a_weighted_mean_and_the_report_that_of_full_resolution():
    trainer, batch = _make_deep(), _make_batch((32, 32))
    outputs, label = trainer(batch, training=True)
    assert [tuple(logits.shape[1:]) for logits in outputs] == [(32, 32, 3), (16, 16, 3), (8, 8, 3), (4, 4, 3)]
    loss = SegmentationLoss("ce")
    # Each block of 2, 4 or 8 voxels gives the one in its middle: number 1, 2 or 4, counted from 0.
    labels = [batch["label"][:, step // 2 :: step, step // 2 :: step] for step in (1, 2, 4, 8)]
    single = [float(loss(small, logits)) for small, logits in zip(labels, outputs, strict=True)]
    reported = trainer.compute_loss(batch, y_pred=(outputs, label), training=True)
    np.testing.assert_allclose(float(reported), single[0], rtol=1e-5)
    # One plain gradient step with a tiny rate lowers the minimised loss by rate x |gradient|^2.
    trainer.train_on_batch(batch)
    after, _ = trainer(batch, training=True)
    lower = [float(loss(small, logits)) for small, logits in zip(labels, after, strict=True)]
    weights = np.array([8, 4, 2, 1]) / 15
    assert weights @ lower < weights @ single
    # Validation sees full resolution alone.
    assert len(trainer(batch, training=False)[0]) == 1


def test_each_level_weighs_half_of_the_one_before():
    np.testing.assert_allclose(weigh_levels(4), np.array([8, 4, 2, 1]) / 15)
    assert weigh_levels(1) == [1]


def test_lower_resolutions_reach_their_heads_and_the_network_alone_is_what_is_kept():
    trainer, batch = _make_deep(), _make_batch((32, 32))
    names = {weight.path for weight in trainer.network.weights}
    heads = [weight for weight in trainer.trainable_weights if weight.path not in names]
    assert len(heads) == 6
    before = [np.array(ops.convert_to_numpy(weight)) for weight in heads]
    trainer.train_on_batch(batch)
    for weight, value in zip(heads, before, strict=True):
        assert not np.array_equal(ops.convert_to_numpy(weight), value)


def test_l2_pulls_every_weight_towards_0_and_is_not_reported():
    plain, penalised = _make_deep(deep=False), _make_deep(deep=False, l2=0.5)
    batch = _make_batch((32, 32))
    losses = [trainer.train_on_batch(batch, return_dict=True)["loss"] for trainer in (plain, penalised)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    start = _make_deep(deep=False).network.trainable_weights
    for first, ours, theirs in zip(start, plain.network.trainable_weights, penalised.network.trainable_weights, strict=True):
        # The gradient of 0.5 x 0.5 x w^2 is 0.5 w.
        expected = ops.convert_to_numpy(ours) - 1e-2 * 0.5 * ops.convert_to_numpy(first)
        np.testing.assert_allclose(ops.convert_to_numpy(theirs), expected, atol=1e-6)


def test_averages_by_hand_and_only_while_they_are_asked_for():
    trainer, batch = _make_deep(deep=False, average=0.5), _make_batch((32, 32))
    seen = []
    for _ in range(3):
        seen.append(np.array(ops.convert_to_numpy(trainer.network.trainable_weights[0])))
        trainer.train_on_batch(batch)
    average = seen[0]
    for step, value in enumerate(seen):
        average = average + (1 - min(0.5, (1 + step) / (10 + step))) * (value - average)
    current = np.array(ops.convert_to_numpy(trainer.network.trainable_weights[0]))
    with trainer.averaged():
        np.testing.assert_allclose(ops.convert_to_numpy(trainer.network.trainable_weights[0]), average, atol=1e-6)
        assert not np.array_equal(average, current)
    np.testing.assert_array_equal(ops.convert_to_numpy(trainer.network.trainable_weights[0]), current)


def test_a_sample_that_only_fills_the_batch_counts_nowhere():
    trainer, batch = _make_trainer(), _make_batch()
    one = {name: np.repeat(array[:1], 2, axis=0) for name, array in batch.items()}
    expected = trainer.test_on_batch(one, return_dict=True)
    trainer.reset_metrics()
    received = trainer.test_on_batch(batch | {"weight": np.array([2, 0], "float32")}, return_dict=True)
    for name in ("loss", "accuracy", "mean_dice"):
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-5)


@pytest.mark.peers
def test_deep_supervision_equals_monai():
    monai_losses = pytest.importorskip("monai.losses")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (2, 16, 24, 8)).astype("int32")
    outputs = [rng.normal(size=(2, 16 // step, 24 // step, 8 // step, 3)).astype("float32") for step in (1, 2, 4)]
    loss = SegmentationLoss("ce")
    ours = sum(share * float(loss(reduce_label(label, logits), logits)) for share, logits in zip(weigh_levels(3), outputs, strict=True))
    supervised = monai_losses.DeepSupervisionLoss(
        lambda logits, target: torch.nn.functional.cross_entropy(logits, target[:, 0].long()), weight_mode="exp"
    )
    theirs = supervised([torch.from_numpy(logits).movedim(-1, 1) for logits in outputs], torch.from_numpy(label)[:, None].float())
    # MONAI's weights are 1, 1/2 and 1/4, not shares of 1.
    np.testing.assert_allclose(ours, float(theirs) / 1.75, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_weights_and_averages_in_float32(precision):
    try:
        assert choose_precision(precision) == precision
        trainer = _make_deep(average=0.9)
        if precision == "float16":
            trainer.compile(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-2)))
    finally:
        assert choose_precision("float32") == "float32"
    before = [np.array(ops.convert_to_numpy(weight)) for weight in trainer.network.trainable_weights]
    logs = trainer.train_on_batch(_make_batch((32, 32)), return_dict=True)
    assert np.isfinite(logs["loss"])
    after = [ops.convert_to_numpy(weight) for weight in trainer.network.trainable_weights]
    assert {weight.dtype for weight in after} == {np.dtype("float32")}
    assert not all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert keras.backend.standardize_dtype(trainer.network.layers[1].compute_dtype) == precision
    with trainer.averaged():
        assert ops.convert_to_numpy(trainer.network.trainable_weights[0]).dtype == np.float32


def test_dropout_repeats_from_the_state_that_checkpoints_hold():
    inputs = keras.Input((4, 4, 8))
    network = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))
    Trainer(network, SegmentationLoss("ce"), Overlap(CLASSES))
    states = [np.array(ops.convert_to_numpy(variable)) for variable in network.variables]
    drawn = []
    for _ in range(2):
        for variable, state in zip(network.variables, states, strict=True):
            variable.assign(state)
        drawn += [ops.convert_to_numpy(network(np.ones((2, 4, 4, 8), "float32"), training=True)) for _ in range(2)]
    np.testing.assert_array_equal(drawn[:2], drawn[2:])
    assert not np.array_equal(drawn[0], drawn[1])
