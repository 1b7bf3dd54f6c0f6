"""Turns the paths that a user gives into the cases that are predicted; a path that cannot be used does not end the others."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from modules.data.bids import find_subject
from modules.data.case import Case, LabelRule, place_in_volume
from modules.data.dicom_folders import stem_of_image
from modules.data.files import DETACHED_SUFFIXES, SUFFIXES, stem_of, suffix_of, walk_files
from modules.data.formats import list_files
from modules.data.layout_names import LABEL_BEGINNING, LABEL_ENDING, LABEL_FOLDER, OUTPUTS
from modules.data.series import is_dicom
from modules.predict.bundle import ModelBundle
from modules.predict.channels import group_channels
from modules.predict.dicom_inputs import DicomScan, find_scan_of, find_scans
from modules.predict.labels import LabelFolder

_MOST_NAMES = 8


class FoundImage(NamedTuple):
    """An image to predict.

    Attributes:
        path: The file, or the folder of a DICOM series.
        folder: The sub-folder of the output that its results go to, with `/`; "" for the output itself.
        name: Name of a DICOM series; "" for a file, which is named by its own name.
        series: SeriesInstanceUID to read of a folder.
    """

    path: Path
    folder: str = ""
    name: str = ""
    series: str = ""

    @property
    def stem(self) -> str:
        """The name of its results, without their endings."""
        return self.name or stem_of(self.path)


@dataclass
class Search:
    """The result of a search.

    Attributes:
        images: The images, in the order of the paths.
        failures: An error for each path or file that cannot be used.
        remarks: Files that are left out, in sentences.
        dicom: The DICOM files that were found.
    """

    images: list[FoundImage] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    dicom: set[Path] = field(default_factory=set)


def find_images(paths: Sequence[str], rules: Sequence[LabelRule], series: str = "", channels: Sequence[str] = ()) -> Search:
    """Resolves files, folders (with all that is below them) and globs to images; leaves out reference labels and earlier output.

    Sub-folders of a folder are mirrored in the output. Linked folders are entered. Files of one name that were given one by one get
    the folders that tell them apart. Of DICOM files one series of each study is taken, see `modules.predict.dicom_inputs`.

    Args:
        paths: Files, folders and globs.
        rules: Label rules of all data sets. They recognise a label by its name, in any folder.
        series: UID, number or description of the DICOM series that is wanted; "" for the only one that can be used.
        channels: Names of the model's channels. Of several, each is a DICOM series of its own.

    Raises:
        ValueError: If a series is wanted, and there are no DICOM files.
    """
    search = Search()
    found: list[tuple[FoundImage, bool]] = []
    known: set[tuple[str, str, str]] = set()
    for path in paths:
        for image, searched in _resolve(path, search, series, channels):
            # Two ways may lead to one file, by a link or by a path that is given twice.
            place = os.path.realpath(image.path.parent), image.path.name, image.series
            if place not in known:
                known.add(place)
                found.append((image, searched))
    if series and not search.dicom:
        raise ValueError(f"Expected DICOM files for --series {series}. Received: none among {' '.join(paths[:3])}. Leave the flag out.")
    labels = _find_labels(found, rules)
    if labels:
        names = ", ".join(path.name for path in sorted(labels)[:_MOST_NAMES]) + (", ..." if len(labels) > _MOST_NAMES else "")
        search.remarks.append(f"{len(labels)} reference label(s) among the images are left out: {names}")
    search.images = _part_names([image for image, _ in found if image.path not in labels], search.failures)
    if not search.images and labels and not search.failures:
        one = min(labels)
        search.failures.append(ValueError(f"Expected images. Received: {one}, which looks like a reference label. Give it as a file."))
    return search


def _resolve(path: str, search: Search, series: str, channels: Sequence[str]) -> list[tuple[FoundImage, bool]]:
    """Returns the images at a path, each with whether it was found by searching a folder."""
    place = Path(path)
    if place.is_file() or (place.is_symlink() and not place.is_dir()):
        if not suffix_of(place):
            return _resolve_dicom(place, search, series)
        return [(FoundImage(place), False)]
    if place.is_dir():
        root, files = place, list(walk_files(place, search.failures.append))
    else:
        root = _find_plain_part(path)
        files = sorted(file for file in map(Path, glob.glob(path, recursive=True)) if not file.is_dir() and not file.name.startswith("."))
    images = [file for file in files if suffix_of(file)]
    dicom = [file for file in files if not suffix_of(file) and not file.name.upper().startswith("DICOMDIR") and is_dicom(file)]
    earlier = sum(stem_of_image(file).endswith(OUTPUTS) for file in [*images, *dicom])
    images, dicom = ([file for file in kind if not stem_of_image(file).endswith(OUTPUTS)] for kind in (images, dicom))
    search.dicom |= set(dicom)
    scans, failures, remarks = find_scans(dicom, series, channels) if dicom else ([], [], [])
    search.failures += failures
    search.remarks += remarks
    if not images and not scans and not failures:
        received = f"only {earlier} file(s) of earlier output" if earlier else "; ".join(remarks) or "none there"
        search.failures.append(
            FileNotFoundError(f"Expected images ({', '.join(SUFFIXES)} or DICOM) at {path}. Received: {received}. Check the path.")
        )
    elif earlier:
        search.remarks.append(f"{earlier} file(s) at {path} with names of earlier output ({', '.join(OUTPUTS)}) are left out")
    others = len(files) - len(images) - earlier - len(dicom) - _count_parts(images)
    if (images or scans) and place.is_dir() and others > 0:
        search.remarks.append(f"{others} file(s) of other kinds below {path} are left out")
    found = [FoundImage(file, _to_folder(file.parent.relative_to(root))) for file in images]
    return [(image, True) for image in found + [_file_scan(scan, root) for scan in scans]]


def _resolve_dicom(file: Path, search: Search, series: str) -> list[tuple[FoundImage, bool]]:
    """Returns the series that a file belongs to; adds an error where it is no image."""
    if file in search.dicom:
        return []
    if not is_dicom(file):
        search.failures.append(ValueError(f"Expected an image ({', '.join(SUFFIXES)} or DICOM). Received: {file}."))
        return []
    search.dicom.add(file)
    try:
        scan, files = find_scan_of(file, series)
    except ValueError as error:
        search.failures.append(error)
        return []
    search.dicom |= set(files)
    return [(FoundImage(scan.path, "", scan.name, scan.series), False)]


def _file_scan(scan: DicomScan, root: Path) -> FoundImage:
    """Puts a series at its place below the folder that was searched."""
    above = scan.path.parent
    folder = _to_folder(above.relative_to(root)) if above.is_relative_to(root) else ""
    return FoundImage(scan.path, folder, scan.name, scan.series)


def _count_parts(images: Sequence[Path]) -> int:
    """Counts the files that hold the voxels of other files' headers."""
    parts: set[Path] = set()
    for image in images:
        if suffix_of(image) in DETACHED_SUFFIXES:
            try:
                parts |= set(list_files(image)[1:])
            except (OSError, ValueError):
                # The error is said once, when the image is read.
                continue
    return len(parts)


def _find_plain_part(pattern: str) -> Path:
    """Returns the folder of a glob up to its first part with a wildcard."""
    parts = Path(pattern).parts
    plain = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:plain])


def _to_folder(relative: Path) -> str:
    folder = relative.as_posix()
    return "" if folder == "." else folder


def _find_labels(found: Sequence[tuple[FoundImage, bool]], rules: Sequence[LabelRule]) -> set[Path]:
    """Finds the reference labels among images.

    A label follows a data set's rule, has a name such as `a_dseg` or `mask`, or lies in a folder such as `labels`. A file that the user
    named is a label only where its image is given too.
    """
    stems = {image.stem for image, _ in found}
    scans = [image for image, _ in found if not _lies_among_labels(image)]
    plain = {image.stem for image in scans}
    # Of channels the label has the name without the last word, or that of their folder.
    wholes = {stem[: place.start()] for stem in plain for place in re.finditer("[_. -]", stem)} | {scan.path.parent.name for scan in scans}
    scanned = {image.path.parent for image, _ in found if not LABEL_ENDING.search(image.stem)}
    # The ends of the other names, after each separator: `0` for `volume-0`.
    tails = {stem[place.end() :] for stem in stems if not LABEL_BEGINNING.match(stem) for place in re.finditer("^|[_-]", stem)}
    named, numbered = set(), set()
    for image, _ in found:
        stem = image.stem
        for rule in rules:
            label = stem_of(Path(rule.name_label(image.path.name)))
            if label != stem:
                # A rule that only takes something away, such as a channel's number, would call the scan p01 the label of p01_2019.
                (numbered if stem.startswith(label) else named).add(label)
    labels = set()
    for image, searched in found:
        stem = image.stem
        ending = LABEL_ENDING.search(stem)
        base = stem[: ending.start()] if ending else ""
        if ending and not searched and base:
            paired = any(other == base or other.startswith(f"{base}_") for other in stems - {stem})
        else:
            # A whole name such as `mask` belongs to the scans of its folder.
            paired = bool(ending) and (searched or image.path.parent in scanned)
        twin = _lies_among_labels(image) and (stem in plain or stem in numbered or stem in wholes)
        beginning = LABEL_BEGINNING.match(stem)
        begun = bool(beginning) and stem[beginning.end() + 1 :] in tails
        if stem in named or paired or twin or begun:
            labels.add(image.path)
    return labels


def _lies_among_labels(image: FoundImage) -> bool:
    parts = PurePosixPath(image.folder).parts or (image.path.parent.name,)
    return any(LABEL_FOLDER.search(part) for part in parts)


def _part_names(images: Sequence[FoundImage], failures: list[Exception]) -> list[FoundImage]:
    """Gives images of one name in one folder of the output the folders that tell them apart; others become failures."""
    groups: dict[tuple[str, str], list[FoundImage]] = {}
    for image in images:
        groups.setdefault((image.folder, image.stem), []).append(image)
    parted: dict[tuple[str, str], FoundImage] = {}
    for image in images:
        members = groups[image.folder, image.stem]
        parents = {os.path.abspath(member.path.parent) for member in members}
        if len(parents) > 1:
            own = os.path.abspath(image.path.parent)
            image = image._replace(folder=_to_folder(Path(os.path.relpath(own, os.path.commonpath(sorted(parents))))))
        other = parted.setdefault((image.folder, image.stem), image)
        if other is not image:
            failures.append(
                ValueError(f"Expected images of different names. Received: {other.path} and {image.path}. Predict them into two folders.")
            )
    return list(parted.values())


def make_cases(images: Sequence[FoundImage], labels: Path | None, bundle: ModelBundle) -> tuple[list[Case], list[Exception]]:
    """Makes a case of each image, with the label that the model's rule names for it in the folder `labels` or below it.

    Files `<name>_0000`, `<name>_0001`, ... (nnU-Net's way), and files named after channels, are the channels of one case.

    Returns:
        The cases, slices of one scan together, and an error for each image that lacks a channel or whose label is not found. An image
        without its label is a case all the same.

    Raises:
        FileNotFoundError: If `labels` is given and is no folder, or holds no label for any image.
    """
    if labels is not None and not labels.is_dir():
        raise FileNotFoundError(f"Expected a folder of reference labels at {labels}. Received: no such folder. Check the path.")
    groups, failures = group_channels(images, bundle.channels)
    given = None
    if labels is not None:
        given = LabelFolder(labels, [path for path in walk_files(labels, failures.append) if suffix_of(path)], bundle.label_rule)
    cases, lacking = [], []
    for group in groups:
        paths, name, folder = tuple(image.path for image in group.images), group.name, group.folder
        prefix = f"{folder}/" if folder else ""
        volume_id, index = place_in_volume(group.images[0].stem) if bundle.preprocessing.spatial_dims == 2 else (None, 0)
        label = None
        if given is not None:
            try:
                label = given.find(group.images[0].path, name, group.images[0].folder)
            except (FileNotFoundError, ValueError) as error:
                lacking.append(error)
        volume_id = volume_id and prefix + volume_id
        series = tuple(image.series for image in group.images) if any(image.series for image in group.images) else ()
        subject = find_subject(prefix + name) or volume_id or prefix + name
        cases.append(Case(prefix + name, subject, paths, label, None, volume_id, index, series=series))
    if given is not None:
        cases, shared = given.take_shared(cases, [group.folder for group in groups])
        lacking += shared
        if cases and len(lacking) == len(cases):
            raise lacking[0]
    return sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index)), [*failures, *lacking]
