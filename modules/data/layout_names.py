"""Words in the names of files and folders that say what they hold: images, labels, or the cases of one split."""

import functools
import re
from typing import NamedTuple

# Endings of names that reference labels have, or whole names: `a_seg`, `sub-01_dseg`, `mask`.
LABEL_ENDING = re.compile(
    r"(?i)(^|[_. -])(segs?|masks?|msks?|labels?|[dw]seg|aseg|probseg|labelmap|segmentations?|gt|(ground[_-]?)?truth|annotations?|manual"
    r"|rois?)$"
)
# Beginnings of their names, where an image has the rest: `segmentation-0` beside `volume-0`.
LABEL_BEGINNING = re.compile(r"(?i)^(segmentation|seg|mask|labels?|gt)(?=[_-].)")
# Names of their folders.
LABEL_FOLDER = re.compile(r"(?i)(^|[_-])(labels?|segs?|segmentations?|masks?|annotations?|gt|groundtruth)(tr|ts|val)?($|[_-])")
# Endings that predict.py gives to the names of the files that it writes.
OUTPUTS = ("_prediction", "_prediction.seg", "_overlay", "_probabilities")

_LABELS = "labels?|labelmaps?|lbls?|segs?|segmentations?|masks?|masken?|msks?|annotations?|annots?|gts?|groundtruths?|truths?|manual|rois?"
_IMAGES = "images?|imgs?|scans?|volumes?|vols?|pictures?|photos?|bild(er)?|inputs?|mrs|mris"
_SPLITS = {"train": "train|training", "validate": "val|valid|validate|validation", "test": "test|testing"}
# nnU-Net's endings mean a split only behind such a word: `imagesTr`.
_SHORT = {"tr": "train", "ts": "test", "val": "validate", "va": "validate"}
_ALL_SPLITS = "|".join(_SPLITS.values())
# One more number tells several labels of one image apart: `a_mask_1`.
_NUMBERED_LABEL = re.compile(r"(?i)(?<=.)[_. -](seg|mask|label|segmentation|roi)[_. -]?\d+$")
_GLUED_LABEL = re.compile(r"^(?i:segmentation|seg|mask|label|gt)[ ]?(?=\d)|^(?i:segmentation|seg|mask|label|gt)[_. -]+(?=.)")
_IMAGE_BEGINNING = re.compile(rf"(?i)^({_IMAGES})[_. -]*(?=[^_. -])")
_IMAGE_ENDING = re.compile(rf"(?i)(?<=.)[_. -]({_IMAGES})$")


class Part(NamedTuple):
    """The meaning of a folder's name.

    Attributes:
        role: "label", "image", or "" where it says neither.
        split: "train", "validate", "test", or None.
        rest: The other words, in lower case and joined by `_`, so that the folders of images and of their labels have one rest.
    """

    role: str
    split: str | None
    rest: str


@functools.cache
def read_part(name: str) -> Part:
    """Reads the name of one folder: `labelsTr`, `train_masks`, `Training_Set`, `keras_slices_seg_train`, `case_07`."""
    name = re.sub(r"(?i)ground[ _-]?truth", "groundtruth", name)
    words = [word.lower() for word in re.split(r"[_\-. ]+|(?<=[a-z])(?=[A-Z])", name) if word]
    words = [part for word in words for part in _part_word(word)]
    kinds = {"label": _LABELS, "image": _IMAGES}
    roles = {role for role, pattern in kinds.items() for word in words if re.fullmatch(pattern, word)}
    splits = {word: split for split, pattern in _SPLITS.items() for word in words if re.fullmatch(pattern, word)}
    if roles:
        splits |= {word: _SHORT[word] for word in words if word in _SHORT}
    dropped = {*splits, *(("set", "sets") if splits else ())}
    rest = [word for word in words if word not in dropped and not re.fullmatch(f"{_LABELS}|{_IMAGES}", word)]
    role = "label" if "label" in roles else "image" if roles else ""
    # A name of two splits says nothing.
    split = next(iter(splits.values())) if len(set(splits.values())) == 1 else None
    return Part(role, split, "_".join(rest))


def _part_word(word: str) -> list[str]:
    """Parts words that are written as one, such as `imagestr` and `trainimages`."""
    if match := re.fullmatch(rf"({_IMAGES}|{_LABELS})({'|'.join(_SHORT)})", word):
        return [match[1], match[0][len(match[1]) :]]
    if match := re.fullmatch(rf"({_ALL_SPLITS})({_IMAGES}|{_LABELS})", word):
        return [match[1], match[2]]
    return [word]


def find_split(name: str) -> str | None:
    """Returns the split that a single word names, such as "val" or "Testing"; None for any other word."""
    return next((split for split, pattern in _SPLITS.items() if re.fullmatch(pattern, name.strip().lower())), None)


def strip_label(stem: str) -> list[str]:
    """Lists what a label's name may have in common with its image's: `a` for `a_seg`, `001` for `mask_001`; "" for `seg`.

    Nothing is listed for a name without such a word.
    """
    found = [_GLUED_LABEL.sub("", stem)] if _GLUED_LABEL.search(stem) else []
    found += [LABEL_ENDING.sub("", stem)] if LABEL_ENDING.search(stem) else []
    found += [_NUMBERED_LABEL.sub("", stem)] if _NUMBERED_LABEL.search(stem) else []
    return list(dict.fromkeys(found))


def strip_image(stem: str) -> str:
    """Takes the word for an image away from its name: `001` for `image_001`, `a` for `a_img`."""
    return _IMAGE_ENDING.sub("", _IMAGE_BEGINNING.sub("", stem))
