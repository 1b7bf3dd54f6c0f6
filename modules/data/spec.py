"""The description of a data set, before and after its folder was looked at."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modules.data.case import Case, LabelRule, Volume
from modules.data.folder_set import Wishes, find_hint, find_sides
from modules.data.preprocess import Preprocessing
from modules.data.regions import IGNORE, Region, count_parts, find_fault


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: The value of `--dataset`.
        title: A title for people.
        url: The address to get it from.
        licence: The licence, as its publisher names it.
        terms: Terms that a user must accept or know before using it.
        channels: Names of the image channels.
        class_names: Names of the classes, the background first.
        label_rule: The way its files store the classes, and which voxels are to be ignored.
        preprocessing: Intensities and grid that the networks get.
        find: Function from the folder to all its cases; it raises FileNotFoundError or ValueError naming what is missing.
        write_phantom: Function that draws a stand-in in the same layout: `write_phantom(root, seed=...)`.
        mirrored_labels: Pairs of classes that change places when left and right are flipped.
        one_sided: Whether a class is on one side and the other side is no class of its own. A flip would take one for the other.
        codes: SNOMED codes of classes by their names: value and meaning of the category, then of the type. DICOM segmentations have them.
        regions: What each class but the background consists of, where classes overlap; else nothing. The indices of `label_rule` are then
            those of parts.
        defaults: Settings that suit this data set better than the general ones.
        describe: For folders that describe themselves: function from the folder, and what the user says about it, to the fields that are
            not known before.
        takes: Settings that say more about a folder, which only this data set reads.
        tables: Files beside images and labels that a description came from.
        found: What was found in the folder, a line a row; empty for a data set whose layout is known.
    """

    name: str
    title: str
    url: str
    licence: str
    terms: str
    channels: tuple[str, ...]
    class_names: tuple[str, ...]
    label_rule: LabelRule
    preprocessing: Preprocessing
    find: Callable[[Path], list[Case]]
    write_phantom: Callable[..., Path]
    mirrored_labels: tuple[tuple[str, str], ...] = ()
    one_sided: bool = False
    codes: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    describe: Callable[[Path, Wishes], Mapping[str, Any]] | None = None
    takes: tuple[str, ...] = ()
    tables: tuple[Path, ...] = ()
    found: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_rule", replace(self.label_rule, source=self.name))
        if fault := find_fault(self.regions, self.class_names, len(self.label_rule.output_values)):
            raise ValueError(f"Expected {fault[0].rstrip(',')} in `regions` of '{self.name}'. Received: {fault[1]}.")
        if self.regions and self.mirrored_labels:
            raise ValueError(f"Expected no `mirrored_labels` beside the `regions` of '{self.name}'. Received: {self.mirrored_labels}.")
        # The parts of regions do not change places.
        object.__setattr__(self, "one_sided", self.one_sided or bool(self.regions and find_sides(self.class_names)))

    @property
    def spatial_dims(self) -> int:
        """Spatial rank: 2 for slices, 3 for volumes."""
        return self.preprocessing.spatial_dims

    @property
    def num_classes(self) -> int:
        """Number of classes `K`, the background included."""
        return len(self.class_names)

    @property
    def num_parts(self) -> int:
        """Number of indices that a label map may hold besides `IGNORE`, the background included."""
        return count_parts(self.class_names, self.regions)

    def check_image(self, image: Volume, name: str) -> None:
        """Raises ValueError, naming the file `name`, for an image that is not of this data set's kind."""
        self.preprocessing.check(image, self.channels, name)

    def to_json(self) -> dict[str, Any]:
        """Returns what a run must find again when it goes on, as plain values."""
        rule = self.label_rule
        return {
            "spatial_dims": self.spatial_dims,
            "channels": list(self.channels),
            "class_names": list(self.class_names),
            "label_values": {str(value): index for value, index in sorted(rule.values.items())},
            "regions": [[list(region.parts), region.painted] for region in self.regions],
        }

    def tell_source(self) -> dict[str, str]:
        """Returns what its publisher says: title, address, licence and terms."""
        return {"title": self.title, "url": self.url, "licence": self.licence, "terms": self.terms}

    def mirrored_indices(self) -> tuple[tuple[int, int], ...]:
        """Returns `mirrored_labels` as class indices, without the pairs that a chosen target has merged or dropped."""
        names = self.class_names
        return tuple((names.index(one), names.index(other)) for one, other in self.mirrored_labels if one in names and other in names)


def load_spec(spec: DatasetSpec, root: Path, wishes: Wishes | None = None) -> DatasetSpec:
    """Completes a data set with what only its folder knows.

    Args:
        spec: The data set.
        root: Its folder.
        wishes: What the user says about the folder.

    Raises:
        FileNotFoundError: If the folder is not there, or nothing in it.
        ValueError: If its description is wrong.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected the data set '{spec.name}' in the folder {root}. Received: no such folder. Give it with `--data`, "
            f"or try `--demo`. Source: {spec.url}"
        )
    if spec.describe is None:
        return spec
    try:
        return replace(spec, **spec.describe(root, wishes or Wishes()))
    except FileNotFoundError as error:
        raise _point_to_folder(error, spec, root) from error


def _point_to_folder(error: FileNotFoundError, spec: DatasetSpec, root: Path) -> FileNotFoundError:
    """Returns an error that names `--dataset folder` in the place of its own remedy, if that data set finds pairs in the folder."""
    hint = "" if spec.takes else find_hint(root)
    return FileNotFoundError(re.sub(r" Give [^.]*`--data`\.$", "", str(error)) + f" {hint}") if hint else error


def find_cases(spec: DatasetSpec, root: Path, *, ignore_geometry: bool = False) -> list[Case]:
    """Finds all cases of a data set, ordered by volume and slice.

    Args:
        spec: The data set.
        root: Its folder.
        ignore_geometry: Whether labels are used voxel by voxel, see `Case`.

    Raises:
        FileNotFoundError: If the folder holds no case.
        ValueError: If a pair is incomplete, or two cases of one split have one name.
    """
    try:
        cases = spec.find(root)
    except FileNotFoundError as error:
        raise _point_to_folder(error, spec, root) from error
    cases = sorted(cases, key=lambda case: (case.volume_id or case.case_id, case.slice_index, case.case_id))
    known: dict[tuple[str, str | None], Case] = {}
    for case in cases:
        other = known.setdefault((case.case_id, case.split), case)
        if other is not case:
            files = f"{other.image_paths[0]} and {case.image_paths[0]}"
            raise ValueError(f"Expected cases of different names. Received: {case.case_id} for {files}. Rename or remove one.")
    return [replace(case, ignore_geometry=True) for case in cases] if ignore_geometry else cases


def choose_target(spec: DatasetSpec, target: Sequence[str]) -> DatasetSpec:
    """Reduces a data set to the chosen classes against the rest.

    Args:
        spec: The whole data set.
        target: Class names. No name keeps every class, and several are one foreground together.

    Returns:
        The data set with binary class names and label rule. Files store the foreground as the first-named class's own value. Regions
        are one foreground where any of the chosen ones is. Ignored voxels stay ignored.

    Raises:
        ValueError: For a class that the data set does not have.
    """
    if not target:
        return spec
    for name in target:
        if name not in spec.class_names[1:]:
            raise ValueError(f"Expected `target` in {spec.class_names[1:]} for '{spec.name}'. Received: {name!r}.")
    regions = spec.regions or tuple(Region((index,), index) for index in range(1, spec.num_classes))
    chosen = [regions[spec.class_names.index(name) - 1] for name in target]
    parts = {part for region in chosen for part in region.parts}
    values = {value: index if index == IGNORE else int(index in parts) for value, index in spec.label_rule.values.items()}
    written = spec.label_rule.output_values
    rule = replace(spec.label_rule, values=values, output_values=(written[0], written[chosen[0].painted]))
    sides = spec.mirrored_labels or find_sides(spec.class_names)
    one_sided = any((one in target) != (other in target) for one, other in sides)
    return replace(spec, class_names=(spec.class_names[0], "+".join(target)), label_rule=rule, regions=(), one_sided=one_sided)
