"""Names of classes: from the user, from tables beside the files, and from the values that labels hold."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from folder_helpers import write

from modules.data.class_tables import choose_classes, is_class_table
from modules.data.label_values import LabelValues, survey_labels
from modules.data.regions import IGNORE, Region

LABELS = [Path("a.nii"), Path("b.nii")]


def _choose(values, given=(), folders=()):
    return choose_classes(LABELS, [LabelValues(tuple(values), 3), LabelValues((0, *values[:1]), 3)], given, folders)


def test_values_are_numbered_where_nothing_names_them():
    classes = _choose([0, 3, 7])
    assert (classes.names, classes.values) == (("background", "class 1", "class 2"), {0: 0, 3: 1, 7: 2})
    assert _choose([0, 255]).values == {0: 0, 255: 1}
    assert _choose([1, 2]).values == {0: 0, 1: 1, 2: 2}
    # So OASIS writes its classes.
    assert _choose([0, 85, 170, 255]).values == {0: 0, 85: 1, 170: 2, 255: 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0], "Expected labels with values above 0. Received: only background in all 2, such as a.nii."),
        ([0, 1, 255], "Expected label values of classes. Received: 255 in a.nii and 1 in a.nii, 3 values in all, as masks have that are"),
        ([0, 254, 255], "as in --classes 254=NAME 255=NAME, or 255=ignore."),
        ([*range(0, 256, 8), 255], "with soft edges"),
        (list(range(300)), "Expected at most 253 classes. Received: 299 values, such as 299 in a.nii"),
    ],
)
def test_values_that_are_no_classes_are_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _choose(values)


def test_names_in_the_order_of_the_values():
    assert _choose([0, 3, 7], ["liver", "tumour"]).names == ("background", "liver", "tumour")
    assert _choose([0, 3, 7], ["Background", "liver", "tumour"]).values == {0: 0, 3: 1, 7: 2}
    for given in (["liver"], ["a", "b", "c"], ["3=a", "b"]):
        with pytest.raises(ValueError, match=r"Expected a name in `classes` for each of the 2 value\(s\) 3, 7 of the labels"):
            _choose([0, 3, 7], given)


def test_values_with_names():
    classes = _choose([0, 1, 2, 41, 255], ["1=background", "2=white", "41=white", "255=ignore", "9=rare"])
    assert classes.names == ("background", "white", "rare")
    assert classes.values == {0: 0, 1: 0, 2: 1, 9: 2, 41: 1, 255: IGNORE}
    with pytest.raises(
        ValueError, match=r"a name in `classes` for every value of the labels. Received: 7 in a.nii \(1 file\(s\)\). Add it"
    ):
        _choose([0, 3, 7], ["3=liver"])
    with pytest.raises(ValueError, match="Expected one name a value in `classes`. Received: 3 twice"):
        _choose([0, 3], ["3=liver", "3=lung"])
    with pytest.raises(ValueError, match="Expected names of a text of 1 to 200 printable characters"):
        _choose([0, 3], ["3=" + "x" * 201])
    with pytest.raises(ValueError, match="Expected 1 to 253 classes beside the background in `classes`. Received: 0"):
        _choose([0, 3], ["3=ignore"])


TABLES = {
    "labels.csv": "value,name\n0,background\n3,liver\n7,tumour\n9,other\n",
    "Labels.tsv": "index\tname\tcolor\n3\tliver\t#ff0000\n7\ttumour\t#00ff00\n",
    "dseg.tsv": "name\tindex\nliver\t3\ntumour\t7\n",
    "classes.csv": "3;liver\n7;tumour\n",
    "label_map.csv": "label,class\n3,liver\n7,tumour\n",
    "itksnap.txt": '# ITK-SNAP\n    0     0    0    0        0  0  0    "Clear Label"\n    3   255    0    0        1  1  1    "liver"\n'
    '    7     0  255    0      0.5  1  1    "tumour"\n',
    "my.label": '3 255 0 0 1 1 1 "liver"\n7 0 255 0 1 1 1 "tumour"\n',
    "LUT.txt": "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n3 liver 1 2 3 0\n7 tumour 4 5 6 0\n",
    "dataset.json": json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 3, "tumour": 7}}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_kind_name_the_values(tmp_path, name):
    path = tmp_path / name
    path.write_text(TABLES[name])
    for classes in (_choose([0, 3, 7], folders=[tmp_path / "nowhere", tmp_path]), _choose([0, 3, 7], [str(path)])):
        assert classes.names[1:] == ("liver", "tumour")
        assert classes.values == {0: 0, 3: 1, 7: 2}
        assert classes.table == path
    # A table that lacks a value is not guessed at.
    with pytest.raises(ValueError, match=r"Received: 8 in a.nii \(1 file\(s\)\)|Received: 8 in a.nii"):
        _choose([0, 3, 8], folders=[tmp_path])


def test_names_of_a_table_that_no_label_has_are_said(tmp_path):
    (tmp_path / "labels.csv").write_text(TABLES["labels.csv"])
    assert _choose([0, 3, 7], folders=[tmp_path]).remarks == (f"1 value(s) that {tmp_path / 'labels.csv'} names are in no label: 9 other",)


def test_tables_that_agree_are_one_and_others_are_refused(tmp_path):
    (tmp_path / "Labels.tsv").write_text(TABLES["Labels.tsv"])
    (tmp_path / "dseg.tsv").write_text(TABLES["dseg.tsv"])
    (tmp_path / "labels.csv").write_text("image,label\na.png,benign\n")
    classes = _choose([0, 3, 7], folders=[tmp_path])
    assert classes.names == ("background", "liver", "tumour")
    assert classes.remarks[0].startswith(f"{tmp_path / 'labels.csv'} names no classes: Expected a table of values and names (index, name)")
    (tmp_path / "dseg.tsv").write_text("name\tindex\nlung\t3\ntumour\t7\n")
    with pytest.raises(ValueError, match=r"Expected one table of classes. Received: .*Labels.tsv and .*dseg.tsv, which differ"):
        _choose([0, 3, 7], folders=[tmp_path])


def test_regions_of_dataset_json_are_kept(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": labels, "regions_class_order": [1, 2]}))
    classes = _choose([0, 1, 2], folders=[tmp_path])
    assert (classes.names, classes.regions) == (("background", "whole", "core"), (Region((1, 2), 1), Region((2,), 2)))
    assert classes.channels == ("T1",)


def test_a_table_is_told_from_names():
    assert is_class_table(["x.csv"])
    assert not is_class_table(["x.csv", "b"])
    assert not is_class_table(["liver"])
    with pytest.raises(FileNotFoundError, match="Expected a table in nowhere.csv"):
        _choose([0, 1], ["nowhere.csv"])


def test_the_values_of_labels_are_read_and_remembered(tmp_path, monkeypatch):
    small = write(tmp_path / "a.png", np.array([[0, 255], [3, 3]], np.uint8))
    real = write(tmp_path / "b.nii.gz", np.array([[[0, 2.0004], [1, 1]], [[0, 0], [70000, 0]]], np.float32))
    expected = [LabelValues((0, 3, 255), 2), LabelValues((0, 1, 2, 70000), 3)]
    assert survey_labels([small, real], tmp_path / "cache") == expected
    monkeypatch.setattr("modules.data.label_values.read_values", lambda path: pytest.fail("read again"))
    assert survey_labels([small, real], tmp_path / "cache") == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 0.5], [1, 1]], np.float32), "Expected a label of whole numbers. Received: 0.5 in .*l.nii"),
        (np.array([[0, np.nan], [1, 1]], np.float32), "Expected a label of whole numbers. Received: nan in .*l.nii"),
        (np.array([[0, -1], [1, 1]], np.int16), "Expected label values from 0 to 16,777,215. Received: -1 in .*l.nii"),
        (np.arange(1200, dtype=np.int16).reshape(30, 40), "Expected a label of at most 1,000 values. Received: more in .*l.nii"),
    ],
)
def test_a_file_that_is_no_label_is_named(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        survey_labels([write(tmp_path / "l.nii", array)])


def test_a_grey_mask_in_three_equal_channels_is_read_and_colours_are_not(tmp_path):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    opaque = np.full((2, 2), 255, np.uint8)
    paths = [write(tmp_path / "a.png", np.dstack([mask] * 3)), write(tmp_path / "b.png", np.dstack([mask] * 3 + [opaque]))]
    assert [survey.values for survey in survey_labels(paths)] == [(0, 255)] * 2
    colours = write(tmp_path / "c.png", np.dstack([mask, mask, opaque]))
    with pytest.raises(ValueError, match=r"Expected a label of one channel. Received: 3 channels in .*c.png. Colours are no classes"):
        survey_labels([colours])


def test_a_file_of_another_kind_is_no_name_of_a_class(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"Expected names in `classes`, or a file ending in .csv, .*json. Received: .*classes.json"):
        _choose([0, 1], [str(path)])
