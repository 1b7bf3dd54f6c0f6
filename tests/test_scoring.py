"""Exact scores, by hand."""

import csv
import math

import numpy as np
import pytest

from modules.scoring import format_summary, score_case, score_predictions, summarise, write_scores
from modules.volume import Case, Volume

NAMES = ("background", "a", "b")


def _score(label, prediction, names=NAMES, case="x", level="slice"):
    return score_case(np.array(label), np.array(prediction), names, level=level, case=case)


def test_by_hand():
    a, b = _score([[1, 1, 1, 0]], [[1, 1, 0, 2]])
    assert (a.dice, a.iou, a.voxels, a.reference_voxels) == (2 * 2 / 5, 2 / 3, 2, 3)
    # b is predicted but not there: 0, not left out.
    assert (b.dice, b.iou, b.voxels, b.reference_voxels) == (0, 0, 1, 0)


def test_class_absent_from_both_is_nan_and_missed_is_zero():
    a, b = _score([[1, 1]], [[0, 0]])
    assert a.dice == 0
    assert math.isnan(b.dice)
    assert math.isnan(b.iou)


def test_summary_leaves_out_the_absent_and_counts_them():
    scores = [*_score([[1]], [[1]], case="x"), *_score([[1]], [[0]], case="y")]
    summary = summarise(scores)["slice"]
    assert summary["a"] == {"dice": 0.5, "iou": 0.5, "cases": 2, "absent": 0}
    assert summary["b"]["absent"] == 2
    assert math.isnan(summary["b"]["dice"])
    assert summary["mean"]["dice"] == 0.5
    assert any(line.split() == ["a", "0.5000", "0.5000", "2", "0"] for line in format_summary(summarise(scores)))


def test_slices_of_one_scan_are_also_scored_as_one_volume():
    def item(volume_id, index, label, prediction):
        case = Case(f"{volume_id}_{index}", "s", (), volume_id=volume_id, slice_index=index)
        probabilities = np.eye(3)[np.array(prediction)]
        return case, Volume(np.zeros((1, 2, 1)), None, (1.0, 1.0)), np.array(label), probabilities

    predicted = [item("v", 0, [[1, 1]], [[1, 0]]), item("v", 1, [[0, 0]], [[1, 0]]), item("w", 0, [[1, 1]], [[1, 1]])]
    scores = [score for score in score_predictions(predicted, NAMES) if score.class_name == "a"]
    assert [(score.level, score.case, score.dice) for score in scores] == [
        ("slice", "v_0", pytest.approx(2 / 3)),
        ("slice", "v_1", 0),
        ("volume", "v", pytest.approx(2 * 1 / 4)),
        ("slice", "w_0", 1),
        ("volume", "w", 1),
    ]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape. Received: \(1, 2\) and \(1, 1\) for x"):
        _score([[0, 0]], [[0]])


def test_table_on_disk(tmp_path):
    write_scores(tmp_path / "scores.csv", _score([[1, 1]], [[1, 0]]))
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "level": "slice", "case": "x", "class": "a", "dice": repr(2 / 3), "iou": "0.5", "voxels": "1", "reference_voxels": "2",
    }  # fmt: skip
    assert rows[1]["dice"] == "nan"
