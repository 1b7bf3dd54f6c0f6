"""The classes of labels that nobody described: names from `--classes`, from a table beside the files, or `class 1`, `class 2`, ..."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modules.data import msd
from modules.data.documents import MOST_NAME, shorten, text, to_line
from modules.data.label_values import LabelValues
from modules.data.regions import IGNORE, MOST_CLASSES, Region
from modules.data.tables import read_table, read_text

_SUFFIXES = (".csv", ".tsv", ".txt", ".label", ".lbl", ".ctbl", "dataset.json")
# Names of files that are tables of classes.
_TABLE = re.compile(
    r"(?i)^(.*[_-])?(labels?|label[_-]?map|classes|class[_-]?names|dseg|segmentation|lut|itk[_-]?snap.*|label[_-]?desc.*)"
    r"\.(csv|tsv|txt|label|lbl|ctbl)$|\.(label|lbl|ctbl)$|^dataset\.json$"
)
_VALUES = ("index", "value", "id", "label", "label_id", "labelid", "label_value", "key", "intensity", "no", "number", "idx", "class_id")
_NAMES = ("name", "label_name", "labelname", "class", "class_name", "structure", "region", "organ", "tissue", "label", "description")
_BACKGROUND = ("background", "clear label", "bg")
_IGNORED = "ignore"
# `1  255 0 0  1  1 1  "liver"` of ITK-SNAP, and `1 liver 255 0 0 255` of FreeSurfer and 3D Slicer.
_SNAP = re.compile(r'^\s*(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+[01]\s+[01]\s+"([^"]+)"\s*$')
_COLOURS = re.compile(r"^\s*(\d+)\s+(\S+)\s+\d+\s+\d+\s+\d+\s+\d+\s*$")
_MOST_NAMED = 3


class Classes(NamedTuple):
    """The classes of a data set.

    Attributes:
        names: Names, the background first.
        values: `{value in a file: class index, part or IGNORE}`.
        origin: Where the names come from, in words.
        regions: What each class consists of, where classes overlap.
        channels: Names of the channels, where a `dataset.json` gives them.
        table: The file that the names come from, or None.
        remarks: Sentences about values and tables that are not used.
    """

    names: tuple[str, ...]
    values: Mapping[int, int]
    origin: str
    regions: tuple[Region, ...] = ()
    channels: tuple[str, ...] = ()
    table: Path | None = None
    remarks: tuple[str, ...] = ()


def is_class_table(classes: Sequence[str]) -> bool:
    """Returns whether the setting `classes` names a file and no classes."""
    return len(classes) == 1 and classes[0].lower().endswith(_SUFFIXES)


def choose_classes(
    labels: Sequence[Path], surveys: Sequence[LabelValues], given: Sequence[str], folders: Sequence[Path], *, tolerant: bool = False
) -> Classes:
    """Chooses the classes of label files.

    Args:
        labels: The label files.
        surveys: What each holds.
        given: The setting `classes`: a table, `value=name` pairs, or names in the order of the values above 0. Empty for none.
        folders: Folders that a table of classes is looked for in where nothing is given.
        tolerant: Whether values without a name are no error here, because `read_case` will refuse them.

    Raises:
        FileNotFoundError, ValueError: If names and values do not fit together.
    """
    found: dict[int, list[Path]] = {}
    for path, survey in zip(labels, surveys, strict=True):
        for value in survey.values:
            found.setdefault(value, []).append(path)
    if not set(found) - {0}:
        raise ValueError(f"Expected labels with values above 0. Received: only background in all {len(labels)}, such as {labels[0]}.")
    if is_class_table(given):
        path = Path(given[0])
        if path.name.lower() == "dataset.json":
            return _take_description(path, found, (), tolerant)
        return _name_found(_read_named(path), found, f"named in {path}", path, tolerant)
    if len(given) == 1 and Path(given[0]).suffix and Path(given[0]).is_file():
        raise ValueError(f"Expected names in `classes`, or a file ending in {', '.join(_SUFFIXES)}. Received: {given[0]}. Save it as one.")
    if given:
        return _name_given(given, found, tolerant)
    table, remarks = _find_table(folders)
    if table is not None and table.suffix.lower() == ".json":
        return _take_description(table, found, remarks, tolerant)
    if table is not None:
        classes = _name_found(_read_named(table), found, f"named in {table}", table, tolerant)
        return classes._replace(remarks=(*remarks, *classes.remarks))
    return _number(found)._replace(remarks=tuple(remarks))


def _number(found: Mapping[int, Sequence[Path]]) -> Classes:
    """Numbers the classes by the values that are there; raises ValueError for values that no label of classes has."""
    values = sorted(set(found) - {0})
    if len(values) > MOST_CLASSES - 1:
        raise ValueError(
            f"Expected at most {MOST_CLASSES - 1} classes. Received: {len(values)} values, such as {values[-1]} in {found[values[-1]][0]}, "
            "as an image has. Leave it out, or give classes that share a name by --classes."
        )
    if len(values) > 1 and 255 in values and (len(values) > 8 or all(value <= 9 or value >= 246 for value in values)):
        other = next(value for value in values if value != 255)
        raise ValueError(
            f"Expected label values of classes. Received: 255 in {found[255][0]} and {other} in {found[other][0]}, {len(values) + 1} "
            "values in all, as masks have that are written in two ways or with soft edges. Write them anew with one value a class, or say "
            f"by --classes what each value means, as in --classes {other}=NAME 255=NAME, or 255=ignore."
        )
    names = ("background", *(f"class {number}" for number in range(1, len(values) + 1)))
    return Classes(names, {value: index for index, value in enumerate([0, *values])}, "from the values; --classes names them")


def _name_given(given: Sequence[str], found: Mapping[int, Sequence[Path]], tolerant: bool) -> Classes:
    """Names the classes as the setting `classes` says."""
    pairs = [re.fullmatch(r"\s*(\d+)\s*=\s*(.+?)\s*", item) for item in given]
    if all(pairs):
        named: dict[int, str] = {}
        for pair in filter(None, pairs):
            if named.setdefault(int(pair[1]), pair[2]) != pair[2]:
                raise ValueError(f"Expected one name a value in `classes`. Received: {pair[1]} twice. Leave one out.")
        return _name_found(named, found, "as --classes says", None, tolerant)
    values = sorted(set(found) - {0})
    names = list(given[1:] if given[0].strip().lower() in _BACKGROUND else given)
    if any(pairs) or len(names) != len(values):
        shown = ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
        raise ValueError(
            f"Expected a name in `classes` for each of the {len(values)} value(s) {shown} of the labels, in their order, or VALUE=NAME for "
            f"each. Received: {len(given)}, {' '.join(given)}. Correct it."
        )
    return _name_found(dict(zip(values, names, strict=True)), found, "as --classes says", None, tolerant)


def _name_found(named: Mapping[int, str], found: Mapping[int, Sequence[Path]], origin: str, table: Path | None, tolerant: bool) -> Classes:
    """Makes the classes of named values. Of a table those that some label has are taken, of `--classes` all.

    Values of one name are one class. Raises ValueError for a value without a name, unless `tolerant`.
    """
    place = str(table) if table else "`classes`"
    for value in () if tolerant else sorted(set(found) - {0} - set(named)):
        files = f"{found[value][0]} ({len(found[value])} file(s))"
        remedy = f"Add it, or {value}={_IGNORED} to leave these voxels out" if table is None else "Add it, or name the classes by --classes"
        raise ValueError(f"Expected a name in {place} for every value of the labels. Received: {value} in {files}. {remedy}.")
    rule = text(MOST_NAME, 1)
    names, values = [named.get(0, "background")], {0: 0}
    for value, name in sorted(named.items()):
        if value == 0 or (table is not None and value not in found):
            continue
        if not rule.holds(name):
            raise ValueError(f"Expected names of {rule.expected} in {place}. Received: {shorten(name)} for {value}. Correct it.")
        if name.lower() == _IGNORED:
            values[value] = IGNORE
        elif name.lower() in _BACKGROUND or name == names[0]:
            values[value] = 0
        else:
            if name not in names:
                names.append(name)
            values[value] = names.index(name)
    if len(names) < 2 or len(names) > MOST_CLASSES:
        raise ValueError(f"Expected 1 to {MOST_CLASSES - 1} classes beside the background in {place}. Received: {len(names) - 1}.")
    unused = [f"{value} {name}" for value, name in sorted(named.items()) if table is not None and value and value not in found]
    shown = ", ".join(unused[:_MOST_NAMED]) + (", ..." if len(unused) > _MOST_NAMED else "")
    remarks = (f"{len(unused)} value(s) that {table} names are in no label: {shown}",) if unused else ()
    return Classes(tuple(names), values, origin, table=table, remarks=remarks)


def _take_description(path: Path, found: Mapping[int, Sequence[Path]], remarks: Sequence[str], tolerant: bool) -> Classes:
    """Takes the classes that a `dataset.json` describes; raises ValueError for a value that it does not, unless `tolerant`."""
    described = msd.read_description(path.parent)
    values = described["label_values"]
    for value in () if tolerant else sorted(set(found) - set(values)):
        files = f"{found[value][0]} ({len(found[value])} file(s))"
        raise ValueError(f"Expected label values in {tuple(sorted(values))}, as {path} says. Received: {value} in {files}. Correct one.")
    parts = described["class_names"], values, f"as {path} says", described["regions"], described["channels"]
    return Classes(*parts, table=path, remarks=tuple(remarks))


def _find_table(folders: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """Finds the table of classes in folders. Several that say the same are one.

    Returns:
        The table, or None; and a sentence for each file that looks like one by its name alone.

    Raises:
        ValueError: If two tables differ.
    """
    remarks: list[str] = []
    known: dict[Path, Any] = {}
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") or not _TABLE.search(path.name) or not path.is_file():
                continue
            try:
                content = _read_json_classes(path) if path.suffix.lower() == ".json" else _read_named(path)
                # Many tables leave the background out, and tables of colours have `_` for a blank.
                known[path] = {value: name.replace("_", " ") for value, name in content.items() if value}
            except ValueError as error:
                remarks.append(f"{path} names no classes: {to_line(error, 300)}")
    if not known:
        return None, remarks
    first = next(iter(known))
    for path, content in known.items():
        if content != known[first]:
            raise ValueError(f"Expected one table of classes. Received: {first} and {path}, which differ. Name one by --classes.")
    return first, remarks


def _read_json_classes(path: Path) -> dict[int, str]:
    """Reads the values and names of a `dataset.json`, to compare it with other tables."""
    described = msd.read_description(path.parent)
    if described["regions"]:
        return {-1: json.dumps(described["class_names"])}
    return {value: described["class_names"][index] for value, index in described["label_values"].items() if index != IGNORE}


def _read_named(path: Path) -> dict[int, str]:
    """Reads values with their names from a table, a file of ITK-SNAP, or a table of colours.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no values with names, or one value twice.
    """
    header, rows = read_table(path)
    lines = read_text(path).splitlines()
    for pattern in (_SNAP, _COLOURS):
        if matches := [match for match in map(pattern.match, lines) if match]:
            return _collect(path, [(match[1], match[2]) for match in matches])
    if not any(cell.isdigit() for cell in header):
        columns = [name.lower() for name in header]
        value = next((columns.index(name) for name in _VALUES if name in columns and _is_whole(rows, columns.index(name))), None)
        name = next((columns.index(name) for name in _NAMES if name in columns and columns.index(name) != value), None)
    else:
        rows = [header, *rows]
        value = next((place for place in range(len(header)) if _is_whole(rows, place)), None)
        name = next((place for place in range(len(header)) if place != value and not _is_whole(rows, place)), None)
    if value is None or name is None or not rows:
        raise ValueError(
            f"Expected a table of values and names (index, name), or a file of ITK-SNAP, in {path}. Received: {shorten(header)}. "
            "Correct it."
        )
    return _collect(path, [(row[value], row[name]) for row in rows if len(row) > max(value, name)])


def _is_whole(rows: Sequence[Sequence[str]], place: int) -> bool:
    return bool(rows) and all(len(row) > place and row[place].isdigit() for row in rows)


def _collect(path: Path, pairs: Sequence[tuple[str, str]]) -> dict[int, str]:
    named: dict[int, str] = {}
    for value, name in pairs:
        if named.setdefault(int(value), name) != name:
            raise ValueError(f"Expected one name for {value} in {path}. Received: {named[int(value)]} and {name}. Remove one.")
    return named
