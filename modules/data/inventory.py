"""An account of the files of a data set: found, used and left out, so that no case vanishes in silence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modules.data.case import Case
from modules.data.files import suffix_of, walk_files

_MOST_FOLDERS, _MOST_NAMES = 10, 12


def describe_files(root: Path, splits: Mapping[str, Sequence[Case]]) -> list[str]:
    """Counts the image files below a data set's folder, and names those that no case of a split uses.

    Args:
        root: The data set's folder.
        splits: The cases by split.

    Returns:
        A line of counts, a line for each folder with files that are left out, one for each folder that cannot be read, and warnings of
        labels that several cases have.
    """
    used = {os.path.abspath(path) for cases in splits.values() for case in cases for path in (*case.image_paths, case.label_path) if path}
    closed: list[OSError] = []
    found = [path for path in walk_files(root, closed.append) if suffix_of(path)]
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
    return lines + _describe_shared_labels(case for cases in splits.values() for case in cases)


def _describe_shared_labels(cases: Iterable[Case]) -> list[str]:
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
