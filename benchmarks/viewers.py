"""Draws what viewers show of the segmentations that `predict.py` writes. Each file is read by a library, and by no part of this program.

    python predict.py STUDY --save seg.nrrd --save dicom-seg --output predictions
    python benchmarks/viewers.py predictions/STUDY_prediction STUDY viewers.png

Names, colours and places come from the files alone: from the extension of the NIfTI, the header of the `.seg.nrrd`, and the segments and
frames of the DICOM segmentation. The slice is the one across the third axis that has most voxels of any class.
"""

import argparse
import json
import sys
from pathlib import Path

import highdicom
import matplotlib as mpl
import nibabel
import numpy as np
import pydicom
import SimpleITK

mpl.use("Agg")
from matplotlib import pyplot as plt

# A mask of a class in one slice `(X, Y)` with its colour from 0 to 255, by the class's name.
Shown = dict[str, tuple[np.ndarray, tuple[int, ...]]]
_LPS = np.array([-1.0, -1.0, 1.0])


def show_nifti(path: Path, index: int) -> Shown:
    """Reads a slice of a NIfTI label map with its table of classes."""
    image = nibabel.load(path)
    (extension,) = image.header.extensions
    rows = json.loads(extension.get_content())["classes"]
    plane = np.asarray(image.dataobj)[..., index]
    return {row["name"]: (plane == row["value"], tuple(bytes.fromhex(row["colour"][1:]))) for row in rows if row["value"]}


def show_seg_nrrd(path: Path, index: int) -> Shown:
    """Reads a slice of a segmentation of 3D Slicer, whose segments share one layer."""
    image = SimpleITK.ReadImage(str(path))
    plane, shown, number = SimpleITK.GetArrayFromImage(image).T[..., index], {}, 0
    while image.HasMetaDataKey(f"Segment{number}_Name"):
        name, value, colour = (image.GetMetaData(f"Segment{number}_{key}") for key in ("Name", "LabelValue", "Color"))
        shown[name] = plane == int(value), tuple(round(255 * float(part)) for part in colour.split())
        number += 1
    return shown


def show_dicom(path: Path, first_mm: np.ndarray) -> Shown:
    """Reads the frames of a DICOM segmentation whose first voxel lies at a place (LPS)."""
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    shown = {}
    for segment in data.SegmentSequence:
        colour = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        mask = np.zeros((data.Columns, data.Rows), bool)
        for frame, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
            place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment.SegmentNumber and np.allclose(
                place, first_mm, atol=1e-3
            ):
                mask |= frame.T > 0
        shown[segment.SegmentLabel] = mask, tuple(colour)
    return shown


def paint(grey: np.ndarray, shown: Shown) -> np.ndarray:
    """Paints masks over a grey slice `(X, Y)` from 0 to 1; returns `(X, Y, 3)`."""
    picture = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    for mask, colour in shown.values():
        picture[mask] = 0.5 * picture[mask] + 0.5 * np.array(colour) / 255
    return picture


def read_scan(path: Path) -> np.ndarray:
    """Reads a scan `(X, Y, Z)`: a file, or the folder of one DICOM series."""
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names)).T


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prediction", help="a label map without its suffix: predictions/NAME_prediction")
    parser.add_argument("scan", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    nifti, nrrd, dicom = (Path(f"{options.prediction}{suffix}") for suffix in (".nii.gz", ".seg.nrrd", ".dcm"))
    image, scan = nibabel.load(nifti), read_scan(options.scan).astype(float)
    index = int((np.asarray(image.dataobj) > 0).sum(axis=(0, 1)).argmax())
    columns = {"NIfTI with its table of classes": show_nifti(nifti, index)}
    if nrrd.is_file():
        columns[".seg.nrrd of 3D Slicer"] = show_seg_nrrd(nrrd, index)
    if dicom.is_file():
        columns["DICOM segmentation"] = show_dicom(dicom, (image.affine @ [0, 0, index, 1])[:3] * _LPS)
    low, high = np.percentile(scan, (1, 99))
    grey = np.clip((scan[..., index] - low) / (high - low), 0, 1)
    figure, axes = plt.subplots(1, len(columns), figsize=(3.4 * len(columns), 4), squeeze=False)
    for axis, (title, shown) in zip(axes[0], columns.items(), strict=True):
        # Rows run down from the first voxel, as the pixels of a DICOM slice do.
        axis.imshow(paint(grey, shown).transpose(1, 0, 2), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        boxes = [plt.Rectangle((0, 0), 1, 1, color=np.array(colour) / 255) for _, colour in shown.values()]
        axis.legend(boxes, list(shown), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)
    first, *others = columns.values()
    equal = all(list(other) == list(first) and all((other[name][0] == first[name][0]).all() for name in first) for other in others)
    print(f"slice {index}: {len(columns)} files {'show' if equal else 'DO NOT show'} the same classes in the same voxels")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
