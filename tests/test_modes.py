"""A cross-validation of slices and patches: interrupted, resumed, merged from single folds, and its ensemble."""

import filecmp
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line
from page_helpers import Page, check_numbers

import predict
import train
from modules.run import choice
from modules.score_tables import read_scores, write_scores

SMALL = ["--epochs", "1", "--base-filters", "2", "--levels", "1", "--batch-size", "4", "--folds", "2"]


@pytest.fixture(scope="module")
def places(phantoms, tmp_path_factory):
    """Data, runs and cache of this file, as flags."""
    folder = tmp_path_factory.mktemp("modes")
    flags = ["--data", str(phantoms / "ibsr18"), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")]
    return folder / "runs", flags


@pytest.fixture(scope="module")
def whole(places):
    """A run of both modes that was interrupted between them, and resumed; read only."""
    runs, flags = places
    fit = train.fit

    def fit_or_stop(prepared, *rest):
        if prepared.plan.mode == "patch":
            raise KeyboardInterrupt
        return fit(prepared, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", fit_or_stop)
        assert train.main(["--dataset", "ibsr18", *flags, *SMALL, "--modes", "slice", "patch", "--name", "cv"]) == 130
    run = runs / "cv"
    assert [path.name for path in sorted(run.glob("*/fold_*"))] == ["fold_0", "fold_0", "fold_1"]
    with pytest.raises(ValueError, match="without a chosen mode"):
        predict.list_models([run])
    assert train.main(["--resume", str(run)]) == 0
    return run


def test_every_mode_and_their_pair_are_scored_on_the_same_cases(whole, capsys):
    summary = json.loads((whole / "summary.json").read_text())
    assert [item["name"] for item in summary["candidates"]] == ["slice", "patch", "slice+patch"]
    weights = [item["weights"] for item in summary["candidates"]]
    assert weights[0] + weights[1] == weights[2]
    tables = [{(score.case, score.class_name) for score in read_scores(whole / name / "scores.csv")} for name in ("slice", "patch")]
    pair = [score for fold in range(2) for score in read_scores(whole / "slice+patch" / f"fold_{fold}" / "scores.csv")]
    assert tables[0] == tables[1] == {(score.case, score.class_name) for score in pair}
    assert len(tables[0]) == 4 * 3
    # Four subjects are too few for a pair, so that the best mode is the model and the scores are its own.
    chosen = summary["chosen"]
    assert chosen == max(summary["candidates"][:2], key=lambda item: item["mean"])["name"]
    assert filecmp.cmp(whole / "scores.csv", whole / chosen / "scores.csv", shallow=False)
    assert summary["test"]["volume"]["mean"]["dice"]["subjects"] == 4
    assert sorted(path.name for path in (whole / "ensemble").iterdir()) == [
        "ensemble.json",
        *(f"{chosen}_fold_{fold}" for fold in range(2)),
    ]
    assert "chosen: " in (whole / "log.txt").read_text()
    assert (whole / "figures" / "folds.png").is_file()
    page = Page(whole / "report.html")
    assert "/test/volume/mean/dice/low" in check_numbers(page, whole, "summary.json")
    folds = [f"{mode}/fold_{fold}" for mode in ("slice", "patch") for fold in range(2)]
    assert page.list_loads() == [f"{fold}/report.html" for fold in folds]
    assert all(check_numbers(page, whole, f"{fold}/summary.json") for fold in folds)
    expect_one_line(capsys, train.main(["--resume", str(whole)]), f"Received: {whole}, which is finished")


def test_folds_of_separate_commands_are_merged_to_the_same_run(whole, places):
    runs, flags = places
    alone = ["--dataset", "ibsr18", *flags, *SMALL, "--mode", "patch", "--fold", "1", "--name", "alone"]
    assert train.main(alone) == 0
    parts = [whole / "slice", whole / "patch" / "fold_0", runs / "alone"]
    assert train.main(["--merge", *map(str, parts), *flags, "--name", "merged"]) == 0
    merged = runs / "merged"
    for name in ("scores.csv", "slice+patch/fold_0/scores.csv", "slice+patch/fold_1/scores.csv"):
        assert filecmp.cmp(merged / name, whole / name, shallow=False)
    one, other = (json.loads((run / "summary.json").read_text()) for run in (whole, merged))
    for item in (*one["candidates"], *other["candidates"]):
        item.pop("seconds")
    assert one == other
    for mode, fold in (("slice", 0), ("slice", 1), ("patch", 0), ("patch", 1)):
        hashes = [
            json.loads((run / mode / f"fold_{fold}" / "summary.json").read_text())["bundle_weights_sha256"] for run in (whole, merged)
        ]
        assert hashes[0] == hashes[1]


def test_runs_that_do_not_merge_are_refused_in_a_line(whole, places, phantoms, tmp_path, capsys):
    runs, flags = places
    slices = str(whole / "slice")
    for argv, message in (
        ([slices, str(whole / "patch" / "fold_0"), *flags], "Expected folds 0 to 1 of mode 'patch' to merge. Received: no fold 1."),
        ([slices, slices, *flags], "Expected each fold once. Received: fold 0 in"),
        (
            [slices, "--epochs", "3"],
            "Expected nothing beside --merge but --name, --data, --cases, --classes, --cache, --runs, --subjects, --resident. "
            "Received: --epochs.",
        ),
        ([slices, "--data", str(phantoms / "msd"), "--runs", str(tmp_path)], "Expected "),
        ([slices, *flags, "--name", "cv"], f"Expected a new name for the run. Received: {runs / 'cv'}, which exists."),
    ):
        expect_one_line(capsys, train.main(["--merge", *argv]), message)
    assert not list(tmp_path.iterdir())


def test_a_clearly_better_pair_becomes_the_ensemble_that_predicts_anywhere(whole, phantoms, tmp_path, monkeypatch, capsys):
    run = tmp_path / "cv"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    for fold in range(2):
        path = run / "slice+patch" / f"fold_{fold}" / "scores.csv"
        write_scores(path, [score.__class__(**vars(score) | {"dice": 0.9}) for score in read_scores(path)])
    monkeypatch.setattr(choice, "LEAST_SUBJECTS", 4)
    assert train.main(["--resume", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["chosen"] == "slice+patch"
    assert summary["candidates"][0]["difference"]["high"] < 0
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(run / "ensemble", moved)
    members = [str(whole / mode / f"fold_{fold}") for mode in ("slice", "patch") for fold in range(2)]
    image = str(phantoms / "ibsr18" / "Test_Set" / "IBSR_09" / "IBSR_09.nii.gz")
    outputs = []
    for name, models in (("run", [str(run)]), ("moved", [str(moved)]), ("members", members)):
        assert predict.main([image, "--model", *models, "--output", str(tmp_path / name), "--probabilities"]) == 0
        outputs.append(np.asarray(nib.load(next((tmp_path / name).glob("*_probabilities.nii.gz"))).dataobj))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    capsys.readouterr()
    first = moved / "slice_fold_0"
    expect_one_line(capsys, predict.main(["--export", "onnx", str(moved)]), f"Name one of them, as in --export onnx {first}.")


def test_flags_that_do_not_fit_every_mode_name_it(places, capsys):
    runs, flags = places
    for own, message in (
        (["--shape", "16", "16"], "Expected `shape` of 3 numbers for 'ibsr18' in mode 'patch'."),
        (["--network", "unet3d"], "Expected a 2-D `network` for mode 'slice'"),
        (["--mode", "patch"], "Expected either --modes or --mode patch. Received: both."),
    ):
        argv = ["--dataset", "ibsr18", *flags, *SMALL, "--modes", "slice", "patch", "--name", "refused", *own]
        expect_one_line(capsys, train.main(argv), message)
    assert not (runs / "refused").exists()


def test_the_plan_of_each_mode_is_shown(places, capsys):
    runs, flags = places
    before = set(runs.glob("*"))
    assert train.main(["--dataset", "ibsr18", *flags, *SMALL, "--modes", "slice", "patch", "--plan-only"]) == 0
    lines = [
        line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("plan  mode") or "mode" in line.split()[:6]
    ]
    assert ["plan", "mode", "slice,"] in lines
    assert ["plan", "mode", "patch"] in lines
    assert set(runs.glob("*")) == before


def test_the_average_of_the_last_epochs_is_a_candidate_and_off_by_default(whole, places):
    runs, flags = places
    slices = ["--dataset", "ibsr18", *flags, *SMALL[2:], "--mode", "slice", "--fold", "0", "--epochs", "3", "--average-last", "0.7"]
    assert train.main([*slices, "--name", "average"]) == 0
    run = runs / "average"
    log = (run / "log.txt").read_text()
    assert "the average of the weights of the last 2 epochs: validation mean dice" in log
    provenance = json.loads((run / "bundle" / "bundle.json").read_text())["provenance"]
    assert provenance.get("averaged_epochs") == (2 if "the average is kept" in log else None)
    assert [path.name for path in sorted((run / "checkpoint").glob("average_*"))] == ["average_000000002.npz", "average_000000003.npz"]
    assert not list(whole.rglob("average_*"))
