"""Learns from the validation cases which steps of postprocessing a model is shipped with.

Steps are tried in a fixed order: the largest object of the whole foreground, the largest object of each class, removal of small objects
of each class, holes of each class. A step is kept only if the mean Dice over the classes rises and no class falls. Scores are those of
`modules.scoring`: a class in neither label nor prediction is left out, and one in one of the two has 0. Slices that are files are judged
slice by slice and as whole scans, and no class may fall in either.

An object stays or goes as a whole, so its voxels and those of them that are right tell all that the search needs. Only holes are looked
for in the label maps, which are kept packed. Memory does not grow with the number of candidates.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from modules.data.case import Case, Predicted
from modules.predict.objects import find_objects
from modules.predict.postprocess import FOREGROUND, Postprocessing, Step, find_holes, is_small, measure_voxel
from modules.scoring import LEVELS

# The mean Dice must rise by more than this. A step that moves a few voxels is not worth its time, and could be chance.
LEAST_RISE = 1e-4
# Sums of the same Dice in another order may differ by this.
_ROUNDING = 1e-9
# Least sizes of an object that are tried, as parts of the median size of its class in the labels that hold it.
FRACTIONS = (0.003, 0.01, 0.03, 0.1)
# So few subjects are told to be few, however many slices they have.
_FEW = 5


class _Packed(NamedTuple):
    """A label map, packed to a hundredth or less of its memory."""

    shape: tuple[int, ...]
    data: bytes


@dataclass
class _Objects:
    """The objects of one class in one predicted label map.

    Attributes:
        voxels: `(N,)` voxels of each.
        judged: `(N,)` those of them that the label judges.
        right: `(N,)` those of them that the label gives to the class.
        central: `(N,)` whether each belongs to the largest object of the whole foreground.
        kept: `(N,)` whether each is still there after the steps so far.
    """

    voxels: np.ndarray
    judged: np.ndarray
    right: np.ndarray
    central: np.ndarray
    kept: np.ndarray


@dataclass
class TalliedCase:
    """All that the search needs to know of one case.

    Attributes:
        case: The case.
        spacing_mm: The voxel's size along each axis.
        objects: The objects of each foreground class, in the order of the classes.
        reference: `(K - 1,)` voxels of each foreground class in the label.
        prediction: The predicted label map.
        label: The reference label map.
    """

    case: Case
    spacing_mm: tuple[float, ...]
    objects: list[_Objects]
    reference: np.ndarray
    prediction: _Packed
    label: _Packed

    @property
    def voxel(self) -> float:
        """The size of a voxel in the unit of steps."""
        return measure_voxel(self.spacing_mm, len(self.label.shape))


@dataclass(frozen=True)
class Lesson:
    """The steps that were learnt, and what they do to the validation cases.

    Attributes:
        postprocessing: The steps.
        texts: Each step in words.
        changed: Number of cases whose Dice each step changed.
        cases: Number of validation cases.
        subjects: Number of their subjects.
        before: Mean Dice without any step, `{level: {class: Dice}}`, of the classes that the validation labels hold.
        after: Mean Dice after all steps, likewise.
    """

    postprocessing: Postprocessing
    texts: tuple[str, ...]
    changed: tuple[int, ...]
    cases: int
    subjects: int
    before: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Returns the lesson as plain values for `summary.json`."""
        steps = [{"step": text, "changed_cases": number} for text, number in zip(self.texts, self.changed, strict=True)]
        numbers = {"validation_cases": self.cases, "validation_subjects": self.subjects}
        return {"steps": steps, **numbers, "dice_before": self.before, "dice_after": self.after}

    def describe(self) -> list[str]:
        """Describes the steps, what decided about them, and the Dice of each class before and after."""
        if not self.texts:
            return [f"postprocessing: none, because no step raises the Dice of the {self.cases} validation case(s)"]
        few = "; so few may mislead" if self.subjects < _FEW else ""
        lines = [f"postprocessing, decided by {self.cases} validation case(s) of {self.subjects} subject(s){few}:"]
        lines += [f"  {text} (changes {number} of them)" for text, number in zip(self.texts, self.changed, strict=True)]
        for level, classes in self.before.items():
            dice = (f"{name} {value:.4f} -> {self.after[level][name]:.4f}" for name, value in classes.items())
            lines.append(f"  validation Dice by {level}: {', '.join(dice)}")
        return lines


def tally_cases(predicted: Iterable[Predicted], num_classes: int) -> list[TalliedCase]:
    """Finds the objects of each case as it comes, and packs its label maps. Cases without a label are left out."""
    return [_tally(item, item.label, num_classes) for item in predicted if item.label is not None]


def _tally(item: Predicted, label: np.ndarray, num_classes: int) -> TalliedCase:
    prediction, classes = item.prediction, range(1, num_classes)
    # A value beyond the classes marks voxels that nobody judges.
    judged = label < num_classes
    central = prediction > 0
    parts = find_objects(central)
    if len(parts.voxels):
        central[central] = parts.spread(np.arange(len(parts.voxels)) == np.argmax(parts.voxels))
    objects = []
    for index in classes:
        mask = prediction == index
        found = find_objects(mask)
        right, within = found.count(label[mask] == index), found.count(central[mask]) > 0
        objects.append(_Objects(found.voxels, found.count(judged[mask]), right, within, np.ones(len(right), bool)))
    reference = np.array([np.count_nonzero(label == index) for index in classes])
    return TalliedCase(item.case, item.image.spacing_mm, objects, reference, _pack(prediction), _pack(label))


def learn(cases: Sequence[TalliedCase], class_names: Sequence[str]) -> Lesson:
    """Searches the steps that raise the mean validation Dice without making any class worse.

    Classes that no label holds are not judged, and no step touches them: the largest object of the whole foreground is tried only where
    every class is judged. The tallies are used up.

    Args:
        cases: The validation cases, all slices or all volumes.
        class_names: Names of all classes, the background first.
    """
    search = _Search(cases, len(class_names) - 1)
    judged, before = search.judged, search.score(search.counts)
    if len(judged) == len(class_names) - 1 > 1:
        search.consider([Step("keep_largest", FOREGROUND)])
    for index in judged:
        search.consider([Step("keep_largest", index)])
    for index in judged:
        search.consider([Step("remove_small", index, size) for size in search.list_sizes(index)])
    search.change_maps(search.steps)
    for index in judged:
        search.consider_holes(index)
    named = [
        {level: {class_names[index]: dice for index, dice in scores.items()} for level, scores in table.items()}
        for table in (before, search.score(search.counts))
    ]
    postprocessing = Postprocessing(tuple(search.steps))
    texts = postprocessing.describe(class_names, len(cases[0].label.shape) if cases else 0)
    subjects = len({case.case.subject_id for case in cases})
    return Lesson(postprocessing, tuple(texts), tuple(search.changed), len(cases), subjects, *named)


class _Search:
    """The search: the steps so far, and what they leave of each case.

    Counts are `(2, cases, K - 1)`: the judged voxels of each class that are predicted, and those of them that are right.

    Attributes:
        steps: The steps that were accepted.
        changed: Number of cases whose Dice each of them changed.
        judged: Indices of the classes that any label holds.
        counts: The counts after these steps.
    """

    def __init__(self, cases: Sequence[TalliedCase], classes: int) -> None:
        self._cases = cases
        self._reference = np.array([case.reference for case in cases], np.int64).reshape(len(cases), classes)
        self.steps: list[Step] = []
        self.changed: list[int] = []
        self.judged = [int(column) + 1 for column in np.flatnonzero(self._reference.any(axis=0))]
        kept = [[objects.kept for objects in case.objects] for case in cases]
        self.counts = self._count(kept, np.zeros((2, *self._reference.shape), np.int64))
        # The counts of scans are the product of these rows, one a scan, with the counts of their slices.
        scans = dict.fromkeys(case.case.volume_id for case in cases if case.case.volume_id is not None)
        self._scans = np.array([[case.case.volume_id == scan for case in cases] for scan in scans], np.int64)

    def score(self, counts: np.ndarray) -> dict[str, dict[int, float]]:
        """Returns the mean Dice by level of each class that any label holds, `{level: {class index: Dice}}`."""
        result: dict[str, dict[int, float]] = {}
        if len(self._cases):
            result[LEVELS[len(self._cases[0].label.shape) - 2]] = _average_dice(counts, self._reference)
        if len(self._scans):
            result["volume"] = _average_dice(self._scans @ counts, self._scans @ self._reference)
        return result

    def list_sizes(self, index: int) -> list[float]:
        """Lists the least sizes of an object of a class that are tried, in ascending order."""
        sizes = [case.reference[index - 1] * case.voxel for case in self._cases if case.reference[index - 1]]
        # Four digits are enough, and can be read.
        return [float(f"{fraction * np.median(sizes):.4g}") for fraction in FRACTIONS]

    def consider(self, steps: Sequence[Step]) -> None:
        """Accepts the step that raises the Dice most, if any does; of equal ones the first."""
        trials = []
        for step in steps:
            columns = range(self._reference.shape[1]) if step.target == FOREGROUND else [step.target - 1]
            kept = [[_keep(case.objects[column], step, case.voxel) for column in columns] for case in self._cases]
            trials.append((step, columns, kept, self._count(kept, self.counts.copy(), columns)))
        rises = [self._measure_rise(counts) for *_, counts in trials]
        best = next(number for number, rise in enumerate(rises) if rise > max(rises) - _ROUNDING)
        if rises[best] > 0:
            step, columns, kept, counts = trials[best]
            for case, of_case in zip(self._cases, kept, strict=True):
                for column, of_class in zip(columns, of_case, strict=True):
                    case.objects[column].kept = of_class
            self._accept(step, counts)

    def change_maps(self, steps: Sequence[Step]) -> None:
        """Takes steps in the label maps. After it the objects are out of date, and only holes may be considered."""
        for case in self._cases if steps else ():
            prediction = _unpack(case.prediction)
            Postprocessing(tuple(steps)).apply(prediction, case.spacing_mm)
            case.prediction = _pack(prediction)

    def consider_holes(self, index: int) -> None:
        """Accepts to fill the holes of a class, if that raises the Dice."""
        counts = self.counts.copy()
        for row, case in enumerate(self._cases):
            filled = _unpack(case.label)[find_holes(_unpack(case.prediction), index)]
            counts[:, row, index - 1] += np.count_nonzero(filled <= self._reference.shape[1]), np.count_nonzero(filled == index)
        if self._measure_rise(counts) > 0:
            step = Step("fill_holes", index)
            self.change_maps([step])
            self._accept(step, counts)

    def _count(self, kept: Sequence[Sequence[np.ndarray]], counts: np.ndarray, columns: Sequence[int] | None = None) -> np.ndarray:
        """Returns `counts` with those of the objects that are kept, `[case][column]`, in place of the columns' own."""
        for row, (case, of_case) in enumerate(zip(self._cases, kept, strict=True)):
            for column, of_class in zip(columns or range(len(case.objects)), of_case, strict=True):
                objects = case.objects[column]
                counts[:, row, column] = objects.judged[of_class].sum(), objects.right[of_class].sum()
        return counts

    def _measure_rise(self, counts: np.ndarray) -> float:
        """Returns by how much the mean Dice rises; 0 where that is next to nothing, or a class falls."""
        before, after = (
            np.array([dice for scores in self.score(values).values() for dice in scores.values()]) for values in (self.counts, counts)
        )
        if not len(before) or (after < before - _ROUNDING).any():
            return 0.0
        rise = float(after.mean() - before.mean())
        return rise if rise > LEAST_RISE else 0.0

    def _accept(self, step: Step, counts: np.ndarray) -> None:
        self.steps.append(step)
        self.changed.append(int((counts != self.counts).any(axis=(0, 2)).sum()))
        self.counts = counts


def _average_dice(counts: np.ndarray, reference: np.ndarray) -> dict[int, float]:
    """Averages the Dice over the rows that have it, for each class that any row of the reference `(rows, K - 1)` holds, by index."""
    (predicted, right), result = counts, {}
    for column in np.flatnonzero(reference.any(axis=0)):
        total = predicted[:, column] + reference[:, column]
        # A class in neither label nor prediction says nothing about a case.
        known = total > 0
        result[int(column) + 1] = float(np.mean(2 * right[known, column] / total[known]))
    return result


def _keep(objects: _Objects, step: Step, voxel: float) -> np.ndarray:
    """Returns which objects of a class stay after a step, `(N,)`."""
    kept = objects.kept
    if step.target == FOREGROUND:
        return kept & objects.central
    if step.kind == "remove_small":
        return kept & ~is_small(objects.voxels, voxel, step.size)
    return kept & (np.arange(len(kept)) == np.argmax(np.where(kept, objects.voxels, 0))) if len(kept) else kept


def _pack(label: np.ndarray) -> _Packed:
    return _Packed(label.shape, zlib.compress(label.tobytes(), 1))


def _unpack(packed: _Packed) -> np.ndarray:
    return np.frombuffer(bytearray(zlib.decompress(packed.data)), np.uint8).reshape(packed.shape)
