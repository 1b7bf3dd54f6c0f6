"""Reads NIfTI files of every kind with nibabel, after a look at fields that it passes over."""

import functools
import logging
import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from modules.data.files import suffix_of
from modules.data.nifti import UNITS_MM, check_size

# Shape, sizes of a voxel in mm along the first three axes at most, and affine to RAS+ mm `(4, 4)`.
Grid = tuple[tuple[int, ...], tuple[float, ...], np.ndarray]


class HeaderError(ValueError):
    """An error of a header whose text is complete."""


def open_nifti(path: Path):
    """Opens a file with nibabel, which knows its suffix in lower and in upper case only."""
    nib = import_nibabel()
    suffix = path.name[-len(suffix_of(path)) :]
    if suffix in (suffix.lower(), suffix.upper()):
        return nib.load(path)
    try:
        return nib.Nifti1Image.from_file_map({"image": nib.FileHolder(str(path))})
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError):
        return nib.Nifti2Image.from_file_map({"image": nib.FileHolder(str(path))})


def _check_fields(source, path: Path) -> None:
    """Refuses fields of a header that nibabel passes over or puts right with invented numbers.

    Raises:
        HeaderError: For the place of the numbers before their first possible one, a voxel of no size, or a qform that is not finite.
    """
    kind = type(source.header)
    if "vox_offset" not in source.header:
        return
    with source.file_map["image"].get_prepare_fileobj("rb") as file:
        raw = kind(file.read(kind.sizeof_hdr), check=False)
    least = kind.single_vox_offset
    faults = []
    # Both suffixes are those of single files, whatever the magic number says.
    if raw["vox_offset"] < least:
        faults.append(f"vox_offset {float(raw['vox_offset']):g}, below {least}, in a single file")
    for axis, size in enumerate(source.shape[:3]):
        if size > 1 and raw["pixdim"][axis + 1] == 0:
            faults.append(f"a voxel size of 0 along axis {axis}")
    qform = [float(raw[name]) for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")]
    if raw["qform_code"] > 0 and not all(map(math.isfinite, qform)):
        faults.append("NaN or infinity in its qform")
    if faults:
        raise HeaderError(f"Expected a header that can be true in {path}. Received: {faults[0]}. Mend its header.")


def read_header(path: Path) -> Grid:
    """Reads shape, zooms and affine of a file, both in mm; raises as nibabel does, or `HeaderError`."""
    source = open_nifti(path)
    _check_fields(source, path)
    return _take_grid(source)


def _take_grid(source: Any) -> Grid:
    """Returns shape, zooms and affine of an opened file, both in mm."""
    unit = int(source.header["xyzt_units"]) & 7 if "xyzt_units" in source.header else 2
    scale = UNITS_MM.get(unit, 1.0)
    affine = np.array(source.affine, np.float64)
    affine[:3] *= scale
    return tuple(source.shape), tuple(float(zoom) * scale for zoom in source.header.get_zooms()), affine


def load_nifti(path: Path, data: bytes) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray, np.ndarray]:
    """Loads shape, zooms, affine and float32 array of any file that nibabel can read."""
    source = open_nifti(path)
    _check_fields(source, path)
    if source.get_data_dtype().kind not in "iuf":
        kind = source.get_data_dtype()
        names = "colours" if kind.names else f"numbers of type {kind}"
        raise HeaderError(f"Expected one real number a voxel in {path}. Received: {names}, which are no intensities. Convert the file.")
    if 0 in source.shape:
        raise ValueError(f"an array of shape {source.shape}")
    check_size(data, int(source.dataobj.offset) + math.prod(source.shape) * source.get_data_dtype().itemsize)
    array = source.get_fdata(dtype=np.float32, caching="unchanged")
    return *_take_grid(source), array


@functools.cache
def import_nibabel() -> ModuleType:
    """Imports nibabel without its own lines: our error says once what is wrong with a file."""
    import nibabel

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    for module in ("nibabel", r"numpy\._core\.memmap"):
        warnings.filterwarnings("ignore", module=module)
    return nibabel
