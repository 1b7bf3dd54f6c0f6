"""Exact scores of one case, in NumPy: the overlaps, surface distances, volumes and lesions that `scores.csv` holds."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from modules.data.case import Case, Predicted
from modules.data.regions import IGNORE, Region, count_parts, find_mask, list_parts
from modules.masks import crop_masks, match_lesions, measure_surfaces

LEVELS = ("slice", "volume")
OVERLAPS = ("dice", "iou", "nsd")
DISTANCES = ("hd95_mm", "hd_mm", "assd_mm")
VOLUMES = ("volume_error_ml", "volume_error_percent", "volume_bias_ml")
LESIONS = ("lesion_sensitivity", "lesion_dice", "false_lesions")
# The scores that are averaged over cases and subjects.
AVERAGED = OVERLAPS + DISTANCES + VOLUMES + LESIONS

# Voxels that are counted at a time. They are few, so that the wide integers of the counting need hardly any memory.
CHUNK = 2**20
# So many digits tell labels apart, and a table stays readable.
HASH_DIGITS = 12


@dataclass(frozen=True)
class Score:
    """The scores of one class of one case.

    Attributes:
        level: "slice" or "volume", the kind of case.
        case: The case's identifier.
        class_name: The class.
        dice: `2 |A B| / (|A| + |B|)` in [0, 1]; NaN where the class is in neither label nor prediction.
        iou: `|A B| / |A u B|` in [0, 1]; NaN likewise.
        hd95_mm: 95th percentile of the Hausdorff distance; `score_case` defines the three distances.
        hd_mm: Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        volume_ml: Predicted volume; NaN for slices and where the voxel's size is not known.
        reference_ml: Volume in the label; NaN likewise.
        voxels: Number of predicted voxels.
        reference_voxels: Number of voxels in the label.
        nsd: Normalised surface Dice in [0, 1], see `score_case`.
        tolerance_mm: The distance that `nsd` tolerates.
        volume_error_ml: `|volume_ml - reference_ml|`; NaN where these are, or the class is in neither.
        volume_error_percent: The same in percent of `reference_ml`; NaN also where that is 0.
        volume_bias_ml: `volume_ml - reference_ml`; NaN likewise.
        lesions: Number of lesions in the label, see `score_case`; NaN for slices, as all below.
        found_lesions: Number of these that the prediction finds.
        false_lesions: Number of predicted lesions that are none of the label's.
        lesion_sensitivity: `found_lesions / lesions`; NaN where the label has no lesion.
        lesion_dice: Mean Dice of the lesions that were found; NaN where none was.
        largest_lesion: Share of the class's voxels in the label that its largest lesion holds. It is 1 for an organ in one piece.
        subject: The person who was scanned; "" where nobody says.
        reference: Hash of the label, by which two tables are known to have the same one; "" in a table of version 0.1.
    """

    level: str
    case: str
    class_name: str
    dice: float
    iou: float
    hd95_mm: float
    hd_mm: float
    assd_mm: float
    volume_ml: float
    reference_ml: float
    voxels: int
    reference_voxels: int
    nsd: float = math.nan
    tolerance_mm: float = math.nan
    volume_error_ml: float = math.nan
    volume_error_percent: float = math.nan
    volume_bias_ml: float = math.nan
    lesions: float = math.nan
    found_lesions: float = math.nan
    false_lesions: float = math.nan
    lesion_sensitivity: float = math.nan
    lesion_dice: float = math.nan
    largest_lesion: float = math.nan
    subject: str = ""
    reference: str = ""


def score_case(
    label: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    *,
    level: str,
    case: str,
    spacing_mm: Sequence[float] | None = None,
    regions: Sequence[Region] = (),
    tolerance_mm: Sequence[float] = (),
    subject: str = "",
    overlaps_only: bool = False,
) -> list[Score]:
    """Scores every foreground class of one case.

    Distances are Euclidean, in mm, between the centres of surface voxels. A surface voxel belongs to the mask, and a neighbour across one
    of its faces (in a slice, edges) does not. Everything beyond the image is outside the mask. Each surface voxel of one mask has a
    distance to the nearest surface voxel of the other. These distances are measured from label to prediction and back:

    - `hd_mm` is the greatest (Hausdorff distance; Huttenlocher et al., IEEE TPAMI 15:850, 1993).
    - `hd95_mm` is the greater of the 95th percentiles of the two directions, interpolated linearly (as MONAI does).
    - `assd_mm` is the mean over both directions together (average symmetric surface distance; Heimann et al., IEEE TMI 28:1251, 2009).
    - `nsd` is the share of them, in both directions together, that are at most the tolerance (normalised surface Dice; Nikolov et al.,
      JMIR 23:e26151, 2021). Each surface voxel counts as one, as in MONAI; the authors' own program weighs them by their area.

    Lesions are the objects of a class in a volume: voxels that touch at a face, an edge or a corner. A predicted lesion can be one of the
    label's from an IoU of 0.1 on. Pairs are made by falling IoU, and no lesion is in two pairs (as panoptica does;
    Kofler et al., arXiv 2312.02608, 2023). The others are missed or false.

    A class absent from both label and prediction has NaN and is left out of means. A class absent from one of the two has overlap 0, and
    its distances are the diagonal of the image. A model that misses an organ must not score better for it. A prediction without lesions
    has 0 false ones, also where the label has none.

    Voxels that are `IGNORE` in the label are in no mask, neither of the label nor of the prediction. They count in no overlap and in no
    volume. For distances they are like what is beyond the image: a mask that ends there has a surface there.

    Args:
        label: `(*S)` integers.
        prediction: `(*S)` integers.
        class_names: Names of all `K` classes, the background first.
        level: "slice" or "volume".
        case: The case's identifier.
        regions: What each class consists of, where classes overlap; see `modules.data.regions`.
        spacing_mm: The voxel's size along each axis of `S`. Where it is None, unknown, distances and ml are NaN. Slices have distances in
            their plane and no ml.
        tolerance_mm: The distance that `nsd` tolerates: one for all foreground classes, or one for each. Without it, it is the edge of a
            cube of a voxel's volume; of a pixel, of a square.
        subject: The person who was scanned.
        overlaps_only: Whether Dice, IoU and counts of voxels are enough. All else is then NaN and takes no time.

    Returns:
        A `Score` a foreground class, in the order of `class_names`.

    Raises:
        ValueError: If the shapes differ, a value is no class, `spacing_mm` is not of the image's rank, or `tolerance_mm` not one number
            or as many as classes.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"Expected label and prediction of one shape. Received: {label.shape} and {prediction.shape} for {case}.")
    check_tolerance(tolerance_mm, class_names)
    pairs = _count_pairs(label, prediction, count_parts(class_names, regions), case)
    parts = list_parts(class_names, regions)
    known: dict[str, Any] = {"level": level, "case": case, "subject": subject}
    if overlaps_only:
        return _make_scores(pairs, class_names, parts, known)
    if spacing_mm is not None and len(spacing_mm) != label.ndim:
        raise ValueError(f"Expected `spacing_mm` of {label.ndim} lengths. Received: {tuple(spacing_mm)} for {case}.")
    known["reference"] = _hash_label(label)
    if label.size > pairs.sum():
        prediction = np.where(label == IGNORE, 0, prediction)
    measures = []
    for index, members in enumerate(parts):
        masks = crop_masks(find_mask(label, members), find_mask(prediction, members))
        measured = match_lesions(*masks)._asdict() if label.ndim == 3 else {}
        if spacing_mm is not None:
            tolerance = tolerance_mm[index % len(tolerance_mm)] if tolerance_mm else math.prod(spacing_mm) ** (1 / label.ndim)
            diagonal = math.hypot(*(size * spacing for size, spacing in zip(label.shape, spacing_mm, strict=True)))
            measured |= measure_surfaces(*masks, spacing_mm, tolerance, diagonal)._asdict() | {"tolerance_mm": tolerance}
        measures.append(measured)
    voxel_ml = math.prod(spacing_mm) / 1000 if spacing_mm is not None and label.ndim == 3 else math.nan
    return _make_scores(pairs, class_names, parts, known, measures, voxel_ml)


def check_tolerance(tolerance_mm: Sequence[float], class_names: Sequence[str]) -> None:
    """Checks that there is no tolerance, one for all foreground classes, or one for each; raises ValueError otherwise."""
    if len(tolerance_mm) not in (0, 1, len(class_names) - 1):
        raise ValueError(
            f"Expected `tolerance_mm` of one number, or of {len(class_names) - 1} for {', '.join(class_names[1:])}. "
            f"Received: {len(tolerance_mm)} numbers. Leave it out for the size of a voxel."
        )


def score_predictions(
    predicted: Iterable[Predicted],
    class_names: Sequence[str],
    regions: Sequence[Region] = (),
    *,
    tolerance_mm: Sequence[float] = (),
    overlaps_only: bool = False,
) -> Iterator[Score]:
    """Scores predictions as they come. Slices of one scan are also scored as one volume, to compare with 3-D models.

    Such a volume has overlaps and lesions only, because the files of slices do not say how far apart the slices are. Lesions need slices
    of one shape that follow one another without a gap.

    Args:
        predicted: Predicted cases; slices of one scan (one `volume_id`) must follow one another. Cases without a label are skipped.
        class_names: Names of all `K` classes, the background first.
        regions: What each class consists of, where classes overlap.
        tolerance_mm: The distance that `nsd` tolerates, see `score_case`.
        overlaps_only: Whether Dice, IoU and counts of voxels are enough.

    Yields:
        The scores of each case, and after the last slice of a scan those of the scan.
    """
    labelled = ((item, item.label) for item in predicted if item.label is not None)
    options: dict[str, Any] = {"regions": regions, "tolerance_mm": tolerance_mm, "overlaps_only": overlaps_only}
    for volume_id, members in groupby(labelled, key=lambda pair: pair[0].case.volume_id):
        slices = []
        for item, label in members:
            case, image = item.case, item.image
            # A picture's spacing of ones is not a size in mm.
            spacing_mm = image.spacing_mm if image.affine is not None else None
            known: dict[str, Any] = {"level": LEVELS[label.ndim - 2], "case": case.case_id, "subject": case.subject_id}
            yield from score_case(label, item.prediction, class_names, spacing_mm=spacing_mm, **known, **options)
            if volume_id is not None:
                slices.append((case, label, item.prediction))
        if volume_id is not None:
            yield from _score_stack(volume_id, slices, class_names, regions, overlaps_only)


def _score_stack(
    volume_id: str,
    slices: Sequence[tuple[Case, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    regions: Sequence[Region],
    overlaps_only: bool,
) -> list[Score]:
    """Scores the slices of one scan as a volume, each given as its case, label and prediction."""
    cases, labels, predictions = zip(*slices, strict=True)
    number, parts = count_parts(class_names, regions), list_parts(class_names, regions)
    known: dict[str, Any] = {"level": "volume", "case": volume_id, "subject": cases[0].subject_id}
    # Overlap does not depend on the voxels' places, so the slices of a scan need no common shape.
    pairs = np.sum([_count_pairs(label, prediction, number, case.case_id) for case, label, prediction in slices], axis=0)
    if overlaps_only:
        return _make_scores(pairs, class_names, parts, known)
    known["reference"] = hashlib.sha256("".join(map(_hash_label, labels)).encode()).hexdigest()[:HASH_DIGITS]
    follow = all(other.slice_index == one.slice_index + 1 for one, other in pairwise(cases))
    if not follow or len({label.shape for label in labels}) > 1:
        return _make_scores(pairs, class_names, parts, known)
    label, prediction = np.stack(labels), np.stack(predictions)
    prediction[label == IGNORE] = 0
    measures = [match_lesions(*crop_masks(find_mask(label, members), find_mask(prediction, members)))._asdict() for members in parts]
    return _make_scores(pairs, class_names, parts, known, measures)


def _hash_label(label: np.ndarray) -> str:
    digest = hashlib.sha256(repr(label.shape).encode())
    digest.update(label.astype(np.uint8, copy=False).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def _count_pairs(label: np.ndarray, prediction: np.ndarray, num_classes: int, case: str) -> np.ndarray:
    """Counts `(K, K)` voxels by their class in the label (first axis) and in the prediction, without those that are ignored."""
    if label.max(initial=0) == IGNORE:
        counted = label != IGNORE
        label, prediction = label[counted], prediction[counted]
    for name, array in (("label", label), ("prediction", prediction)):
        low, high = array.min(initial=0), array.max(initial=0)
        if low < 0 or high >= num_classes:
            raise ValueError(f"Expected `{name}` classes from 0 to {num_classes - 1}. Received: {low if low < 0 else high} in {case}.")
    label, prediction = label.ravel(), prediction.ravel()
    pairs = np.zeros(num_classes**2, np.intp)
    for start in range(0, label.size, CHUNK):
        part = slice(start, start + CHUNK)
        codes = label[part].astype(np.intp) * num_classes + prediction[part].astype(np.intp)
        pairs += np.bincount(codes, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def _make_scores(
    pairs: np.ndarray,
    class_names: Sequence[str],
    parts: Sequence[tuple[int, ...]],
    known: dict[str, Any],
    measures: Sequence[dict[str, float]] = (),
    voxel_ml: float = math.nan,
) -> list[Score]:
    """Makes a `Score` a foreground class from the counts of `_count_pairs`, the class's `parts`, and what else was measured of it.

    Args:
        pairs: `(K, K)` counts.
        class_names: Names of all classes.
        parts: What each foreground class consists of.
        known: Fields of `Score` that all classes share.
        measures: Further fields by class; nothing where only overlaps are wanted.
        voxel_ml: The volume of a voxel.
    """
    scores = []
    for index, members in enumerate(parts):
        both = int(pairs[np.ix_(members, members)].sum())
        voxels, reference = int(pairs[:, members].sum()), int(pairs[members, :].sum())
        total = voxels + reference
        bias_ml = (voxels - reference) * voxel_ml if total else math.nan
        fields: dict[str, Any] = {
            "dice": 2 * both / total if total else math.nan,
            "iou": both / (total - both) if total else math.nan,
            **dict.fromkeys(DISTANCES, math.nan),
            "volume_ml": voxels * voxel_ml,
            "reference_ml": reference * voxel_ml,
            "volume_error_ml": abs(bias_ml),
            "volume_error_percent": 100 * abs(bias_ml) / (reference * voxel_ml) if reference else math.nan,
            "volume_bias_ml": bias_ml,
            **(measures[index] if measures else {}),
        }
        scores.append(Score(**known, **fields, class_name=class_names[index + 1], voxels=voxels, reference_voxels=reference))
    return scores
