"""Montages: which slices they show, their numbers, and the dashes of the truth."""

import numpy as np
from picture_helpers import CLASSES, read_png

from modules import reports


def test_montage_numbers_its_slices(tmp_path, drawn, volume):
    draw = {**volume, "class_names": CLASSES, "title": "case"}
    picture = read_png(reports.draw_montage(tmp_path / "case.png", **draw))
    # Slices are thickest from foot to head; the structures lie in 3 to 8 of 10, counted from 1.
    assert [text for text in drawn.words if text.isdigit()] == ["3", "4", "5", "6", "7", "8"]
    assert len(drawn.panels) == 6
    assert set(drawn.letters_in(0)) == set("RLAP")
    assert {"truth: white dashes", "bladder: 1.10 ml (truth 1.10 ml)", "rectum: 0.04 ml (truth 0.04 ml)"} <= set(drawn.words)
    assert any(text.startswith("Axial: 6 of 10 slices") for text in drawn.words)
    assert 1200 <= picture.shape[1] <= 2000
    assert (picture[:, [0, 1, -2, -1]] == 255).all()
    drawn.clear()
    reports.draw_montage(tmp_path / "case.png", **draw, plane="sagittal", count=3)
    assert [text for text in drawn.words if text.isdigit()] == ["4", "6", "8"]  # spread over slices 3 to 9
    assert set(drawn.letters_in(0)) == set("APSI")


def test_montage_without_truth_has_no_dashes(tmp_path, drawn, volume):
    draw = {"prediction": volume["prediction"], "class_names": CLASSES, "title": "case", "plane": "axis 1"}
    image = np.full(volume["image"].shape, 7.0)
    white = []
    for label in (None, volume["label"]):
        drawn.clear()
        picture = read_png(reports.draw_montage(tmp_path / "case.png", image, label, **draw))
        x, y, columns, rows = drawn.panels[1]
        white.append((picture[len(picture) - y - rows + 30 : len(picture) - y, x : x + columns] == 255).all(axis=-1).sum())
        assert [text for text in drawn.words if "truth" in text] == [] or label is not None
    assert white[0] == 0
    assert white[1] > 100
