"""Steps of postprocessing on label maps drawn by hand."""

import numpy as np
import pytest

from modules.predict.postprocess import FOREGROUND, Postprocessing, Step, describe_shared, find_holes, share

NAMES = ("background", "a", "b")


def _draw(text):
    """Makes a label map of rows of digits; a dot is background."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in text.split()], np.uint8)


def _apply(label, *steps, spacing_mm=(1.0, 1.0, 1.0)):
    label = label.copy()
    Postprocessing(steps).apply(label, spacing_mm[: label.ndim])
    return label


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # Pixels that touch at a corner are one object: four of class 1 at the left, three at the right, and a speck.
        ([Step("keep_largest", 1)], "11..2. 1...2. .1.... ..22.. ......"),
        # Both classes together: the four of class 1 touch two of class 2.
        ([Step("keep_largest", FOREGROUND)], "11.... 1..... .1.... ..22.. ......"),
        # Three pixels are not below 3.
        ([Step("remove_small", 1, 3.0)], "11..21 1...21 .1...1 ..22.. ......"),
        ([Step("remove_small", 1, 3.5)], "11..2. 1...2. .1.... ..22.. ......"),
        # The first of two objects of one size stays.
        ([Step("keep_largest", 2)], "11..21 1...21 .1...1 ...... .....1"),
        # No object is left for the step after.
        ([Step("remove_small", 2, 9.0), Step("keep_largest", 2)], "11...1 1....1 .1...1 ...... .....1"),
    ],
)
def test_objects_of_a_slice(steps, expected):
    np.testing.assert_array_equal(_apply(_draw("11..21 1...21 .1...1 ..22.. .....1"), *steps), _draw(expected))


def test_holes_of_a_slice():
    label = _draw("11111.. 1...1.. 1.2.1.1 1...11. 11111.. .......")
    # What class 1 cuts off becomes its own, but class 2 within stays. The dents at the right lead out.
    filled = _apply(label, Step("fill_holes", 1))
    np.testing.assert_array_equal(filled, _draw("11111.. 11111.. 11211.1 111111. 11111.. ......."))
    # Class 2 has no hole, and a map without the class none either.
    np.testing.assert_array_equal(_apply(label, Step("fill_holes", 2)), label)
    np.testing.assert_array_equal(_apply(label * 0, Step("fill_holes", 1), Step("keep_largest", 1)), label * 0)


def test_a_hole_leads_out_across_faces_alone():
    # The middle touches the outside at corners only.
    assert find_holes(_draw(".1. 1.1 .1."), 1).sum() == 1
    # At the edge of the image nothing closes it.
    assert find_holes(_draw("1.1 1.1 111"), 1).sum() == 0


def test_a_hole_of_a_volume_must_be_closed_above_and_below():
    label = np.ones((3, 3, 3), np.uint8)
    label[1, 1, :2] = 0
    assert _apply(label, Step("fill_holes", 1))[1, 1, 0] == 0
    label[1, 1, 0] = 1
    assert _apply(label, Step("fill_holes", 1)).all()


def test_sizes_of_volumes_are_in_mm3():
    label = np.zeros((6, 4, 4), np.uint8)
    label[0, 0, 0] = label[3:5, 3, 3] = 1
    # A voxel of 0.5 x 1 x 3 mm has 1.5 mm3, so the objects have 1.5 and 3.
    for size, left in ((1.5, 3), (1.6, 2), (3.0, 2), (3.1, 0)):
        assert _apply(label, Step("remove_small", 1, size), spacing_mm=(0.5, 1, 3)).sum() == left
    # A slice has pixels, whatever they measure.
    for size, left in ((1.0, 3), (1.5, 2), (2.5, 0)):
        assert _apply(label[:, :, 3] + label[:, :, 0], Step("remove_small", 1, size), spacing_mm=(0.5, 3)).sum() == left


def test_steps_in_any_box_and_order_are_those_of_the_whole_map():
    # Objects far apart make large boxes, which shrink with each step; a step that sees too little would differ.
    rng = np.random.default_rng(0)
    label = (rng.random((12, 10, 8)) < 0.3).astype(np.uint8) * rng.integers(1, 4, (12, 10, 8), np.uint8)
    steps = [Step("keep_largest", 2), Step("remove_small", 1, 3.0), Step("keep_largest", FOREGROUND), Step("keep_largest", 3)]
    steps += [Step("fill_holes", index) for index in (1, 2, 3)]
    alone = label
    for step in steps:
        alone = _apply(alone, step)
    np.testing.assert_array_equal(_apply(label, *steps), alone)
    # The same in another order of memory, as a file may have it.
    turned = np.asfortranarray(label)
    Postprocessing(tuple(steps)).apply(turned, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(turned, alone)


def test_an_ensemble_takes_the_steps_that_all_share_with_the_smallest_size():
    largest, small, holes = Step("keep_largest", 1), Step("remove_small", 2, 30.0), Step("fill_holes", 1)
    models = [Postprocessing((largest, small, holes)), Postprocessing((Step("remove_small", 2, 20.0), largest))]
    assert share(models) == Postprocessing((largest, Step("remove_small", 2, 20.0)))
    assert share(models[:1]) == models[0]
    assert describe_shared(models, NAMES, 3, wanted=True) == (
        "postprocessing: keep the largest object of a; remove objects of b below 20 mm3; the steps that not all models of the ensemble "
        "share are left out"
    )
    assert describe_shared(models[1:], NAMES, 2, wanted=True).startswith("postprocessing: remove objects of b below 20 pixels; keep")
    assert describe_shared(models, NAMES, 3, wanted=False) == "postprocessing: left out"
    none = [Postprocessing()]
    assert describe_shared(none, NAMES, 3, wanted=False) == "--no-postprocess has no effect: there are no such steps"
    assert describe_shared(none, NAMES, 3, wanted=True) == ""
    assert share([models[0], *none]) == Postprocessing()
    texts = Postprocessing((Step("keep_largest", FOREGROUND), holes)).describe(NAMES, 3)
    assert texts == ["keep the largest object of the whole foreground", "fill holes of a"]


def test_sizes_that_differ_in_the_last_digits_leave_the_same_objects():
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, :3] = 1
    for size in (1.1, float(np.nextafter(np.float32(1.1), np.float32(1)))):
        assert _apply(label, Step("remove_small", 1, 3 * 1.1), spacing_mm=(1.0, 1.0, size)).sum() == 3
    assert _apply(label, Step("remove_small", 1, 3 * 1.1), spacing_mm=(1.0, 1.0, 1.0999)).sum() == 0
