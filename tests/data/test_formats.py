"""Tests that results lie on their source's grid, and that a header is true or refused."""

import struct

import cv2
import nibabel as nib
import numpy as np
import pytest
from nifti_helpers import make_nifti, write_packed

from modules.data import formats
from modules.data.case import read_volume
from modules.data.formats import write_label_like, write_probabilities_like


@pytest.mark.parametrize(("dtype", "written"), [(np.float64, np.uint8), (np.int16, np.uint8), (np.uint8, np.uint8)])
def test_label_map_has_the_grid_of_its_nifti_and_whole_numbers(tmp_path, write_nifti, dtype, written):
    affine = np.array([[-0.8, 0.1, 0, 5], [0.1, 0.9, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])
    source = write_nifti("a.nii.gz", np.ones((256, 144, 1), dtype), affine)
    label = np.zeros((256, 144), np.uint8)
    label[10, 20] = 5
    write_label_like(tmp_path / "out" / "a.nii.gz", label, source)
    result = nib.load(tmp_path / "out" / "a.nii.gz")
    assert result.shape == (256, 144, 1)
    assert result.get_data_dtype() == written
    np.testing.assert_array_equal(result.affine, nib.load(source).affine)
    assert result.header.get_zooms() == nib.load(source).header.get_zooms()
    assert result.header["qform_code"] == nib.load(source).header["qform_code"]
    np.testing.assert_array_equal(np.asarray(result.dataobj)[..., 0], label)


def test_label_map_of_a_picture_is_a_picture(tmp_path, write_picture):
    source = write_picture("a.png", np.zeros((4, 5), np.uint8))
    write_label_like(tmp_path / "b.png", np.full((4, 5), 170), source)
    result = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert (result.shape, result.dtype, result[0, 0]) == ((4, 5), np.uint8, 170)


def test_probabilities_of_a_slice_keep_three_axes_for_space(tmp_path, write_nifti):
    source = write_nifti("a.nii", np.zeros((4, 5), np.float32))
    probabilities = np.random.default_rng(0).random((4, 5, 3), np.float32)
    write_probabilities_like(tmp_path / "p.nii", probabilities, source)
    np.testing.assert_array_equal(nib.load(tmp_path / "p.nii").get_fdata()[:, :, 0], probabilities)


@pytest.mark.parametrize("name", ["a.Nii.Gz", "a.nii.GZ", "a.NIi"])
def test_a_suffix_in_any_case_is_read_and_written(tmp_path, name):
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        nib.save(kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 1, 1, 1])), tmp_path / f"b{name[1:].lower()}")
        path = (tmp_path / f"b{name[1:].lower()}").replace(tmp_path / name)
        assert read_volume([path]).array.sum() == formats.read_file(path).array.sum() == 59 * 30
        assert formats.read_grid(path).spacing_mm == (2, 1, 1)
        write_label_like(tmp_path / f"c{name[1:].lower()}", np.ones((3, 4, 5), np.uint8), path)
        assert nib.load(tmp_path / f"c{name[1:].lower()}").affine[0, 0] == 2


# ------------------------------------------------------------------------------------------------ where voxels lie


@pytest.mark.parametrize(("unit", "length"), [(1, 0.002), (2, 2.0), (3, 2000.0), (0, 2.0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_lengths_are_in_mm_whatever_the_headers_unit(tmp_path, unit, length, suffix):
    fields = {"xyzt_units": unit, "sform_code": 1, "pixdim": [1, length, length, length, 1, 1, 1, 1]}
    fields |= {"srow_x": [length, 0, 0, 5 * length], "srow_y": [0, length, 0, 0], "srow_z": [0, 0, length, 0]}
    path = write_packed(tmp_path / f"a{suffix}", make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
    for stored in (formats.read_file(path), formats.read_grid(path)):
        assert stored.spacing_mm == pytest.approx((2, 2, 2))
        np.testing.assert_allclose(stored.affine, [[2, 0, 0, 10], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], rtol=1e-6)
    nib.save(nib.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.diag([length, length, length, 1])), tmp_path / "b.nii")
    other = nib.load(tmp_path / "b.nii")
    other.header["xyzt_units"] = unit
    nib.save(other, tmp_path / "c.nii")
    assert read_volume([tmp_path / "c.nii"]).spacing_mm == pytest.approx((2, 2, 2))


def test_the_size_of_a_voxel_follows_the_affine_not_pixdim(tmp_path):
    fields = {
        "sform_code": 1,
        "srow_x": [3, 0, 0, 0],
        "srow_y": [0, 4, 0, 0],
        "srow_z": [0, 3, 5, 0],
        "pixdim": [1, 3.0001, 1, 9, 1, 1, 1, 1],
    }
    path = write_packed(tmp_path / "a.nii", make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
    # The first number differs from the affine's by rounding only, so the header's own number stays.
    assert read_volume([path]).spacing_mm == pytest.approx((3.0001, 5, 5), abs=1e-6)


STRAIGHT = {
    "sform_code": 1,
    "srow_x": [2, 0, 0, 0],
    "srow_y": [0, 2, 0, 0],
    "srow_z": [0, 0, 2, 0],
    "pixdim": [1, 2, 2, 2, 1, 1, 1, 1],
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]},
            "a finite geometry in .*a.nii.gz. Received: NaN or infinity in its affine",
        ),
        ({"sform_code": 1, "srow_x": [1, 0, 0, np.inf]}, "Expected a finite geometry in .*a.nii.gz"),
        ({"pixdim": np.inf}, "a.nii.gz. Received: "),
        ({"qform_code": 1, "quatern_b": np.nan}, "a.nii.gz. Received: "),
        (
            {"qform_code": 1, "pixdim": [1, 1e9, 1, 1, 1, 1, 1, 1]},
            r"voxels of 0.0001 to 5000 mm in .*a.nii.gz. Received: 1e\+09 mm along axis 0",
        ),
        ({"sform_code": 1}, "Expected voxels of 0.0001 to 5000 mm in .*a.nii.gz. Received: 0 mm along axis 0"),
        # Resampled to 1 mm, one such axis alone would take minutes.
        ({"qform_code": 1, "pixdim": [1, 1e4, 1, 1, 1, 1, 1, 1]}, "to 5000 mm in .*a.nii.gz. Received: 10000 mm along axis 0"),
        # nibabel takes a size of 0 for 1 mm, and an offset of 0 for that of the header. Each would give a wrong result without a word.
        ({"qform_code": 1, "pixdim": [1, 2, 0, 2, 1, 1, 1, 1]}, "in .*a.nii.gz. Received: a voxel size of 0 along axis 1. Mend its header"),
        (STRAIGHT | {"pixdim": [1, 2, 2, 0, 1, 1, 1, 1]}, "in .*a.nii.gz. Received: a voxel size of 0 along axis 2"),
        (STRAIGHT | {"pixdim": [1, 2, 1e9, 2, 1, 1, 1, 1]}, r"mm in .*a.nii.gz. Received: 1e\+09 mm along axis 1"),
        (STRAIGHT | {"qform_code": 1, "quatern_c": np.nan}, "in .*a.nii.gz. Received: NaN or infinity in its qform"),
        (STRAIGHT | {"srow_y": [0, 2, 0, 1e20]}, r"within 1e\+06 mm of the origin in .*a.nii.gz. Received: 1e\+20 mm"),
        ({"vox_offset": 0}, "in .*a.nii.gz. Received: vox_offset 0, below 352, in a single file"),
        ({"vox_offset": 0, "magic": b"ni1"}, "in .*a.nii.gz. Received: vox_offset 0, below 352"),
    ],
)
def test_a_geometry_that_cannot_be_true_is_refused_by_name(tmp_path, fields, message):
    path = write_packed(tmp_path / "a.nii.gz", make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
    for read in (lambda: read_volume([path]), lambda: formats.read_grid(path)):
        with pytest.raises(ValueError, match=message):
            read()


def test_an_affine_beyond_all_numbers_is_one_line_without_a_warning(tmp_path, recwarn):
    data = bytearray(nib.Nifti2Image(np.ones((3, 4, 5), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<d", data, 400, 1e200)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match=r"Expected voxels of 0.0001 to 5000 mm in .*a.nii. Received: inf mm along axis 0"):
        read_volume([tmp_path / "a.nii"])
    assert not recwarn.list


def test_a_nifti_2_of_no_offset_is_refused(tmp_path):
    nib.save(nib.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    np.frombuffer(data, nib.nifti2.header_dtype, 1)["vox_offset"] = 0
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match="Received: vox_offset 0, below 544, in a single file"):
        read_volume([tmp_path / "a.nii"])


@pytest.mark.parametrize(("code", "bits", "what"), [(128, 24, "colours"), (32, 64, "numbers of type complex64")])
def test_what_is_no_real_number_is_refused(tmp_path, code, bits, what):
    path = write_packed(
        tmp_path / "a.nii", make_nifti(np.zeros((4, 4, 16), np.int16), datatype=code, bitpix=bits, dim=[3, 4, 4, 2, 1, 1, 1, 1])
    )
    with pytest.raises(ValueError, match=f"one real number a voxel in .*a.nii. Received: {what}, which are no intensities. Convert"):
        read_volume([path])
