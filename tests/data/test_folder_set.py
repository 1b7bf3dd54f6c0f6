"""The data set `folder`: channels, classes and rules from what is found and what the user says."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from folder_helpers import plant, write, write_pairs
from helpers import make_spec

from modules.data import folder_set
from modules.data.case import read_case, rename
from modules.data.folder_layouts import Pair
from modules.data.folder_set import Wishes, describe_folder, find_renames, find_sides
from modules.data.regions import IGNORE


def _describe(root, **wishes):
    return describe_folder(root, Wishes(**wishes))


def _renames(*pairs):
    from pathlib import Path

    return find_renames([Pair("x", (Path(image),), Path(label)) for image, label in pairs])


@pytest.mark.parametrize(
    "pairs",
    [
        [("a.nii.gz", "a_seg.nii.gz"), ("b.NII.GZ", "b_seg.NII.GZ")],
        [("a_0000.nii", "a.nii"), ("b_0000.nii", "b.nii")],
        [("sub-1_T1w.nii", "sub-1_dseg.nii"), ("sub-2_T1w.nii", "sub-2_dseg.nii")],
        [("flair.nii", "seg.nii")],
        [("image_1.png", "mask_1.png"), ("image_2.png", "mask_2.png")],
        [("a.b\\1.png", "a.b\\1_m.png")],
        [("a.nii", "a.nii")],
    ],
)
def test_the_rule_of_names_turns_each_image_into_its_label(pairs):
    rules = _renames(*pairs)
    assert [rename(image, rules) for image, _ in pairs] == [label for _, label in pairs]


def test_names_without_one_rule_have_none():
    assert _renames(("a.nii", "a_seg.nii"), ("b.nii", "b_mask.nii")) == ()


def test_left_and_right_are_pairs():
    names = ("background", "Left-Thalamus", "Right-Thalamus", "hippocampus_L", "hippocampus_R", "brightleft", "left atrium", "lh x", "rh x")
    assert find_sides(names) == (("Left-Thalamus", "Right-Thalamus"), ("hippocampus_L", "hippocampus_R"), ("lh x", "rh x"))
    assert find_sides(("background", "left")) == ()


def test_a_folder_describes_itself(tmp_path):
    write_pairs(tmp_path, ["a", "b"], (0, 255))
    fields = _describe(tmp_path)
    assert (fields["channels"], fields["class_names"]) == (("image",), ("background", "class 1"))
    assert (dict(fields["label_rule"].values), fields["preprocessing"].spatial_dims) == ({0: 0, 255: 1}, 3)
    assert (fields["preprocessing"].intensity, fields["preprocessing"].scale, fields["tables"]) == ("zscore", 1.0, ())
    assert [case.case_id for case in fields["find"](tmp_path)] == ["a", "b"]
    words = [" ".join(line.split()[1:3]) for line in fields["found"]]
    assert words == ["cases 2,", "layout labels", "channels 1:", "classes 1", "255 class", "subjects 2", "splits drawn"]


def test_tables_beside_the_labels_are_used_and_kept(tmp_path):
    write_pairs(tmp_path, ["a", "b"], (0, 1, 2))
    (tmp_path / "labels" / "labels.csv").write_text("1,left lung\n2,right lung\n")
    fields = _describe(tmp_path)
    assert (fields["class_names"], fields["tables"]) == (("background", "left lung", "right lung"), (tmp_path / "labels/labels.csv",))
    assert fields["mirrored_labels"] == (("left lung", "right lung"),)
    assert "change places where a sample is flipped" in fields["found"][-1]
    # What the user says wins.
    assert _describe(tmp_path, classes=("1=x", "2=ignore"))["label_rule"].values == {0: 0, 1: 1, 2: IGNORE}


def test_modality_names_a_single_channel(tmp_path):
    write_pairs(tmp_path, ["a"])
    assert _describe(tmp_path, modality="CT")["channels"] == ("CT",)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}}))
    assert _describe(tmp_path)["channels"] == ("CT",)
    assert _describe(tmp_path, modality="MR")["channels"] == ("MR",)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "x": 1}}))
    with pytest.raises(ValueError, match=r"Expected 2 channel\(s\), as .*dataset.json says. Received: 1 in .*a.nii.gz"):
        _describe(tmp_path)


def test_channels_are_named_by_files_and_numbers(tmp_path):
    write_pairs(tmp_path, ["a"], images="images/x", labels="labels")
    image = tmp_path / "images/x/a.nii.gz"
    for name in ("t1", "t2"):
        write(tmp_path / "c" / "p1" / f"{name}.nii", np.ones((4, 4, 4), np.uint8))
        write(tmp_path / "n" / "imagesTr" / f"a_000{int(name[1]) - 1}.nii", np.ones((4, 4, 4), np.uint8))
    for place in ("c/p1/seg.nii", "n/labelsTr/a.nii"):
        write(tmp_path / place, np.eye(4, dtype=np.uint8)[..., None] * np.ones(4, np.uint8))
    assert _describe(tmp_path / "c")["channels"] == ("t1", "t2")
    assert _describe(tmp_path / "n")["channels"] == ("channel 0", "channel 1")
    write(image, np.ones((8, 6, 4, 3), np.float32))
    (tmp_path / "images").rename(tmp_path / "d")
    (tmp_path / "d/images").mkdir()
    (tmp_path / "d/x").rename(tmp_path / "d/images/x")
    (tmp_path / "labels").rename(tmp_path / "d/labels")
    assert _describe(tmp_path / "d")["channels"] == ("channel 0", "channel 1", "channel 2")


def test_slices_and_volumes_together_are_refused(tmp_path):
    write_pairs(tmp_path, ["a"])
    write_pairs(tmp_path, ["b"], shape=(8, 6), suffix=".png")
    message = r"^Expected slices or volumes alone. Received: 1 2-D such as .*b.png and 1 3-D such as .*a.nii.gz. Keep them in two folders"
    with pytest.raises(ValueError, match=message):
        _describe(tmp_path)


def test_a_part_of_the_pairs_points_to_the_whole(tmp_path):
    write_pairs(tmp_path, ["a"])
    with pytest.raises(FileNotFoundError, match=rf"Give the folder that holds images and labels, {tmp_path}, with `--data`."):
        _describe(tmp_path / "images")


def test_a_table_without_a_pair_is_refused(tmp_path):
    plant(tmp_path, "a.nii")
    (tmp_path / "t.csv").write_text("image,label\na.nii,\n")
    with pytest.raises(FileNotFoundError, match=r"Expected rows with an image and a label in .*t.csv. Received: no such row"):
        _describe(tmp_path, cases=str(tmp_path / "t.csv"))


def test_8_bit_pictures_have_a_known_range(tmp_path):
    write_pairs(tmp_path, ["a"], shape=(8, 6), suffix=".png")
    assert _describe(tmp_path)["preprocessing"].scale == 255
    write(tmp_path / "images/a.png", np.full((8, 6), 1000, np.uint16))
    assert _describe(tmp_path)["preprocessing"].scale == 1


def _write_dicom(root, name, **fields):
    """Writes a series into `images/name/` with a label of its grid in `labels/`; returns the pixels `(slices, rows, columns)`."""
    from dicom_helpers import draw_volume, write_series

    volume = draw_volume((4, 6, 8))
    write_series(root / "images" / name, volume, **({"SeriesInstanceUID": f"1.{ord(name)}"} | fields))
    # The series lies 0.75 x 1.5 x 2.5 mm from (-10, 20, 5) in LPS, see `dicom_helpers`.
    affine = np.array([[-0.75, 0, 0, 10], [0, -1.5, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    (root / "labels").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image((volume > 2000).astype(np.uint8).transpose(2, 1, 0), affine), root / "labels" / f"{name}_seg.nii.gz")
    return volume


def test_folders_of_dicom_slices_are_described_and_read_as_files_are(tmp_path):
    pytest.importorskip("pydicom")
    volume = {name: _write_dicom(tmp_path, name) for name in "ab"}["a"]
    fields = _describe(tmp_path)
    assert (fields["channels"], fields["class_names"], fields["preprocessing"].spatial_dims) == (("image",), ("background", "class 1"), 3)
    rule = fields["label_rule"]
    assert [rule.name_label(name) for name in ("a", "b")] == ["a_seg", "b_seg"]
    case = fields["find"](tmp_path)[0]
    assert (case.case_id, case.image_paths) == ("a", (tmp_path / "images" / "a",))
    image, label = read_case(case, make_spec(fields["preprocessing"], rule.values))
    np.testing.assert_array_equal(image.array[..., 0], volume.transpose(2, 1, 0))
    np.testing.assert_array_equal(label, volume.transpose(2, 1, 0) > 2000)


def test_a_folder_of_several_series_is_one_line_with_what_to_do(tmp_path):
    pytest.importorskip("pydicom")
    for name, series in (("a", "1.4"), ("b", "1.5")):
        _write_dicom(tmp_path, name, SeriesInstanceUID=series, SeriesNumber=series[2:])
    for path in (tmp_path / "images" / "b").iterdir():
        path.rename(tmp_path / "images" / "a" / f"second {path.name}")
    message = "Expected one DICOM series in .*images/a. Received: 2 series: 4 't1 mprage' .*; 5 .*; to train, give each a folder of its own"
    with pytest.raises(ValueError, match=message):
        _describe(tmp_path)


@pytest.mark.parametrize(("least", "told"), [(-1000.0, True), (0.0, False), (float("nan"), False)])
def test_hounsfield_units_are_recognised_by_their_darkest(least, told):
    first = SimpleNamespace(array=np.array([least, 5.0]))
    assert bool(folder_set._describe_modality(first, ("image",), "")) == told
