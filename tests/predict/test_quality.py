"""Judgements by hand: distance, predicted Dice, interval and reasons."""

import json
import math

import numpy as np
import pytest

from modules.predict.doubt import LOGITS, Doubt
from modules.predict.quality import Judgement, Quality, combine, judge_together
from modules.predict.traits import Traits

NAMES = ("background", "a")
THUMBNAIL = np.array([[1.0, *[0.0] * 63]])


def make_quality(**fields):
    """A judgement of one class with two traits, whose limit is a distance of 2."""
    plain = {
        "temperatures": (1.0,),
        "traits": {"volume/a#": (5.0, 0.5), "spacing/#0": (0.0, 0.1)},
        "thumbnail": (tuple(THUMBNAIL[0].tolist()),),
        "limit": 2.0,
        "lines": ((-0.5, 1.0, 1.0), (-0.5, 1.0, 2.0)),
        "errors": (0.5, 1.5),
        "least_dice": (0.6,),
        "cases": 3,
        "copies": 12,
    }
    return Quality(**{**plain, **fields})


def make_doubt(logit=2.125, inside=10):
    """The doubt of a class of which so many voxels are predicted at a logit, and nothing else is probable."""
    counts = np.zeros((1, 2, LOGITS.size))
    counts[0, 1, np.argmin(np.abs(LOGITS - logit))] = inside
    return Doubt(counts)


def make_traits(volume=5.0, spacing=0.0):
    return Traits({"volume/a#": volume, "spacing/#0": spacing}, THUMBNAIL)


def _odds(dice):
    return math.log(dice / (1 - dice))


def test_a_usual_case_by_hand():
    share = 1 / (1 + math.exp(-2.125))
    expected = 2 * share / (1 + share)
    one = make_quality().judge(make_traits(volume=5.5), make_doubt(), NAMES)
    # One spread from the median, of a limit of two.
    assert one.distance == pytest.approx(0.5)
    assert _odds(one.dice[0]) == pytest.approx(_odds(expected) - 0.5)
    assert (_odds(one.low[0]), _odds(one.high[0])) == pytest.approx((_odds(expected) - 1.0, _odds(expected)))
    assert not one.check
    assert one.reasons == ()


def test_an_unusual_case_is_named_and_gets_a_lower_dice_and_a_wider_interval():
    usual = make_quality().judge(make_traits(), make_doubt(), NAMES)
    one = make_quality().judge(make_traits(spacing=0.4), make_doubt(), NAMES)
    assert one.distance == pytest.approx(2)
    assert _odds(one.dice[0]) == pytest.approx(_odds(usual.dice[0]) - 2 * math.log(2))
    assert _odds(one.high[0]) - _odds(one.low[0]) == pytest.approx(3)
    assert one.reasons == ("unusual voxel size",)
    low = make_quality(least_dice=(0.8,)).judge(make_traits(spacing=0.4), make_doubt(), NAMES)
    assert low.reasons == ("unusual voxel size", "predicted Dice of a 0.717, below 0.800")
    # A trait counts for 8 spreads at most, and one that is not known for none.
    assert make_quality().judge(make_traits(spacing=9), make_doubt(), NAMES).distance == pytest.approx(4)
    assert make_quality().judge(make_traits(volume=math.nan), make_doubt(), NAMES).distance == 0


def test_an_interval_that_reaches_the_least_share_reaches_0():
    # Dice of 0 and of half a percent taught the same, so an interval that holds one holds the other.
    low = make_quality(lines=((-6.0, 1.0, 1.0), (-6.0, 1.0, 1.0))).judge(make_traits(), make_doubt(), NAMES)
    assert 0.005 < low.dice[0] < low.high[0]
    assert low.low[0] > 0.005
    lower = make_quality(lines=((-7.8, 1.0, 1.0), (-7.8, 1.0, 1.0))).judge(make_traits(), make_doubt(), NAMES)
    assert 0 == lower.low[0] < lower.dice[0]
    assert make_quality(lines=((3.0, 1.0, 1.0),) * 2).judge(make_traits(), make_doubt(), NAMES).high[0] == 1


def test_the_user_s_own_limit_counts():
    assert make_quality().judge(make_traits(), make_doubt(), NAMES, least_dice=0.99).check
    assert not make_quality(least_dice=(0.99,)).judge(make_traits(), make_doubt(), NAMES, least_dice=0.1).check


def test_a_class_that_is_not_predicted_has_no_predicted_dice():
    one = make_quality().judge(make_traits(), make_doubt(inside=0), NAMES)
    assert np.isnan(one.dice[0])
    assert not one.check


def test_a_class_that_good_cases_have_and_this_one_lacks_is_a_reason_to_look():
    def judge(spread, **fields):
        quality = make_quality(traits={"volume/a#": (5.0, spread), "spacing/#0": (0.0, 0.1)}, **fields)
        # Postprocessing removed the class: its probabilities still expect a high Dice of it.
        return quality.judge(Traits({"volume/a#": 0.0, "pieces/a#": math.nan, "spacing/#0": 0.0}, THUMBNAIL), make_doubt(), NAMES)

    one = judge(0.5, limit=9.0)
    assert one.distance < 1
    assert one.reasons == ("no a found, which is rare",)
    assert np.isnan([one.dice[0], one.low[0], one.high[0]]).all()
    # Many good cases lack this class, so that its volume spreads widely.
    assert not judge(2.0, limit=9.0).check


def test_the_largest_group_is_the_distance():
    spreads = {"spacing/#0": 3.0, "spacing/#1": 1.0, "volume/a#": 2.0, "volume/b#": -4.0, "shape/b#": 0.0, "turn/#0": -2.0}
    # Image: sqrt((9 + 1) / 2) = 2.24; a: 2; b: sqrt(16 / 2) = 2.83; orientation: 2.
    assert combine(spreads) == pytest.approx(math.sqrt(8))
    assert combine({}) == 0


def test_it_survives_json():
    quality = make_quality()
    assert Quality.from_json(json.loads(json.dumps(quality.to_json()))) == quality


def test_an_ensemble_wants_a_look_where_half_of_its_models_do():
    def make(dice, reasons, distance):
        return Judgement(np.array([dice]), np.array([dice - 0.1]), np.array([dice + 0.1]), distance, reasons)

    good, bad, worse = make(0.9, (), 0.5), make(0.7, ("unusual voxel size",), 1.5), make(0.5, ("unusual voxel size", "size of a"), 3.0)
    assert judge_together([]) is None
    assert judge_together([bad]) is bad
    joined = judge_together([good, bad, worse])
    assert joined is not None
    assert joined.dice[0] == pytest.approx(0.7)
    assert joined.distance == 1.5
    assert joined.reasons == ("unusual voxel size", "size of a")
    joined = judge_together([good, good, bad])
    assert joined is not None
    assert not joined.check
