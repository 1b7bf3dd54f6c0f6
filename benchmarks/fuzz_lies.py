"""Finds lies in pictures that OpenCV reads all the same, for `fuzz.py`; it finds them in another way than the program does.

Each function returns parts of messages; the program must give one of these messages. It returns none for an honest file.
"""

import math
import struct
import zlib

PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))


def find_png_lies(data: bytes) -> list[str]:
    """Finds the lies of a PNG."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return ["no PNG"]
    chunks, place = [], 8
    while place + 12 <= len(data) and (not chunks or chunks[-1][0] != b"IEND"):
        (size,) = struct.unpack_from(">I", data, place)
        chunk = data[place + 4 : place + 8 + size]
        if data[place + 8 + size : place + 12 + size] != struct.pack(">I", zlib.crc32(chunk)):
            return ["cut or damaged"]
        chunks.append((chunk[:4], chunk[4:]))
        place += 12 + size
    kinds = [kind for kind, _ in chunks]
    lies = []
    if not chunks or kinds[-1] != b"IEND":
        return ["cut or damaged"]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or chunks[-1][1]:
        lies.append("not in order")
    if {b"acTL", b"fcTL"} & set(kinds):
        lies.append("animated")
    places = [index for index, kind in enumerate(kinds) if kind == b"IDAT"]
    if not places or places[-1] - places[0] != len(places) - 1:
        lies.append("missing or not in order")
    width, height, depth, colour, *_, interlaced = struct.unpack(">2I5B", dict(chunks)[b"IHDR"])
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    body = dict(reversed(chunks)).get(b"tRNS")
    if body is not None and colour in (0, 2):
        values = [int.from_bytes(body[i : i + 2], "big") for i in range(0, len(body), 2)]
        if len(body) != 2 * samples or max(values) >= 2**depth:
            lies.append("opacity")
    if colour == 3 and (b"PLTE" not in kinds or (body is not None and not 0 < len(body) <= len(dict(chunks)[b"PLTE"]) // 3)):
        lies += ["opacity", "palette"]
    if kinds.count(b"PLTE") > 1 or kinds.count(b"tRNS") > 1:
        lies += ["opacity", "palette"]
    grids = [(len(range(r, height, dr)), len(range(c, width, dc))) for r, dr, c, dc in PASSES] if interlaced else [(height, width)]
    size = sum(rows * (1 + math.ceil(columns * samples * depth / 8)) for rows, columns in grids if rows and columns)
    try:
        member = zlib.decompressobj()
        pixels = member.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), size + 1)
        honest = len(pixels) == size and member.eof and not member.unused_data
    except zlib.error:
        honest = False
    return lies if honest else [*lies, "of pixels", "for pixels", "inflated"]


def find_tiff_lies(data: bytes) -> list[str]:
    """Finds the lies of a TIFF whose head OpenCV takes."""
    order = "<" if data[:2] == b"II" else ">"
    (version, place) = struct.unpack_from(f"{order}HI", data, 2)
    wide = version == 43
    if wide:
        (place,) = struct.unpack_from(f"{order}Q", data, 8)
    (number,) = struct.unpack_from(f"{order}{'Q' if wide else 'H'}", data, place)
    entry, step = place + (8 if wide else 2), 20 if wide else 12
    tags: dict[int, list[int]] = {}
    for index in range(number):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry + index * step)
        (count,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, entry + index * step + 4)
        size = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8}.get(kind)
        if size is None:
            continue
        start = entry + index * step + (12 if wide else 8)
        if size * count > (8 if wide else 4):
            (start,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, start)
        if start + size * count > len(data):
            return [f"an entry {tag} behind the end", "directory"]
        signed = kind in (6, 8, 9, 17)
        values = [
            int.from_bytes(data[at : at + size], "little" if order == "<" else "big", signed=signed)
            for at in range(start, start + size * count, size)
        ]
        tags.setdefault(tag, values)
    lies = []
    if entry + number * step + (8 if wide else 4) > len(data):
        lies.append("a directory that is cut")
    if any(data[entry + number * step : entry + number * step + (8 if wide else 4)]):
        lies.append("several pictures")
    tiled = bool({322, 323, 324, 325} & set(tags))
    offsets, counts = tags.get(324 if tiled else 273, []), tags.get(325 if tiled else 279, [])
    width, length = (tags.get(256) or [0])[0], (tags.get(257) or [0])[0]
    samples, bits = (tags.get(277) or [1])[0], tags.get(258) or [1]
    if not 0 < width * length <= 2**30 or len(bits) not in (1, samples):
        lies.append("pixels of")
    if (tags.get(274) or [1])[0] not in range(1, 5):
        lies.append("turned")
    if any(at < 8 or size < 1 or at + size > len(data) for at, size in zip(offsets, counts, strict=False)):
        lies.append("pixels behind the end")
    if not tiled:
        rows = (tags.get(278) or [length])[0]
        parts = -(-length // rows) * (samples if (tags.get(284) or [1])[0] == 2 else 1) if rows > 0 else -1
        if len(offsets) != parts or len(counts) != parts:
            lies += ["strips or tiles", "no size"]
        packed = 1 if (tags.get(259) or [1])[0] == 1 else 2000
        if sum(counts) * packed < length * math.ceil(width * samples * max(bits) / 8):
            lies.append("bytes for pixels")
    else:
        # No seed has tiles, so a tag of tiles is a lie.
        lies += ["strips or tiles", "no size", "pixels behind the end"]
    return lies
