"""The classes that a training can learn, that its validation judges, and that its model finds."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_spec

from modules.data.case import Case
from modules.data.preprocess import Preprocessing
from modules.data.regions import IGNORE, Region
from modules.run.classes import (
    check_foreground,
    check_judged,
    describe_classes,
    describe_findings,
    describe_ignored_cases,
    find_classes,
)
from modules.run.fit import _weigh_classes
from modules.scoring import score_case

NAMES = ("background", "liver", "spleen")


def _cases(*classes):
    return [SimpleNamespace(classes=one) for one in classes]


def test_classes_are_those_of_any_label():
    assert find_classes(_cases((0, 2), (0,), (1, 2))) == {0, 1, 2}
    assert find_classes([]) == set()


def test_regions_occur_where_one_of_their_parts_does():
    regions = (Region((1, 2), 1), Region((2,), 2))
    assert find_classes(_cases((0, 1, IGNORE)), regions) == {0, 1}
    assert find_classes(_cases((2, IGNORE)), regions) == {1, 2}
    assert find_classes(_cases((IGNORE,)), regions) == find_classes(_cases((IGNORE,))) == set()
    assert find_classes(_cases((0, 1, IGNORE))) == {0, 1}
    lines = describe_classes(_cases((0, 1)), _cases((0, 2)), NAMES, regions=regions)
    assert "the mean validation Dice of liver, spleen decides" in lines[0][0]
    assert "no training label holds 'spleen'" in lines[1][0]


def test_cases_in_which_every_voxel_is_ignored_are_named():
    cases = [Case(name, name, ()) for name in "abc"]
    splits = {"train": cases, "validate": cases[:1], "test": cases[:2]}
    prepared = {"train": _cases((IGNORE,), (0, IGNORE), (IGNORE,)), "validate": _cases((0,)), "test": _cases((0,), (IGNORE,))}
    assert describe_ignored_cases(splits, prepared) == [
        "train: every voxel of 2 case(s) is ignored, so that they count for nothing: a, c",
        "test: every voxel of 1 case(s) is ignored, so that they count for nothing: b",
    ]


def test_a_training_or_a_validation_of_ignored_voxels_alone_is_refused():
    with pytest.raises(ValueError, match=r"Expected liver, spleen in the training labels of 'd'. Received: only ignored voxels in 1 cases"):
        check_foreground(_cases((IGNORE,)), NAMES, "d")
    check_judged(_cases((IGNORE,), (0, IGNORE)), "d")
    check_judged([], "d")
    with pytest.raises(ValueError, match=r"Expected validation labels of 'd' with voxels that are not ignored. Received: none in 2 case"):
        check_judged(_cases((IGNORE,), (IGNORE,)), "d")


def test_where_every_class_occurs_one_line_says_what_decides():
    lines = describe_classes(_cases((0, 1), (0, 2)), _cases((0, 1, 2)), NAMES)
    assert lines == [("the mean validation Dice of liver, spleen decides which epoch is kept", logging.INFO)]


def test_where_the_last_epoch_is_kept_the_validation_only_measures():
    lines = describe_classes(_cases((0, 1)), _cases((0, 1)), NAMES[:2], keeps_last=True)
    assert lines == [("the last epoch is kept; validation measures liver", logging.INFO)]
    lines = describe_classes(_cases((0, 1)), _cases((0,)), NAMES[:2], keeps_last=True)
    assert lines[-1] == ("no validation label holds any foreground: nobody judges the network before the test", logging.WARNING)


def test_a_class_in_no_training_label_and_one_in_no_validation_label_are_named():
    lines = describe_classes(_cases((0, 1)), _cases((0, 2)), NAMES)
    assert [level for _, level in lines] == [logging.INFO, logging.WARNING, logging.WARNING]
    assert lines[0][0] == "the mean validation Dice of spleen decides which epoch is kept"
    assert "no training label holds 'spleen': the network cannot learn it" in lines[1][0]
    assert "`--target`" in lines[1][0]
    assert "no validation label holds liver" in lines[2][0]


def test_a_validation_without_foreground_is_said():
    lines = describe_classes(_cases((0, 1, 2)), _cases((0,)), NAMES)
    assert len(lines) == 1
    assert "no validation label holds any foreground: the least val_loss decides" in lines[0][0]
    assert lines[0][1] == logging.WARNING


def test_a_training_without_foreground_is_refused():
    check_foreground(_cases((0,), (0, 2)), NAMES, "d")
    with pytest.raises(ValueError, match=r"Expected liver, spleen in the training labels of 'd'. Received: only background in 2 cases"):
        check_foreground(_cases((0,), (0,)), NAMES, "d")


def _score(label, prediction):
    return list(score_case(np.array(label), np.array(prediction), NAMES, level="slice", case="a"))


@pytest.mark.parametrize(
    ("label", "prediction", "said"),
    [
        ([[0, 1], [2, 2]], [[0, 0], [0, 0]], "predicts only background in all test cases. Likely causes: too few epochs"),
        ([[0, 1], [2, 2]], [[0, 1], [1, 1]], "never finds spleen in the test cases"),
        ([[0, 0], [0, 0]], [[0, 1], [0, 0]], "no test label holds any foreground"),
        ([[0, 1], [2, 2]], [[2, 1], [0, 0]], None),
        ([[0, 1], [0, 0]], [[0, 1], [0, 0]], None),
    ],
)
def test_what_a_model_never_finds_is_said(label, prediction, said):
    lines = describe_findings(_score(label, prediction))
    assert len(lines) == (said is not None)
    assert not lines or said in lines[0]
    assert describe_findings([]) == []


def test_a_class_in_no_label_does_not_take_the_weight_of_the_others():
    cases = [
        SimpleNamespace(count_classes=lambda number: np.array([60, 30, 0])),
        SimpleNamespace(count_classes=lambda number: np.array([0, 10, 0])),
    ]
    prepared = SimpleNamespace(
        settings=SimpleNamespace(class_weights="balanced"), spec=make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2}), prepared={"train": cases}
    )
    # 1/60 and 1/40 with a mean of 1: 2/120 and 3/120, so 4/5 and 6/5.
    np.testing.assert_allclose(_weigh_classes(prepared), [0.8, 1.2, 0])


def test_a_region_weighs_by_the_voxels_of_all_its_parts():
    cases = [SimpleNamespace(count_classes=lambda number: np.array([60, 10, 20])[:number])]
    spec = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2, 3: IGNORE}, class_names=NAMES, regions=(Region((1, 2), 1), Region((2,), 2)))
    prepared = SimpleNamespace(settings=SimpleNamespace(class_weights="balanced"), spec=spec, prepared={"train": cases})
    # 1/60, 1/30 and 1/20 with a mean of 1: 1/60, 2/60 and 3/60.
    np.testing.assert_allclose(_weigh_classes(prepared), [0.5, 1, 1.5])


def test_a_dice_that_can_never_be_reached_is_said():
    lines = describe_classes(_cases((0, 1, 2)), _cases((0, 2)), NAMES, stop_at_dice=0.5)
    assert ("`--stop-at-dice` never stops this training: no validation label measures liver", logging.WARNING) in lines
    lines = describe_classes(_cases((0, 1, 2)), _cases((0, 1, 2)), NAMES, stop_at_dice=0.5)
    assert len(lines) == 1
