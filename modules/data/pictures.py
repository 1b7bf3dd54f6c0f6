"""Checks of PNG and TIFF files before OpenCV decodes them.

OpenCV prints lines of its own about a damaged picture. It allocates as much memory as a header promises. It returns the rest of a cut TIFF
as if it were whole. These checks refuse such files first.
"""

import math
import struct
import zlib
from collections.abc import Iterator

try:
    from isal import isal_zlib as inflater
except ImportError:
    inflater = zlib

_PNG = b"\x89PNG\r\n\x1a\n"
# Channels by PNG's type of colour, and the bits that each type may have.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# First pixel and step of each pass of an interlaced PNG: row, column, row step, column step.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
# OpenCV takes no more pixels either.
_MOST_PIXELS = 1 << 30
# Bytes of each type of a TIFF's entry.
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _OFFSETS, _ORIENTATION = 256, 257, 258, 259, 273, 274
_SAMPLES, _ROWS, _COUNTS, _PLANAR = 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
# Deflate packs 1032 bytes in one at most, LZW 1365 or so.
_MOST_PACKED = 2_000


def check_png(data: bytes) -> bytes:
    """Checks a whole PNG.

    Returns:
        The file without chunks that say nothing about its pixels; the same object where there are none.

    Raises:
        ValueError: If it is no PNG, was cut or damaged, is animated, or does not hold the pixels that its head promises.
    """
    if not data.startswith(_PNG):
        raise ValueError("no PNG")
    chunks = list(_split_png(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or len(chunks[0][1]) != 13 or kinds.count(b"IHDR") > 1 or chunks[-1][1]:
        raise ValueError("a file whose chunks are not in order")
    if b"acTL" in kinds or b"fcTL" in kinds:
        raise ValueError("an animated picture")
    if strange := [kind for kind in kinds if not kind[0] & 32 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")]:
        raise ValueError(f"an unknown chunk {strange[0]!r}")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">2I5B", chunks[0][1])
    if colour not in _CHANNELS or depth not in _DEPTHS[colour] or compression or filtering or interlace > 1:
        raise ValueError(
            f"a head of {depth} bits, colour type {colour}, compression {compression}, filter {filtering}, interlace {interlace}"
        )
    if not 0 < width * height <= _MOST_PIXELS:
        raise ValueError(f"{width:,}x{height:,} pixels")
    first = kinds.index(b"IDAT") if b"IDAT" in kinds else 0
    number = kinds.count(b"IDAT")
    if not first or kinds[first : first + number] != [b"IDAT"] * number:
        raise ValueError("pixels that are missing or not in order")
    kept = {b"IHDR", b"IDAT", b"IEND"} | _keep_colours(dict(chunks), kinds[:first], colour, depth)
    _check_pixels(
        b"".join(body for _, body in chunks[first : first + number]), _list_rows(width, height, depth * _CHANNELS[colour], interlace)
    )
    if kept.issuperset(kinds):
        return data
    return _PNG + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
        for kind, body in chunks
        if kind in kept
    )


def _split_png(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and body of each chunk up to the end; raises ValueError where one is cut or its check sum is wrong."""
    place, kind = 8, b""
    while kind != b"IEND":
        size = int.from_bytes(data[place : place + 4], "big")
        kind, check = data[place + 4 : place + 8], data[place + 8 + size : place + 12 + size]
        body = data[place + 8 : place + 8 + size]
        if len(check) < 4 or zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise ValueError("a file cut or damaged")
        yield kind, body
        place += 12 + size


def _keep_colours(bodies: dict[bytes, bytes], before: list[bytes], colour: int, depth: int) -> set[bytes]:
    """Returns the chunks of palette and opacity that the pixels need; raises ValueError where they do not fit."""
    kept: set[bytes] = set()
    entries = 0
    if colour == 3:
        entries, odd = divmod(len(bodies.get(b"PLTE", b"")), 3)
        if before.count(b"PLTE") != 1 or odd or not 0 < entries <= 1 << depth:
            raise ValueError("a palette that is missing or wrong")
        kept.add(b"PLTE")
    if b"tRNS" in before and colour in (0, 2, 3):
        body = bodies[b"tRNS"]
        fits = 0 < len(body) <= entries if colour == 3 else len(body) == 2 * _CHANNELS[colour]
        samples = struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2])
        if before.count(b"tRNS") > 1 or not fits or (colour != 3 and max(samples) >> depth):
            raise ValueError("an opacity that does not fit the colours")
        kept.add(b"tRNS")
    return kept


def _list_rows(width: int, height: int, bits: int, interlace: int) -> list[tuple[int, int]]:
    """Lists number and bytes of the rows of each pass; each row has its filter in front."""
    if not interlace:
        return [(height, 1 + (width * bits + 7) // 8)]
    sizes = [(-(-(height - row) // down), -(-(width - column) // right)) for row, column, down, right in _PASSES]
    return [(rows, 1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]


def _check_pixels(packed: bytes, rows: list[tuple[int, int]]) -> None:
    """Raises ValueError if packed pixels are damaged, or are not the rows that the head promises."""
    size = sum(number * length for number, length in rows)
    if size > _MOST_PACKED * len(packed):
        raise ValueError(f"{len(packed):,} bytes for pixels of {size:,}")
    try:
        member = inflater.decompressobj(15)
        pixels = member.decompress(packed, size + 1)
    except Exception as error:  # Each of the two libraries has an error of its own.
        raise ValueError(f"pixels that cannot be inflated ({error})") from error
    if len(pixels) != size or not member.eof or member.unused_data:
        raise ValueError(f"{len(pixels):,} bytes or more of pixels where its head promises {size:,}")
    place = 0
    for number, length in rows:
        if max(pixels[place : place + number * length : length]) > 4:
            raise ValueError("an unknown filter of a row")
        place += number * length


# ------------------------------------------------------------------------------------------------------------------- TIFF


def check_tiff(data: bytes) -> None:
    """Checks that a TIFF holds one picture, and all of its pixels.

    Raises:
        ValueError: If it is no TIFF, was cut or damaged, holds several pictures, or cannot hold the pixels that it promises.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    version = struct.unpack(f"{order}H", data[2:4])[0] if order and len(data) >= 16 else 0
    if version not in (42, 43):
        raise ValueError("no TIFF")
    tags, following = _read_directory(data, order, big=version == 43)
    if following:
        raise ValueError("several pictures, or a damaged directory")
    width, length = _read_one(tags, _WIDTH), _read_one(tags, _LENGTH)
    samples, bits = _read_one(tags, _SAMPLES, 1), tags.get(_BITS, (1,))
    if not 0 < width * length <= _MOST_PIXELS or not 0 < samples <= 4096 or len(bits) not in (1, samples) or not 0 < max(bits) <= 64:
        raise ValueError(f"{width:,}x{length:,} pixels of {samples} samples of {bits[:4]} bits")
    if _read_one(tags, _ORIENTATION, 1) not in range(1, 5):
        # OpenCV exchanges rows and columns of such a picture, but only in some of its functions.
        raise ValueError("a picture that is turned by a tag")
    _check_parts(data, tags, width, length, samples * max(bits))


def _check_parts(data: bytes, tags: dict[int, tuple[int, ...]], width: int, length: int, bits: int) -> None:
    """Raises ValueError unless the strips or tiles lie in the file, are as many as there must be, and can hold the pixels."""
    tiled = any(tag in tags for tag in (_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS))
    offsets, counts = (tags.get(tag, ()) for tag in ((_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_OFFSETS, _COUNTS)))
    columns, rows = (_read_one(tags, _TILE_WIDTH), _read_one(tags, _TILE_LENGTH)) if tiled else (width, _read_one(tags, _ROWS, length))
    planes = _read_one(tags, _SAMPLES, 1) if _read_one(tags, _PLANAR, 1) == 2 else 1
    if not columns or not rows:
        raise ValueError("strips or tiles of no size")
    number = planes * -(-width // columns) * -(-length // rows)
    if not len(offsets) == len(counts) == number:
        raise ValueError(f"{len(offsets)} strips or tiles with {len(counts)} sizes where there must be {number:,}")
    if any(offset < 8 or count < 1 or offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise ValueError("pixels behind the end of the file")
    rows = length if not tiled else -(-length // rows) * rows
    columns = width if not tiled else -(-width // columns) * columns
    size = rows * math.ceil(columns * bits / 8)
    if sum(counts) * (1 if _read_one(tags, _COMPRESSION, 1) == 1 else _MOST_PACKED) < size:
        raise ValueError(f"{sum(counts):,} bytes for pixels of {size:,}")


def _read_directory(data: bytes, order: str, *, big: bool) -> tuple[dict[int, tuple[int, ...]], int]:
    """Reads the first directory: `{tag: its whole numbers}`, and the place of the next one, 0 for none."""
    head, one, word, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    try:
        (place,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (number,) = struct.unpack_from(order + head, data, place)
        place += struct.calcsize(order + head)
        step = struct.calcsize(order + one) + inline
        if place + number * step > len(data):
            raise ValueError("a directory that is cut")
        tags: dict[int, tuple[int, ...]] = {}
        for entry in range(place, place + number * step, step):
            tag, kind, count = struct.unpack_from(order + one, data, entry)
            size = count * _TIFF_BYTES.get(kind, 0)
            value = entry + step - inline
            if size > inline:
                (value,) = struct.unpack_from(order + word, data, value)
            if kind in _TIFF_FORMATS:
                if value + size > len(data):
                    raise ValueError(f"an entry {tag} behind the end of the file")
                # As libtiff does: of an entry that comes twice the first counts.
                tags.setdefault(tag, struct.unpack_from(f"{order}{count}{_TIFF_FORMATS[kind]}", data, value))
        return tags, struct.unpack_from(order + word, data, place + number * step)[0]
    except (struct.error, OverflowError) as error:
        raise ValueError("a directory that is cut") from error


def _read_one(tags: dict[int, tuple[int, ...]], tag: int, default: int = 0) -> int:
    values = tags.get(tag, ())
    return values[0] if values else default
