"""Folders in the Medical Segmentation Decathlon's layout and in nnU-Net v2's raw layout. Both describe themselves in `dataset.json`."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.documents import read_json, refuse_field, shorten, text, to_line
from modules.data.files import NIFTI_SUFFIXES, PICTURE_SUFFIXES, SUFFIXES, index_images, stem_of

log = logging.getLogger("mri")

_DECATHLON, _NNUNET = "modality", "channel_names"
# Characters of title and licence that are shown.
_MOST_TEXT = 500


def read_description(root: Path) -> dict[str, Any]:
    """Reads and checks `dataset.json`.

    Returns:
        `channels` and `class_names` (tuples, the background first), `label_values` ({value: class}), `licence`, `title`, and
        `suffix`. The suffix is that of nnU-Net's files, else None.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the file follows neither layout.
    """
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path}, which describes the data set. Received: nothing there. Give its folder with `--data`.")
    content = read_json(path, "Correct the file.")
    try:
        if not isinstance(content, dict):
            raise ValueError(shorten(content))
        modalities = content[_NNUNET if _NNUNET in content else _DECATHLON]
        for value in (modalities, content["labels"]):
            if not isinstance(value, dict):
                raise ValueError(f"{shorten(value)}, which is no object")
        channels = tuple(modalities[key] for key in sorted(modalities, key=int))
        if any(isinstance(value, list) for value in content["labels"].values()):
            raise ValueError("regions (lists of values), which are not supported")
        pairs = _read_labels(content["labels"], _NNUNET in content)
    except (KeyError, ValueError, OverflowError) as error:
        reason = f"no `{error.args[0]}`" if isinstance(error, KeyError) else to_line(error)
        raise ValueError(
            f"Expected `labels` of one value each and `{_DECATHLON}` or `{_NNUNET}` in {path}. Received: {reason}. Correct the file."
        ) from error
    _check_names(channels, [name for _, name in pairs], path)
    pairs.sort()
    values = [value for value, _ in pairs]
    if any(name == "ignore" for _, name in pairs):
        raise ValueError(f"Expected labels of structures in {path}. Received: 'ignore', which is not supported. Leave those cases out.")
    names = [name for _, name in pairs]
    repeated = len(set(values)) < len(values) or len(set(names)) < len(names)
    if not channels or len(pairs) < 2 or repeated or values[0] != 0 or values[-1] > 254:
        raise ValueError(
            f"Expected a channel, and labels of different names and values from 0 (background) to 254 at most, in {path}. "
            f"Received: {len(channels)} channels, labels {shorten(values)} named {shorten(names)}. Correct the file."
        )
    return {
        "title": str(content.get("description") or content.get("name") or root.name)[:_MOST_TEXT],
        "licence": str(content.get("licence") or content.get("license") or "not stated in dataset.json")[:_MOST_TEXT],
        "channels": channels,
        "class_names": tuple(names),
        "label_values": {value: index for index, (value, _) in enumerate(pairs)},
        "suffix": str(content.get("file_ending", ".nii.gz")) if _NNUNET in content else None,
    }


def _check_names(channels: Sequence[Any], names: Sequence[str], path: Path) -> None:
    """Raises ValueError for a channel or a class whose name no table could show."""
    rule = text(least=1)
    for key, given in (("channels", channels), ("labels", names)):
        for name in given:
            if not rule.holds(name):
                raise refuse_field(key, f"names, each {rule.expected},", shorten(name), path, "Correct the file.")


def _read_labels(labels: Mapping[str, Any], nnunet: bool) -> list[tuple[int, str]]:
    """Reads labels as pairs of a value and a name. The Decathlon writes `{"1": "Anterior"}`, nnU-Net `{"Anterior": 1}`.

    Names may be digits too, so the layout says which is which. The other way is read only where the layout's own gives no values.
    """
    ways = [list(labels.items()), [(value, name) for name, value in labels.items()]]
    for pairs in reversed(ways) if nnunet else ways:
        if all(_is_whole(value) for value, _ in pairs):
            return [(int(value), str(name)) for value, name in pairs]
    raise ValueError(f"labels {shorten(dict(labels))}, which have no whole numbers for values")


def _is_whole(value: object) -> bool:
    """Tells whether a value of JSON is a whole number, or a text of digits."""
    if isinstance(value, str):
        return value.isdecimal()
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)


def find_msd(root: Path) -> list[Case]:
    """Finds the cases: images in `imagesTr` with labels of the same name in `labelsTr`. Each case counts as a subject of its own.

    The Decathlon lists its pairs under `training` in `dataset.json` and keeps channels in a fourth axis. nnU-Net keeps one file for
    each channel, `..._0000`, and may list its cases under `dataset`. Without a list the folders say which cases there are.

    Raises:
        FileNotFoundError: If there is no `dataset.json` or no image.
        ValueError: If a pair is incomplete or listed twice.
    """
    description = read_description(root)
    content = read_json(root / "dataset.json", "Correct the file.")
    number = len(description["channels"])
    if description["suffix"] and "dataset" in content:
        cases = _find_mapped(root, content["dataset"], number)
    elif description["suffix"] is None and content.get("training") is not None:
        cases = _find_listed(root, content["training"])
    else:
        cases = _find_in_folders(root, description["suffix"], number)
    if not cases:
        raise FileNotFoundError(f"Expected images in {root / 'imagesTr'}. Received: none. Give the data set's folder with `--data`.")
    promised = content.get("numTraining", len(cases))
    if promised != len(cases):
        log.warning("%s says numTraining %r, but %d training cases are there", root / "dataset.json", promised, len(cases))
    return cases


# A label has its image's file name without nnU-Net's number of the channel.
LABEL_RENAMES = ((r"_\d{4}((?i:\.nii(\.gz)?))$", r"\1"),)


def _find_listed(root: Path, listed: Any) -> list[Case]:
    """Finds the pairs that the Decathlon lists."""
    if listed == []:
        raise FileNotFoundError(
            f"Expected cases in `training` of {root / 'dataset.json'}. Received: none. List them, or remove the entry to take all "
            f"images in {root / 'imagesTr'}."
        )
    cases: dict[str, Case] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise ValueError(f"Expected image and label of each training case in {root / 'dataset.json'}. Received: {shorten(entry)}.")
        image, label = _resolve(root, entry["image"]), _resolve(root, entry["label"])
        case = Case(stem_of(image), stem_of(image), (image,), label)
        if case.case_id in cases:
            raise ValueError(f"Expected each case once in {root / 'dataset.json'}. Received: {case.case_id} twice. Correct the file.")
        cases[case.case_id] = case
    return list(cases.values())


def _find_mapped(root: Path, mapping: Any, number: int) -> list[Case]:
    """Finds the cases that nnU-Net lists: `{name: {"images": [a file a channel], "label": file}}`."""
    path = root / "dataset.json"
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"Expected a mapping from cases to their files in `dataset` of {path}. Received: {shorten(mapping)}. Correct it.")
    cases = []
    for name, entry in mapping.items():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        given = isinstance(images, list) and all(isinstance(file, str) for file in images)
        if not given or not isinstance(label, str) or Path(name).name != name:
            received = f"{shorten(name)}: {shorten(entry)}"
            raise ValueError(f"Expected a name, `images` and `label` of each case in `dataset` of {path}. Received: {received}.")
        if len({os.path.normpath(file) for file in images}) < len(images):
            received = shorten(images)
            raise ValueError(f"Expected a file of its own for each channel of {name} in {path}. Received: {received}. Correct the file.")
        if len(images) != number:
            raise ValueError(f"Expected {number} images, one a channel, of {name} in {path}. Received: {len(images)}. Correct the file.")
        cases.append(Case(name, name, tuple(_resolve(root, file) for file in images), _resolve(root, label)))
    return cases


def _resolve(root: Path, name: str) -> Path:
    """Returns the file that `dataset.json` lists; its ending may be another one, such as `.NII.GZ` for `.nii.gz`."""
    path = root / os.path.expandvars(name)
    try:
        found = path if path.is_file() else index_images(path.parent).get(stem_of(path))
    except OSError as error:  # A name may be too long for the file system.
        raise ValueError(
            f"Expected names of files in {root / 'dataset.json'}. Received: {shorten(name)}: {error.strerror}. Correct the file."
        ) from error
    if found is None:
        listed = path if len(name) <= _MOST_TEXT and name.isprintable() else shorten(name)
        raise ValueError(f"Expected {listed}, which dataset.json lists. Received: nothing there. Add it, or take it off the list.")
    return found


def _find_in_folders(root: Path, suffix: str | None, number: int) -> list[Case]:
    """Finds the cases that lie in `imagesTr` and `labelsTr`; with nnU-Net's `suffix`, one file for each of `number` channels."""
    suffixes = _choose_suffixes(suffix, root)
    images, labels = (index_images(root / name, suffixes) for name in ("imagesTr", "labelsTr"))
    # Names come from images and labels: a case that lacks its first channel, or its whole image, must not vanish without a word.
    names = {re.sub(r"_\d{4}$", "", stem) if suffix else stem for stem in images}
    if not names:
        return []
    cases = []
    for name in sorted(names | set(labels)):
        stems = [f"{name}_{channel:04d}" for channel in range(number)] if suffix else [name]
        for stem, folder, found in (*((stem, "imagesTr", images) for stem in stems), (name, "labelsTr", labels)):
            if stem not in found:
                path = root / folder / f"{stem}{suffix or '.nii.gz'}"
                raise ValueError(f"Expected {path} for case {name}. Received: nothing there. Add it or remove the case.")
        cases.append(Case(name, name, tuple(images[stem] for stem in stems), labels[name]))
    return cases


def _choose_suffixes(suffix: str | None, root: Path) -> Sequence[str]:
    """Returns the endings of the kind that `file_ending` of nnU-Net is of. Copies and other programs change one into another."""
    if suffix is None:
        return NIFTI_SUFFIXES
    for suffixes in (NIFTI_SUFFIXES, PICTURE_SUFFIXES):
        if suffix.lower() in suffixes:
            return suffixes
    raise ValueError(
        f"Expected a `file_ending` of {', '.join(SUFFIXES)} in {root / 'dataset.json'}. Received: {shorten(suffix)}. Convert the files."
    )
