"""The shipped model is the scored one: the bundle gets its precision and its postprocessing before the test."""

import csv
import json
import shutil

import numpy as np
import pytest

import train
from dataset import DATASETS
from modules.data.case import Case
from modules.data.spec import find_cases
from modules.predict.bundle import ModelBundle
from modules.predict.postprocess import Postprocessing, Step
from modules.run import evaluate, validated
from modules.run.folder import RunFolder
from modules.run.learn_postprocess import Lesson
from modules.run.settings import Settings
from modules.run.tracking import Tracker
from modules.scoring import Score


@pytest.fixture
def score(runs, phantoms, tmp_path):
    """Scores a copy of a finished run as `train.py` does, once without postprocessing and once with it; returns the copy's path."""
    run = tmp_path / "run"
    shutil.copytree(runs["oasis"], run)
    ids = json.loads((run / "run.json").read_text())["splits"]
    cases = {case.case_id: case for case in find_cases(DATASETS["oasis"], phantoms / "oasis")}
    splits = {name: [cases[case_id] for case_id in members] for name, members in ids.items()}

    def score(postprocess):
        settings = Settings("oasis", postprocess=postprocess, predict_precision="float32")
        evaluate.evaluate(splits, RunFolder(run), {}, Tracker(RunFolder(run)), settings)
        return run, json.loads((run / "summary.json").read_text())

    return score


def _count_voxels(run):
    with (run / "scores.csv").open() as file:
        return sum(int(row["voxels"]) for row in csv.DictReader(file))


def test_the_steps_are_learnt_stored_listed_and_scored(runs, score, monkeypatch, caplog):
    # A step that leaves nothing shows in every score.
    everything = Postprocessing(tuple(Step("remove_small", index, 1e9) for index in (1, 2, 3)))
    asked = []

    def learn(cases, class_names):
        asked.append([item.case.case_id for item in cases])
        return Lesson(everything, ("remove all",), (2,), len(cases), 2, {"slice": {"CSF": 0.5}}, {"slice": {"CSF": 0.25}})

    with monkeypatch.context() as patch, caplog.at_level("INFO", "mri"):
        patch.setattr(validated, "learn", learn)
        run, summary = score("learn")
    validation = json.loads((run / "run.json").read_text())["splits"]["validate"]
    assert asked == [validation]
    assert ModelBundle.load(run).postprocessing == everything
    assert summary["postprocessing"] == {
        "steps": [{"step": "remove all", "changed_cases": 2}],
        "validation_cases": len(validation),
        "validation_subjects": 2,
        "dice_before": {"slice": {"CSF": 0.5}},
        "dice_after": {"slice": {"CSF": 0.25}},
    }
    assert _count_voxels(run) == 0 < _count_voxels(runs["oasis"])
    assert "  remove all (changes 2 of them)" in caplog.messages

    # What a killed run left in its bundle does not matter: the steps are learnt from the predictions before them.
    _, summary = score("learn")
    for name in ("scores.csv", "bundle/bundle.json"):
        assert (run / name).read_text() == (runs["oasis"] / name).read_text()
    first = json.loads((runs["oasis"] / "summary.json").read_text())
    assert summary["postprocessing"] == first["postprocessing"]
    assert first["postprocessing"]["validation_cases"] == len(validation)


def test_nothing_is_learnt_where_nobody_wants_it(score, monkeypatch):
    monkeypatch.setattr(validated, "predict_cases", lambda *_: pytest.fail("it predicted the validation cases"))
    _, summary = score("none")
    assert not {"postprocessing", "prediction_precision"} & set(summary)
    assert summary["computed_in"] == "float32"


@pytest.mark.parametrize("flags", [["--postprocess", "later"], ["--postprocess"]])
def test_other_values_are_refused(flags, capsys):
    assert train.main(["--dataset", "oasis", *flags]) == 2
    assert "argument --postprocess" in capsys.readouterr().err


def _scores(case, *dice):
    return [Score("slice", case, str(index), value, value, *[np.nan] * 5, 1, 1) for index, value in enumerate(dice)]


def _choose(scores, names):
    return {name: case.case_id for name, case in evaluate.choose_examples(scores, [Case(name, name, ()) for name in names]).items()}


def test_examples_are_ranked_by_the_classes_that_are_there():
    scores = [*_scores("a", 1.0, np.nan, np.nan), *_scores("b", 0.3, 0.3, 0.3), *_scores("c", 0.9, 0.1, np.nan)]
    assert _choose(scores, "abc") == {"best": "a", "median": "c", "worst": "b"}
    assert _choose([*_scores("a", 1.0), *_scores("b", 0.3)], "abc") == {"best": "a", "worst": "b"}
    empty = [Score("slice", "b", "0", *[np.nan] * 7, 0, 0)]
    assert set(_choose([*_scores("a", 0.5), *empty], "abc").values()) == {"a"}
    assert set(_choose(empty, "abc").values()) == {"b"}
    # The median is the fifth worst of nine.
    many = [score for name in "123456789" for score in _scores(name, int(name) / 9)]
    assert _choose(many, "123456789") == {"best": "9", "median": "5", "worst": "1", "worst2": "2", "worst3": "3", "worst4": "4"}
