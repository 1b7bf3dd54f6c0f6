"""Cases of a folder that nobody described: a name of its own for each, and who was scanned as far as names tell."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from modules.data.case import Case, place_in_volume
from modules.data.folder_layouts import Pair
from modules.data.subjects import guess_person

# Fewer groups make no split: then folders or beginnings of names are those of the data set, not of people.
LEAST_GROUPS = 3
# Numbered folders that hold many people.
_GROUPS = re.compile(r"(?i)^(batch|fold|part|site|cent(er|re)|set|group|class|series|plane|stage|task|dataset)[ _-]?\d+$")
_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)")


class NamedCases(NamedTuple):
    """The cases of a folder.

    Attributes:
        cases: The cases, with a name and a subject each.
        origin: What says who was scanned, in words.
        remarks: Warnings about subjects, in sentences.
    """

    cases: list[Case]
    origin: str
    remarks: list[str]


def make_cases(pairs: Sequence[Pair], rank: int) -> NamedCases:
    """Makes a case of each pair.

    Subjects are those that are known; else those that BIDS names, folders of people, or beginnings of slices' names, such as `p01` of
    `p01_slice_3`. Where none of these tells people apart, each case is a subject of its own.

    Args:
        pairs: The images with their labels.
        rank: 2 for slices, 3 for volumes.
    """
    names = _make_unique(pairs)
    volumes = [place_in_volume(pair.name) if rank == 2 else (None, 0) for pair in pairs]
    volumes = [(volume, index) if volume and re.search(r"\d", volume) else (None, 0) for volume, index in volumes]
    sliced = all(volume for volume, _ in volumes) and LEAST_GROUPS <= len({volume for volume, _ in volumes}) < len(pairs)
    remarks: list[str] = []
    subjects, origin = _find_subjects(pairs, [volume for volume, _ in volumes] if sliced else None)
    if not subjects:
        subjects = [_drop_visits(pair, name) for pair, name in zip(pairs, names, strict=True)]
        origin, remarks = "one a file; --subjects tells otherwise", _warn_of_files(pairs, rank)
    cases = []
    for pair, name, subject, (volume, index) in zip(pairs, names, subjects, volumes, strict=True):
        # What makes the name of a case unique does so for its scan.
        scan = name[: len(name) - len(pair.name)] + volume if sliced and volume else None
        cases.append(Case(name, subject, pair.images, pair.label, pair.split, scan, index if scan else 0))
    return NamedCases(cases, origin, remarks)


def _make_unique(pairs: Sequence[Pair]) -> list[str]:
    """Names each pair. Where two have one name, all get their folders, and then their split, before it."""
    names = [pair.name for pair in pairs]
    if len(set(names)) < len(names):
        names = ["_".join((*_list_other_folders(pair), pair.name)) for pair in pairs]
    if len(set(names)) < len(names):
        names = ["_".join((pair.split or "train", name)) for pair, name in zip(pairs, names, strict=True)]
    return names


def _list_other_folders(pair: Pair) -> tuple[str, ...]:
    """Lists the folders of a pair without one whose name the pair's own name repeats."""
    return pair.folder[:-1] if pair.folder and pair.name.startswith(pair.folder[-1]) else pair.folder


def _find_subjects(pairs: Sequence[Pair], volumes: Sequence[str | None] | None) -> tuple[list[str], str]:
    """Finds who was scanned, and what says so; no subjects where nothing does."""
    if all(pair.subject for pair in pairs):
        return [pair.subject for pair in pairs], "as the layout says"
    bids = [next((match[1] for part in (*pair.folder, pair.name) if (match := _BIDS.match(part))), "") for pair in pairs]
    if all(bids):
        return bids, "sub-... in the names"
    folders = ["_".join(part for part in pair.folder if not _is_visit(part)) for pair in pairs]
    persons = all(any(_is_person(part) for part in pair.folder) for pair in pairs)
    if persons and len(set(folders)) >= LEAST_GROUPS:
        return folders, "by folder; --subjects tells otherwise"
    if volumes:
        return [str(volume) for volume in volumes], "the beginnings of the slices' names; --subjects tells otherwise"
    return [], ""


def _is_visit(part: str) -> bool:
    """Tells whether a folder's name is that of a visit or of a kind of image, such as `week_3`, `2019` or `T1`."""
    return not part.isdigit() and guess_person(f"x1_{part}") == "x1"


def _is_person(part: str) -> bool:
    return bool(re.search(r"\d", part)) and not _GROUPS.match(part) and not _is_visit(part)


def _drop_visits(pair: Pair, name: str) -> str:
    """Returns a case's name as that of a subject: without folders of visits."""
    if not any(map(_is_visit, pair.folder)):
        return name
    return "_".join((*(part for part in _list_other_folders(pair) if not _is_visit(part)), pair.name))


def _warn_of_files(pairs: Sequence[Pair], rank: int) -> list[str]:
    """Warns of what may be wrong where each file is a subject of its own."""
    remarks = []
    splits: dict[str, set[str | None]] = {}
    for pair in pairs:
        splits.setdefault(pair.name, set()).add(pair.split)
    shared = sorted(name for name, found in splits.items() if len(found) > 1)
    if shared:
        shown = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
        remarks.append(
            f"warning: {len(shared)} name(s) are in several splits and taken for different people: {shown}. If they are not, say who was "
            "scanned by --subjects."
        )
    if rank == 2:
        remarks.append(
            "warning: each picture counts as a person of its own. If several are of one person, say so by --subjects, or scores are not of "
            "unseen people."
        )
    return remarks


def describe_splits_found(cases: Sequence[Case]) -> str:
    """Counts the cases of each official split, in words; "" where there is none."""
    counts = Counter(case.split or "train" for case in cases)
    return ", ".join(f"{name} {number}" for name, number in counts.items()) if any(case.split for case in cases) else ""
