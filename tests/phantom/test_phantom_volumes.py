"""Phantoms of volumes: layouts and quirks are those of the real sets, and organs lie where they do in the world."""

import json

import nibabel as nib
import numpy as np
import pytest
from helpers import read_bytes

from modules import phantom
from modules.phantom import pelvis

SMALL = (24, 32, 24)


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
