"""Label maps of every format lie where their scan lies, and carry names and colours."""

import json
import sys

import cv2
import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line
from output_helpers import AFFINE, CORNERS, ORIGIN, SPACING, TURN, VALUES, draw_scan, find_bands, save_bands

import predict
from modules import reports
from modules.data.case import LabelRule, read_label
from modules.data.colours import PALETTE
from modules.data.formats import read_file
from modules.data.volume_formats import import_sitk

SCAN = draw_scan()
EXPECTED = np.asarray(VALUES)[find_bands(SCAN)]
SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "mgz": ".mgz"}
CLASS_TABLE = [{"value": 3, "name": "grey matter", "colour": PALETTE[0]}, {"value": 170, "name": 'the "core"', "colour": PALETTE[1]}]


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Bundles for volumes, for the same with regions, and for slices."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "volumes": save_bands(folder / "volumes"),
        "regions": save_bands(folder / "regions", regions=True),
        "slices": save_bands(folder / "slices", dims=2),
    }


@pytest.fixture
def run(bands, tmp_path, monkeypatch):
    """Predicts paths into `out` without drawing them; returns the exit status."""
    monkeypatch.setattr(reports, "draw_overlay", lambda path, *_, **__: path.touch())

    def call(*argv, model="volumes"):
        flags = ["--model", str(bands[model]), "--engine", "keras", "--output", str(tmp_path / "out")]
        return predict.main([*map(str, argv), *flags])

    return call


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK")


@pytest.fixture
def scan(tmp_path):
    """The oblique scan as a NIfTI."""
    nib.save(nib.Nifti1Image(SCAN, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def _write_scan(path, sitk):
    if path.name.endswith((".nii.gz", ".nii")):
        nib.save(nib.Nifti1Image(SCAN, AFFINE), path)
    elif path.suffix in (".mgz", ".mgh"):
        nib.save(nib.MGHImage(SCAN, AFFINE), path)
    else:
        image = sitk.GetImageFromArray(SCAN.transpose(2, 1, 0))
        image.SetSpacing(SPACING)
        image.SetOrigin((-ORIGIN[0], -ORIGIN[1], ORIGIN[2]))
        image.SetDirection((TURN * [[-1], [-1], [1]]).ravel())
        sitk.WriteImage(image, str(path))


def _check_place(path, sitk):
    """Reads a label map with the library of its format, and compares values and corners in the world."""
    if path.name.endswith((".mgz", ".mgh", ".nii.gz", ".nii")):
        image = nib.load(path)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj), EXPECTED)
        np.testing.assert_allclose(image.affine @ CORNERS, AFFINE @ CORNERS, atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), SPACING, atol=1e-4)
    if not path.name.endswith((".mgz", ".mgh")):
        image = sitk.ReadImage(str(path))
        assert image.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), EXPECTED)
        np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-4)
        for corner in CORNERS.T:
            left, back, up = image.TransformContinuousIndexToPhysicalPoint(tuple(map(float, corner[:3])))
            np.testing.assert_allclose((-left, -back, up), (AFFINE @ corner)[:3], atol=1e-4)
    stored = read_file(path)
    np.testing.assert_allclose(stored.affine @ CORNERS, AFFINE @ CORNERS, atol=1e-4)
    label = read_label(path, LabelRule({value: index for index, value in enumerate(VALUES)}))
    np.testing.assert_array_equal(label, find_bands(SCAN))


def test_each_scan_has_its_label_map_in_its_own_format(run, tmp_path, sitk):
    (tmp_path / "in").mkdir()
    written = {".nii": ".nii", ".nii.gz": ".nii.gz", ".mgz": ".mgz", ".mgh": ".mgh"}
    written |= {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd", ".nhdr": ".nrrd"}
    for suffix in written:
        _write_scan(tmp_path / "in" / f"of{suffix.replace('.', '_')}{suffix}", sitk)
    assert run(tmp_path / "in") == 0
    found = {path.name for path in (tmp_path / "out").glob("*_prediction*")}
    assert found == {f"of{suffix.replace('.', '_')}_prediction{own}" for suffix, own in written.items()}
    for name in found:
        _check_place(tmp_path / "out" / name, sitk)
    # The folder of results is no folder of scans.
    assert run(tmp_path / "out") == 2


@pytest.mark.parametrize("wanted", SUFFIXES)
def test_a_label_map_is_written_in_the_format_that_is_wanted(run, tmp_path, sitk, scan, wanted):
    assert run(scan, "--format", wanted, "--probabilities") == 0
    assert [path.name for path in (tmp_path / "out").glob("*_prediction*")] == [f"scan_prediction{SUFFIXES[wanted]}"]
    _check_place(tmp_path / "out" / f"scan_prediction{SUFFIXES[wanted]}", sitk)
    assert nib.load(tmp_path / "out" / "scan_probabilities.nii.gz").shape == (7, 6, 5, 3)


def test_a_nifti_says_that_it_is_a_label_and_what_its_values_mean(run, tmp_path, scan):
    source = nib.load(scan)
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"about the scan"))
    nib.save(source, scan)
    assert run(scan) == 0
    header = nib.load(tmp_path / "out" / "scan_prediction.nii.gz").header
    assert int(header["intent_code"]) == 1002
    (extension,) = header.extensions
    assert extension.get_code() == 6
    assert json.loads(bytes(extension.get_content()).rstrip(b"\0")) == {"classes": CLASS_TABLE}


def test_the_label_map_of_a_prediction_is_a_reference_label(run, tmp_path, scan, capsys):
    assert run(scan) == 0
    (tmp_path / "labels").mkdir()
    (tmp_path / "out" / "scan_prediction.nii.gz").rename(tmp_path / "labels" / "scan_seg.nii.gz")
    assert run(scan, "--labels", tmp_path / "labels") == 0
    assert "grey matter 1.000 1.000 1.000 0.00" in " ".join(capsys.readouterr().out.split())


def test_a_slice_gets_a_third_axis_of_its_own_place(run, tmp_path, sitk, write_nifti):
    path = write_nifti("slice.nii.gz", SCAN[:, :1], AFFINE)
    assert run(path, "--format", "nrrd", "--save", "seg.nrrd", model="slices") == 0
    expected = np.asarray(VALUES)[find_bands(SCAN[:, :1])]
    for name in ("slice_prediction.nrrd", "slice_prediction.seg.nrrd"):
        image = sitk.ReadImage(str(tmp_path / "out" / name))
        assert image.GetSize() == (7, 5, 1)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0].T, expected[:, 0])
        left, back, up = image.TransformIndexToPhysicalPoint((6, 4, 0))
        np.testing.assert_allclose((-left, -back, up), (AFFINE @ [6, 0, 4, 1])[:3], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------- 3D Slicer


def _read_segments(image):
    """The segments that a header names, by their label value and layer."""
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    number = sum(key.endswith("_ID") for key in fields)
    keys = ("Name", "LabelValue", "Layer", "Color", "Extent")
    return [[fields[f"Segment{index}_{key}"] for key in keys] for index in range(number)]


def _to_colour(text):
    return "#" + "".join(f"{round(255 * float(part)):02X}" for part in text.split())


def test_a_segmentation_of_slicer_has_names_colours_and_values(run, tmp_path, sitk, scan):
    assert run(scan, "--save", "seg.nrrd") == 0
    path = tmp_path / "out" / "scan_prediction.seg.nrrd"
    _check_place(path, sitk)
    segments = _read_segments(sitk.ReadImage(str(path)))
    assert [segment[:3] for segment in segments] == [["grey matter", "3", "0"], ['the "core"', "170", "0"]]
    assert [_to_colour(segment[3]) for segment in segments] == list(PALETTE[:2])
    assert segments[0][4] == "0 6 0 5 0 4"


def test_overlapping_regions_have_a_layer_each(run, tmp_path, sitk, scan):
    assert run(scan, "--save", "seg.nrrd", model="regions") == 0
    image = sitk.ReadImage(str(tmp_path / "out" / "scan_prediction.seg.nrrd"))
    assert [segment[:3] for segment in _read_segments(image)] == [["grey matter", "1", "0"], ['the "core"', "1", "1"]]
    layers = sitk.GetArrayFromImage(image)
    found = find_bands(SCAN).transpose(2, 1, 0)
    np.testing.assert_array_equal(layers[..., 0], found > 0)
    np.testing.assert_array_equal(layers[..., 1], found > 1)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, atol=1e-6)
    header = nib.load(tmp_path / "out" / "scan_prediction.nii.gz").header
    names = [row["name"] for row in json.loads(bytes(header.extensions[0].get_content()).rstrip(b"\0"))["classes"]]
    assert names == ['grey matter without the "core"', 'the "core"']


# -------------------------------------------------------------------------------------------------------------- one line each


def test_flags_that_do_not_fit_a_scan_are_one_line(run, tmp_path, capsys, scan, write_picture):
    picture = write_picture("in/a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    for flags, received in ((("--format", "nrrd"), "--format nrrd"), (("--save", "seg.nrrd"), "--save seg.nrrd")):
        status = run(picture, *flags, model="slices")
        expect_one_line(capsys, status, f"Expected a scan for {received}. Received: a picture, {picture}. Leave the flag out.")
    message = f"Expected a DICOM series for --save dicom-seg. Received: {scan}. Leave the flag out."
    pytest.importorskip("highdicom")
    expect_one_line(capsys, run(scan, "--save", "dicom-seg"), message)
    # Pictures are well without the flags.
    assert run(picture, model="slices") == 0
    assert cv2.imread(str(tmp_path / "out" / "a_prediction.png"), cv2.IMREAD_UNCHANGED).shape == (8, 8)


@pytest.mark.parametrize(
    ("flags", "module", "message"),
    [
        (("--save", "dicom-seg"), "highdicom", "Expected highdicom to write DICOM segmentations. Received: it is not installed."),
        (("--save", "seg.nrrd"), "SimpleITK", "Expected SimpleITK to read or write MetaImage and NRRD. Received: it is not installed."),
        (("--format", "mha"), "SimpleITK", "Install it: pip install SimpleITK"),
    ],
)
def test_a_package_that_is_not_there_is_named_before_anything_is_predicted(
    run, scan, tmp_path, monkeypatch, capsys, flags, module, message
):
    from modules.predict.dicom_seg import import_highdicom

    for load in (import_sitk, import_highdicom):
        load.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    expect_one_line(capsys, run(scan, *flags), message)
    assert not (tmp_path / "out").exists()
    for load in (import_sitk, import_highdicom):
        load.cache_clear()
