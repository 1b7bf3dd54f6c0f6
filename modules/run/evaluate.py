"""Lets the validation cases decide how a run's saved bundle predicts, scores the bundle on the test cases, and draws three of them."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modules import score_lines, score_tables, scoring
from modules.data.case import Case
from modules.data.regions import IGNORE, name_shown, to_shown
from modules.hardware import read_peak
from modules.predict.bundle import ModelBundle, add_provenance
from modules.predict.cases import cut_samples, predict_cases
from modules.predict.convert import convert_bundle
from modules.predict.departures import Departures
from modules.predict.progress import PredictionProgress
from modules.run.budget import find_elapsed
from modules.run.calibration import Calibration, describe_calibration, write_judged
from modules.run.classes import describe_findings
from modules.run.folder import RunFolder, without_nan, write_json
from modules.run.learn_quality import learn_quality
from modules.run.proof import hash_weights
from modules.run.report import write_report
from modules.run.settings import Settings
from modules.run.tracking import Tracker
from modules.run.validated import decide
from modules.run.verify import read_proof

# So many of the worst test cases get a picture.
WORST = 5

log = logging.getLogger("mri")


def evaluate(
    splits: Mapping[str, Sequence[Case]], run: RunFolder, summary: Mapping[str, Any], tracker: Tracker, settings: Settings
) -> None:
    """Scores the saved bundle on the test cases as they lie on disk, and writes scores and summary. Slices also count as whole scans.

    Args:
        splits: The cases by split.
        run: The run whose bundle is scored.
        summary: The first entries of `summary.json`.
        tracker: The tracker that logs the means.
        settings: The settings; these say what the validation cases decide first, see `modules.run.validated.decide`.
    """
    cases = splits["test"]
    # We convert first, so that the engine that is scored is the one that predict.py will use.
    saved = ModelBundle.load(run.path, "keras")
    convert_bundle(saved, run.path, lambda: cut_samples(saved, splits["validate"]))
    bundle, decided = decide(run, splits["validate"], settings.postprocess, settings.predict_precision, settings.predict_mirror)
    bundle, learnt = learn_quality(run, bundle, splits, settings.predict_quality)
    log.info("scored by engine %s in %s", bundle.engine, bundle.computed_in)
    departures, calibration = Departures([bundle]), Calibration(bundle)
    with PredictionProgress(len(cases), "scoring") as progress:
        predicted = progress.count(predict_cases([bundle], cases, progress.options(on_image=departures.check, doubt=True)))
        predicted = calibration.watch(predicted)
        scores = list(scoring.score_predictions(predicted, bundle.class_names, bundle.regions, tolerance_mm=settings.tolerance_mm))
    departures.summarise()
    score_tables.write_scores(run.scores, scores)
    means = score_tables.summarise(scores)
    intervals = score_tables.estimate_intervals(scores, score_tables.map_subjects(cases))
    for line in score_lines.format_scores(means, intervals):
        log.info("%s", line)
    for line in describe_findings(scores):
        log.warning("%s", line)
    calibrated = _write_calibration(calibration, scores, run)
    _draw_examples(bundle, scores, cases, run)
    add_provenance(run.path, scores=without_nan(means))
    write_json(
        run.summary,
        {
            **summary,
            **decided,
            **learnt,
            "calibration": calibrated,
            "first_steps": dict(zip(("steps", "weights_sha256"), read_proof(run), strict=True)),
            "bundle_weights_sha256": hash_weights(saved.model),
            "engine": bundle.engine,
            "computed_in": bundle.computed_in,
            "engine_check": bundle.provenance.get("engine_check"),
            "peak_bytes": read_peak(),
            "seconds": round(find_elapsed(), 1),
            "test": means,
            "intervals": intervals,
        },
    )
    tracker.log_summary(means)
    write_report(run)
    log.info("pictures: %s\nnext: python predict.py IMAGE --model %s", run.figures, run.path)


def _write_calibration(calibration: Calibration, scores: Sequence[scoring.Score], run: RunFolder) -> dict[str, Any]:
    """Writes the table and the picture of what the model says of its errors; returns the entry of `summary.json`."""
    from modules import reports

    judged = calibration.list_judged(scores)
    summary = calibration.summarise(judged)
    if judged:
        write_judged(run.judged, judged)
    for line in describe_calibration(summary):
        log.info("%s", line)
    if classes := summary.get("classes"):
        rows = {name: [] for name in classes}
        for one in judged:
            if not math.isnan(one.dice + one.predicted):
                rows[one.class_name].append((one.predicted, one.low, one.high, one.dice, one.check))
        bins = {name: of_class["bins"] for name, of_class in classes.items()}
        title = "What the model says of its errors, beside what the test cases show"
        reports.draw_reliability(run.figures / "reliability.png", bins, rows, title=title)
    return summary


def _draw_examples(bundle: ModelBundle, scores: Sequence[scoring.Score], cases: Sequence[Case], run: RunFolder) -> None:
    from modules import reports
    from modules.reports.score_parts import name_rank

    examples = choose_examples(scores, cases)
    for name, item in zip(examples, predict_cases([bundle], examples.values()), strict=True):
        if item.label is None:
            continue
        case_id, image = item.case.case_id, item.image
        dice = {score.class_name: score.dice for score in scores if score.case == case_id}
        # Nobody judged an ignored voxel. Neither map shows anything there, so that it looks like no error.
        ignored = item.label == IGNORE
        label, prediction = (to_shown(np.where(ignored, 0, array), bundle.regions) for array in (item.label, item.prediction))
        maps = (image.array, label, prediction)
        geometry: dict[str, Any] = {"spacing_mm": image.spacing_mm, "affine": image.affine}
        title = f"{case_id} ({name_rank(name)} test case{', ignored voxels left blank' if ignored.any() else ''})"
        path = run.figures / f"comparison_{name}_{case_id}.png"
        reports.draw_comparison(path, *maps, bundle.class_names, title=title, scores=dice, **geometry)
        names = name_shown(bundle.class_names, bundle.regions)
        if name in ("best", "worst"):
            shown = {"prediction": prediction, "truth": label}
            viewer = reports.cut_viewer(image.array, shown, names, title=title, **geometry)
            reports.write_viewer(run.figures / f"slices_{name}_{case_id}.json", viewer)
        if item.label.ndim == 3 and name in ("best", "median", "worst"):
            reports.draw_montage(run.figures / f"montage_{name}_{case_id}.png", *maps, names, title=title, **geometry)


def choose_examples(scores: Sequence[scoring.Score], cases: Sequence[Case]) -> dict[str, Case]:
    """Chooses the best, the median and the five worst cases by mean Dice: `{"best", "median", "worst", "worst2" to "worst5": case}`.

    Cases whose label holds no foreground are left out, unless all are like that.
    """
    by_id = {case.case_id: case for case in cases}
    dice: dict[str, list[float]] = {}
    occupied = set()
    for item in scores:
        # Some scores are of scans that slices make up. These are no cases.
        if item.case in by_id:
            # A class that is in neither label nor prediction says nothing about a case.
            dice.setdefault(item.case, []).extend([] if math.isnan(item.dice) else [item.dice])
            if item.reference_voxels:
                occupied.add(item.case)
    ranked = sorted((sum(values) / max(len(values), 1), case) for case, values in dice.items() if case in occupied or not occupied)
    # With few test cases a case has several names. The last of them wins.
    names = {place: f"worst{place + 1}" for place in reversed(range(1, min(WORST, len(ranked))))}
    names |= {0: "worst"} | {len(ranked) // 2: "median"} | {len(ranked) - 1: "best"}
    return {name: by_id[ranked[place][1]] for place, name in reversed(names.items())}
