"""Decodes ordinary NIfTI-1 files from their bytes, several times as fast as nibabel and equal to it to the bit.

Whatever is not ordinary is left to nibabel: `decode_nifti` returns None.
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

try:
    # isal inflates two to four times as fast as zlib. Both verify the check sum and let other threads run meanwhile.
    from isal import isal_zlib as inflater
except ImportError:
    inflater = zlib

# Fields of a NIfTI-1 header: sizeof_hdr, dim, datatype, bitpix, pixdim, vox_offset, scl_slope, scl_inter, qform_code, sform_code,
# quatern_b to qoffset_z, srow_x to srow_z, magic.
_HEADERS = {order: struct.Struct(f"{order}i 36x 8h 14x 2h 2x 8f 3f 132x 2h 6f 12f 16x 4s") for order in "<>"}
_DTYPE_NAMES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_DTYPES = {(order, code): np.dtype(order + name) for order in "<>" for code, name in _DTYPE_NAMES.items()}
_PIECE = 1 << 16
# Bytes behind the voxels that the header promises; some programs pad their files. A file of more is not what its header says.
_SLACK = 1 << 20
# Millimetres in the unit of length, by the lowest three bits of `xyzt_units`; any other code means millimetres.
UNITS_MM = {1: 1000.0, 3: 0.001}


class _Header(NamedTuple):
    """The fields of a NIfTI-1 header that decoding needs; see `_parse_header`.

    Attributes:
        shape: Sizes of the array, first axis fastest.
        zooms: Sizes of a voxel along the first three axes at most, millimetres.
        dtype: Type of the file's numbers, byte order included.
        offset: Place of the first number, bytes.
        end: One byte past the last number.
        slope: Factor of the numbers, 1 for none.
        inter: Addend after the factor, 0 for none.
        affine: `(4, 4)`, to mm.
    """

    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    dtype: np.dtype
    offset: int
    end: int
    slope: float
    inter: float
    affine: np.ndarray


def decode_nifti(data: bytes, compressed: bool) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray, np.ndarray] | None:
    """Decodes a file's bytes.

    Args:
        data: The whole file.
        compressed: Whether it is a gzip file.

    Returns:
        Shape, zooms of up to three axes in mm, affine `(4, 4)`, and the array. The array holds the file's own integers where they are
        not scaled, else float32. None for a file of an unusual kind, which nibabel must judge.

    Raises:
        EOFError, zlib.error, isal.isal_zlib.error: For a file that is cut or damaged.
        ValueError: For a file that holds far more than its header promises.
    """
    if compressed:
        header, content = _inflate(data)
    else:
        header, content = _parse_header(data), data
    if header is None:
        return None
    if header.end > len(content):
        raise EOFError(f"{len(content)} bytes where the header promises {header.end}")
    array = np.ndarray(header.shape, header.dtype, content, header.offset, order="F")
    if header.dtype.kind == "f" or (header.slope, header.inter) != (1, 0):
        # A value too large for float32 becomes infinite, and a later check reports it.
        with np.errstate(over="ignore", invalid="ignore"):
            # As in nibabel, a slope or intercept that changes nothing is left out. Any other makes it a calculation in float64.
            if header.slope != 1:
                array = array * np.float64(header.slope)
            if header.inter != 0:
                array = array + np.float64(header.inter)
            array = array.astype(np.float32)
    return header.shape, header.zooms, header.affine, array


def _inflate(data: bytes) -> tuple[_Header | None, bytes]:
    """Inflates a gzip file no further than its header promises; returns the header, None for an unusual one, and the content.

    Raises:
        EOFError, zlib.error, isal.isal_zlib.error: If the file is cut or damaged.
        ValueError: If it holds far more than its header promises.
    """
    # The last four bytes give the size if there is only one member, and nobody vouches for them. Small files take one call.
    hint = int.from_bytes(data[-4:], "little")
    member = inflater.decompressobj(31)
    content = member.decompress(data, max(min(hint, _SLACK), _PIECE) + 1)
    header = _parse_header(content)
    if header is None and member.eof and member.unused_data:
        content = _inflate_members(data, _SLACK)
        header = _parse_header(content)
    # We look at further members behind the first too: a bomb or a cut file may hide there.
    more = member.eof and member.unused_data[:2] == b"\x1f\x8b"
    if header is None or (member.eof and header.end <= len(content) and not more):
        return header, content
    most = header.end + _SLACK
    if not member.eof:
        # We inflate anew with room for all of it, because joining two parts would cost a copy.
        member = inflater.decompressobj(31)
        content = member.decompress(data, most + 1)
    if more or (member.eof and len(content) < header.end):
        content = _inflate_members(data, most)
    elif not member.eof and len(content) <= most:
        raise EOFError("a gzip file that ends too early")
    _check_length(content, header.end)
    return header, content


def check_size(data: bytes, end: int) -> None:
    """Checks a file that another program decodes: that it holds all `end` bytes that its header promises, and hardly more.

    Otherwise that program would allocate what the header promises. The function compares all check sums of a gzip file.

    Raises:
        EOFError, zlib.error, isal.isal_zlib.error: If the file is cut or damaged.
        ValueError: If a gzip file holds far more.
    """
    content = data
    if data[:2] == b"\x1f\x8b":
        content = _inflate_members(data, end + _SLACK)
        _check_length(content, end)
    if len(content) < end:
        raise EOFError(f"{len(content)} bytes where the header promises {end}")


def _check_length(content: bytes, end: int) -> None:
    if len(content) > end + _SLACK:
        raise ValueError(f"a file of more than {end + _SLACK:,} bytes where its header promises {end:,}")


def _inflate_members(data: bytes, most: int) -> bytes:
    """Inflates all members of a gzip file, as bgzip or appending writes them, up to a little more than `most` bytes.

    Bytes behind the last member are left alone.
    """
    parts, place, size, view = [], 0, 0, memoryview(data)
    while data[place : place + 2] == b"\x1f\x8b" and size <= most:
        member = inflater.decompressobj(31)
        while not member.eof and size <= most:
            # The file is fed in pieces, because the rest of a piece is copied at the end of a member.
            piece = view[place : place + _PIECE]
            if not piece:
                raise EOFError("a gzip file that ends too early")
            parts.append(member.decompress(piece))
            size += len(parts[-1])
            place += len(piece)
        place -= len(member.unused_data)
    return b"".join(parts)


def _parse_header(data: bytes) -> _Header | None:
    """Reads a NIfTI-1 header as nibabel does. Returns None for a cut or unusual header, which nibabel must judge.

    Extensions, a header apart from its data, NIfTI-2, colours and complex numbers are unusual. So are fields that contradict each other or
    the standard. Two faults are common and harmless, and nibabel mends them. One is a zoom below 0, or of 0 along an axis of length one.
    The other is a pixdim[0] that is neither 1 nor -1. The function accepts both.
    """
    if len(data) < 352:
        return None
    order = "<" if data[0] == 348 % 256 else ">"
    fields = _HEADERS[order].unpack_from(data)
    size, rank, dim, code, bits, pixdim = fields[0], fields[1], fields[2:9], fields[9], fields[10], fields[11:19]
    offset, slope, inter, qform, sform = fields[19:24]
    dtype = _DTYPES.get((order, code))
    if size != 348 or fields[42] != b"n+1\0" or data[348] or dtype is None or bits != 8 * dtype.itemsize:
        return None
    # Rank 1 is left to nibabel, and so is the one shape by which FreeSurfer means another.
    shape = dim[:rank]
    if not 2 <= rank <= 7 or min(shape) < 1 or shape[:3] == (27307, 1, 6):
        return None
    if offset < 352 or not offset.is_integer() or not (0 <= qform <= 4 and 0 <= sform <= 4):
        return None
    if slope == 0 or not math.isfinite(slope):
        slope, inter = 1.0, 0.0
    elif not math.isfinite(inter):
        return None
    zooms = tuple(abs(zoom) or 1.0 for zoom in pixdim[1:4])
    if not math.isfinite(sum(zooms)) or (qform and not math.isfinite(sum(fields[24:30]))):
        return None
    if any(size > 1 and zoom == 0 for size, zoom in zip(shape, pixdim[1:4], strict=False)):
        return None
    if sform:
        affine = np.array((*fields[30:42], 0, 0, 0, 1)).reshape(4, 4)
    elif qform:
        affine = _turn_quaternion(fields[24:27], fields[27:30], zooms, -1 if pixdim[0] == -1 else 1)
    else:
        affine = _centre_grid(shape, zooms)
    if affine is None:
        return None
    scale = UNITS_MM.get(data[123] & 7, 1.0)
    if scale != 1:
        affine[:3] *= scale
        zooms = tuple(zoom * scale for zoom in zooms)
    offset = int(offset)
    return _Header(shape, zooms[:rank], dtype, offset, offset + math.prod(shape) * dtype.itemsize, slope, inter, affine)


def _turn_quaternion(imaginary, corner, zooms, side: int) -> np.ndarray | None:
    """Returns the affine `(4, 4)` of a qform, equal to nibabel's to the last bit; None if the quaternion is longer than one."""
    x, y, z = vector = np.array(imaginary, np.longdouble)
    rest = 1.0 - vector @ vector
    threshold = 3 * np.finfo(np.float32).eps
    if not rest > -threshold:
        return None
    w = np.longdouble(0) if abs(rest) < threshold else np.sqrt(rest)
    double = 2.0 / (w * w + x * x + y * y + z * z)
    dx, dy, dz = x * double, y * double, z * double
    turn = [
        [1.0 - (y * dy + z * dz), x * dy - w * dz, x * dz + w * dy],
        [x * dy + w * dz, 1.0 - (x * dx + z * dz), y * dz - w * dx],
        [x * dz - w * dy, y * dz + w * dx, 1.0 - (x * dx + y * dy)],
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn) * np.array([*zooms[:2], zooms[2] * side])
    affine[:3, 3] = corner
    return affine


def _centre_grid(shape, zooms) -> np.ndarray:
    """Returns the affine `(4, 4)` of a header without any. The first axis runs to the left, and 0 mm is the middle of the grid."""
    affine = np.eye(4)
    # A header of two axes says nothing of the third, whatever its zoom.
    for axis, (size, zoom) in enumerate(zip(shape[:3], zooms, strict=False)):
        affine[axis, axis] = zoom = -zoom if axis == 0 else zoom
        affine[axis, 3] = -(size - 1) / 2 * zoom
    return affine
