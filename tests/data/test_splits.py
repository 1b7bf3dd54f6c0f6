"""Cross-validation: the subjects of each fold, the intervals of the means, and their picture."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy import stats

from modules.data.case import Case
from modules.data.colours import PALETTE
from modules.data.splits import split_folds
from modules.reports.folds import draw_folds
from modules.score_lines import format_scores
from modules.score_tables import estimate_intervals, map_subjects, score_subjects, summarise
from modules.scoring import AVERAGED, Score

NAN = math.nan
BASE = Score("volume", "x", "a", 1.0, 1.0, 1.0, 2.0, 0.5, NAN, NAN, 1, 1)


def _cases(subjects, scans=2, split=None):
    return [
        Case(f"s{subject}_{scan}", f"s{subject}", (), Path("label.nii.gz"), split) for subject in range(subjects) for scan in range(scans)
    ]


def _subjects(cases):
    return {case.subject_id for case in cases}


def _all_folds(cases, folds, fraction=0.1, seed=42):
    return [split_folds(cases, folds, fold, fraction, seed)[0] for fold in range(folds)]


def _dice(*values, class_name="a", **changes):
    """Makes one score for each subject, s0 and on, and the mapping from cases to subjects."""
    scores = [replace(BASE, case=f"s{i}", class_name=class_name, dice=value, **changes) for i, value in enumerate(values)]
    return scores, {f"s{i}": f"s{i}" for i in range(len(values))}


def _interval(scores, subjects, name="a", key="dice", seed=42):
    value = estimate_intervals(scores, subjects, seed)["volume"][name][key]
    return value["mean"], value["low"], value["high"], value["subjects"]


# ------------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("subjects", "folds", "fraction"), [(4, 2, 0.1), (3, 3, 0.3), (10, 5, 0.1), (11, 3, 0.2), (23, 10, 0.1), (5, 5, 0.5)]
)
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_every_subject_is_tested_once_and_in_one_split_only(subjects, folds, fraction, seed):
    cases = _cases(subjects)
    tested, wanted = Counter(), max(1, round(fraction * subjects))
    for splits in _all_folds(cases, folds, fraction, seed):
        assert list(splits) == ["train", "validate", "test"]
        assert sum(map(len, splits.values())) == len(cases)
        counts = [len(_subjects(members)) for members in splits.values()]
        assert sum(counts) == subjects == len(set().union(*map(_subjects, splits.values())))
        assert counts[0] >= 1
        assert counts[1] == wanted
        assert counts[2] in (subjects // folds, -(-subjects // folds))
        tested.update(case.case_id for case in splits["test"])
    assert tested == Counter(case.case_id for case in cases)


def test_a_case_of_two_official_splits_is_not_tested_twice():
    cases = [*_cases(4), replace(_cases(1)[0], split="test", image_paths=(Path("b.nii"),))]
    with pytest.raises(ValueError, match="Expected each case once for a cross-validation. Received: s0_0 twice, "):
        split_folds([replace(case, image_paths=(Path("a.nii"),)) if case.split is None else case for case in cases], 2, 0)


def test_nobody_is_held_out_for_validation_twice():
    held_out = Counter(subject for splits in _all_folds(_cases(20), 5) for subject in _subjects(splits["validate"]))
    assert len(held_out) == 10
    assert set(held_out.values()) == {1}


@pytest.mark.parametrize("seed", [0, 7])
def test_folds_do_not_depend_on_the_order_of_cases(seed):
    cases = _cases(13)
    shuffled = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    for ours, theirs in zip(_all_folds(cases, 4), _all_folds(shuffled, 4), strict=True):
        assert {name: {case.case_id for case in members} for name, members in ours.items()} == {
            name: {case.case_id for case in members} for name, members in theirs.items()
        }
        # Each split keeps the order of the cases it was made from.
        assert theirs["train"] == [case for case in shuffled if case in ours["train"]]


def test_another_seed_is_another_split():
    first, again, other = (_all_folds(_cases(12), 3, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first["test"] != other["test"]


def test_unlabelled_cases_and_the_official_split_are_left_out_of_account():
    cases = [*_cases(4, split="train"), *(replace(case, case_id=f"t{case.case_id}", subject_id="t") for case in _cases(2, split="test"))]
    cases.append(Case("blind", "u", (), None, "test"))
    tested = [split_folds(cases, 5, fold) for fold in range(5)]
    assert sorted(subject for splits, _ in tested for subject in _subjects(splits["test"])) == ["s0", "s1", "s2", "s3", "t"]
    assert tested[1][1] == [
        "1 case(s) without a label are left out.",
        "The official split is ignored: its 5 subjects are divided into 5 folds.",
        "fold 1 of 5, from 0: 1 of 5 subjects are tested, 1 of the other 4 held out for validate, drawn with seed 42.",
    ]
    assert len(split_folds(_cases(4), 2, 0)[1]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 1, 0), "Expected `folds` of 2 or more. Received: 1. Choose more, or leave it out to train once."),
        ((5, 5, 5), "Expected `fold` from 0 to 4. Received: 5. The first fold is 0."),
        ((5, 5, -1), "Expected `fold` from 0 to 4. Received: -1. The first fold is 0."),
        ((3, 4, 0), "Expected at least one labelled subject for each of 4 folds. Received: 3. Choose fewer folds."),
        ((0, 2, 0), "Expected at least one labelled subject for each of 2 folds. Received: 0. Choose fewer folds."),
        (
            (2, 2, 0),
            "Expected more than 1 subject(s) beside the test to hold 1 out for validate. Received: 1. "
            "Add subjects, or choose more folds or a smaller `validate_fraction`.",
        ),
        (
            (10, 2, 1, 0.5),
            "Expected more than 5 subject(s) beside the test to hold 5 out for validate. Received: 5. "
            "Add subjects, or choose more folds or a smaller `validate_fraction`.",
        ),
    ],
)
def test_what_cannot_be_divided(arguments, message):
    subjects, *rest = arguments
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        split_folds(_cases(subjects), *rest)


# ----------------------------------------------------------------------------------------------------------------- subjects


def test_subjects_of_cases_and_of_the_scans_that_slices_make_up():
    cases = [Case("v_0", "p", (), volume_id="v"), Case("v_1", "p", (), volume_id="v", slice_index=1), Case("w", "q", ())]
    assert map_subjects(cases) == {"v_0": "p", "v_1": "p", "v": "p", "w": "q"}


def test_a_subjects_score_is_the_mean_over_its_cases():
    scores = [
        replace(BASE, case="q1", dice=0.2),
        replace(BASE, case="p1", dice=0.5),
        replace(BASE, case="p2", dice=1.0),
        replace(BASE, case="p3", dice=NAN),
        replace(BASE, case="p1", class_name="b", dice=NAN),
        replace(BASE, case="p1", level="slice", dice=0.25),
    ]
    table = score_subjects(scores, {"p1": "p", "p2": "p", "p3": "p", "q1": "q"}, "dice")
    assert table["slice"] == {"a": {"p": 0.25}}
    assert list(table["volume"]["a"].items()) == [("p", 0.75), ("q", 0.2)]
    # q was not scored for b, and p does not have b. Each class still lists both subjects.
    assert list(table["volume"]["b"]) == ["p", "q"]
    assert all(math.isnan(value) for value in table["volume"]["b"].values())


def test_a_case_without_a_subject():
    with pytest.raises(ValueError, match="^Expected the subject of every case. Received: none for x. Give the cases that were scored.$"):
        estimate_intervals([BASE], {"y": "y"})


# ---------------------------------------------------------------------------------------------------------------- intervals


def test_subjects_alike_leave_no_interval():
    assert _interval(*_dice(0.5, 0.5, 0.5, 0.5)) == (0.5, 0.5, 0.5, 4)


def test_two_subjects_by_hand():
    # Two draws with replacement have the mean 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4. So both tails hold more than 2.5 %.
    assert _interval(*_dice(0.0, 1.0)) == (0.5, 0.0, 1.0, 2)


def test_four_subjects_by_hand():
    # All four draws hit the one with a chance of 1/256, and at least three with 13/256 = 5.1 %. So 97.5 % lie at or below 3/4.
    assert _interval(*_dice(0.0, 0.0, 0.0, 1.0)) == (0.25, 0.0, 0.75, 4)


def test_cases_of_one_subject_do_not_make_it_surer():
    scores, subjects = _dice(0.0, 1.0)
    many = [replace(score, case=f"{score.case}_{i}") for score in scores for i in range(50)]
    assert _interval(many, {score.case: score.case[:2] for score in many}) == _interval(scores, subjects)


def test_few_subjects_have_no_interval_but_a_mean():
    mean, low, high, count = _interval(*_dice(0.7, NAN))
    assert (mean, count) == (0.7, 1)
    assert math.isnan(low)
    assert math.isnan(high)
    value = estimate_intervals(*_dice(NAN, NAN))["volume"]["a"]["dice"]
    assert value["subjects"] == 0
    assert all(math.isnan(value[part]) for part in ("mean", "low", "high"))


def test_a_subject_without_the_class_is_left_out():
    assert _interval(*_dice(0.0, NAN, 1.0, NAN)) == (0.5, 0.0, 1.0, 2)


def test_the_mean_over_classes_draws_subjects_whole():
    # One class loses what the other gains. Their mean never moves if both are drawn together; drawn apart, it would move.
    subjects = _dice(0.0, 1.0, 0.2)[1]
    scores = _dice(0.0, 1.0, 0.2)[0] + _dice(1.0, 0.0, 0.8, class_name="b")[0]
    assert _interval(scores, subjects, "mean") == pytest.approx((0.5, 0.5, 0.5, 3))
    assert _interval(scores, subjects, "a")[2] - _interval(scores, subjects, "a")[1] > 0.5


def test_the_mean_over_classes_is_that_of_their_means():
    scores = _dice(0.0, 1.0)[0] + _dice(0.4, NAN, class_name="b")[0] + _dice(NAN, NAN, class_name="c")[0]
    mean, low, high, count = _interval(scores, _dice(0, 0)[1], "mean")
    # Both subjects together give 0.45. Drawn twice, the first gives (0 + 0.4) / 2, and the second, which lacks b, gives 1.
    assert (mean, low, high, count) == pytest.approx((0.45, 0.2, 1.0, 2))


def test_every_score_has_an_interval_in_its_own_unit():
    scores, subjects = _dice(0.0, 1.0)
    scores = [replace(score, hd95_mm=30 * score.dice, assd_mm=NAN) for score in scores]
    value = estimate_intervals(scores, subjects)["volume"]["a"]
    assert list(value) == [*AVERAGED, "pooled_sensitivity"]
    assert value["hd95_mm"] == {"mean": 15, "low": 0, "high": 30, "subjects": 2}
    assert value["assd_mm"]["subjects"] == 0


def test_a_seed_repeats_whatever_the_order_of_scores():
    scores, subjects = _dice(*np.random.default_rng(3).random(15))
    first = _interval(scores, subjects, seed=1)
    assert _interval(scores[::-1], subjects, seed=1) == first
    # A class beside it draws the same.
    assert _interval(scores + _dice(*[0.1] * 15, class_name="b")[0], subjects, seed=1) == first
    assert _interval(scores, subjects, seed=2) != first


def test_beside_the_t_interval():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        values = rng.normal(0.8, 0.05, 40)
        mean, low, high, _ = _interval(*_dice(*values))
        expected = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values))
        # Percentiles use the standard deviation with N and the normal's 1.96 in place of the t distribution's 2.02.
        assert (high - low) / (expected[1] - expected[0]) == pytest.approx(math.sqrt(39 / 40) * 1.96 / 2.0227, rel=0.05)
        assert mean == pytest.approx(values.mean())
        inside.append(low <= 0.8 <= high)
    assert 0.85 <= np.mean(inside) <= 1


def test_table():
    scores = _dice(0.0, 1.0)[0] + _dice(0.5, 0.5, class_name="b", hd95_mm=NAN, assd_mm=NAN)[0]
    slices = [replace(score, level="slice", hd95_mm=NAN, assd_mm=NAN) for score in scores]
    scores += slices
    table = format_scores(summarise(scores), estimate_intervals(scores, _dice(0, 0)[1]))
    shown = [" ".join(line.split()) for line in table]
    assert shown[0] == "slices, by subject Dice [95 %] IoU subjects absent"
    assert shown[1] == "a 0.500 [0.000, 1.000] 1.000 2 0"
    assert shown[4] == "volumes, by subject Dice [95 %] IoU HD95 mm [95 %] subjects absent"
    assert shown[6] == "b 0.500 [0.500, 0.500] 1.000 nan 2 0"
    assert shown[7] == "mean 0.500 [0.250, 0.750] 1.000 1.00 [1.00, 1.00] 2"
    assert len({len(line) for line in table[:4]}) == len({len(line) for line in table[4:]}) == 1


# ------------------------------------------------------------------------------------------------------------------ picture


def _read(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def _count(picture, colour):
    """Counts the pixels of about this colour; a fifth of the paper shines through the marks."""
    blended = 0.8 * 255 * np.array(to_rgb(colour)) + 0.2 * 255
    return int((np.abs(picture - blended) <= 2).all(axis=-1).sum())


def test_picture_has_a_colour_for_each_fold(tmp_path):
    scores, subjects = _dice(0.2, 0.4, 0.6, 0.8)
    folds = {f"fold {i}": scores[2 * i : 2 * i + 2] for i in range(2)}
    path = draw_folds(tmp_path / "figures" / "folds.png", folds, subjects, title="two folds")
    assert path == tmp_path / "figures" / "folds.png"
    assert [file.name for file in path.parent.iterdir()] == ["folds.png"]
    picture = _read(path)
    assert all(_count(picture, colour) > 40 for colour in PALETTE[:2])
    assert _count(picture, PALETTE[2]) == 0


def test_picture_has_a_row_for_each_class_and_their_mean(tmp_path):
    a, subjects = _dice(0.9, 0.8)
    b = _dice(0.7, NAN, class_name="b")[0]
    c = _dice(NAN, NAN, class_name="c")[0]
    heights = []
    for number, scores in enumerate((a, a + b, a + b + c)):
        path = draw_folds(tmp_path / f"{number}.png", {"only": scores}, subjects, title="rows")
        heights.append(len(_read(path)))
    # A single class has no row for the mean, but two classes have three rows.
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[2] - heights[1]), abs=2)
    assert heights[2] > heights[1]


def test_picture_takes_volumes_where_there_are_any(tmp_path):
    scores, subjects = _dice(0.9, 0.8, 0.7)
    slices = [replace(score, level="slice", dice=0.1) for score in scores]
    pictures = [
        draw_folds(tmp_path / f"{i}.png", {"fold 0": drawn}, subjects, title="x").read_bytes()
        for i, drawn in enumerate((scores, scores + slices, slices))
    ]
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(0.0,), (1.0, 1.0), (NAN,), (NAN, 0.3)])
def test_picture_of_next_to_nothing(tmp_path, values):
    scores, subjects = _dice(*values)
    path = draw_folds(tmp_path / "folds.png", {"fold 0": scores, "fold 1": []}, subjects, title="of $1 and_a ^ long title " * 9)
    assert (_read(path).min(axis=-1) < 100).sum() > 500  # ink


def test_picture_of_no_scores(tmp_path):
    message = r"^Expected `folds` with scores. Received: none in 1 fold\(s\). Give those of finished runs.$"
    with pytest.raises(ValueError, match=message):
        draw_folds(tmp_path / "folds.png", {"fold 0": []}, {}, title="x")
    assert not list(tmp_path.iterdir())
