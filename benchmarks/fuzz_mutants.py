"""The mutants of images for `fuzz.py`: small NIfTI, PNG and TIFF files, changed at random by a generator that is passed in."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import nibabel as nib
import numpy as np

BOMB_MIB = 1280
Rng = np.random.Generator

# {field: (offset, format)} of a NIfTI-1 header.
NIFTI_FIELDS = {
    "sizeof_hdr": (0, "i"),
    **{f"dim[{i}]": (40 + 2 * i, "h") for i in range(8)},
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    **{f"pixdim[{i}]": (76 + 4 * i, "f") for i in range(8)},
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    **{f"quatern_{name}": (256 + 4 * i, "f") for i, name in enumerate("bcd")},
    **{f"qoffset_{name}": (268 + 4 * i, "f") for i, name in enumerate("xyz")},
    **{f"srow_{name}[{i}]": (280 + 16 * row + 4 * i, "f") for row, name in enumerate("xyz") for i in range(4)},
    "magic": (344, "i"),
    "extension": (348, "i"),
}
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("nan"), float("inf"), -float("inf"), 1e-30, 1e-5, 1e9, 1e30, 3e38, 352.0, 348.0, 400.5)
INTS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2304, 1792, 255, 32767, -32768, 27307, 30000)


# Offset, type and values of fields of a PNG's head.
PNG_HEADS = (
    (0, ">I", (0, 1, 8, 17, 4000, 30000, 2**31 - 1, 2**32 - 1)),
    (4, ">I", (0, 1, 8, 21, 4000, 30000, 2**31)),
    (8, "B", (0, 1, 2, 4, 8, 16, 3)),
    (9, "B", (0, 1, 2, 3, 4, 6, 7)),
    (10, "B", (1, 255)),
    (12, "B", (1, 2)),
)
PNG_CHUNKS = ((b"tRNS", 2), (b"gAMA", 4), (b"iCCP", 40), (b"pHYs", 9), (b"ABCD", 9), (b"PLTE", 9), (b"eXIf", 30), (b"fcTL", 26))
TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 339, 700)


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    """Draws one of some options."""
    return options[int(rng.integers(len(options)))]


# ------------------------------------------------------------------------------------------------------------------ bytes


def spoil_bytes(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """Cuts, flips, repeats, removes or appends bytes anywhere."""
    kind = pick(rng, ("cut", "cut", "flip", "flip", "flip", "append", "remove", "repeat", "zero"))
    place = int(rng.integers(max(len(data), 1)))
    length = int(rng.integers(1, 64))
    if kind == "cut":
        return data[:place], "cut"
    if kind == "append":
        return data + pick(rng, (b"\0", bytes(length), rng.bytes(length), bytes(3 << 20))), "bytes appended"
    spoilt = bytearray(data)
    if kind == "flip":
        for _ in range(int(rng.integers(1, 9))):
            if spoilt:
                spoilt[int(rng.integers(len(spoilt)))] ^= 1 << int(rng.integers(8))
    elif kind == "remove":
        del spoilt[place : place + length]
    elif kind == "repeat":
        spoilt[place:place] = spoilt[place : place + length]
    else:
        spoilt[place : place + length] = bytes(len(spoilt[place : place + length]))
    return bytes(spoilt), f"bytes: {kind}"


# ------------------------------------------------------------------------------------------------------------------ NIfTI


def make_niftis() -> list[bytes]:
    """Makes small NIfTI files, not compressed, of several types, ranks, byte orders and versions."""
    rng = np.random.default_rng(0)
    turned = np.array([[0, -1.5, 0, 9], [2, 0, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    files = []
    for array, affine, kind in (
        (rng.integers(0, 400, (12, 10, 8)).astype(np.int16), np.diag([1.5, 2, 3, 1]), nib.Nifti1Image),
        (rng.random((12, 10, 8)).astype(np.float32), turned, nib.Nifti1Image),
        (rng.integers(0, 4, (12, 10, 8)).astype(np.uint8), turned, nib.Nifti1Image),
        (rng.integers(0, 400, (9, 10, 8, 2)).astype(np.uint16), np.eye(4), nib.Nifti1Image),
        (rng.random((24, 20, 1)).astype(np.float64), np.eye(4), nib.Nifti1Image),
        (rng.integers(0, 400, (7, 6, 5)).astype(np.int32), np.eye(4), nib.Nifti2Image),
    ):
        image = kind(array, affine)
        image.header.set_xyzt_units("mm", "sec")
        files.append(image.to_bytes())
    scaled = bytearray(files[0])
    struct.pack_into("<2f", scaled, 112, 0.25, -3)
    qform = bytearray(files[1])
    struct.pack_into("<2h", qform, 252, 1, 0)
    swapped = nib.Nifti1Image(rng.integers(0, 400, (6, 7, 8)).astype(">i2"), turned, nib.Nifti1Header(endianness=">"))
    return [*files, bytes(scaled), bytes(qform), swapped.to_bytes()]


def make_bombs() -> list[bytes]:
    """Makes gzip files of `BOMB_MIB` behind a header of 12x10x8: of one member, and of many."""
    head, piece = make_niftis()[0], bytes(16 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    check, number = zlib.crc32(head), BOMB_MIB // 16
    for _ in range(number):
        check = zlib.crc32(piece, check)
    end = struct.pack("<II", check, (len(head) + number * len(piece)) & 0xFFFFFFFF)
    one = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + block * number + b"\x03\0" + end
    return [one, gzip.compress(head) + gzip.compress(piece) * number, one[:-4] + struct.pack("<I", len(head))]


def mutate_nifti(rng: Rng, seeds: Sequence[bytes], bombs: Sequence[bytes]) -> tuple[str, bytes, str]:
    """Makes a NIfTI mutant; returns its name, its bytes and what was done."""
    data, done = bytearray(pick(rng, seeds)), []
    order = "<" if data[0] in (348 % 256, 540 % 256) and data[1] else ">"
    for _ in range(int(rng.integers(0, 4))):
        name = pick(rng, tuple(NIFTI_FIELDS))
        offset, kind = NIFTI_FIELDS[name]
        if kind == "f":
            value = pick(rng, FLOATS) if rng.random() < 0.7 else float(np.float32(rng.normal() * 10.0 ** rng.integers(-3, 6)))
        elif kind == "B":
            value = int(rng.integers(256)) if rng.random() < 0.5 else int(rng.integers(8))
        else:
            value = pick(rng, INTS) if rng.random() < 0.8 else int(rng.integers(-(2**15), 2**15))
        struct.pack_into(order + kind, data, offset, value)
        done.append(f"{name}={value:g}")
    result = bytes(data)
    if rng.random() < 0.3 or not done:
        result, what = spoil_bytes(rng, result)
        done.append(what)
    suffix = ".nii"
    if rng.random() < 0.5:
        suffix, result, what = _pack(rng, result, bombs)
        done += what
    elif rng.random() < 0.03:
        suffix, result = pick(rng, ((".nii.gz", result), (".nii", gzip.compress(result)), (".nii", b""), (".nii", b"not a scan")))
        done.append("of another kind")
    return f"scan{suffix}", result, ", ".join(done)


def _pack(rng: Rng, data: bytes, bombs: Sequence[bytes]) -> tuple[str, bytes, list[str]]:
    """Compresses a file, and lies about it in one of three cases."""
    packed = gzip.compress(data, mtime=0)
    lie = pick(rng, ("", "", "", "", "", "", "check sum", "size", "members", "bytes", "junk behind", "header bits", "cut", "bomb"))
    if lie == "check sum":
        packed = packed[:-8] + rng.bytes(4) + packed[-4:]
    elif lie == "size":
        packed = packed[:-4] + pick(rng, (rng.bytes(4), b"\0\0\0\0", b"\xff\xff\xff\xff"))
    elif lie == "members":
        place = int(rng.integers(len(data) + 1))
        packed = gzip.compress(data[:place]) + gzip.compress(data[place:])
    elif lie == "bytes":
        packed, _ = spoil_bytes(rng, packed)
    elif lie == "junk behind":
        packed += rng.bytes(int(rng.integers(1, 64)))
    elif lie == "header bits":
        packed = packed[:3] + rng.bytes(1) + packed[4:]
    elif lie == "cut":
        packed = packed[: int(rng.integers(len(packed)))]
    elif lie == "bomb":
        packed = pick(rng, bombs)
    return ".nii.gz", packed, [f"gzip: {lie}"] if lie else []


# --------------------------------------------------------------------------------------------------------------- pictures


def make_pictures(suffix: str) -> list[bytes]:
    """Makes small pictures: grey of 8 and 16 bits, colours, colours with opacity; TIFF also with real numbers and compressions."""
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(0, 256, (20, 16)).astype(np.uint8),
        rng.integers(0, 65536, (20, 16)).astype(np.uint16),
        rng.integers(0, 256, (20, 16, 3)).astype(np.uint8),
        rng.integers(0, 256, (20, 16, 4)).astype(np.uint8),
    ]
    if suffix == ".png":
        rows = np.concatenate([np.zeros((20, 1), np.uint8), arrays[0] % 64], axis=1).tobytes()
        palette = [(b"IHDR", struct.pack(">2I5B", 16, 20, 8, 3, 0, 0, 0)), (b"PLTE", rng.bytes(192)), (b"tRNS", rng.bytes(9))]
        files = [cv2.imencode(suffix, array)[1].tobytes() for array in arrays]
        return [*files, join_png([*palette, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])]
    arrays.append(rng.random((20, 16)).astype(np.float32))
    # No compression, LZW, Deflate and PackBits.
    return [cv2.imencode(suffix, array, [cv2.IMWRITE_TIFF_COMPRESSION, way])[1].tobytes() for array in arrays for way in (1, 5, 8, 32773)]


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a PNG into its chunks of kind and body."""
    chunks, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def join_png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Joins chunks to a PNG with right check sums."""
    parts = [len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def mutate_png(rng: Rng, seeds: Sequence[bytes]) -> tuple[str, bytes, str]:
    """Makes a PNG mutant: wrong bytes, or chunks that lie under right check sums."""
    data = pick(rng, seeds)
    way = pick(rng, ("bytes", "head", "head", "body", "chunks", "extra", "kind"))
    chunks = split_png(data)
    if way == "bytes":
        data, way = spoil_bytes(rng, data)
    elif way == "head":
        head = bytearray(chunks[0][1])
        offset, kind, values = pick(rng, PNG_HEADS)
        struct.pack_into(kind, head, offset, value := pick(rng, values))
        data, way = join_png([(b"IHDR", bytes(head)), *chunks[1:]]), f"IHDR[{offset}]={value}"
    elif way == "body":
        index = int(rng.integers(len(chunks)))
        body, what = spoil_bytes(rng, chunks[index][1])
        chunks[index] = chunks[index][0], body
        data, way = join_png(chunks), f"{chunks[index][0].decode()} {what}"
    elif way == "chunks":
        index = int(rng.integers(len(chunks)))
        chunks[index : index + 1] = pick(rng, ([], [chunks[index]] * 2))
        data, way = join_png(chunks), "a chunk removed or twice"
    elif way == "extra":
        kind, body = pick(
            rng,
            (
                *((name, rng.bytes(size)) for name, size in PNG_CHUNKS),
                (b"acTL", struct.pack(">2I", 2**31 - 1, 0)),
                (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))),
            ),
        )
        data, way = join_png([chunks[0], (kind, body), *chunks[1:]]), f"a chunk {kind.decode()}"
    else:
        data, way = pick(rng, (b"", b"\x89PNG\r\n\x1a\n", b"text", make_pictures(".tif")[0])), "of another kind"
    return "picture.png", data, way


def mutate_tiff(rng: Rng, seeds: Sequence[bytes]) -> tuple[str, bytes, str]:
    """Makes a TIFF mutant: wrong bytes, or an entry of its directory that lies."""
    data = pick(rng, seeds)
    if rng.random() < 0.35:
        data, way = spoil_bytes(rng, data)
        return "picture.tif", data, way
    spoilt = bytearray(data)
    place = int.from_bytes(data[4:8], "little")
    number = int.from_bytes(data[place : place + 2], "little")
    way = pick(rng, ("value", "value", "value", "count", "type", "tag", "next", "head"))
    entry = place + 2 + 12 * int(rng.integers(number))
    value = pick(
        rng,
        (
            0,
            1,
            2,
            3,
            8,
            16,
            17,
            32,
            64,
            255,
            4000,
            30000,
            65535,
            2**31 - 1,
            2**32 - 1,
            len(data),
            len(data) - 1,
            place,
            int(rng.integers(2**16)),
        ),
    )
    tag = int.from_bytes(data[entry : entry + 2], "little")
    if way == "value":
        struct.pack_into("<I", spoilt, entry + 8, value)
    elif way == "count":
        struct.pack_into("<I", spoilt, entry + 4, value)
    elif way == "type":
        struct.pack_into("<H", spoilt, entry + 2, int(rng.integers(20)))
    elif way == "tag":
        struct.pack_into(
            "<H", spoilt, entry, pick(rng, (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 339, 700))
        )
    elif way == "next":
        # A directory that follows itself, or lies elsewhere.
        struct.pack_into("<I", spoilt, place + 2 + 12 * number, pick(rng, (place, 8, value)))
    else:
        spoilt[:8] = pick(rng, (b"MM\0*" + data[4:8], b"II+\0" + data[4:8], b"II*\0\xff\xff\xff\xff", bytes(8)))
    return "picture.tif", bytes(spoilt), f"{way} of tag {tag}={value}"
