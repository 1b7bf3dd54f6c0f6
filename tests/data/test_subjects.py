"""Subjects that the user gives, and warnings of one person or one file in two splits."""

import errno
import os
from pathlib import Path

import pytest

from modules.data.case import Case
from modules.data.inventory import describe_files
from modules.data.subjects import assign_subjects, check_subjects, find_copies, find_related, guess_person
from modules.run.settings import Settings


def _case(name, subject="", volume=None):
    return Case(name, subject or name, (Path(f"imagesTr/{name}.nii.gz"),), Path("label.nii.gz"), volume_id=volume)


CASES = [_case(f"patient{patient}_visit{visit}") for patient in (1, 2) for visit in "ab"]


def test_the_first_group_of_an_expression_is_the_subject():
    assert [case.subject_id for case in assign_subjects(CASES, r"(patient\d+)")] == ["patient1", "patient1", "patient2", "patient2"]
    # A name that lacks it is looked for in the file's name.
    assert assign_subjects([_case("a")], r"^(\w+)\.nii")[0].subject_id == "a"
    assert assign_subjects(CASES, "") == CASES


def test_a_table_gives_subjects_by_case_scan_or_file(tmp_path):
    table = tmp_path / "subjects.CSV"
    table.write_text("\ufeffage;Case;Subject\n50;a; anna \n50;b.nii.gz;bea\n50;scan;cleo\n")
    cases = [_case("a"), _case("b"), _case("c", volume="scan")]
    assert [case.subject_id for case in assign_subjects(cases, str(table))] == ["anna", "bea", "cleo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected a table in .*Received: an empty file"),
        ("case|subject\na|b\n", r"Expected the columns case,subject in .*Received: case\|subject"),
        ("case,subject\na,\n", "Expected a case and its subject in each row of .*Received: 'a','' in row 2"),
        ("case,subject\na,b\na,c\n", "Expected one subject of a in .*Received: b and c"),
        ("case,subject\nother,b\n", r"Expected the subject of every case .*none for a \(imagesTr/a.nii.gz\), and 1 of 1 cases"),
        ("case,subject\n\xff,b\n", "Expected a table of UTF-8 text"),
    ],
)
def test_a_table_that_is_wrong(tmp_path, text, message):
    table = tmp_path / "subjects.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        assign_subjects([_case("a")], str(table))


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        ("(p", r"Expected a regular expression or a .csv file for `subjects`. Received: '\(p' "),
        (r"p\d+", "Expected a group in the regular expression of `subjects`"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_settings(subjects, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_subjects(subjects)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Settings("msd", subjects=subjects)
    with pytest.raises(ValueError, match="Received: none for patient1_visita"):
        assign_subjects(CASES, "(case)")


@pytest.mark.parametrize(
    ("names", "person"),
    [
        (("patient3_visita", "patient3_visitb", "patient3_visit_2", "patient3-week12", "patient3_baseline_T2", "patient3"), "patient3"),
        (("p01", "p01_2019", "p01_20190304", "p01_2019-03-04", "p01b", "p01_2"), "p01"),
        (("sub-AB_ses-1", "sub-AB_ses-pre", "sub-AB"), "sub-AB"),
        (("OAS1_0001_MR1", "OAS1_0001_MR2"), "OAS1_0001"),
        (("p7_day3_T1w", "p7_day_12_T1w"), "p7_T1w"),
        (("patient001_frame01", "patient001_frame12", "patient001"), "patient001"),
        (("s01v1", "s01v2", "s01t0", "s01"), "s01"),
        (("Patient30VisitA", "Patient30VisitB", "Patient30Week12"), "Patient30"),
        (("visit1_p3", "visit_2_p3", "baseline_p3", "t0-p3"), "p3"),
    ],
)
def test_a_persons_name_is_that_of_all_visits(names, person):
    found = {guess_person(name) for name in names}
    assert found <= {person, f"{person}_T2"}
    assert person in found


@pytest.mark.parametrize(
    "name",
    [
        "hippocampus_001",
        "case_2001",
        "BraTS20_Training_001",
        "IBSR_07",
        "patient_005",
        "TCGA_CS_4941",
        "la_003",
        "study1_p3",
        "9f3d1",
        "scan_12",
    ],
)
def test_a_name_of_one_person_stays(name):
    assert guess_person(name) == name


def test_one_person_in_two_splits_is_warned_of_by_both_files():
    splits = {"train": [CASES[0], CASES[2]], "validate": [CASES[3]], "test": [_case("patient9")]}
    (line,) = find_related(splits)
    assert line.startswith("warning: patient2_visita (train, imagesTr/patient2_visita.nii.gz) and patient2_visitb (validate, imagesTr/")
    assert find_related({"train": CASES[:2], "test": CASES[2:]}) == []
    # Names that would make all cases one person are the data set's.
    assert find_related({"train": [_case("set1_a")], "test": [_case("set1_b")]}) == []
    many = [[_case(f"patient{number}_visit{visit}") for number in range(14)] for visit in "ab"]
    lines = find_related({"train": many[0], "test": many[1]})
    assert len(lines) == 11
    assert lines[-1] == "warning: the same holds for 4 more: patient10, patient11, patient12, patient13"


@pytest.mark.parametrize(
    ("train", "test", "person"),
    [
        (("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"), ("BraTS-GLI-00001-001", "BraTS-GLI-00003-000"), "BraTS-GLI-00001"),
        (("Case01_10", "Case02_10", "Case02_20"), ("Case01_20", "Case03_10"), "Case01"),
        (("P1", "p2"), ("p1", "p3"), "P1"),
    ],
)
def test_endings_that_many_names_share_are_visits(train, test, person):
    (line,) = find_related({"train": [_case(name) for name in train], "test": [_case(name) for name in test]})
    assert f"warning: {train[0]} (train, " in line
    assert f" and {test[0]} (test, " in line
    assert f"seem to be of one subject, {person}, by their names" in line


def test_endings_that_differ_from_name_to_name_are_people():
    sites = [_case(f"site{number // 5}-{number:03d}") for number in range(20)]
    assert find_related({"train": sites[::2], "test": sites[1::2]}) == []
    # One ending for each name says nothing.
    assert find_related({"train": [_case("001_T1"), _case("002_T1")], "test": [_case("003_T1")]}) == []


def test_a_label_of_two_cases_is_warned_of(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "l.nii").touch()
    cases = [Case(name, name, (tmp_path / "a.nii",), tmp_path / "l.nii") for name in "ab"]
    assert describe_files(tmp_path, {"train": cases[:1], "test": cases[1:]})[1:] == [
        f"warning: {tmp_path / 'l.nii'} is the label of 2 cases: a, b. Check that it fits all of them."
    ]


def test_folders_that_cannot_be_read_are_said_and_links_to_themselves_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.nii").symlink_to(tmp_path / "a.nii")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert describe_files(tmp_path, {"train": []}) == [
        f"files: 1 found below {tmp_path}, 0 used, 1 left out",
        "left out in .: 1 (a.nii)",
        f"not counted: {tmp_path / 'lost+found'}, Permission denied",
    ]


def test_an_image_of_two_splits_is_warned_of_by_both_files():
    splits = {"train": [_case("a"), _case("b")], "validate": [_case("c")], "test": [_case("d")]}
    hashes = {"train": [["1", "9"], ["2", "9"]], "validate": [["3", "9"]], "test": [["2", "8"]]}
    assert find_copies(splits, hashes) == [
        "warning: imagesTr/b.nii.gz (train) and imagesTr/d.nii.gz (test) are equal to the byte, so that scores are not of unseen scans. "
        "Remove one."
    ]
    # Within a split a copy is no leak, but it counts twice.
    assert find_copies(splits, hashes | {"train": [["1", "9"], ["1", "9"]]}) == [
        "warning: 1 image(s) count twice: imagesTr/a.nii.gz and imagesTr/b.nii.gz (train) are equal to the byte. Remove one."
    ]
    # Equal labels, such as those without any foreground, are no leak.
    assert find_copies(splits, hashes | {"test": [["4", "9"]]}) == []


def test_files_are_counted_and_those_left_out_are_named(tmp_path):
    for name in ("imagesTr/a.nii.gz", "imagesTr/b.nii", "labelsTr/a.nii.gz", "imagesTs/c.NII.GZ", ".hidden/d.nii", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    case = Case("a", "a", (tmp_path / "imagesTr/a.nii.gz",), tmp_path / "labelsTr/a.nii.gz")
    assert describe_files(tmp_path, {"train": [case]}) == [
        f"files: 4 found below {tmp_path}, 2 used, 2 left out",
        "left out in imagesTr: 1 (b.nii)",
        "left out in imagesTs: 1 (c.NII.GZ)",
    ]


def test_a_table_that_has_moved_is_missed_when_it_is_read():
    # The settings of a run are read although its table has moved: another place may be given.
    assert Settings("msd", subjects="nowhere.csv").subjects == "nowhere.csv"
    with pytest.raises(FileNotFoundError, match="Expected a table in nowhere.csv for `subjects`. Received: no such file"):
        assign_subjects(CASES, "nowhere.csv")
