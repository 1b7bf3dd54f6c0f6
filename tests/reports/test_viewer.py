"""Viewers show each slice at its place, as it lies in the patient, with masks that lie on it."""

import base64
import json

import cv2
import numpy as np
from page_helpers import Page

from modules.data.colours import PALETTE
from modules.reports.page import Album, write_page
from modules.reports.viewer import MOST_PIXELS, MOST_SLICES, cut_viewer, show_viewer, write_viewer

NAMES = ("background", "one", "two")


def _decode(url):
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_UNCHANGED)


def _cut(volume, **options):
    maps = {"prediction": volume["prediction"], "truth": volume["label"]}
    return cut_viewer(volume["image"], maps, NAMES, title="case", affine=volume["affine"], **options)


def test_the_masks_of_a_plane_lie_as_in_the_patient(volume):
    viewer = _cut(volume)
    assert [plane["name"] for plane in viewer["planes"]] == ["axial", "coronal", "sagittal"]
    axial = viewer["planes"][0]
    assert axial["letters"] == ("R", "L", "A", "P")
    assert axial["numbers"] == list(range(1, 11))
    # 12 voxels of 1 mm across, 16 of 1.5 mm down.
    assert axial["width"] == 12 / 24
    truth = _decode(axial["layers"]["truth"])
    assert truth.shape == (10 * 16, 12, 4)
    # Slice by slice from the feet; anterior is up and the patient's right is on the left.
    expected = volume["label"].transpose(2, 1, 0)[:, ::-1, ::-1].reshape(160, 12)
    assert (truth[..., 3] > 0).tolist() == (expected > 0).tolist()
    colours = {tuple(int(value) for value in truth[expected == index][0][2::-1]) for index in (1, 2)}
    assert colours == {tuple(bytes.fromhex(colour[1:])) for colour in PALETTE[:2]}
    assert viewer["legend"] == [[PALETTE[0], "one"], [PALETTE[1], "two"]]
    prediction = _decode(axial["layers"]["prediction"])
    assert (prediction[..., 3] > 0).sum() == (volume["prediction"] > 0).sum()
    assert not np.array_equal(prediction, truth)
    # The intensities rise to the patient's right, front and head.
    image = _decode(axial["layers"]["image"]).astype(int)[..., 0].reshape(10, 16, 12)
    assert image[5, :, 0].mean() > image[5, :, -1].mean()
    assert image[0].mean() < image[9].mean()
    assert image[5, 0].mean() > image[5, -1].mean()


def test_large_scans_lose_slices_and_pixels_but_no_structure():
    shape = (MOST_PIXELS + 60, 60, 20)
    label = np.zeros(shape, np.uint8)
    label[130, 30, 10] = 1
    image = np.ones(shape, np.float32)
    viewer = cut_viewer(image, {"prediction": label}, NAMES[:2], title="t", affine=np.eye(4))
    axial, coronal, sagittal = viewer["planes"]
    assert len(coronal["numbers"]) == len(sagittal["numbers"]) == MOST_SLICES
    assert (coronal["numbers"][0], coronal["numbers"][-1]) == (1, 60)
    assert _decode(axial["layers"]["prediction"]).shape == (20 * 60, MOST_PIXELS, 4)
    assert (_decode(axial["layers"]["prediction"])[..., 3] > 0).any()
    assert axial["numbers"][axial["middle"]] == 11


def test_a_slice_is_shown_as_it_is_stored(scan):
    image, label, prediction = scan
    viewer = cut_viewer(image, {"prediction": prediction, "truth": label}, ("b", "1", "2", "3"), title="s", spacing_mm=(2.0, 1.0))
    (plane,) = viewer["planes"]
    assert (plane["numbers"], plane["letters"], plane["width"]) == ([1], None, 32 / 96)
    assert ((_decode(plane["layers"]["truth"])[..., 3] > 0) == (label > 0)).all()


def test_a_viewer_can_be_used_by_keyboard_and_is_named(volume, tmp_path):
    path = write_viewer(tmp_path / "v.json", _cut(volume) | {"title": "<b>"})
    shown = show_viewer(json.loads(path.read_text()), Album())
    page = Page(write_page(tmp_path / "report.html", "t", [("Viewer", shown)]))
    assert page.list_loads() == []
    inputs = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [attributes["type"] for attributes in inputs] == ["range"] * 6 + ["checkbox"] * 2
    assert [attributes["aria-label"] for attributes in inputs[:3]] == [f"Slice of the plane {n}" for n in ("axial", "coronal", "sagittal")]
    assert [attributes["max"] for attributes in inputs[:3]] == ["9", "15", "11"]
    stacks = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert [attributes["style"] for attributes in stacks] == [
        "aspect-ratio:0.5000;max-width:18.00rem",
        "aspect-ratio:0.4000;max-width:14.40rem",
        "aspect-ratio:0.8000;max-width:28.80rem",
    ]
    assert "<b>" in page.text
    assert page.text.count("axial, slice ") == 1
    assert show_viewer(json.loads(path.read_text()), Album(100)) == "<p>&lt;b&gt;: this page has no room for its slices.</p>"
