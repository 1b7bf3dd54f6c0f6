"""Measures the training cases, as far as the plan needs it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modules.data.cache import prepare_cases
from modules.data.case import Case, read_header, read_volume
from modules.data.spec import DatasetSpec
from modules.run.plan import Fingerprint, draft_plan
from modules.run.settings import Settings


def measure(cases: Sequence[Case], spec: DatasetSpec, settings: Settings) -> Fingerprint:
    """Measures training cases. It reads no file where no size follows from the scans.

    Raises:
        FileNotFoundError, ValueError: If a file cannot be read, naming it, or settings do not fit the data set.
    """
    draft = draft_plan(settings, spec)
    if not draft.needs_shapes:
        return Fingerprint(len(cases))
    if draft.mode != "volume":
        # Training needs the cases in this form too, so we measure them through the cache.
        shapes = [case.shape for case in prepare_cases(cases, spec, draft.preprocessing, Path(settings.cache))]
        return Fingerprint(len(cases), tuple(shapes))

    def measure_grid(case: Case) -> tuple[int, ...]:
        # Only a foreground crop needs the voxels, which are decoded again when they are prepared.
        image = read_volume(case.image_paths) if draft.preprocessing.foreground_crop else read_header(case.image_paths)
        draft.preprocessing.check(image, spec.channels, str(case.image_paths[0]))
        return draft.preprocessing.measure(image).grid

    with ThreadPoolExecutor() as executor:
        return Fingerprint(len(cases), tuple(executor.map(measure_grid, cases)))
