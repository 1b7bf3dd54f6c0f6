"""Errors that probabilities tell of, by hand."""

import math

import numpy as np
import pytest

from modules.data.regions import IGNORE
from modules.predict.doubt import LOGITS, Doubt, DoubtTally, add_entropy, calibrate, fit_temperature, measure_entropy, measure_maps
from modules.predict.windows import mirror


def _place(logit):
    return int(np.argmin(np.abs(LOGITS - logit)))


def test_expected_dice_by_hand():
    # 8 predicted voxels at the logit ln 4 or so, whose probability is 0.8; 2 voxels outside at 0.2.
    counts = np.zeros((2, 2, LOGITS.size))
    inside, outside = _place(1.375), _place(-1.375)
    counts[0, 1, inside], counts[0, 0, outside] = 8, 2
    share = 1 / (1 + math.exp(-1.375))
    expected = Doubt(counts).expect_dice()
    assert expected[0] == pytest.approx(2 * 8 * share / (8 + 8 * share + 2 * (1 - share)))
    # Nothing is predicted of the second class.
    assert np.isnan(expected[1])
    # At twice the temperature the logits are half as large.
    half = 1 / (1 + math.exp(-0.6875))
    assert Doubt(counts).expect_dice(np.array([2.0, 1.0]))[0] == pytest.approx(2 * 8 * half / (8 + 8 * half + 2 * (1 - half)))


def test_the_temperature_of_overconfident_voxels_is_found():
    true_share = calibrate(2.0)[0]
    # In each bin there are as many voxels of the class as twice the temperature says.
    truth = np.stack([1 - true_share, true_share]) * 1000
    assert fit_temperature(truth) == pytest.approx(2.0, rel=1e-3)
    assert fit_temperature(np.stack([1 - calibrate(1.0)[0], calibrate(1.0)[0]])) == pytest.approx(1.0, rel=1e-3)
    # Without the class there is nothing to fit.
    assert fit_temperature(np.stack([np.ones(LOGITS.size), np.zeros(LOGITS.size)])) == 1.0


def test_entropy_is_a_share_of_the_most_possible():
    probabilities = np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(measure_entropy(probabilities), [1, 0, 0.5], atol=1e-5)
    # Two regions: one is as likely in as out, the other surely in.
    np.testing.assert_allclose(measure_entropy(np.array([[0.5, 1.0]], np.float32), regions=True), [0.5], atol=1e-5)


def test_mutual_information_is_the_disagreement_of_flips():
    # The model says "left voxel is class 1" with certainty, wherever it looks, so a flip contradicts it.
    sure = np.array([[[[0.0, 1.0], [1.0, 0.0]]]], np.float32)
    predict = mirror(add_entropy(lambda inputs: np.repeat(sure, len(inputs), axis=0), regions=False), [2])
    maps = measure_maps(predict(np.zeros((1, 1, 2, 1), np.float32)), regions=False)
    np.testing.assert_allclose(maps[0, 0], [[1, 1], [1, 1]], atol=1e-4)
    # All are as unsure as one another and agree: entropy without mutual information.
    even = np.full((1, 1, 2, 2), 0.5, np.float32)
    maps = measure_maps(mirror(add_entropy(lambda inputs: even, regions=False), [2])(np.zeros((1, 1, 2, 1))), regions=False)
    np.testing.assert_allclose(maps[0, 0], [[1, 0], [1, 0]], atol=1e-4)


def test_voxels_are_counted_by_class_mask_and_truth():
    tally = DoubtTally([(1,), (2,)], regions=False)
    plane = np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]], np.float32)
    tally.add(plane, np.array([1, 1, IGNORE], np.uint8))
    tally.add(plane[:1], np.array([0], np.uint8))
    doubt = tally.finish(None, labelled=True)
    assert doubt.truth is not None
    # Of class 1 two voxels are predicted, both at 0.8; two others are outside at 0.2.
    assert doubt.counts[0].sum(axis=-1).tolist() == [2, 2]
    assert doubt.counts[0, 1, _place(math.log(4))] == 2
    # The ignored voxel is not judged: of three others two are of class 1.
    assert doubt.truth[0].sum(axis=-1).tolist() == [1, 2]
    assert doubt.truth[1].sum(axis=-1).tolist() == [3, 0]
    assert doubt.counts[1, 1].sum() == 1
    assert tally.finish(None, labelled=False).truth is None


def test_regions_are_counted_each_for_itself():
    tally = DoubtTally([(1, 2), (2,)], regions=True)
    tally.add(np.array([[0.9, 0.6], [0.9, 0.4]], np.float32), np.array([1, 2], np.uint8))
    doubt = tally.finish(None, labelled=True)
    assert doubt.truth is not None
    assert doubt.counts[:, 1].sum(axis=-1).tolist() == [2, 1]
    assert doubt.truth[:, 1].sum(axis=-1).tolist() == [2, 1]
