"""The mutants of `fuzz.py`: small files of each kind, changed at random. A mutant is a pure function of seed, kind and number."""

import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
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
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 254, 255, 256, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "\x1b[31m", "a\nb", "\ud800", "..", "/etc/passwd", "0", "1", "\u0663", [], {}, [[]], [None], [0], [1, 1], [16, 32], [0, 1, 2],
    {"a": 1}, {"0": "x"}, ["x", "x"], [float("nan")], [1e308, 1], [10**30, 1], [[1, 2]], [["(", ""]], [["a", "\\9"]], {"values": {}},
)  # fmt: skip


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
        offset, kind, values = pick(rng, ((0, ">I", (0, 1, 8, 17, 4000, 30000, 2**31 - 1, 2**32 - 1)), (4, ">I", (0, 1, 8, 21, 4000, 30000, 2**31)),
                                          (8, "B", (0, 1, 2, 4, 8, 16, 3)), (9, "B", (0, 1, 2, 3, 4, 6, 7)), (10, "B", (1, 255)), (12, "B", (1, 2))))  # fmt: skip
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
        kind, body = pick(rng, ((b"acTL", struct.pack(">2I", 2**31 - 1, 0)), (b"tRNS", rng.bytes(2)), (b"gAMA", bytes(4)), (b"iCCP", rng.bytes(40)),
                                (b"pHYs", rng.bytes(9)), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))), (b"ABCD", rng.bytes(9)), (b"PLTE", rng.bytes(9)),
                                (b"eXIf", rng.bytes(30)), (b"fcTL", rng.bytes(26))))  # fmt: skip
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
    value = pick(rng, (0, 1, 2, 3, 8, 16, 17, 32, 64, 255, 4000, 30000, 65535, 2**31 - 1, 2**32 - 1, len(data), len(data) - 1, place, int(rng.integers(2**16))))
    tag = int.from_bytes(data[entry : entry + 2], "little")
    if way == "value":
        struct.pack_into("<I", spoilt, entry + 8, value)
    elif way == "count":
        struct.pack_into("<I", spoilt, entry + 4, value)
    elif way == "type":
        struct.pack_into("<H", spoilt, entry + 2, int(rng.integers(20)))
    elif way == "tag":
        struct.pack_into("<H", spoilt, entry, pick(rng, (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 339, 700)))
    elif way == "next":
        # A directory that follows itself, or lies elsewhere.
        struct.pack_into("<I", spoilt, place + 2 + 12 * number, pick(rng, (place, 8, value)))
    else:
        spoilt[:8] = pick(rng, (b"MM\0*" + data[4:8], b"II+\0" + data[4:8], b"II*\0\xff\xff\xff\xff", bytes(8)))
    return "picture.tif", bytes(spoilt), f"{way} of tag {tag}={value}"


# -------------------------------------------------------------------------------------------------------------- documents


def list_places(content: Any, place: tuple = ()) -> list[tuple]:
    """Lists the places of all values within a document, as tuples of keys and indices."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place] * bool(place) + [found for key, value in items for found in list_places(value, (*place, key))]


def spoil_document(rng: Rng, content: Any) -> tuple[Any, str]:
    """Replaces, removes, doubles or adds a value at a random place."""
    content = json.loads(json.dumps(content))
    places = list_places(content)
    if not places:
        return pick(rng, JUNK), "all"
    place = pick(rng, places)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    way = pick(rng, ("junk", "junk", "junk", "junk", "huge", "deep", "remove", "add", "swap"))
    value = parent[place[-1]]
    if way == "junk":
        parent[place[-1]] = pick(rng, JUNK)
    elif way == "huge":
        parent[place[-1]] = pick(rng, ("x" * (10 << 20), ["x"] * 100_000, {str(index): index for index in range(10_000)}))
    elif way == "deep":
        for _ in range(pick(rng, (3, 70, 500))):
            value = [value]
        parent[place[-1]] = value
    elif way == "remove":
        del parent[place[-1]]
    elif way == "swap":
        parent[place[-1]] = content[pick(rng, tuple(content))] if isinstance(content, dict) and content else None
    elif isinstance(parent, dict):
        parent[pick(rng, ("x", "", "../x", "/x", "99", "-1", "1.5", "x" * 100_000))] = pick(rng, JUNK)
    else:
        parent.append(pick(rng, JUNK))
    return content, f"{way} at {'.'.join(map(str, place))[:60]}"


def spoil_text(rng: Rng, text: bytes) -> tuple[bytes, str]:
    """Spoils the text of a document."""
    key = b'"' + text.split(b'"')[1] + b'": 1, ' if text.count(b'"') > 1 else b""
    options: tuple[tuple[str, Callable[[], bytes]], ...] = (
        ("empty", lambda: b""),
        ("not UTF-8", lambda: text.replace(b"a", b"\xff", 1)),
        ("byte order mark", lambda: b"\xef\xbb\xbf" + text),
        ("UTF-16", lambda: text.decode("utf-8").encode("utf-16")),
        ("deep", lambda: b"[" * pick(rng, (100, 100_000, 3_000_000))),
        ("a key twice", lambda: text.replace(b"{", b"{" + key, 1)),
        ("long number", lambda: text.replace(b"1", b"9" * 5_000, 1)),
        ("huge", lambda: text + b" " * (6 << 20)),
        ("no object", lambda: pick(rng, (b"[]", b"3", b"null", b'"x"', b"NaN", b"true"))),
    )
    if rng.random() < 0.5:
        return spoil_bytes(rng, text)
    name, make = pick(rng, options)
    return make(), name


def hash_description(content: Any) -> str:
    """Returns the hash that a bundle's description has of itself."""
    content = {name: value for name, value in content.items() if name != "bundle_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mutate_bundle(rng: Rng, seed: Path, folder: Path) -> str:
    """Writes a mutant of the bundle `seed` into the empty `folder`; returns what was done."""
    files = {path.name: path.read_bytes() for path in seed.iterdir()}
    content = json.loads(files["bundle.json"])
    way = pick(rng, ("field", "field", "field", "field", "text", "model", "config", "manifest", "manifest"))
    rehash = rng.random() < 0.85
    what = way
    if way == "field":
        content, what = spoil_document(rng, content)
    elif way == "model":
        files["model.keras"], what = spoil_bytes(rng, files["model.keras"])
    elif way == "config":
        files["model.keras"], what = _spoil_archive(rng, files["model.keras"])
    elif way == "manifest":
        outside = folder.parent / "outside.bin"
        outside.write_bytes(b"outside")
        digest = hashlib.sha256(b"outside").hexdigest()
        what = pick(rng, ("../outside.bin", str(outside), "a file more", "link out", "linked model", "unlisted", "no model"))
        if what == "unlisted":
            files[pick(rng, ("openvino.xml", "notes.txt", ".DS_Store", "weights.h5"))] = b"outside"
        elif what == "no model":
            content["files_sha256"] = {}
        elif what in ("link out", "linked model"):
            name = "openvino.bin" if what == "link out" else "model.keras"
            outside.write_bytes(files.get(name, b"outside"))
            files.pop(name, None)
            content["files_sha256"][name] = hashlib.sha256(outside.read_bytes()).hexdigest()
            (folder / name).symlink_to(outside)
        else:
            content["files_sha256"]["notes.txt" if what == "a file more" else what] = digest
            files["notes.txt"] = b"outside"
    if way in ("model", "config") and rehash:
        content["files_sha256"]["model.keras"] = hashlib.sha256(files["model.keras"]).hexdigest()
    if isinstance(content, dict) and rehash:
        content["bundle_sha256"] = hash_description(content)
    files["bundle.json"] = json.dumps(content, indent=1).encode()
    if way == "text":
        files["bundle.json"], what = spoil_text(rng, files["bundle.json"])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"{way}: {what}{', hashes mended' * rehash}"


def _spoil_archive(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """Spoils a part of a `.keras` archive, or packs zeros into it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name, what = pick(rng, tuple(parts)), "bytes"
    way = zipfile.ZIP_STORED
    if name == "config.json" and rng.random() < 0.8:
        content, what = spoil_document(rng, json.loads(parts[name]))
        parts[name] = json.dumps(content).encode()
    elif rng.random() < 0.3:
        parts["zeros"], way, what = bytes(64 << 20), zipfile.ZIP_DEFLATED, "a bomb"
    elif rng.random() < 0.2:
        del parts[name]
        what = "removed"
    else:
        parts[name], what = spoil_bytes(rng, parts[name])
    with zipfile.ZipFile(result, "w", way) as archive:
        for part, body in parts.items():
            archive.writestr(part, body)
    return result.getvalue(), f"{name} {what}"


DATASETS: tuple[dict[str, Any], ...] = (
    {
        "name": "d", "description": "a set", "licence": "CC0", "modality": {"0": "T1"}, "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/s{i}.nii.gz", "label": f"./labelsTr/s{i}.nii.gz"} for i in range(3)],
    },
    {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz", "numTraining": 2},
    {
        "channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz",
        "dataset": {f"s{i}": {"images": [f"imagesTr/s{i}.nii.gz"], "label": f"labelsTr/s{i}.nii.gz"} for i in range(3)},
    },
)  # fmt: skip


def mutate_dataset(rng: Rng, folder: Path) -> str:
    """Writes a data set with a mutant of `dataset.json` into the empty `folder`; returns what was done."""
    number = int(rng.integers(len(DATASETS)))
    content: Any = DATASETS[number]
    stems = [f"s{i}_{channel:04d}" for i in range(2) for channel in range(2)] if number == 1 else ["s0", "s1", "s2"]
    for sub, names in (("imagesTr", stems), ("labelsTr", sorted({stem[:2] for stem in stems}))):
        (folder / sub).mkdir()
        for name in names:
            (folder / sub / f"{name}.nii.gz").touch()
    if rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 3))):
            content, what = spoil_document(rng, content)
        text = json.dumps(content).encode()
    else:
        text, what = spoil_text(rng, json.dumps(content).encode())
    (folder / "dataset.json").write_bytes(text)
    return f"layout {number}: {what}"
