"""A viewer of one case within a page: slices to scroll through, with masks that fade.

The slices of a plane lie below each other in one picture, a JPEG of the image and a PNG of each mask. The page shows one place of it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from modules.data.colours import list_colours
from modules.data.files import replace_file
from modules.reports.checks import check_classes, check_image, check_spacing
from modules.reports.page import Album, Html, element, to_url
from modules.reports.painting import find_windows, resize_classes, window_image
from modules.reports.volumes import Scan, prepare_scan

# A case then takes about 1 MB. Browsers and JPEG end at 65,535 rows.
MOST_SLICES, MOST_PIXELS = 48, 208
_JPEG_QUALITY = 85
_EDGES = ("left", "right", "top", "bottom")
# Height of a plane on the page. A single slice would otherwise be as wide as the page, and higher than a screen.
_MOST_REM = 36


def cut_viewer(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    title: str,
    spacing_mm: Sequence[float] | None = None,
    affine: np.ndarray | None = None,
) -> dict[str, Any]:
    """Cuts a case into the pictures of a viewer. Empty margins are cut off, and large scans lose slices and pixels.

    Args:
        image: Intensities (*S) or (*S, C), see `modules.reports.draw_comparison`.
        maps: Integer class maps (*S) by name, "prediction" and maybe "truth".
        class_names: K names, background first.
        title: What the viewer shows.
        spacing_mm: Size of a voxel along each axis; by default the affine's.
        affine: (4, 4), voxel indices of a volume to millimetres in RAS+.

    Returns:
        `title`, `legend` with colour and name of each class that is there, and `planes`. Of each plane `name`, `width` over height,
        `letters` at its four edges, `numbers` of its slices from 1, `middle`, the place to show first, and `layers`, URLs by name.

    Raises:
        ValueError: Shapes, types, class values, `spacing_mm` or `affine` do not fit one another.
    """
    colours = list_colours(len(class_names))
    present = np.unique(np.concatenate([np.unique(classes) for classes in maps.values()])) if maps else []
    legend = [[colours[value - 1], class_names[value]] for value in present if value > 0]
    if next(iter(maps.values())).ndim == 2:
        planes = [_cut_slice(image, maps, class_names, spacing_mm)]
    else:
        scan = prepare_scan(image, dict(maps), class_names, spacing_mm, affine)
        planes = [_cut_plane(scan, name, axis, len(class_names)) for name, axis in scan.view.planes.items()]
    return {"title": title, "legend": legend, "planes": planes}


def write_viewer(path: Path, viewer: Mapping[str, Any]) -> Path:
    """Writes what `cut_viewer` returns, for a page that is made later; returns the path."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(viewer), encoding="utf-8")
    return path


def show_viewer(viewer: Mapping[str, Any], album: Album) -> Html:
    """Shows a viewer in a page, or says that the page is full."""
    if not album.take(sum(len(url) for plane in viewer["planes"] for url in plane["layers"].values())):
        return element("p", f"{viewer['title']}: this page has no room for its slices.")
    truth = any("truth" in plane["layers"] for plane in viewer["planes"])
    controls = [
        _make_slider("opacity", "Opacity of the masks", 45, 0, 100),
        _make_slider("brightness", "Brightness", 100, 20, 300),
        _make_slider("contrast", "Contrast", 100, 20, 300),
        _make_box("prediction", "prediction", checked=True),
        _make_box("truth", "truth", checked=False) if truth else None,
    ]
    legend = [element("li", element("span", class_="swatch", style=f"background:{colour}"), name) for colour, name in viewer["legend"]]
    return element(
        "figure",
        element("figcaption", viewer["title"]),
        element("div", *(_show_plane(plane, viewer["title"]) for plane in viewer["planes"]), class_="planes"),
        element("div", *controls, class_="controls"),
        element("ul", *legend, class_="legend"),
        class_="viewer",
    )


def _show_plane(plane: Mapping[str, Any], title: str) -> Html:
    numbers, middle = plane["numbers"], plane["middle"]
    place = f"{100 * middle / (len(numbers) - 1):.3f}%" if len(numbers) > 1 else "0"
    layers = []
    for name, url in plane["layers"].items():
        style = f"background-image:url({url});background-size:100% {100 * len(numbers)}%;background-position:0 {place}"
        kind = "layer image" if name == "image" else f"layer mask {name}"
        layers.append(element("div", class_=kind, style=style))
    letters = [element("span", letter, class_=f"letter at-{edge}") for edge, letter in zip(_EDGES, plane["letters"] or (), strict=False)]
    slider = element(
        "input",
        type="range",
        class_="slider",
        min=0,
        max=len(numbers) - 1,
        value=middle,
        data_numbers=" ".join(map(str, numbers)),
        aria_label=f"Slice of the plane {plane['name']}",
    )
    stack = element(
        "div",
        *layers,
        *letters,
        class_="stack",
        style=f"aspect-ratio:{plane['width']:.4f};max-width:{_MOST_REM * plane['width']:.2f}rem",
        role="img",
        aria_label=f"{title}, {plane['name']}, with the prediction in colour",
    )
    return element("div", stack, slider, element("small", f"{plane['name']}, slice ", element("output", numbers[middle])), class_="plane")


def _make_slider(name: str, label: str, value: int, low: int, high: int) -> Html:
    return element("label", f"{label} ", element("input", type="range", data_control=name, min=low, max=high, value=value))


def _make_box(name: str, label: str, *, checked: bool) -> Html:
    return element("label", element("input", type="checkbox", data_control=name, checked=checked), f" {label}")


def _cut_plane(scan: Scan, name: str, axis: int, num_classes: int) -> dict[str, Any]:
    """Cuts the slices of a volume across one axis."""
    inside = scan.box[axis]
    number = min(MOST_SLICES, inside.stop - inside.start)
    indices = [inside.start + round(place) for place in np.linspace(0, inside.stop - inside.start - 1, number)]
    rows, columns = _fit(scan.cut(scan.image, axis, indices[0], scan.box).shape[:2])
    pictures: dict[str, list[np.ndarray]] = {key: [] for key in ("image", *scan.maps)}
    for index in indices:
        pixels = scan.cut(scan.image, axis, index, scan.box).astype(np.float32)
        pictures["image"].append(window_image(pixels, scan.windows, (rows, columns))[0])
        for key, classes in scan.maps.items():
            pictures[key].append(_paint(scan.cut(classes, axis, index, scan.box), (rows, columns), num_classes))
    counts = scan.counts["truth" if "truth" in scan.maps else "prediction"][axis][indices, 1:].sum(axis=1)
    height, width = scan.measure(axis, scan.box)
    return {
        "name": name,
        "width": width / height,
        "letters": scan.view.letters(axis),
        "numbers": [index + 1 for index in indices],
        "middle": int(counts.argmax()) if counts.any() else number // 2,
        "layers": {key: _encode(parts) for key, parts in pictures.items()},
    }


def _cut_slice(
    image: np.ndarray, maps: Mapping[str, np.ndarray], class_names: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, Any]:
    """Takes a slice as it is stored."""
    image = check_image(image, ("rows", "columns")).astype(np.float32)
    shape = image.shape[:2]
    size = _fit(shape)
    spacing = check_spacing(spacing_mm, ("row", "column")) if spacing_mm else (1.0, 1.0)
    pictures = {"image": [window_image(image, find_windows(image), size)[0]]}
    for name, classes in maps.items():
        pictures[name] = [_paint(check_classes(name, classes, shape, class_names), size, len(class_names))]
    return {
        "name": "as stored",
        "width": shape[1] * spacing[1] / (shape[0] * spacing[0]),
        "letters": None,
        "numbers": [1],
        "middle": 0,
        "layers": {key: _encode(parts) for key, parts in pictures.items()},
    }


def _fit(shape: Sequence[int]) -> tuple[int, int]:
    """Returns rows and columns of a picture with at most `MOST_PIXELS` along each side."""
    rows, columns = (min(side, MOST_PIXELS) for side in shape)
    return rows, columns


def _paint(classes: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Paints a class map (rows, columns) as colours with opacity, (*size, 4) uint8; the background is clear."""
    table = np.array([(0, 0, 0, 0), *((*to_rgb(colour), 1) for colour in list_colours(num_classes))])
    return np.rint(255 * table[resize_classes(classes.astype(np.uint16), size)]).astype(np.uint8)


def _encode(parts: Sequence[np.ndarray]) -> str:
    """Encodes slices below each other as one picture: masks as PNG, images as JPEG."""
    pixels = np.concatenate(parts)
    if pixels.shape[-1] == 4:
        return to_url("image/png", cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    pixels = np.rint(pixels).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return to_url("image/jpeg", cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)[1].tobytes())
