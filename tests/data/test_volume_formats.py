"""MetaImage, NRRD and MGH: equal to their own libraries, and refused in one line where the header lies."""

import gzip
import hashlib
import sys

import nibabel as nib
import numpy as np
import pytest

from modules.data import volume_formats
from modules.data.case import read_volume
from modules.data.formats import hash_source, list_files, read_file, read_grid, write_label_like, write_probabilities_like

# An oblique grid: columns of right angles, none along an axis.
TURN = np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0.0, 0.8, 0.6]])
SPACING, ORIGIN = (0.7, 1.3, 2.1), (-31.5, 12.25, 407.0)
CORNERS = np.array([[0, 0, 0, 1], [6, 5, 4, 1], [6, 0, 4, 1], [0, 5, 0, 1]]).T


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK")


@pytest.fixture
def write_itk(sitk, tmp_path):
    """Writes an array `(z, y, x)` or, with channels, `(z, y, x, c)` on the oblique grid; returns path and SimpleITK's image."""

    def write(name, array, packed=False, **options):
        image = sitk.GetImageFromArray(array, **options)
        if image.GetDimension() == 3:
            image.SetSpacing(SPACING)
            image.SetOrigin(ORIGIN)
            image.SetDirection(TURN.ravel())
        sitk.WriteImage(image, str(tmp_path / name), packed)
        return tmp_path / name, image

    return write


def _draw(dtype=np.int16, shape=(5, 6, 7)):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def _expect_line(path, message, *reads):
    for read in reads or (read_file, read_grid):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_itk_files_lie_where_simpleitk_says(write_itk, sitk, tmp_path, suffix, packed):
    array = _draw()
    path, image = write_itk(f"a{suffix}", array, packed)
    stored = read_file(path)
    assert stored.array.dtype == np.int16
    np.testing.assert_array_equal(stored.array[..., 0], array.transpose(2, 1, 0))
    assert stored.spacing_mm == pytest.approx(SPACING)
    for corner in CORNERS.T:
        left, back, up = image.TransformContinuousIndexToPhysicalPoint(tuple(map(float, corner[:3])))
        np.testing.assert_allclose((stored.affine @ corner)[:3], (-left, -back, up), atol=1e-4)
    grid = read_grid(path)
    assert (grid.array.shape, grid.spacing_mm) == (stored.array.shape, stored.spacing_mm)
    np.testing.assert_array_equal(grid.affine, stored.affine)
    files = list_files(path)
    assert len(files) == (2 if suffix in (".mhd", ".nhdr") else 1)
    given = []
    read_volume([path], given.append)
    assert hash_source(path) == hashlib.sha256(given[0]).hexdigest()


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_types_channels_and_slices_of_itk_files(write_itk, suffix):
    for dtype, wanted in ((np.uint8, np.uint8), (np.uint16, np.uint16), (np.float64, np.float32), (np.float32, np.float32)):
        stored = read_file(write_itk(f"a{suffix}", _draw(dtype))[0])
        assert stored.array.dtype == wanted
        np.testing.assert_array_equal(stored.array[..., 0], _draw(dtype).transpose(2, 1, 0))
    channels = _draw(np.float32, (5, 6, 7, 2))
    np.testing.assert_array_equal(read_file(write_itk(f"b{suffix}", channels, isVector=True)[0]).array, channels.transpose(2, 1, 0, 3))
    np.testing.assert_array_equal(
        read_file(write_itk(f"c{suffix}", _draw(shape=(1, 6, 7)))[0]).array, _draw(shape=(1, 6, 7)).transpose(2, 1, 0)
    )
    flat = read_file(write_itk(f"d{suffix}", _draw(shape=(6, 7)))[0])
    np.testing.assert_array_equal(flat.array[..., 0], _draw(shape=(6, 7)).T)
    np.testing.assert_array_equal(flat.affine, np.diag([-1, -1, 1, 1]))
    times = _draw(np.float32, (2, 5, 6, 7))
    np.testing.assert_array_equal(read_file(write_itk(f"e{suffix}", times, isVector=False)[0]).array, times.transpose(3, 2, 1, 0))
    if suffix == ".nrrd":
        # A MetaImage of complex numbers says that it has two channels.
        _expect_line(write_itk(f"f{suffix}", _draw(np.complex64))[0], "Received: numbers of the type complex of 32-bit float")


def test_a_nrrd_of_another_space_lies_in_the_same_place(write_itk):
    path, _ = write_itk("a.nrrd", _draw())
    stored = read_file(path)
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    lines = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line and not line.startswith("#"))
    axes = [f"({','.join(f'{value:.17g}' for value in column)})" for column in stored.affine[:3, :3].T]
    lines |= {"space": "right-anterior-superior", "space directions": " ".join(axes)}
    lines["space origin"] = f"({','.join(f'{value:.17g}' for value in stored.affine[:3, 3])})"
    path.write_bytes("\n".join(["NRRD0004", *(f"{name}: {value}" for name, value in lines.items())]).encode() + b"\n\n" + voxels)
    np.testing.assert_allclose(read_file(path).affine, stored.affine, atol=1e-9)


def _replace(old, new):
    return lambda data: data.replace(old, new, 1)


MHA = {
    "many voxels": (_replace(b"DimSize = 7 6 5", b"DimSize = 70000 60000 5"), "bytes of voxels where the header promises 42000000000"),
    "no axes": (_replace(b"NDims = 3", b"NDims = 100000"), "Received: 100000 axes"),
    "no size": (_replace(b"DimSize = 7 6 5", b"DimSize = 7 0 5"), "Received: 3 axes of the sizes 7 0 5"),
    "no spacing": (_replace(b"ElementSpacing", b"ElementGap"), r"no size of a voxel \(ElementSpacing\)"),
    "cut": (lambda data: data[:-10], r"Received: \d+ bytes of (packed )?voxels where"),
    "cut header": (lambda data: data[:60], "Received: a header that is cut"),
    "other type": (_replace(b"MET_SHORT", b"MET_STRING"), "numbers of the type MET_STRING"),
    "other file": (_replace(b"= LOCAL", b"= /etc/passwd"), "Received: voxels in '/etc/passwd' and not in one file beside its header"),
    "list": (_replace(b"= LOCAL", b"= LIST"), "Received: voxels in 'LIST'"),
    "absent file": (_replace(b"= LOCAL", b"= b.raw"), "Received: no b.raw beside it"),
    "text": (lambda data: b"hello", "no header of a MetaImage"),
    "sign": (_replace(b"NDims = ", b"NDims\x0b= "), "no header of a MetaImage|a header that is cut"),
    "far": (_replace(b"Offset = -31.5", b"Offset = 1e9"), "within .* mm of the origin"),
}
NRRD = {
    "many voxels": (_replace(b"sizes: 7 6 5", b"sizes: 70000 60000 5"), "bytes of voxels where the header promises 42000000000"),
    "no axes": (_replace(b"dimension: 3", b"dimension: 9"), "Received: 9 axes"),
    "no spacing": (_replace(b"space directions", b"space gaps"), r"no size of a voxel \(space directions\)"),
    "cut": (lambda data: data[:-10], "Received: .*(bytes of voxels where|too early)"),
    "cut header": (lambda data: data[:200], "Received: "),
    "encoding": (_replace(b"encoding: ", b"encoding: un"), "Received: the encoding un"),
    "other file": (lambda data: data.replace(b"space origin", b"data file: ../b.raw\nspace origin"), "Received: voxels in '../b.raw'"),
    "text": (lambda data: b"hello", "no header of a NRRD"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("suffix", "kind"), [*((".mha", kind) for kind in MHA), *((".nrrd", kind) for kind in NRRD)])
def test_a_header_that_lies_is_one_line(write_itk, suffix, kind, packed):
    path, _ = write_itk(f"a{suffix}", _draw(), packed)
    spoil, message = (MHA if suffix == ".mha" else NRRD)[kind]
    path.write_bytes(spoil(path.read_bytes()))
    _expect_line(path, message)


def test_packed_voxels_that_simpleitk_cannot_unpack_are_refused(write_itk):
    # It would return what the memory held, and only print a line.
    path, _ = write_itk("a.mha", _draw(), True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CompressedDataSize", b"CompressedDataSpan"))
    _expect_line(path, "Received: voxels that SimpleITK cannot unpack", read_file)
    size = data.partition(b"CompressedDataSize = ")[2].partition(b"\n")[0]
    path.write_bytes(data.replace(b"CompressedDataSize = " + size, b"CompressedDataSize = 7"))
    _expect_line(path, "Received: voxels that SimpleITK cannot unpack", read_file)
    # Bytes behind the voxels do no harm.
    path.write_bytes(data + b"\n")
    np.testing.assert_array_equal(read_file(path).array[..., 0], _draw().transpose(2, 1, 0))


def test_packed_voxels_of_far_more_than_the_header_promises_are_refused(write_itk):
    path, _ = write_itk("a.nrrd", np.zeros((5, 6, 7), np.uint8), True)
    head, _, _ = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n\n" + gzip.compress(bytes(3 << 20)))
    _expect_line(path, "Received: more than 1,048,786 bytes of voxels where its header promises 210")


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh"])
def test_empty_and_renamed_files_are_one_line(tmp_path, write_nifti, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    _expect_line(path, "Expected an image in .* Received: an empty file", read_file)
    path.write_bytes(write_nifti("b.nii", _draw()).read_bytes())
    _expect_line(path, "Expected a whole (MetaImage|NRRD|MGH) file in .*a.m?")


def test_without_simpleitk_one_line_says_what_to_install(write_itk, monkeypatch):
    path, _ = write_itk("a.mha", _draw())
    volume_formats.import_sitk.cache_clear()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    _expect_line(
        path, "^Expected SimpleITK to read or write .* Received: it is not installed. Install it: pip install SimpleITK; the extra"
    )
    volume_formats.import_sitk.cache_clear()


# ------------------------------------------------------------------------------------------------------------- FreeSurfer


def _write_mgh(path, array):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * SPACING, ORIGIN
    nib.save(nib.MGHImage(array, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.Mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_mgh_files_lie_where_nibabel_says(tmp_path, name, dtype):
    array = _draw(dtype, (7, 6, 5))
    path = _write_mgh(tmp_path / name.lower(), array).replace(tmp_path / name)
    stored, reference = read_file(path), nib.load(path)
    assert stored.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored.array[..., 0], array)
    np.testing.assert_allclose(stored.affine @ CORNERS, reference.affine @ CORNERS, atol=1e-6)
    assert stored.spacing_mm == pytest.approx(SPACING)
    np.testing.assert_array_equal(read_grid(path).affine, stored.affine)


def test_mgh_files_of_many_frames_have_channels(tmp_path):
    array = _draw(np.float32, (7, 6, 5, 3))
    np.testing.assert_array_equal(read_file(_write_mgh(tmp_path / "a.mgz", array)).array, array)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-30], "bytes where the header promises"),
        (lambda data: data[:100], "a file that ends within its header"),
        (lambda data: data[:4] + (60000).to_bytes(4, "big") * 2 + data[12:], "bytes where the header promises 36000000284"),
        (lambda data: data[:4] + (-7).to_bytes(4, "big", signed=True) + data[8:], "sizes .-7, 6, 5, 1. and type 4"),
        (lambda data: data[:20] + (9).to_bytes(4, "big") + data[24:], "and type 9 in its header"),
    ],
)
@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_an_mgh_header_that_lies_is_one_line(tmp_path, spoil, message, suffix):
    data = _write_mgh(tmp_path / "b.mgh", _draw(np.int16, (7, 6, 5))).read_bytes()
    spoilt = spoil(data[: 284 + 420])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(spoilt) if suffix == ".mgz" else spoilt)
    _expect_line(path, f"Expected a whole MGH file in .*a{suffix}. Received: .*{message}", read_file)


# ---------------------------------------------------------------------------------------------------------------- results


def test_a_result_as_nifti_lies_where_a_scan_of_another_format_does(tmp_path, write_itk):
    path, image = write_itk("a.nrrd", _draw())
    stored = read_file(path)
    label = np.zeros((7, 6, 5), np.uint8)
    label[6, 0, 4] = 3
    write_label_like(tmp_path / "a.nii.gz", label, path, stored.affine)
    result = nib.load(tmp_path / "a.nii.gz")
    assert (result.shape, result.get_data_dtype()) == ((7, 6, 5), np.uint8)
    left, back, up = image.TransformContinuousIndexToPhysicalPoint((6.0, 0.0, 4.0))
    np.testing.assert_allclose((result.affine @ [6, 0, 4, 1])[:3], (-left, -back, up), atol=1e-4)
    np.testing.assert_allclose(result.get_qform(), result.affine, atol=1e-4)
    assert result.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(result.dataobj), label)
    write_probabilities_like(tmp_path / "p.nii.gz", np.ones((7, 6, 2), np.float32), path, stored.affine)
    assert nib.load(tmp_path / "p.nii.gz").shape == (7, 6, 1, 2)
    with pytest.raises(ValueError, match="Expected the affine of the image for .*b.nii.gz. Received: none, so that"):
        write_label_like(tmp_path / "b.nii.gz", label, path)
