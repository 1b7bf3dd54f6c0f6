"""Folders that stand for runs and models: folds, modes, and the run that finished last."""

import os
import time

import pytest

from modules.run.folder import write_json
from modules.run.listing import find_newest_run, list_models, list_runs


def test_folds_stand_for_their_run(tmp_path):
    for number in range(11):
        (tmp_path / "whole" / f"fold_{number}").mkdir(parents=True)
    listed = list_runs([tmp_path / "one", tmp_path / "whole"])
    assert [path.name for path in listed] == ["one", *(f"fold_{number}" for number in range(11))]


def test_folders_that_only_look_like_folds_are_none(tmp_path):
    for name in ("fold_0", "fold_old"):
        (tmp_path / "cv" / name).mkdir(parents=True)
    assert [path.name for path in list_runs([tmp_path / "cv"])] == ["fold_0"]


def test_a_folder_stands_for_the_folds_of_its_modes(tmp_path):
    folds = [tmp_path / "cv" / mode / f"fold_{fold}" for mode in ("slice", "patch") for fold in range(2)]
    for folder in (*folds, tmp_path / "cv" / "slice+patch" / "fold_0"):
        folder.mkdir(parents=True)
    assert list_runs([tmp_path / "cv"]) == folds
    assert list_models([tmp_path / "cv" / "patch", tmp_path / "one"]) == [*folds[2:], tmp_path / "one"]
    slices, patches = tmp_path / "cv" / "slice", tmp_path / "cv" / "patch"
    with pytest.raises(
        ValueError, match=f"Received: {tmp_path / 'cv'}, without a chosen mode. --resume it, or name {slices} or {patches}."
    ):
        list_models([tmp_path / "cv"])


def test_newest_run_is_the_one_finished_last(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a finished run in"):
        find_newest_run(tmp_path)
    for age, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", {})
        os.utime(tmp_path / name / "summary.json", (time.time() - age, time.time() - age))
    (tmp_path / "unfinished").mkdir()
    assert find_newest_run(tmp_path).name == "b"
