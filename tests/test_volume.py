"""Reading and writing: what comes back, and what each kind of broken file says."""

import gzip

import cv2
import nibabel as nib
import numpy as np
import pytest

from modules.volume import (
    fingerprint_files,
    read_label,
    read_volume,
    replace_file,
    stem_of,
    suffix_of,
    write_label_like,
    write_probabilities_like,
)


def test_suffix_and_stem_of_every_layout(tmp_path):
    names = {
        "case_1_slice_0.nii.gz": (".nii.gz", "case_1_slice_0"),
        "case_1_slice_0.nii.png": (".png", "case_1_slice_0"),
        "a.b.NII": (".nii", "a.b"),
        "x_1.tif": (".tif", "x_1"),
        "notes.txt": ("", "notes.txt"),
    }
    for name, expected in names.items():
        assert (suffix_of(tmp_path / name), stem_of(tmp_path / name)) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_nifti_of_any_dtype_with_trailing_axis(write_nifti, dtype):
    array = np.arange(12, dtype=dtype).reshape(3, 4, 1)
    volume = read_volume([write_nifti("a.nii.gz", array, zooms=(0.5, 2.0, 3.0))])
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[..., 0], array[..., 0])
    assert volume.array.shape == (3, 4, 1)
    assert volume.spacing_mm == (0.5, 2.0)


def test_scaled_nifti_gives_scaled_intensities(tmp_path):
    image = nib.Nifti1Image(np.array([[1, 2], [3, 4]], np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, 10.0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume([tmp_path / "a.nii"]).array[..., 0], [[12, 14], [16, 18]])


def test_colour_picture_keeps_red_green_blue_order(write_picture):
    array = np.zeros((4, 5, 3), np.uint8)
    array[..., 0], array[..., 1] = 10, 20
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(read_volume([write_picture(name, array)]).array, array)


def test_channels_in_several_files_are_stacked(write_nifti):
    first, second = np.ones((3, 4), np.float32), np.full((3, 4), 2, np.float32)
    volume = read_volume([write_nifti("a.nii", first), write_nifti("b.nii", second)])
    assert volume.array.shape == (3, 4, 2)
    np.testing.assert_array_equal(volume.array[0, 0], [1, 2])
    with pytest.raises(ValueError, match=r"one shape, \(3, 4\). Received: \(4, 4\) in .*c.nii"):
        read_volume([write_nifti("a.nii", first), write_nifti("c.nii", np.ones((4, 4), np.float32))])


def test_label_values_become_classes(write_picture):
    path = write_picture("seg.png", np.array([[0, 85], [170, 255]], np.uint8))
    np.testing.assert_array_equal(read_label(path, {0: 0, 85: 1, 170: 2, 255: 3}), [[0, 1], [2, 3]])


@pytest.mark.parametrize("value", [7, -2, 1.5])
def test_unexpected_label_value_names_file_and_value(write_nifti, value):
    array = np.zeros((4, 4), np.float32)
    array[1, 1] = value
    with pytest.raises(ValueError, match=rf"in \(0, 1, 3\). Received: {value} in .*seg.nii .*'ibsr18'"):
        read_label(write_nifti("seg.nii", array), {0: 0, 1: 1, 3: 2}, "ibsr18")


def test_negative_label_values_are_refused(write_nifti):
    with pytest.raises(ValueError, match="Expected `label_values` of 0 or more. Received: -1"):
        read_label(write_nifti("seg.nii", np.zeros((4, 4), np.int16)), {-1: 0, 1: 1})


def test_broken_files_are_named(tmp_path, write_nifti, write_picture):
    whole = write_nifti("whole.nii.gz", np.random.default_rng(0).random((40, 40)))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(whole.read_bytes()[:3000])
    short = tmp_path / "short.nii"
    short.write_bytes(gzip.decompress(whole.read_bytes())[:2000])
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.nii.gz"
    text.write_text("this is no scan")
    nan = write_nifti("nan.nii", np.array([[np.nan, 1.0], [2.0, 3.0]]))
    cases = {
        cut: "whole NIfTI",
        short: "whole NIfTI",
        empty: "an empty file",
        text: "whole NIfTI",
        nan: "1 NaN or infinite",
        tmp_path / "absent.nii": "nothing there",
        tmp_path / "notes.txt": "ending in .nii",
        write_nifti("complex.nii", np.ones((4, 4), np.complex64)): "values of type complex64",
        write_nifti("line.nii", np.ones((5, 1, 1), np.float32)): "slice or a volume",
    }
    (tmp_path / "notes.txt").write_text("x")
    for path, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            read_volume([path])
        assert path.name in str(caught.value)


@pytest.mark.parametrize("offset", [42, 70, 108])
def test_damaged_nifti_header_is_an_error_of_ours(tmp_path, write_nifti, offset):
    data = bytearray(write_nifti("a.nii", np.ones((8, 8), np.float32)).read_bytes())
    data[offset : offset + 4] = b"\x00\x00\xc0\x7f"  # as a size 0, as a type unknown, as an offset NaN
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match="whole NIfTI file in .*a.nii"):
        read_volume([tmp_path / "a.nii"])


def test_a_tiff_of_several_pictures_is_refused(tmp_path):
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [np.zeros((8, 8), np.uint8)] * 3)
    with pytest.raises(ValueError, match="of one picture in .*a.tif. Received: 3 pictures"):
        read_volume([tmp_path / "a.tif"])


def test_a_broken_picture_says_nothing_beside_the_error(tmp_path, write_picture, capfd):
    for suffix in (".png", ".tif"):
        data = bytearray(write_picture("a" + suffix, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).read_bytes())
        (tmp_path / f"b{suffix}").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=rf"b\{suffix}"):
            read_volume([tmp_path / f"b{suffix}"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_truncated_picture_is_refused(tmp_path, write_picture, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = write_picture("whole" + suffix, noise).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="a whole PNG"):
            read_volume([cut])


@pytest.mark.parametrize(("dtype", "written"), [(np.float64, np.float32), (np.int16, np.uint8), (np.uint8, np.uint8)])
def test_label_map_has_the_grid_and_dtype_family_of_its_nifti(tmp_path, write_nifti, dtype, written):
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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12")
    before = fingerprint_files([path])
    assert fingerprint_files([path]) == before
    path.write_bytes(b"123")
    assert fingerprint_files([path]) != before
