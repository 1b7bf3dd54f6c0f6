"""Reads and writes volumes in the formats of ITK (MetaImage and NRRD, by SimpleITK) and of FreeSurfer (MGH, by nibabel).

Both libraries allocate what a header promises. Here the promise is compared with the bytes that the file holds before either decodes it.
"""

import bz2
import functools
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from modules.data.nibabel_files import Grid, import_nibabel
from modules.data.nifti import check_size, inflater
from modules.packages import describe_missing_format

# Bytes that a text header may have, and that may lie behind the voxels of a packed file.
_MOST_HEADER = 1 << 20
_SLACK = 1 << 20
_LEAST_AXES, _MOST_AXES = 2, 4
# Bytes of each type of an MGH file, and of its header.
_MGH_BYTES = {0: 1, 1: 4, 3: 4, 4: 2, 10: 2}
_MGH_HEADER = 284
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_META_TYPE = re.compile(r"MET_(U?CHAR|U?SHORT|U?INT|U?LONG|U?LONG_LONG|FLOAT|DOUBLE)(_ARRAY)?")
_ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2", "txt": "text", "text": "text", "ascii": "text"}
_ENCODINGS["hex"] = "hex"


class _Voxels(NamedTuple):
    """The place of the voxels, as a text header says it.

    Attributes:
        path: The file that holds them.
        offset: Bytes in front of them.
        encoding: "raw", "zlib", "gzip", "bzip2", "text" or "hex".
    """

    path: Path
    offset: int
    encoding: str


def list_data_files(path: Path) -> list[Path]:
    """Lists a header's file and, where its voxels lie in another, that one.

    Raises:
        FileNotFoundError: If the header's file is not there.
        ValueError: If the header cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}. Received: nothing there. Check the path.")
    voxels = _find_voxels(path, _read_start(path))
    return list(dict.fromkeys([path, voxels.path]))


def read_itk(path: Path, head: bytes | None = None, *, voxels: bool = True) -> tuple[Grid, np.ndarray | None]:
    """Reads a MetaImage or NRRD file with SimpleITK.

    Args:
        path: The file, or the header of a pair.
        head: The first bytes of the file, or all, if they were read already.
        voxels: Whether to read the voxels too.

    Returns:
        The grid, and the array in the file's own numbers or None. Channels lie on the last axis.

    Raises:
        FileNotFoundError: If the file that holds the voxels is not there.
        ValueError: If the header is damaged, cannot be true, or promises other voxels than the file holds; the file is named.
    """
    place = _find_voxels(path, _read_start(path) if head is None else head)
    try:
        sitk = import_sitk()
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO" if path.name.lower().endswith(("nrrd", "nhdr")) else "MetaImageIO")
        reader.ReadImageInformation()
        grid, item = _take_grid(reader, sitk)
        promised = math.prod(grid[0]) * item
        checksum = _check_promise(place, promised, item)
        if not voxels:
            return grid, None
        image = reader.Execute()
        view = sitk.GetArrayViewFromImage(image)
        if place.encoding == "zlib" and checksum not in (zlib.crc32(view), zlib.crc32(view.byteswap())):
            # MetaIO only prints a line where it cannot inflate the voxels, and returns whatever the memory held.
            raise RuntimeError("voxels that SimpleITK cannot unpack")
        # The view has the last spatial axis first. It ends with the image, so its numbers are copied.
        axes = image.GetDimension()
        return grid, np.array(view.transpose(*reversed(range(axes)), *range(axes, view.ndim)), order="F").reshape(grid[0], order="F")
    except (RuntimeError, EOFError, OSError, TypeError, UnicodeError, zlib.error) as error:  # the last but one: a name that is no UTF-8
        raise _refuse(path, f"{error}") from error


def _take_grid(reader: Any, sitk: ModuleType) -> tuple[Grid, int]:
    """Takes the grid out of a reader that has read a header, and the bytes of one number."""
    sizes, channels = tuple(reader.GetSize()), reader.GetNumberOfComponents()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(\d+)-bit", kind)
    if bits is None or "complex" in kind:
        raise RuntimeError(f"numbers of the type {kind}")
    axes = len(sizes)
    spatial = min(axes, 3)
    lengths = np.ones(3)
    lengths[:spatial] = reader.GetSpacing()[:spatial]
    affine = np.eye(4)
    affine[:spatial, :spatial] = np.reshape(reader.GetDirection(), (axes, axes))[:spatial, :spatial]
    affine[:3, :3] *= lengths
    affine[:spatial, 3] = reader.GetOrigin()[:spatial]
    # ITK's first two axes run to the left and to the back, ours to the right and to the front.
    affine[:2] *= -1
    shape = (*sizes[:3], *(1,) * (3 - spatial), *sizes[3:], *((channels,) if channels > 1 else ()))
    return (shape, tuple(lengths), affine), int(bits[1]) // 8


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, fields: Mapping[str, str] | None = None) -> None:
    """Writes a MetaImage or NRRD file in one piece, packed.

    Args:
        path: The file; its suffix chooses the format.
        array: `(X, Y, Z)` or, of several values a voxel, `(X, Y, Z, C)`.
        affine: `(4, 4)`, voxel indices to mm (RAS+).
        fields: Names and values for the header.

    Raises:
        ValueError: If SimpleITK is not installed.
    """
    sitk = import_sitk()
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    # As in reading, ITK's first two axes run to the left and to the back.
    affine = affine * np.array([[-1], [-1], [1], [1]])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / lengths).ravel().tolist())
    for name, value in (fields or {}).items():
        image.SetMetaData(name, value)
    sitk.WriteImage(image, str(path), True)


def _find_voxels(path: Path, data: bytes) -> _Voxels:
    """Finds where a text header says that the voxels lie; raises ValueError, naming the file, for a header that cannot be true."""
    head = data[:_MOST_HEADER]
    try:
        if path.name.lower().endswith((".mha", ".mhd")):
            return _parse_meta(path, head)
        return _parse_nrrd(path, head)
    except (KeyError, IndexError) as error:
        raise _refuse(path, f"a header without the field {error}") from error
    except ValueError as error:
        raise _refuse(path, f"{error}") from error


def _parse_meta(path: Path, head: bytes) -> _Voxels:
    fields: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", place)
        line = head[place : max(place, end)]
        place = end + 1
        name, equals, value = line.decode("latin-1").partition("=")
        if end < 0 or not equals or _CONTROL.search(line):
            raise ValueError("no header of a MetaImage" if not fields else "a header that is cut")
        fields[name.strip()] = value.strip()
    _check_axes(fields["NDims"], fields["DimSize"].split())
    if not _META_TYPE.fullmatch(fields["ElementType"]):
        raise ValueError(f"numbers of the type {fields['ElementType']}")
    if int(fields.get("ElementNumberOfChannels", "1")) < 1:
        raise ValueError("no channels")
    # ITK would take 1 mm.
    if not fields.get("ElementSpacing", fields.get("ElementSize")):
        raise ValueError("no size of a voxel (ElementSpacing)")
    packed = fields.get("CompressedData", "False").lower() in ("true", "1")
    binary = fields.get("BinaryData", "True").lower() in ("true", "1")
    name = fields["ElementDataFile"]
    offset = int(fields.get("HeaderSize", "0"))
    encoding = "zlib" if packed else "raw" if binary else "text"
    voxels = _Voxels(path, place, encoding) if name.upper() == "LOCAL" else _Voxels(_name_beside(path, name), max(0, offset), encoding)
    held = voxels.path.stat().st_size - voxels.offset
    if packed and held < int(fields.get("CompressedDataSize", held)):
        raise ValueError(f"{held} bytes of packed voxels where its header says {fields['CompressedDataSize']}")
    return voxels


def _parse_nrrd(path: Path, head: bytes) -> _Voxels:
    if not re.match(rb"NRRD000\d\r?\n", head):
        raise ValueError("no header of a NRRD")
    ending = re.search(rb"\r?\n\r?\n", head)
    if ending is None and len(head) == _MOST_HEADER:
        raise ValueError("a header without an end")
    fields: dict[str, str] = {}
    for line in head[: ending.start() if ending else len(head)].decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(":")
        # Two of these marks stand for a note, not for a field.
        if not line.startswith("#") and colon and not value.startswith("="):
            fields.setdefault(name.strip().lower(), value.strip())
    sizes = fields["sizes"].split()
    _check_axes(fields["dimension"], sizes, most=_MOST_AXES + 1)
    if fields["type"] == "block":
        raise ValueError("numbers of the type block")
    lengths = re.findall(r"none|\([^)]*\)", fields.get("space directions", "")) or fields.get("spacings", "").split()
    known = [length for length in lengths if length.lower() not in ("none", "nan")]
    if len(lengths) != len(sizes) or len(known) < _LEAST_AXES:
        raise ValueError("no size of a voxel (space directions)")
    encoding = _ENCODINGS.get(fields["encoding"].lower(), "")
    if not encoding:
        raise ValueError(f"the encoding {fields['encoding']}")
    skip = max(0, int(fields.get("byte skip", fields.get("byteskip", "0"))))
    name = fields.get("data file", fields.get("datafile"))
    if name is not None:
        return _Voxels(_name_beside(path, name), skip if encoding == "raw" else 0, encoding)
    if ending is None:
        raise ValueError("a header that is cut")
    return _Voxels(path, ending.end(), encoding)


def _check_axes(number: str, sizes: list[str], most: int = _MOST_AXES) -> None:
    """Raises ValueError unless there are as many sizes as axes, all above 0."""
    if not _LEAST_AXES <= int(number) <= most or len(sizes) != int(number) or min(map(int, sizes)) < 1:
        raise ValueError(f"{number} axes of the sizes {' '.join(sizes)}"[:100])


def _name_beside(path: Path, name: str) -> Path:
    """Returns the file of this name in the folder of a header. Another place could be any file of the machine."""
    if not name or name.upper().startswith("LIST") or "%" in name or re.search(r"[/\\]|^\.\.?$", name.removeprefix("./")):
        raise ValueError(f"voxels in {name[:100]!r} and not in one file beside its header")
    beside = path.parent / name.removeprefix("./")
    if not beside.is_file():
        raise ValueError(f"no {beside.name} beside it, which holds its voxels")
    return beside


def _check_promise(place: _Voxels, promised: int, item: int) -> int:
    """Compares what a header promises with what the file holds.

    Args:
        place: Where the voxels lie.
        promised: Bytes of all voxels.
        item: Bytes of one number.

    Returns:
        The CRC-32 of the voxels where they are packed, else 0.

    Raises:
        EOFError, RuntimeError, OSError, zlib.error: If the file holds fewer, or far more, or is damaged.
    """
    checksum = 0
    with place.path.open("rb") as file:
        file.seek(0, 2)
        packed = file.tell() - place.offset
        file.seek(place.offset)
        if place.encoding == "raw":
            held = packed
        elif place.encoding in ("text", "hex"):
            # A number takes a digit and a blank at least; a byte takes two digits.
            held = (packed + 1) // 2 * (item if place.encoding == "text" else 1)
        else:
            held, checksum = _measure_unpacked(file, place.encoding, promised)
    if held < promised:
        raise EOFError(f"{held} bytes of voxels where the header promises {promised}")
    if place.encoding not in ("raw", "text", "hex") and held > promised + _SLACK:
        raise RuntimeError(f"more than {promised + _SLACK:,} bytes of voxels where its header promises {promised:,}")
    return checksum


def _measure_unpacked(file: Any, encoding: str, promised: int) -> tuple[int, int]:
    """Unpacks a file without keeping it; returns its bytes, few beyond the slack, and the CRC-32 of those that were promised.

    Raises:
        EOFError, OSError, zlib.error: If it is cut or damaged.
    """
    # 47 takes the heads of zlib and gzip alike. A piece unpacks to some hundred MB at most: bzip2 packs far more into one.
    unpacker = bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(47)
    piece, size, checksum = (1 << 12 if encoding == "bzip2" else 1 << 17), 0, 0
    while size <= promised + _SLACK and not unpacker.eof:
        data = file.read(piece)
        if not data:
            raise EOFError("packed voxels that end too early")
        data = unpacker.decompress(data)
        checksum = zlib.crc32(data[: max(0, promised - size)], checksum)
        size += len(data)
    return size, checksum


# ------------------------------------------------------------------------------------------------------------- FreeSurfer


def read_mgh(path: Path, data: bytes, *, voxels: bool = True) -> tuple[Grid, np.ndarray | None]:
    """Reads the bytes of an MGH file, packed (`.mgz`) or not.

    Args:
        path: The file, for errors.
        data: All of its bytes. Without `voxels` the first 64 KiB are enough.
        voxels: Whether to read the voxels too.

    Returns:
        The grid, and the array in the file's own numbers or None.

    Raises:
        ValueError: If the file is cut, damaged, or promises other voxels than it holds; the file is named.
    """
    try:
        head = inflater.decompressobj(31).decompress(data, _MGH_HEADER) if data[:2] == b"\x1f\x8b" else data[:_MGH_HEADER]
        if len(head) < _MGH_HEADER:
            raise EOFError("a file that ends within its header")
        version, *sizes, kind = struct.unpack_from(">6i", head)
        if version != 1 or kind not in _MGH_BYTES or min(sizes) < 1:
            raise ValueError(f"version {version}, sizes {sizes} and type {kind} in its header")
        end = _MGH_HEADER + math.prod(sizes) * _MGH_BYTES[kind]
        if voxels:
            check_size(data, end)
            content = inflater.decompressobj(31).decompress(data, end) if data[:2] == b"\x1f\x8b" else data[:end]
        else:
            content = head
        header = import_nibabel().freesurfer.mghformat.MGHHeader(head)
        shape = tuple(int(size) for size in header.get_data_shape())
        grid = shape, tuple(float(zoom) for zoom in header.get_zooms()[:3]), np.array(header.get_affine(), np.float64)
        if not voxels:
            return grid, None
        dtype = header.get_data_dtype()
        array = np.frombuffer(content, dtype, math.prod(sizes), _MGH_HEADER).reshape(shape, order="F")
        return grid, array.astype(dtype.newbyteorder("="))
    except Exception as error:  # a damaged header can make nibabel and zlib fail in any way
        raise _refuse(path, f"{error}") from error


def write_mgh(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Writes an MGH file, packed where its suffix is `.mgz`: an array `(X, Y, Z)` of uint8, int16 or int32 with its affine (RAS+ mm)."""
    nib = import_nibabel()
    nib.save(nib.MGHImage(array, affine), path)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_HEADER)


def _refuse(path: Path, reason: str) -> ValueError:
    kind = "NRRD" if path.name.lower().endswith(("nrrd", "nhdr")) else "MGH" if path.name.lower().endswith(("mgz", "mgh")) else "MetaImage"
    # SimpleITK says first where in its source it failed.
    reason = re.sub(r"\(0x[0-9a-f]+\)", "", " ".join(reason.split()).rpartition("ITK ERROR: ")[2])[-300:]
    return ValueError(f"Expected a whole {kind} file in {path}. Received: {reason.rstrip('.')}. Copy or convert it again.")


@functools.cache
def import_sitk() -> ModuleType:
    """Imports SimpleITK, whose own warnings would stand beside our one line.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError(describe_missing_format("SimpleITK", "read or write MetaImage and NRRD")) from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
