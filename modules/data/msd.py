"""Folders in the Medical Segmentation Decathlon's layout and in nnU-Net v2's raw layout. Both describe themselves in `dataset.json`."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.documents import read_json, refuse_field, shorten, text, to_line
from modules.data.files import FREESURFER_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES, SUFFIXES, index_images, stem_of
from modules.data.regions import IGNORE, MOST_CLASSES, Region, find_hidden, find_mistaken

log = logging.getLogger("mri")

_DECATHLON, _NNUNET = "modality", "channel_names"
_ORDER = "regions_class_order"
# nnU-Net's name of the label for voxels that nobody judged, and the highest value that 8-bit files can give it.
_IGNORED, _MOST_VALUE = "ignore", 255
# Characters of title and licence that are shown.
_MOST_TEXT = 500


def read_description(root: Path) -> dict[str, Any]:
    """Reads and checks `dataset.json`.

    Returns:
        `channels` and `class_names` (tuples, the background first), `label_values` ({value: class, part or `IGNORE`}), `regions`
        (empty where classes exclude one another), `licence`, `title`, and `suffix`. The suffix is that of nnU-Net's files, else None.

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
        pairs = _read_labels(content["labels"], _NNUNET in content)
    except (KeyError, ValueError, OverflowError) as error:
        reason = f"no `{error.args[0]}`" if isinstance(error, KeyError) else to_line(error)
        raise ValueError(
            f"Expected `labels` of one value each and `{_DECATHLON}` or `{_NNUNET}` in {path}. Received: {reason}. Correct the file."
        ) from error
    _check_names(channels, [name for _, name in pairs], path)
    ignored = _take_ignored(pairs, path)
    regions = any(len(group) > 1 for group, _ in pairs)
    if not regions:
        pairs.sort()
    values = [value for group, _ in pairs for value in group]
    names = [name for _, name in pairs]
    repeated = (not regions and len(set(values)) < len(values)) or len(set(names)) < len(names)
    known = sorted(set(values))
    if not channels or len(pairs) < 2 or repeated or known[0] != 0 or known[-1] > 254 or len(known) > MOST_CLASSES:
        raise ValueError(
            f"Expected a channel, and labels of different names and values from 0 (background) to 254 at most, in {path}. "
            f"Received: {len(channels)} channels, labels {shorten(values)} named {shorten(names)}. Correct the file."
        )
    if regions:
        pairs.sort(key=lambda pair: pair[0] != [0])
        names = [name for _, name in pairs]
    return {
        "title": str(content.get("description") or content.get("name") or root.name)[:_MOST_TEXT],
        "licence": str(content.get("licence") or content.get("license") or "not stated in dataset.json")[:_MOST_TEXT],
        "channels": channels,
        "class_names": tuple(names),
        "label_values": {value: index for index, value in enumerate(known)} | dict.fromkeys(ignored, IGNORE),
        "regions": _read_regions(pairs, known, content.get(_ORDER), path) if regions else (),
        "suffix": str(content.get("file_ending", ".nii.gz")) if _NNUNET in content else None,
    }


def _check_names(channels: Sequence[Any], names: Sequence[str], path: Path) -> None:
    """Raises ValueError for a channel or a class whose name no table could show."""
    rule = text(least=1)
    for key, given in (("channels", channels), ("labels", names)):
        for name in given:
            if not rule.holds(name):
                raise refuse_field(key, f"names, each {rule.expected},", shorten(name), path, "Correct the file.")


def _read_labels(labels: Mapping[str, Any], nnunet: bool) -> list[tuple[list[int], str]]:
    """Reads labels as pairs of values and a name. The Decathlon writes `{"1": "Anterior"}`, nnU-Net `{"Anterior": 1}`.

    Names may be digits too, so the layout says which is which. The other way is read only where the layout's own gives no values. nnU-Net
    writes a region as a list of values.
    """
    if nnunet and any(isinstance(value, list) for value in labels.values()):
        groups = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
        for name, group in groups.items():
            if not group or not all(_is_whole(value) for value in group):
                raise ValueError(f"{shorten(labels[name])} for {shorten(name)}, which is no list of one whole number or more")
        return [(sorted({int(value) for value in group}), name) for name, group in groups.items()]
    ways = [list(labels.items()), [(value, name) for name, value in labels.items()]]
    for pairs in reversed(ways) if nnunet else ways:
        if all(_is_whole(value) for value, _ in pairs):
            return [([int(value)], str(name)) for value, name in pairs]
    raise ValueError(f"labels {shorten(dict(labels))}, which have no whole numbers for values")


def _take_ignored(pairs: list[tuple[list[int], str]], path: Path) -> list[int]:
    """Takes the label named "ignore" out of the pairs, and returns its value in a list; none where there is no such label.

    Raises:
        ValueError: If it is not one value above those of all other labels.
    """
    ignored = next((group for group, name in pairs if name == _IGNORED), None)
    if ignored is None:
        return []
    pairs[:] = [(group, name) for group, name in pairs if name != _IGNORED]
    if len(ignored) > 1:
        raise ValueError(f"Expected one value for the label '{_IGNORED}' in {path}. Received: {ignored}. Correct the file.")
    for group, name in pairs:
        if ignored[0] in group:
            received = f"{ignored[0]} in {shorten(name)} too"
            raise ValueError(f"Expected a value of its own for the label '{_IGNORED}' in {path}. Received: {received}. Correct the file.")
    highest = max((value for group, _ in pairs for value in group), default=0)
    if not highest < ignored[0] <= _MOST_VALUE:
        raise ValueError(
            f"Expected the highest value of all labels, and at most {_MOST_VALUE}, for '{_IGNORED}' in {path}. Received: {ignored[0]}, "
            f"where another label has {highest}. Correct the file and the labels."
        )
    return ignored


def _read_regions(pairs: Sequence[tuple[list[int], str]], known: Sequence[int], order: Any, path: Path) -> tuple[Region, ...]:
    """Reads regions, which are pairs of values and a name after the background's, and `order`, the value that each is painted with.

    Raises:
        ValueError: If the background is in a region, or `order` does not fit the regions.
    """
    regions = pairs[1:]
    if pairs[0][0] != [0] or any(0 in group for group, _ in regions):
        received = shorten({name: group for group, name in pairs if 0 in group})
        raise ValueError(f"Expected the value 0 for the background alone, in {path}. Received: {received}. Correct the file.")
    names = ", ".join(shorten(name) for _, name in regions)
    if not isinstance(order, list) or not all(_is_whole(value) for value in order):
        received = "none" if order is None else shorten(order)
        raise ValueError(
            f"Expected `{_ORDER}`, a list of the value that each region is painted with ({names}), in {path}. Received: {received}. Add it."
        )
    if len(order) != len(regions):
        received = f"{len(order)}, {shorten(order)}"
        raise ValueError(
            f"Expected {len(regions)} values, one a region ({names}), in `{_ORDER}` of {path}. Received: {received}. Correct it."
        )
    for value, (group, name) in zip(map(int, order), regions, strict=True):
        if value not in group:
            received = f"{value} for {shorten(name)}, which has {group}"
            raise ValueError(f"Expected values of their own regions in `{_ORDER}` of {path}. Received: {received}. Correct it.")
    found = tuple(
        Region(tuple(known.index(value) for value in group), known.index(int(value)))
        for value, (group, _) in zip(order, regions, strict=True)
    )
    if hidden := find_hidden(found):
        raise ValueError(
            f"Expected `{_ORDER}` of {path} to leave something of each region. Received: {shorten(order)}, which paints later regions over "
            f"all of {shorten(regions[hidden[0]][1])}. In `labels` and here, put large regions before the small ones within them."
        )
    return found


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
    values = sorted(description["label_values"])
    for place, part in find_mistaken(description["regions"]):
        name = description["class_names"][place + 1]
        log.warning(
            "%s: no label map can say of value %d whether it is '%s'; `%s` paints another",
            root / "dataset.json",
            values[part],
            name,
            _ORDER,
        )
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
    for suffixes in (NIFTI_SUFFIXES, PICTURE_SUFFIXES, FREESURFER_SUFFIXES, ITK_SUFFIXES):
        if suffix.lower() in suffixes:
            return suffixes
    raise ValueError(
        f"Expected a `file_ending` of {', '.join(SUFFIXES)} in {root / 'dataset.json'}. Received: {shorten(suffix)}. Convert the files."
    )
