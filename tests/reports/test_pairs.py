"""The picture of paired subjects."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from modules.data.colours import PALETTE
from modules.reports.pairs import draw_pairs


def _count(path, colour):
    """Counts the pixels of about this colour; a fifth of the paper shines through the lines."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    return int((np.abs(picture - (0.8 * 255 * np.array(to_rgb(colour)) + 0.2 * 255)) <= 6).all(axis=-1).sum())


def test_lines_tell_by_colour_what_is_better_and_worse(tmp_path):
    better, worse = {"s": (0.5, 0.9), "t": (0.4, 0.8)}, {"s": (0.9, 0.5), "t": (0.8, 0.4)}
    for name, table in (("better", better), ("worse", worse)):
        path = draw_pairs(tmp_path / "figures" / f"{name}.png", ["one", "two"], {"a": table}, {"a": "+0.4"}, title="pairs")
        shown, missing = (PALETTE[4], PALETTE[5]) if name == "better" else (PALETTE[5], PALETTE[4])
        assert _count(path, shown) > 100 > 40 > _count(path, missing)


def test_there_is_a_panel_for_each_class_and_room_for_many(tmp_path):
    table = {f"s{number}": (0.5, 0.6, 0.7) for number in range(40)}
    sizes = []
    for classes in (1, 4, 9):
        # Names that would be formulas are drawn as they are.
        pairs = {f"class ${number}_^ of a long name that goes on and on": table for number in range(classes)}
        path = draw_pairs(tmp_path / "p.png", ["a", "b" * 60, "c"], pairs, title="pairs")
        sizes.append(cv2.imread(str(path)).shape[:2])
    assert sizes[0][1] < sizes[1][1] == sizes[2][1]
    assert sizes[0][0] == sizes[1][0] < sizes[2][0]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="^Expected `pairs` of subjects. Received: none. Give models that were tested on the same cases.$"):
        draw_pairs(tmp_path / "p.png", ["a", "b"], {"a": {}}, title="pairs")
