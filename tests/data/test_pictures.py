"""Pictures that lie are refused before OpenCV allocates, prints or guesses; all others come as OpenCV reads them."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from modules.data.formats import read_file
from modules.data.pictures import check_png

GREY = np.arange(320, dtype=np.uint8).reshape(20, 16)


def _join(*chunks):
    parts = [len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png(head=(16, 20, 8, 0, 0, 0, 0), pixels=None, *extra):
    """A grey PNG, each row behind its filter; `extra` are chunks before its pixels."""
    rows = np.concatenate([np.zeros((20, 1), np.uint8), GREY], axis=1).tobytes() if pixels is None else pixels
    return _join((b"IHDR", struct.pack(">2I5B", *head)), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def _read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return read_file(path).array[..., 0]


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"text", "no PNG"),
        (_png()[:-1], "a file cut or damaged"),
        (_png().replace(b"IDAT", b"IDAU"), "a file cut or damaged"),
        # A few hundred bytes that promise 1.7 GiB.
        (_png((30_000, 30_000, 16, 0, 0, 0, 0)), "bytes for pixels of 1,800,030,000"),
        (_png((2**31, 2**31, 8, 0, 0, 0, 0)), "2,147,483,648x2,147,483,648 pixels"),
        (_png((16, 20, 3, 0, 0, 0, 0)), "a head of 3 bits, colour type 0"),
        (_png((16, 20, 8, 0, 1, 0, 0)), "a head of 8 bits"),
        (_png((16, 21, 8, 0, 0, 0, 0)), "340 bytes or more of pixels where its head promises 357"),
        # The rest would be dropped.
        (_png((16, 19, 8, 0, 0, 0, 0)), "of pixels where its head promises 323"),
        (_png(pixels=b"\5" + bytes(339)), "an unknown filter of a row"),
        (_png((16, 20, 8, 3, 0, 0, 0)), "a palette that is missing or wrong"),
        (_png((16, 20, 8, 0, 0, 0, 0), None, (b"acTL", bytes(8))), "an animated picture"),
        (_png((16, 20, 8, 0, 0, 0, 0), None, (b"ABCD", b"")), "an unknown chunk b'ABCD'"),
        (_png((16, 20, 8, 0, 0, 0, 0), None, (b"tRNS", b"\xff\xff")), "an opacity that does not fit the colours"),
    ],
)
def test_a_png_that_lies_is_refused_in_one_line_without_another_of_libpng(tmp_path, capfd, data, received):
    with pytest.raises(ValueError, match=r"Expected a whole PNG of one picture in .*a.png. Received: .*Convert it, or copy") as error:
        _read(tmp_path, "a.png", data)
    assert received in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_chunks_that_say_nothing_about_the_pixels_are_passed_over(tmp_path, capfd):
    plain = _png()
    assert check_png(plain) is plain
    # libpng would warn of the first, and inflate the second.
    wordy = _png((16, 20, 8, 0, 0, 0, 0), None, (b"iCCP", b"x\0\0y"), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))))
    np.testing.assert_array_equal(_read(tmp_path, "a.png", wordy), GREY)
    assert capfd.readouterr() == ("", "")


def test_interlaced_and_palette_pngs_come_as_opencv_reads_them(tmp_path):
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(b"\0" + row.tobytes() for r, c, dr, dc in passes for row in GREY[r::dr, c::dc])
    np.testing.assert_array_equal(_read(tmp_path, "a.png", _png((16, 20, 8, 0, 0, 0, 1), rows)), GREY)
    colours = np.stack([np.arange(256)[::-1]] * 3, axis=1).astype(np.uint8)
    palette = (b"PLTE", colours.tobytes())
    np.testing.assert_array_equal(_read(tmp_path, "b.png", _png((16, 20, 8, 3, 0, 0, 0), None, palette)), 255 - GREY)


def _tiff(compression=1):
    return bytearray(cv2.imencode(".tif", GREY, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes())


def _set(data, tag, offset, value):
    """Overwrites a part of a tag's entry: 0 its number, 4 its count, 8 its value."""
    place = int.from_bytes(data[4:8], "little")
    for entry in range(place + 2, place + 2 + 12 * int.from_bytes(data[place : place + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            struct.pack_into("<I" if offset else "<H", data, entry + offset, value)
            return data
    raise AssertionError(f"no tag {tag}")


def _chain(data):
    place = int.from_bytes(data[4:8], "little")
    struct.pack_into("<I", data, place + 2 + 12 * int.from_bytes(data[place : place + 2], "little"), place)
    return data


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"text", "no TIFF"),
        (_tiff()[:100], "a directory that is cut"),
        (_set(_tiff(), 257, 8, 40), "1 strips or tiles with 1 sizes where there must be 2"),
        (_set(_tiff(), 257, 8, 30_000), "1 strips or tiles with 1 sizes where there must be 1,500"),
        # OpenCV's `imdecode` returned what happened to lie in memory.
        (_set(_tiff(), 284, 0, 322), "strips or tiles of no size"),
        (_set(_tiff(5), 273, 8, 1 << 30), "pixels behind the end of the file"),
        (_set(_tiff(5), 279, 8, 0), "pixels behind the end of the file"),
        (_set(_tiff(5), 279, 4, 1 << 31), "an entry 279 behind the end of the file"),
        (_set(_tiff(), 256, 8, 0), "0x20 pixels of 1 samples"),
        (_chain(_tiff()), "several pictures, or a damaged directory"),
    ],
)
def test_a_tiff_that_lies_is_refused_in_one_line(tmp_path, capfd, data, received):
    with pytest.raises(ValueError, match=r"Expected a whole TIFF of one picture in .*a.tif. Received: .*Convert it, or copy") as error:
        _read(tmp_path, "a.tif", bytes(data))
    assert received in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_an_honest_tiff_comes_whole(tmp_path, compression):
    np.testing.assert_array_equal(_read(tmp_path, "a.tif", bytes(_tiff(compression))), GREY)
