"""Reports: the numbers behind the pictures, and the contents that their pixels show."""

import itertools
import math
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from modules import reports
from modules.reports.painting import dash_contours
from modules.reports.views import choose_slice, count_voxels, find_view, spread_slices
from modules.reports.volumes import prepare_scan

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
    return picture[..., ::-1].astype(np.int16)


def find_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Mask (rows, columns) of the pixels of exactly this colour."""
    return (np.abs(picture - np.rint(255 * np.array(to_rgb(colour))).astype(np.int16)) <= 1).all(axis=-1)


def find_panel(picture: np.ndarray) -> tuple[slice, slice]:
    """Finds rows and columns of the last panel, which shows a constant image in mid-grey. Text has this grey in single pixels only."""
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
    # If label and prediction change places, missed voxels become false ones, and the other way round.
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


def test_palette_stands_out_from_grey():
    colours = np.array([to_rgb(colour) for colour in reports.PALETTE])
    assert len({tuple(colour) for colour in colours}) == len(colours) >= 7
    assert np.ptp(colours, axis=1).min() > 0.3  # none is near grey
    assert colours.max(axis=1).min() > 0.6  # none is lost in the dark


# ------------------------------------------------------------------------------------------------------------------ volumes


@dataclass
class Drawn:
    """Records the last pages: texts with their places, panels with their boxes, in pixels from the lower left corner."""

    texts: list[tuple[str, float, float]]
    panels: list[tuple[int, int, int, int]]  # x, y, columns, rows

    @property
    def words(self) -> list[str]:
        return [text for text, _, _ in self.texts]

    def letters_in(self, panel: int) -> dict[str, tuple[float, float]]:
        x, y, columns, rows = self.panels[panel]
        return {
            text: (left - x, up - y)
            for text, left, up in self.texts
            if text in "LRAPSI" and 0 <= left - x <= columns and 0 <= up - y <= rows
        }

    def clear(self) -> None:
        self.texts.clear()
        self.panels.clear()


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    page = Drawn([], [])
    write, draw = Figure.text, Figure.figimage

    def record_text(self, x, y, text, **style):
        if (x, y) != (0, 0) and text:  # at the origin texts are only measured
            page.texts.append((text, x, y))
        return write(self, x, y, text, **style)

    def record_panel(self, pixels, x, y, **style):
        page.panels.append((x, y, pixels.shape[1], pixels.shape[0]))
        return draw(self, pixels, x, y, **style)

    monkeypatch.setattr(Figure, "text", record_text)
    monkeypatch.setattr(Figure, "figimage", record_panel)
    return page


@pytest.fixture
def volume() -> dict:
    """Makes a volume (12, 16, 10) along RAS+ without symmetry, with two classes, a prediction moved to the left, and its affine."""
    x, y, z = np.mgrid[:12, :16, :10]
    image = (50 + 5 * x + 3 * y + 7 * z).astype(np.float32)
    label = np.zeros((12, 16, 10), np.uint8)
    label[3:9, 4:11, 2:8], label[7:9, 9:11, 6:8] = 1, 2
    return {
        "image": image,
        "label": label,
        "prediction": np.roll(label, -1, axis=0),
        "affine": nib.affines.from_matvec(np.diag([1, 1.5, 3])),
    }


def store(volume: dict, codes: str) -> dict:
    """Stores the volume with its axes in another order, as nibabel does."""
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    stored = {name: nib.Nifti1Image(volume[name], volume["affine"]).as_reoriented(turn) for name in volume if name != "affine"}
    assert nib.aff2axcodes(stored["image"].affine) == tuple(codes)
    return {name: np.asarray(one.dataobj) for name, one in stored.items()} | {"affine": stored["image"].affine}


ORIENTATIONS = ["".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_turned_to_the_same_volume(volume, codes):
    stored = store(volume, codes)
    view = find_view(None, stored["affine"])
    turned = view.turn(stored["image"])
    np.testing.assert_array_equal(turned, volume["image"])
    assert np.shares_memory(turned, stored["image"])
    assert view.spacing_mm == pytest.approx((1, 1.5, 3))
    assert view.tilt_degrees == pytest.approx(0, abs=1e-5)


def test_a_volume_looks_the_same_however_it_is_stored(tmp_path, volume):
    def draw(stored: dict, name: str, **options) -> list[bytes]:
        maps = {"label": stored["label"], "prediction": stored["prediction"]}
        options |= {"class_names": CLASSES, "title": "case", "affine": stored["affine"]}
        image, prediction = stored["image"], stored["prediction"]
        return [
            reports.draw_comparison(tmp_path / f"{name}_c.png", image, **maps, **options).read_bytes(),
            reports.draw_overlay(tmp_path / f"{name}_o.png", image, prediction, **options).read_bytes(),
            reports.draw_montage(tmp_path / f"{name}_m.png", image, **maps, **options).read_bytes(),
        ]

    expected = draw(volume, "RAS")
    assert draw(store(volume, "LPS"), "LPS") == expected
    stored = store(volume, "PIR")
    assert draw(stored, "PIR", spacing_mm=nib.affines.voxel_sizes(stored["affine"])) == expected


@pytest.mark.parametrize(
    ("affine", "voxel"),
    [
        (np.diag([2.0, 2, 3, 1]), (8, 10, 7)),
        (np.diag([-2.0, -2, 3, 1]), (1, 1, 7)),
        # An axial stack from a scanner: rows go down, columns to the patient's left, and x falls along the last axis.
        (np.array([[0, 0, -2.0, 40], [0, -2, 0, 9], [3, 0, 0, -5], [0, 0, 0, 1]]), (8, 1, 1)),
        # A coronal stack, tilted by ten degrees about the axis from left to right.
        (np.array([[2.0, 0, 0, 0], [0, 0.35, 2.95, 0], [0, -1.97, 0.52, 0], [0, 0, 0, 1]]), (8, 1, 7)),
    ],
    ids=["RAS", "LPS", "SPL", "RIA tilted"],
)
def test_letters_name_the_patients_sides(tmp_path, drawn, affine, voxel):
    # The spot lies on the right, in front and above: all its world coordinates in RAS+ are above the centre's.
    shape = tuple(10 if index in (1, 8) else 12 if index == 10 else 9 for index in voxel)
    prediction = np.zeros(shape, np.uint8)
    prediction[voxel] = 1
    place, centre = (nib.affines.apply_affine(affine, index) for index in (voxel, (np.array(shape) - 1) / 2))
    assert (place > centre).all()
    path = reports.draw_overlay(tmp_path / "case.png", np.full(shape, 7.0), prediction, CLASSES, title="", affine=affine)
    picture = read_png(path)
    for panel, across, up in ((3, "RL", "AP"), (4, "RL", "SI"), (5, "AP", "SI")):
        x, y, columns, rows = drawn.panels[panel]
        pixels = picture[len(picture) - y - rows : len(picture) - y, x : x + columns]
        row, column = np.argwhere(find_colour(pixels, reports.PALETTE[0])).mean(axis=0)
        letters = drawn.letters_in(panel)
        assert set(letters) == set(across + up)
        assert letters[across[0]][0] < letters[across[1]][0]  # right or anterior on the left
        assert letters[up[0]][1] > letters[up[1]][1]  # anterior or superior above
        nearest = {name: math.dist((column, rows - row), at) for name, at in letters.items()}
        assert nearest[across[0]] < nearest[across[1]]
        assert nearest[up[0]] < nearest[up[1]]


def test_footer_tells_a_tilt(tmp_path, drawn, volume):
    turn = math.radians(20)
    tilted = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = nib.affines.from_matvec(tilted @ np.diag([1, 1.5, 3]))
    assert find_view(None, affine).spacing_mm == pytest.approx((1, 1.5, 3))
    reports.draw_overlay(tmp_path / "case.png", volume["image"], volume["label"], CLASSES, title="case", affine=affine)
    assert any("tilted by up to 20\u00b0" in text for text in drawn.words)


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((32, 16, 32), (0.94, 1.5, 0.94)), ((40, 40, 8), (1, 1, 3)), ((8, 40, 36), None), ((30, 90, 60), (1, 1, 1))],
)
def test_panels_are_true_to_the_spacing(tmp_path, drawn, shape, spacing_mm):
    affine = None if spacing_mm is None else np.diag([*spacing_mm, 1.0])
    blank, image = np.zeros(shape, np.uint8), np.full(shape, 7, np.int16)
    x, y, z = np.multiply(shape, spacing_mm or (1, 1, 1))
    by_plane = [(x, y), (x, z), (y, z)] if affine is not None else [(z, y), (z, x), (y, x)]  # columns, rows
    for columns, draw in ((4, reports.draw_comparison), (3, reports.draw_overlay)):
        drawn.clear()
        maps = [blank, blank] if columns == 4 else [blank]
        path = draw(tmp_path / "case.png", image, *maps, CLASSES, title="case", affine=affine)
        sizes = [panel[2:] for panel in drawn.panels]
        assert len(sizes) == (12 if columns == 4 else 6)
        names = [text for text in drawn.words if "slice " in text]
        scales, order = [], {"axial": 0, "coronal": 1, "sagittal": 2, "axis 0": 0, "axis 1": 1, "axis 2": 2}
        for (width, height), name in zip(sizes, names, strict=True):
            plane = order[name.split(": ")[1].split(",")[0]]
            scales += [width / by_plane[plane][0], height / by_plane[plane][1]]
        # All planes have one scale in both directions, to half a pixel.
        assert np.ptp(scales) * min(map(min, by_plane)) <= 1.01
        assert 1200 <= read_png(path).shape[1] <= 2000


def test_scale_bar_is_as_long_as_it_says(tmp_path, drawn):
    image, blank = np.full((50, 40, 30), 7.0), np.zeros((50, 40, 30), np.uint8)
    draw = {"image": image, "label": blank, "prediction": blank, "class_names": CLASSES, "title": "case"}
    picture = read_png(reports.draw_comparison(tmp_path / "case.png", **draw, affine=np.diag([4.0, 4, 4, 1])))
    assert drawn.words.count("5 cm") == 3
    x, y, columns, _ = drawn.panels[0]
    bar = (picture[len(picture) - y - 11, x : x + columns] == 255).all(axis=-1)
    assert bar.sum() * 200 / columns == pytest.approx(50, abs=1.5)
    drawn.clear()
    reports.draw_comparison(tmp_path / "case.png", **draw)
    assert not [text for text in drawn.words if text.endswith((" cm", " mm"))]


def test_volume_comparison_says_what_it_shows(tmp_path, drawn, volume):
    scores = {"bladder": 0.8125, "rectum": 0.5, "prostate": NAN}
    draw = {**volume, "class_names": CLASSES, "title": "case_1 (worst test case)", "scores": scores}
    picture = read_png(reports.draw_comparison(tmp_path / "case.png", **draw))
    difference = reports.difference_map(volume["label"], volume["prediction"])
    counts = np.bincount(difference.ravel())[1:].tolist()
    assert counts == [42, 42, 4]
    expected = ["case_1 (worst test case)", "bladder: Dice 0.812", "rectum: Dice 0.500", "prostate: absent"]
    expected += ["missed: 42 voxels (0.19 ml)", "false positive: 42 voxels (0.19 ml)", "wrong class: 4 voxels (0.02 ml)"]
    # Both classes weigh the same. Their centres are x 5.4 and 7.5, y 6.9 and 9.5, z 4.4 and 6.5. Halfway, counted from 0, is 6, 8 and 5.
    # But y 8 holds none of the small class, and y 9 holds half of it.
    for name in ("image", "truth", "prediction", "difference"):
        expected += [f"{name}: axial, slice 6 of 10", f"{name}: coronal, slice 10 of 16", f"{name}: sagittal, slice 7 of 12"]
    assert set(expected) <= set(drawn.words)
    assert any("Patient's right on the left" in text for text in drawn.words)
    for colour in (*reports.PALETTE[:2], *reports.DIFFERENCE_COLOURS):
        assert find_colour(picture, colour).sum() > 100, colour
    assert (picture[[0, 1, -2, -1]] == 255).all()
    assert (picture[:, [0, 1, -2, -1]] == 255).all()


def test_without_an_affine_no_side_is_named(tmp_path, drawn, volume):
    draw = {key: value for key, value in volume.items() if key != "affine"} | {"class_names": CLASSES, "title": "case"}
    reports.draw_comparison(tmp_path / "case.png", **draw)
    assert "truth: axis 0, slice 7 of 12" in drawn.words
    assert "missed: 42 voxels" in drawn.words
    assert not set(drawn.words) & set("LRAPSI")
    assert any("left and right are not known" in text for text in drawn.words)
    # Rows and columns go as they do in a slice.
    drawn.clear()
    prediction = np.zeros((3, 20, 20), int)
    prediction[:, 2:6, 12:18] = 1
    picture = read_png(reports.draw_overlay(tmp_path / "case.png", np.full((3, 20, 20), 7.0), prediction, CLASSES, title="case"))
    x, y, columns, rows = drawn.panels[1]  # the scan is flat: a row holds one plane
    panel = find_colour(picture[len(picture) - y - rows : len(picture) - y, x : x + columns], reports.PALETTE[0])
    np.testing.assert_allclose(np.argwhere(panel).mean(axis=0) / panel.shape, (4 / 20, 15 / 20), atol=0.01)
    assert "bladder: 72 voxels" in drawn.words


def test_overlay_of_a_volume_lists_millilitres(tmp_path, drawn, volume):
    reports.draw_overlay(tmp_path / "case.png", volume["image"], volume["label"], CLASSES, title="case", affine=np.diag([5.0, 5, 5, 1]))
    assert {"bladder: 30.5 ml", "rectum: 1.00 ml"} <= set(drawn.words)  # 244 and 8 voxels of 0.125 ml
    assert not [text for text in drawn.words if text.startswith("prostate")]


def test_empty_margins_are_cut_off(tmp_path, drawn):
    image, label = np.zeros((100, 100, 100), np.float32), np.zeros((100, 100, 100), np.uint8)
    image[40:60, 40:60, 40:60] = 5
    label[45:50, 45:50, 70] = 1  # outside of the bright cube, and kept
    scan = prepare_scan(image, {"prediction": label}, CLASSES, None, None)
    assert scan.box == (slice(36, 64), slice(36, 64), slice(36, 75))
    reports.draw_overlay(tmp_path / "case.png", image, label, CLASSES, title="case")
    assert "image: axis 2, slice 71 of 100" in drawn.words  # counted in the whole volume
    assert any("Empty margins are cut off" in text for text in drawn.words)


def test_a_scan_is_windowed_as_a_whole_and_not_copied():
    image = np.zeros((120, 130, 140), np.int16)
    image[20:100] = 100 + np.arange(140, dtype=np.int16)  # 100 to 239 along the last axis
    image[50, 50, 50] = 30000
    blank = np.zeros(image.shape, np.uint8)
    tracemalloc.start()
    scan = prepare_scan(image, {"prediction": blank}, CLASSES, None, np.diag([-1, 1, 1, 1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ((low, high),) = scan.windows
    assert (low, high) == (pytest.approx(101, abs=2), pytest.approx(238, abs=2))
    assert peak < 4 * image.size  # bytes: less than one copy as float32
    _, dark = scan.show(2, 5, scan.box, 1.0)
    _, bright = scan.show(2, 135, scan.box, 1.0)
    assert dark.max() < 20
    assert bright.max() > 235


@pytest.mark.parametrize(
    ("foreground", "expected"),
    [
        ([[0], [2], [2], [2], [0], [0]], 2),
        ([[1], [1], [0], [0], [0], [8]], 5),  # the centre, 4.1, lies in a gap
        ([[4], [9], [1], [4], [9]], 1),  # the centre, 2.2, is nearly empty; the nearest of the fullest
        ([[90, 0], [90, 0], [90, 0], [0, 0], [0, 2], [0, 2], [0, 2]], 2),  # halfway between 1 and 5 is a gap
        ([[90, 0], [90, 0], [90, 0], [90, 1], [90, 1]], 3),  # centres 2 and 3.5: the small one weighs as much
        ([[0], [0], [0], [0], [0]], 2),
        ([[7]], 0),
    ],
)
def test_slice_choice_by_hand(foreground, expected):
    counts = np.pad(np.array(foreground), ((0, 0), (1, 0)), constant_values=1000)
    assert choose_slice(counts) == expected


def test_voxels_are_counted_along_each_axis():
    classes = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    for axis, counts in enumerate(count_voxels(classes, 3)):
        expected = [[(np.take(classes, i, axis) == value).sum() for value in range(3)] for i in range(classes.shape[axis])]
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    ("occupied", "number", "expected"),
    [
        (range(2, 8), 3, [3, 5, 7]),
        (range(2, 8), 20, [2, 3, 4, 5, 6, 7]),
        (range(2, 8), 1, [5]),
        ((1, 9), 3, [2, 5, 8]),  # the gap belongs to the extent
        ((), 2, [2, 7]),
    ],
)
def test_slices_are_spread_over_the_foreground(occupied, number, expected):
    counts = np.zeros((10, 3), int)
    counts[:, 0], counts[list(occupied), 2] = 50, 1
    assert spread_slices(counts, number) == expected


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


def test_dashes_lie_on_the_outline():
    classes = np.zeros((40, 40), np.uint8)
    classes[10:30, 8:32] = 1
    classes[10:30, 20:32] = 2
    white = dash_contours(np.zeros((40, 40, 3)), classes).all(axis=-1)
    outline = np.zeros((40, 40), bool)
    outline[[10, 29], 8:32] = outline[10:30, [8, 20, 31]] = True  # the line between touching classes lies on the second
    assert (white <= outline).all()
    assert 0.35 < white.sum() / outline.sum() < 0.65


@pytest.mark.parametrize(("shape", "channels"), [((1, 8, 8), ()), ((200, 10, 5), (3,)), ((1, 1, 1), (2,)), ((9, 1, 9), (1,))])
def test_any_shape_and_channels_of_a_volume(tmp_path, shape, channels):
    image = np.random.default_rng(0).normal(size=(*shape, *channels))
    draw = {"title": "a long title with words " * 12, "affine": np.diag([1.0, 1, 1, 1])}
    picture = read_png(reports.draw_overlay(tmp_path / "c.png", image, np.ones(shape, bool), ("background", "bladder"), **draw))
    assert 1200 <= picture.shape[1] <= 2000
    assert (picture[[0, 1, -2, -1]] == 255).all()
    assert (picture[:, [0, 1, -2, -1]] == 255).all()


def test_the_rank_of_the_map_decides(tmp_path, drawn, scan):
    image, label, prediction = scan
    draw = {"class_names": CLASSES, "title": "case"}
    flat = reports.draw_comparison(tmp_path / "flat.png", image, label, prediction, **draw).read_bytes()
    known = reports.draw_comparison(tmp_path / "known.png", image, label, prediction, **draw, affine=np.eye(4)).read_bytes()
    assert flat == known  # a slice has no use for an affine
    assert len(drawn.panels) == 2 * 4
    with pytest.raises(ValueError, match=r"Expected `prediction` of a slice \(rows, columns\) or a volume .* Received: \(8,\)"):
        reports.draw_overlay(tmp_path / "case.png", image, np.zeros(8, int), **draw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((8, 8, 9), int)}, r"Expected `prediction` of the shape of `image`, \(8, 8, 8\)\. Received: \(8, 8, 9\)"),
        ({"label": np.full((8, 8, 8), 4)}, r"Expected `label` with values from 0 to 3.* Received: 4 to 4"),
        ({"prediction": np.zeros((8, 8, 8))}, r"Expected `prediction` of an integer type\. Received: float64"),
        ({"image": np.zeros((8, 8))}, r"Expected `image` of shape \(x, y, z\) or \(x, y, z, C\)\. Received: \(8, 8\)"),
        ({"image": np.full((8, 8, 8), NAN)}, r"Expected `image` with finite values\. Received: NaN"),
        ({"image": np.full((8, 8, 8), 1j)}, r"Expected `image` of a real type\. Received: complex128"),
        ({"spacing_mm": (1.0, 1.0)}, r"Expected `spacing_mm` as three positive numbers \(x, y, z\)\. Received: \(1\.0, 1\.0\)"),
        ({"affine": np.eye(3)}, r"Expected `affine` of shape \(4, 4\), finite and of full rank\. Received: \[\["),
        ({"affine": np.diag([1, 0, 1, 1])}, r"Expected `affine` of shape \(4, 4\), finite and of full rank"),
        ({"scores": {"liver": 0.5}}, r"Expected `scores` for classes in .*Received: \['liver'\]"),
        ({"plane": "axial"}, r"Expected `plane` in \('axis 0', 'axis 1', 'axis 2'\) without `affine`\. Received: 'axial'"),
        ({"plane": "axis 0", "affine": np.eye(4)}, r"Expected `plane` in \('axial', 'coronal', 'sagittal'\)\. Received: 'axis 0'"),
        ({"count": 0}, r"Expected `count` of 1 or more\. Received: 0"),
    ],
)
def test_volume_pictures_refuse(tmp_path, change, message):
    blank = np.zeros((8, 8, 8), int)
    draw = {"image": np.ones((8, 8, 8)), "label": blank, "prediction": blank, "class_names": CLASSES, "title": "case"} | change
    function = reports.draw_montage if {"plane", "count"} & set(change) else reports.draw_comparison
    with pytest.raises(ValueError, match=message):
        function(tmp_path / "case.png", **draw)
    assert not list(tmp_path.iterdir())
