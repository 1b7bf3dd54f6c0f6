"""What is scored is what is shipped: the bundle gets its postprocessing before the test."""

import csv
import json
import shutil

import pytest

import train
from modules.predict.bundle import ModelBundle, set_postprocessing
from modules.predict.postprocess import Postprocessing, Step
from modules.run import evaluate
from modules.run.learn_postprocess import Lesson


def _score_again(run):
    for name in ("summary.json", "scores.csv"):
        (run / name).unlink()
    assert train.main(["--resume", str(run)]) == 0


def test_the_steps_are_learnt_stored_listed_and_scored(runs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(runs["lgg"], run)
    # A step that leaves nothing shows in every score.
    everything = Postprocessing((Step("remove_small", 1, 1e9),))
    asked = []

    def learn(bundle, cases):
        asked.append((bundle.postprocessing, [case.case_id for case in cases]))
        return Lesson(everything, ("remove all",), (2,), len(cases), {"slice": {"tumour": 0.5}}, {"slice": {"tumour": 0.25}})

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "learn_postprocessing", learn)
        _score_again(run)
    validation = json.loads((run / "run.json").read_text())["splits"]["validate"]
    assert [cases for _, cases in asked] == [validation]
    assert ModelBundle.load(run).postprocessing == everything
    assert json.loads((run / "summary.json").read_text())["postprocessing"] == {
        "steps": [{"step": "remove all", "changed_cases": 2}],
        "validation_cases": len(validation),
        "dice_before": {"slice": {"tumour": 0.5}},
        "dice_after": {"slice": {"tumour": 0.25}},
    }
    with (run / "scores.csv").open() as file:
        assert {row["voxels"] for row in csv.DictReader(file)} == {"0"}
    assert "  remove all (changes 2 of them)\n" in (run / "log.txt").read_text()

    # What a killed run left in its bundle does not matter: the steps are learnt from the predictions before them.
    _score_again(run)
    for name in ("summary.json", "scores.csv", "bundle/bundle.json"):
        assert (run / name).read_text() == (runs["lgg"] / name).read_text()


def test_a_run_that_learns_nothing_says_nothing(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["lgg"], run)
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["postprocess"] == "learn"
    assert "validation_cases" in json.loads((run / "summary.json").read_text())["postprocessing"]
    (run / "run.json").write_text(json.dumps(record | {"config": record["config"] | {"postprocess": "none"}}))
    set_postprocessing(run, Postprocessing())
    _score_again(run)
    assert "postprocessing" not in json.loads((run / "summary.json").read_text())
    assert ModelBundle.load(run).postprocessing == Postprocessing()


@pytest.mark.parametrize("flags", [["--postprocess", "later"], ["--postprocess"]])
def test_other_values_are_refused(flags, capsys):
    assert train.main(["--dataset", "lgg", *flags]) == 2
    assert "argument --postprocess" in capsys.readouterr().err
