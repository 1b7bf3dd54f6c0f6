"""Reading and writing: what comes back, and what each kind of broken file says."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from helpers import make_spec

from modules.data import formats, nifti
from modules.data.case import Case, LabelRule, read_case, read_header, read_label, read_volume
from modules.data.files import fingerprint_files, hash_file, replace_file, stem_of, suffix_of
from modules.data.formats import write_label_like, write_probabilities_like
from modules.data.inventory import describe_ignored
from modules.data.preprocess import Preprocessing


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


def test_fingerprint_changes_although_size_and_time_are_set_back(tmp_path):
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"12")
    os.utime(path, ns=(10**9, 10**9))
    before = fingerprint_files([path])
    time.sleep(0.02)
    path.write_bytes(b"34")
    os.utime(path, ns=(10**9, 10**9))
    written = fingerprint_files([path])
    copy.write_bytes(b"56")
    os.utime(copy, ns=(10**9, 10**9))
    copy.replace(path)
    assert len({before, written, fingerprint_files([path])}) == 3


def test_fingerprint_follows_links_even_when_they_are_turned_elsewhere(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.nii").write_bytes(b"12")
        os.utime(tmp_path / folder / "x.nii", (1, 1))
    (tmp_path / "here").symlink_to("a")
    (tmp_path / "x.nii").symlink_to("a/x.nii")
    first, second = (fingerprint_files([tmp_path / folder / "x.nii"]) for folder in "ab")
    status = (tmp_path / "a" / "x.nii").stat()
    state = (2, 10**9, status.st_ctime_ns, status.st_ino)
    expected = hashlib.sha256(f"{(tmp_path / 'a' / 'x.nii').resolve()}\0{state}\n".encode()).hexdigest()
    assert expected == first != second
    assert fingerprint_files([tmp_path / "here" / "x.nii"]) == fingerprint_files([tmp_path / "x.nii"]) == first
    (tmp_path / "here").unlink()
    (tmp_path / "here").symlink_to("b")
    assert fingerprint_files([tmp_path / "here" / "x.nii"]) == second
    monkeypatch.chdir(tmp_path / "a")
    assert fingerprint_files([Path("x.nii")]) == fingerprint_files([Path("../a/x.nii")]) == first
    monkeypatch.chdir(tmp_path / "b")
    assert fingerprint_files([Path("x.nii")]) == second


def test_bytes_that_were_read_can_be_hashed_without_reading_again(write_nifti, write_picture):
    paths = [write_nifti("a.nii.gz", np.ones((3, 4), np.float32)), write_picture("b.png", np.ones((3, 4), np.uint8))]
    hashes = []
    for path in paths:
        read_volume([path], lambda data: hashes.append(hashlib.sha256(data).hexdigest()))
    read_label(paths[1], LabelRule({1: 1}), on_bytes=lambda data: hashes.append(hashlib.sha256(data).hexdigest()))
    assert hashes == [hash_file(path) for path in (*paths, paths[1])]


def test_importing_the_module_imports_neither_nibabel_nor_opencv():
    code = "import sys, modules.data.case; print({'nibabel', 'cv2'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert result.stdout.strip() == "set()"


# Reading NIfTI: a file that is read without nibabel must give what nibabel gives.

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.fixture
def without_nibabel(monkeypatch):
    """Makes every file that is left to nibabel an error."""

    def fail(path, data):
        raise AssertionError(f"{path} was left to nibabel")

    monkeypatch.setattr(formats, "_load_nifti", fail)


@pytest.fixture(params=["isal", "zlib"])
def inflater(request, monkeypatch):
    """Inflates with isal, and with zlib as if isal were not installed."""
    monkeypatch.setattr(nifti, "inflater", zlib if request.param == "zlib" else pytest.importorskip("isal.isal_zlib"))


def _make_nifti(array, order="<", extension=b"", padding=0, **fields):
    """Builds the bytes of a NIfTI-1 file field by field, so that no library puts anything right."""
    header = np.zeros((), nib.nifti1.header_dtype.newbyteorder(order))
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"
    header["dim"] = 1
    header["dim"][: array.ndim + 1] = array.ndim, *array.shape
    header["pixdim"] = 1
    header["datatype"], header["bitpix"] = nib.nifti1.data_type_codes[array.dtype.newbyteorder("=")], 8 * array.dtype.itemsize
    header["vox_offset"] = 352 + len(extension) + padding
    for name, value in fields.items():
        header[name] = value
    flag = bytes([bool(extension), 0, 0, 0])
    return header.tobytes() + flag + extension + bytes(padding) + array.astype(array.dtype.newbyteorder(order)).tobytes("F")


def _write(path, data):
    path.write_bytes(gzip.compress(data, 1) if path.suffix.lower() == ".gz" else data)
    return path


def _check_as_nibabel(path):
    """Compares with nibabel: values and affine to the last bit, spacing, memory order."""
    source = nib.load(path)
    with np.errstate(over="ignore"):
        expected = np.asarray(source.get_fdata(dtype=np.float32))
    shape = [size for size in expected.shape[:3] if size > 1]
    expected = expected.reshape([*shape, -1])
    volume = read_volume([path])
    assert volume.array.dtype == np.float32
    assert volume.array.flags.writeable
    assert volume.array[..., 0].strides == expected[..., 0].strides
    assert volume.array.flags.f_contiguous == expected.flags.f_contiguous
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.affine.dtype == source.affine.dtype == np.float64
    # Axes of length one are dropped, and their columns come last.
    kept = [axis for axis, size in enumerate(source.shape[:3]) if size > 1]
    order = [*kept, *(axis for axis in range(3) if axis not in kept), 3]
    np.testing.assert_array_equal(volume.affine, source.affine[:, order])
    assert volume.spacing_mm == pytest.approx(np.linalg.norm(source.affine[:3, kept], axis=0), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_any_usual_header_is_read_as_nibabel_reads_it(tmp_path, without_nibabel, inflater, seed):
    rng = np.random.default_rng(seed)
    shapes = [(5, 4), (5, 4, 1), (1, 5, 4), (5, 1, 4), (3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 2), (3, 4, 1, 3), (3, 4, 5, 1, 2)]
    for index in range(150):
        dtype = np.dtype(DTYPES[index % len(DTYPES)])
        shape = shapes[rng.integers(len(shapes))]
        if dtype.kind == "f":
            array = rng.normal(0, 10.0 ** rng.integers(-3, 6), shape).astype(dtype)
        else:
            array = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        quaternion = rng.normal(size=4)
        quaternion[rng.random(4) < 0.2] = 0
        quaternion /= np.linalg.norm(quaternion) or 1
        zooms = rng.uniform(0.1, 5, 8) * rng.choice([1, 1, 1, -1], 8)
        zooms[0] = rng.choice([1, -1, 0, 3])
        fields = {
            "pixdim": zooms,
            "sform_code": rng.integers(5) * rng.integers(2),
            "qform_code": rng.integers(5) * rng.integers(2),
            "scl_slope": rng.choice([0, 1, np.nan, np.inf, 2.5, -1e-3, 3e30 if dtype.kind != "f" else 7.1]),
            "scl_inter": rng.choice([0, 0, -1024, 0.1]),
            "quatern_b": quaternion[1],
            "quatern_c": quaternion[2],
            "quatern_d": quaternion[3],
        }
        if not np.isfinite(fields["scl_slope"]) or fields["scl_slope"] == 0:
            fields["scl_inter"] = rng.choice([0, 5, np.nan])
        elif fields["scl_slope"] == 3e30:
            array = (array % 100).astype(dtype)
        for name in ("qoffset_x", "qoffset_y", "qoffset_z"):
            fields[name] = rng.normal() * 100
        for name in ("srow_x", "srow_y", "srow_z"):
            fields[name] = rng.normal(size=4)
        data = _make_nifti(array, "<>"[rng.integers(2)], padding=int(rng.choice([0, 0, 16, 4])), **fields)
        _check_as_nibabel(_write(tmp_path / ["a.nii", "a.nii.gz", "A.NII.GZ"][rng.integers(3)], data))


def test_large_integers_are_rounded_as_nibabel_rounds_them(tmp_path, without_nibabel):
    # Halfway between two numbers of float32, and one above: float64 does not know that one, and then the even number is taken.
    array = np.full((3, 4), 2**60 + 2**36 + 1, np.int64)
    path = _write(tmp_path / "a.nii", _make_nifti(array))
    _check_as_nibabel(path)
    np.testing.assert_array_equal(read_volume([path]).array[..., 0], np.float32(2**60))


@pytest.mark.parametrize(
    "fields",
    [
        {"extension": (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"comment".ljust(24, b"\0")},
        {"bitpix": 7},
        {"sform_code": 9, "qform_code": 1},
        {"qform_code": 5},
        {"vox_offset": 352.5},
        {"sizeof_hdr": 340},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_unusual_header_is_left_to_nibabel(tmp_path, monkeypatch, fields):
    load, asked = formats._load_nifti, []
    monkeypatch.setattr(formats, "_load_nifti", lambda path, data: asked.append(path) or load(path, data))
    path = _write(tmp_path / "a.nii.gz", _make_nifti(np.arange(60, dtype=np.int16).reshape(3, 4, 5), **fields))
    _check_as_nibabel(path)
    assert asked == [path]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_2_is_read(tmp_path, suffix):
    nib.save(nib.Nifti2Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([-2.0, 1, 3, 1])), tmp_path / f"a{suffix}")
    _check_as_nibabel(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scl_slope": 2, "scl_inter": np.nan}, "invalid intercept"),
        ({"qform_code": 1, "quatern_b": 1, "quatern_c": 1}, "w2 should be positive"),
        ({"vox_offset": 16}, "too low"),
        ({"magic": b"n+9"}, "file type"),
        ({"dim": [3, 4, 4, 4, 1, 1, 1, 1]}, "416 bytes where the header promises 480"),
        ({"dim": [3, 4, -4, 4, 1, 1, 1, 1]}, ""),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(tmp_path, inflater, fields, message):
    for name in ("a.nii", "a.nii.gz"):
        path = _write(tmp_path / name, _make_nifti(np.zeros((4, 4, 2), np.int16), **fields))
        with pytest.raises(ValueError, match=f"whole NIfTI file in .*{name}.*({message})"):
            read_volume([path])


def test_gzip_of_several_members_is_read_whole(tmp_path, without_nibabel, inflater):
    array = np.random.default_rng(0).integers(-9, 9, (40, 50), np.int16)
    data = _make_nifti(array)
    for cuts in ([100], [352], [len(data) // 2], [0, 348, 360, 4000], range(0, len(data), 64)):
        places = [0, *cuts, len(data)]
        members = [gzip.compress(data[start:stop]) for start, stop in pairwise(places)]
        path = tmp_path / "a.nii.gz"
        path.write_bytes(b"".join(members))
        np.testing.assert_array_equal(read_volume([path]).array[..., 0], array)
        path.write_bytes(b"".join(members)[:-5])
        with pytest.raises(ValueError, match="whole NIfTI file in .*a.nii.gz"):
            read_volume([path])
        path.write_bytes(b"".join(members) + b"more")  # bytes that do not belong to the image
        np.testing.assert_array_equal(read_volume([path]).array[..., 0], array)


def test_a_cut_or_damaged_gzip_is_refused_wherever_the_damage_is(tmp_path, write_nifti, inflater):
    whole = write_nifti("a.nii.gz", np.random.default_rng(0).integers(0, 90, (40, 40), np.int16)).read_bytes()
    path = tmp_path / "b.nii.gz"
    for length in (1, 2, 9, 12, 100, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="whole NIfTI file in .*b.nii.gz"):
            read_volume([path])
    for place in [*range(200, len(whole), 97), *range(len(whole) - 8, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="whole NIfTI file in .*b.nii.gz"):
            read_volume([path])


@pytest.mark.parametrize(("dtype", "slope"), [(np.float32, 0), (np.float64, 0), (np.float64, 2)])
def test_values_that_are_not_finite_are_counted(tmp_path, dtype, slope):
    strange = {"nan": [np.nan], "inf": [np.inf], "-inf": [-np.inf], "all": [np.nan, np.inf, -np.inf]}
    if dtype == np.float64:
        strange["beyond float32"] = [1e39, -1e300]
    for values in strange.values():
        array = np.ones((4, 5), dtype)
        array.flat[: len(values)] = values
        path = _write(tmp_path / "a.nii", _make_nifti(array, scl_slope=slope))
        for read in (lambda path: read_volume([path]), lambda path: read_label(path, LabelRule({1: 1}))):
            with pytest.raises(ValueError, match=f"Expected finite values. Received: {len(values)} NaN or infinite in .*a.nii"):
                read(path)
    array = np.full((64, 64), np.finfo(np.float32).max, dtype)  # finite, but their sum is not
    np.testing.assert_array_equal(read_volume([_write(tmp_path / "a.nii", _make_nifti(array))]).array[..., 0], array)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_every_dtype_become_classes(tmp_path, without_nibabel, dtype, order):
    array = np.random.default_rng(0).choice([0, 3, 100], (6, 5, 4)).astype(dtype)
    expected = np.searchsorted([0, 3, 100], array)
    path = _write(tmp_path / "seg.nii.gz", _make_nifti(array, order))
    label = read_label(path, LabelRule({0: 0, 3: 1, 100: 2}))
    assert (label.dtype, label.flags.f_contiguous, label.flags.writeable) == (np.uint8, True, True)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 0, 3: 1, 100: 2, 1000: 4})), expected)
    array[0, 0, :2] = 101
    path = _write(tmp_path / "seg.nii.gz", _make_nifti(array, order))
    with pytest.raises(ValueError, match=r"in \(0, 3, 100\). Received: 101 in .*seg.nii.gz \(2 pixels\)"):
        read_label(path, LabelRule({0: 0, 3: 1, 100: 2}))
    path = _write(tmp_path / "seg.nii.gz", _make_nifti(np.minimum(array, 100), order, scl_slope=2, scl_inter=1))
    np.testing.assert_array_equal(read_label(path, LabelRule({1: 0, 7: 1, 201: 2})), np.searchsorted([0, 3, 100], np.minimum(array, 100)))


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
    path = _write(tmp_path / "seg.nii", _make_nifti(array))
    for values in ({0: 0, 1: 1, 255: 2}, {0: 0, 1: 1, 255: 2, 300: 3}):
        with pytest.raises(ValueError, match=rf"Received: {text}.* in .*seg.nii \(1 pixels\)"):
            read_label(path, LabelRule(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_label_of_many_pieces_is_looked_up_to_its_end(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 3, (50, 60, 70)).astype(dtype)
    path = _write(tmp_path / "seg.nii", _make_nifti(array))
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 2, 1: 0, 2: 1})), (array + 2) % 3)
    array[-1, -1, -1] = 9
    with pytest.raises(ValueError, match=r"Received: 9 in .*seg.nii \(1 pixels\)"):
        read_label(_write(path, _make_nifti(array)), LabelRule({0: 2, 1: 0, 2: 1}))


def test_label_values_beyond_a_byte_are_read(tmp_path):
    array = np.array([[0, 1007], [2**24, 0]], np.int32)
    path = _write(tmp_path / "seg.nii", _make_nifti(array))
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 0, 1007: 1, 2**24: 2})), [[0, 1], [2, 0]])
    path = _write(tmp_path / "seg.nii", _make_nifti(array + 1))
    with pytest.raises(ValueError, match="4 pixels"):
        read_label(path, LabelRule({0: 0, 1007: 1, 2**24: 2}))


def test_what_is_no_file_is_not_there(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "file.nii").write_bytes(b"")
    (tmp_path / "link.nii").symlink_to("nowhere.nii")
    for name in ("folder.nii", "file.nii/a.nii", "link.nii", "absent.txt"):
        with pytest.raises(FileNotFoundError, match=f"Expected a file at .*{name}. Received: nothing there"):
            read_volume([tmp_path / name])


@pytest.mark.data
@pytest.mark.parametrize(("folder", "number"), [("hipmri", 10), ("hipmri3d", 3), ("ibsr18", 2), ("Task04_Hippocampus", 6)])
def test_real_scans_are_read_as_nibabel_reads_them(real_data, without_nibabel, folder, number):
    paths = sorted((real_data / folder).rglob("*.nii*"))
    paths = [path for path in paths if not path.name.startswith(".")]
    for path in paths[:: len(paths) // number]:
        _check_as_nibabel(path)
        if path.name.startswith("seg_") or "SEMANTIC" in path.name or "labels" in path.parent.name:
            array = np.asarray(nib.load(path).dataobj).squeeze()
            np.testing.assert_array_equal(read_label(path, LabelRule({value: value for value in range(6)})), array)


# ------------------------------------------------------------------------------------------------ where voxels lie


@pytest.mark.parametrize(("unit", "length"), [(1, 0.002), (2, 2.0), (3, 2000.0), (0, 2.0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_lengths_are_in_mm_whatever_the_headers_unit(tmp_path, unit, length, suffix):
    fields = {"xyzt_units": unit, "sform_code": 1, "pixdim": [1, length, length, length, 1, 1, 1, 1]}
    fields |= {"srow_x": [length, 0, 0, 5 * length], "srow_y": [0, length, 0, 0], "srow_z": [0, 0, length, 0]}
    path = _write(tmp_path / f"a{suffix}", _make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
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
    path = _write(tmp_path / "a.nii", _make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
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
        # nibabel takes a size of 0 for 1 mm, and an offset of 0 for that of the header: each would give a wrong result without a word.
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
    path = _write(tmp_path / "a.nii.gz", _make_nifti(np.zeros((3, 4, 5), np.int16), **fields))
    for read in (lambda: read_volume([path]), lambda: formats.read_grid(path)):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_nifti_2_of_no_offset_is_refused(tmp_path):
    nib.save(nib.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    np.frombuffer(data, nib.nifti2.header_dtype, 1)["vox_offset"] = 0
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match="Received: vox_offset 0, below 544, in a single file"):
        read_volume([tmp_path / "a.nii"])


@pytest.mark.parametrize(("code", "bits", "what"), [(128, 24, "colours"), (32, 64, "numbers of type complex64")])
def test_what_is_no_real_number_is_refused(tmp_path, code, bits, what):
    path = _write(tmp_path / "a.nii", _make_nifti(np.zeros((4, 4, 16), np.int16), datatype=code, bitpix=bits, dim=[3, 4, 4, 2, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=f"one real number a voxel in .*a.nii. Received: {what}, which are no intensities. Convert"):
        read_volume([path])


@pytest.mark.parametrize("name", ["a.Nii.Gz", "a.nii.GZ", "a.NIi"])
def test_a_suffix_in_any_case_is_read_and_written(tmp_path, name):
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        nib.save(kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 1, 1, 1])), tmp_path / f"b{name[1:].lower()}")
        path = (tmp_path / f"b{name[1:].lower()}").replace(tmp_path / name)
        assert read_volume([path]).array.sum() == formats.read_file(path).array.sum() == 59 * 30
        assert formats.read_grid(path).spacing_mm == (2, 1, 1)
        write_label_like(tmp_path / f"c{name[1:].lower()}", np.ones((3, 4, 5), np.uint8), path)
        assert nib.load(tmp_path / f"c{name[1:].lower()}").affine[0, 0] == 2


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(FileNotFoundError, match="Expected a file at .*a.nii"):
        read_volume([tmp_path / "a.nii"])


def test_a_picture_and_a_nifti_are_no_pair(write_nifti, write_picture):
    image, label = write_picture("a.png", np.ones((4, 4), np.uint8)), write_nifti("a.nii", np.ones((4, 4), np.uint8))
    with pytest.raises(ValueError, match="Expected image and label both as NIfTI, or both as pictures.*a.png and .*a.nii. Convert"):
        read_case(Case("a", "a", (image,), label), make_spec(Preprocessing(2), {1: 1}))
    with pytest.raises(ValueError, match="Expected image and channel both as NIfTI"):
        read_volume([image, label])


def test_a_file_that_inflates_far_beyond_its_header_is_refused_before_it_does(tmp_path):
    data = _make_nifti(np.zeros((3, 4, 5), np.int16))
    bomb = tmp_path / "bomb.nii.gz"
    for lie in (False, True):
        packed = bytearray(gzip.compress(data + bytes(1 << 28), 9))
        if lie:
            packed[-4:] = (len(data)).to_bytes(4, "little")
        bomb.write_bytes(packed)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"Received: a file of more than 1,049,\d+ bytes where its header promises 472"):
            read_volume([bomb])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 24
    # A little padding is common.
    padded = _write(tmp_path / "padded.nii.gz", data + bytes(1000))
    assert read_volume([padded]).array.shape == (3, 4, 5, 1)


def test_a_label_on_another_grid_is_brought_onto_its_images_or_refused(write_nifti, caplog):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 3
    image = write_nifti("a.nii", rng.random((4, 5, 6)))
    rules = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
    with caplog.at_level("INFO", "mri"):
        _, label = read_case(Case("a", "a", (image,), write_nifti("mirrored.nii", truth[::-1], flip)), rules)
    np.testing.assert_array_equal(label, truth)
    assert "label" in caplog.text
    assert "mirrored.nii has another grid over the same space than its image: turned" in caplog.text
    # 5x4 voxels of 0.8x1.25 mm lie over the same 4x5 mm as the image's. They are as many, but no turned grid.
    box = np.diag([0.8, 1.25, 1, 1])
    box[:3, 3] = -0.1, 0.125, 0
    with caplog.at_level("INFO", "mri"):
        read_case(Case("a", "a", (image,), write_nifti("box.nii", np.ascontiguousarray(truth.reshape(5, 4, 6)), box)), rules)
    assert "box.nii has another grid over the same space than its image: taken from the nearest voxels" in caplog.text
    moved = np.eye(4)
    moved[0, 3] = 30
    with pytest.raises(
        ValueError,
        match=r"image 4x5x6 of 1x1x1 mm, RAS, first voxel at \(0.00, 0.00, 0.00\) mm, .* in .*a.nii; label 4x5x6 .* at \(30.00, .*beside"
        r".*correct a header, or use it voxel by voxel with `--ignore-geometry`",
    ):
        read_case(Case("a", "a", (image,), write_nifti("beside.nii", truth, moved)), rules)


def test_a_label_is_used_voxel_by_voxel_where_the_user_says_so(write_nifti):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    image = write_nifti("a.nii", rng.random((4, 5, 6)))
    rules = make_spec(Preprocessing(3), {0: 0, 1: 1, 2: 2})
    moved, flip = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    moved[0, 3], flip[0, 3] = 30, 3
    cases = []
    for name, affine in [*((f"moved_{number}.nii", moved) for number in range(6)), ("flip.nii", flip), ("good.nii", np.eye(4))]:
        cases.append(Case(name, name, (image,), write_nifti(name, truth, affine), ignore_geometry=True))
        np.testing.assert_array_equal(read_case(cases[-1], rules)[1], truth)
    lines = describe_ignored([*cases, Case("x", "x", (image,), write_nifti("x.nii", truth, moved)), Case("y", "y", (image,))])
    assert [line.split(" is used voxel by voxel")[0].rpartition("/")[2] for line in lines[:-1]] == [f"moved_{n}.nii" for n in range(5)]
    assert "first voxel at (30.00, 0.00, 0.00) mm, last at (33.00, 4.00, 5.00) mm, its image at 4x5x6 of 1x1x1 mm, RAS, first" in lines[0]
    assert lines[-1] == "--ignore-geometry: 7 labels lie elsewhere than their images; the first 5 are named above"
    assert describe_ignored(cases[-1:]) == []
    # Voxels of another number have no partners.
    short = Case("s", "s", (image,), write_nifti("short.nii", truth[:3], moved), ignore_geometry=True)
    with pytest.raises(ValueError, match=r"over the same space.*short.nii.*correct a header\.$"):
        read_case(short, rules)


def test_a_channel_on_another_grid_is_turned_or_refused(write_nifti):
    array = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = 5
    first = write_nifti("a_0000.nii", array)
    volume = read_volume([first, write_nifti("a_0001.nii", array[..., ::-1] + 1, flip)])
    np.testing.assert_allclose(volume.array[..., 1], array + 1, rtol=1e-6)
    with pytest.raises(ValueError, match="Expected image and channel over the same space.*coarse.nii"):
        read_volume([first, write_nifti("coarse.nii", array[::2], np.diag([2.0, 1, 1, 1]))])


def test_members_behind_the_image_are_looked_at(tmp_path, inflater):
    data = _make_nifti(np.random.default_rng(0).integers(0, 90, (40, 40), np.int16))
    path = tmp_path / "a.nii.gz"
    zeros = gzip.compress(bytes(1 << 20))
    path.write_bytes(gzip.compress(data) + zeros * 64)
    with pytest.raises(
        ValueError, match=r"whole NIfTI file in .*a.nii.gz. Received: a file of more than .* where its header promises 3,552"
    ):
        read_volume([path])
    path.write_bytes(gzip.compress(data) + zeros[:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"whole NIfTI file in .*a.nii.gz"):
        read_volume([path])


def test_what_nibabel_reads_is_checked_to_its_end(tmp_path):
    """A NIfTI-2: nibabel stops at the last voxel, before the check sum and whatever follows."""
    data = nib.Nifti2Image(np.random.default_rng(0).integers(0, 90, (40, 30, 20), np.int16), np.eye(4)).to_bytes()
    path, packed = tmp_path / "a.nii.gz", gzip.compress(data)
    path.write_bytes(packed)
    assert read_volume([path]).array.shape == (40, 30, 20, 1)
    for spoilt in (gzip.compress(data + bytes(3 << 20)), gzip.compress(data[:-3]), packed[:-8] + b"abcd" + packed[-4:]):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"whole NIfTI file in .*a.nii.gz. Received: [^.]"):
            read_volume([path])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_a_cut_file_promises_is_not_allocated(tmp_path, suffix):
    """A NIfTI-2 of 784 bytes that promises 0.9 GiB: nibabel would allocate and clear them before it reads."""
    data = bytearray(nib.Nifti2Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<q", data, 40, 4 + (255 << 16))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"whole NIfTI file in .*a.nii.* Received: 784 bytes where the header promises 1002701584"):
            read_volume([path])
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_an_affine_beyond_all_numbers_is_one_line_without_a_warning(tmp_path, recwarn):
    data = bytearray(nib.Nifti2Image(np.ones((3, 4, 5), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<d", data, 400, 1e200)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match=r"Expected voxels of 0.0001 to 5000 mm in .*a.nii. Received: inf mm along axis 0"):
        read_volume([tmp_path / "a.nii"])
    assert not recwarn.list


def test_a_header_of_more_voxels_than_any_memory_holds_is_one_line(tmp_path, capfd):
    data = bytearray(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<8h", data, 40, 7, *[30_000] * 3, 1, 1, 1, 30_000)
    path = tmp_path / "a.nii"
    path.write_bytes(data)
    for read in (read_volume, read_header):
        with pytest.raises(ValueError, match=r"Expected .* in .*a.nii. Received: [^.]"):
            read([path])
    assert capfd.readouterr() == ("", "")
