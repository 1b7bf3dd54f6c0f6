"""The data set `folder`: any folder of images and labels, described by what is found there and by what the user says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modules.data.bids import find_bids
from modules.data.case import LabelRule
from modules.data.case_table import read_case_table
from modules.data.class_tables import Classes, choose_classes
from modules.data.dicom_folders import stem_of_image
from modules.data.files import SUFFIXES, stem_of, suffix_of
from modules.data.folder_cases import NamedCases, describe_splits_found, make_cases
from modules.data.folder_layouts import Found, Pair, find_pairs, list_files
from modules.data.formats import StoredImage, read_file
from modules.data.label_values import LabelValues, survey_labels
from modules.data.layout_names import read_part
from modules.data.preprocess import Preprocessing
from modules.data.regions import IGNORE

MODALITIES = ("CT", "MR")
LAYOUTS = (
    "images/ and labels/ (or masks/, imagesTr/ and labelsTr/, train/images/, ...), a label beside its image (a_seg, a_mask, a_label), a "
    "folder for each case, or BIDS with derivatives. A folder of DICOM slices counts as one image"
)
_COLOURS = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
# Air of Hounsfield units lies at -1000; no other scanner's values lie so low.
_HOUNSFIELD = -500
_MOST_NAMES = 8
# A hint must not wait for a walk through a whole disk.
_MOST_HINTED = 20_000
# Images of kinds that other programs read.
_OTHER_IMAGES = {
    *(".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".img", ".hdr"),
    *(".npy", ".npz", ".h5", ".mat", "without a suffix"),
} - set(SUFFIXES)


@dataclass(frozen=True)
class Wishes:
    """The wishes of the user about a folder.

    Attributes:
        cases: A table of the cases, or "".
        classes: Names of the classes, see `modules.data.class_tables.choose_classes`.
        modality: "CT", "MR" or "".
        subjects: The user's rule for subjects, see `modules.data.subjects.assign_subjects`, or "".
        cache: Folder in which the values of labels are remembered, or None.
        tolerant: Whether the description passes over files that `read_case` will refuse. Only a check of all cases wants it.
    """

    cases: str = ""
    classes: tuple[str, ...] = ()
    modality: str = ""
    subjects: str = ""
    cache: Path | None = None
    tolerant: bool = False


def describe_folder(root: Path, wishes: Wishes) -> dict[str, Any]:
    """Describes a folder: returns the fields of its `modules.data.spec.DatasetSpec` that nobody knows before.

    Raises:
        FileNotFoundError: If nothing is found.
        ValueError: If files contradict one another, or what the user says.
    """
    found = read_case_table(Path(wishes.cases), root) if wishes.cases else search_folder(root)
    if not found.pairs:
        raise _refuse_nothing(root, found)
    surveys = survey_labels([pair.label for pair in found.pairs], wishes.cache, tolerant=wishes.tolerant)
    readable, surveys = zip(*((pair, survey) for pair, survey in zip(found.pairs, surveys, strict=True) if survey.rank), strict=True)
    labels = [pair.label for pair in readable]
    rank = _find_rank(readable, surveys, tolerant=wishes.tolerant)
    folders = [Path(wishes.cases).parent] if wishes.cases else [root]
    folders += [folder for label in labels for folder in reversed(label.parents) if folder.is_relative_to(root) and folder != root]
    classes = choose_classes(labels, surveys, wishes.classes, folders, tolerant=wishes.tolerant)
    pair, first = _read_first(readable, tolerant=wishes.tolerant)
    channels = _name_channels(pair, first, classes, wishes.modality)
    named = make_cases(found.pairs, rank)
    # A mean that nobody documents is the scan's own; 8-bit pictures have a range that noise does not fill.
    eight_bit = rank == 2 and first.affine is None and first.array.dtype == np.uint8
    remarks = [*named.remarks, *classes.remarks, *_describe_modality(first, channels, wishes.modality)]
    return {
        "title": f"The folder {root.resolve().name or root}",
        "channels": channels,
        "class_names": classes.names,
        "label_rule": LabelRule(classes.values, renames=find_renames(found.pairs)),
        "regions": classes.regions,
        "mirrored_labels": _find_own_sides(classes),
        "preprocessing": Preprocessing(rank, intensity="zscore", scale=255.0 if eight_bit else 1.0),
        "find": lambda _: list(named.cases),
        "tables": tuple(path for path in (*found.tables, classes.table) if path),
        "found": (*_describe(root, wishes, rank, found, named, channels, classes, surveys), *remarks),
    }


def search_folder(root: Path, most: int | None = None) -> Found:
    """Finds images with their labels below a folder, in any layout that is known.

    Args:
        root: The folder.
        most: Number of files after which the search ends; None for no limit.

    Raises:
        ValueError: If two labels fit one image, or two images one label.
    """
    found = Found()
    files = list_files(root, found, most)
    if not find_bids(root, files, found):
        find_pairs(root, files, found)
    return found


def find_hint(root: Path) -> str:
    """Says in a sentence that `--dataset folder` reads a folder, if it does; else ""."""
    try:
        pairs = search_folder(root, _MOST_HINTED).pairs if root.is_dir() else []
    except (OSError, ValueError):
        return ""
    if not pairs:
        return ""
    one = pairs[0]
    names = f"{one.images[0].relative_to(root).as_posix()} with {one.label.relative_to(root).as_posix()}"
    return f"{len(pairs)} pair(s) such as {names} are there: `--dataset folder` reads them."


def _refuse_nothing(root: Path, found: Found) -> FileNotFoundError:
    """Returns the error of a folder without pairs: what was looked for, what is there, and what helps."""
    if found.layout.startswith("table"):
        return FileNotFoundError(f"Expected rows with an image and a label in {found.tables[0]}. Received: no such row. Fill it in.")
    groups = {reason: names for reason, names in found.left_out.items() if reason.startswith(("image", "label"))}
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.others.most_common(3))
    known = found.others.keys() & _OTHER_IMAGES
    if not groups:
        received = f"no image ({', '.join(SUFFIXES)} or DICOM)" + (f", but {kinds}" if kinds else "")
        remedy = f"Convert {' and '.join(sorted(known))} to one of these." if known else "Give the folder with `--data`."
    elif find_hint(root.resolve().parent) and read_part(root.resolve().name).role:
        received = "one part of the pairs"
        remedy = f"Give the folder that holds images and labels, {root.resolve().parent}, with `--data`."
    else:
        parts = [f"{len(names)} {reason}, such as {names[0]}" for reason, names in groups.items()]
        received = "; ".join([f"no pair: {'; '.join(parts)}", *([f"also {kinds}, which are not read"] if known else [])])
        remedy = f"Convert {' and '.join(sorted(known))} to one of {', '.join(SUFFIXES)}, or give" if known else "Give"
        remedy += " an image and its label one name, or list the pairs in a table and give it by `--cases`."
    return FileNotFoundError(f"Expected images with labels in {root}: {LAYOUTS}. Received: {received}. {remedy}")


def _read_first(pairs: Sequence[Pair], *, tolerant: bool) -> tuple[Pair, StoredImage]:
    """Reads the first image, or if `tolerant` the first that can be read; returns it after its pair."""
    for pair in pairs[:-1] if tolerant else ():
        try:
            return pair, read_file(pair.images[0])
        except (OSError, ValueError):
            continue
    pair = pairs[-1 if tolerant else 0]
    return pair, read_file(pair.images[0])


def _find_rank(pairs: Sequence[Pair], surveys: Sequence[LabelValues], *, tolerant: bool) -> int:
    """Returns the number of spatial axes that all labels have, or if `tolerant` most; raises ValueError where they differ."""
    known: dict[int, list[Pair]] = {}
    for pair, survey in zip(pairs, surveys, strict=True):
        known.setdefault(survey.rank, []).append(pair)
    if len(known) > 1 and not tolerant:
        shown = " and ".join(f"{len(members)} {rank}-D such as {members[0].label}" for rank, members in sorted(known.items()))
        raise ValueError(f"Expected slices or volumes alone. Received: {shown}. Keep them in two folders, or list one kind by `--cases`.")
    return max(known, key=lambda rank: len(known[rank]))


def _name_channels(pair: Pair, first: StoredImage, classes: Classes, modality: str) -> tuple[str, ...]:
    """Names the channels: after `dataset.json`, the files, or the colours of a picture."""
    number = len(pair.images) if len(pair.images) > 1 else first.array.shape[-1]
    if modality == "CT" and number > 1:
        raise ValueError(
            f"Expected one channel for --modality CT. Received: {number}, as in {pair.images[0]}. Leave it out: all channels are "
            "normalised alike."
        )
    if classes.channels and len(classes.channels) != number:
        raise ValueError(
            f"Expected {len(classes.channels)} channel(s), as {classes.table} says. Received: {number} in {pair.images[0]}. Correct one."
        )
    names = classes.channels or pair.channels
    if number == 1:
        name = names[0] if names else modality or "image"
        # The plan takes a channel of this name for Hounsfield units.
        ct = name.upper().startswith("CT")
        return (modality if modality and ct != (modality == "CT") else name,)
    if names and not all(name.isdigit() for name in names):
        return tuple(names)
    colours = _COLOURS.get(number) if first.affine is None and len(pair.images) == 1 else None
    return colours or tuple(f"channel {index}" for index in range(number))


def _describe_modality(first: StoredImage, channels: Sequence[str], modality: str) -> list[str]:
    least = float(first.array.min()) if first.array.size else 0.0
    # NaN is no intensity at all, and is refused later.
    if modality or len(channels) > 1 or not least <= _HOUNSFIELD or channels[0].upper().startswith("CT"):
        return []
    return [f"warning: the first image reaches down to {least:g}, as Hounsfield units do. If the scans are CT, give --modality CT."]


def find_sides(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Finds pairs of classes whose names differ in left and right alone, such as `Left-Thalamus` and `Right-Thalamus`."""
    other = {"left": "right", "right": "left", "lh": "rh", "rh": "lh", "l": "r", "r": "l"}
    known = {name.casefold(): name for name in names[1:]}
    pairs = []
    for name in names[1:]:
        swapped = re.sub(r"(?<![a-z])(left|right|lh|rh|l|r)(?![a-z])", lambda match: other[match[1]], name.casefold())
        if swapped in known and swapped != name.casefold() and (known[swapped], name) not in pairs:
            pairs.append((name, known[swapped]))
    return tuple(pairs)


def _find_own_sides(classes: Classes) -> tuple[tuple[str, str], ...]:
    return () if classes.regions else find_sides(classes.names)


def find_renames(pairs: Sequence[Pair]) -> tuple[tuple[str, str], ...]:
    """Finds the rule by which an image's file name becomes its label's, where all pairs follow one: another ending or beginning."""
    stems = [(stem_of_image(pair.images[0]), stem_of(pair.label)) for pair in pairs]
    ends, beginnings = set(), set()
    for image, label in stems:
        common = next((place for place, (one, other) in enumerate(zip(image, label, strict=False)) if one != other), None)
        common = min(len(image), len(label)) if common is None else common
        ends.add((image[common:], label[common:]))
        tail = next((place for place, (one, other) in enumerate(zip(image[::-1], label[::-1], strict=False)) if one != other), None)
        tail = min(len(image), len(label)) if tail is None else tail
        beginnings.add((image[: len(image) - tail], label[: len(label) - tail]))
    suffixes = "|".join(sorted({re.escape(suffix_of(path)) for pair in pairs for path in pair.images}, key=len, reverse=True))
    if len(ends) == 1:
        before, after = ends.pop()
        return () if before == after else ((rf"{re.escape(before)}((?i:{suffixes}))$", f"{_escape(after)}\\1"),)
    if len(beginnings) == 1:
        before, after = beginnings.pop()
        return ((f"^{re.escape(before)}", _escape(after)),)
    return ()


def _escape(text: str) -> str:
    """Escapes a text as a replacement of `re.sub`, in which a digit must not join the number of a group."""
    return text.replace("\\", "\\\\")


# ------------------------------------------------------------------------------------------------------------------ table


def _describe(
    root: Path,
    wishes: Wishes,
    rank: int,
    found: Found,
    named: NamedCases,
    channels: Sequence[str],
    classes: Classes,
    surveys: Sequence[LabelValues],
) -> list[str]:
    """Describes what was found, a line a row: what, which, and where it comes from or why."""
    one = named.cases[0]
    first, label = (_shorten(path, root) for path in (one.image_paths[0], one.label_path))
    subjects = len({case.subject_id for case in named.cases})
    splits = describe_splits_found(named.cases)
    rows = [
        ("cases", f"{len(named.cases)}, {rank}-D", f"{first} with {label}, ..."),
        ("layout", found.layout, ""),
        ("channels", f"{len(channels)}: {', '.join(channels)}", f"{len(one.image_paths)} file(s) a case"),
        ("classes", f"{len(classes.names) - 1}", classes.origin),
        *_describe_classes(classes, surveys),
        ("subjects", "by --subjects" if wishes.subjects else str(subjects), wishes.subjects or named.origin),
        ("splits", splits or "drawn by subject", ("the table" if wishes.cases else "folders") if splits else "no official one"),
        *(("sides", f"{left}, {right}", "change places where a sample is flipped") for left, right in _find_own_sides(classes)),
    ]
    for reason, names in found.left_out.items():
        shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
        rows.append(("left out", f"{len(names)}", f"{reason}: {shown}"))
    if found.others:
        rows.append(("left out", f"{found.others.total()}", f"other kinds: {', '.join(f'{n} {kind}' for kind, n in found.others.items())}"))
    width = min(40, max(len(value) for _, value, _ in rows))
    return [f"data  {name:<10}{value:<{width}}  {reason}".rstrip() for name, value, reason in rows]


def _describe_classes(classes: Classes, surveys: Sequence[LabelValues]) -> list[tuple[str, str, str]]:
    """Describes each class, or each value of regions, with the number of labels that hold it."""
    rows = []
    for value, index in sorted(classes.values.items()):
        files = sum(value in survey.values for survey in surveys)
        if classes.regions:
            name = "ignored" if index == IGNORE else f"part {index}"
        else:
            name = "ignored" if index == IGNORE else classes.names[index]
        if index or value:
            rows.append(("", f"{value} {name}", f"in {files} of {len(surveys)} labels"))
    return rows


def _shorten(path: Path | None, root: Path) -> str:
    if path is None:
        return ""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
