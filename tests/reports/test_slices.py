"""Pictures of slices: the contents that their pixels show."""

import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from picture_helpers import CLASSES, NAN, find_colour, read_png

from modules import reports


def find_panel(picture: np.ndarray) -> tuple[slice, slice]:
    """Finds rows and columns of the last panel, which shows a constant image in mid-grey. Text has this grey in single pixels only."""
    mask = find_colour(picture, "#808080")
    mask[:, : picture.shape[1] // 2] = False
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) > 20) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_comparison_shows_classes_and_errors(tmp_path, scan):
    image, label, prediction = scan
    path = reports.draw_comparison(tmp_path / "a" / "case.png", image, label, prediction, CLASSES, title="case_1")
    assert path == tmp_path / "a" / "case.png"
    assert list(path.parent.iterdir()) == [path]
    picture = read_png(path)
    for colour in (*reports.PALETTE[:3], *reports.DIFFERENCE_COLOURS[:2]):
        assert find_colour(picture, colour).sum() > 100, colour
    assert not find_colour(picture, reports.PALETTE[4]).any()  # a class that is nowhere has no colour and no legend


def test_comparison_changes_with_the_prediction(tmp_path, scan):
    image, label, prediction = scan
    right = read_png(reports.draw_comparison(tmp_path / "right.png", image, label, label, CLASSES, title="case"))
    wrong = read_png(reports.draw_comparison(tmp_path / "wrong.png", image, label, prediction, CLASSES, title="case"))
    quarter = right.shape[1] // 4
    np.testing.assert_array_equal(right[:-80, : 2 * quarter], wrong[:-80, : 2 * quarter])  # image and truth
    assert (right[:-80, 2 * quarter : 3 * quarter] != wrong[:-80, 2 * quarter : 3 * quarter]).any()
    # With a perfect prediction only the legend has the error colours: one swatch each.
    for colour in reports.DIFFERENCE_COLOURS[:2]:
        assert find_colour(right, colour).sum() < 200 < find_colour(wrong, colour).sum()


def test_comparison_legend_follows_scores(tmp_path, scan):
    draw = {"image": scan[0], "label": scan[1], "prediction": scan[2], "class_names": CLASSES, "title": "case"}
    pictures = [
        read_png(reports.draw_comparison(tmp_path / "case.png", **draw, scores=scores))
        for scores in (None, {"bladder": 0.8}, {"bladder": 0.9}, {"bladder": NAN})
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert one.shape != other.shape or (one != other).any()


def test_an_absent_class_is_still_listed(tmp_path):
    blank = np.zeros((16, 16), int)
    draw = {"image": np.ones((16, 16)), "label": blank, "prediction": blank, "class_names": CLASSES, "title": ""}
    without = read_png(reports.draw_comparison(tmp_path / "without.png", **draw))
    listed = read_png(reports.draw_comparison(tmp_path / "listed.png", **draw, scores={"rectum": NAN}))
    assert not find_colour(without, reports.PALETTE[1]).any()
    assert 80 < find_colour(listed, reports.PALETTE[1]).sum() < 200


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0), (3.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("shape", [(8, 8), (64, 32)])
def test_spacing_sets_the_aspect(tmp_path, shape, spacing_mm):
    draw = {"prediction": np.zeros(shape, int), "class_names": CLASSES, "title": "case", "spacing_mm": spacing_mm}
    picture = read_png(reports.draw_overlay(tmp_path / "case.png", np.full(shape, 7.0), **draw))
    rows, columns = (side.stop - side.start for side in find_panel(picture))
    row_mm, column_mm = spacing_mm or (1, 1)
    assert rows / columns == pytest.approx(shape[0] * row_mm / (shape[1] * column_mm), rel=0.02)


def test_rows_go_down_and_columns_right(tmp_path):
    prediction = np.zeros((20, 20), int)
    prediction[2:6, 12:18] = 1
    image = np.full((20, 20), 7.0)
    picture = read_png(reports.draw_overlay(tmp_path / "case.png", image, prediction, CLASSES, title="case"))
    panel = find_colour(picture[find_panel(picture)], reports.PALETTE[0])
    np.testing.assert_allclose(np.argwhere(panel).mean(axis=0) / panel.shape, (4 / 20, 15 / 20), atol=0.01)


@pytest.mark.parametrize("spacing_mm", [None, (6.0, 1.0)])
def test_one_pixel_line_survives_shrinking(tmp_path, spacing_mm):
    prediction = np.zeros((700, 900), np.uint8)
    prediction[100:600, 451] = 1
    image = np.full((700, 900), 7.0)
    draw = {"title": "case", "spacing_mm": spacing_mm}
    picture = read_png(reports.draw_overlay(tmp_path / "case.png", image, prediction, CLASSES, **draw))
    panel = find_colour(picture[find_panel(picture)], reports.PALETTE[0])
    assert panel.any(axis=1).mean() == pytest.approx(500 / 700, abs=0.01)
    assert panel.any(axis=0).sum() in (1, 2)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (256, 128), (10, 300), (300, 10)])
@pytest.mark.parametrize("channels", [None, 1, 2, 3])
def test_any_shape_and_channels(tmp_path, shape, channels):
    image = np.random.default_rng(0).normal(size=shape if channels is None else (*shape, channels))
    label, prediction = np.zeros(shape, bool), np.ones(shape, np.uint8)
    draw = {"title": "a long title with words " * 12, "scores": {"bladder": 0.0}}
    picture = read_png(reports.draw_comparison(tmp_path / "c.png", image, label, prediction, ("background", "bladder"), **draw))
    assert picture.shape[0] < 1400
    assert picture.shape[1] < 2200
    # Nothing touches the edge of the page: no text is cut off.
    assert (picture[[0, 1, -2, -1]] == 255).all()
    assert (picture[:, [0, 1, -2, -1]] == 255).all()


def test_three_channels_are_shown_in_colour(tmp_path):
    rows, columns = np.mgrid[:16, :16]
    image = np.stack([rows + 1, columns + 1, 17 - rows], axis=-1)
    blank = np.zeros((16, 16), int)
    picture = read_png(reports.draw_overlay(tmp_path / "rgb.png", image, blank, CLASSES, title="case"))
    half = picture.shape[1] // 2
    assert (np.ptp(picture[:, :half], axis=-1) > 60).mean() > 0.2
    assert (np.ptp(picture[:, half:], axis=-1) == 0).all()  # the overlay is painted on grey


def test_the_window_ignores_outliers_and_air(tmp_path):
    image = np.zeros((40, 40))
    image[5:35, 5:35] = np.linspace(100, 200, 900).reshape(30, 30)
    blank = np.zeros((40, 40), int)
    plain = read_png(reports.draw_overlay(tmp_path / "a.png", image, blank, CLASSES, title="case"))
    image[20, 20] = 1e6
    spiked = read_png(reports.draw_overlay(tmp_path / "b.png", image, blank, CLASSES, title="case"))
    assert np.abs(plain - spiked).mean() < 2
    assert np.abs(plain - spiked).max() > 50  # the spike itself


def test_many_classes_and_odd_names(tmp_path):
    names = ["background", *(f"${i}$ _{'very ' * i}long\\name" for i in range(1, 24))]
    label = np.arange(24 * 24).reshape(24, 24) % 24
    draw = {"title": "$case_{1", "scores": dict.fromkeys(names[1:], 0.5)}
    picture = read_png(reports.draw_comparison(tmp_path / "c.png", np.ones((24, 24)), label, label.T, names, **draw))
    assert (picture[:, [0, 1, -2, -1]] == 255).all()


def test_overlay_legend_counts_only_what_is_there(tmp_path, scan):
    image, label, _ = scan
    label[label == 2] = 0
    picture = read_png(reports.draw_overlay(tmp_path / "case.png", image, label, CLASSES, title="case"))
    shown = [bool(find_colour(picture, colour).any()) for colour in reports.PALETTE[:3]]
    assert shown == [True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.zeros((8, 9), int)}, r"Expected `label` of the shape of `image`, \(8, 8\)\. Received: \(8, 9\)"),
        ({"prediction": np.zeros((8, 8, 1), int)}, r"Expected `prediction` of the shape.* Received: \(8, 8, 1\)"),
        ({"prediction": np.zeros((8, 8))}, r"Expected `prediction` of an integer type\. Received: float64"),
        ({"prediction": np.full((8, 8), 4)}, r"Expected `prediction` with values from 0 to 3.* Received: 4 to 4"),
        ({"label": np.full((8, 8), -1)}, r"Expected `label` with values from 0 to 3.* Received: -1 to -1"),
        ({"image": np.zeros((8, 8, 2, 2))}, r"Expected `image` of shape.* Received: \(8, 8, 2, 2\)"),
        ({"image": np.full((8, 8), NAN)}, r"Expected `image` with finite values\. Received: NaN"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, r"Expected `spacing_mm` as two positive numbers.* Received: \(1\.0, 1\.0, 1\.0\)"),
        ({"spacing_mm": (0.0, 1.0)}, r"Expected `spacing_mm` as two positive numbers"),
        ({"scores": {"liver": 0.5}}, r"Expected `scores` for classes in .*Received: \['liver'\]"),
    ],
)
def test_comparison_refuses(tmp_path, change, message):
    blank = np.zeros((8, 8), int)
    draw = {"image": np.ones((8, 8)), "label": blank, "prediction": blank, "class_names": CLASSES, "title": "case"} | change
    with pytest.raises(ValueError, match=message):
        reports.draw_comparison(tmp_path / "case.png", **draw)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, scan, monkeypatch):
    image, label, prediction = scan
    path = reports.draw_overlay(tmp_path / "case.png", image, label, CLASSES, title="case")
    before = path.read_bytes()

    def fail(self, target, **options):
        Path(target).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        reports.draw_overlay(path, image, prediction, CLASSES, title="case")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_threads_draw_what_one_thread_draws(tmp_path, scan):
    image, label, prediction = scan
    draw = {"image": image, "label": label, "prediction": prediction, "class_names": CLASSES, "title": "case"}
    expected = reports.draw_comparison(tmp_path / "alone.png", **draw).read_bytes()
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    threads = [threading.Thread(target=reports.draw_comparison, args=(path,), kwargs=draw) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == expected for path in paths] == [True] * 4
