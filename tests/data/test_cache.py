"""The cache gives back what was prepared, once for each state of files and settings, and never a part of it."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import make_spec

from modules.data import cache
from modules.data.cache import Decoded, prepare_cases, read_pack, write_pack
from modules.data.case import Case, read_case
from modules.data.files import hash_file
from modules.data.patches import choose_points
from modules.data.preprocess import Preprocessing

VALUES = {0: 0, 85: 1, 170: 2}


def _draw(shape, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, channels)).astype(np.float32), rng.integers(0, 4, shape).astype(np.uint8)


def _write(path, shape, channels=1, seed=0):
    image, label = _draw(shape, channels, seed)
    points = choose_points(label, 4, np.random.default_rng(0)) if len(shape) == 3 else ()
    write_pack(path, {"a": Decoded(image, label, points, tuple(map(float, shape)))})
    return read_pack(path)["a"], image.astype(np.float16).astype(np.float32), label


@pytest.mark.parametrize(("shape", "channels"), [((5, 6, 7), 1), ((5, 6, 7), 3), ((9, 11), 1), ((9, 11), 2), ((1, 1, 1), 1)])
def test_what_is_written_comes_back(tmp_path, shape, channels, monkeypatch):
    _, image, label = _write(tmp_path / "a.raw", shape, channels)
    case = read_pack(tmp_path / "a.raw")["a"]
    assert repr((case.shape, case.spacing_mm)) == repr((shape, tuple(map(float, shape))))
    read_image, read_label = case.read((0,) * len(shape), shape)
    assert (read_image.dtype, read_label.dtype) == (np.float16, np.uint8)
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_label, label)
    assert [path.name for path in tmp_path.iterdir()] == ["a.raw"]
    # Of a case beyond 2 GiB a system call reads only a part.
    monkeypatch.setattr(cache, "_MOST_READ", 0)
    monkeypatch.setattr(cache.os, "preadv", lambda *arguments: 0)
    for array, expected in zip(case.read((0,) * len(shape), shape), (image, label), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_window_is_cut_out_and_filled_up_with_each_channels_darkest(tmp_path):
    case, image, label = _write(tmp_path / "a.raw", (5, 6, 7), channels=2)
    read_image, read_label = case.read((1, 2, 3), (2, 3, 4))
    np.testing.assert_array_equal(read_image, image[1:3, 2:5, 3:7])
    np.testing.assert_array_equal(read_label, label[1:3, 2:5, 3:7])
    read_image, read_label = case.read((-2, 0, 5), (9, 6, 4))
    np.testing.assert_array_equal(read_image[2:7, :, :2], image[..., 5:, :])
    np.testing.assert_array_equal(read_label[2:7, :, :2], label[..., 5:])
    darkest = image.min(axis=(0, 1, 2))
    assert darkest[0] != darkest[1]
    for outside in (np.s_[:2], np.s_[7:], np.s_[:, :, 2:]):
        np.testing.assert_array_equal(read_image[outside], np.broadcast_to(darkest, read_image[outside].shape))
        assert not read_label[outside].any()


def test_what_was_read_may_be_changed(tmp_path):
    case, image, label = _write(tmp_path / "a.raw", (5, 6, 7))
    for array in case.read((0, 0, 0), (5, 6, 7)):
        array[...] = 0
    for array, expected in zip(case.read((0, 0, 0), (5, 6, 7)), (image, label), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_points_come_back_and_slices_have_none(tmp_path):
    image, label = _draw((20, 21, 22))
    label[label == 2] = 0
    points = choose_points(label, 6, np.random.default_rng(0), limit=50)
    write_pack(tmp_path / "a.raw", {"a": Decoded(image, label, points, (1,) * label.ndim)})
    case = read_pack(tmp_path / "a.raw")["a"]
    assert [len(places) for places in case.points] == [50, 50, 0, 50, 0, 0]
    for places, expected in zip(case.points, points, strict=True):
        assert places.dtype == np.uint16
        np.testing.assert_array_equal(places, expected)
    assert _write(tmp_path / "b.raw", (9, 11))[0].points == []


def test_a_label_without_any_class_but_background(tmp_path):
    image, label = np.ones((4, 4, 4, 1), np.float32), np.zeros((4, 4, 4), np.uint8)
    write_pack(tmp_path / "a.raw", {"a": Decoded(image, label, choose_points(label, 3, np.random.default_rng(0)), (1,) * label.ndim)})
    case = read_pack(tmp_path / "a.raw")["a"]
    assert [len(places) for places in case.points] == [64, 0, 0]


@pytest.mark.parametrize("length", [0, 1, 10, 63, 64, 100, -1])
def test_a_file_cut_short_is_not_whole(tmp_path, length):
    _write(tmp_path / "a.raw", (5, 6, 7))
    data = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").write_bytes(data[:length])
    assert read_pack(tmp_path / "a.raw") == {}


def test_a_file_of_something_else_or_none_is_not_whole(tmp_path):
    assert read_pack(tmp_path / "absent.raw") == {}
    for content in (b"\xff\xfe\x00" * 50, b"no json\n", b"\0" * 128):
        (tmp_path / "a.raw").write_bytes(content)
        assert read_pack(tmp_path / "a.raw") == {}


@pytest.fixture
def case(write_nifti):
    image, label = _draw((10, 12, 14), seed=3)
    paths = write_nifti("a.nii.gz", image[..., 0]), write_nifti("seg.nii.gz", (label.clip(0, 2) * 85).astype(np.int16))
    return Case("a", "s", (paths[0],), paths[1])


def _prepare(case, folder, preprocessing=None, values=None, channels=("T1",)):
    preprocessing = preprocessing or Preprocessing(3, intensity="zscore")
    return prepare_cases([case], make_spec(preprocessing, values or VALUES, channels), preprocessing, folder)[0]


def test_cases_are_prepared_in_order_with_classes_and_points(case, write_nifti, tmp_path):
    other = Case("b", "s", (write_nifti("b.nii", np.arange(60.0).reshape(3, 4, 5)),), write_nifti("b_seg.nii", np.full((3, 4, 5), 170.0)))
    for cases in ([case, other], [other, case]):
        prepared = prepare_cases(cases, make_spec(Preprocessing(3), VALUES), Preprocessing(3), tmp_path / "cache")
        assert [item.shape for item in prepared] == [(10, 12, 14) if one.case_id == "a" else (3, 4, 5) for one in cases]
    image, label = _prepare(other, tmp_path / "cache").read((0, 0, 0), (3, 4, 5))
    assert (label == 2).all()
    assert image.shape == (3, 4, 5, 1)
    points = _prepare(case, tmp_path / "cache").points
    label = _prepare(case, tmp_path / "cache").read((0, 0, 0), (10, 12, 14))[1]
    assert len(points) == 3
    for index, places in enumerate(points):
        assert (label[tuple(places.T)] == index).all()
        assert len(places) == (label == index).sum()


def test_what_is_there_is_not_decoded_again(case, tmp_path, monkeypatch):
    first = _prepare(case, tmp_path / "cache")
    monkeypatch.setattr(cache, "read_case", None)
    assert _prepare(case, tmp_path / "cache").path == first.path


@pytest.mark.parametrize("length", [0, 30, 2000, -1])
def test_a_damaged_entry_is_decoded_anew(case, tmp_path, length):
    first = _prepare(case, tmp_path / "cache")
    path = Path(first.path)
    expected = path.read_bytes()
    path.write_bytes(expected[:length])
    assert _prepare(case, tmp_path / "cache") == first
    assert path.read_bytes() == expected


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_changed_file_is_decoded_anew(case, tmp_path, which):
    first = _prepare(case, tmp_path / "cache")
    path = case.image_paths[0] if which == "image" else case.label_path
    os.utime(path, ns=(1, 1))
    assert _prepare(case, tmp_path / "cache").path != first.path


def test_a_changed_setting_is_another_entry(case, tmp_path):
    settings = [
        {},
        {"preprocessing": Preprocessing(3)},
        {"preprocessing": Preprocessing(3, spacing_mm=(1, 1, 2))},
        {"preprocessing": Preprocessing(3, foreground_crop=True)},
        {"preprocessing": Preprocessing(3, shape=(8, 8, 8))},
        {"preprocessing": Preprocessing(3, shape=(8, 8, 8), resize=True)},
        {"values": {0: 0, 85: 1, 170: 1}},
    ]
    paths = {_prepare(case, tmp_path / "cache", **chosen).path for chosen in settings}
    assert len(paths) == len(settings)
    assert {_prepare(case, tmp_path / "cache", **chosen).path for chosen in settings} == paths


def test_points_do_not_depend_on_where_the_files_lie(case, tmp_path, write_nifti):
    image, label = _draw((30, 30, 30), seed=5)
    points = []
    for place in ("here", "there"):
        paths = (
            write_nifti(f"{place}/a.nii", image[..., 0]),
            write_nifti(f"{place}/seg.nii", (label.clip(0, 1) * 85).astype(np.int16)),
        )
        points.append(_prepare(Case("a", "s", (paths[0],), paths[1]), tmp_path / place).points)
    assert [len(places) for places in points[0]] == [4096, 4096, 0]
    for one, other in zip(*points, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_wrong_is_named(case, tmp_path, write_nifti):
    absent = Case("a", "s", case.image_paths, tmp_path / "absent.nii")
    with pytest.raises(FileNotFoundError, match=r"Expected a file at .*absent.nii. Received: nothing there. Check case a"):
        _prepare(absent, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"Expected 2 channel\(s\) \(T1, T2\) for this model. Received: 1 in .*a.nii.gz"):
        _prepare(case, tmp_path / "cache", channels=("T1", "T2"))
    with pytest.raises(ValueError, match=r"in \(0, 85\). Received: 170 in .*seg.nii.gz .*'d'"):
        _prepare(case, tmp_path / "cache", values={0: 0, 85: 1})
    short = Case("a", "s", case.image_paths, write_nifti("short.nii", np.zeros((10, 12, 13), np.uint8)))
    with pytest.raises(ValueError, match=r"image and label over the same space. Received: image 10x12x14 .*a.nii.gz; label 10x12x13 "):
        _prepare(short, tmp_path / "cache")
    with pytest.raises(ValueError, match="Expected a 2-D image for this model"):
        _prepare(case, tmp_path / "cache", Preprocessing(2))
    # Nothing half done is left behind.
    assert not list((tmp_path / "cache").rglob("*.pack"))


def test_channels_are_checked_although_the_entry_is_there(case, tmp_path):
    _prepare(case, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"Expected 2 channel\(s\) \(T1, T2\)"):
        _prepare(case, tmp_path / "cache", channels=("T1", "T2"))


def test_the_header_is_a_line_that_people_can_read(tmp_path):
    _write(tmp_path / "a.raw", (9, 11), channels=2)
    header = json.loads((tmp_path / "a.raw").read_bytes().partition(b"\n")[0])
    assert [(record["key"], record["shape"], record["channels"], record["counts"]) for record in header] == [("a", [9, 11], 2, [])]


@pytest.mark.parametrize("intensity", ["zscore", "percentile", "min_max"])
def test_an_image_of_two_values_stays_finite_and_keeps_both(write_nifti, tmp_path, intensity):
    image = np.zeros((6, 6, 6), np.float32)
    image[2:4, 2:4, 2:4] = 100_000
    case = Case("a", "s", (write_nifti("two.nii", image),), write_nifti("two_seg.nii", np.zeros((6, 6, 6), np.uint8)))
    array = _prepare(case, tmp_path / "cache", Preprocessing(3, intensity=intensity)).read((0, 0, 0), (6, 6, 6))[0]
    assert np.isfinite(array).all()
    assert len(np.unique(array)) == 2


def test_slices_lie_many_to_a_file_and_only_what_changed_is_decoded_anew(write_nifti, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    cases = []
    for number in range(7):
        image, label = _draw((9, 11), seed=number)
        paths = (
            write_nifti(f"{number}.nii.gz", image[..., 0]),
            write_nifti(f"{number}_seg.nii.gz", (label.clip(0, 2) * 85).astype(np.int16)),
        )
        cases.append(Case(str(number), "s", (paths[0],), paths[1]))

    def prepare():
        return prepare_cases(cases, make_spec(Preprocessing(2), VALUES), Preprocessing(2), tmp_path / "cache")

    first = prepare()
    assert len({case.path for case in first}) == 2
    for number, case in enumerate(first):
        image, label = _draw((9, 11), seed=number)
        read_image, read_label = case.read((0, 0), (9, 11))
        np.testing.assert_allclose(read_image, (image - image.min()) / np.ptp(image), atol=1e-3)
        np.testing.assert_array_equal(read_label, label.clip(0, 2))
        for path, digest in zip((*cases[number].image_paths, cases[number].label_path), case.sources_sha256, strict=True):
            assert digest == hash_file(path)
    os.utime(cases[2].label_path, ns=(1, 1))
    read = []
    monkeypatch.setattr(cache, "read_case", lambda case, *rest: (read.append(case.image_paths), read_case(case, *rest))[1])
    second = prepare()
    assert read == [cases[2].image_paths]
    assert [one == other for one, other in zip(first, second, strict=True)] == [number != 2 for number in range(7)]
    assert prepare() == second


def test_of_a_prepared_case_little_is_kept(tmp_path):
    cases = {}
    for number in range(300):
        write_pack(tmp_path / "a.raw", {f"case_{number}": Decoded(*_draw((4, 4), seed=number), (), (1.0, 1.0), bytes(64))})
        cases |= read_pack(tmp_path / "a.raw")
    # A case shares these with no other: the tuple, its number, the path, the darkest values and the digests.
    own = [sum(map(sys.getsizeof, (case, case.offset, case.path, case.darkest, case.digests))) for case in cases.values()]
    assert max(own) < 700
    assert len({id(case.shape) for case in cases.values()}) == 1
    assert not hasattr(next(iter(cases.values())), "__dict__")


def _zero(path, first, last):
    """Overwrites part of a file with zeros; its size stays."""
    with Path(path).open("r+b") as file:
        file.seek(first)
        file.write(bytes(last - first))


@pytest.mark.parametrize("where", ["header", "image", "end"])
def test_zeros_in_a_file_are_found_by_the_next_process(case, tmp_path, monkeypatch, caplog, where):
    first = _prepare(case, tmp_path / "cache")
    path, expected = Path(first.path), Path(first.path).read_bytes()
    places = {"header": (20, 60), "image": (first.offset + 100, first.offset + 900), "end": (first.offset + first.size - 64,) * 2}
    start, stop = places[where]
    _zero(path, start, max(stop, start + 60))
    assert path.read_bytes() != expected
    monkeypatch.setattr(cache, "_CHECKED", {})
    assert _prepare(case, tmp_path / "cache") == first
    assert path.read_bytes() == expected
    assert f"cache: {path} is damaged" in caplog.text


def test_a_header_with_another_number_is_damaged(tmp_path):
    _write(tmp_path / "a.raw", (5, 6, 7))
    data = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").write_bytes(data.replace(b"5.0, 6.0", b"5.0, 7.0", 1))
    assert read_pack(tmp_path / "a.raw") == {}


def test_a_whole_file_is_read_for_its_checksums_only_once(case, tmp_path, monkeypatch):
    _prepare(case, tmp_path / "cache")
    monkeypatch.setattr(cache, "_CHECKED", {})
    calls = []
    monkeypatch.setattr(cache.zlib, "crc32", lambda *rest, crc32=cache.zlib.crc32: (calls.append(rest), crc32(*rest))[1])
    _prepare(case, tmp_path / "cache")
    once = len(calls)
    _prepare(case, tmp_path / "cache")
    # The first line's checksum is always checked.
    assert (once, len(calls)) == (2, 3)


@pytest.mark.parametrize("damage", ["delete", "zeros", "shorter"])
def test_a_file_that_is_deleted_or_overwritten_while_it_is_read_is_named(case, tmp_path, damage):
    prepared = _prepare(case, tmp_path / "cache")
    prepared.read((0, 0, 0), (4, 4, 4))
    path = Path(prepared.path)
    if damage == "delete":
        path.unlink()
    elif damage == "zeros":
        time.sleep(0.02)
        _zero(path, prepared.offset, prepared.offset + 2000)
    else:
        path.write_bytes(path.read_bytes()[:-500])
    reads = [lambda: prepared.read((0, 0, 0), prepared.shape), lambda: prepared.read((1, 1, 1), (4, 4, 4))]
    for read in (*reads, lambda: prepared.points, lambda: prepared.count_classes(3)):
        with pytest.raises(
            ValueError, match=r"Expected the cache's file .*pack as it was written. Received: one that is gone.*--resume RUN"
        ):
            read()


def test_a_file_that_another_process_made_again_is_read_on(case, tmp_path):
    prepared = _prepare(case, tmp_path / "cache")
    expected = prepared.read((0, 0, 0), prepared.shape)[0]
    data = Path(prepared.path).read_bytes()
    Path(prepared.path).unlink()
    Path(prepared.path).write_bytes(data)
    np.testing.assert_array_equal(prepared.read((0, 0, 0), prepared.shape)[0], expected)


def test_a_label_corrected_with_the_same_size_and_time_is_decoded_anew(write_nifti, tmp_path):
    image, label = _draw((6, 6, 6))
    paths = write_nifti("a.nii", image[..., 0]), write_nifti("seg.nii", np.zeros((6, 6, 6), np.uint8))
    case = Case("a", "s", (paths[0],), paths[1])
    status = paths[1].stat()
    assert _prepare(case, tmp_path / "cache").classes == (0,)
    time.sleep(0.02)
    write_nifti("seg.nii", (label.clip(0, 2) * 85).astype(np.uint8))
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (paths[1].stat().st_size, paths[1].stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert _prepare(case, tmp_path / "cache").classes == (0, 1, 2)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(cache.os, "fsync", lambda handle, fsync=os.fsync: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(cache.os, "replace", lambda *paths, replace=os.replace: (events.append("replace"), replace(*paths))[1])
    _write(tmp_path / "a.raw", (5, 6, 7))
    assert events == ["fsync", "replace"]


def test_a_file_that_another_process_still_writes_is_left_alone(case, tmp_path):
    prepared = _prepare(case, tmp_path / "cache")
    half = Path(prepared.path).with_name(".half-written.pack")
    half.write_bytes(b"half")
    assert _prepare(case, tmp_path / "cache") == prepared
    assert half.read_bytes() == b"half"


def test_a_file_that_was_copied_over_another_is_made_again(write_nifti, tmp_path, monkeypatch, caplog):
    cases = []
    for name in "ab":
        image, label = _draw((6, 6, 6), seed=ord(name))
        paths = write_nifti(f"{name}.nii", image[..., 0]), write_nifti(f"{name}_seg.nii", (label.clip(0, 2) * 85).astype(np.uint8))
        cases.append(Case(name, name, (paths[0],), paths[1]))

    def prepare():
        return prepare_cases(cases, make_spec(Preprocessing(3), VALUES), Preprocessing(3), tmp_path / "cache")

    expected = [case.read((0, 0, 0), (6, 6, 6))[0] for case in prepare()]
    first, last = sorted((tmp_path / "cache").rglob("*.pack"))
    data = {path: path.read_bytes() for path in (first, last)}
    for source, target in ((first, last), (last, first)):
        target.write_bytes(data[source])
        monkeypatch.setattr(cache, "_CHECKED", {})
        for case, image in zip(prepare(), expected, strict=True):
            np.testing.assert_array_equal(case.read((0, 0, 0), (6, 6, 6))[0], image)
        assert f"cache: {target} is damaged" in caplog.text
        assert {path: path.read_bytes() for path in (first, last)} == data


def test_an_image_of_one_value_whose_label_holds_foreground_is_refused(write_nifti, tmp_path):
    image = write_nifti("a.nii", np.full((3, 4, 5), 7.0))
    case = Case("a", "s", (image,), write_nifti("seg.nii", np.full((3, 4, 5), 85.0)))
    with pytest.raises(ValueError, match=r"Expected an image that shows what its label holds. Received: 7 in every voxel of .*a.nii"):
        _prepare(case, tmp_path / "cache")
    # A slice beyond the object shows nothing, and its label says so.
    assert _prepare(Case("b", "s", (image,), write_nifti("none.nii", np.zeros((3, 4, 5)))), tmp_path / "cache").classes == (0,)
