"""Phantoms: a seed repeats, and layouts of slices are those of the real sets."""

import re

import cv2
import nibabel as nib
import numpy as np
import pytest
from helpers import read_bytes

from modules import phantom
from modules.phantom import pelvis

TINY = {"subjects": (2, 1, 1), "slices": 4}


@pytest.fixture(scope="module")
def hipmri(tmp_path_factory):
    return phantom.write_hipmri(tmp_path_factory.mktemp("phantom") / "hipmri", **TINY)


@pytest.fixture(scope="module")
def oasis(tmp_path_factory):
    return phantom.write_oasis(tmp_path_factory.mktemp("phantom") / "oasis", **TINY)


@pytest.fixture(scope="module")
def lgg(tmp_path_factory):
    return phantom.write_lgg(tmp_path_factory.mktemp("phantom") / "lgg", subjects=2, slices=4)


@pytest.mark.parametrize("draw", [phantom.draw_pelvis, phantom.draw_brain])
def test_one_seed_repeats_and_two_differ(draw):
    shape = (2, 64, 64)
    image, label = draw(np.random.default_rng(1), shape)
    again, label_again = draw(np.random.default_rng(1), shape)
    other, label_other = draw(np.random.default_rng(2), shape)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert not np.array_equal(image, other)
    assert not np.array_equal(label, label_other)
    assert image.shape == label.shape == shape
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    assert np.isfinite(image).all()
    assert image.min() >= 0


def test_hipmri_layout_and_quirks(hipmri):
    seen = {"shape": set(), "image": set(), "label": set()}
    for path in sorted(hipmri.glob("keras_slices_*/case_*")):
        assert re.fullmatch(r"case_\d{3}_week_\d+_slice_[0-3]\.nii\.gz", path.name)
        split = path.parent.name.removeprefix("keras_slices_")
        image = nib.load(path)
        label = nib.load(hipmri / f"keras_slices_seg_{split}" / path.name.replace("case_", "seg_"))
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, np.eye(4))
        assert set(np.unique(np.asarray(label.dataobj))) <= set(range(6))
        for name, value in (("shape", image.shape), ("image", image.get_data_dtype()), ("label", label.get_data_dtype())):
            seen[name].add(value if name == "shape" else value.name)
    assert seen["shape"] == {(256, 128), (256, 144), (256, 128, 1)}
    assert seen["image"] == {"float64", "int16", "uint16", "float32"}
    assert seen["label"] == {"uint8", "float64"}
    assert (hipmri / "keras_slices_train" / "case_005_week_1_slice_0.nii.gz").is_file()


def test_weeks_of_a_patient_share_a_split(hipmri):
    splits, weeks = {}, {}
    for path in hipmri.glob("keras_slices_[!s]*/case_*_slice_0.nii.gz"):
        splits.setdefault(path.name[:8], set()).add(path.parent.name)
        weeks.setdefault(path.name[:8], set()).add(path.name[9:15])
    assert len(splits) == 4
    assert all(len(names) == 1 for names in splits.values())
    assert weeks["case_005"] == {"week_1", "week_2"}


def test_weeks_show_one_anatomy(hipmri):
    """Bone stays in its place, but the image changes."""
    masks = hipmri / "keras_slices_seg_train"
    first, second = (np.asarray(nib.load(masks / f"seg_005_week_{week}_slice_0.nii.gz").dataobj) for week in (1, 2))
    np.testing.assert_array_equal(first == pelvis.BONE, second == pelvis.BONE)
    images = hipmri / "keras_slices_train"
    first, second = (nib.load(images / f"case_005_week_{week}_slice_0.nii.gz").get_fdata() for week in (1, 2))
    assert not np.array_equal(first, second)


def test_oasis_layout(oasis):
    assert (oasis / "keras_png_slices_train" / "case_001_slice_0.nii.png").is_file()
    values = set()
    for path in sorted(oasis.glob("keras_png_slices_*/case_*")):
        split = path.parent.name.removeprefix("keras_png_slices_")
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask_path = oasis / f"keras_png_slices_seg_{split}" / path.name.replace("case_", "seg_")
        mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        assert image.shape == mask.shape == (256, 256)
        assert image.dtype == mask.dtype == np.uint8
        assert image[mask == 0].max() == 0
        values |= set(np.unique(mask))
    assert values == {0, 85, 170, 255}


def test_lgg_layout(lgg):
    folders = sorted(lgg.iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert re.fullmatch(r"TCGA_[A-Z]{2}_\d{4}_\d{8}", folder.name)
        names = {f"{folder.name}_{number}{end}.tif" for number in (1, 2, 3, 4) for end in ("", "_mask")}
        assert {path.name for path in folder.iterdir()} == names


def test_lgg_tumour_is_bright_on_flair_only(lgg):
    """In RGB the tumour is dark before contrast (0) and bright on FLAIR (1). The lowest and highest slices have none."""
    for folder in lgg.iterdir():
        inside, masks = [], []
        for number in range(1, 5):
            image = cv2.cvtColor(cv2.imread(str(folder / f"{folder.name}_{number}.tif"), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)
            mask = cv2.imread(str(folder / f"{folder.name}_{number}_mask.tif"), cv2.IMREAD_UNCHANGED)
            assert image.shape == (256, 256, 3)
            assert mask.shape == (256, 256)
            assert image.dtype == mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
            inside.append(image[mask > 0])
            masks.append(mask)
        pre, flair, post = np.concatenate(inside).mean(axis=0)
        assert flair > 1.5 * pre
        assert flair > 1.5 * post
        assert not masks[0].any()
        assert any(mask.any() for mask in masks)


@pytest.mark.parametrize(("write", "more"), [(phantom.write_hipmri, (3, 2, 1)), (phantom.write_oasis, (3, 2, 1)), (phantom.write_lgg, 2)])
def test_more_subjects_leave_the_earlier_ones_alone(write, more, tmp_path):
    few = 1 if write is phantom.write_lgg else (1, 1, 1)
    before = read_bytes(write(tmp_path / "few", subjects=few, slices=1))
    again = read_bytes(write(tmp_path / "again", subjects=few, slices=1))
    after = read_bytes(write(tmp_path / "more", subjects=more, slices=1))
    other = read_bytes(write(tmp_path / "other", subjects=few, slices=1, seed=43))
    assert before == again
    assert before.items() < after.items()
    assert before != other
