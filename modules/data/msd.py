"""Folders in the Medical Segmentation Decathlon's layout and in nnU-Net v2's raw layout. Both describe themselves in `dataset.json`."""

import json
import re
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.files import stem_of

_DECATHLON, _NNUNET = "modality", "channel_names"


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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        modalities = content[_NNUNET if _NNUNET in content else _DECATHLON]
        channels = tuple(modalities[key] for key in sorted(modalities, key=int))
        if any(isinstance(value, list) for value in content["labels"].values()):
            raise ValueError("regions (lists of values), which are not supported")
        # The Decathlon writes {"1": "Anterior"}, nnU-Net {"Anterior": 1}.
        pairs = [(int(key), str(name)) if str(key).isdigit() else (int(name), str(key)) for key, name in content["labels"].items()]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"Expected `labels` of one value each and `{_DECATHLON}` or `{_NNUNET}` in {path}. Received: {error!r}. Correct the file."
        ) from error
    pairs.sort()
    values = [value for value, _ in pairs]
    if any(name == "ignore" for _, name in pairs):
        raise ValueError(f"Expected labels of structures in {path}. Received: 'ignore', which is not supported. Leave those cases out.")
    names = [name for _, name in pairs]
    repeated = len(set(values)) < len(values) or len(set(names)) < len(names)
    if not channels or len(pairs) < 2 or repeated or values[0] != 0 or values[-1] > 254:
        raise ValueError(
            f"Expected a channel, and labels of different names and values from 0 (background) to 254 at most, in {path}. "
            f"Received: {len(channels)} channels, labels {values} named {names}. Correct the file."
        )
    return {
        "title": str(content.get("description") or content.get("name") or root.name),
        "licence": str(content.get("licence") or content.get("license") or "not stated in dataset.json"),
        "channels": channels,
        "class_names": tuple(names),
        "label_values": {value: index for index, (value, _) in enumerate(pairs)},
        "suffix": str(content.get("file_ending", ".nii.gz")) if _NNUNET in content else None,
    }


def find_msd(root: Path) -> list[Case]:
    """Finds the cases: images in `imagesTr` with labels of the same name in `labelsTr`. Each case counts as a subject of its own.

    The Decathlon lists its pairs in `dataset.json` and keeps channels in a fourth axis. nnU-Net keeps one file for each channel,
    `..._0000`.

    Raises:
        FileNotFoundError: If there is no `dataset.json` or no image.
        ValueError: If a pair is incomplete or listed twice.
    """
    description = read_description(root)
    cases = _find_nnunet(root, description) if description["suffix"] else _find_decathlon(root)
    if not cases:
        raise FileNotFoundError(f"Expected images in {root / 'imagesTr'}. Received: none. Give the data set's folder with `--data`.")
    if len({case.case_id for case in cases}) < len(cases):
        repeated = next(case.case_id for case in cases if sum(other.case_id == case.case_id for other in cases) > 1)
        raise ValueError(f"Expected each case once in {root / 'dataset.json'}. Received: {repeated} twice. Correct the file.")
    return cases


# A label has its image's file name without nnU-Net's number of the channel.
LABEL_RENAMES = ((r"_\d{4}(\.nii(\.gz)?)$", r"\1"),)


def _find_decathlon(root: Path) -> list[Case]:
    cases = []
    listed = json.loads((root / "dataset.json").read_text(encoding="utf-8")).get("training") or []
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise ValueError(f"Expected image and label of each training case in {root / 'dataset.json'}. Received: {entry!r}.")
        image, label = root / entry["image"], root / entry["label"]
        for path in (image, label):
            if not path.is_file():
                raise ValueError(f"Expected {path}, which dataset.json lists. Received: nothing there. Add it, or take it off the list.")
        cases.append(Case(stem_of(image), stem_of(image), (image,), label))
    return cases


def _find_nnunet(root: Path, description: dict[str, Any]) -> list[Case]:
    suffix, number = description["suffix"], len(description["channels"])
    images, labels = root / "imagesTr", root / "labelsTr"
    # Names come from images and labels: a case that lacks its first channel, or its whole image, must not vanish without a word.
    names = {re.sub(r"_\d{4}$", "", path.name.removesuffix(suffix)) for path in images.glob(f"[!.]*{suffix}")}
    if not names:
        return []
    names |= {path.name.removesuffix(suffix) for path in labels.glob(f"[!.]*{suffix}")}
    cases = []
    for name in sorted(names):
        channels = tuple(images / f"{name}_{channel:04d}{suffix}" for channel in range(number))
        label = labels / f"{name}{suffix}"
        for path in (*channels, label):
            if not path.is_file():
                raise ValueError(f"Expected {path} for case {name}. Received: nothing there. Add it or remove the case.")
        cases.append(Case(name, name, channels, label))
    return cases
