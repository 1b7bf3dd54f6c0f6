"""Tables of scores: written, read back to the last digit, refused, and pooled."""

import csv
from dataclasses import replace

import pytest
from scoring_helpers import draw_blobs, score_arrays

from modules.score_tables import pool_scores, read_scores, write_scores


def test_table_on_disk(tmp_path):
    write_scores(tmp_path / "scores.csv", score_arrays([[[1, 1]]], [[[1, 0]]], level="volume", spacing_mm=(1, 1, 2)))
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The three distances are 0, 2 and 0. The 95th percentile of the two from the label is 1.9.
    assert list(rows[0].items()) == [
        ("level", "volume"), ("case", "x"), ("class", "a"), ("dice", repr(2 / 3)), ("iou", "0.5"), ("hd95_mm", "1.9"), ("hd_mm", "2.0"),
        ("assd_mm", repr(2 / 3)), ("volume_ml", "0.002"), ("reference_ml", "0.004"), ("voxels", "1"), ("reference_voxels", "2"),
    ]  # fmt: skip
    assert rows[1]["dice"] == rows[1]["hd_mm"] == "nan"


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
    whole = path.read_text()
    for old, new in (("1.0,1.0", "1.0,high"), ("slice,x", "plane,x"), (",1,1\n", ",1\n"), (",1,1\n", ",1.5,1\n")):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match="^Expected a level, a case, a class and 9 numbers. Received: .* in line 2 of .*scores.csv. "):
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
