"""DICOM series: equal to their pixels and to SimpleITK's geometry, or refused in one line."""

import hashlib
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_helpers import draw_volume, make_enhanced, make_file, write_series
from helpers import make_spec
from pydicom.pixels import get_encoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from modules.data.cache import prepare_cases
from modules.data.case import Case, read_case, read_volume
from modules.data.formats import hash_source, list_files, read_file, read_grid
from modules.data.inventory import describe_files
from modules.data.preprocess import Preprocessing
from modules.data.series import import_pydicom, read_header
from modules.run.proof import make_manifest

OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, 0.8)


def _to_ras(sitk_image):
    """The affine of a SimpleITK image to RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(sitk_image.GetDirection(), (3, 3)) * sitk_image.GetSpacing()
    affine[:3, 3] = sitk_image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


def _expect_line(folder, message, *reads):
    for read in reads or (read_file, read_grid):
        with pytest.raises(ValueError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("directions", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
def test_a_series_is_sorted_by_position_and_lies_where_simpleitk_says(tmp_path, directions):
    sitk = pytest.importorskip("SimpleITK")
    volume = draw_volume()
    paths = write_series(tmp_path / "s", volume, directions=directions)
    stored = read_file(tmp_path / "s")
    reference = sitk.ReadImage([str(path) for path in paths])
    np.testing.assert_array_equal(stored.array[..., 0], volume.transpose(2, 1, 0))
    np.testing.assert_array_equal(stored.array[..., 0], sitk.GetArrayFromImage(reference).transpose(2, 1, 0))
    corners = np.array([[0, 0, 0, 1], [6, 5, 4, 1], [6, 0, 4, 1], [0, 5, 0, 1]]).T
    np.testing.assert_allclose(stored.affine @ corners, _to_ras(reference) @ corners, atol=1e-4)
    # Not the 99 mm of SliceThickness.
    assert stored.spacing_mm == pytest.approx((0.75, 1.5, 2.5))
    grid = read_grid(tmp_path / "s")
    assert (grid.array.shape, grid.spacing_mm) == (stored.array.shape, stored.spacing_mm)
    np.testing.assert_array_equal(grid.affine, stored.affine)


def test_twelve_of_sixteen_bits_are_rescaled(tmp_path):
    volume = draw_volume(dtype=np.uint16)
    # The four high bits are not part of the number.
    dirty = volume | np.uint16(0xA000)
    write_series(tmp_path / "s", dirty, BitsStored=12, RescaleSlope=0.5, RescaleIntercept=-1024)
    stored = read_file(tmp_path / "s")
    assert stored.array.dtype == np.float32
    np.testing.assert_array_equal(stored.array[..., 0], volume.transpose(2, 1, 0) * 0.5 - 1024)
    signed = draw_volume(dtype=np.int16) - 2000
    write_series(tmp_path / "t", signed & np.int16(0x0FFF), BitsStored=12)
    np.testing.assert_array_equal(read_file(tmp_path / "t").array[..., 0], signed.transpose(2, 1, 0))


def test_each_slice_has_a_slope_of_its_own(tmp_path):
    volume = draw_volume()

    def scale(data, number):
        data.RescaleSlope, data.RescaleIntercept = number + 1, 0

    write_series(tmp_path / "s", volume, change=scale)
    np.testing.assert_array_equal(read_file(tmp_path / "s").array[..., 0], volume.transpose(2, 1, 0) * np.arange(1, 6))


def test_many_frames_lie_where_their_groups_say(tmp_path):
    volume = draw_volume()
    path = tmp_path / "a.dcm"
    make_enhanced(volume, slopes=[1, 2, 3, 4, 5]).save_as(path, enforce_file_format=True)
    write_series(tmp_path / "s", volume)
    for place in (path, tmp_path / "one"):
        if place != path:
            place.mkdir()
            path.rename(place / "IM1")
        stored, plain = read_file(place), read_file(tmp_path / "s")
        np.testing.assert_array_equal(stored.array[..., 0], volume.transpose(2, 1, 0) * np.arange(1, 6))
        np.testing.assert_allclose(stored.affine, plain.affine)


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(RLELossless, "pydicom"), (JPEGLSLossless, "jpeg_ls"), (JPEG2000Lossless, "openjpeg")],
    ids=["rle", "jpeg-ls", "jpeg-2000"],
)
def test_packed_pixels_are_unpacked(tmp_path, syntax, package):
    pytest.importorskip(package)
    if not get_encoder(syntax).is_available:
        pytest.skip(f"no encoder of {syntax.name}")
    # JPEG 2000 halves a picture five times.
    volume = draw_volume((2, 64, 72), np.uint16)

    def pack(data, number):
        data.compress(syntax, generate_instance_uid=False)

    write_series(tmp_path / "s", volume, change=pack, BitsStored=12)
    np.testing.assert_array_equal(read_file(tmp_path / "s").array[..., 0], volume.transpose(2, 1, 0))


def test_a_decoder_that_is_not_there_is_named(tmp_path, monkeypatch):
    import pydicom

    def mark(data, number):
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        data["PixelData"].VR = "OB"

    write_series(tmp_path / "s", draw_volume(), change=mark)
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: type("Decoder", (), {"is_available": False}))
    _expect_line(tmp_path / "s", r"a decoder of JPEG Lossless.* Install it: pip install pylibjpeg pylibjpeg-libjpeg$")


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_series(tmp_path / "s", draw_volume())
    import_pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"Expected pydicom to read DICOM files. Received: it is not installed. .*pip install pydicom; "):
        read_file(tmp_path / "s")
    import_pydicom.cache_clear()


def _remove(number):
    return lambda paths: paths[number].unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove(2), r"slices 2.5 mm apart in .*s. Received: a gap of 5 mm behind slice 2 \(IM\d+\), so that about 1 of 5 slices"),
        (lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-20]), r"whole DICOM file in .*IM\d+. Received: "),
        (lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:300]), r"whole DICOM file in .*IM\d+. Received: "),
        (lambda paths: (paths[0].with_name("x.dcm")).touch(), r"a DICOM file in .*x.dcm. Received: an empty file"),
        (lambda paths: (paths[0].with_name("x.dcm")).write_text("none" * 99), r"in .*x.dcm. Received: no mark of DICOM"),
    ],
    ids=["missing slice", "cut pixels", "cut header", "empty file", "no DICOM"],
)
def test_files_that_are_missing_or_cut_are_named(tmp_path, spoil, message):
    spoil(write_series(tmp_path / "s", draw_volume()))
    _expect_line(tmp_path / "s", message, read_file)


def _set(**fields):
    """Changes the third slice."""

    def change(data, number):
        if number == 2:
            for name, value in fields.items():
                setattr(data, name, value)

    return change


def _lean(data, number):
    data.ImagePositionPatient[1] += 0.5 * number


def _drop(name):
    def change(data, number):
        delattr(data, name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set(ImagePositionPatient=[-10, 20, 7.5], EchoTime=80),
            r"one slice at each place in .*s. Received: IM\d+ and IM\d+ at one place, ",
        ),
        (_set(ImagePositionPatient=[-10, 20, 9.0]), r"Expected slices at equal distances in .*s. Received: a slice 1 mm beside"),
        (_set(ImagePositionPatient=[-9, 20, 10.0]), r"Received: a slice that is shifted by 1 mm within its plane"),
        (_set(Rows=3, PixelData=bytes(42)), r"slices of one size in .*s. Received: 4 of 7x6, 1 of 7x3"),
        (
            _set(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
            "slices of one orientation in .*s. Received: 4 of 1 0 0 0 1 0, 1 of 0 1 0 0 0 -1",
        ),
        (_set(PixelSpacing=[1, 1]), "slices of one pixel spacing in .*s. Received: 4 of 1.5 0.75, 1 of 1 1"),
        (_lean, r"straight above one another in .*s. Received: a stack that leans by 11.3 degrees \(gantry tilt\)"),
        (_drop("PixelSpacing"), "Expected PixelSpacing in .*IM.*. Received: none, so that nothing says how large a pixel is"),
        (_drop("ImagePositionPatient"), "Expected ImagePositionPatient in .*IM.*. Received: none, so that nothing says where"),
        (_drop("ImageOrientationPatient"), "Expected ImageOrientationPatient in .*IM"),
        (_set(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "one slice a picture in .*IM.*. Received: a mosaic of slices. Convert"),
        (_set(RescaleSlope=0), "Received: a RescaleSlope of 0"),
        (_set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "slices of one orientation"),
        (_set(Columns=700), r"Received: \d+ bytes where its header promises 8400"),
    ],
)
def test_slices_that_make_no_stack_are_one_line(tmp_path, change, message):
    write_series(tmp_path / "s", draw_volume(), change=change)
    _expect_line(tmp_path / "s", message)


def test_images_of_one_place_say_how_they_differ_and_a_copied_file_is_read_once(tmp_path, caplog):
    volume = draw_volume()
    paths = write_series(tmp_path / "s", volume, EchoTime=30)
    (tmp_path / "s" / "copy").write_bytes(paths[1].read_bytes())
    caplog.set_level("INFO")
    np.testing.assert_array_equal(read_file(tmp_path / "s").array[..., 0], volume.transpose(2, 1, 0))
    assert "1 DICOM file(s) are there twice and are read once: " in caplog.text
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    (tmp_path / "s" / "copy").write_bytes(data)
    _expect_line(tmp_path / "s", "files of different SOPInstanceUIDs. Received: .* with the same one, and they differ")
    (tmp_path / "s" / "copy").unlink()
    write_series(tmp_path / "s" / "second", volume, EchoTime=80)
    _expect_line(tmp_path / "s", r"at one place, which differ in EchoTime \(30.0 and 80.0\), and 5 such pair")


def test_colours_and_tables_are_refused(tmp_path):
    colours = np.zeros((5, 6, 7 * 3), np.uint8)
    write_series(tmp_path / "s", colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, Columns=7)
    _expect_line(tmp_path / "s", r"one grey value a pixel in .*. Received: colour \(RGB\), so no intensities. Take the original series")


def test_packed_pixels_that_promise_another_size_are_never_decoded(tmp_path):
    pytest.importorskip("jpeg_ls")

    def pack(data, number):
        data.compress(JPEGLSLossless, generate_instance_uid=False)
        data.Rows = 60000

    write_series(tmp_path / "s", draw_volume((2, 6, 7), np.uint16), change=pack)
    _expect_line(tmp_path / "s", r"in .*IM\d+. Received: packed pixels of 7x6 where the header says 7x60000", read_file)

    def pack_more(data, number):
        pack(data, number)
        data.Columns = 60000

    write_series(tmp_path / "t", draw_volume((2, 6, 7), np.uint16), change=pack_more)
    _expect_line(tmp_path / "t", r"Expected whole DICOM files in .*t. Received: [\d,]+ bytes for pixels of 14,400,000,000")


def test_frames_without_groups_have_no_place(tmp_path):
    make_file(draw_volume(), NumberOfFrames=5).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    _expect_line(tmp_path / "a.dcm", "in .*a.dcm. Received: 5 frames without functional groups")
    data = make_enhanced(draw_volume())
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:3]
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    _expect_line(tmp_path / "b.dcm", "in .*b.dcm. Received: 3 functional groups for 5 frames")


def test_one_slice_is_a_slice(tmp_path):
    (path,) = write_series(tmp_path / "s", draw_volume((1, 6, 7)))
    assert read_file(tmp_path / "s").array.shape == read_file(path).array.shape == (7, 6, 1)


def test_a_series_has_the_files_and_the_hash_of_its_slices(tmp_path):
    paths = write_series(tmp_path / "s", draw_volume())
    assert list_files(tmp_path / "s") == sorted(paths)
    case = Case("s", "s", (tmp_path / "s",), series=("1.2.3.4",))
    assert case.list_files() == sorted(paths)
    given = []
    volume = read_volume([tmp_path / "s"], given.append, ("1.2.3.4",))
    assert volume.array.dtype == np.float32
    assert given == [b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(paths))]
    assert hash_source(tmp_path / "s") == hashlib.sha256(given[0]).hexdigest()
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="Expected DICOM files in the folder .*none. Received: none"):
        read_file(tmp_path / "none")


def test_a_training_takes_a_series_with_a_label_of_another_format(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    volume = draw_volume()
    paths = write_series(tmp_path / "s", volume, directions=OBLIQUE)
    truth = (volume > 2000).astype(np.uint8)
    label = sitk.GetImageFromArray(truth)
    label.CopyInformation(sitk.ReadImage([str(path) for path in paths]))
    sitk.WriteImage(sitk.PermuteAxes(label, (1, 2, 0)), str(tmp_path / "l.mhd"), True)
    spec = make_spec(Preprocessing(3), {0: 0, 1: 1})
    case = Case("s", "s", (tmp_path / "s",), tmp_path / "l.mhd")
    image, own = read_case(case, spec)
    np.testing.assert_array_equal(own, truth.transpose(2, 1, 0))
    assert image.spacing_mm == pytest.approx((0.75, 1.5, 2.5))
    assert describe_files(tmp_path, {"train": [case]}) == [f"files: 7 found below {tmp_path}, 7 used, 0 left out"]
    (prepared,) = prepare_cases([case], spec, Preprocessing(3), tmp_path / "cache")
    hashes = list(make_manifest({"train": [case]}, tmp_path).values())
    assert hashes == [["train", digest] for digest in prepared.sources_sha256]
    # A slice that is replaced is seen, although the folder is the same.
    write_series(tmp_path / "s", volume[::-1], directions=OBLIQUE)
    (other,) = prepare_cases([case], spec, Preprocessing(3), tmp_path / "cache")
    assert prepared.sources_sha256[0] != other.sources_sha256[0]
    assert prepared.sources_sha256[1] == other.sources_sha256[1]


def test_reading_other_formats_imports_no_library_of_these():
    code = (
        "import sys, modules.data.case, modules.predict.dicom_inputs; "
        "sys.exit(bool({'pydicom', 'SimpleITK', 'nibabel'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("name", [b"UI", b"SH"])
def test_a_deflated_file_is_never_inflated(tmp_path, name):
    def element(number, kind, value):
        return struct.pack("<2H2sH", 2, number, kind, len(value)) + value

    # The element that says so may lie far behind, and call itself something else.
    head = element(3, b"UI", b"1" * 60_000) + element(16, name, b"1.2.840.10008.1.2.1.99")
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(128) + b"DICM" + head + zlib.compress(bytes(1 << 16), wbits=-15))
    with pytest.raises(ValueError, match=r"Expected a DICOM file that is not deflated in .*a.dcm. Received: one that is."):
        read_header(path)
