"""Hashes of data and program: equal for equal bytes, and every difference is named."""

import hashlib
import shutil

import pytest

from modules.data.case import Case
from modules.run.proof import check_data, check_equal, hash_code, hash_manifest, make_manifest


@pytest.fixture
def splits(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.nii").write_bytes(name.encode())
        (root / f"{name}_seg.nii").write_bytes(b"label")
    cases = {name: Case(name, name, (root / f"{name}.nii",), root / f"{name}_seg.nii") for name in "abc"}
    return {"train": [cases["a"], cases["b"]], "test": [cases["c"]]}


def test_a_manifest_by_hand(splits, tmp_path):
    manifest = make_manifest(splits, tmp_path / "data")
    assert list(manifest) == ["a.nii", "a_seg.nii", "b.nii", "b_seg.nii", "c.nii", "c_seg.nii"]
    assert manifest["b.nii"] == ["train", hashlib.sha256(b"b").hexdigest()]
    assert manifest["c_seg.nii"] == ["test", hashlib.sha256(b"label").hexdigest()]
    known = [digest for _, digest in manifest.values()]
    assert make_manifest(splits, tmp_path / "data", known) == manifest


def test_tables_are_hashed_and_known_by_name_where_they_lie_elsewhere(splits, tmp_path):
    tables = [tmp_path / "data" / "deep" / "labels.csv", tmp_path / "cases.csv"]
    for table in tables:
        table.parent.mkdir(exist_ok=True)
        table.write_bytes(b"x")
    manifest = make_manifest(splits, tmp_path / "data", tables=tables)
    own = {"deep/labels.csv": ["table", hashlib.sha256(b"x").hexdigest()], "cases.csv": ["table", hashlib.sha256(b"x").hexdigest()]}
    assert manifest == make_manifest(splits, tmp_path / "data") | own


def test_its_hash_knows_bytes_and_splits_but_not_the_place(splits, tmp_path):
    manifest = make_manifest(splits, tmp_path / "data")
    first = hash_manifest(manifest)
    assert first == hash_manifest(dict(reversed(manifest.items())))
    assert first != hash_manifest(manifest | {"b.nii": ["test", manifest["b.nii"][1]]})
    assert first != hash_manifest(manifest | {"b.nii": ["train", "0"]})
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    moved = {
        name: [Case(case.case_id, case.subject_id, (tmp_path / "elsewhere" / case.image_paths[0].name,),
                    tmp_path / "elsewhere" / case.label_path.name) for case in cases]
        for name, cases in splits.items()
    }  # fmt: skip
    assert hash_manifest(make_manifest(moved, tmp_path / "elsewhere")) == first


def test_each_difference_is_named(tmp_path):
    begun = {"a": ["train", "1"], "b": ["train", "2"]}
    check_data(begun, dict(begun), tmp_path)
    for now, what in (
        ({"a": ["train", "1"], "b": ["train", "3"]}, "b changed"),
        ({"a": ["train", "0"], "b": ["train", "3"]}, "a and 1 more changed"),
        ({"a": ["train", "1"], "b": ["test", "2"]}, "b moved to another split"),
        ({"a": ["train", "1"]}, "b missing"),
        (begun | {"c": ["test", "4"]}, "c new"),
    ):
        with pytest.raises(ValueError, match=f"Expected the data that .* began with. Received: {what}. Restore it"):
            check_data(begun, now, tmp_path)
    check_equal("backend", "jax", "jax", tmp_path)
    with pytest.raises(ValueError, match="Expected the backend of .*, jax. Received: torch"):
        check_equal("backend", "jax", "torch", tmp_path)


def test_the_hash_of_the_program_knows_its_sources(tmp_path):
    (tmp_path / "modules" / "networks").mkdir(parents=True)
    (tmp_path / "train.py").write_text("1")
    first = hash_code(tmp_path)
    (tmp_path / "README.md").write_text("other")
    assert hash_code(tmp_path) == first
    for path in (tmp_path / "modules" / "networks" / "a.py", tmp_path / "modules" / "b.toml"):
        path.write_text("2")
        assert hash_code(tmp_path) != first
        path.unlink()
    (tmp_path / "train.py").write_text("2")
    assert hash_code(tmp_path) != first
