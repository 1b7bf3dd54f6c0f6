"""The picture of calibration and predicted Dice."""

import cv2
import pytest

from modules.reports import draw_reliability

BINS = {"a": [{"probability": 0.1, "frequency": 0.2, "voxels": 5}, {"probability": 0.9, "frequency": 0.8, "voxels": 5}]}


def test_the_second_panel_is_there_where_cases_were_judged(tmp_path):
    both = draw_reliability(tmp_path / "both.png", BINS, {"a": [(0.8, 0.7, 0.9, 0.85, 1)]}, title="with $ and _")
    alone = draw_reliability(tmp_path / "alone.png", BINS, {"a": []}, title="alone")
    assert cv2.imread(str(both)).shape[1] > 1.5 * cv2.imread(str(alone)).shape[1]


def test_no_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected `bins` of classes. Received: none"):
        draw_reliability(tmp_path / "none.png", {}, {}, title="none")
