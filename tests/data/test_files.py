"""Writing that never leaves half a file, and names the file where it fails."""

import errno
import os

import pytest

from modules.data.files import TEMPORARY, fingerprint_files, index_images, name_failure, replace_file


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
