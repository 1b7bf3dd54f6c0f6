"""Pictures of volumes: sides, scales, slices and words.

`modules/reports/volumes.py` is tested here; tests/test_volumes.py tests the commands.
"""

import math
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from picture_helpers import CLASSES, NAN, find_colour, read_png, store

from modules import reports
from modules.reports.views import find_view
from modules.reports.volumes import prepare_scan


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
