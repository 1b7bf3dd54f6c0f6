"""Finds the DICOM images in a folder that nobody described: a folder of slices is one image, in the place of a file.

Files are known by their content and not read any further: `modules.data.dicom` refuses a folder that holds several series.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from modules.data.files import stem_of
from modules.data.layout_names import read_part, strip_label
from modules.data.series import DICOM_SUFFIXES, is_dicom


def find_dicom_images(root: Path, files: Iterable[Path], others: Collection[Path]) -> tuple[list[Path], set[Path]]:
    """Finds the images that DICOM files make.

    The files of one folder are one image of the folder's name: `images/case1/*.dcm`. Where folders above hold nothing else, the image is
    the one that has the name of a label, else the uppermost: `images/case1/study/series/*.dcm`. Files right in the root, or in `images`
    or `train`, are an image each: `images/case1.dcm`.

    Args:
        root: The folder that is searched.
        files: Files below it that may be DICOM.
        others: The images of other formats, among them the labels.

    Returns:
        The folders and files that are images, and all DICOM files.
    """
    folders: dict[Path, list[Path]] = {}
    for path in files:
        if not path.name.upper().startswith("DICOMDIR") and is_dicom(path):
            folders.setdefault(path.parent, []).append(path)
    numbers = Counter(above for folder in (*folders, *(path.parent for path in others)) for above in (folder, *folder.parents))
    stems = {stem_of(path) for path in others} if folders else set()
    labels = stems.union(*map(strip_label, stems))
    images: list[Path] = []
    for folder, members in folders.items():
        if not _names_case(root, folder):
            images += members
            continue
        wrapping = [folder, *(above for above in folder.parents if numbers[above] == 1 and _names_case(root, above))]
        images.append(next((one for one in wrapping if stem_of(one) in labels), wrapping[-1]))
    return images, {path for members in folders.values() for path in members}


def _names_case(root: Path, folder: Path) -> bool:
    """Tells whether a folder below the root, or one that holds it, has another name than `images`, `labels` or `train`."""
    return folder.is_relative_to(root) and any(read_part(part).rest for part in folder.relative_to(root).parts)


def stem_of_image(path: Path) -> str:
    """Returns the name of an image without the suffix, which may be DICOM's."""
    stem = stem_of(path)
    return Path(stem).stem if Path(stem).suffix.lower() in DICOM_SUFFIXES else stem
