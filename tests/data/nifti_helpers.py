"""NIfTI files that tests build by hand."""

import gzip

import nibabel as nib
import numpy as np


def make_nifti(array, order="<", extension=b"", padding=0, **fields):
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


def write_packed(path, data):
    """Writes the bytes, packed where the path ends in .gz, and returns the path."""
    path.write_bytes(gzip.compress(data, 1) if path.suffix.lower() == ".gz" else data)
    return path
