"""Samples of a data set to look at: chosen scans, and a case as a training sees it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modules.data.case import Case, Volume, read_case, read_label
from modules.data.fingerprint import Fingerprint, measure_case
from modules.data.patches import choose_points, cut, draw_start
from modules.data.spec import DatasetSpec
from modules.run.plan import make_plan
from modules.run.settings import Settings


def choose_scans(cases: Sequence[Case], number: int, seed: int) -> list[list[Case]]:
    """Draws one labelled scan, with all its slices, for each of at most `number` subjects.

    Raises:
        ValueError: If no case has a label.
    """
    by_subject: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        if case.label_path is not None:
            by_subject.setdefault(case.subject_id, {}).setdefault(case.volume_id or case.case_id, []).append(case)
    if not by_subject:
        raise ValueError(f"Expected cases with labels to show. Received: {len(cases)} without. Add a label.")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(sorted(by_subject))[:number].tolist()
    return [list(by_subject[subject].values())[rng.integers(len(by_subject[subject]))] for subject in chosen]


def choose_case(scan: Sequence[Case], spec: DatasetSpec) -> Case:
    """Chooses the slice of a labelled scan that shows its structures best, or the scan if it is a volume."""
    # This import brings matplotlib, for which `--help` need not wait.
    from modules.reports.views import choose_slice

    if len(scan) == 1:
        return scan[0]
    labels = (read_label(_find_label(case), spec.label_rule) for case in scan)
    return scan[choose_slice(np.array([np.bincount(label.ravel(), minlength=256)[: spec.num_parts] for label in labels]))]


def make_sample(case: Case, spec: DatasetSpec, seed: int) -> tuple[Volume, np.ndarray]:
    """Makes the sample that a training with the data set's own settings would see of a labelled case.

    That is a slice, a whole volume at the size that follows from it, or a patch about its structures.

    Args:
        case: A labelled case.
        spec: The case's data set.
        seed: The seed of the patch's place.

    Returns:
        The sample's image `(*P, C)` with its geometry, and its label `(*P)` of class indices.
    """
    settings = Settings(spec.name, **spec.defaults)
    image, label = read_case(case, spec)
    if label is None:
        raise ValueError(f"Expected a case with a label. Received: {case.case_id} without one. Add a label.")
    plan = make_plan(settings, spec, Fingerprint((measure_case(case, spec),)))
    array, geometry = plan.preprocessing.apply(image)
    label, window = plan.preprocessing.apply_label(label, geometry), plan.window.sizes
    if label.shape != window:
        rng = np.random.default_rng(seed)
        points = choose_points(label, spec.num_parts, rng)
        start = draw_start(rng, label.shape, window, points=points, sampling="foreground")
        darkest = array.min(axis=tuple(range(label.ndim)))
        array, label = cut(array, start, window, darkest), cut(label, start, window)
    spacing = geometry.measure_spacing(image.spacing_mm)
    # Preprocessing has turned volumes to canonical orientation.
    return Volume(array, np.diag([*spacing, 1.0]) if label.ndim == 3 else image.affine, spacing), label


def _find_label(case: Case) -> Path:
    if case.label_path is None:
        raise ValueError(f"Expected slices with labels. Received: {case.case_id} without one. Add a label.")
    return case.label_path
