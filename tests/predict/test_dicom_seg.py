"""A DICOM segmentation, read back, lies over its series: each frame on its slice, each voxel as in the label map."""

import nibabel as nib
import numpy as np
import pytest
from dicom_helpers import draw_volume, make_enhanced, pydicom, write_series
from output_helpers import VALUES, find_bands, save_bands

import predict
from modules import reports
from modules.data.colours import PALETTE

highdicom = pytest.importorskip("highdicom")

OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, 0.8)
FRAME = "1.2.3.99"
# pydicom refuses to write a name of other letters than its character set has.
PATIENT = {"PatientName": "Müller^Jörg", "PatientID": "p1", "SpecificCharacterSet": "ISO_IR 100", "StudyDate": "20200102"}


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    names = {"classes": ("background", "grey matter", "spot"), "values": VALUES}
    return {"classes": save_bands(folder / "classes", **names), "regions": save_bands(folder / "regions", regions=True, **names)}


@pytest.fixture
def run(bands, tmp_path, monkeypatch):
    """Predicts a series into `out` with its segmentation; returns the exit status."""
    monkeypatch.setattr(reports, "draw_overlay", lambda path, *_, **__: path.touch())

    def call(*argv, model="classes"):
        flags = ["--model", str(bands[model]), "--engine", "keras", "--output", str(tmp_path / "out"), "--save", "dicom-seg"]
        return predict.main([*map(str, argv), *flags])

    return call


def _list_frames(data):
    """Yields the segment, the position and the source of each frame, by pydicom alone."""
    shared = data.SharedFunctionalGroupsSequence[0]
    for group in data.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        orientation = (group if "PlaneOrientationSequence" in group else shared).PlaneOrientationSequence[0].ImageOrientationPatient
        yield (
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, float),
            np.array(orientation, float),
            source,
        )


@pytest.mark.parametrize("model", ["classes", "regions"])
def test_every_frame_lies_on_its_slice_and_the_voxels_are_those_of_the_label_map(run, tmp_path, model):
    volume = draw_volume()
    paths = write_series(tmp_path / "in" / "dicom", volume, directions=OBLIQUE, FrameOfReferenceUID=FRAME, **PATIENT)
    assert run(tmp_path / "in", model=model) == 0
    data = pydicom.dcmread(tmp_path / "out" / "dicom_prediction.dcm")
    assert (data.FrameOfReferenceUID, data.StudyInstanceUID, data.PatientID) == (FRAME, "1.2.3", "p1")
    assert str(data.PatientName) == "Müller^Jörg"
    assert data.ContentQualification == "RESEARCH"
    sources = {source.SOPInstanceUID: source for source in map(pydicom.dcmread, paths)}
    found = find_bands(volume)
    masks = {1: found > 0 if model == "regions" else found == 1, 2: found == 2}
    places = {source.SOPInstanceUID: index for index, source in enumerate(map(pydicom.dcmread, paths))}
    pixels = data.pixel_array
    seen = set()
    for mask, (segment, position, orientation, reference) in zip(pixels, _list_frames(data), strict=True):
        source = sources[reference.ReferencedSOPInstanceUID]
        np.testing.assert_allclose(position, np.array(source.ImagePositionPatient, float), atol=1e-4)
        np.testing.assert_allclose(orientation, OBLIQUE, atol=1e-6)
        place = places[source.SOPInstanceUID]
        np.testing.assert_array_equal(mask, masks[segment][place])
        seen.add((segment, place))
    # Frames without a voxel are left out.
    assert seen == {(segment, place) for segment, mask in masks.items() for place in range(len(volume)) if mask[place].any()}
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    np.testing.assert_allclose(np.array(measures.PixelSpacing, float), (1.5, 0.75), atol=1e-4)
    # The headers of the series say 99 mm.
    assert measures.SliceThickness == measures.SpacingBetweenSlices == 2.5
    assert data.SegmentsOverlap == ("YES" if model == "regions" else "NO")
    # The label map beside it lies there too.
    label = nib.load(tmp_path / "out" / "dicom_prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(VALUES)[found].transpose(2, 1, 0))
    first = np.array(pydicom.dcmread(paths[0]).ImagePositionPatient, float) * (-1, -1, 1)
    np.testing.assert_allclose(label.affine[:3, 3], first, atol=1e-4)
    # Highdicom, which checks the file as it reads, says the same of whole slices.
    seg = highdicom.seg.segread(tmp_path / "out" / "dicom_prediction.dcm")
    stacked = seg.get_pixels_by_source_instance(list(places), ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(stacked, np.stack([masks[1], masks[2]], axis=-1))


def test_segments_have_names_colours_and_codes(run, tmp_path):
    write_series(tmp_path / "in" / "dicom", draw_volume(), FrameOfReferenceUID=FRAME)
    assert run(tmp_path / "in") == 0
    grey, spot = pydicom.dcmread(tmp_path / "out" / "dicom_prediction.dcm").SegmentSequence
    assert (grey.SegmentLabel, spot.SegmentLabel) == ("grey matter", "spot")
    kinds = [item.SegmentedPropertyTypeCodeSequence[0] for item in (grey, spot)]
    assert [(kind.CodeValue, kind.CodingSchemeDesignator) for kind in kinds] == [("389081007", "SCT"), ("170", "99MRISEG")]
    assert kinds[1].CodeMeaning == "spot"
    for segment, colour in zip((grey, spot), PALETTE, strict=False):
        shown = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        np.testing.assert_allclose(shown, list(bytes.fromhex(colour[1:])), atol=2)


@pytest.mark.parametrize("shared", [True, False])
def test_frames_of_one_file_keep_their_order(run, tmp_path, shared):
    volume = draw_volume()
    (tmp_path / "in").mkdir()
    source = make_enhanced(volume, FrameOfReferenceUID=FRAME)
    if not shared:
        for group in source.PerFrameFunctionalGroupsSequence:
            group.update(source.SharedFunctionalGroupsSequence[0])
        del source.SharedFunctionalGroupsSequence
    source.save_as(tmp_path / "in" / "frames.dcm", enforce_file_format=True)
    assert run(tmp_path / "in") == 0
    data = pydicom.dcmread(tmp_path / "out" / "frames_prediction.dcm")
    found = find_bands(volume)
    assert data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5
    for mask, (segment, position, _, reference) in zip(data.pixel_array, _list_frames(data), strict=True):
        place = round((position[2] - 5) / 2.5)
        np.testing.assert_array_equal(mask, found[place] == segment)
        # The helper stores the slices from the last to the first.
        assert reference.ReferencedFrameNumber == len(volume) - place


def test_an_empty_label_map_is_a_segmentation_too(run, tmp_path):
    write_series(tmp_path / "in" / "dicom", np.zeros((3, 6, 7), np.int16), FrameOfReferenceUID=FRAME)
    assert run(tmp_path / "in") == 0
    assert pydicom.dcmread(tmp_path / "out" / "dicom_prediction.dcm").pixel_array.sum() == 0


def test_a_series_without_names_and_thickness_is_referred_to(run, tmp_path):
    fields = {"FrameOfReferenceUID": FRAME, "SliceThickness": None, "SeriesNumber": None, "SeriesDescription": "x" * 64}
    write_series(tmp_path / "in" / "dicom", draw_volume(), **fields)
    assert run(tmp_path / "in") == 0
    data = pydicom.dcmread(tmp_path / "out" / "dicom_prediction.dcm")
    assert (data.PatientName, data.SeriesNumber, len(data.SeriesDescription)) == ("", 1, 64)


def test_a_series_without_a_frame_of_reference_is_one_line(run, tmp_path, capsys):
    write_series(tmp_path / "in" / "dicom", draw_volume())
    assert run(tmp_path / "in") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"Expected a series that a DICOM segmentation can refer to in {tmp_path / 'in' / 'dicom'}. Received: no FrameOfRef" in line
    assert line.endswith("Leave out --save dicom-seg.")
