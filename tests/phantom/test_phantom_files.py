"""Writing of phantoms: wrong arguments are named, what is there stays, and a write that fails leaves nothing."""

import re

import pytest
from helpers import read_bytes

from modules import phantom


@pytest.mark.parametrize("write", [phantom.write_hipmri3d, phantom.write_ibsr18, phantom.write_msd])
@pytest.mark.parametrize("shape", [(64, 64), (15, 64, 64), (64, 64, 64, 1)])
def test_bad_shapes_are_named(write, shape, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"Expected `shape` of three sizes >= 16, in the axis order of the files. Received: {shape}")
    ):
        write(tmp_path / "data", shape=shape)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("write", "subjects", "message"),
    [
        (phantom.write_hipmri3d, -1, "Expected `subjects` >= 0. Received: -1"),
        (phantom.write_msd, -2, "Expected `subjects` >= 0. Received: -2"),
        (phantom.write_lgg, -1, "Expected `subjects` >= 0. Received: -1"),
        (phantom.write_ibsr18, (1, -1, 0), r"Expected `subjects` >= 0, one number for each .* Received: \(1, -1, 0\)"),
        (phantom.write_ibsr18, (1,), r"Expected `subjects` >= 0, one number for each .* Received: \(1,\)"),
    ],
)
def test_bad_numbers_of_subjects_are_named(write, subjects, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "data", subjects=subjects)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "write",
    [phantom.write_hipmri, phantom.write_oasis, phantom.write_lgg, phantom.write_hipmri3d, phantom.write_ibsr18, phantom.write_msd],
)
def test_an_existing_root_is_left_untouched(write, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    assert write(tmp_path / "data") == tmp_path / "data"
    assert read_bytes(tmp_path) == {"data/mine.txt": b"keep"}


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "write_nifti", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        phantom.write_hipmri(tmp_path / "deep" / "data", subjects=(1, 0, 0), slices=1)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": (1, -1, 0)}, r"Expected `subjects` >= 0, one number for each .* Received: \(1, -1, 0\)"),
        ({"slices": 0}, "Expected `slices` >= 1. Received: 0"),
    ],
)
def test_bad_counts_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        phantom.write_oasis(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
