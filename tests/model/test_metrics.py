"""The streaming metric against the exact scores; this file also runs under the other backends."""

import numpy as np
import pytest
from keras import ops

from modules.model.metrics import Overlap, classify
from modules.scoring import score_case


def test_one_logit_means_foreground_above_zero():
    np.testing.assert_array_equal(ops.convert_to_numpy(classify(ops.convert_to_tensor([[[[-1.0], [0.5]]]]))), [[[0, 1]]])


def test_by_hand():
    metric = Overlap(["background", "left", "right"])
    label = np.array([[[0, 1, 1, 2]]])
    prediction = np.array([[[0, 1, 2, 2]]])
    metric.update_state(label, np.eye(3, dtype="float32")[prediction])
    result = {key: float(value) for key, value in metric.result().items()}
    assert result == pytest.approx(
        {"accuracy": 3 / 4, "mean_dice": 2 / 3, "dice_left": 2 / 3, "iou_left": 1 / 2, "dice_right": 2 / 3, "iou_right": 1 / 2}
    )


def test_batches_pool_to_the_exact_scores():
    names = ["background", "a", "b", "absent"]
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 3, (2, 4, 8, 8))
    metric = Overlap(names)
    for start in (0, 2):
        metric.update_state(labels[start : start + 2], np.eye(4, dtype="float32")[predictions[start : start + 2]])
    exact = score_case(labels, predictions, names, level="volume", case="all")
    result = metric.result()
    for score in exact[:2]:
        assert float(result[f"dice_{score.class_name}"]) == pytest.approx(score.dice, rel=1e-5)
        assert float(result[f"iou_{score.class_name}"]) == pytest.approx(score.iou, rel=1e-5)
    assert np.isnan(float(result["dice_absent"]))
    assert float(result["mean_dice"]) == pytest.approx(np.mean([score.dice for score in exact[:2]]), rel=1e-5)


def test_ignored_voxels_count_in_no_metric():
    metric = Overlap(["background", "left", "right"], ignore=255)
    logits = np.eye(3, dtype="float32")[np.array([[[0, 1, 2, 2, 1, 0]]])]
    metric.update_state(np.array([[[0, 1, 1, 2, 255, 255]]]), logits)
    result = {key: float(value) for key, value in metric.result().items()}
    # The same as of the first four voxels alone.
    assert result == pytest.approx(
        {"accuracy": 3 / 4, "mean_dice": 2 / 3, "dice_left": 2 / 3, "iou_left": 1 / 2, "dice_right": 2 / 3, "iou_right": 1 / 2}
    )
    metric.update_state(np.array([[[0, 1, 1, 2, 255, 255]]]), logits, np.array([0.0]))
    assert float(metric.result()["accuracy"]) == 3 / 4
    metric.reset_state()
    metric.update_state(np.full((1, 1, 6), 255), logits)
    assert np.isnan(float(metric.result()["mean_dice"]))


def test_regions_are_judged_as_they_are_painted():
    regions = [((1, 2), 1), ((2,), 2)]
    metric = Overlap(["background", "whole", "core"], regions=regions, ignore=255)
    logits = np.array([[[[1, -1], [1, 1], [-1, 1], [-1, -1], [0, 0], [9, 9]]]], "float32")
    # Where the core alone is found, the whole is painted with it.
    np.testing.assert_array_equal(ops.convert_to_numpy(classify(ops.convert_to_tensor(logits), regions)), [[[1, 2, 2, 0, 0, 2]]])
    metric.update_state(np.array([[[1, 1, 2, 2, 0, 255]]]), logits)
    result = {key: float(value) for key, value in metric.result().items()}
    # Of the whole 3 of 4 are found, and nothing else. Of the core 1 of 2 is found, and 1 voxel too many. Voxels 1, 3 and 5 are right.
    expected = {"dice_whole": 6 / 7, "iou_whole": 3 / 4, "dice_core": 1 / 2, "iou_core": 1 / 3}
    assert result == pytest.approx({"accuracy": 3 / 5, "mean_dice": (6 / 7 + 1 / 2) / 2, **expected})


def test_nothing_but_background_is_nan_not_perfect():
    metric = Overlap(["background", "tumour"])
    metric.update_state(np.zeros((1, 4, 4)), np.full((1, 4, 4, 1), -1.0, "float32"))
    assert np.isnan(float(metric.result()["mean_dice"]))
    assert float(metric.result()["accuracy"]) == 1
    metric.reset_state()
    metric.update_state(np.ones((1, 4, 4)), np.full((1, 4, 4, 1), -1.0, "float32"))
    assert float(metric.result()["mean_dice"]) == 0


def test_the_labels_alone_decide_which_classes_the_mean_is_over():
    metric = Overlap(["background", "a", "b"])
    label = np.array([[[0, 0, 1, 1]]])
    # Two of three of class a; one stray voxel of class b, which no label holds.
    metric.update_state(label, np.eye(3, dtype="float32")[np.array([[[2, 0, 0, 1]]])])
    assert float(metric.result()["dice_a"]) == pytest.approx(2 / 3)
    assert float(metric.result()["dice_b"]) == 0
    assert float(metric.result()["mean_dice"]) == pytest.approx(2 / 3)
    metric.reset_state()
    metric.update_state(np.zeros((1, 1, 4)), np.eye(3, dtype="float32")[np.array([[[2, 0, 0, 1]]])])
    assert np.isnan(float(metric.result()["mean_dice"]))
