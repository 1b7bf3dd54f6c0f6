"""Turns the DICOM files that a user gives into scans: one series of each study, named after its folder.

Series belong together if they are of one study or lie in one folder. Of these exactly one is predicted: the one that is asked for, or the
only one beside localisers. For a model of several channels there is one for each, in a folder or with a description of the channel's name.
A series that is one file of many frames is a scan of its own, as a NIfTI file is.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modules.data.series import DICOM_SUFFIXES, Found, Series, choose_series, find_series, is_dicom, list_series


class DicomScan(NamedTuple):
    """A series to predict.

    Attributes:
        path: Its folder, or the one file of its frames.
        name: Name of its results.
        series: SeriesInstanceUID, or "" for a file.
    """

    path: Path
    name: str
    series: str


def find_scans(files: Sequence[Path], wanted: str, channels: Sequence[str] = ()) -> tuple[list[DicomScan], list[Exception], list[str]]:
    """Finds the series to predict among DICOM files.

    Args:
        files: The files.
        wanted: UID, number or description of the series that is wanted of each study, or "".
        channels: Names of the model's channels.

    Returns:
        The scans, an error for each study without exactly one series or one for each channel, and remarks on what is left out.
    """
    scans: list[DicomScan] = []
    failures: list[Exception] = []
    remarks: list[str] = []
    for study in _part_studies(find_series(files)):
        pictures = [one for one in study.series if one.head.kind != "no image"]
        if not pictures and not study.damaged:
            remarks.append(f"DICOM files without pictures are left out: {list_series(study.series)}")
            continue
        folder = _find_folder([*(file for one in pictures for file in one.files), *study.damaged])
        usable = [one for one in pictures if not one.head.kind]
        try:
            if len(channels) > 1 and len(usable) > 1 and not wanted and not study.damaged:
                chosen = _choose_channels(usable, channels, folder)
                scans += [
                    DicomScan(folder, f"{folder.name}_{channel}", one.head.uid) for channel, one in zip(channels, chosen, strict=True)
                ]
            else:
                chosen = (choose_series(study, wanted, folder),)
                scans.append(_make_scan(chosen[0], folder, alone=len(usable) < 2))
        except ValueError as error:
            failures.append(error)
            continue
        others = [one for one in study.series if one not in chosen]
        if others:
            names = " and ".join(one.describe_briefly() for one in chosen)
            verb = "is" if len(chosen) == 1 else "are"
            remarks.append(f"DICOM: {names} of {folder} {verb} predicted; left out are {list_series(others)}")
    return scans, failures, remarks


def _choose_channels(series: Sequence[Series], channels: Sequence[str], folder: Path) -> tuple[Series, ...]:
    """Chooses the series of each channel: by the name of a folder that holds it alone, by its description, or by a word of that.

    Raises:
        ValueError: If not exactly one series fits a channel, or one fits two.
    """
    chosen = tuple(match for match in (_match_channel(series, channel, folder) for channel in channels) if match is not None)
    if len({one.head.uid for one in chosen}) < len(channels):
        raise ValueError(
            f"Expected a DICOM series for each channel of the model, {', '.join(channels)}, in {folder}. Received: {list_series(series)}. "
            "Put each into a folder of its channel's name."
        )
    return chosen


def _match_channel(series: Sequence[Series], channel: str, folder: Path) -> Series | None:
    name = channel.casefold()
    word = re.compile(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])")
    tests = (
        lambda one: all(name in _list_folders(file, folder) for file in one.files),
        lambda one: one.head.description.casefold() == name,
        lambda one: bool(word.search(one.head.description.casefold())),
    )
    matches = next((matches for test in tests if (matches := [one for one in series if test(one)])), [])
    return matches[0] if len(matches) == 1 else None


def _list_folders(file: Path, root: Path) -> list[str]:
    """Lists the folders that hold a file, below the root."""
    return [part.casefold() for part in file.parent.resolve().relative_to(root.resolve()).parts]


def find_scan_of(file: Path, wanted: str) -> tuple[DicomScan, tuple[Path, ...]]:
    """Finds the series in a file's folder that the file belongs to, and its files.

    Raises:
        ValueError: If the file is damaged, or is not of the series that is wanted.
    """
    beside = [other for other in sorted(file.parent.iterdir()) if other != file and other.is_file() and is_dicom(other)]
    own = find_series([file])
    for error in own.damaged.values():
        raise error
    uid = own.series[0].head.uid
    found = find_series([file, *beside])
    series = next(one for one in found.series if one.head.uid == uid)
    if wanted:
        choose_series(Found((series,), {}), wanted, file)
    usable = [one for one in found.series if not one.head.kind]
    return _make_scan(series, file.parent, alone=len(usable) < 2), series.files


def _part_studies(found: Found) -> list[Found]:
    """Parts series into groups of one study or one folder. A damaged file goes with its folder."""
    groups: list[tuple[set[tuple[str, str]], list[Series], dict[Path, ValueError]]] = []

    def add(keys: set[tuple[str, str]], series: list[Series], damaged: dict[Path, ValueError]) -> None:
        for group in [group for group in groups if group[0] & keys]:
            keys, series, damaged = keys | group[0], [*group[1], *series], group[2] | damaged
            groups.remove(group)
        groups.append((keys, series, damaged))

    for one in found.series:
        # A file of many frames is told from its neighbours by its study alone. So are reports and segmentations, of which one folder
        # may hold those of many people.
        apart = bool(one.head.study) and (_is_one_file(one) or one.head.kind == "no image")
        folders = set() if apart else {("folder", str(file.parent)) for file in one.files}
        add(folders | ({("study", one.head.study)} if one.head.study else set()), [one], {})
    for path, error in found.damaged.items():
        add({("folder", str(path.parent))}, [], {path: error})
    return [Found(tuple(series), damaged) for _, series, damaged in groups]


def _is_one_file(series: Series) -> bool:
    return len(series.files) == 1 and series.slices > 1


def _find_folder(files: Sequence[Path]) -> Path:
    """Returns the folder that holds all files; one that has a name."""
    folder = Path(os.path.commonpath([file.parent for file in files])) if len(files) > 1 else files[0].parent
    return folder.resolve() if folder.name in ("", "..") else folder


def _make_scan(series: Series, folder: Path, *, alone: bool) -> DicomScan:
    """Names a series after its folder, and after its number and description too where the folder has others to predict."""
    if _is_one_file(series):
        (file,) = series.files
        return DicomScan(file, file.stem if file.suffix.lower() in DICOM_SUFFIXES else file.name, "")
    name = (folder.resolve() if folder.name in ("", "..") else folder).name
    if not alone:
        words = [series.head.number, *series.head.description.split()]
        tag = "_".join("".join(letter if letter.isalnum() else "-" for letter in word) for word in words if word)
        name = f"{name}_{tag[:60] or series.head.uid}"
    return DicomScan(folder, name, series.head.uid)
