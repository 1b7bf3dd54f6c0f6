"""The step of a training: what is augmented, what the loss sees, and that it repeats; this file also runs under the other backends."""

import keras
import numpy as np
import pytest
from keras import ops

from modules.augment import AUGMENTATIONS, draw_parameters
from modules.losses import SegmentationLoss
from modules.metrics import Overlap
from modules.networks import build
from modules.trainer import Trainer

CLASSES = ("background", "left", "right")


def _make_trainer(shape=(16, 16), swaps=()):
    keras.utils.set_random_seed(0)
    network = build("unet2d" if len(shape) == 2 else "unet3d", (*shape, 1), 3, base_filters=2)
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
    """A flip of left and right: the label that the loss sees is the flipped one, with the classes of the two sides exchanged."""
    trainer, batch = _make_trainer((16, 16, 8), swaps=((1, 2),)), _make_batch((16, 16, 8))
    matrix = np.concatenate([np.diag([-1.0, 1, 1]), np.zeros((3, 1))], axis=1).astype("float32")
    batch |= {"matrix": np.stack([matrix] * 2), "mirrored": np.ones(2, "int32")}
    logits, label = trainer(batch, training=False)
    flipped = batch["label"][:, ::-1]
    np.testing.assert_array_equal(ops.convert_to_numpy(label), np.array([0, 2, 1])[flipped])
    expected = trainer.network(np.ascontiguousarray(batch["image"][:, ::-1]), training=False)
    np.testing.assert_allclose(ops.convert_to_numpy(logits), ops.convert_to_numpy(expected), atol=1e-4)
