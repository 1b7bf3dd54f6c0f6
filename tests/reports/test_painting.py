"""Colours of classes, of differences and of outlines."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from modules import reports
from modules.reports.painting import dash_contours


def test_difference_map_by_hand():
    label = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 0, 0], [3, 3, 0, 0]])
    prediction = np.array([[0, 1, 1, 0], [0, 2, 1, 1], [0, 0, 0, 2], [3, 1, 0, 0]])
    expected = np.array([[0, 2, 0, 1], [0, 0, 3, 0], [0, 1, 0, 2], [0, 3, 0, 0]])
    difference = reports.difference_map(label, prediction)
    assert difference.dtype == np.uint8
    np.testing.assert_array_equal(difference, expected)
    # If label and prediction change places, missed voxels become false ones, and the other way round.
    np.testing.assert_array_equal(reports.difference_map(prediction, label), np.array([0, 2, 1, 3])[expected])


def test_difference_map_of_unsigned_labels():
    label, prediction = np.array([0, 1, 255], np.uint8), np.array([1, 0, 1], np.uint8)
    assert reports.difference_map(label, prediction).tolist() == [2, 1, 3]


def test_difference_map_refuses_other_shape():
    with pytest.raises(ValueError, match=r"Expected `prediction` of the shape of `label`, \(4, 4\)\. Received: \(4, 4, 1\)"):
        reports.difference_map(np.zeros((4, 4), int), np.zeros((4, 4, 1), int))


def test_palette_stands_out_from_grey():
    colours = np.array([to_rgb(colour) for colour in reports.PALETTE])
    assert len({tuple(colour) for colour in colours}) == len(colours) >= 7
    assert np.ptp(colours, axis=1).min() > 0.3  # none is near grey
    assert colours.max(axis=1).min() > 0.6  # none is lost in the dark


def test_dashes_lie_on_the_outline():
    classes = np.zeros((40, 40), np.uint8)
    classes[10:30, 8:32] = 1
    classes[10:30, 20:32] = 2
    white = dash_contours(np.zeros((40, 40, 3)), classes).all(axis=-1)
    outline = np.zeros((40, 40), bool)
    outline[[10, 29], 8:32] = outline[10:30, [8, 20, 31]] = True  # the line between touching classes lies on the second
    assert (white <= outline).all()
    assert 0.35 < white.sum() / outline.sum() < 0.65
