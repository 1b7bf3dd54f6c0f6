"""The ranking of recipes: its trainings are ones that train.py takes, its rate and its Dice are those by hand."""

import importlib
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from dataset import DATASETS
from modules.run.flags import parse_training

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def ranking(monkeypatch):
    """The script, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("rank")


def test_each_recipe_of_volumes_is_a_training(ranking):
    every = ranking.read_recipes(FOLDER / "recipes3d.toml", ("msd", "ibsr18"), "*")
    assert len({recipe["name"] for recipe in every}) == len(every) == 12
    for recipe in every:
        assert parse_training(["--dataset", recipe["dataset"], *shlex.split(recipe["flags"])], DATASETS).settings


def test_the_rate_rises_and_falls_with_the_time(ranking):
    # Half of the warm-up, its end, and the middle and the end of half a cosine.
    assert [ranking.scale_rate(spent) for spent in (0.015, 0.03, 0.515, 1)] == pytest.approx([0.5, 1, 0.5, 0.001])
    assert ranking.scale_rate(0) == 0.001


def test_dice_by_hand(ranking):
    prediction, label = np.array([1, 1, 0, 0, 2]), np.array([1, 0, 1, 0, 0])
    one, two, three = ranking.measure_dice(prediction, label, 4)
    assert (one, two) == (0.5, 0)
    assert math.isnan(three)
