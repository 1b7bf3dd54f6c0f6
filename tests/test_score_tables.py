"""Tables of scores: written, read back to the last digit, refused, and pooled."""

import csv
import math
from dataclasses import fields, replace

import pytest
from scoring_helpers import draw_blobs, score_arrays

from modules.score_lines import format_scores
from modules.score_tables import estimate_intervals, pool_scores, read_scores, summarise, write_scores
from modules.scoring import Score


def test_table_on_disk(tmp_path):
    write_scores(tmp_path / "scores.csv", score_arrays([[[1, 1]]], [[[1, 0]]], level="volume", spacing_mm=(1, 1, 2)))
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The three distances are 0, 2 and 0. The 95th percentile of the two from the label is 1.9.
    assert list(rows[0].items()) == [
        ("level", "volume"), ("case", "x"), ("class", "a"), ("dice", repr(2 / 3)), ("iou", "0.5"), ("hd95_mm", "1.9"), ("hd_mm", "2.0"),
        ("assd_mm", repr(2 / 3)), ("volume_ml", "0.002"), ("reference_ml", "0.004"), ("voxels", "1"), ("reference_voxels", "2"),
        # Two of three surface voxels coincide. The third is 2 mm away, farther than the edge of a cube of 2 mm3.
        ("nsd", repr(2 / 3)), ("tolerance_mm", repr(2 ** (1 / 3))), ("volume_error_ml", "0.002"), ("volume_error_percent", "50.0"),
        ("volume_bias_ml", "-0.002"), ("lesions", "1.0"), ("found_lesions", "1.0"), ("false_lesions", "0.0"), ("lesion_sensitivity", "1.0"),
        ("lesion_dice", repr(2 / 3)), ("largest_lesion", "1.0"),
    ]  # fmt: skip
    assert rows[1]["dice"] == rows[1]["hd_mm"] == "nan"
    with (tmp_path / "scored_cases.csv").open() as file:
        (case,) = csv.DictReader(file)
    assert (list(case), case["case"], case["subject"], len(case["reference"])) == (["level", "case", "subject", "reference"], "x", "", 12)


def test_tables_are_read_back_to_the_last_digit(tmp_path):
    label, prediction = draw_blobs((28, 24, 20), seed=0)
    names = ("background", 'a, with "commas"', "b", "absent")
    scores = score_arrays(label, prediction, names, level="volume", spacing_mm=(0.9, 1.4, 3.0)) + score_arrays(
        label[0], prediction[0], names
    )
    write_scores(tmp_path / "scores.csv", scores)
    read = read_scores(tmp_path / "scores.csv")
    # NaN is not equal to itself, so we compare representations. They also tell an integer from a float.
    assert list(map(repr, read)) == list(map(repr, scores))
    write_scores(tmp_path / "again.csv", read)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()


def test_tables_of_version_0_1_are_read(tmp_path):
    path = tmp_path / "scores.csv"
    columns = "level,case,class,dice,iou,hd95_mm,hd_mm,assd_mm,volume_ml,reference_ml,voxels,reference_voxels"
    path.write_text(f"{columns}\nvolume,x,a,0.5,0.25,1.0,2.0,0.5,0.002,0.004,2,4\n")
    (score,) = read_scores(path)
    assert (score.dice, score.reference_voxels, score.subject, score.reference) == (0.5, 4, "", "")
    assert all(math.isnan(value) for value in (score.nsd, score.volume_error_ml, score.lesions))
    path.write_text(f"{columns}\nvolume,x,a,0.5,0.25,1.0,2.0,0.5,0.002,0.004,2\n")
    with pytest.raises(ValueError, match="^Expected a level, a case, a class and 9 numbers. Received: .* in line 2 of .*scores.csv. "):
        read_scores(path)


def test_lesions_are_pooled_and_shown_where_a_class_is_one_of_them():
    # Five lesions, one of which is found, and none of two. So the mean over subjects is 1/10, and the pooled share 1/7.
    base = score_arrays([[[1]]], [[[1]]], level="volume", spacing_mm=(1, 1, 1))[0]
    counts = {"x": (5.0, 1.0, 2.0, 0.2), "y": (2.0, 0.0, 0.0, 0.0), "z": (0.0, 0.0, 4.0, math.nan)}
    scores = [
        replace(base, case=case, lesions=one, found_lesions=found, false_lesions=false, lesion_sensitivity=share, largest_lesion=0.5)
        for case, (one, found, false, share) in counts.items()
    ]
    means, intervals = summarise(scores), estimate_intervals(scores, {case: case for case in counts})
    value = means["volume"]["a"]
    assert (value["all_lesions"], value["all_found"], value["all_false"]) == (7, 1, 6)
    assert (value["lesion_sensitivity"], value["pooled_sensitivity"], value["false_lesions"]) == (0.1, 1 / 7, 2)
    # Two of the three subjects have lesions. Drawn twice, they give 2/10, 1/7 or 0.
    pooled = intervals["volume"]["a"]["pooled_sensitivity"]
    assert (pooled["mean"], pooled["low"], pooled["high"], pooled["subjects"]) == pytest.approx((1 / 7, 0, 0.2, 2))
    lines = [" ".join(line.split()) for line in format_scores(means, intervals)]
    assert lines[3] == "lesions of volumes sensitivity [95 %] Dice of found [95 %] false a scan [95 %] found"
    assert lines[4] == "a 0.143 [0.000, 0.200] 1.000 [1.000, 1.000] 2.00 [0.00, 4.00] 1 of 7"
    assert lines[5] == "NSD: surfaces within 1 mm; [95 %]: bootstrap over subjects; all scores: scores.csv"
    whole = [replace(score, largest_lesion=0.95) for score in scores]
    assert not any("lesions" in line for line in format_scores(summarise(whole), intervals))


def test_a_table_without_rows_is_read(tmp_path):
    write_scores(tmp_path / "scores.csv", [])
    assert read_scores(tmp_path / "scores.csv") == []


def test_tables_that_are_no_scores(tmp_path):
    path = tmp_path / "scores.csv"
    with pytest.raises(FileNotFoundError, match="^Expected scores in .*scores.csv. Received: no such file. Give a run that has finished.$"):
        read_scores(path)
    for text, received in (("", "none"), ("case,dice\n", "case,dice")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^Expected the columns level,case,class,dice,.* in .*scores.csv. Received: {received}. "):
            read_scores(path)
    write_scores(path, score_arrays([[1]], [[1]]))
    whole, number = path.read_text(), len(fields(Score)) - 5
    for old, new in (("1.0,1.0", "1.0,high"), ("slice,x", "plane,x"), (",1,1,", ",1,"), (",1,1,", ",1.5,1,")):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=f"^Expected a level, a case, a class and {number} numbers. Received: .* in line 2 of .*"):
            read_scores(path)


def test_runs_are_pooled():
    x, y = (score_arrays([[1, 2]], [[1, 0]], case=case) for case in "xy")
    # A scan may share its name with a slice, because they have different levels.
    volume = [replace(score, level="volume") for score in x]
    assert pool_scores({"first": x, "second": [*y, *volume]}) == [*x, *y, *volume]
    assert pool_scores({}) == []


def test_runs_that_cannot_be_pooled():
    x, y = (score_arrays([[1, 2]], [[1, 0]], case=case) for case in "xy")
    with pytest.raises(ValueError, match="^Expected each case in one run only. Received: y in first and in third. Leave one out.$"):
        pool_scores({"first": y, "second": x, "third": y})
    message = "^Expected the classes a, b in every run. Received: {} in second. Leave it out.$"
    with pytest.raises(ValueError, match=message.format("a")):
        pool_scores({"first": x, "second": y[:1]})
    with pytest.raises(ValueError, match=message.format("none")):
        pool_scores({"first": x, "second": []})
