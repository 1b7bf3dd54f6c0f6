"""Reading NIfTI: a file that is read without nibabel gives what nibabel gives, and a damaged one is refused."""

import gzip
import struct
import tracemalloc
import zlib
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from nifti_helpers import make_nifti, write_packed

from modules.data import formats, nifti
from modules.data.case import LabelRule, read_header, read_label, read_volume

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.fixture
def without_nibabel(monkeypatch):
    """Makes every file that is left to nibabel an error."""

    def fail(path, data):
        raise AssertionError(f"{path} was left to nibabel")

    monkeypatch.setattr(formats, "load_nifti", fail)


@pytest.fixture(params=["isal", "zlib"])
def inflater(request, monkeypatch):
    """Inflates with isal, and with zlib as if isal were not installed."""
    monkeypatch.setattr(nifti, "inflater", zlib if request.param == "zlib" else pytest.importorskip("isal.isal_zlib"))


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
        data = make_nifti(array, "<>"[rng.integers(2)], padding=int(rng.choice([0, 0, 16, 4])), **fields)
        _check_as_nibabel(write_packed(tmp_path / ["a.nii", "a.nii.gz", "A.NII.GZ"][rng.integers(3)], data))


def test_large_integers_are_rounded_as_nibabel_rounds_them(tmp_path, without_nibabel):
    # Halfway between two numbers of float32, and one above: float64 does not know that one, and then the even number is taken.
    array = np.full((3, 4), 2**60 + 2**36 + 1, np.int64)
    path = write_packed(tmp_path / "a.nii", make_nifti(array))
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
    load, asked = formats.load_nifti, []
    monkeypatch.setattr(formats, "load_nifti", lambda path, data: asked.append(path) or load(path, data))
    path = write_packed(tmp_path / "a.nii.gz", make_nifti(np.arange(60, dtype=np.int16).reshape(3, 4, 5), **fields))
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
        path = write_packed(tmp_path / name, make_nifti(np.zeros((4, 4, 2), np.int16), **fields))
        with pytest.raises(ValueError, match=f"whole NIfTI file in .*{name}.*({message})"):
            read_volume([path])


def test_gzip_of_several_members_is_read_whole(tmp_path, without_nibabel, inflater):
    array = np.random.default_rng(0).integers(-9, 9, (40, 50), np.int16)
    data = make_nifti(array)
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


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_every_dtype_become_classes(tmp_path, without_nibabel, dtype, order):
    array = np.random.default_rng(0).choice([0, 3, 100], (6, 5, 4)).astype(dtype)
    expected = np.searchsorted([0, 3, 100], array)
    path = write_packed(tmp_path / "seg.nii.gz", make_nifti(array, order))
    label = read_label(path, LabelRule({0: 0, 3: 1, 100: 2}))
    assert (label.dtype, label.flags.f_contiguous, label.flags.writeable) == (np.uint8, True, True)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(read_label(path, LabelRule({0: 0, 3: 1, 100: 2, 1000: 4})), expected)
    array[0, 0, :2] = 101
    path = write_packed(tmp_path / "seg.nii.gz", make_nifti(array, order))
    with pytest.raises(ValueError, match=r"in \(0, 3, 100\). Received: 101 in .*seg.nii.gz \(2 pixels\)"):
        read_label(path, LabelRule({0: 0, 3: 1, 100: 2}))
    path = write_packed(tmp_path / "seg.nii.gz", make_nifti(np.minimum(array, 100), order, scl_slope=2, scl_inter=1))
    np.testing.assert_array_equal(read_label(path, LabelRule({1: 0, 7: 1, 201: 2})), np.searchsorted([0, 3, 100], np.minimum(array, 100)))


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


def test_a_file_that_inflates_far_beyond_its_header_is_refused_before_it_does(tmp_path):
    data = make_nifti(np.zeros((3, 4, 5), np.int16))
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
    padded = write_packed(tmp_path / "padded.nii.gz", data + bytes(1000))
    assert read_volume([padded]).array.shape == (3, 4, 5, 1)


def test_members_behind_the_image_are_looked_at(tmp_path, inflater):
    data = make_nifti(np.random.default_rng(0).integers(0, 90, (40, 40), np.int16))
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


def test_a_header_of_more_voxels_than_any_memory_holds_is_one_line(tmp_path, capfd):
    data = bytearray(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).to_bytes())
    struct.pack_into("<8h", data, 40, 7, *[30_000] * 3, 1, 1, 1, 30_000)
    path = tmp_path / "a.nii"
    path.write_bytes(data)
    for read in (read_volume, read_header):
        with pytest.raises(ValueError, match=r"Expected .* in .*a.nii. Received: [^.]"):
            read([path])
    assert capfd.readouterr() == ("", "")
