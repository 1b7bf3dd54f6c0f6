"""The choice of scans to label: doubt by hand, descriptions that tell scans apart, and the greedy order."""

import math
from pathlib import Path

import numpy as np
import pytest

from modules.data.case import Case, Predicted, Volume
from modules.data.regions import Region
from modules.predict.suggestions import choose_scans, describe_scan, measure_doubt

CASE = Case("a", "a", (Path("a.nii"),))


def _predict(prediction, probabilities=None, image=None, spacing_mm=None):
    prediction = np.array(prediction, np.uint8)
    image = np.zeros((*prediction.shape, 1), np.float32) if image is None else image
    volume = Volume(image, None, spacing_mm or (1.0,) * prediction.ndim)
    return Predicted(CASE, volume, None, prediction, None if probabilities is None else np.array(probabilities, np.float32))


def test_doubt_is_what_lacks_to_the_expected_dice_by_hand():
    first = [[0.9, 0.7], [0.2, 0.0]]
    # The second class is in no voxel, and all its probabilities together make less than half of one: it is left out.
    second = [[0.05, 0.05], [0.05, 0.0]]
    probabilities = np.stack([1 - np.array(first) - second, first, second], axis=-1)
    item = _predict([[1, 1], [0, 0]], probabilities)
    assert measure_doubt(item, ("background", "a", "b")) == pytest.approx(1 - 2 * 1.6 / (2 + 1.8))
    sure = _predict([[1, 2], [0, 0]], np.eye(3)[[[1, 2], [0, 0]]])
    assert measure_doubt(sure, ("background", "a", "b")) == 0


def test_doubt_of_regions_counts_all_their_parts():
    # The whole is parts 1 and 2, the core part 2.
    regions = (Region((1, 2), 1), Region((2,), 2))
    item = _predict([[1, 2], [0, 0]], np.stack([[[0.8, 0.8], [0.4, 0]], [[0, 0.5], [0, 0.5]]], axis=-1))
    assert measure_doubt(item, ("background", "whole", "core"), regions) == pytest.approx(np.mean([1 - 3.2 / 4, 1 - 1 / 2]))


def test_a_scan_in_which_nothing_is_found_is_most_doubtful():
    nothing = _predict(np.zeros((4, 4)), np.eye(2)[np.zeros((4, 4), int)])
    assert measure_doubt(nothing, ("background", "a")) == 1
    with pytest.raises(ValueError, match="Expected a prediction with its probabilities. Received: none for a."):
        measure_doubt(_predict([[0]]), ("background", "a"))


@pytest.mark.parametrize("rank", [2, 3])
def test_a_description_knows_size_form_and_contrast_and_not_the_scale_of_intensities(rank):
    rng = np.random.default_rng(0)
    image = rng.gamma(2, size=(12,) * rank + (2,)).astype(np.float32)
    long, round_ = np.zeros((2, *(12,) * rank))
    long[(slice(None), *(slice(5, 6),) * (rank - 1))] = 1
    round_[(slice(4, 8),) * rank] = 1
    names = ("background", "a")
    one, brighter, other, voxels = (
        describe_scan(_predict(*arguments), names)
        for arguments in ((long, None, image), (long, None, 50 + 3 * image), (round_, None, image), (long, None, image, (2.0,) * rank))
    )
    np.testing.assert_allclose(one, brighter, atol=1e-4)
    assert one.shape == (10 + 2 * rank + 1 + rank,)
    assert np.flatnonzero(np.abs(one - other) > 0.01).min() == 10 + 2 * rank
    # Voxels twice as long: sizes, extents and lengths grow by 2, the volume by 2 to the rank. Contrast stays.
    expected = [0] * 10 + [math.log(2)] * 2 * rank + [rank * math.log(2)] + [math.log(2)] * rank
    np.testing.assert_allclose(voxels - one, expected, atol=1e-5)
    assert np.isfinite(describe_scan(_predict(np.zeros((3,) * rank)), names)).all()


def test_the_order_weighs_doubt_and_distance_by_hand():
    doubts, places = [0.5, 0.45, 0.3, 0.1], np.array([[0.0], [0], [3], [6]])
    # The second is as the first. Then 0.3 * 3 is more than 0.1 * 6. Of those left, the last is apart.
    chosen, distances = choose_scans(doubts, places, 9)
    assert chosen == [0, 2, 3, 1]
    np.testing.assert_allclose(distances, np.array([np.inf, 3, 3, 0]) / places.std())
    assert choose_scans(doubts, places, 2)[0] == [0, 2]


def test_scans_that_are_alike_are_ordered_by_doubt():
    assert choose_scans([0.1, 0.3, 0.2], np.ones((3, 4)), 3) == ([1, 2, 0], [np.inf, 0, 0])
    # Scans without any doubt are chosen all the same, each once.
    assert sorted(choose_scans([0.0, 0.0], np.array([[0.0], [1]]), 2)[0]) == [0, 1]
