"""An account of the files of a data set: found, used and left out, so that no case vanishes in silence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modules.data.alignment import align, describe_grid
from modules.data.case import Case
from modules.data.files import PICTURE_SUFFIXES, suffix_of, walk_files
from modules.data.formats import read_grid

_MOST_FOLDERS, _MOST_NAMES = 10, 12
_MOST_LABELS = 5


def describe_files(root: Path, splits: Mapping[str, Sequence[Case]]) -> list[str]:
    """Counts the image files below a data set's folder, and names those that no case of a split uses.

    Args:
        root: The data set's folder.
        splits: The cases by split.

    Returns:
        First a line of counts. Then a line for each folder with unused files, and one for each folder that cannot be read. Last come
        warnings of labels that several cases share.
    """
    used = {os.path.abspath(path) for cases in splits.values() for case in cases for path in case.list_files()}
    closed: list[OSError] = []
    # Files of a DICOM series, and voxels apart from their header, have no suffix of ours.
    found = [path for path in walk_files(root, closed.append) if suffix_of(path) or os.path.abspath(path) in used]
    folders: dict[str, list[str]] = {}
    for path in found:
        if os.path.abspath(path) not in used:
            folders.setdefault(path.parent.relative_to(root).as_posix(), []).append(path.name)
    left_out = sum(map(len, folders.values()))
    lines = [f"files: {len(found)} found below {root}, {len(used)} used, {left_out} left out"]
    for folder, names in list(folders.items())[:_MOST_FOLDERS]:
        lines.append(f"left out in {folder}: {len(names)} ({', '.join(names[:_MOST_NAMES])}{', ...' if len(names) > _MOST_NAMES else ''})")
    if len(folders) > _MOST_FOLDERS:
        lines.append(f"left out in {len(folders) - _MOST_FOLDERS} more folders: {', '.join(list(folders)[_MOST_FOLDERS:][:_MOST_NAMES])}")
    lines += [f"not counted: {error.filename}, {error.strerror}" for error in closed[:_MOST_FOLDERS]]
    return lines + describe_shared_labels(case for cases in splits.values() for case in cases)


def describe_ignored(cases: Iterable[Case]) -> list[str]:
    """Names the labels that lie elsewhere than their images, although `Case.ignore_geometry` uses them voxel by voxel.

    It reads headers alone. A file that cannot be read is passed over, as its case will not be read either.

    Returns:
        A line for each of the first labels, and one that counts the others; none where all lie on their images.
    """
    lines, count = [], 0
    for case in cases:
        files = [case.image_paths[0], case.label_path] if case.ignore_geometry and case.label_path else []
        if not files or any(suffix_of(path) in PICTURE_SUFFIXES for path in files):
            continue
        try:
            image, label = read_grid(files[0], *case.series[:1]), read_grid(files[1])
        except (OSError, ValueError):
            continue
        shape, own = image.array.shape[:-1], label.array.shape[:-1]
        place = label.array[..., 0]
        if shape != own or align(place, label.affine, shape, image.affine) is place:
            continue
        count += 1
        if count <= _MOST_LABELS:
            lines.append(
                f"--ignore-geometry: label {files[1]} is used voxel by voxel. It lies at {describe_grid(own, label.affine)}, its image at "
                f"{describe_grid(shape, image.affine)}"
            )
    if count > _MOST_LABELS:
        lines.append(f"--ignore-geometry: {count} labels lie elsewhere than their images; the first {_MOST_LABELS} are named above")
    return lines


def describe_shared_labels(cases: Iterable[Case]) -> list[str]:
    """Writes a warning for each label file that several cases have. A slip in a list of pairs looks like this."""
    users: dict[Path, list[str]] = {}
    for case in cases:
        if case.label_path is not None:
            users.setdefault(case.label_path, []).append(case.case_id)
    shared = {path: names for path, names in users.items() if len(names) > 1}
    return [
        f"warning: {path} is the label of {len(names)} cases: {', '.join(names[:_MOST_NAMES])}. Check that it fits all of them."
        for path, names in list(shared.items())[:_MOST_FOLDERS]
    ]
