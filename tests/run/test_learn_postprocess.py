"""The search for steps of postprocessing: what decides, and that it counts what the steps really do."""

import math

import numpy as np
import pytest

from modules.data.case import Case, Predicted, Volume
from modules.predict.postprocess import FOREGROUND, Postprocessing, Step
from modules.run.learn_postprocess import learn, tally_cases
from modules.score_tables import summarise
from modules.scoring import score_predictions

NAMES = ("background", "a", "b")


def _draw(text):
    """Makes a label map of rows of digits; a dot is background."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in text.split()], np.uint8)


def _make(label, prediction, number=0, volume_id=None, spacing_mm=None):
    spacing_mm = spacing_mm or (1.0,) * label.ndim
    image = Volume(np.zeros((*label.shape, 1), np.float32), np.eye(4), spacing_mm)
    return Predicted(Case(f"case {number}", f"subject {number}", (), None, None, volume_id), image, label, prediction)


def _learn(items, names=NAMES):
    return learn(tally_cases(items, len(names)), names)


LABEL = _draw("1111.... 1111.... ........ ....2222 ....2222")
SPECK = _draw("1111...1 1111.... ........ ....2222 ....2222")


def test_the_largest_object_is_kept_where_that_raises_the_dice():
    lesson = _learn([_make(LABEL, SPECK), _make(LABEL, LABEL, 1)])
    assert lesson.postprocessing == Postprocessing((Step("keep_largest", 1),))
    # Dice 2 * 8 / (9 + 8) in one of two cases.
    assert lesson.before == {"slice": {"a": pytest.approx((16 / 17 + 1) / 2), "b": 1.0}}
    assert lesson.after == {"slice": {"a": 1.0, "b": 1.0}}
    assert lesson.describe() == [
        "postprocessing, decided by 2 validation case(s) of 2 subject(s); so few may mislead:",
        "  keep the largest object of a (changes 1 of them)",
        "  validation Dice by slice: a 0.9706 -> 1.0000, b 1.0000 -> 1.0000",
    ]
    assert lesson.to_json() == {
        "steps": [{"step": "keep the largest object of a", "changed_cases": 1}],
        "validation_cases": 2,
        "validation_subjects": 2,
        "dice_before": lesson.before,
        "dice_after": lesson.after,
    }


def test_many_slices_of_few_subjects_are_told_to_be_few():
    few, many = (_learn([_make(LABEL, SPECK, number % subjects) for number in range(6)]) for subjects in (2, 5))
    assert few.describe()[0] == "postprocessing, decided by 6 validation case(s) of 2 subject(s); so few may mislead:"
    assert many.describe()[0] == "postprocessing, decided by 6 validation case(s) of 5 subject(s):"


def test_no_step_is_kept_that_makes_any_class_worse():
    label = _draw("11112222 11112222 ........ ........ .......2")
    prediction = _draw("11112222 11112222 ........ 1111.... 1111...2")
    # Of the whole foreground the largest object takes class 1 from 2 * 8 / (16 + 8) to 1, and class 2 from 1 to 2 * 8 / (8 + 9). The mean
    # rises, but class 2 falls.
    lesson = _learn([_make(label, prediction)])
    assert lesson.postprocessing == Postprocessing((Step("keep_largest", 1),))
    assert lesson.after == {"slice": {"a": 1.0, "b": 1.0}}
    # In the second case class 1 has two objects of its own. They weigh more than the speck, whose size none of them has.
    two = _draw("1111..11 1111..11 ........ ....2222 ....2222")
    lesson = _learn([_make(LABEL, SPECK), _make(two, two, 1)])
    assert lesson.postprocessing == Postprocessing()
    assert lesson.before == lesson.after
    assert lesson.describe() == ["postprocessing: none, because no step raises the Dice of the 2 validation case(s)"]


def test_the_whole_foreground_is_one_step_where_both_classes_have_specks():
    label = _draw("1111.... 11112222 ....2222 ........ ........")
    prediction = _draw("1111.... 11112222 ....2222 ........ 2......1")
    assert _learn([_make(label, prediction)]).postprocessing == Postprocessing((Step("keep_largest", FOREGROUND),))
    # One class is its own foreground.
    assert _learn([_make(np.minimum(label, 1), np.minimum(prediction, 1))], NAMES[:2]).postprocessing == Postprocessing(
        (Step("keep_largest", 1),)
    )
    # No label holds class 2. Nobody can say that it does not suffer, so it is left alone.
    lesson = _learn([_make(label * (label == 1), prediction)])
    assert lesson.postprocessing == Postprocessing((Step("keep_largest", 1),))
    assert list(lesson.after["slice"]) == ["a"]


def test_small_objects_go_below_a_part_of_the_classes_usual_size():
    # Two objects of 200 voxels of 2 mm3 in each label; specks of 1 and of 8 voxels. 3 % of 800 mm3 are 24 mm3.
    label = np.zeros((12, 12, 12), np.uint8)
    label[:5, :5, :8] = label[7:, 7:, :8] = 1
    prediction = label.copy()
    prediction[0, 10, 10] = prediction[5:7, 5:7, 10:] = 1
    items = [_make(label, prediction, number, spacing_mm=(0.5, 2.0, 2.0)) for number in range(2)]
    # 3 % remove 8 voxels of 16 mm3 too, and 10 % no more than that.
    assert _learn(items, NAMES[:2]).postprocessing == Postprocessing((Step("remove_small", 1, 24.0),))


def test_a_speck_in_an_empty_slice_counts_as_in_the_scores():
    empty, label = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    label[:10], empty_with_speck = 1, empty.copy()
    empty_with_speck[3, 3] = 1
    items = [_make(label, label, 0, "scan"), _make(empty, empty_with_speck, 1, "scan"), _make(empty, empty, 2, "scan")]
    lesson = _learn(items, NAMES[:2])
    # 0.3 % of 200 pixels are less than one pixel, 1 % are two. A slice without the class is then left out, where it had 0 before.
    assert lesson.postprocessing == Postprocessing((Step("remove_small", 1, 2.0),))
    assert lesson.before == {"slice": {"a": 0.5}, "volume": {"a": pytest.approx(400 / 401)}}
    assert lesson.after == {"slice": {"a": 1.0}, "volume": {"a": 1.0}}


def test_a_step_that_is_good_for_slices_but_not_for_their_scan_is_refused():
    # Three slices lose a speck each, and a fourth a half: for slices the largest object is better, for the scan it is worse.
    label, speck, halves = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    halves[:9], halves[11:] = 1, 1
    label[:1, :2] = 1
    speck[:1, :2], speck[10, 10] = 1, 1
    items = [_make(label, speck, number, "scan") for number in range(6)] + [_make(halves, halves, 6, "scan")]
    before = [score.dice for score in score_predictions(iter(items), NAMES[:2])]
    Postprocessing((Step("keep_largest", 1),)).apply(changed := halves.copy(), ())
    thinned = [_make(label, label, number, "scan") for number in range(6)] + [_make(halves, changed, 6, "scan")]
    after = [score.dice for score in score_predictions(iter(thinned), NAMES[:2])]
    assert sum(after[:7]) > sum(before[:7])
    assert after[7] < before[7]
    assert not any(step.kind == "keep_largest" for step in _learn(items, NAMES[:2]).postprocessing.steps)


def test_holes_are_filled_after_what_lies_in_them_is_gone():
    label = np.ones((9, 9), np.uint8)
    label[8] = 2
    prediction = label.copy()
    # A speck of class 2 and a hole, each enclosed by class 1.
    prediction[2, 2], prediction[5, 4:6] = 2, 0
    lesson = _learn([_make(label, prediction)])
    assert lesson.postprocessing == Postprocessing((Step("keep_largest", 2), Step("fill_holes", 1)))
    assert lesson.after == {"slice": {"a": 1.0, "b": 1.0}}


def test_a_rise_of_next_to_nothing_is_no_reason():
    label = np.zeros((200, 200), np.uint8)
    label[:150] = 1
    prediction = label.copy()
    prediction[190, 190] = 1
    # Dice rises by 1 / 60,001.
    assert _learn([_make(label, prediction)], NAMES[:2]).postprocessing == Postprocessing()


def test_voxels_that_nobody_judges_do_not_count():
    # The label says "ignore" where the speck is. 255 is no class.
    label = LABEL.copy()
    label[:2, 6:] = 255
    assert _learn([_make(label, SPECK)]).postprocessing == Postprocessing()
    assert _learn([_make(label, SPECK)]).before == {"slice": {"a": 1.0, "b": 1.0}}


def test_nothing_is_learnt_of_nothing():
    lesson = _learn([])
    assert (lesson.postprocessing, lesson.before, lesson.after) == (Postprocessing(), {}, {})
    assert _learn([_make(LABEL * 0, SPECK)]).postprocessing == Postprocessing()
    assert _learn([_make(LABEL, LABEL * 0)]).after == {"slice": {"a": 0.0, "b": 0.0}}


@pytest.mark.parametrize("rank", [2, 3])
def test_what_the_search_counts_is_what_the_steps_do(rank):
    """On noisy maps, the Dice before and after are those of `modules.scoring` on the maps that the steps give."""
    rng, names = np.random.default_rng(rank), ("background", "a", "b", "c")
    items = []
    for number in range(6):
        label = np.zeros((16, 14, 10)[:rank], np.uint8)
        for index in (1, 2, 3):
            low = rng.integers(0, 6, rank)
            label[tuple(slice(start, start + size) for start, size in zip(low, rng.integers(4, 7, rank), strict=True))] = index
        noise = rng.random(label.shape) < 0.12
        prediction = np.where(noise, rng.integers(0, 4, label.shape), label).astype(np.uint8)
        items.append(_make(label, prediction, number, f"scan {number // 3}" if rank == 2 else None, (0.5, 1.5, 2.0)[:rank]))
    maps = [item.prediction.copy() for item in items]
    lesson = _learn(items, names)
    # Both phases of the search had something to do.
    assert {"fill_holes"} < {step.kind for step in lesson.postprocessing.steps}
    for scores, changed in ((lesson.before, False), (lesson.after, True)):
        for item in items if changed else ():
            lesson.postprocessing.apply(item.prediction, item.image.spacing_mm)
        expected = summarise(score_predictions(iter(items), names))
        assert set(scores) == set(expected)
        for level, classes in scores.items():
            for name, dice in classes.items():
                assert math.isclose(dice, expected[level][name]["dice"], rel_tol=1e-12)
        assert changed or all(np.array_equal(item.prediction, before) for item, before in zip(items, maps, strict=True))
    rises = [lesson.after[level][name] - dice for level, classes in lesson.before.items() for name, dice in classes.items()]
    assert min(rises) >= 0
