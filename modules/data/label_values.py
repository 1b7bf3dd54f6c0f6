"""The values that label files hold: read from every label once, and kept in the cache."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.data.case import read_label_values
from modules.data.files import fingerprint_files, replace_file
from modules.data.formats import list_files

log = logging.getLogger("mri")

FORMAT = 1
# A label of more values is an image. Regions of a whole brain are fewer.
MOST_VALUES = 1000
_MOST_VALUE = (1 << 24) - 1
_PIECE = 1 << 20


class LabelValues(NamedTuple):
    """The content of one label file.

    Attributes:
        values: Its whole numbers, ascending.
        rank: 2 for a slice, 3 for a volume, 0 for a file that cannot be read.
    """

    values: tuple[int, ...]
    rank: int


def survey_labels(paths: Sequence[Path], cache: Path | None = None, *, tolerant: bool = False) -> list[LabelValues]:
    """Reads which values each label holds, or finds again in the cache what was read of files that did not change.

    Args:
        paths: The labels.
        cache: Folder of the cache, or None.
        tolerant: Whether a file that cannot be read gets the rank 0, unless that holds of all. Nothing is then kept in the cache.

    Raises:
        FileNotFoundError, ValueError: If a file cannot be read, or holds other than whole numbers of 0 or more; it is named.
    """
    if tolerant:
        return _survey_readable(paths)
    path = None if cache is None else cache / "folder-labels.json"
    known = {} if path is None else _read_known(path)
    keys = [f"{FORMAT} {fingerprint_files(list_files(label)) if label.exists() else ''}" for label in paths]
    missing = {key: label for key, label in zip(keys, paths, strict=True) if key not in known}
    if missing:
        log.info("reading the values of %d label(s)", len(missing))
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as executor:
            known |= dict(zip(missing, executor.map(read_values, missing.values()), strict=True))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as temporary:
                temporary.write_text(json.dumps(known), encoding="utf-8")
    return [known[key] for key in keys]


def _survey_readable(paths: Sequence[Path]) -> list[LabelValues]:
    """Reads the values of each label that can be read; raises the first error where none can."""
    surveys, errors = [], []
    for path in paths:
        try:
            surveys.append(read_values(path))
        except (OSError, ValueError) as error:
            errors.append(error)
            surveys.append(LabelValues((), 0))
    if errors and len(errors) == len(surveys):
        raise errors[0]
    return surveys


def read_values(path: Path) -> LabelValues:
    """Reads the values of one label; raises as `survey_labels`."""
    array, _ = read_label_values(path)
    found: set[int] = set()
    flat = array.ravel(order="K")
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if piece.dtype.kind == "f":
            whole = np.rint(piece)
            # Programs that resample labels leave values beside whole numbers; `read_case` allows the same distance.
            strange = piece[~(np.abs(piece - whole) <= 1e-3)]
            if strange.size:
                raise ValueError(
                    f"Expected a label of whole numbers. Received: {strange[0]:g} in {path}. A map of probabilities or an image is no "
                    "label: convert it, or leave it out."
                )
            piece = whole
        least, most = int(piece.min()), int(piece.max())
        if least < 0 or most > _MOST_VALUE:
            wrong = least if least < 0 else most
            raise ValueError(f"Expected label values from 0 to {_MOST_VALUE:,}. Received: {wrong} in {path}. Correct the label.")
        if most - least < 1 << 16:
            offsets = piece.astype(np.int64) - least
            found.update((np.flatnonzero(np.bincount(offsets)) + least).tolist())
        else:
            found.update(np.unique(piece).astype(np.int64).tolist())
        if len(found) > MOST_VALUES:
            raise ValueError(f"Expected a label of at most {MOST_VALUES:,} values. Received: more in {path}, as an image has. Remove it.")
    return LabelValues(tuple(sorted(found)), array.ndim)


def _read_known(path: Path) -> dict[str, LabelValues]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: LabelValues(tuple(map(int, values)), int(rank)) for key, (values, rank) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        log.warning("cache: %s is damaged; the labels are read anew", path)
        return {}
