"""The recipes of the benchmark are trainings that train.py takes, and a run's row holds what it cost and reached."""

import csv
import importlib
import json
import shlex
from pathlib import Path

import pytest

from dataset import DATASETS
from modules.run.flags import parse_training

FOLDER = Path(__file__).parents[1] / "benchmarks"
PATH = FOLDER / "recipes.toml"


@pytest.fixture
def recipes(monkeypatch):
    """The script, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("recipes")


def test_each_recipe_is_a_training_with_a_name_of_its_own(recipes):
    every = recipes.read_recipes(PATH, tuple(DATASETS), "*")
    assert len({recipe["name"] for recipe in every}) == len(every) >= 6
    for recipe in every:
        assert parse_training(["--dataset", recipe["dataset"], *shlex.split(recipe["flags"])], DATASETS).settings
    # What a data set's recipes share comes first, so that a recipe may change it.
    assert every[0]["flags"].startswith("--validate-fraction 0.15 --patience 0")
    assert all(recipe["dataset"] == "oasis" for recipe in recipes.read_recipes(PATH, ("oasis",), "*"))
    assert recipes.read_recipes(PATH, tuple(DATASETS), "nothing*") == []


def test_a_recipe_has_three_entries(recipes, tmp_path):
    (tmp_path / "a.toml").write_text('[[recipe]]\nname = "a"\nflags = ""\n')
    with pytest.raises(ValueError, match=r"Expected `name`, `dataset` and `flags` of a recipe in .*a.toml. Received: \['flags', 'name'\]"):
        recipes.read_recipes(tmp_path / "a.toml", (), "*")


def test_a_row_and_its_curve_by_hand(recipes, tmp_path):
    with (tmp_path / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("seconds", "val_mean_dice"), (60, 0.25), (30, 0.5), (30, 0.375)])
    (tmp_path / "plan.json").write_text('{"steps_per_epoch": 7}')
    dice = {"mean": 0.75, "low": None, "high": None, "subjects": 1}
    intervals = {level: {"mean": {"dice": dice | {"mean": value}}} for level, value in (("case", 0.5), ("volume", 0.75))}
    (tmp_path / "summary.json").write_text(json.dumps({"best_epoch": 2, "intervals": intervals}))
    recipe = {"name": "a", "dataset": "lgg", "flags": "--ema 0.9"}
    row = recipes.read_run(recipe, tmp_path, {"cpu": 90.0, "wall": 180.0, "gib": 1.5}, 0)
    # The process had half of the CPU.
    assert row["curve"] == [(0.5, 0.25), (0.75, 0.5), (1.0, 0.375)]
    assert (row["epochs"], row["steps"], row["cpu_minutes"], row["best_validation"], row["level"]) == (3, 21, 1.5, 0.5, "volume")
    assert "validation 0.500  test by volume: mean 0.750 [nan, nan]" in recipes.describe_row(row)
    recipes.write_tables([row], tmp_path)
    recipes.draw_curves([row], tmp_path / "lgg.png")
    assert (tmp_path / "lgg.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "recipes.csv").read_text().splitlines()[1].endswith("volume,mean,0.75,,,1")
