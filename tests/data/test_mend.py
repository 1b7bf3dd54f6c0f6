"""Mended copies of data sets: what is mended, what stays, and that the data set itself is never touched."""

import gzip
import json
import os

import nibabel as nib
import numpy as np
import pytest
from helpers import make_spec, read_bytes

from modules.data.case import Case, read_case
from modules.data.mend import RECORD, check_target, write_mended
from modules.data.preprocess import Preprocessing

SPEC = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
PLACE = np.array([[0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
LABEL = np.arange(60).reshape(3, 4, 5) % 3


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def save(path, array, affine=PLACE, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def make_case(root, name, label, affine=PLACE, suffix=".nii.gz", image_shape=(3, 4, 5), **fields):
    array = np.random.default_rng(0).integers(1, 99, image_shape).astype(np.int16)
    image = save(root / "images" / f"{name}{suffix}", array)
    return Case(name, name, (image,), save(root / "labels" / f"{name}{suffix}", label, affine, **fields))


def mend(root, cases, tmp_path, name="mended"):
    return write_mended(root, tmp_path / name, cases, SPEC)


def move(case, root, target):
    images = tuple(target / path.relative_to(root) for path in case.image_paths)
    return Case(case.case_id, case.subject_id, images, target / case.label_path.relative_to(root))


def test_a_header_is_taken_from_the_image_where_only_headers_differ(root, tmp_path):
    case = make_case(root, "a", LABEL.astype(np.uint8), np.eye(4))
    with pytest.raises(ValueError, match="over the same space"):
        read_case(case, SPEC)
    before = read_bytes(root)
    mended = mend(root, [case], tmp_path)
    assert mended.files == {"labels/a.nii.gz": "header taken from a.nii.gz"}
    assert mended.left == []
    assert read_bytes(root) == before
    _, label = read_case(move(case, root, tmp_path / "mended"), SPEC)
    np.testing.assert_array_equal(label, LABEL)
    written = nib.load(tmp_path / "mended/labels/a.nii.gz")
    np.testing.assert_allclose(written.affine, PLACE)
    np.testing.assert_allclose(written.get_qform(), PLACE, atol=1e-5)
    np.testing.assert_allclose(written.header.get_zooms(), (1.5, 2, 3))
    # The image is the same file, byte for byte.
    assert (tmp_path / "mended/images/a.nii.gz").read_bytes() == before["images/a.nii.gz"]


@pytest.mark.parametrize("kind", [np.float64, np.float32, ">f4"])
def test_whole_numbers_are_stored_as_such(root, tmp_path, kind):
    case = make_case(root, "a", (LABEL + 1e-4).astype(kind), suffix=".nii")
    mended = mend(root, [case], tmp_path)
    assert mended.files == {"labels/a.nii": f"{np.dtype(kind).newbyteorder('=')} stored as uint8"}
    written = nib.load(tmp_path / "mended/labels/a.nii")
    assert (written.get_data_dtype(), written.shape) == (np.uint8, (3, 4, 5))
    np.testing.assert_array_equal(np.asarray(written.dataobj), LABEL)
    np.testing.assert_array_equal(written.affine, nib.load(case.label_path).affine)


def test_types_hold_the_largest_value(root, tmp_path):
    cases = [
        make_case(root, name, (LABEL * factor).astype(np.float32)) for name, factor in (("a", 100), ("b", 1000), ("c", 50000), ("d", -1))
    ]
    mended = mend(root, cases, tmp_path)
    kinds = [mended.files[f"labels/{name}.nii.gz"].split()[-1] for name in "abcd"]
    assert kinds == ["uint8", "int16", "int32", "int16"]
    # Its values are no classes, so each case is still refused.
    assert len(mended.left) == 4


def test_axes_of_one_voxel_behind_the_third_are_dropped_and_nothing_else_changes(root, tmp_path):
    case = make_case(root, "a", LABEL[..., np.newaxis].astype(np.int16), suffix=".nii", image_shape=(3, 4, 5, 1), descrip=b"by hand")
    mended = mend(root, [case], tmp_path)
    assert mended.files == dict.fromkeys(("images/a.nii", "labels/a.nii"), "1 axis of one voxel dropped")
    for name in mended.files:
        old, new = (root / name).read_bytes(), (tmp_path / "mended" / name).read_bytes()
        assert nib.load(tmp_path / "mended" / name).shape == (3, 4, 5)
        # Number of axes in the header's field `dim`.
        assert [place for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b] == [40]


def test_a_copy_of_the_copy_and_a_second_copy_are_equal(root, tmp_path):
    cases = [make_case(root, "a", LABEL[..., np.newaxis].astype(np.float32), np.eye(4)), make_case(root, "b", LABEL.astype(np.uint8))]
    (root / "dataset.json").write_text("{}")
    mended = mend(root, cases, tmp_path)
    assert mended.files == {"labels/a.nii.gz": "1 axis of one voxel dropped; header taken from a.nii.gz; float32 stored as uint8"}
    first = read_bytes(tmp_path / "mended")
    assert set(first) == {*read_bytes(root), RECORD}
    assert mend(root, cases, tmp_path) == mended
    assert read_bytes(tmp_path / "mended") == first
    again = [move(case, root, tmp_path / "mended") for case in cases]
    assert write_mended(tmp_path / "mended", tmp_path / "again", again, SPEC) == ({}, [])
    second = read_bytes(tmp_path / "again")
    assert {name: content for name, content in second.items() if name != RECORD} == {
        name: content for name, content in first.items() if name != RECORD
    }
    assert json.loads(second[RECORD]) == {"source": str(tmp_path / "mended"), "mended": {}, "left": []}


def test_what_cannot_be_mended_is_copied_and_named(root, tmp_path):
    turned = PLACE @ [[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    cases = [
        make_case(root, "shape", LABEL[:2].astype(np.uint8), np.eye(4)),
        make_case(root, "soft", (LABEL / 2).astype(np.float32)),
        make_case(root, "value", (LABEL + 1).astype(np.uint8)),
        make_case(root, "cut", LABEL.astype(np.uint8)),
        # Stored in another order over the same space: that is no fault.
        make_case(root, "turned", LABEL[::-1].astype(np.uint8), turned),
    ]
    cut = cases[3].label_path
    cut.write_bytes(cut.read_bytes()[:-20])
    mended = mend(root, cases, tmp_path)
    assert mended.files == {}
    assert [line.split(".nii.gz")[0].split("/")[-1] for line in mended.left][-1] == "cut"
    assert len(mended.left) == 4
    assert all(text in line for text, line in zip(("same space", "0.5", "3 in", "whole NIfTI"), mended.left, strict=True))
    copied = read_bytes(tmp_path / "mended")
    assert {name: content for name, content in copied.items() if name != RECORD} == read_bytes(root)


def test_files_beyond_the_folder_are_named_and_left(root, tmp_path):
    case = make_case(tmp_path / "other", "a", LABEL.astype(np.float32))
    root.mkdir()
    (root / "gone.txt").symlink_to(root / "nowhere")
    mended = mend(root, [case], tmp_path)
    assert mended.files == {}
    assert mended.left == [
        f"{case.label_path} lies outside of {root}, so that it is not copied",
        f"{root / 'gone.txt'} is a link to nothing, so that it is not copied",
    ]


def test_a_folder_that_holds_the_data_or_anything_else_is_refused(root, tmp_path):
    make_case(root, "a", LABEL.astype(np.uint8))
    before = read_bytes(root)
    (tmp_path / "link").symlink_to(root)
    for target in (root, root / "mended", tmp_path, tmp_path / "link" / "mended", root / "images" / ".." / "x"):
        with pytest.raises(ValueError, match="Expected --fix with a folder apart from the data"):
            check_target(root, target)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(ValueError, match="Expected --fix with a new or empty folder, or an earlier mended copy"):
        check_target(root, full)
    (full / RECORD).write_text(json.dumps({"source": "elsewhere"}))
    with pytest.raises(ValueError, match="Expected --fix with a new or empty folder"):
        check_target(root, full)
    check_target(root, tmp_path / "new")
    assert read_bytes(root) == before


def test_a_link_in_an_earlier_copy_does_not_lead_back_to_the_data(root, tmp_path):
    case = make_case(root, "a", LABEL.astype(np.float32))
    mend(root, [case], tmp_path)
    before = read_bytes(root)
    for path in (tmp_path / "mended/labels").iterdir():
        path.unlink()
    (tmp_path / "mended/labels").rmdir()
    os.symlink(root / "labels", tmp_path / "mended/labels")
    with pytest.raises(ValueError, match="Expected --fix with a folder without links"):
        mend(root, [case], tmp_path)
    assert read_bytes(root) == before


def test_nothing_but_the_header_of_a_packed_label_changes(root, tmp_path):
    case = make_case(root, "a", LABEL.astype(np.uint8), np.eye(4), descrip=b"by hand")
    mend(root, [case], tmp_path)
    old, new = (gzip.decompress(path.read_bytes()) for path in (case.label_path, tmp_path / "mended/labels/a.nii.gz"))
    assert old[348:] == new[348:]
    assert nib.load(tmp_path / "mended/labels/a.nii.gz").header["descrip"] == b"by hand"
