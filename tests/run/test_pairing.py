"""Paired scores, their differences and their tests, from numbers made by hand and beside SciPy."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from modules.run.pairing import correct_p, find_differences, find_p, name_subjects, pair_scores
from modules.scoring import Score

NAN = math.nan


def _score(case, name="a", dice=0.5, hd95=1.0, voxels=(10, 10), **fields):
    return Score("volume", case, name, dice, dice, hd95, hd95, hd95, NAN, NAN, *voxels, **fields)


def _row(rows, score, class_name, run="new"):
    return next(row for row in rows if (row.score, row.class_name, row.run) == (score, class_name, run))


# -------------------------------------------------------------------------------------------------------------------- pairs


def test_cases_of_one_subject_are_averaged_and_classes_too():
    one = [_score("x", dice=0.4, subject="s"), _score("y", dice=0.6, subject="s"), _score("z", dice=0.9)]
    other = [_score("x", dice=0.5), _score("y", dice=0.5), _score("z", dice=0.7)]
    one, other = ([*of, *(_score(score.case, "b", dice=1.0) for score in of)] for of in (one, other))
    pairs = pair_scores([one, other], "dice")
    assert pairs == {
        "a": {"s": (0.5, 0.5), "z": (0.9, 0.7)},
        "b": {"s": (1, 1), "z": (1, 1)},
        "mean": {"s": (0.75, 0.75), "z": (0.95, 0.85)},
    }
    assert name_subjects([other, one]) == {"x": "s", "y": "s", "z": "z"}


def test_a_class_that_one_rightly_leaves_out():
    # x: only the second draws it. y: nobody does. Its distance would be the image's diagonal.
    one = [_score("x", dice=NAN, hd95=NAN, voxels=(0, 0)), _score("y", dice=NAN, hd95=NAN, voxels=(0, 0)), _score("z")]
    other = [_score("x", dice=0.0, hd95=90.0, voxels=(5, 0)), _score("y", dice=NAN, hd95=NAN, voxels=(0, 0)), _score("z")]
    assert pair_scores([one, other], "dice") == {"a": {"x": (1, 0), "z": (0.5, 0.5)}}
    assert pair_scores([other, one], "hd95_mm") == {"a": {"x": (90, 0), "z": (1, 1)}}


def test_scores_that_do_not_compare_are_left_out():
    # Nobody knows how long a voxel of the first is.
    assert pair_scores([[_score("x", hd95=NAN)], [_score("x")]], "hd95_mm") == {}
    one, other = ([_score("x", nsd=0.5, tolerance_mm=tolerance)] for tolerance in (1.0, 2.0))
    assert pair_scores([one, one], "nsd") == {"a": {"x": (0.5, 0.5)}}
    assert pair_scores([one, other], "nsd") == {}


def test_differences_by_hand():
    base = [_score(f"s{i}", dice=0.5, hd95=4.0) for i in range(6)]
    new = [_score(f"s{i}", dice=0.5 + gain, hd95=4.0 - gain) for i, gain in enumerate((0.1, 0.1, 0.1, 0.1, 0.1, 0.1))]
    rows = find_differences(["base", "new"], {key: pair_scores([base, new], key) for key in ("dice", "hd95_mm", "nsd")})
    dice, distance = _row(rows, "dice", "a"), _row(rows, "hd95_mm", "a")
    assert (dice.difference, dice.low, dice.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (dice.mean, dice.baseline_mean, dice.subjects, dice.better, dice.worse) == (pytest.approx(0.6), 0.5, 6, 6, 0)
    # All six have one sign: 2 of 64 choices of signs are as uneven.
    assert (dice.p, dice.p_holm, distance.p) == (2 / 64, 2 / 64, 2 / 64)
    # A smaller distance is better.
    assert (distance.better, distance.worse) == (6, 0)
    assert len(rows) == 2


def test_p_is_corrected_for_classes_and_models_and_means_among_themselves():
    base = [_score(f"s{i}", name) for i in range(6) for name in "ab"]
    up = [_score(f"s{i}", name, dice=0.6 if name == "a" else 0.5) for i in range(6) for name in "ab"]
    rows = find_differences(["base", "new", "old"], {"dice": pair_scores([base, up, base], "dice")})
    # Four tests of classes, two of means.
    assert _row(rows, "dice", "a").p_holm == 4 * 2 / 64
    assert _row(rows, "dice", "mean").p_holm == 2 * 2 / 64
    assert [row.p_holm for row in rows if row.run == "old"] == [1, 1, 1]


def test_a_model_compared_with_itself_differs_in_nothing():
    rng = np.random.default_rng(0)
    scores = [_score(f"s{i}", name, *rng.random(2)) for i in range(9) for name in "ab"]
    for row in find_differences(["base", "new"], {key: pair_scores([scores, scores], key) for key in ("dice", "hd95_mm")}):
        assert (row.difference, row.low, row.high, row.p, row.p_holm, row.better, row.worse) == (0, 0, 0, 1, 1, 0, 0)


# -------------------------------------------------------------------------------------------------------------------- tests


def test_signed_ranks_by_hand():
    assert find_p([]) == find_p([0, 0]) == find_p([0.3]) == 1
    # Ranks 1, 2 and 3; the negative one has rank 1. Sums of 0 and 1 have the chance 2/8, and so have 6 and 5.
    assert find_p([-1, 2, 3]) == 4 / 8
    # A tie: both have rank 1.5, and a sum of 3 or of 0 the chance 1/4 each.
    assert find_p([0.1, 0.1]) == 1 / 2
    # 0.3 - 0.2 and 0.2 - 0.1 are a tie, whatever the computer's last digit says.
    assert find_p([0.3 - 0.2, 0.1 - 0.2, 0.2 - 0.1]) == find_p([1, -1, 1])


@pytest.mark.parametrize("seed", range(4))
def test_signed_ranks_beside_all_choices_of_signs(seed):
    values = np.random.default_rng(seed).integers(-3, 5, 9)
    ranks = stats.rankdata(np.abs(values[values != 0]))
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(ranks))]
    observed = ranks[values[values != 0] > 0].sum()
    extreme = np.mean(np.abs(np.array(sums) - ranks.sum() / 2) >= abs(observed - ranks.sum() / 2))
    assert find_p(values) == pytest.approx(min(1, extreme))


@pytest.mark.parametrize("number", [5, 20, 60, 250])
def test_signed_ranks_equal_those_of_scipy(number):
    values = np.random.default_rng(number).normal(0.2, 1, number)
    method = "exact" if number <= 200 else "asymptotic"
    assert find_p(values) == pytest.approx(stats.wilcoxon(values, method=method).pvalue, rel=1e-9)


def test_holm_by_hand():
    # 0.01 x 3, 0.02 x 2 and 0.04 x 1 are 0.03, 0.04 and 0.04. A larger p never becomes smaller than one before it.
    assert correct_p([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert correct_p([0.03, 0.03, 0.9]) == pytest.approx([0.09, 0.09, 0.9])
    assert correct_p([0.5, 0.6]) == [1, 1]
    assert correct_p([]) == []
