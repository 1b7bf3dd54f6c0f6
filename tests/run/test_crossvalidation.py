"""The parts of a cross-validation that need no training: the time of each fold, and the plan that all folds follow."""

from dataclasses import replace

import pytest
from helpers import make_fingerprint

from dataset import DATASETS
from modules.run.budget import Share, draft_share, start_probe
from modules.run.crossvalidation import find_share
from modules.run.folder import RunFolder
from modules.run.plan import make_plan
from modules.run.recipe import Schedule
from modules.run.settings import Settings

BRAINS = DATASETS["ibsr18"]
SETTINGS = Settings("ibsr18", mode="slice", minutes=50, network_options={"base_filters": 4})


def _plan(shape=(40, 48, 40), settings=SETTINGS):
    return make_plan(settings, BRAINS, make_fingerprint([shape]), Schedule(7, 11))


def test_folds_follow_the_plan_of_the_first():
    like = _plan()
    like = replace(like, recipe={**like.recipe, "precision": "float32"}, costs={"seconds": 60.0})
    other = make_fingerprint([(64, 64, 64)])
    plan = draft_share(SETTINGS, BRAINS, other, Share(1.0, like))
    assert (plan.epochs, plan.steps_per_epoch, plan.window, plan.batch_size) == (7, 11, like.window, like.batch_size)
    assert (plan.recipe, plan.costs, plan.reasons["steps"]) == (like.recipe, like.costs, "as in the first fold")
    assert plan.resolve(SETTINGS) == like.resolve(SETTINGS)
    # Alone it would have another window.
    assert draft_share(SETTINGS, BRAINS, other).window != like.window
    with start_probe(SETTINGS, None, Share(1.0, like)) as probe:
        assert probe is None


def test_time_is_divided_among_the_trainings_that_are_left(tmp_path):
    settings = Settings("ibsr18", folds=2, modes=("slice", "patch"), minutes=50)
    run = RunFolder(tmp_path)
    runs = {mode: run.list_folds(2, mode) for mode in settings.modes}
    # A tenth of 50 minutes is kept for the pairs; 3 of the other 45 are over.
    assert find_share(settings, runs, "slice", 180.0) == Share(42 / 4)
    plan = replace(_plan(), costs={"seconds": 600.0})
    first = runs["slice"][0]
    first.create(settings, plan)
    first.release()
    # What an earlier process planned counts where this one has spent less.
    assert find_share(settings, runs, "slice", 180.0) == Share(35 / 3, first.read_plan())
    assert find_share(settings, runs, "patch", 1500.0) == Share(20 / 3)
    assert find_share(settings, runs, "patch", 9e9).minutes == 0
    alone = {"": [first, RunFolder(tmp_path / "fold_1")]}
    assert find_share(replace(settings, modes=()), alone, "", 0.0).minutes == 40


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modes": ("slice", "slice")}, "Expected `modes` each once. Received: --modes slice slice. Leave the repeated one out."),
        ({"modes": ("slice",), "mode": "patch"}, "Expected either --modes or --mode patch. Received: both."),
        ({"modes": ("slice",), "fold": 1}, "Expected either --modes or --fold 1. Received: both. Train single folds by --mode"),
        ({"modes": ("slice",), "folds": 0}, "Expected `folds` beside `modes`. Received: --modes slice alone. Say how many with"),
        ({"modes": ("slice",), "init": "x"}, "Expected one mode beside --init, that of its model. Received: --modes slice."),
        ({"average_last": 1.5}, "Expected `average_last` from 0 to 1. Received: 1.5."),
    ],
)
def test_settings_that_contradict_one_another(values, message):
    with pytest.raises(ValueError, match=message):
        Settings("ibsr18", **{"folds": 2, **values})
