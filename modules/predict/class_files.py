"""The classes of a label map with their names and colours, in the forms that other programs read.

A label map holds values; viewers need to know what they mean. The colours are those of our pictures.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.colours import list_colours
from modules.data.files import replace_file
from modules.data.regions import list_parts, name_shown, to_shown
from modules.predict.bundle import ModelBundle

log = logging.getLogger("mri")

ITK_SNAP_FILE, SLICER_FILE = "itksnap_labels.txt", "slicer_labels.ctbl"
_ITK_SNAP_HEAD = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# IDX: the value in a label map; R, G, B: 0 to 255; A: opacity; VIS, MSH: shown in slices and as a mesh
################################################
"""


class ClassRow(NamedTuple):
    """A class of a label map.

    Attributes:
        value: Its value in the file.
        name: Its name.
        colour: Its colour, as `#RRGGBB`.
        parts: The indices in a label map of the program that it is the union of.
    """

    value: int
    name: str
    colour: str
    parts: tuple[int, ...]

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The parts of red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


def list_segments(bundle: ModelBundle) -> list[ClassRow]:
    """Lists the classes of a model without the background. Regions may share voxels; the value is what each is painted with."""
    painted = [region.painted for region in bundle.regions] or range(1, len(bundle.class_names))
    values = [bundle.label_rule.output_values[index] for index in painted]
    parts = list_parts(bundle.class_names, bundle.regions)
    return [ClassRow(*row) for row in zip(values, bundle.class_names[1:], list_colours(len(bundle.class_names)), parts, strict=True)]


def list_values(bundle: ModelBundle) -> list[ClassRow]:
    """Lists the values that a label map of a model may hold without the background, as a picture names and colours them."""
    segments = list_segments(bundle)
    indices = [region.painted for region in bundle.regions] or list(range(1, len(bundle.class_names)))
    names, rows = name_shown(bundle.class_names, bundle.regions), {}
    for index, number in zip(indices, to_shown(np.array(indices, np.uint8), bundle.regions).tolist(), strict=True):
        value = bundle.label_rule.output_values[index]
        rows[value] = ClassRow(value, names[number], segments[number - 1].colour, (index,))
    return [rows[value] for value in sorted(rows)]


def to_note(rows: Sequence[ClassRow]) -> str:
    """Writes the classes as JSON text for the header of a label map."""
    return json.dumps({"classes": [{"value": row.value, "name": row.name, "colour": row.colour} for row in rows]})


def write_class_files(folder: Path, rows: Sequence[ClassRow]) -> None:
    """Writes a label description of ITK-SNAP and a colour table of 3D Slicer. A warning says where other classes stood there before."""
    snap, slicer = [_ITK_SNAP_HEAD], ["# Color table file of 3D Slicer: value, name, red, green, blue, opacity\n", "0 background 0 0 0 0\n"]
    snap.append('    0     0    0    0        0  0  0    "background"\n')
    for row in rows:
        red, green, blue = row.rgb
        name = " ".join(row.name.replace('"', "'").split())
        snap.append(f'{row.value:>5} {red:>5} {green:>4} {blue:>4}        1  1  1    "{name}"\n')
        # Slicer reads a name up to the next space, and shows `_` as a space.
        slicer.append(f"{row.value} {name.replace(' ', '_')} {red} {green} {blue} 255\n")
    for name, lines in ((ITK_SNAP_FILE, snap), (SLICER_FILE, slicer)):
        path, text = folder / name, "".join(lines)
        before = path.read_bytes() if path.is_file() else None
        if before == text.encode():
            continue
        if before is not None:
            log.warning("%s described other classes and is replaced: it is for the label maps of one model", path)
        with replace_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
