"""Writes a label map as a DICOM segmentation that refers to the slices of its series, with highdicom."""

import functools
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import modules
from modules.data.dicom import list_slices
from modules.data.documents import to_line
from modules.data.files import replace_file
from modules.data.regions import find_mask
from modules.data.series import import_pydicom, take_list, take_number
from modules.data.stack import Frame
from modules.packages import describe_missing_format
from modules.predict.class_files import ClassRow

# SNOMED codes by the name of a class: value and meaning of its category, then of its type.
Codes = Mapping[str, tuple[tuple[str, str], tuple[str, str]]]

_MAKER = "mri-segmentation-keras"
# A class without a code is a tissue, as in 3D Slicer, and of a type that only its name explains. "99" begins a private scheme.
_ANY_CATEGORY, _OWN_SCHEME = ("85756007", "Tissue"), "99MRISEG"
# Attributes that every series has, perhaps empty. Programs that remove names often remove the attributes too.
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
_MOST_TEXT = 64


def write_dicom_seg(
    path: Path, prediction: np.ndarray, source: tuple[Path, str], segments: Sequence[ClassRow], codes: Codes, model: str
) -> None:
    """Writes a segmentation with a binary frame for each slice and segment that is there.

    Patient, study and frame of reference are those of the series, and each frame has the position of its slice.

    Args:
        path: The file.
        prediction: `(*S)` class indices on the grid that `modules.data.dicom.read_series` gives.
        source: The series: its folder or file, and its SeriesInstanceUID or "".
        segments: The segments. Those that share voxels are told so.
        codes: SNOMED codes of classes.
        model: Name of the model; "" where nobody named it.

    Raises:
        ValueError: If highdicom is not installed, or the series lacks what a segmentation must refer to; the series is named.
    """
    highdicom = import_highdicom()
    frames = list_slices(*source)
    columns, rows = frames[0].size
    # Axes of one voxel were dropped from the label map.
    pixels = prediction.reshape(columns, rows, len(frames)).transpose(2, 1, 0)
    if any(segment.parts != (number,) for number, segment in enumerate(segments, start=1)):
        pixels = np.stack([find_mask(pixels, segment.parts) for segment in segments], axis=-1)
    if len({frame.path for frame in frames}) < len(frames):
        # highdicom expects the frames of one file in the file's own order.
        pixels = pixels[np.argsort([frame.index for frame in frames])]
    try:
        data = _make_segmentation(highdicom, pixels, _read_headers(frames), segments, codes, model)
        with replace_file(path) as temporary:
            data.save_as(temporary)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # an odd header can make highdicom fail in any way
        raise ValueError(
            f"Expected a series that a DICOM segmentation can refer to in {source[0]}. Received: {to_line(error, 300)}. Leave out --save "
            "dicom-seg."
        ) from error


def _read_headers(frames: Sequence[Frame]) -> list[Any]:
    """Reads the headers of the files that slices lie in, in the order of the slices; raises ValueError for one without its frame.

    highdicom takes the geometry from the headers, so they get that by which the slices were sorted: a thickness is often wrong.
    """
    pydicom, headers, first = import_pydicom(), [], frames[0]
    distance = float(np.linalg.norm(np.subtract(frames[1].position, first.position))) if len(frames) > 1 else first.thickness
    for file in dict.fromkeys(frame.path for frame in frames):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        if not header.get("FrameOfReferenceUID"):
            raise ValueError(f"no FrameOfReferenceUID in {file.name}, so that nothing says which space it lies in")
        for name in _MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, "")
        measures, plane = header, header
        if take_list(header, "PerFrameFunctionalGroupsSequence"):
            # Some scanners write these for each frame alone.
            shared = (*take_list(header, "SharedFunctionalGroupsSequence"), pydicom.Dataset())[0]
            measures, plane = pydicom.Dataset(), pydicom.Dataset()
            shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
            header.SharedFunctionalGroupsSequence = [shared]
        measures.PixelSpacing, plane.ImageOrientationPatient = list(first.spacing), list(first.orientation)
        measures.SliceThickness = measures.SpacingBetweenSlices = round(distance, 6)
        headers.append(header)
    return headers


def _make_segmentation(
    highdicom: ModuleType, pixels: np.ndarray, headers: Sequence[Any], segments: Sequence[ClassRow], codes: Codes, model: str
) -> Any:
    """Makes the data set of segment numbers `(slices, rows, columns)`, or of masks with a last axis of segments where they may overlap."""
    pydicom_codes = import_pydicom().sr.codedict.codes
    name = model or _MAKER
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=name[:_MOST_TEXT], version=modules.__version__, family=pydicom_codes.cid7162.ArtificialIntelligence
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        category, kind = _find_codes(segment, codes)
        descriptions.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=_to_text(segment.name),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                display_color=highdicom.color.CIELabColor.from_rgb(*segment.rgb),
            )
        )
    first = headers[0]
    return highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=100 * (take_number(first, "SeriesNumber") % 10_000) + 1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_to_text(name),
        software_versions=modules.__version__,
        device_serial_number="1",
        content_description=_to_text("Label map of a neural network, for research and teaching"),
        content_label="SEGMENTATION",
        series_description=_to_text(f"segmentation of {first.get('SeriesDescription') or 'a series'}"),
        content_qualification="RESEARCH",
        specific_character_set="ISO_IR 192",
    )


def _find_codes(segment: ClassRow, codes: Codes) -> tuple[Any, Any]:
    """Finds the codes of a segment's category and type."""
    code = import_pydicom().sr.coding.Code
    if segment.name in codes:
        (category, category_meaning), (kind, meaning) = codes[segment.name]
        return code(category, "SCT", category_meaning), code(kind, "SCT", meaning)
    value, meaning = _ANY_CATEGORY
    return code(value, "SCT", meaning), code(str(segment.value), _OWN_SCHEME, _to_text(segment.name))


def _to_text(text: str) -> str:
    """Makes a text that an attribute of DICOM can hold."""
    return text.replace("\\", "/")[:_MOST_TEXT]


@functools.cache
def import_highdicom() -> ModuleType:
    """Imports highdicom, whose own warnings would stand beside our one line.

    Raises:
        ValueError: If it is not installed.
    """
    import_pydicom()
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise ValueError(describe_missing_format("highdicom", "write DICOM segmentations")) from error
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"highdicom")
    return highdicom
