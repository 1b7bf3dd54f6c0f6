"""Writes the files of predicted cases one after the other."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modules.data.case import Predicted
from modules.data.regions import name_shown, to_shown
from modules.predict.batch import Batch
from modules.predict.bundle import ModelBundle
from modules.predict.dicom_seg import Codes
from modules.predict.judge import judge_case
from modules.predict.outputs import write_maps
from modules.predict.results import make_result


def write_predictions(
    predicted: Iterable[Predicted], bundles: Sequence[ModelBundle], batch: Batch, codes: Codes, least_dice: float | None = None
) -> Iterator[Predicted]:
    """Writes the files of each case with what was found in it, and passes on, unless that fails, what its scores need.

    Args:
        predicted: The predicted cases.
        bundles: The models.
        batch: Takes what becomes of each case.
        codes: SNOMED codes by the name of a class.
        least_dice: The predicted Dice below which somebody should look at a case; None for what the models learnt.
    """
    begun = time.perf_counter()
    for item in predicted:
        try:
            batch.begin(item.case)
            _write_prediction(item, bundles[0], batch.list_outputs(item.case), codes)
            judgement = judge_case(item, bundles, least_dice)
            batch.finish(item.case, make_result(item, bundles, time.perf_counter() - begun, judgement))
        except (ValueError, OSError, MemoryError) as error:
            batch.fail(item.case, error)
        else:
            # Of the image they need the place of its voxels, so the voxels themselves can go.
            voxels = np.broadcast_to(np.float32(0), item.image.array.shape)
            item = item._replace(image=replace(item.image, array=voxels), probabilities=None, doubt=None)
            yield item
            batch.tell_done(item.case, judgement.reasons if judgement else ())
        del item
        begun = time.perf_counter()


def _write_prediction(item: Predicted, bundle: ModelBundle, files: Mapping[str, Path], codes: Codes) -> None:
    """Writes label map, overlay and other wanted files of one case into `files`, given by kind."""
    write_maps(item, bundle, files, codes)
    if "overlay" in files:
        from modules import reports

        maps = (item.image.array, to_shown(item.prediction, bundle.regions), name_shown(bundle.class_names, bundle.regions))
        place = {"spacing_mm": item.image.spacing_mm, "affine": item.image.affine}
        reports.draw_overlay(files["overlay"], *maps, title=item.case.case_id, **place)
