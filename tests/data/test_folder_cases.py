"""Names of cases, and who was scanned, in folders that nobody described."""

from pathlib import Path

import pytest

from modules.data.folder_cases import describe_splits_found, make_cases
from modules.data.folder_layouts import Pair

BY_FILE, BY_FOLDER = "one a file; --subjects tells otherwise", "by folder; --subjects tells otherwise"


def _make(*places, rank=3):
    """Makes cases of paths such as `train:p1/a`: a split, folders, and a name."""
    pairs = []
    for place in places:
        split, _, path = place.rpartition(":")
        *folder, name = path.split("/")
        pairs.append(Pair(name, (Path(f"{place}.nii"),), Path(f"{place}_seg.nii"), folder=tuple(folder), split=split or None))
    return make_cases(pairs, rank)


def _subjects(*places, rank=3):
    named = _make(*places, rank=rank)
    return [case.subject_id for case in named.cases], named.origin


def test_each_file_is_a_subject_where_nothing_tells_more():
    assert _subjects("anna", "ben", "carl") == (["anna", "ben", "carl"], BY_FILE)
    assert _make("anna", "ben").remarks == []
    # Folders of views and batches are no people, nor are two folders.
    assert _subjects("axial/1", "coronal/2", "sagittal/3")[0] == ["1", "2", "3"]
    assert _subjects("batch1/a", "batch2/b", "batch3/c", "batch4/d") == (["a", "b", "c", "d"], BY_FILE)
    assert _subjects("T1/a", "T1/b", "T1/c")[1] == BY_FILE
    assert _subjects("p1/a", "p2/b")[1] == BY_FILE


def test_folders_of_people_are_subjects():
    assert _subjects("p1/a", "p1/b", "p2/a", "p3/a") == (["p1", "p1", "p2", "p3"], BY_FOLDER)
    # A visit is no part of a person, and a site is.
    assert _subjects("s1/p1/visit1/a", "s1/p1/visit2/a", "s1/p2/visit1/a", "s2/p1/visit1/a")[0] == ["s1_p1", "s1_p1", "s1_p2", "s2_p1"]
    assert _subjects("12/a", "7/a", "8/a")[0] == ["12", "7", "8"]


def test_one_name_in_folders_of_visits_is_one_person():
    assert _subjects("week1/anna", "week2/anna", "week1/ben") == (["anna", "anna", "ben"], BY_FILE)
    assert [case.case_id for case in _make("week1/anna", "week2/anna").cases] == ["week1_anna", "week2_anna"]


def test_names_of_bids_are_subjects():
    names = ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w"]
    assert _subjects(*names) == (["sub-01", "sub-01", "sub-02"], "sub-... in the names")
    assert _subjects("sub-A1/x", "sub-A1/y", "sub-B/x")[0] == ["sub-A1", "sub-A1", "sub-B"]


def test_slices_of_a_scan_are_of_one_person():
    names = [f"p{person}_slice_{index}" for person in range(3) for index in range(2)]
    named = _make(*names, rank=2)
    assert [case.subject_id for case in named.cases] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert [(case.volume_id, case.slice_index) for case in named.cases[:2]] == [("p0", 0), ("p0", 1)]
    assert named.remarks == []
    # The same names of volumes are those of visits, and a beginning without a number is the data set's.
    assert _subjects(*names)[0] == names
    named = _make("benign_1", "benign_2", "malignant_1", "normal_1", "normal_2", rank=2)
    assert [case.subject_id for case in named.cases][:2] == ["benign_1", "benign_2"]
    assert [case.volume_id for case in named.cases] == [None] * 5
    assert named.remarks == [
        "warning: each picture counts as a person of its own. If several are of one person, say so by --subjects, or scores are not of "
        "unseen people."
    ]


def test_one_name_in_two_splits_is_two_cases_and_said():
    named = _make("train:1", "train:2", "test:1")
    assert [(case.case_id, case.subject_id) for case in named.cases] == [
        ("train_1", "train_1"),
        ("train_2", "train_2"),
        ("test_1", "test_1"),
    ]
    assert named.remarks[0].startswith("warning: 1 name(s) are in several splits and taken for different people: 1. If they are not")
    assert describe_splits_found(named.cases) == "train 2, test 1"
    assert describe_splits_found(_make("a").cases) == ""
    # A person's folder in two splits stays one person, whom the split then keeps in the later one.
    assert _subjects("train:p1/a", "train:p2/a", "train:p3/a", "test:p1/a")[0] == ["p1", "p2", "p3", "p1"]


def test_slices_of_one_name_in_two_splits_keep_their_scan_apart():
    named = _make(*(f"{split}:p{person}_{index}" for split in ("train", "test") for person in range(3) for index in range(2)), rank=2)
    assert {case.volume_id for case in named.cases} == {f"{split}_p{person}" for split in ("train", "test") for person in range(3)}
    assert {case.subject_id for case in named.cases} == {"p0", "p1", "p2"}


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("x/a", "y/b"), ["a", "b"]),
        (("x/a", "y/a"), ["x_a", "y_a"]),
        (("x/x_a", "y/x_a"), ["x_a", "y_x_a"]),
    ],
)
def test_names_are_as_short_as_they_can_be(places, names):
    assert [case.case_id for case in _make(*places).cases] == names


def test_known_subjects_stay():
    pairs = [Pair(name, (Path(name),), Path(f"{name}_seg"), subject="s") for name in "ab"]
    named = make_cases(pairs, 3)
    assert ({case.subject_id for case in named.cases}, named.origin) == ({"s"}, "as the layout says")
