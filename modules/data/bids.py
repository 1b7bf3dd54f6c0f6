"""Finds images and labels in a folder in the Brain Imaging Data Structure, BIDS: `sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`.

Labels are `*_dseg`, or where there are none `*_mask`, below `derivatives` or beside their images. Names are read as BIDS writes them:
`key-value`, joined by `_`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modules.data.folder_layouts import File, Found, Pair, refuse_two_labels

# What a label may say beyond its image.
_OF_LABELS = ("space", "desc", "res", "den", "label", "from", "to", "mode", "hemi", "atlas", "seg", "cohort", "echo", "part")
# Spaces that are the image's own.
_OWN_SPACES = ("orig", "native", "individual", "scanner", "T1w", "T2w", "anat")
_FIRST = "T1w"
_LABELS = ("dseg", "mask", "msk")
_SUBJECT = re.compile(r"(?:^|[/_])(sub-[0-9A-Za-z]+)")


class _Name(NamedTuple):
    """The name of a file: its entities by key, and its suffix such as "T1w"."""

    file: File
    entities: Mapping[str, str]
    suffix: str


def find_bids(root: Path, files: Sequence[File], found: Found) -> bool:
    """Adds the pairs of a BIDS folder to `found`; false where the folder is none, or holds no label that BIDS names.

    Of several kinds of image the one with most labels is taken, T1w before others.

    Raises:
        ValueError: If two labels fit one image, or two images one label.
    """
    names = [name for name in map(_read_name, files) if name is not None]
    labels = _choose_labels(names)
    images = [name for name in names if name.file.parts[0].startswith("sub-") and name.suffix not in _LABELS]
    if not labels or not images:
        return False
    by_subject: dict[str, list[_Name]] = {}
    for image in images:
        by_subject.setdefault(image.entities["sub"], []).append(image)
    suffixes = sorted({image.suffix for image in images})
    fits = {suffix: {label.file.path: _fit(label, by_subject, suffix) for label in labels} for suffix in suffixes}
    chosen = max(suffixes, key=lambda suffix: (sum(map(bool, fits[suffix].values())), suffix == _FIRST))
    matched: dict[Path, list[_Name]] = {}
    for label in labels:
        fitting = fits[chosen][label.file.path]
        if len(fitting) > 1:
            raise ValueError(
                f"Expected one image for the label {label.file.path}. Received: {fitting[0].file.path} and {fitting[1].file.path}. Remove "
                "one, or list the pairs in a table and give it by `--cases`."
            )
        for image in fitting:
            matched.setdefault(image.file.path, []).append(label)
    for image in images:
        if image.suffix == chosen and (own := _prefer(image, matched.get(image.file.path, []))):
            subject = f"sub-{image.entities['sub']}"
            found.pairs.append(Pair(image.file.stem, (image.file.path,), own.file.path, (chosen,), subject=subject))
    if not found.pairs:
        return False
    _leave_out(root, files, found, chosen)
    found.layout = f"BIDS, {chosen} with {labels[0].suffix}"
    return True


def find_subject(name: str) -> str | None:
    """Finds the subject in the name of a case, such as `sub-07` in `sub-07/anat/sub-07_T1w`; None where it names none."""
    match = _SUBJECT.search(name)
    return match[1] if match else None


def match_labels(image: str, labels: Iterable[str]) -> list[str]:
    """Lists the labels that belong to an image by their names: `sub-01_dseg` and `sub-01_desc-manual_dseg` to `sub-01_T1w`.

    Args:
        image: Stem of the image's file.
        labels: Stems of the files that may be labels. A `*_mask` is one where there is no `*_dseg`.

    Returns:
        The stems, those in the image's own space where there are such; nothing for names of another kind.
    """
    own = _read_stem(_to_file(image))
    named = [name for name in (_read_stem(_to_file(label)) for label in labels) if name is not None]
    if own is None:
        return []
    fitting = [name for name in _choose_labels(named) if _fit(name, {own.entities["sub"]: [own]}, own.suffix)]
    return [name.file.stem for name in _prefer_own_space(fitting)]


def _to_file(stem: str) -> File:
    return File(Path(stem), stem, (), "", None, ())


def _read_name(file: File) -> _Name | None:
    """Reads the name of a file in a subject's folder; None for a name of another kind."""
    name = _read_stem(file)
    return name if name is not None and f"sub-{name.entities['sub']}" in file.parts else None


def _read_stem(file: File) -> _Name | None:
    """Reads the name of a file of a subject, wherever it lies; None for a name of another kind."""
    *pairs, suffix = file.stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return _Name(file, entities, suffix) if len(entities) == len(pairs) and entities.get("sub") else None


def _choose_labels(names: Sequence[_Name]) -> list[_Name]:
    """Chooses the labels among files: segmentations, or masks where there are none. A mask of the brain is no label."""
    labels = [name for name in names if name.suffix == "dseg"]
    return labels or [name for name in names if name.suffix in ("mask", "msk") and name.entities.get("desc") != "brain"]


def _fit(label: _Name, by_subject: Mapping[str, Sequence[_Name]], suffix: str) -> list[_Name]:
    """Finds the images of a suffix that a label may belong to: what its name says, theirs say too. The one that says no more wins."""
    own = _strip_entities(label)
    images = [one for one in by_subject.get(own["sub"], ()) if one.suffix == suffix and own.items() <= one.entities.items()]
    return [one for one in images if _strip_entities(one) == own] or images


def _strip_entities(name: _Name) -> dict[str, str]:
    return {key: value for key, value in name.entities.items() if key not in _OF_LABELS}


def _prefer(image: _Name, labels: Sequence[_Name]) -> _Name | None:
    """Chooses the label in the image's own space; raises ValueError if several are."""
    own = _prefer_own_space(labels)
    if len(own) > 1:
        raise refuse_two_labels(image.file.path, own[0].file.path, own[1].file.path)
    return own[0] if own else None


def _prefer_own_space(labels: Sequence[_Name]) -> list[_Name]:
    return [label for label in labels if label.entities.get("space", "orig") in _OWN_SPACES] or list(labels)


def _leave_out(root: Path, files: Sequence[File], found: Found, chosen: str) -> None:
    used = {path for pair in found.pairs for path in (*pair.images, pair.label)}
    for file in files:
        if file.path not in used:
            suffix = file.stem.rpartition("_")[2]
            derived = "derivatives" in file.parts
            reason = f"derived file that is no label of a {chosen}" if derived else f"other image than {chosen}"
            reason = f"{chosen} without a label" if suffix == chosen and not derived else reason
            found.leave_out(reason, [file.path.relative_to(root).as_posix()])
