"""Phantoms: a seed repeats, layouts are those of the real sets, and organs differ from their surroundings."""

import json
import re

import cv2
import nibabel as nib
import numpy as np
import pytest

from modules import phantom
from modules.phantom import pelvis

TINY = {"subjects": (2, 1, 1), "slices": 4}
SMALL = (24, 32, 24)


@pytest.fixture(scope="module")
def hipmri(tmp_path_factory):
    return phantom.write_hipmri(tmp_path_factory.mktemp("phantom") / "hipmri", **TINY)


@pytest.fixture(scope="module")
def oasis(tmp_path_factory):
    return phantom.write_oasis(tmp_path_factory.mktemp("phantom") / "oasis", **TINY)


@pytest.fixture(scope="module")
def lgg(tmp_path_factory):
    return phantom.write_lgg(tmp_path_factory.mktemp("phantom") / "lgg", subjects=2, slices=4)


@pytest.fixture(scope="module")
def hipmri3d(tmp_path_factory):
    return phantom.write_hipmri3d(tmp_path_factory.mktemp("phantom") / "hipmri3d", subjects=8, shape=SMALL)


@pytest.fixture(scope="module")
def ibsr18(tmp_path_factory):
    return phantom.write_ibsr18(tmp_path_factory.mktemp("phantom") / "ibsr18", subjects=(3, 1, 1), shape=SMALL)


@pytest.fixture(scope="module", params=[False, True], ids=["msd", "nnunet"])
def msd(request, tmp_path_factory):
    return phantom.write_msd(tmp_path_factory.mktemp("phantom") / "msd", subjects=5, shape=SMALL, nnunet=request.param)


def read_nifti(path):
    """Returns the image and its voxels as stored."""
    image = nib.load(path)
    return image, np.asarray(image.dataobj)


def find_world_centre(image, mask):
    """Returns the centre of `mask` in world millimetres: right, anterior, superior."""
    return nib.affines.apply_affine(image.affine, np.argwhere(mask).mean(axis=0))


def read_bytes(root):
    """Returns {path within root: bytes} of every file."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


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


@pytest.mark.parametrize("shape", [(4, 256, 128), (8, 256, 144), (6, 128, 128)])
def test_pelvis_holds_every_class(shape):
    for seed in range(3):
        _, label = phantom.draw_pelvis(np.random.default_rng(seed), shape)
        assert set(np.unique(label)) == set(range(len(phantom.PELVIS_CLASSES)))


def test_pelvis_is_the_right_way_up():
    """The prostate lies below the bladder (axis 0) and in front of the rectum (axis 1)."""
    _, label = phantom.draw_pelvis(np.random.default_rng(0), (12, 128, 64))
    centre = {k: np.argwhere(label == k).mean(axis=0) for k in (pelvis.BLADDER, pelvis.RECTUM, pelvis.PROSTATE)}
    assert centre[pelvis.PROSTATE][0] < centre[pelvis.BLADDER][0]
    assert centre[pelvis.PROSTATE][1] < centre[pelvis.RECTUM][1]


def test_pelvis_contrast():
    """The body is brighter than air and urine brighter than the tissue around it; muscle and fat differ within the body."""
    image, label = phantom.draw_pelvis(np.random.default_rng(0), (8, 256, 128))
    mean = [image[label == k].mean() for k in range(6)]
    assert mean[pelvis.BODY] > 5 * mean[0]
    assert mean[pelvis.BLADDER] > 1.3 * max(mean[k] for k in (pelvis.BODY, pelvis.BONE, pelvis.RECTUM, pelvis.PROSTATE))
    assert image[label == pelvis.BODY].std() > 0.3 * mean[pelvis.BODY]


def test_brain_classes_and_t1_contrast():
    image, label = phantom.draw_brain(np.random.default_rng(0), (8, 128, 128))
    assert set(np.unique(label)) == {0, 1, 2, 3}
    means = [image[label == k].mean() for k in range(4)]
    assert means[0] == 0  # skull-stripped
    assert means[1] < 0.8 * means[2] < 0.8 * means[3]
    area = (label > 0).sum(axis=(1, 2))
    assert area[0] < 0.6 * area.max()
    assert area[-1] < 0.6 * area.max()


def test_a_tumour_is_added():
    _, healthy = phantom.draw_brain(np.random.default_rng(5), (8, 128, 128))
    _, label = phantom.draw_brain(np.random.default_rng(5), (8, 128, 128), tumour=True)
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(label[label != 4], healthy[label != 4])


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


def test_a_brain_of_given_spacing_is_whole_and_of_real_size():
    """A brain without sulci has about 1 litre, and the border cuts off nothing but the stem; voxels need not be cubes."""
    _, label = phantom.draw_brain(np.random.default_rng(0), (80, 64, 96), spacing_mm=(2.0, 3.0, 2.5), label_sulci=False)
    place = np.argwhere(label > 0)
    assert (place.min(axis=0) > 0).all()
    assert (place.max(axis=0) < np.array(label.shape) - 1).all()
    np.testing.assert_allclose(np.ptp(place, axis=0) * (2.0, 3.0, 2.5), (120, 168, 132), atol=12)
    millilitres = np.bincount(label.ravel()) * 0.015
    assert 15 < millilitres[1] < 80  # the ventricles
    assert 700 < millilitres[1:].sum() < 1200


def test_sulci_without_a_label_stay_in_the_image():
    arguments = {"shape": (12, 64, 64), "spacing_mm": (10.0, 3.5, 3.5)}
    image, label = phantom.draw_brain(np.random.default_rng(3), **arguments)
    same, fewer = phantom.draw_brain(np.random.default_rng(3), **arguments, label_sulci=False)
    np.testing.assert_array_equal(image, same)
    assert set(np.unique(label[label != fewer])) == {1}
    assert image[label != fewer].min() > 0
    assert (fewer == 1).any()


def test_hippocampus_repeats_and_its_head_is_in_front():
    image, label = phantom.draw_hippocampus(np.random.default_rng(1))
    again, label_again = phantom.draw_hippocampus(np.random.default_rng(1))
    _, other = phantom.draw_hippocampus(np.random.default_rng(2))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert not np.array_equal(label, other)
    assert image.shape == (40, 56, 40, 2)
    assert label.shape == (40, 56, 40)
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    assert np.isfinite(image).all()
    assert image.min() >= 0
    head, tail = (np.argwhere(label == k).mean(axis=0) for k in (1, 2))
    assert head[1] > tail[1] + 10
    assert head[2] < tail[2]
    assert 800 < (label == 1).sum() < 3000
    assert 800 < (label == 2).sum() < 3000


def test_hippocampus_is_not_told_by_grey_alone():
    """A good part of the surroundings is as bright as the hippocampus in both channels, and its halves are alike."""
    image, label = phantom.draw_hippocampus(np.random.default_rng(4))
    inside = image[label > 0]
    low, high = np.percentile(inside, (5, 95), axis=0)
    alike = ((image > low) & (image < high)).all(axis=-1)
    assert alike[label == 0].sum() > (label > 0).sum()
    np.testing.assert_allclose(image[label == 1].mean(axis=0), image[label == 2].mean(axis=0), rtol=0.1)
    edge = (label == 0) & (image[..., 0] > 0.7)
    assert edge.sum() > 0.1 * label.size  # white matter


def test_hipmri3d_layout_and_quirks(hipmri3d):
    names = {
        str(path.relative_to(hipmri3d / "semantic_MRs_anon")) for path in hipmri3d.glob("semantic_MRs_anon/**/*.nii*") if path.is_file()
    }
    cases = ("005_Week1", "005_Week2", "007_Week1", "008_Week1", "009_Week1", "009_Week2", "010_Week1", "011_Week1")
    nested = "Case_012_Week0_LFOV.nii"
    assert names == {*(f"Case_{case}_LFOV.nii.gz" for case in cases), "B006_Week0_LFOV.nii.gz", f"{nested}/{nested}"}
    shapes = {}
    for name in sorted(names):
        image, voxels = read_nifti(hipmri3d / "semantic_MRs_anon" / name)
        twin = "B006_Week0_SEMANTIC.nii.gz" if name.startswith("B") else name.replace("_LFOV", "_SEMANTIC_LFOV")
        label, classes = read_nifti(hipmri3d / "semantic_labels_anon" / twin)
        assert voxels.shape == classes.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert "".join(nib.aff2axcodes(image.affine)) == "LPS"
        assert voxels.dtype == np.int16
        assert classes.dtype == np.uint8
        assert set(np.unique(classes)) == set(range(6))
        shapes.setdefault(voxels.shape, []).append(name[:8])
    assert shapes.pop((27, 32, 21)) == ["Case_007"]
    assert list(shapes) == [SMALL]


def test_hipmri3d_in_the_world(hipmri3d):
    """The bladder lies above the prostate and the rectum behind it, in millimetres of a pelvis; two weeks show one anatomy."""
    folder = hipmri3d / "semantic_labels_anon"
    image, label = read_nifti(folder / "Case_005_Week1_SEMANTIC_LFOV.nii.gz")
    bladder, rectum, prostate = (find_world_centre(image, label == k) for k in (pelvis.BLADDER, pelvis.RECTUM, pelvis.PROSTATE))
    assert bladder[2] > prostate[2] + 20
    assert rectum[1] < prostate[1] - 20
    np.testing.assert_allclose(np.array(image.header.get_zooms())[1:] * (32, 24), (318, 110), rtol=1e-5)
    _, other = read_nifti(folder / "Case_005_Week2_SEMANTIC_LFOV.nii.gz")
    np.testing.assert_array_equal(label == pelvis.PROSTATE, other == pelvis.PROSTATE)
    assert not np.array_equal(label, other)


def test_pelvis_spacing_is_that_of_the_drawing():
    assert pelvis.get_pelvis_spacing((22, 179, 200)) == (5.0, 2.0, 2.0)
    assert pelvis.get_pelvis_spacing((22, 159, 100)) == (5.0, 2.0, 2.0)


def test_ibsr18_layout_and_quirks(ibsr18):
    folders = {"Training_Set": (7, 10, 13), "Validation_Set": (8,), "Test_Set": (9,)}
    expected = {f"{folder}/IBSR_{k:02d}/IBSR_{k:02d}.nii.gz" for folder, numbers in folders.items() for k in numbers}
    expected |= {name.replace(".nii", "_seg.nii") for name in expected if not name.startswith("Test")}
    assert set(read_bytes(ibsr18)) == expected
    zooms, maxima = set(), set()
    for name in sorted(expected):
        image, voxels = read_nifti(ibsr18 / name)
        assert image.shape == (*SMALL, 1)
        assert voxels.dtype == np.int16
        assert "".join(nib.aff2axcodes(image.affine)) == "RAS"
        assert image.affine[0, 3] < -100
        assert image.header.get_zooms()[3] == 0
        assert image.header.get_zooms()[1] == 6  # 192 mm
        zooms.add(image.header.get_zooms()[0])
        if "_seg" in name:
            assert set(np.unique(voxels)) == {0, 1, 2, 3}
        else:
            maxima.add(int(voxels.max()))
    assert len(zooms) == 3
    assert {79, 1289} <= maxima


def test_ibsr18_in_its_real_shape_has_its_real_spacing(tmp_path):
    root = phantom.write_ibsr18(tmp_path / "ibsr18", subjects=(1, 0, 0), shape=(256, 16, 16))
    image = nib.load(root / "Training_Set" / "IBSR_07" / "IBSR_07.nii.gz")
    assert image.header.get_zooms() == (1, 12, 16, 0)
    assert image.affine[:3, 3].tolist() == [-255, 0, 0]


def test_ibsr18_in_the_world(ibsr18):
    """The lowest part of a brain, cerebellum and stem, lies behind its middle; white matter is brighter than ventricles."""
    image, label = read_nifti(ibsr18 / "Training_Set" / "IBSR_07" / "IBSR_07_seg.nii.gz")
    label = label[..., 0]
    height = np.nonzero(label)[2]
    low = (label > 0) & (np.arange(SMALL[2]) <= np.percentile(height, 8))
    whole = find_world_centre(image, label > 0)
    assert find_world_centre(image, low)[1] < whole[1] - 5
    assert abs(find_world_centre(image, label == 1)[0] - whole[0]) < 8
    _, voxels = read_nifti(ibsr18 / "Training_Set" / "IBSR_07" / "IBSR_07.nii.gz")
    assert voxels[..., 0][label == 3].mean() > 1.3 * voxels[..., 0][label == 1].mean()


def test_msd_layout_and_quirks(msd):
    description = json.loads((msd / "dataset.json").read_text())
    nnunet = "file_ending" in description
    numbers, stem = (1, 3, 4, 6, 7), "case" if nnunet else "hippocampus"
    ends = ("_0000", "_0001") if nnunet else ("",)
    names = {f"imagesTr/{stem}_{k:03d}{end}.nii.gz" for k in numbers for end in ends}
    names |= {f"imagesTs/{stem}_{k:03d}{end}.nii.gz" for k in (2, 5) for end in ends}
    names |= {f"labelsTr/{stem}_{k:03d}.nii.gz" for k in numbers}
    assert set(read_bytes(msd)) == names | {"dataset.json"}
    assert description["numTraining"] == 5
    if nnunet:
        assert description["channel_names"] == {"0": "T1", "1": "T2"}
        assert description["labels"] == {"background": 0, "Anterior": 1, "Posterior": 2}
    else:
        assert description["modality"] == {"0": "T1", "1": "T2"}
        assert description["labels"] == {"0": "background", "1": "Anterior", "2": "Posterior"}
        assert description["numTest"] == 2
        listed = {path for pair in description["training"] for path in pair.values()} | set(description["test"])
        assert listed == {f"./{name}" for name in names}
        assert {"name", "description", "reference", "licence", "tensorImageSize"} <= set(description)


def test_msd_images_and_labels_share_a_grid(msd):
    shapes, image_types, label_types, oblique = set(), set(), set(), 0
    for path in sorted((msd / "labelsTr").iterdir()):
        label, classes = read_nifti(path)
        stem = path.name.removesuffix(".nii.gz")
        images = sorted((msd / "imagesTr").glob(f"{stem}*"))
        for image, voxels in map(read_nifti, images):
            assert image.shape == classes.shape + (() if len(images) == 2 else (2,))
            np.testing.assert_array_equal(image.affine, label.affine)
            assert np.isfinite(voxels).all()
            image_types.add(voxels.dtype.name)
        assert "".join(nib.aff2axcodes(label.affine)) == "RAS"
        np.testing.assert_allclose(label.header.get_zooms(), 1, atol=1e-6)
        assert set(np.unique(classes)) == {0, 1, 2}
        assert find_world_centre(label, classes == 1)[1] > find_world_centre(label, classes == 2)[1] + 4
        assert np.abs(np.array(classes.shape) - SMALL).max() <= 2
        shapes.add(classes.shape)
        label_types.add(classes.dtype.name)
        oblique += not np.array_equal(label.affine[:3, :3], np.eye(3))
    assert len(shapes) > 2
    assert image_types == {"uint8", "float32"}
    assert label_types == {"uint8", "float32"}
    assert oblique == 2


def test_both_layouts_of_msd_hold_the_same_voxels(tmp_path):
    decathlon = phantom.write_msd(tmp_path / "msd", subjects=1, shape=(16, 16, 16))
    raw = phantom.write_msd(tmp_path / "nnunet", subjects=1, shape=(16, 16, 16), nnunet=True)
    _, both = read_nifti(decathlon / "imagesTr" / "hippocampus_001.nii.gz")
    for channel in range(2):
        _, one = read_nifti(raw / "imagesTr" / f"case_001_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(one, both[..., channel])


@pytest.mark.parametrize(
    ("write", "few", "more"),
    [
        (phantom.write_hipmri3d, 2, 4),
        (phantom.write_ibsr18, (1, 1, 1), (3, 2, 1)),
        (phantom.write_msd, 2, 4),
    ],
)
def test_more_volumes_leave_the_earlier_ones_alone(write, few, more, tmp_path):
    def read(name, **arguments):
        found = read_bytes(write(tmp_path / name, shape=(16, 18, 17), **arguments))
        return found, {path: content for path, content in found.items() if path != "dataset.json"}

    before, files = read("few", subjects=few)
    again, _ = read("again", subjects=few)
    _, larger = read("more", subjects=more)
    _, other = read("other", subjects=few, seed=43)
    assert before == again
    assert files.items() < larger.items()
    assert all(files[path] != other[path] for path in files)


@pytest.mark.parametrize("write", [phantom.write_hipmri3d, phantom.write_ibsr18, phantom.write_msd])
@pytest.mark.parametrize("shape", [(64, 64), (15, 64, 64), (64, 64, 64, 1)])
def test_bad_shapes_are_named(write, shape, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"Expected `shape` of three sizes >= 16, in the axis order of the files. Received: {shape}")
    ):
        write(tmp_path / "data", shape=shape)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("write", "subjects", "message"),
    [
        (phantom.write_hipmri3d, -1, "Expected `subjects` >= 0. Received: -1"),
        (phantom.write_msd, -2, "Expected `subjects` >= 0. Received: -2"),
        (phantom.write_lgg, -1, "Expected `subjects` >= 0. Received: -1"),
        (phantom.write_ibsr18, (1, -1, 0), r"Expected `subjects` >= 0, one number for each .* Received: \(1, -1, 0\)"),
        (phantom.write_ibsr18, (1,), r"Expected `subjects` >= 0, one number for each .* Received: \(1,\)"),
    ],
)
def test_bad_numbers_of_subjects_are_named(write, subjects, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "data", subjects=subjects)
    assert not (tmp_path / "data").exists()


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


@pytest.mark.parametrize(
    "write",
    [phantom.write_hipmri, phantom.write_oasis, phantom.write_lgg, phantom.write_hipmri3d, phantom.write_ibsr18, phantom.write_msd],
)
def test_an_existing_root_is_left_untouched(write, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    assert write(tmp_path / "data") == tmp_path / "data"
    assert read_bytes(tmp_path) == {"data/mine.txt": b"keep"}


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "write_nifti", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        phantom.write_hipmri(tmp_path / "deep" / "data", subjects=(1, 0, 0), slices=1)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": (1, -1, 0)}, r"Expected `subjects` >= 0, one number for each .* Received: \(1, -1, 0\)"),
        ({"slices": 0}, "Expected `slices` >= 1. Received: 0"),
    ],
)
def test_bad_counts_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        phantom.write_oasis(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
