"""Decides from the validation cases how a trained model predicts: its precision on a CPU, flips, and its postprocessing.

The cases are predicted once in float32, once in bfloat16 where this machine computes in it, and once with flips where the plan affords
them. All decisions share these predictions.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from modules import hardware
from modules.data.case import Case, Predicted
from modules.data.documents import to_line
from modules.predict import engines
from modules.predict.bundle import ModelBundle, set_mirror, set_postprocessing, set_precision
from modules.predict.cases import predict_cases
from modules.predict.progress import PredictionProgress
from modules.run.folder import RunFolder, without_nan
from modules.run.learn_postprocess import TalliedCase, learn, tally_cases
from modules.score_tables import summarise
from modules.scoring import score_predictions

# The mean validation Dice of every class must move by less than this in bfloat16, up or down.
MOST_MOVED = 1e-3
# Flips take 4 to 8 times as long, so the mean validation Dice must rise by this, and no class's may fall.
LEAST_RISEN = 1e-3
# An exported variant may lose less than this of the mean validation Dice of each class.
MOST_LOST = 2e-3

log = logging.getLogger("mri")

# {level: {class: mean Dice}}
Dice = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision that a model predicts in on a CPU, and what decided about it.

    Attributes:
        precision: "float32" or "bfloat16".
        reason: Why, in words.
        cases: Number of validation cases.
        moved: The most that the mean Dice of a class moves in bfloat16; None where it is not known.
        dice: Mean Dice of the validation cases by precision, `{precision: {level: {class: Dice}}}`.
    """

    precision: str
    reason: str
    cases: int
    moved: float | None
    dice: Mapping[str, Dice]

    def to_json(self) -> dict[str, Any]:
        """Returns the choice as plain values, for the bundle's provenance and for `summary.json`."""
        dice = {f"dice_{name}": values for name, values in self.dice.items()}
        content = {"chosen": self.precision, "reason": self.reason, "moved": self.moved, "validation_cases": self.cases, **dice}
        return without_nan(content)

    def describe(self) -> str:
        """Describes the choice in a line."""
        return f"predictions on a CPU compute in {self.precision}: {self.reason} ({self.cases} validation case(s))"


class _Validation(NamedTuple):
    """The lessons from predictions of the validation cases.

    `dice` is their mean Dice by level and class, `judged` holds the classes that any label holds, and `tallied` is what postprocessing
    is learnt from.
    """

    dice: Dice
    judged: set[str]
    tallied: list[TalliedCase]


def count_predictions(postprocess: str, precision: str, *, bfloat16: bool) -> int:
    """Counts how often `decide` predicts the validation cases: 0 to 2 times.

    Args:
        postprocess: The setting of that name.
        precision: The setting `predict_precision`.
        bfloat16: Whether predictions run on a CPU that computes in bfloat16.
    """
    if precision == "auto" and bfloat16 and engines.has_openvino():
        return 2
    return int(postprocess == "learn")


def decide(
    run: RunFolder, cases: Sequence[Case], postprocess: str, precision: str, mirror: str = "never"
) -> tuple[ModelBundle, dict[str, Any]]:
    """Decides precision, flips and postprocessing of a run's saved bundle, and writes them into it. What is scored is then what is shipped.

    Args:
        run: The run. Its bundle was converted for OpenVINO before.
        cases: The validation cases.
        postprocess: "learn" gives the bundle the steps that raise its validation Dice; "none" does not.
        precision: "auto" tries bfloat16 where OpenVINO predicts and the CPU computes in it; "float32" does not.
        mirror: "try" keeps flips that raise the validation Dice, where the training flipped; "never" does not predict with them.

    Returns:
        The bundle as `predict.py` loads it on this machine, and the entries of `summary.json` that say what decided.

    Raises:
        FileNotFoundError, ValueError: If a case cannot be read, or cannot be computed in float32, naming its file.
    """
    # A call that was killed may have kept flips already; "without" means without them.
    set_mirror(run.path, False)
    bundle, entries = ModelBundle.load(run.path, precision="float32"), {}
    learns = postprocess == "learn" and not bundle.regions
    tries = precision == "auto" and bundle.engine == "openvino" and hardware.has_cpu_bfloat16()
    flips = mirror == "try" and bool(bundle.flipped_axes)
    validation = _validate(bundle, cases, tally=learns) if learns or tries or flips else None
    choice = None
    if tries and validation is not None:
        other = ModelBundle.load(run.path, precision="bfloat16")
        choice, rounded = _try_bfloat16(other, cases, validation, tally=learns)
        if rounded is not None and choice.precision == "bfloat16":
            bundle, validation = other, rounded
        log.info("%s", choice.describe())
        entries["prediction_precision"] = choice.to_json()
    bundle = replace(bundle, precision=bundle.computed_in)
    set_precision(run.path, bundle.precision, choice.to_json() if choice else None)
    if flips and validation is not None:
        bundle, validation, entries["mirror"] = _try_flips(bundle, cases, validation, tally=learns)
        set_mirror(run.path, bundle.mirror)
    if postprocess == "learn" and bundle.regions:
        log.info("no postprocessing: objects of regions overlap")
    if learns and validation is not None:
        lesson = learn(validation.tallied, bundle.class_names)
        for line in lesson.describe():
            log.info("%s", line)
        set_postprocessing(run.path, lesson.postprocessing)
        bundle = replace(bundle, postprocessing=lesson.postprocessing)
        entries["postprocessing"] = lesson.to_json()
    return bundle, entries


def choose_precision(plain: Dice, rounded: Dice, unjudged: Sequence[str], cases: int) -> PrecisionChoice:
    """Chooses bfloat16 if it moves the mean Dice of every class by less than `MOST_MOVED`, up or down; else float32.

    Args:
        plain: Mean Dice in float32 by level and class.
        rounded: The same in bfloat16.
        unjudged: Classes that no validation label holds. Nobody can say what bfloat16 does to them.
        cases: Number of validation cases.
    """
    moves = [(abs(rounded[level][name] - dice), name) for level, classes in plain.items() for name, dice in classes.items()]
    moved, most = max(moves, default=(math.nan, ""))
    if unjudged or not moves:
        precision, reason = "float32", f"no validation label holds {', '.join(unjudged) or 'any class'}"
    elif moved < MOST_MOVED:
        precision, reason = "bfloat16", f"it moves the mean Dice of each class by {moved:.2g} or less"
    else:
        precision, reason = "float32", f"bfloat16 moves the mean Dice of {most} by {moved:.2g}"
    return PrecisionChoice(precision, reason, cases, moved, {"float32": plain, "bfloat16": rounded})


def judge_variant(plain: ModelBundle, other: ModelBundle, cases: Sequence[Case]) -> dict[str, Any]:
    """Measures what an exported variant of a model loses on the validation cases. Label maps go through the model's postprocessing.

    Args:
        plain: The bundle with the float32 model.
        other: The same with the variant, in the precision `computed_in`.
        cases: The validation cases.

    Returns:
        As plain values: number of cases, the most that the mean Dice of a class falls, that class, and the mean Dice of both.

    Raises:
        ValueError: If a class loses `MOST_LOST` or more, or no validation label holds it.
    """
    first, second = (_validate(bundle, cases, tally=False, postprocess=True) for bundle in (plain, other))
    precision = other.computed_in
    if unjudged := [name for name in plain.class_names[1:] if name not in first.judged]:
        raise ValueError(
            f"Expected validation labels of every class to judge {precision} on. Received: none of {', '.join(unjudged)}. "
            "Give --precision float32."
        )
    lost, name = max((dice - second.dice[level][name], name) for level, classes in first.dice.items() for name, dice in classes.items())
    if not lost < MOST_LOST:
        raise ValueError(
            f"Expected {precision} to lose less than {MOST_LOST:g} of the mean validation Dice of a class. Received: {lost:.2g} of {name}, "
            f"on {len(cases)} case(s). Give --precision float32."
        )
    log.info("%s: the mean Dice of %d validation case(s) falls by %.2g or less in each class", precision, len(cases), max(lost, 0.0))
    content = {"cases": len(cases), "lost": lost, "class": name, "dice_float32": first.dice, f"dice_{precision}": second.dice}
    return without_nan(content)


def _try_bfloat16(
    bundle: ModelBundle, cases: Sequence[Case], plain: _Validation, *, tally: bool
) -> tuple[PrecisionChoice, _Validation | None]:
    """Predicts the validation cases in bfloat16, and chooses. A model that fails in bfloat16 predicts in float32."""
    try:
        rounded = _validate(bundle, cases, tally=tally)
    except ValueError as error:
        reason = f"bfloat16 failed: {to_line(error)}"
        return PrecisionChoice("float32", reason, len(cases), None, {"float32": plain.dice}), None
    unjudged = [name for name in bundle.class_names[1:] if name not in plain.judged]
    return choose_precision(plain.dice, rounded.dice, unjudged, len(cases)), rounded


def _try_flips(
    bundle: ModelBundle, cases: Sequence[Case], plain: _Validation, *, tally: bool
) -> tuple[ModelBundle, _Validation, dict[str, Any]]:
    """Predicts the validation cases with flips, and keeps these if `is_raised` says so.

    Returns:
        The bundle, its lessons, and the entry of `summary.json`.
    """
    flipped = replace(bundle, mirror=True)
    mirrored = _validate(flipped, cases, tally=tally)
    kept = is_raised(plain.dice, mirrored.dice)
    log.info(
        "predictions average over flips: %s (mean validation Dice %.4f without, %.4f with, %d case(s))",
        "yes" if kept else "no", *(_average(one.dice) for one in (plain, mirrored)), len(cases),
    )  # fmt: skip
    entry = without_nan({"kept": kept, "dice": mirrored.dice, "dice_without": plain.dice, "validation_cases": len(cases)})
    return (flipped, mirrored, entry) if kept else (bundle, plain, entry)


def is_raised(before: Dice, after: Dice) -> bool:
    """Returns whether the mean Dice rises by `LEAST_RISEN` or more, at each level, and that of no class falls."""
    falls = any(after[level][name] < dice for level, classes in before.items() for name, dice in classes.items())
    levels = [(one, after[level]) for level, one in before.items() if one]
    return bool(levels) and not falls and all(_average({"": new}) - _average({"": old}) >= LEAST_RISEN for old, new in levels)


def _average(dice: Dice) -> float:
    values = [value for classes in dice.values() for value in classes.values()]
    return sum(values) / len(values) if values else math.nan


def _validate(bundle: ModelBundle, cases: Sequence[Case], *, tally: bool, postprocess: bool = False) -> _Validation:
    """Predicts the validation cases and scores their overlaps. If `tally`, it finds their objects, from which postprocessing is learnt."""
    tallied: list[TalliedCase] = []

    def pass_on(predicted: Iterable[Predicted]) -> Iterator[Predicted]:
        for item in predicted:
            if tally:
                tallied.extend(tally_cases([item], len(bundle.class_names)))
            yield item

    with PredictionProgress(len(cases), f"validating in {bundle.computed_in}") as progress:
        predicted = progress.count(predict_cases([bundle], cases, progress.options(postprocess=postprocess)))
        # Distances and lesions take most of the time of scoring, and decide nothing here.
        scores = list(score_predictions(pass_on(predicted), bundle.class_names, bundle.regions, overlaps_only=True))
    judged = {score.class_name for score in scores if score.reference_voxels}
    dice = {
        level: {name: means["dice"] for name, means in classes.items() if name in judged} for level, classes in summarise(scores).items()
    }
    return _Validation(dice, judged, tallied)
