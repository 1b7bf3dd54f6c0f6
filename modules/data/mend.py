"""Writes a mended copy of a data set, and never touches the data set itself.

Three faults of NIfTI files can be mended without guessing a voxel: the header of a label that has its image's shape but another place,
whole numbers that are stored as real ones, and axes of one voxel behind the third. All other bytes stay as they are.
"""

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modules.data.alignment import align
from modules.data.case import Case, CaseRules, read_case, read_header, read_label_values
from modules.data.documents import to_line
from modules.data.files import NIFTI_SUFFIXES, replace_file, suffix_of, walk_files
from modules.data.nibabel_files import import_nibabel

RECORD = "mended.json"
# `read_case` takes values within this distance of a whole number for it.
_TOLERANCE = 1e-3
_MOST_AXES = 3


class Mended(NamedTuple):
    """The result of mending.

    Attributes:
        files: What was mended, by the file's path below the data set's folder.
        left: Why a case is still refused, or a file was not copied, a sentence each.
    """

    files: dict[str, str]
    left: list[str]


class _Nifti(NamedTuple):
    """A NIfTI file in parts: nibabel's header, the bytes between it and the voxels, and those of the voxels."""

    header: Any
    between: bytes
    voxels: bytes


def check_target(root: Path, target: Path) -> None:
    """Checks that a mended copy can be written.

    Args:
        root: The data set's folder.
        target: The folder of the copy.

    Raises:
        ValueError: If one folder holds the other, or `target` holds anything but an earlier mended copy of `root`.
    """
    here, there = root.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"Expected --fix with a folder apart from the data in {root}. Received: {target}. Choose a new folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        try:
            source = json.loads((target / RECORD).read_text(encoding="utf-8"))["source"]
        except (OSError, ValueError, KeyError, TypeError):
            source = None
        if source != str(here):
            raise ValueError(
                f"Expected --fix with a new or empty folder, or an earlier mended copy of {root}. Received: {target}. Choose another."
            )


def write_mended(root: Path, target: Path, cases: Sequence[Case], rules: CaseRules) -> Mended:
    """Writes a copy of all files below a folder, with those mended that can be.

    Args:
        root: The data set's folder.
        target: The folder of the copy, see `check_target`.
        cases: The cases of the data set.
        rules: The data set.

    Raises:
        ValueError: From `check_target`.
        OSError: If the copy cannot be written.
    """
    check_target(root, target)
    mended: dict[str, str] = {}
    left = []
    for case in cases:
        for path, (what, content) in _mend_case(case).items():
            if not path.is_relative_to(root):
                left.append(f"{path} lies outside of {root}, so that it is not copied")
            elif (name := path.relative_to(root).as_posix()) not in mended:
                mended[name] = what
                with replace_file(_place(target, name)) as temporary:
                    temporary.write_bytes(gzip.compress(content, 6, mtime=0) if path.name.lower().endswith(".gz") else content)
    for path in walk_files(root):
        if (name := path.relative_to(root).as_posix()) not in mended:
            try:
                with replace_file(_place(target, name)) as temporary:
                    shutil.copyfile(path, temporary)
            except FileNotFoundError:
                left.append(f"{path} is a link to nothing, so that it is not copied")
    left += [refusal for case in cases if (refusal := _find_refusal(_move(case, root, target), rules))]
    record = {"source": str(root.resolve()), "mended": mended, "left": left}
    with replace_file(target / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Mended(mended, left)


def _place(target: Path, name: str) -> Path:
    """Returns the path of a file of the copy; raises ValueError if a link would lead its folder out of the copy."""
    path = target / name
    if not path.parent.resolve().is_relative_to(target.resolve()):
        raise ValueError(f"Expected --fix with a folder without links. Received: {path.parent}, which leads elsewhere. Choose another.")
    return path


def _move(case: Case, root: Path, target: Path) -> Case:
    """Returns the case with the files of the copy."""

    def move(path: Path) -> Path:
        return target / path.relative_to(root) if path.is_relative_to(root) else path

    return replace(case, image_paths=tuple(map(move, case.image_paths)), label_path=case.label_path and move(case.label_path))


def _find_refusal(case: Case, rules: CaseRules) -> str:
    try:
        read_case(case, rules)
    except (OSError, ValueError) as error:
        return to_line(error)
    return ""


def _mend_case(case: Case) -> dict[Path, tuple[str, bytes]]:
    """Mends the files of a case: returns what was done and the content of each that changes, before it is packed."""
    mended = {}
    for path in case.image_paths:
        if suffix_of(path) in NIFTI_SUFFIXES and (result := _mend(path)):
            mended[path] = result
    label = case.label_path
    if label is not None and suffix_of(label) in NIFTI_SUFFIXES and (result := _mend(label, case)):
        mended[label] = result
    return mended


def _mend(path: Path, case: Case | None = None) -> tuple[str, bytes] | None:
    """Mends a file, the label of `case` where one is given; None where nothing can or need be mended."""
    done = []
    try:
        nifti = _split(path)
        axes = int(nifti.header["dim"][0])
        kept = axes
        while kept > _MOST_AXES and nifti.header["dim"][kept] == 1:
            kept -= 1
        if kept < axes:
            nifti.header["dim"][0] = kept
            done.append(f"{axes - kept} axis of one voxel dropped")
        if case is not None:
            values, affine = read_label_values(path)
            if (place := _find_place(case, values, affine)) is not None:
                _set_place(nifti.header, place)
                done.append(f"header taken from {case.image_paths[0].name}")
            if values.dtype.kind == "f" and (np.abs(values - np.rint(values)) <= _TOLERANCE).all():
                before = nifti.header.get_data_dtype()
                nifti = _store_whole(nifti, values)
                done.append(f"{before} stored as {nifti.header.get_data_dtype()}")
    except Exception:  # a damaged file can make nibabel and zlib fail in any way; the check has said what is wrong with it
        return None
    return ("; ".join(done), nifti.header.binaryblock + nifti.between + nifti.voxels) if done else None


def _split(path: Path) -> _Nifti:
    """Reads a NIfTI file in parts."""
    nib = import_nibabel()
    data = path.read_bytes()
    data = gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    # NIfTI-2 says by its first number, its size, that it is one.
    kind = nib.Nifti2Header if 540 in (int.from_bytes(data[:4], order) for order in ("little", "big")) else nib.Nifti1Header
    header = kind(data[: kind.sizeof_hdr], check=False)
    first = int(header["vox_offset"])
    return _Nifti(header, data[kind.sizeof_hdr : first], data[first:])


def _find_place(case: Case, values: np.ndarray, affine: np.ndarray | None) -> np.ndarray | None:
    """Finds the affine that a label should have: its image's, if both have one shape and only the headers differ; else None."""
    image = read_header(case.image_paths)
    shape = image.array.shape[:-1]
    if values.shape != shape or image.affine is None or affine is None or align(values, affine, shape, image.affine) is not None:
        return None
    return image.affine


def _set_place(header: Any, affine: np.ndarray) -> None:
    """Writes an affine to millimetres into a header; raises ValueError where axes of one voxel lie before others."""
    sizes = [int(size) for size in header["dim"][1 : 1 + _MOST_AXES]]
    if sorted(sizes, key=lambda size: size == 1) != sizes:
        raise ValueError("an axis of one voxel before others")
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    header.set_qform(affine, "scanner")
    header.set_sform(affine, "scanner")


def _store_whole(nifti: _Nifti, values: np.ndarray) -> _Nifti:
    """Stores the values of a label as whole numbers of the smallest type that holds them."""
    low, high = values.min(), values.max()
    kind = next(kind for kind in (np.uint8, np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    header = nifti.header.copy()
    header.set_data_dtype(kind)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    voxels = np.rint(values).astype(np.dtype(kind).newbyteorder(header.endianness))
    return _Nifti(header, nifti.between, voxels.tobytes(order="F"))
