"""The page of a folder of predictions: sizes and scores from its files, the worst cases first."""

import json

import cv2
import nibabel as nib
import numpy as np
import pytest
from page_helpers import Page, check_numbers

from modules.reports.predictions import write_predictions_page
from modules.score_tables import write_scores
from modules.scoring import Score

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def folder(tmp_path):
    """A folder with two predicted volumes of one class, as predict.py leaves it."""
    output = tmp_path / "predictions"
    output.mkdir()
    cases = []
    for place, name in enumerate(("good", "bad")):
        label = np.zeros((6, 8, 4), np.uint8)
        label[1:3, 1:4, 1:3] = 7
        image = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.arange(192, dtype=np.float32).reshape(6, 8, 4), np.eye(4)), image)
        nib.save(nib.Nifti1Image(label, np.eye(4)), output / f"{name}_prediction.nii.gz")
        cv2.imwrite(str(output / f"{name}_overlay.png"), np.full((20, 30, 3), 90 * place, np.uint8))
        one = {"name": HOSTILE, "voxels": 12, "ml": 0.012 * (place + 1), "components": 1, "value": 7, "colour": "#E69F00"}
        models = [{"run": HOSTILE, "bundle_json_sha256": "0" * 64, "engine": "keras", "computed_in": "float32"}]
        files = [f"{name}_prediction.nii.gz"]
        cases.append({"case": name, "images": [str(image)], "files": files, "models": models, "classes": [one]})
    (output / "results.json").write_text(json.dumps({"version": "1", "intended_use": "Research.", "cases": cases, "scans": []}))
    return output


def test_sizes_scores_and_pictures(folder):
    write_scores(
        folder / "scores.csv",
        [Score("volume", case, HOSTILE, dice, dice, *[np.nan] * 5, 1, 1) for case, dice in (("good", 1.0), ("bad", 0.25))],
    )
    page = Page(write_predictions_page(folder))
    assert page.list_loads() == []
    assert len(page.scripts) == 1
    assert page.text.count(HOSTILE) >= 3
    assert check_numbers(page, folder, "results.json") == ["/cases/0/classes/0/ml", "/cases/1/classes/0/ml"]
    assert ["scores.csv", "/intervals/volume/<script>alert(1)<~1script>/dice/low", "0.25", "0.250"] in page.numbers
    assert ["scores.csv", "/means/volume/<script>alert(1)<~1script>/dice", "0.625", "0.625"] in page.numbers
    # The worst comes first in both.
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["bad with its prediction", "good with its prediction"]
    labels = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    assert [label.split(",")[0] for label in labels] == ["bad"] * 3 + ["good"] * 3
    assert "Research." in page.text


def test_what_cannot_be_shown_is_said_or_left_out(folder):
    (folder / "bad_overlay.png").unlink()
    (folder.parent / "good.nii.gz").write_bytes(b"no image")
    (folder.parent / "bad.nii.gz").unlink()
    page = Page(write_predictions_page(folder))
    assert "Pictures of 1 more cases lie beside this page:" in page.text
    assert "good cannot be shown: " in page.text
    assert not [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    (folder / "results.json").unlink()
    assert write_predictions_page(folder) is None
