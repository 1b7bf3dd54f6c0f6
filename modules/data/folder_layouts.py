"""Finds images and their labels in a folder that nobody described, by the names that people give to files and folders.

Found are `images/` beside `labels/` (or masks, `imagesTr`, `train_masks`, ...), a label beside its image (`a_seg`, `a_mask`, `mask_001`),
and a folder for each case. Channels are files `a_0000`, `a_t1`, or files in a folder for each case or each channel. BIDS is in
`modules.data.bids`. Nothing is passed over in silence: each file that is no part of a case is left out for a reason.
"""

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from modules.data.dicom_folders import find_dicom_images, stem_of_image
from modules.data.files import suffix_of, walk_files
from modules.data.layout_names import OUTPUTS, read_part, strip_image, strip_label

# Files that say that a folder is a run, a bundle, a check or a result of this program.
_OWN_FILES = ("run.json", "bundle.json", "check.json")
# Kinds of files that nobody takes for scans.
_TEXTS = (".json", ".txt", ".csv", ".tsv", ".md", ".pdf", ".html", ".db", ".ini", ".py", ".label", ".lbl", ".ctbl", ".xlsx")
_SEPARATORS = "_-. "
_NO_IMAGE, _NO_LABEL = "label(s) without an image of their name", "image(s) without a label of their name"


class Pair(NamedTuple):
    """An image with its label.

    Attributes:
        name: The name that both share.
        images: One file, or one file for each channel.
        label: The label.
        channels: What the names of the channels' files say; empty for one file without such a word.
        folder: Folders that hold the image, without words for images, labels and splits.
        split: "train", "validate" or "test" where a folder says so, else None.
        subject: Who was scanned, where that is known and no guess; else "".
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    channels: tuple[str, ...] = ()
    folder: tuple[str, ...] = ()
    split: str | None = None
    subject: str = ""


@dataclass
class Found:
    """The result of a search.

    Attributes:
        pairs: The images with their labels.
        layout: How they lie there, in words.
        left_out: Files that are no part of a pair, by the reason.
        tables: Files that say what belongs together, other than images and labels.
        others: Number of files of kinds that are not read, by suffix.
    """

    pairs: list[Pair] = field(default_factory=list)
    layout: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    tables: tuple[Path, ...] = ()
    others: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, files: Iterable[str]) -> None:
        """Adds files that are no part of a pair, with the reason."""
        if names := list(files):
            self.left_out.setdefault(reason, []).extend(names)


class File(NamedTuple):
    """An image or label file with what its place says.

    Attributes:
        path: The file.
        stem: Its name without the suffix.
        parts: The folders that hold it, below the root.
        role: "label", "image" or "", by the nearest folder that says so.
        split: The split that a folder says, or None.
        folder: The other words of its folders.
    """

    path: Path
    stem: str
    parts: tuple[str, ...]
    role: str
    split: str | None
    folder: tuple[str, ...]


def list_files(root: Path, found: Found, most: int | None = None) -> list[File]:
    """Lists the images below a folder, without those that this program wrote; counts in `found` what is left out.

    A folder of DICOM files counts as one file, see `modules.data.dicom_folders`.

    Args:
        root: The folder.
        found: Takes what is left out.
        most: Number of files after which the search ends; None for no limit.
    """
    files = walk_files(root, lambda error: found.leave_out("folder that cannot be read", [str(error.filename)]))
    everything = list(islice(files, most))
    own = {path.parent for path in everything if path.name in _OWN_FILES}
    known = [path for path in everything if suffix_of(path)]
    unknown = [path for path in everything if not suffix_of(path) and path.suffix.lower() not in _TEXTS]
    series, slices = find_dicom_images(root, (path for path in unknown if not stem_of_image(path).endswith(OUTPUTS)), known)
    found.others.update(path.suffix.lower() or "without a suffix" for path in unknown if path not in slices)
    beside = {path.parent for path in known if strip_label(stem_of_image(path))}
    listed = []
    for path in sorted([*known, *series]):
        if own and own.intersection(path.parents):
            found.leave_out("picture in the folder of a run or a model", [path.relative_to(root).as_posix()])
        elif stem_of_image(path).endswith(OUTPUTS):
            found.leave_out("earlier output of predict.py", [path.relative_to(root).as_posix()])
        else:
            # A folder of slices that holds their label too is a case's own, and its image lies in it.
            listed.append(_place_file(path, (path if path in beside else path.parent).relative_to(root).parts))
    return listed


def _place_file(path: Path, parts: tuple[str, ...]) -> File:
    """Describes an image by the folders that hold it."""
    words = [read_part(part) for part in parts]
    role = next((word.role for word in reversed(words) if word.role), "")
    split = next((word.split for word in reversed(words) if word.split), None)
    return File(path, stem_of_image(path), parts, role, split, tuple(word.rest for word in words if word.rest))


def refuse_two_labels(image: Path, one: Path, other: Path) -> ValueError:
    """Returns the error for an image that two labels fit."""
    return ValueError(
        f"Expected one label for {image}. Received: {one} and {other}. Remove one, or list the pairs in a table and give it by `--cases`."
    )


def find_pairs(root: Path, files: Sequence[File], found: Found) -> None:
    """Pairs images with labels by their names, and adds pairs and reasons to `found`.

    Raises:
        ValueError: If two labels fit one image, or two files one label.
    """
    labels = _find_labels(files)
    known = {label.path for label in labels}
    images = [file for file in files if file.path not in known]
    matcher = _Matcher(images)
    unmatched = matcher.match(labels)
    found.leave_out(_NO_IMAGE, (label.path.relative_to(root).as_posix() for label in unmatched))
    found.leave_out(_NO_LABEL, (image.path.relative_to(root).as_posix() for image in images if image.path not in matcher.taken))
    _keep_equal_channels(matcher.pairs, found, root)
    found.layout = ", ".join(way for way, _ in matcher.ways.most_common())
    splits = {pair.split for pair in found.pairs}
    if splits - {None} and not splits & {None, "train"}:
        # Without training cases an official split is none.
        found.pairs = [pair._replace(split=None) for pair in found.pairs]


def _find_labels(files: Sequence[File]) -> list[File]:
    """Finds the labels: files in a folder of labels, and files named so."""
    in_folders = {file.stem for file in files if file.role == "label"}
    stems = {parts: sorted(one.stem for one in members) for parts, members in _group(files, lambda one: one.parts).items()}
    labels = []
    for file in files:
        bases, beside = strip_label(file.stem), stems[file.parts]
        if file.stem in in_folders:
            # Beside a folder with its label, `left_roi` is an image unless `left` is there too.
            bases = [base for base in bases if base in beside[bisect_left(beside, base) :][:1]]
        elif file.role == "image":
            # In a folder of images it is one, unless another file there begins with `left`.
            bases = [base for base in bases if _has_other(beside, base, file.stem)]
        if file.role == "label" or bases:
            labels.append(file)
    return labels


def _has_other(stems: Sequence[str], beginning: str, own: str) -> bool:
    """Tells whether any of the sorted names but a file's own has a beginning."""
    place = bisect_left(stems, beginning)
    return any(stem.startswith(beginning) and stem != own for stem in stems[place : place + 2])


class _Matcher:
    """Matches labels with images, from the surest way to the least sure one."""

    def __init__(self, images: Sequence[File]) -> None:
        self.pairs: list[Pair] = []
        self.ways: Counter[str] = Counter()
        self._labels: Counter[tuple[str | None, tuple[str, ...]]] = Counter()
        # {image: the label that has it, and the name that they share}
        self.taken: dict[Path, tuple[Path, str]] = {}
        self._places: dict[tuple[str | None, tuple[str, ...]], list[File]] = {}
        for image in images:
            self._places.setdefault((image.split, image.folder), []).append(image)
        self._stems = _group(images, lambda one: one.stem)
        self._beginnings = {place: _Ordered(members, lambda one: one.stem) for place, members in self._places.items()}
        self._ends = {place: _Ordered(members, lambda one: one.stem[::-1]) for place, members in self._places.items()}
        self._by_stem = {place: _group(members, lambda one: one.stem) for place, members in self._places.items()}
        self._by_word = {place: _group(members, lambda one: strip_image(one.stem)) for place, members in self._places.items()}

    def match(self, labels: Sequence[File]) -> list[File]:
        """Matches labels; returns those that fit no image."""
        stages = (self._by_name, self._by_number, self._by_other_word, self._by_channel, self._by_case_folder)
        left = sorted(labels, key=lambda label: (-max(map(len, _list_bases(label))), label.path))
        self._labels = Counter((label.split, label.folder) for label in labels)
        for stage in (*stages, self._by_image_folder, self._by_channel_folder, self._anywhere, self._by_tail, self._alone):
            left = [label for label in left if not any(stage(label, base) for base in _list_bases(label))]
        return left

    def _take(self, label: File, base: str, images: Sequence[File], names: Sequence[str], way: str, name: str = "") -> bool:
        """Makes a pair of a label and its images; false where there is no image."""
        if not images:
            return False
        for image in images:
            other, _ = self.taken.setdefault(image.path, (label.path, base))
            if other != label.path:
                raise refuse_two_labels(image.path, other, label.path)
        order = sorted(range(len(images)), key=lambda place: names[place] if names else "")
        self.pairs.append(
            Pair(
                name or images[0].stem,
                tuple(images[place].path for place in order),
                label.path,
                tuple(names[place] for place in order) if names else (),
                _name_folders(images[0]),
                images[0].split or label.split,
            )
        )
        self.ways[way] += 1
        return True

    def _list_free(self, members: Iterable[File], base: str) -> list[File]:
        """Lists images that no label of another name has."""
        return [one for one in members if self.taken.get(one.path, (None, base))[1] == base]

    def _list_namesakes(self, label: File, base: str) -> list[File]:
        """Lists the free images of a name in any folder, unless their folder and the label's say different splits."""
        images = [one for one in self._stems.get(base, []) if None in (label.split, one.split) or one.split == label.split]
        return self._list_free(images, base) if base else []

    def _list_beginning(self, label: File, base: str) -> list[File]:
        """Lists the images in a label's place whose names begin with its base."""
        place = label.split, label.folder
        return self._beginnings[place].find(base) if base and place in self._beginnings else []

    def _by_name(self, label: File, base: str) -> bool:
        images = self._by_stem.get((label.split, label.folder), {}).get(base, [])
        if len(images) > 1:
            raise ValueError(
                f"Expected one image for the label {label.path}. Received: {images[0].path} and {images[1].path}. Remove one, or list the "
                "pairs in a table and give it by `--cases`."
            )
        way = "labels of their images' names" if base == label.stem else "labels named after their images"
        return self._take(label, base, images, (), f"{way}{' in a folder of their own' if label.role == 'label' else ''}")

    def _by_number(self, label: File, base: str) -> bool:
        named = [(one, one.stem[len(base) :]) for one in self._list_beginning(label, base)]
        numbered = [(one, end[1:]) for one, end in named if re.fullmatch(r"_\d{4}", end)]
        return self._take(label, base, [one for one, _ in numbered], [end for _, end in numbered], "channels by number, _0000", base)

    def _by_other_word(self, label: File, base: str) -> bool:
        images = self._list_free(self._by_word.get((label.split, label.folder), {}).get(base, []), base) if base else []
        return self._take(label, base, images[:1] if len(images) == 1 else [], (), "a word for image or label in the names")

    def _by_channel(self, label: File, base: str) -> bool:
        named = [(one, one.stem[len(base) :]) for one in self._list_beginning(label, base)]
        named = [(one, end[1:]) for one, end in named if end[:1] in _SEPARATORS and end[1:] and not end[1:].isdigit()]
        free = {one.path for one in self._list_free((one for one, _ in named), base)}
        named = [(one, end) for one, end in named if one.path in free]
        return self._take(label, base, [one for one, _ in named], [end for _, end in named], "channels by the ends of the names", base)

    def _by_case_folder(self, label: File, base: str) -> bool:
        folders = _name_folders(label)
        if base or not folders:
            return False
        # An image that has a label of its own name makes it two labels for one image.
        images = self._places.get((label.split, label.folder), [])
        names = [_strip_beginning(one.stem, folders[-1]) for one in images]
        if len(names) > 1 and any(name.isdigit() for name in names):
            # These are slices, and no channels.
            return False
        return self._take(label, base, images, names, "a folder for each case", folders[-1])

    def _by_image_folder(self, label: File, base: str) -> bool:
        place = label.split, (*label.folder, read_part(base).rest) if base else ()
        images = self._list_free(self._places.get(place, []), base) if base else []
        names = [_strip_beginning(one.stem, base) for one in images]
        return self._take(label, base, images, names, "a folder of images for each case", base)

    def _by_channel_folder(self, label: File, base: str) -> bool:
        images = [one for one in self._list_namesakes(label, base) if one.folder[:-1] == label.folder and one.parts]
        names = [one.parts[-1] for one in images]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            return False
        self._take(label, base, images, names, "a folder for each channel", base)
        self.pairs[-1] = self.pairs[-1]._replace(folder=_name_folders(label))
        return True

    def _anywhere(self, label: File, base: str) -> bool:
        images = self._list_namesakes(label, base)
        return self._take(label, base, images[:1] if len(images) == 1 else [], (), "equal names in different folders")

    def _by_tail(self, label: File, base: str) -> bool:
        place = label.split, label.folder
        members = self._list_free(self._ends[place].find(base[::-1]), base) if base and place in self._ends else []
        images = [one for one in members if one.stem[: -len(base)][-1:] in _SEPARATORS]
        return self._take(label, base, images[:1] if len(images) == 1 else [], (), "equal ends of the names")

    def _alone(self, label: File, base: str) -> bool:
        """Takes the only image of a case's folder for its only label, whatever both are called."""
        place, folders = (label.split, label.folder), _name_folders(label)
        images = self._places.get(place, [])
        if not folders or self._labels[place] > 1 or len(images) > 1:
            return False
        return self._take(label, base, self._list_free(images, base), (), "the only image and label in a folder", folders[-1])


class _Ordered:
    """Files in the order of a text, so that those that begin alike are found without a look at all others."""

    def __init__(self, members: Sequence[File], name: Callable[[File], str]) -> None:
        self._members = sorted(members, key=lambda one: (name(one), one.path))
        self._names = [name(one) for one in self._members]

    def find(self, beginning: str) -> list[File]:
        """Returns the files whose text begins so."""
        found = []
        for place in range(bisect_left(self._names, beginning), len(self._names)):
            if not self._names[place].startswith(beginning):
                break
            found.append(self._members[place])
        return found


def _group(members: Iterable[File], name: Callable[[File], Any]) -> dict[Any, list[File]]:
    groups: dict[Any, list[File]] = {}
    for one in members:
        groups.setdefault(name(one), []).append(one)
    return groups


def _list_bases(label: File) -> list[str]:
    """Lists the names that a label's image may have, the likeliest first."""
    own = [label.stem] if label.role == "label" else []
    return list(dict.fromkeys([*own, *strip_label(label.stem)]))


def _strip_beginning(stem: str, base: str) -> str:
    """Takes a case's name away from the beginning of a file's name."""
    rest = stem.removeprefix(base)
    return rest.lstrip(_SEPARATORS) or stem


def _name_folders(image: File) -> tuple[str, ...]:
    """Returns the folders of an image as the user writes them, without those that only say images or a split."""
    words = [(part, read_part(part)) for part in image.parts]
    return tuple(word.rest if word.role or word.split else part for part, word in words if word.rest)


def _keep_equal_channels(pairs: Sequence[Pair], found: Found, root: Path) -> None:
    """Keeps the pairs whose channels are those of most, and leaves out the others."""
    if not pairs:
        return
    sets = Counter(_normalise_channels(pair) for pair in pairs)
    usual = max(sets, key=lambda names: (sets[names], len(names)))
    for pair in pairs:
        own = _normalise_channels(pair)
        if own == usual:
            found.pairs.append(pair._replace(channels=usual))
            continue
        lacking = [name for name in usual if name not in own]
        what = f"case without {', '.join(lacking)}" if lacking and set(own) < set(usual) else f"case of channels {', '.join(own) or 'one'}"
        found.leave_out(f"{what}, where most have {', '.join(usual) or 'one'}", [os.path.relpath(pair.images[0], root)])


def _normalise_channels(pair: Pair) -> tuple[str, ...]:
    """Returns the names of the channels; of a single one only a name that is a word, and not the case's."""
    alone = len(pair.images) == 1 and (not pair.channels or pair.channels[0].isdigit() or pair.channels[0] == pair.name)
    return () if alone else pair.channels
