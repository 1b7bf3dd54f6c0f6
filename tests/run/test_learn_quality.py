"""Judgements learnt from observations made by hand, few and many."""

import numpy as np
import pytest

from modules.data.case import Case, Predicted, Volume
from modules.predict.doubt import LOGITS, Doubt
from modules.predict.engines import NotFiniteError
from modules.predict.quality import Quality
from modules.predict.traits import Traits
from modules.run import learn_quality
from modules.run.learn_quality import LEAST, Observation, learn, observe

NAMES = ("background", "a")
UPRIGHT = np.array([[0.8, 0.6, *[0.0] * 62]])


def _observe(subject, origin, odds, true, unusual=0.0):
    """A case whose 100 predicted voxels lie at a logit, and whose true Dice has the given log odds."""
    counts = np.zeros((1, 2, LOGITS.size))
    counts[0, 1, np.argmin(np.abs(LOGITS - odds))] = 100
    truth = np.zeros((1, 2, LOGITS.size))
    share = 1 / (1 + np.exp(-odds))
    truth[0, :, np.argmin(np.abs(LOGITS - odds))] = 100 * (1 - share), 100 * share
    traits = Traits({"spacing/#0": unusual, "volume/a#": 3.0}, UPRIGHT)
    return Observation(str(subject), origin, traits, Doubt(counts, truth), np.array([1 / (1 + np.exp(-true))]))


def _judge(quality, one):
    return quality.judge(one.traits, one.doubt, NAMES)


def test_many_good_cases_correct_the_expected_dice_and_damaged_ones_teach_the_fall():
    rng = np.random.default_rng(0)
    odds = rng.uniform(1, 3, 40)
    # The true log odds lie 0.5 below what a share of voxels of such odds expects.
    expected = [float(np.log(2 * p / (1 - p))) for p in 1 / (1 + np.exp(-(np.floor(odds * 4) / 4 + 0.125)))]
    good = [_observe(n, "validate", o, e - 0.5 + rng.normal(0, 0.1)) for n, (o, e) in enumerate(zip(odds, expected, strict=True))]
    bad = [_observe(n, "damaged", o, e - 3, unusual=1.0) for n, (o, e) in enumerate(zip(odds, expected, strict=True))]
    quality = learn([*good, *bad], NAMES)
    assert (quality.cases, quality.copies) == (40, 40)
    usual, unusual = (_judge(quality, cases[0]) for cases in (good, bad))
    assert not usual.check
    assert usual.low[0] < good[0].dice[0] < usual.high[0]
    assert np.log(usual.dice[0] / (1 - usual.dice[0])) == pytest.approx(expected[0] - 0.5, abs=0.15)
    assert "unusual voxel size" in unusual.reasons
    assert np.log(unusual.dice[0] / (1 - unusual.dice[0])) == pytest.approx(expected[0] - 3, abs=0.4)
    assert sum(_judge(quality, one).check for one in good) <= 4


def test_one_case_hardly_moves_the_expected_dice_and_gets_a_wide_interval():
    case = _observe("one", "validate", 2.125, 0.0)
    quality = learn([case], NAMES)
    one = _judge(quality, case)
    untaught = case.doubt.expect_dice()[0]
    assert case.dice[0] < one.dice[0] < untaught
    assert one.low[0] < case.dice[0] < one.high[0]
    assert quality.errors[0] > 2
    assert quality.limit > 0


def test_few_subjects_learn_from_training_cases_too():
    good = [_observe(n, "validate", 2.125, 2.0) for n in range(2)]
    seen = [_observe(10 + n, "train", 2.125, 1.0) for n in range(8)]
    with_others, alone = (_judge(learn(cases, NAMES), good[0]).dice[0] for cases in ([*good, *seen], good))
    assert with_others < alone
    many = [_observe(n, "validate", 2.125, 2.0) for n in range(3)]
    assert learn([*many, *seen], NAMES).lines == learn(many, NAMES).lines


def test_a_class_that_is_nowhere_teaches_nothing():
    one = _observe("one", "validate", 2.125, 2.0)
    absent = one._replace(doubt=Doubt(np.zeros_like(one.doubt.counts), np.zeros_like(one.doubt.counts)), dice=np.array([np.nan]))
    quality = learn([absent], NAMES)
    assert (quality.temperatures, quality.least_dice) == ((1.0,), (0.0,))
    assert np.isnan(_judge(quality, absent).dice[0])
    # Nobody knows how wrong a prediction is, so that a sure one may be wrong too.
    sure = _judge(quality, _observe("new", "validate", 2.125, 2.0))
    assert sure.high[0] - sure.low[0] > 0.5


def test_a_damaged_copy_that_cannot_be_computed_is_left_out(monkeypatch, caplog):
    caplog.set_level("INFO", "mri")
    image, calls = Volume(np.ones((4, 4, 1), np.float32), np.eye(4), (1.0, 1.0)), []

    def predict_read(bundles, case, image, options):
        calls.append(case)
        if len(calls) == 2:
            raise NotFiniteError("Expected finite probabilities. Received: NaN from the model.")
        return Predicted(case, image, None, np.zeros((4, 4), np.uint8))

    monkeypatch.setattr(learn_quality, "read_case", lambda case, bundle: (image, np.zeros((4, 4), np.uint8)))
    monkeypatch.setattr(learn_quality, "predict_read", predict_read)
    found = list(learn_quality._predict_damaged(None, [Case("one", "one", ())], 3, 0))
    assert len(calls) == 3
    assert len(found) == 2
    assert caplog.messages == ["a damaged copy is left out (bias field): Expected finite probabilities. Received: NaN from the model."]


@pytest.mark.parametrize(("shape", "most"), [((4, 4), 400), ((4, 4, 4), 100)])
def test_slices_may_teach_more_than_volumes(shape, most, monkeypatch):
    image = Volume(np.zeros((*shape, 1), np.float32), None, (1.0,) * len(shape))
    monkeypatch.setattr(learn_quality, "read_case", lambda case, bundle: (image, None))
    monkeypatch.setattr(learn_quality, "count_windows", lambda bundle, image: 1)
    monkeypatch.setattr(learn_quality, "count_affordable", lambda plan, windows, rank: 10_000)
    assert learn_quality._count_predictions(None, None, [None]) == most


def test_cases_of_all_parts_are_predicted_and_each_damage_is_met(monkeypatch):
    met = []

    def predict(bundles, cases, options):
        yield from (Predicted(case, None, None, None) for case in cases)

    def damaged(bundle, cases, number, seed):
        met.extend(
            (case.case_id for case in cases),
        )
        yield from (Predicted(cases[0], None, None, None) for _ in range(number))

    monkeypatch.setattr(learn_quality, "predict_cases", predict)
    monkeypatch.setattr(learn_quality, "_predict_damaged", damaged)
    monkeypatch.setattr(learn_quality, "_observe", lambda item, bundle, origin: (item.case.case_id, origin))
    validate, train = ([Case(f"{name}{n}", f"{name}{n}", ()) for n in range(number)] for name, number in (("v", 2), ("t", 30)))
    observed = observe(None, validate, train, LEAST)
    assert len(observed) == LEAST
    assert observed[:3] == [("v0", "validate"), ("v1", "validate"), ("t0", "train")]
    assert [origin for _, origin in observed].count("damaged") == 14
    # Two validation subjects are few, so training cases are damaged too.
    assert "t29" in met
    met.clear()
    observed = observe(None, train, validate, LEAST)
    assert [origin for _, origin in observed].count("train") == 2
    assert set(met) == {case for case, origin in observed if origin == "validate"}


def test_a_judgement_says_what_it_was_learnt_from():
    assert isinstance(learn([_observe("one", "validate", 2.125, 2.0)], NAMES), Quality)
