"""The picture of calibration and predicted Dice."""

import cv2
import pytest

from modules.reports import draw_reliability, reliability

BINS = {"a": [{"probability": 0.1, "frequency": 0.2, "voxels": 5}, {"probability": 0.9, "frequency": 0.8, "voxels": 5}]}


def test_the_second_panel_is_there_where_cases_were_judged(tmp_path):
    both = draw_reliability(tmp_path / "both.png", BINS, {"a": [(0.8, 0.7, 0.9, 0.85, 1)]}, title="with $ and _")
    alone = draw_reliability(tmp_path / "alone.png", BINS, {"a": []}, title="alone")
    assert cv2.imread(str(both)).shape[1] > 1.5 * cv2.imread(str(alone)).shape[1]


def test_no_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected `bins` of classes. Received: none"):
        draw_reliability(tmp_path / "none.png", {}, {}, title="none")


def test_names_of_axes_lie_within_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(reliability, "save_figure", lambda figure, path: figures.append(figure) or path)
    draw_reliability(tmp_path / "both.png", BINS, {"a": [(0.8, 0.7, 0.9, 0.85, 1)]}, title="with a ring")
    (figure,) = figures
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in (axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text.get_text()
            assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text.get_text()
