"""Reads the table of `--cases`, which says which files make a case: image or image_0, image_1, ..., label, subject, split, case."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.data.dicom_folders import stem_of_image
from modules.data.documents import shorten
from modules.data.files import SUFFIXES, suffix_of
from modules.data.folder_layouts import Found, Pair
from modules.data.layout_names import find_split
from modules.data.series import is_dicom
from modules.data.tables import read_table

_COLUMNS = "image (or image_0, image_1, ...) and label, and if known subject, split and case"


def read_case_table(path: Path, root: Path) -> Found:
    """Reads the pairs that a table lists.

    Args:
        path: The table. Its paths are relative to its own folder.
        root: A folder that paths are relative to where the table's own folder does not have them.

    Raises:
        FileNotFoundError, ValueError: If the table, a row or a file is wrong, naming the row.
    """
    header, rows = read_table(path)
    names = [name.lower() for name in header]
    images = [place for place, name in enumerate(names) if re.fullmatch(r"image(_.+)?", name)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not images or "label" not in names or ("image" in names and len(images) > 1):
        received = f"{repeated[0]!r} twice" if repeated else shorten(header)
        raise ValueError(f"Expected the columns {_COLUMNS}, in {path}. Received: {received}. Name them in its first line.")
    images.sort(key=lambda place: (not names[place][6:].isdigit(), int(names[place][6:]) if names[place][6:].isdigit() else 0, place))
    # What stands behind `image_` names the channel, as the user writes it.
    channels = tuple(header[place][6:] for place in images) if len(images) > 1 or "image" not in names else ()
    found = Found(layout=f"table {path}", tables=(path,))
    for number, row in enumerate(rows, 2):
        cells = dict(zip(names, row, strict=False))
        where = f"row {number} of {path}"
        files = [_resolve(cells.get(names[place], ""), path, root, where, names[place]) for place in images]
        name = cells.get("case") or stem_of_image(files[0]).removesuffix("_0000" if len(files) > 1 else "")
        if not cells.get("label"):
            found.leave_out("row without a label", [f"{name} (row {number})"])
            continue
        if Path(name).name != name:
            raise ValueError(f"Expected a case's name without folders in {where}. Received: {name!r}. Correct it.")
        label = _resolve(cells["label"], path, root, where, "label")
        split = _read_split(cells, where)
        folder = files[0].parent.parts[-1:]
        found.pairs.append(Pair(name, tuple(files), label, channels, folder, split, cells.get("subject", "")))
    _check_rows(found, path, header)
    return found


def _resolve(text: str, table: Path, root: Path, where: str, column: str) -> Path:
    """Finds the file that a cell names; raises FileNotFoundError or ValueError, naming the row, where it is none."""
    if not text:
        raise ValueError(f"Expected a file for `{column}` in {where}. Received: none. Fill it in, or remove the row.")
    places = [folder / Path(text).expanduser() for folder in dict.fromkeys((table.parent, root))]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        remedy = "Paths are relative to the table." + (" Write / in place of \\." if "\\" in text else "")
        raise FileNotFoundError(f"Expected the {column} {places[0]}, as {where} says. Received: no such file. {remedy}")
    if found.is_file() and not suffix_of(found) and not is_dicom(found):
        raise ValueError(
            f"Expected for `{column}` a file ending in {', '.join(SUFFIXES)}, or DICOM, in {where}. Received: {found}. Convert it."
        )
    return found


def _read_split(cells: Mapping[str, str], where: str) -> str | None:
    text = cells.get("split", "")
    split = find_split(text)
    if text and split is None:
        raise ValueError(f"Expected `split` as train, validate or test in {where}. Received: {text!r}. Correct it.")
    return split


def _check_rows(found: Found, path: Path, header: Sequence[str]) -> None:
    """Raises ValueError for columns that only some rows fill, and for one image in two rows."""
    for what, filled in (("subject", [bool(pair.subject) for pair in found.pairs]), ("split", [bool(pair.split) for pair in found.pairs])):
        if any(filled) and not all(filled):
            name = found.pairs[filled.index(False)].name
            raise ValueError(f"Expected `{what}` in every row of {path}, or in none. Received: none for {name}. Fill it in.")
    known: set[Path] = set()
    for pair in found.pairs:
        for image in pair.images:
            if image in known:
                raise ValueError(f"Expected each image once in {path}. Received: {image} again for {pair.name}. Remove one.")
            known.add(image)
    unread = [name for name in header if not re.fullmatch(r"(?i)image(_.+)?|label|subject|split|case", name)]
    found.leave_out("column that is not read", unread)
