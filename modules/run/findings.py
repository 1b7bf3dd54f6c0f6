"""Judges what `dataset.py check` measured: errors that spoil a training or its scores, and warnings to look at. All is pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from modules.data.duplicates import BITS, MOST_BITS, Alike, find_alike, find_equal
from modules.data.outliers import find_outliers
from modules.data.spec import DatasetSpec
from modules.run.examine import Examined

ERROR, WARNING = "error", "warning"
# Slices of two scans that must look alike before the scans do.
_LEAST_ALIKE = 3
# Centres of two classes that lie no further apart, in mm, have no side.
_LEAST_APART = 1.0
_AXES = {2: ("axis 0", "axis 1"), 3: ("left-right", "back-front", "feet-head")}
_MOST_NAMED = 10


class Finding(NamedTuple):
    """One thing that the check found.

    Attributes:
        level: "error" or "warning".
        kind: What it is about, in one word.
        text: A sentence.
        scans: Names of the scans, see `Scan`.
        numbers: The numbers in the sentence, by name.
    """

    level: str
    kind: str
    text: str
    scans: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = {}


class Scan(NamedTuple):
    """One scan: a volume, or all slices that were cut from one.

    Attributes:
        name: Its name.
        split: The split that a training puts it in, or "".
        slices: Its cases that could be read.
        voxels: Number of voxels of each class, the background first; regions overlap.
    """

    name: str
    split: str
    slices: tuple[Examined, ...]
    voxels: tuple[int, ...]

    @property
    def labelled(self) -> bool:
        """Tells whether any of its cases has a label."""
        return any(one.case.label_path for one in self.slices)

    @property
    def in_ml(self) -> bool:
        """Tells whether volumes are known in millilitres."""
        return not math.isnan(self.slices[0].voxel_ml)

    def measure_class(self, index: int) -> float:
        """Measures a class in millilitres, or in voxels where their size is not known."""
        return self.voxels[index] * (self.slices[0].voxel_ml if self.in_ml else 1.0)


def join_scans(examined: Iterable[Examined], splits: Mapping[tuple[str, str | None], str]) -> list[Scan]:
    """Joins the slices of one scan and split; cases that cannot be read are left out.

    Args:
        examined: The cases.
        splits: The split of a case in a training, by its name and official split.
    """
    members: dict[tuple[str, str], list[Examined]] = {}
    for one in examined:
        if one.measures:
            split = splits.get((one.case.case_id, one.case.split), "")
            members.setdefault((one.case.volume_id or one.case.case_id, split), []).append(one)
    scans = []
    for (name, split), slices in members.items():
        counts = zip(*(one.measures.voxels for one in slices if one.measures), strict=True)
        scans.append(Scan(name, split, tuple(slices), tuple(map(sum, counts))))
    return scans


def judge(examined: Iterable[Examined], scans: Sequence[Scan], spec: DatasetSpec) -> list[Finding]:
    """Lists what is wrong or unusual, errors first."""
    findings = [Finding(ERROR, "refused", one.refusal, (one.case.volume_id or one.case.case_id,)) for one in examined if one.refusal]
    findings += _find_copies(scans) + _find_lookalikes(scans, spec.spatial_dims)
    findings += _find_swapped(scans, spec) + _find_absent(scans, spec) + _find_unusual(scans, spec)
    return sorted(findings, key=lambda finding: finding.level != ERROR)


def _find_copies(scans: Sequence[Scan]) -> list[Finding]:
    """Finds images that are equal voxel by voxel. Between two splits that is an error: scores would not be of unseen scans."""
    slices = [(scan, one) for scan in scans for one in scan.slices]
    found = []
    for places in find_equal([one.digest for _, one in slices]):
        members = [slices[place] for place in places]
        names = tuple(dict.fromkeys(scan.name for scan, _ in members))
        subjects = sorted({one.case.subject_id for _, one in members})
        files = _join([_name_file(scan, one) for scan, one in members], " and ")
        if len({scan.split for scan, _ in members} - {""}) > 1:
            level, kind, why = ERROR, "leak", ", so that scores are not of unseen scans"
        else:
            level, kind, why = WARNING, "copy", f", although of {_join(subjects, ' and ')}" if len(subjects) > 1 else ", and count twice"
        found.append(Finding(level, kind, f"equal voxel by voxel{why}: {files}. Remove one", names))
    return found


def _find_lookalikes(scans: Sequence[Scan], rank: int) -> list[Finding]:
    """Finds scans of two subjects that look like one. Of slices, three of each scan must have a partner in the other."""
    slices = [(number, one) for number, scan in enumerate(scans) for one in scan.slices]
    columns = zip(*((one.look, one.case.subject_id, one.digest) for _, one in slices), strict=True)
    looks, subjects, digests = columns if slices else ((), (), ())
    partners: dict[tuple[int, int], list[Alike]] = {}
    for pair in find_alike(looks, rank, subjects, digests):
        partners.setdefault((slices[pair.first][0], slices[pair.second][0]), []).append(pair)
    found = []
    for numbers, pairs in partners.items():
        both = [scans[number] for number in numbers]
        least = min(_LEAST_ALIKE, *(len(scan.slices) for scan in both))
        if min(len({pair.first for pair in pairs}), len({pair.second for pair in pairs})) < least:
            continue
        files = " and ".join(_name_file(scan, slices[place][1]) for scan, place in zip(both, pairs[0][:2], strict=True))
        more = f", and {len(pairs) - 1} more pairs of their slices look alike" if len(pairs) > 1 else ""
        text = (
            f"of two subjects, but they look alike: {files} differ in {pairs[0].distance} of {BITS[rank]} bits of their perceptual hashes "
            f"(up to {MOST_BITS[rank]} count as alike){more}. Give them one subject by --subjects, or remove one"
        )
        found.append(Finding(WARNING, "alike", text, tuple(scan.name for scan in both), {"distance": pairs[0].distance}))
    return found


def _find_swapped(scans: Sequence[Scan], spec: DatasetSpec) -> list[Finding]:
    """Finds cases in which two classes that mirror lie the other way round than in most cases."""
    found = []
    for number, indices in enumerate(spec.mirrored_indices()):
        first, second = (spec.class_names[index] for index in indices)
        sides = [(scan, one, one.sides[number]) for scan in scans for one in scan.slices if one.sides]
        sides = [entry for entry in sides if abs(entry[-1]) > _LEAST_APART]
        right = sum(side > 0 for *_, side in sides)
        most = max(right, len(sides) - right)
        if 2 * most == len(sides):
            continue
        usual = "right" if right == most else "left"
        for scan, one, side in sides:
            own = "right" if side > 0 else "left"
            if own != usual:
                text = (
                    f"left and right are swapped in {one.case.label_path}: the centre of '{first}' lies {abs(side):.1f} mm to the {own} of "
                    f"that of '{second}', in {most} of {len(sides)} cases to the {usual}. Mend its values or its header"
                )
                found.append(Finding(ERROR, "sides", text, (scan.name,), {"mm_to_the_right": side}))
    return found


def _find_absent(scans: Sequence[Scan], spec: DatasetSpec) -> list[Finding]:
    """Finds classes that are in no label, in none of the training, or in most scans but not in all."""
    labelled = [scan for scan in scans if scan.labelled]
    empty = [scan.name for scan in labelled if not any(scan.voxels[1:])]
    training = [scan for scan in labelled if scan.split == "train"]
    found = []
    if empty:
        found.append(Finding(WARNING, "empty", f"only background in the labels of {len(empty)} scan(s): {_join(empty)}", tuple(empty)))
    for index, name in list(enumerate(spec.class_names))[1:] if labelled else ():
        lacking = [scan.name for scan in labelled if not scan.voxels[index] and any(scan.voxels[1:])]
        if not any(scan.voxels[index] for scan in labelled):
            found.append(Finding(WARNING, "absent", f"'{name}' is in no label. Check the values of the label files"))
        elif training and not any(scan.voxels[index] for scan in training):
            found.append(Finding(WARNING, "absent", f"'{name}' is in no label of the training split, so that no network can learn it"))
        if lacking and 2 * len(lacking) < len(labelled):
            text = f"'{name}' is in most scans, but not in {len(lacking)} of {len(labelled)}: {_join(lacking)}"
            found.append(Finding(WARNING, "absent", text, tuple(lacking)))
    return found


def _find_unusual(scans: Sequence[Scan], spec: DatasetSpec) -> list[Finding]:
    """Finds scans with an unusual volume of a class, size of a voxel or brightness."""
    found = []
    for index, name in list(enumerate(spec.class_names))[1:]:
        holding = [scan for scan in scans if scan.labelled and scan.voxels[index]]
        unit = " ml" if all(scan.in_ml for scan in holding) else " pixels" if spec.spatial_dims == 2 else " voxels"
        found += _list_outliers(f"volume of '{name}'", unit, [(scan.name, scan.measure_class(index)) for scan in holding], relative=True)
    for axis, name in enumerate(_AXES[spec.spatial_dims]):
        sizes = [(scan.name, one.measures.spacing_mm[axis]) for scan in scans for one in scan.slices[:1] if one.measures]
        found += _list_outliers(f"voxel size {name}", " mm", sizes, relative=True)
    for channel, name in enumerate(spec.channels):
        medians = [(scan.name, fmean(one.intensities[channel][1] for one in scan.slices)) for scan in scans]
        # Scanners measure magnitudes; Hounsfield units may lie below 0.
        found += _list_outliers(f"median intensity of {name}", "", medians, relative=all(value > 0 for _, value in medians))
    return found


def _list_outliers(measure: str, unit: str, values: Sequence[tuple[str, float]], *, relative: bool) -> list[Finding]:
    """Describes the outliers among the values of scans, a sentence each."""
    found = []
    for outlier in find_outliers([value for _, value in values], relative=relative):
        name, z = values[outlier.place][0], outlier.z if math.isfinite(outlier.z) else None
        far = "most are equal" if z is None else f"z {z:+.1f}"
        value, median = (f"{format_number(number)}{unit}" for number in (outlier.value, outlier.median))
        text = f"unusual {measure} in {name}: {value}, where the median is {median} ({far})"
        numbers = {"measure": measure, "unit": unit.strip(), "value": outlier.value, "median": outlier.median, "z": z}
        found.append(Finding(WARNING, "outlier", text, (name,), numbers))
    return found


def format_number(value: float) -> str:
    """Formats a number with four digits, and large ones without an exponent."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _name_file(scan: Scan, one: Examined) -> str:
    return f"{one.case.image_paths[0]}{f' ({scan.split})' if scan.split else ''}"


def _join(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(names[:_MOST_NAMED]) + (f"{separator}{len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
