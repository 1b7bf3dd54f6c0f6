"""`python dataset.py check`: what it finds, what it writes and its exit status."""

import csv
import json
import os

import cv2
import nibabel as nib
import numpy as np
import pytest
from helpers import read_bytes
from matplotlib.colors import to_rgb
from scipy.ndimage import gaussian_filter

import dataset
from modules import reports
from modules.reports import sheet

AFFINE = np.diag([1.0, 2.0, 0.5, 1.0])


def draw_image(seed):
    return (gaussian_filter(np.random.default_rng(seed).random((14, 12, 10)), 1) * 1000).astype(np.float32)


def draw_label(length=4):
    """A block of `length` x 16 voxels of class 1, and two blocks of 8 voxels of class 2."""
    label = np.zeros((14, 12, 10), np.uint8)
    label[1 : 1 + length, 1:5, 1:5] = 1
    label[10:12, 2:4, 2:4] = label[10:12, 7:9, 7:9] = 2
    return label


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def scans(tmp_path):
    """A folder of eight scans without a fault."""
    for number in range(8):
        save(tmp_path / f"scans/images/p{number}.nii.gz", draw_image(number))
        save(tmp_path / f"scans/labels/p{number}.nii.gz", draw_label())
    return tmp_path / "scans"


def check(root, *flags):
    """Runs the command; returns its exit status and what it wrote to check.json."""
    output = root.parent / "checked"
    status = dataset.main(["check", "--dataset", "folder", "--data", str(root), "--output", str(output), *flags])
    return status, json.loads((output / "check.json").read_text()) if (output / "check.json").is_file() else None


def kinds(content):
    return [(finding["level"], finding["kind"], *finding["scans"]) for finding in content["findings"]]


def test_a_data_set_without_fault(scans, capsys):
    before = read_bytes(scans)
    status, content = check(scans, "--classes", "liver", "vein")
    assert (status, content["errors"], content["warnings"], content["findings"]) == (0, 0, 0, [])
    assert read_bytes(scans) == before
    case = content["cases"][3]
    intensities = case.pop("intensities")["image"]
    image = draw_image(3)
    assert (intensities["min"], intensities["max"]) == (image.min(), image.max())
    assert intensities["median"] == pytest.approx(np.median(image), rel=0.01)
    assert case == {
        "case": "p3", "subject": "p3", "split": case["split"], "images": ["images/p3.nii.gz"], "label": "labels/p3.nii.gz", "refused": None,
        "shape": [14, 12, 10], "spacing_mm": [1.0, 2.0, 0.5], "orientation": "RAS", "label_grid": "same",
        # A voxel has 1 cubic millimetre.
        "classes": {"liver": {"voxels": 64, "ml": 0.064, "objects": 1}, "vein": {"voxels": 16, "ml": 0.016, "objects": 2}},
    }  # fmt: skip
    assert sorted(case["split"] for case in content["cases"]) == ["test", *["train"] * 6, "validate"]
    rows = list(csv.DictReader((scans.parent / "checked/check.csv").open()))
    assert [rows[3][name] for name in ("case", "shape", "spacing_mm", "ml of liver", "objects of vein", "refused")] == [
        "p3", "14x12x10", "1x2x0.5", "0.064", "2", "",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "check  vein    in 8 of 8 scans      0.016 to 0.016 ml, median 0.016; 2 object(s)\n" in out
    assert "files: 16 found" in out
    picture = cv2.imread(str(scans.parent / "checked/check.png"))[..., ::-1]
    for colour in reports.PALETTE[:2]:
        assert (picture == np.rint(255 * np.array(to_rgb(colour)))).all(axis=-1).sum() > 100


def test_all_faults_are_listed_and_none_hides_the_next(scans, capsys):
    (scans / "images/p0.nii.gz").write_bytes((scans / "images/p0.nii.gz").read_bytes()[:-40])
    (scans / "labels/p1.nii.gz").write_bytes(b"")
    save(scans / "labels/p2.nii.gz", np.where(draw_label() == 2, 7, draw_label()).astype(np.uint8))
    save(scans / "labels/p3.nii.gz", draw_label(), np.eye(4))
    save(scans / "labels/p4.nii.gz", draw_label()[:-1])
    save(scans / "images/p5.nii.gz", np.full((14, 12, 10), 3, np.float32))
    status, content = check(scans, "--classes", "1=liver", "2=vein")
    assert status == 1
    assert kinds(content) == [("error", "refused", f"p{number}") for number in range(6)]
    texts = [finding["text"] for finding in content["findings"]]
    for number, (text, file) in enumerate(
        [
            ("Expected a whole NIfTI file in", "images/p0.nii.gz"),
            ("Expected an image in", "labels/p1.nii.gz. Received: an empty file"),
            ("Expected `label` values in (0, 1, 2). Received: 7 in", "labels/p2.nii.gz"),
            ("Expected image and label over the same space", "labels/p3.nii.gz"),
            ("Expected image and label over the same space", "labels/p4.nii.gz"),
            ("Expected an image that shows what its label holds", "images/p5.nii.gz"),
        ]
    ):
        assert text in texts[number]
        assert str(scans / file) in texts[number]
        assert content["cases"][number]["refused"] == texts[number]
    # What can be measured is, and the others are examined as always.
    assert [("shape" in case) for case in content["cases"]] == [False] * 5 + [True] * 3
    error = capsys.readouterr()
    assert error.out.count("\nerror: Expected") == 6
    assert error.err == ""


def test_copies_and_look_alikes_in_two_splits(tmp_path):
    root = tmp_path / "scans"
    for number in range(6):
        save(root / f"train/images/p{number}.nii.gz", draw_image(number))
        save(root / f"train/labels/p{number}.nii.gz", draw_label())
    # The same voxels, packed otherwise and stored in another order. Then the same scan, a little brighter and noisy.
    save(
        root / "test/images/q0.nii",
        draw_image(0)[::-1].astype(np.float64),
        AFFINE @ [[-1, 0, 0, 13], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    noise = np.random.default_rng(99).normal(0, 2, (14, 12, 10))
    save(root / "test/images/q1.nii.gz", (1.2 * draw_image(1) + noise).astype(np.float32))
    for name in ("q0", "q1"):
        save(root / f"test/labels/{name}.nii.gz", draw_label())
    status, content = check(root)
    assert (status, kinds(content)) == (1, [("error", "leak", "p0", "q0"), ("warning", "alike", "p1", "q1")])
    leak, alike = content["findings"]
    assert f"{root}/train/images/p0.nii.gz (train) and {root}/test/images/q0.nii (test)" in leak["text"]
    assert 0 < alike["numbers"]["distance"] <= 40
    # Of one person they are no leak to look for, and the copy alone is told.
    (tmp_path / "people.csv").write_text("case,subject\n" + "".join(f"p{n},s{n}\n" for n in range(6)) + "q0,s0\nq1,s1\n")
    status, content = check(root, "--subjects", str(tmp_path / "people.csv"))
    assert (status, kinds(content)) == (0, [("warning", "copy", "p0", "q0")])


def test_an_odd_volume_an_absent_class_and_swapped_sides(scans):
    sided = draw_label()
    sided[10:12, 7:9, 7:9] = 0
    swapped = np.array([0, 2, 1], np.uint8)[sided]
    for number in range(8):
        save(scans / f"labels/p{number}.nii.gz", swapped if number == 5 else sided)
    # Class 1 lies to the left here. These labels are stored the other way round, which no header hides.
    left = AFFINE @ [[-1, 0, 0, 13], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    save(scans / "images/p2.nii.gz", draw_image(2)[::-1], left)
    save(scans / "labels/p2.nii.gz", sided[::-1], left)
    save(scans / "labels/p7.nii.gz", np.where(sided == 2, 0, sided))
    status, content = check(scans, "--classes", "left kidney", "right kidney")
    found = {(finding["level"], finding["kind"], *finding["scans"]): finding for finding in content["findings"]}
    assert status == 1
    assert set(found) == {
        ("error", "sides", "p5"), ("warning", "absent", "p7"), ("warning", "outlier", "p5"),
    }  # fmt: skip
    # The centres lie at voxels 2.5 and 10.5 along the first axis, of 1 mm.
    assert found["error", "sides", "p5"]["numbers"] == {"mm_to_the_right": 8.0}
    assert "in 6 of 7 cases to the left" in found["error", "sides", "p5"]["text"]


def test_a_few_scans_are_checked_too(scans):
    for number in range(1, 8):
        for kind in ("images", "labels"):
            (scans / kind / f"p{number}.nii.gz").unlink()
    status, content = check(scans)
    assert (status, content["errors"]) == (0, 0)
    [finding] = content["findings"]
    assert "no training can divide the cases: Expected more than 1 subject(s)" in finding["text"]
    assert content["cases"][0]["split"] is None


@pytest.mark.parametrize("name", ["hipmri", "oasis", "lgg", "ibsr18", "msd"])
def test_the_phantoms_have_no_error(phantoms, tmp_path, name):
    flags = ["check", "--dataset", name, "--data", str(phantoms / name), "--output", str(tmp_path / "out"), "--pictures", "3"]
    assert dataset.main(flags) == 0
    content = json.loads((tmp_path / "out/check.json").read_text())
    assert content["errors"] == 0
    assert len(content["cases"]) == len(list(csv.DictReader((tmp_path / "out/check.csv").open())))
    if name in ("oasis", "lgg"):
        # Pictures have no place in the world and no millilitres.
        assert {(case["label_grid"], case["spacing_mm"]) for case in content["cases"]} == {(None, None)}
        assert {values["ml"] for case in content["cases"] for values in case["classes"].values()} == {None}


def test_the_default_folder_is_no_part_of_the_data(scans, monkeypatch):
    monkeypatch.chdir(scans)
    flags = ["check", "--dataset", "folder", "--data", "."]
    for _ in range(2):
        assert dataset.main(flags) == 0
        content = json.loads((scans / "check/folder/check.json").read_text())
        assert (len(content["cases"]), content["findings"]) == (8, [])


# ---------------------------------------------------------------------------------------------------------------- picture


def test_the_odd_scans_are_drawn_first_with_a_mark(scans, monkeypatch):
    save(scans / "labels/p6.nii.gz", draw_label(1))
    seen = {}
    monkeypatch.setattr(sheet, "write_panels", lambda path, grid, title, legends, **_: seen.update(grid=grid, title=title) or path)
    status, _ = check(scans, "--pictures", "3", "--classes", "liver", "vein")
    assert status == 0
    panels = [panel for row in seen["grid"] for panel in row]
    assert [panel.caption for panel in panels] == ["! p6", "p0", "p3"]
    assert "volume of 'liver': 0.016 ml," in panels[0].note.replace("\n", " ")
    assert panels[0].note.startswith("axial, ")
    # A voxel is twice as long along the second axis as along the first.
    assert panels[0].pixels.shape[0] / panels[0].pixels.shape[1] == pytest.approx(24 / 14, rel=0.02)
    assert panels[0].letters == ("R", "L", "", "P")
    assert "3 of 8 scans, the odd ones first" in seen["title"]


def test_no_picture_where_none_is_wanted(scans):
    assert check(scans)[0] == 0
    assert check(scans, "--pictures", "0")[0] == 0
    assert sorted(path.name for path in (scans.parent / "checked").iterdir()) == ["check.csv", "check.json"]


# -------------------------------------------------------------------------------------------------------------------- fix


def test_a_mended_copy_passes_the_check_and_the_data_stay(scans, capsys):
    save(scans / "labels/p3.nii.gz", draw_label(), np.eye(4))
    save(scans / "labels/p4.nii.gz", draw_label().astype(np.float64))
    save(scans / "labels/p5.nii.gz", draw_label()[..., np.newaxis])
    before = read_bytes(scans)
    copy = scans.parent / "copy"
    status, content = check(scans, "--fix", str(copy))
    assert (status, kinds(content)) == (1, [("error", "refused", "p3")])
    assert content["mended"] == {
        "files": {
            "labels/p3.nii.gz": "header taken from p3.nii.gz",
            "labels/p4.nii.gz": "float64 stored as uint8",
            "labels/p5.nii.gz": "1 axis of one voxel dropped",
        },
        "left": [],
    }
    assert read_bytes(scans) == before
    assert f"mended: {copy}/labels/p3.nii.gz: header taken from p3.nii.gz\n" in capsys.readouterr().out
    status, content = check(copy)
    assert (status, content["findings"]) == (0, [])
    assert [case["classes"]["class 1"]["ml"] for case in content["cases"]] == [0.064] * 8


def test_a_folder_within_the_data_is_refused_before_anything_is_read(scans, capsys):
    before = read_bytes(scans)
    assert check(scans, "--fix", str(scans / "copy")) == (2, None)
    assert "Expected --fix with a folder apart from the data" in capsys.readouterr().err
    assert check(scans, "--fix", str(scans.parent / "checked")) == (2, None)
    assert "Expected --output apart from the folder of --fix" in capsys.readouterr().err
    assert read_bytes(scans) == before


# ------------------------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pictures", "-1"], "Expected `--pictures` of 0 or more. Received: -1."),
        (["--data", "nowhere"], "Expected the data set 'lgg' in the folder nowhere. Received: no such folder."),
        (["--classes", "a"], "Expected --dataset folder beside --classes. Received: --dataset lgg"),
        (["--demo", "--data", "x"], "Expected either `demo` or `data`."),
        (["--subjects", "("], "Expected a regular expression or a .csv file for `subjects`."),
    ],
)
def test_usage_is_status_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert dataset.main(["check", "--dataset", "lgg", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dataset.py: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not os.listdir(tmp_path)
