"""Reading: what comes back, and what each kind of broken file says."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from nifti_helpers import make_nifti, write_packed

from modules.data.case import LabelRule, read_label, read_volume
from modules.data.regions import IGNORE


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_nifti_of_any_dtype_with_trailing_axis(write_nifti, dtype):
    array = np.arange(12, dtype=dtype).reshape(3, 4, 1)
    volume = read_volume([write_nifti("a.nii.gz", array, np.diag([0.5, -2.0, 3.0, 1.0]))])
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
    with pytest.raises(ValueError, match="image and channel over the same space. Received: image 3x4 .*a.nii; channel 4x4 .*c.nii"):
        read_volume([write_nifti("a.nii", first), write_nifti("c.nii", np.ones((4, 4), np.float32))])


def test_label_values_become_classes(write_picture):
    path = write_picture("seg.png", np.array([[0, 85], [170, 255]], np.uint8))
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 0, 85: 1, 170: 2, 255: 3})), [[0, 1], [2, 3]])


def test_label_values_within_a_thousandth_of_a_whole_number_are_that_number(write_nifti):
    values = np.array([[0, 0.9999999], [2.9992, 1.0009]], np.float32)
    path = write_nifti("seg.nii", np.stack([values, np.zeros((2, 2), np.float32)], axis=-1))
    label = read_label(path, LabelRule({0: 0, 1: 1, 3: 2}))
    np.testing.assert_array_equal(label[..., 0], [[0, 1], [2, 1]])
    for value, text in ((0.998, "0.998"), (3.0012, "3.0012"), (-0.0011, "-0.0011"), (1.5000001, "1.5000001"), (1e30, "1" + "0" * 30)):
        values[0, 1] = value
        path = write_nifti("seg.nii", np.stack([values, values], axis=-1))
        with pytest.raises(ValueError, match=rf"Received: {text} in .*seg.nii \(2 pixels\)"):
            read_label(path, LabelRule({0: 0, 1: 1, 3: 2}))


@pytest.mark.parametrize("value", [7, -2, 1.5])
def test_unexpected_label_value_names_file_and_value(write_nifti, value):
    array = np.zeros((4, 4), np.float32)
    array[1, 1] = value
    with pytest.raises(ValueError, match=rf"in \(0, 1, 3\). Received: {value} in .*seg.nii .*'ibsr18'"):
        read_label(write_nifti("seg.nii", array), LabelRule({0: 0, 1: 1, 3: 2}, source="ibsr18"))


def test_negative_label_values_are_refused(write_nifti):
    with pytest.raises(ValueError, match="Expected `values` of 0 or more in a label rule. Received: -1"):
        read_label(write_nifti("seg.nii", np.zeros((4, 4), np.int16)), LabelRule({-1: 0, 1: 1}))


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
        write_nifti("complex.nii", np.ones((4, 4), np.complex64)): "numbers of type complex64",
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
    data[offset : offset + 4] = b"\x00\x00\xc0\x7f"  # a size of 0, an unknown type, an offset of NaN
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match="whole NIfTI file in .*a.nii"):
        read_volume([tmp_path / "a.nii"])


def test_a_tiff_of_several_pictures_is_refused(tmp_path):
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [np.zeros((8, 8), np.uint8)] * 3)
    with pytest.raises(ValueError, match="of one picture in .*a.tif. Received: several pictures"):
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
        with pytest.raises(ValueError, match="a whole (PNG|TIFF) of one picture"):
            read_volume([cut])


def test_importing_the_module_imports_neither_nibabel_nor_opencv():
    code = "import sys, modules.data.case; print({'nibabel', 'cv2'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(("dtype", "slope"), [(np.float32, 0), (np.float64, 0), (np.float64, 2)])
def test_values_that_are_not_finite_are_counted(tmp_path, dtype, slope):
    strange = {"nan": [np.nan], "inf": [np.inf], "-inf": [-np.inf], "all": [np.nan, np.inf, -np.inf]}
    if dtype == np.float64:
        strange["beyond float32"] = [1e39, -1e300]
    for values in strange.values():
        array = np.ones((4, 5), dtype)
        array.flat[: len(values)] = values
        path = write_packed(tmp_path / "a.nii", make_nifti(array, scl_slope=slope))
        for read in (lambda path: read_volume([path]), lambda path: read_label(path, LabelRule({1: 1}))):
            with pytest.raises(ValueError, match=f"Expected finite values. Received: {len(values)} NaN or infinite in .*a.nii"):
                read(path)
    array = np.full((64, 64), np.finfo(np.float32).max, dtype)  # finite, but their sum is not
    np.testing.assert_array_equal(read_volume([write_packed(tmp_path / "a.nii", make_nifti(array))]).array[..., 0], array)


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("i1", -1, "-1"),
        ("i2", 256, "256"),
        ("i2", -32768, "-32768"),
        ("u2", 65281, "65281"),
        ("u8", 2**64 - 1, "18446744073709551615"),
        ("f4", 0.5, "0.5"),
    ],
)
def test_a_value_that_wraps_round_to_a_known_one_is_not_taken_for_it(tmp_path, dtype, value, text):
    array = np.ones((4, 4), dtype)
    array[2, 1] = value
    path = write_packed(tmp_path / "seg.nii", make_nifti(array))
    for values in ({0: 0, 1: 1, 255: 2}, {0: 0, 1: 1, 255: 2, 300: 3}):
        with pytest.raises(ValueError, match=rf"Received: {text}.* in .*seg.nii \(1 pixels\)"):
            read_label(path, LabelRule(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_label_of_many_pieces_is_looked_up_to_its_end(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 3, (50, 60, 70)).astype(dtype)
    path = write_packed(tmp_path / "seg.nii", make_nifti(array))
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 2, 1: 0, 2: 1})), (array + 2) % 3)
    array[-1, -1, -1] = 9
    with pytest.raises(ValueError, match=r"Received: 9 in .*seg.nii \(1 pixels\)"):
        read_label(write_packed(path, make_nifti(array)), LabelRule({0: 2, 1: 0, 2: 1}))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("ignored", [3, 255, 1000])
def test_values_to_ignore_get_an_index_of_their_own(tmp_path, dtype, ignored):
    if dtype is np.uint8 and ignored > 255:
        return
    rule = LabelRule({0: 0, 1: 1, 2: 2, ignored: IGNORE})
    assert (rule.output_values, rule.ignores) == ((0, 1, 2), True)
    array = np.array([[0, 1], [2, ignored]], dtype)
    np.testing.assert_array_equal(read_label(write_packed(tmp_path / "seg.nii", make_nifti(array)), rule), [[0, 1], [2, IGNORE]])
    # The marker of unknown values is another one.
    with pytest.raises(ValueError, match=r"Received: 254 in .*seg.nii \(1 pixels\)"):
        read_label(write_packed(tmp_path / "seg.nii", make_nifti(np.where(array == ignored, 254, array).astype(dtype))), rule)


def test_label_values_beyond_a_byte_are_read(tmp_path):
    array = np.array([[0, 1007], [2**24, 0]], np.int32)
    path = write_packed(tmp_path / "seg.nii", make_nifti(array))
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 0, 1007: 1, 2**24: 2})), [[0, 1], [2, 0]])
    path = write_packed(tmp_path / "seg.nii", make_nifti(array + 1))
    with pytest.raises(ValueError, match="4 pixels"):
        read_label(path, LabelRule({0: 0, 1007: 1, 2**24: 2}))


def test_what_is_no_file_is_not_there(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "file.nii").write_bytes(b"")
    (tmp_path / "link.nii").symlink_to("nowhere.nii")
    for name in ("folder.nii", "file.nii/a.nii", "link.nii", "absent.txt"):
        with pytest.raises(FileNotFoundError, match=f"Expected a file at .*{name}. Received: nothing there"):
            read_volume([tmp_path / name])


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(FileNotFoundError, match="Expected a file at .*a.nii"):
        read_volume([tmp_path / "a.nii"])
