"""DICOM series that the tests write themselves with pydicom."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid  # noqa: E402

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1, 0, 0, 0, 1, 0)


def make_file(pixels, *, sop_class=MR, syntax=ExplicitVRLittleEndian, **fields):
    """A DICOM data set of pixels `(rows, columns)` or `(frames, rows, columns)` of 8 or 16 bits; `None` leaves a field out."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    bits = 8 * pixels.dtype.itemsize
    own = {
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 4,
        "SeriesDescription": "t1 mprage",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": fields.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    for name, value in (own | fields).items():
        if value is not None:
            setattr(data, name, value)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    return data


def write_series(folder, volume, *, start=(-10.0, 20.0, 5.0), spacing=(1.5, 0.75), distance=2.5, directions=AXIAL, change=None, **fields):
    """Writes a volume `(slices, rows, columns)` as one file a slice, in an order of names and numbers that is not that of positions.

    Args:
        folder: Where to write.
        volume: The pixels.
        start: Position of the first slice, mm (LPS).
        spacing: From row to row, and from column to column.
        distance: From slice to slice.
        directions: Of a row and of a column.
        change: A function that may change the data set of a slice, given it and its number.
        fields: Of all files.

    Returns:
        The paths, in the order of positions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(directions[:3], directions[3:])
    names = np.random.default_rng(1).permutation(len(volume))
    paths = []
    for number, pixels in enumerate(volume):
        position = [round(float(value), 6) for value in np.asarray(start) + number * distance * normal]
        place = {"PixelSpacing": list(spacing), "ImageOrientationPatient": list(directions), "ImagePositionPatient": position}
        data = make_file(pixels, **({"SliceThickness": 99, "InstanceNumber": int(names[number]) + 1} | place | fields))
        if change is not None:
            data = change(data, number) or data
        paths.append(folder / f"IM{names[number]:04d}")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_enhanced(volume, *, slopes=None, start=(-10.0, 20.0, 5.0), **fields):
    """A multi-frame data set with functional groups; frames lie in reversed order, 2.5 mm apart along z."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 0.75], 99
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    groups = []
    for number in reversed(range(len(volume))):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [start[0], start[1], start[2] + 2.5 * number]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = (slopes[number] if slopes else 1), 0, "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [transform]
        groups.append(group)
    own = {"NumberOfFrames": len(volume), "SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    return make_file(np.ascontiguousarray(volume[::-1]), sop_class=ENHANCED_MR, **(own | fields))


def draw_volume(shape=(5, 6, 7), dtype=np.int16, most=4000, seed=0):
    """Random pixels `(slices, rows, columns)`."""
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)
