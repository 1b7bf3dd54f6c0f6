"""Reports: the numbers behind the pictures, and what can be read back from their pixels."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from modules import reports

CLASSES = ("background", "bladder", "rectum", "prostate")
NAN = float("nan")


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth image (48, 32), its truth with three classes, and a prediction moved by two rows."""
    rows, columns = np.mgrid[:48, :32]
    image = (100 + 3 * rows + columns).astype(np.float32)
    label = np.zeros((48, 32), np.int32)
    label[8:16, 6:26], label[20:30, 10:20], label[36:38, 4:28] = 1, 2, 3
    return image, label, np.roll(label, 2, axis=0)


def make_history(epochs: int, *, validated: bool = True) -> list[dict[str, float]]:
    history = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch, "mean_dice": 1 - 0.6 / epoch, "seconds": 2.0}
        row |= {f"dice_{name}": 1 - 0.2 * i - 0.3 / epoch for i, name in enumerate(CLASSES[1:])}
        row |= {f"iou_{name}": 0.5 for name in CLASSES[1:]}
        measured = [key for key in row if key not in ("epoch", "seconds")]
        history.append(row | ({f"val_{key}": 0.9 * row[key] for key in measured} if validated else {}))
    return history


def read_png(path: Path) -> np.ndarray:
    """Decodes a PNG to RGB (rows, columns, 3)."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1].astype(np.int64)


def find_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Mask (rows, columns) of the pixels of exactly this colour."""
    return (np.abs(picture - np.rint(255 * np.array(to_rgb(colour)))) <= 1).all(axis=-1)


def find_panel(picture: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the last panel, drawn from a constant image: mid-grey, which text holds in single pixels only."""
    mask = find_colour(picture, "#808080")
    mask[:, : picture.shape[1] // 2] = False
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) > 20) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_difference_map_by_hand():
    label = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 0, 0], [3, 3, 0, 0]])
    prediction = np.array([[0, 1, 1, 0], [0, 2, 1, 1], [0, 0, 0, 2], [3, 1, 0, 0]])
    expected = np.array([[0, 2, 0, 1], [0, 0, 3, 0], [0, 1, 0, 2], [0, 3, 0, 0]])
    difference = reports.difference_map(label, prediction)
    assert difference.dtype == np.uint8
    np.testing.assert_array_equal(difference, expected)
    # Seen from the other side, what was missed is false, and the other way round.
    np.testing.assert_array_equal(reports.difference_map(prediction, label), np.array([0, 2, 1, 3])[expected])


def test_difference_map_of_unsigned_labels():
    label, prediction = np.array([0, 1, 255], np.uint8), np.array([1, 0, 1], np.uint8)
    assert reports.difference_map(label, prediction).tolist() == [2, 1, 3]


def test_difference_map_refuses_other_shape():
    with pytest.raises(ValueError, match=r"Expected `prediction` of the shape of `label`, \(4, 4\)\. Received: \(4, 4, 1\)"):
        reports.difference_map(np.zeros((4, 4), int), np.zeros((4, 4, 1), int))


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([{"val_mean_dice": NAN}, {"val_mean_dice": 0.4}, {"val_mean_dice": 0.7}, {"val_mean_dice": NAN}], 2),
        ([{"val_mean_dice": 0.5}, {"val_mean_dice": 0.5}], 0),
        ([{"mean_dice": 0.9, "val_mean_dice": 0.3}, {"mean_dice": 0.1, "val_mean_dice": 0.4}], 1),
        ([{"mean_dice": 0.9}, {"mean_dice": 0.1, "val_mean_dice": 0.4}], 1),
        ([{"mean_dice": 0.2}, {"mean_dice": NAN}, {"mean_dice": 0.6}], 2),
        ([{"mean_dice": 0.2, "val_mean_dice": NAN}, {"mean_dice": 0.1, "val_mean_dice": NAN}], 0),
        ([{"val_mean_dice": float("inf")}, {"val_mean_dice": 0.1}], 1),
        ([{"mean_dice": NAN}, {"loss": 1.0}], None),
        ([], None),
    ],
)
def test_best_epoch(history, expected):
    assert reports.find_best_epoch(history) == expected


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("validated", [True, False])
def test_plot_history_writes_three_pictures_and_nothing_else(tmp_path, epochs, validated):
    folder = tmp_path / "run" / "figures"
    paths = reports.plot_history(make_history(epochs, validated=validated), folder)
    assert paths == [folder / "loss.png", folder / "accuracy.png", folder / "dice.png"]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        picture = read_png(path)
        assert (picture == 255).all(axis=-1).mean() > 0.5  # paper
        assert (picture.min(axis=-1) < 100).sum() > 500  # ink


def test_plot_history_draws_each_class_in_its_colour(tmp_path):
    history = make_history(12)
    both = read_png(reports.plot_history(history, tmp_path)[2])
    vermilion = "#E0480A"
    assert not find_colour(both, vermilion).any()
    for row in history:
        row |= {f"dice_{i}": 0.2 for i in range(3)} | {f"val_dice_{i}": 0.1 + 0.01 * i for i in range(3)}
    assert reports.PALETTE[5] == vermilion
    assert find_colour(read_png(reports.plot_history(history, tmp_path)[2]), vermilion).any()


def test_plot_history_leaves_gaps_and_survives_missing_values(tmp_path):
    history = make_history(9)
    whole = read_png(reports.plot_history(history, tmp_path / "whole")[0])
    for i, value in ((3, NAN), (4, float("inf")), (7, NAN)):
        history[i]["loss"] = history[i]["val_loss"] = value
    del history[5]["accuracy"]
    for row in history:
        row["dice_rectum"] = row["val_dice_rectum"] = NAN
    gaps = read_png(reports.plot_history(history, tmp_path / "gaps")[0])
    blue = "#0072B2"
    assert 0 < find_colour(gaps, blue).sum() < find_colour(whole, blue).sum()


def test_plot_history_without_any_finite_value(tmp_path):
    row = {"epoch": 1, "loss": NAN, "mean_dice": NAN, "dice_bladder": NAN}
    for path in reports.plot_history([row], tmp_path):
        assert read_png(path).std() > 0


def test_plot_history_follows_the_history(tmp_path):
    history = make_history(5)
    before = [path.read_bytes() for path in reports.plot_history(history, tmp_path)]
    assert [path.read_bytes() for path in reports.plot_history(history, tmp_path)] == before
    after = [path.read_bytes() for path in reports.plot_history(make_history(6), tmp_path)]
    assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("history", [[], [{"loss": 1.0}]])
def test_plot_history_refuses_rows_without_epochs(tmp_path, history):
    with pytest.raises(ValueError, match=rf"Expected `history` .*Received: {len(history)} rows"):
        reports.plot_history(history, tmp_path)
    assert not list(tmp_path.iterdir())


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
    # A perfect prediction leaves the error colours to the legend: one swatch each.
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

    monkeypatch.setattr(reports.Figure, "savefig", fail)
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


def test_palette_stands_out_from_grey():
    colours = np.array([to_rgb(colour) for colour in reports.PALETTE])
    assert len({tuple(colour) for colour in colours}) == len(colours) >= 7
    assert np.ptp(colours, axis=1).min() > 0.3  # none is near grey
    assert colours.max(axis=1).min() > 0.6  # none is lost in the dark
