"""The picture of the candidates of a cross-validation."""

import pytest
from picture_helpers import read_png

from modules import reports


def test_candidates_are_drawn_and_none_are_refused(tmp_path):
    means = {"slice": {"p": 0.5, "q": 0.75}, "patch": {"p": 0.6, "q": 0.7}, "slice+patch": {"p": 0.8, "q": 0.9}}
    gap = {"mean": -0.2, "low": -0.3, "high": -0.15, "subjects": 2}
    path = reports.draw_candidates(tmp_path / "a.png", means, {"slice": gap, "patch": gap}, chosen="patch", title="three")
    drawn = read_png(path)
    other = read_png(reports.draw_candidates(tmp_path / "b.png", means, {"slice": gap, "patch": gap}, chosen="slice", title="three"))
    assert drawn.shape == other.shape
    assert (drawn != other).any()
    with pytest.raises(ValueError, match="Expected `means` of subjects. Received: none."):
        reports.draw_candidates(path, {"slice": {}}, {}, chosen="slice", title="none")
