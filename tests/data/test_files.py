"""Names, fingerprints, and writing that never leaves half a file and names the file where it fails."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modules.data.case import LabelRule, read_label, read_volume
from modules.data.files import (
    TEMPORARY,
    append_line,
    fingerprint_files,
    hash_file,
    hold,
    index_images,
    name_failure,
    replace_file,
    stem_of,
    suffix_of,
    sweep,
)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EFBIG, "File too large"), OSError("encoder error -2")],
    ids=str,
)
def test_a_file_that_cannot_be_written_to_its_end_is_named(tmp_path, error):
    path = tmp_path / "new" / "scan.nii.gz"

    def write():
        with replace_file(path):
            raise error

    with pytest.raises(OSError, match="Expected to write .*new/scan.nii.gz to its end. Received: ") as raised:
        write()
    assert (error.strerror or "encoder error") in str(raised.value)
    assert TEMPORARY not in str(raised.value)
    assert not list(path.parent.iterdir())


def test_a_folder_that_is_no_place_to_write_is_named_without_our_temporary_name(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / f"{TEMPORARY}a-xyz.csv"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with (
        pytest.raises(OSError, match=r"Expected to write .*a.csv to its end. Received: Permission denied") as raised,
        replace_file(tmp_path / "a.csv"),
    ):
        pass
    assert TEMPORARY not in str(raised.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("Expected a file at b. Received: nothing there."), PermissionError(13, "no", "other"), ValueError("a")]
)
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as raised, name_failure("a"):
        raise error
    assert raised.value is error


def test_a_folder_of_an_images_name_is_no_image(tmp_path):
    (tmp_path / "a.nii.gz").mkdir()
    for name in ("b.nii.gz", "._c.nii"):
        (tmp_path / name).touch()
    (tmp_path / "d.nii").symlink_to(tmp_path / "nowhere.nii")
    (tmp_path / "e.nii").symlink_to(tmp_path / "e.nii")
    assert list(index_images(tmp_path)) == ["b", "d", "e"]


def test_any_name_of_a_file_has_a_fingerprint_and_can_be_replaced(tmp_path):
    path = tmp_path / (os.fsdecode(b"\xe9") + "x" * 240 + ".csv")
    with replace_file(path) as temporary:
        temporary.write_text("a")
    assert path.read_text() == "a"
    assert len(fingerprint_files([path])) == 64


def test_suffix_and_stem_of_every_layout(tmp_path):
    names = {
        "case_1_slice_0.nii.gz": (".nii.gz", "case_1_slice_0"),
        "case_1_slice_0.nii.png": (".png", "case_1_slice_0"),
        "a.b.NII": (".nii", "a.b"),
        "x_1.tif": (".tif", "x_1"),
        "notes.txt": ("", "notes.txt"),
    }
    for name, expected in names.items():
        assert (suffix_of(tmp_path / name), stem_of(tmp_path / name)) == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12")
    before = fingerprint_files([path])
    assert fingerprint_files([path]) == before
    path.write_bytes(b"123")
    assert fingerprint_files([path]) != before


def test_fingerprint_changes_although_size_and_time_are_set_back(tmp_path):
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"12")
    os.utime(path, ns=(10**9, 10**9))
    before = fingerprint_files([path])
    time.sleep(0.02)
    path.write_bytes(b"34")
    os.utime(path, ns=(10**9, 10**9))
    written = fingerprint_files([path])
    copy.write_bytes(b"56")
    os.utime(copy, ns=(10**9, 10**9))
    copy.replace(path)
    assert len({before, written, fingerprint_files([path])}) == 3


def test_fingerprint_follows_links_even_when_they_are_turned_elsewhere(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.nii").write_bytes(b"12")
        os.utime(tmp_path / folder / "x.nii", (1, 1))
    (tmp_path / "here").symlink_to("a")
    (tmp_path / "x.nii").symlink_to("a/x.nii")
    first, second = (fingerprint_files([tmp_path / folder / "x.nii"]) for folder in "ab")
    status = (tmp_path / "a" / "x.nii").stat()
    state = (2, 10**9, status.st_ctime_ns, status.st_ino)
    expected = hashlib.sha256(f"{(tmp_path / 'a' / 'x.nii').resolve()}\0{state}\n".encode()).hexdigest()
    assert expected == first != second
    assert fingerprint_files([tmp_path / "here" / "x.nii"]) == fingerprint_files([tmp_path / "x.nii"]) == first
    (tmp_path / "here").unlink()
    (tmp_path / "here").symlink_to("b")
    assert fingerprint_files([tmp_path / "here" / "x.nii"]) == second
    monkeypatch.chdir(tmp_path / "a")
    assert fingerprint_files([Path("x.nii")]) == fingerprint_files([Path("../a/x.nii")]) == first
    monkeypatch.chdir(tmp_path / "b")
    assert fingerprint_files([Path("x.nii")]) == second


def test_bytes_that_were_read_can_be_hashed_without_reading_again(write_nifti, write_picture):
    paths = [write_nifti("a.nii.gz", np.ones((3, 4), np.float32)), write_picture("b.png", np.ones((3, 4), np.uint8))]
    hashes = []
    for path in paths:
        read_volume([path], lambda data: hashes.append(hashlib.sha256(data).hexdigest()))
    read_label(paths[1], LabelRule({1: 1}), on_bytes=lambda data: hashes.append(hashlib.sha256(data).hexdigest()))
    assert hashes == [hash_file(path) for path in (*paths, paths[1])]


def test_lines_of_several_processes_stay_whole(tmp_path):
    path = tmp_path / "lines"
    code = "import sys; from pathlib import Path; from modules.data.files import append_line\n"
    code += "for number in range(200): append_line(Path(sys.argv[1]), sys.argv[2] * 9_000)"
    command = [sys.executable, "-c", code, str(path)]
    started = [subprocess.Popen([*command, letter], cwd=Path(__file__).parents[2]) for letter in "ab"]
    assert [process.wait() for process in started] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 9_000] * 200 + ["b" * 9_000] * 200


def test_a_half_written_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "whole")
    with path.open("ab") as file:
        file.write(b"hal")
    append_line(path, "next \udcff")
    append_line(path, "last")
    assert path.read_bytes() == b"whole\nhal\nnext \\udcff\nlast\n"


def test_a_pipe_gets_lines_too():
    reader, writer = os.pipe()
    append_line(Path(f"/dev/fd/{writer}"), "one")
    append_line(Path(f"/dev/fd/{writer}"), "two")
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "one\ntwo\n"


def test_a_lock_keeps_another_out_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with hold(path) as first, hold(path, wait=False) as second:
        assert (first, second) == (True, False)
    with hold(path, wait=False) as third:
        assert third
    with hold(tmp_path / "none") as held:
        assert not held


def test_what_a_killed_command_left_is_removed_when_it_is_old(tmp_path):
    old, young, own = (tmp_path / name for name in (f"{TEMPORARY}a.nii", f"{TEMPORARY}b.nii", "c.nii"))
    for path in (old, young, own):
        path.touch()
    (tmp_path / f"{TEMPORARY}bundle").mkdir()
    hours_ago = time.time() - 2 * 3600
    for path in (old, own, tmp_path / f"{TEMPORARY}bundle"):
        os.utime(path, (hours_ago, hours_ago))
    assert sweep(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY}b.nii", f"{TEMPORARY}bundle", "c.nii"]
    assert sweep(tmp_path / "absent") == 0
