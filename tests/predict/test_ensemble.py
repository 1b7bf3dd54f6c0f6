"""The folder of an ensemble: written, moved, and refused where it was altered."""

import hashlib
import json
import os
import shutil

import pytest

from modules.predict import ensemble
from modules.predict.bundle import identify
from modules.predict.ensemble import find_ensemble, list_members, write_ensemble


@pytest.fixture
def folder(run, tmp_path):
    """An ensemble of one bundle under two names."""
    candidates = [{"name": "slice", "mean": 0.5, "difference": None}]
    write_ensemble(tmp_path / "cv" / "ensemble", {"a": run, "b": run}, chosen="slice", reason="the only one", candidates=candidates)
    return tmp_path / "cv" / "ensemble"


def test_members_are_whole_bundles_wherever_the_folder_lies(run, folder, tmp_path):
    assert find_ensemble(folder.parent) == find_ensemble(folder) == folder
    assert find_ensemble(run) is None
    moved = tmp_path / "moved"
    folder.rename(moved)
    members = list_members(moved)
    assert members == [moved / "a", moved / "b"]
    for member in members:
        assert identify(member) == identify(run)
        assert {path.name for path in member.iterdir()} == {"bundle.json", "model.keras", "openvino.xml", "openvino.bin"}
        assert all(path.read_bytes() == (run / "bundle" / path.name).read_bytes() for path in member.iterdir())
    manifest = json.loads((moved / "ensemble.json").read_text())
    assert (manifest["chosen"], manifest["reason"], manifest["candidates"][0]["mean"]) == ("slice", "the only one", 0.5)


def test_files_take_no_room_twice_but_where_there_are_no_links(run, folder, monkeypatch):
    assert os.path.samefile(folder / "a" / "model.keras", run / "bundle" / "model.keras")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_ensemble(folder, {"c": run}, chosen="slice", reason="", candidates=[{"name": "slice", "mean": None}])
    # The ensemble that was there is replaced whole.
    assert list_members(folder) == [folder / "c"]
    assert sorted(path.name for path in folder.parent.rglob("*") if path.is_dir()) == ["c", "ensemble"]
    assert not os.path.samefile(folder / "c" / "model.keras", run / "bundle" / "model.keras")


def _rewrite(folder, change):
    """Changes the manifest as somebody would who knows how its hash is made."""
    manifest = json.loads((folder / "ensemble.json").read_text())
    change(manifest)
    content = {name: value for name, value in manifest.items() if name != "ensemble_sha256"}
    manifest["ensemble_sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "ensemble.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(format=2),
            "Expected an ensemble of `format` 1 in .*ensemble.json. Received: 2. Update this program.",
        ),
        (
            lambda manifest: manifest.update(extra=1),
            "Expected no fields but format, version, .* Received: 'extra'. Copy the ensemble again",
        ),
        (lambda manifest: manifest.pop("reason"), "Expected the field `reason` in .*ensemble.json. Received: none"),
        (lambda manifest: manifest.update(members=[]), "Expected a list of 1 to 1,000 items, .* for `members` in "),
        (
            lambda manifest: manifest["members"][0].update(name="../a"),
            "Expected a folder's name of .* for `members.0.name` in .* Received: '../a'",
        ),
        (lambda manifest: manifest["members"][1].update(name="a"), "Expected members of distinct names in .*. Received: a, a."),
        (lambda manifest: manifest["members"][0].update(bundle_sha256="0"), "Expected a SHA-256 .* for `members.0.bundle_sha256` in "),
        (lambda manifest: manifest["candidates"][0].update(mean=2), "Expected null or a finite number .* for `candidates.0.mean` in "),
        (
            lambda manifest: manifest["members"][0].update(bundle_sha256="0" * 64),
            "Expected .*bundle.json as ensemble.json knows it. Received: a",
        ),
    ],
)
def test_fields_that_nobody_wrote_are_named(folder, change, message):
    _rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        list_members(folder)


def test_what_was_altered_is_refused(folder, tmp_path):
    path = folder / "ensemble.json"
    whole = path.read_text()
    path.write_text(whole.replace("the only one", "the best one"))
    with pytest.raises(
        ValueError, match=r"Expected .*ensemble.json as it was saved. Received: a file altered since. Copy the ensemble again"
    ):
        list_members(folder)
    path.write_text(whole)
    shutil.move(folder / "a", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"Expected a trained model in .*/a. Received: no bundle.json there."):
        list_members(folder)
    (folder / "a").symlink_to(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"Expected a member of the ensemble at .*/a. Received: a link out of its folder. Copy the member there."
    ):
        list_members(folder)
    (folder / "a").unlink()
    (folder / "a").mkdir()
    (folder / "a" / "bundle.json").symlink_to(tmp_path / "a" / "bundle.json")
    with pytest.raises(ValueError, match=r"Expected a member of the ensemble at .*/a/bundle.json. Received: a link out of its folder."):
        list_members(folder)


def test_a_killed_writer_leaves_no_half_ensemble(run, folder, monkeypatch):
    monkeypatch.setattr(ensemble, "hash_file", lambda path: exit(9))
    with pytest.raises(SystemExit):
        write_ensemble(folder, {"c": run}, chosen="slice", reason="", candidates=[])
    monkeypatch.undo()
    assert len(list_members(folder)) == 2
    write_ensemble(folder, {"c": run}, chosen="slice", reason="", candidates=[{"name": "slice", "mean": 0.5}])
    assert [path.name for path in folder.parent.iterdir()] == ["ensemble"]
