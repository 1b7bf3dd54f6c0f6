"""Turns the paths that a user gives into the cases that are predicted."""

import glob
from collections.abc import Sequence
from pathlib import Path

from modules.data.case import Case, LabelRule, place_in_volume
from modules.data.files import SUFFIXES, stem_of, suffix_of
from modules.predict.bundle import ModelBundle

# The endings that predict.py gives to the names of the files that it writes.
OUTPUTS = ("_prediction", "_overlay", "_probabilities")


def find_images(paths: Sequence[str], rules: Sequence[LabelRule]) -> list[Path]:
    """Resolves files, folders (with all that is below them) and globs to images; leaves out their labels and earlier output.

    Args:
        paths: Files, folders and globs.
        rules: Label rules of all data sets. They recognise a label by its name, in any folder.

    Raises:
        FileNotFoundError: If a path matches nothing.
        ValueError: If a file is of an unknown kind, or two images would be written under one name.
    """
    files: list[Path] = []
    for path in paths:
        if Path(path).is_file():
            found = [Path(path)]
        else:
            below = Path(path).rglob("*") if Path(path).is_dir() else (Path(name) for name in glob.glob(path, recursive=True))
            found = sorted(file for file in below if file.is_file() and suffix_of(file) and not file.name.startswith("."))
            found = [file for file in found if not stem_of(file).endswith(OUTPUTS)]
        if not found:
            raise FileNotFoundError(f"Expected images ({', '.join(SUFFIXES)}) at {path}. Received: none there. Check the path.")
        files += found
    labels = {name for file in files for rule in rules if (name := rule.name_label(file.name)) != file.name}
    images: dict[str, Path] = {}
    for file in files:
        if file.name in labels:
            continue
        if not suffix_of(file):
            raise ValueError(f"Expected an image ({', '.join(SUFFIXES)}). Received: {file}.")
        if images.setdefault(stem_of(file), file) != file:
            raise ValueError(
                f"Expected images of different names. Received: {images[stem_of(file)]} and {file}. Predict them in two calls."
            )
    return list(images.values())


def make_cases(files: Sequence[Path], labels: Path | None, bundle: ModelBundle) -> list[Case]:
    """Makes a case of each image, with the label that the model's rule names for it in the folder `labels` or below it.

    Files `<name>_0000`, `<name>_0001`, ... (nnU-Net's way) are the channels of one case.

    Raises:
        FileNotFoundError: If `labels` is given and holds no label for an image.
        ValueError: If it holds several labels for an image.
    """
    candidates: dict[str, list[Path]] = {}
    for path in labels.rglob("*") if labels is not None else ():
        candidates.setdefault(path.name, []).append(path)
    cases = []
    for paths in group_channels(files, len(bundle.channels)):
        file, name = paths[0], stem_of(paths[0])
        volume_id, index = place_in_volume(name) if bundle.preprocessing.spatial_dims == 2 else (None, 0)
        if len(paths) > 1:
            name = name.removesuffix("_0000")
        label = None
        if labels is not None:
            names = dict.fromkeys([bundle.label_rule.name_label(file.name), file.name])
            found = next(filter(None, ([path for path in candidates.get(other, ()) if path != file] for other in names)), [])
            if not found:
                raise FileNotFoundError(f"Expected a label for {file}. Received: no {' or '.join(names)} in {labels}.")
            if len(found) > 1:
                raise ValueError(f"Expected one label for {file}. Received: {found[0]} and {found[1]}. Name a folder with one of them.")
            label = found[0]
        cases.append(Case(name, volume_id or name, paths, label, None, volume_id, index))
    return sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index))


def group_channels(files: Sequence[Path], channels: int) -> list[tuple[Path, ...]]:
    """Groups files `<name>_0000`, `<name>_0001`, ... of one case, for a model of several channels; others stay alone.

    Raises:
        FileNotFoundError: If a channel's file is not among `files`.
    """
    if channels == 1:
        return [(file,) for file in files]
    given = set(files)
    groups, grouped = [], set()
    for first in files:
        if stem_of(first).endswith("_0000"):
            stem = stem_of(first).removesuffix("_0000")
            group = tuple(first.with_name(f"{stem}_{channel:04d}{suffix_of(first)}") for channel in range(channels))
            for file in group:
                if file not in given:
                    raise FileNotFoundError(f"Expected {channels} channels of {first}. Received: no {file.name}. Give all its files.")
            groups.append(group)
            grouped |= set(group)
    return groups + [(file,) for file in files if file not in grouped]
