"""Words of predict.py about its own errors, through the command: maps, predicted Dice, and cases to check."""

import json

import nibabel as nib
import numpy as np
import pytest
from command_helpers import expect_one_line

import predict


@pytest.fixture
def go(runs, phantoms, tmp_path, monkeypatch):
    """Predicts the test slices of a data set with its run; returns the folder of results."""
    monkeypatch.chdir(tmp_path)

    def go(name, images, *flags):
        flags = ("--model", str(runs[name]), "--output", "out", *flags)
        assert predict.main([str(phantoms / name / images), *flags]) == 0
        return tmp_path / "out"

    return go


def test_a_run_judges_its_predictions(go, runs, capsys):
    # A run that is trained now counts its own test cases.
    assert runs["oasis"]
    capsys.readouterr()
    out = go("oasis", "keras_png_slices_test", "--check-below", "1", "--save", "uncertainty")
    printed = capsys.readouterr().out
    cases = json.loads((out / "results.json").read_text())["cases"]
    assert printed.count("check this one: ") == len(cases) > 0
    for case in cases:
        assert case["check"]
        assert any("below 1.00" in reason for reason in case["check_reasons"])
        assert case["distance"] > 0
        for one in case["classes"]:
            if one["voxels"]:
                assert 0 <= one["predicted_low"] <= one["predicted_dice"] <= one["predicted_high"] <= 1
        maps = np.load(out / f"{case['case']}_uncertainty.npz")["probabilities"]
        assert maps.shape == (*case["shape"], 2)
        # Mutual information is a part of the entropy.
        assert maps.min() >= 0
        assert (maps[..., 1] <= maps[..., 0] + 1e-5).all()
        assert maps[..., 0].max() <= 1 + 1e-5
    page = (out / "report.html").read_text()
    assert page.count(">check this one<") == len(cases)
    # The same call finds everything there; another limit is another question.
    go("oasis", "keras_png_slices_test", "--check-below", "1", "--save", "uncertainty")
    assert f"{len(cases)} skipped" in capsys.readouterr().out
    go("oasis", "keras_png_slices_test", "--check-below", "0")
    assert f"{len(cases)} done" in capsys.readouterr().out
    told = json.loads((runs["oasis"] / "summary.json").read_text())
    assert told["quality"]["cases"] > 0
    assert set(told["calibration"]["classes"]) == {"CSF", "grey matter", "white matter"}
    page = (runs["oasis"] / "report.html").read_text()
    assert "What the model knows of its errors" in page
    assert (runs["oasis"] / "judged.csv").read_text().startswith("case,class,dice,predicted,low,high,distance,check\n")


def test_maps_lie_on_the_scan_s_own_grid(go):
    # This run was told to learn no judgement, and has doubts all the same.
    out = go("hipmri", "keras_slices_test", "--save", "uncertainty")
    case = json.loads((out / "results.json").read_text())["cases"][0]
    assert case["check"] is None
    scan, maps = nib.load(case["images"][0]), nib.load(out / f"{case['case']}_uncertainty.nii.gz")
    assert maps.shape == (*(*scan.shape, 1)[:3], 2)
    np.testing.assert_allclose(maps.affine, scan.affine)
    values = maps.get_fdata()
    assert 0 <= values.min() <= values.max() <= 1 + 1e-5
    assert "Check these" not in (out / "report.html").read_text()


def test_a_limit_for_a_model_that_judges_nothing_is_refused(runs, phantoms, tmp_path, capsys):
    flags = ["--model", str(runs["hipmri"]), "--output", str(tmp_path / "out"), "--check-below", "0.8"]
    capsys.readouterr()
    status = predict.main([str(phantoms / "hipmri" / "keras_slices_test"), *flags])
    expect_one_line(
        capsys, status, "Expected a model that judges its predictions for --check-below. Received: one that learnt no judgement"
    )
    assert not (tmp_path / "out").exists()


def test_a_limit_that_is_no_dice_is_refused(capsys):
    assert predict.main(["scan.nii.gz", "--check-below", "70"]) == 2
    assert "Expected --check-below from 0 to 1. Received: 70. Give a Dice." in capsys.readouterr().err
