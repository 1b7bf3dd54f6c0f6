"""The time of a training: which network its steps can pay for, and how many steps there are.

`choose_candidates`, `find_schedule` and `choose_width` are pure. `fit_to_time` asks a probe for the times that they need.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from modules import devices
from modules.data.cache import PreparedCase
from modules.data.draws import has_flips
from modules.data.fingerprint import Fingerprint
from modules.data.patches import count_starts
from modules.data.spec import DatasetSpec
from modules.hardware import Hardware
from modules.networks import list_options
from modules.run.plan import Plan, make_plan
from modules.run.probe import Probe, Timing
from modules.run.recipe import Schedule
from modules.run.settings import Settings
from modules.run.validated import count_predictions

# A training without `--minutes` and `--epochs` takes so long on a CPU.
MINUTES = 60.0
# The part of the time that measuring may take.
PROBE_SHARE = 0.1
# The part that validations and checkpoints may take of the training, and the least and most number of them.
VALIDATION_SHARE, LEAST_EPOCHS, MOST_EPOCHS = 0.08, 4, 40
# The part that they may take where those few do not fit into it.
MOST_VALIDATION = 0.5
# Seconds that a checkpoint and the curves of an epoch take.
EPOCH_SECONDS = 0.6
# Seconds from the last epoch to the end, without the predictions: conversion, comparison of engines, scores and pictures.
END_SECONDS = 18.0
# Seconds to read a scan or a slice, score it, and write it down.
CASE_SECONDS = {3: 0.15, 2: 0.03}
# The part of the time that learning to judge predictions may take, see `modules.run.learn_quality`.
JUDGING_SHARE = 0.05
# Widths from narrow to wide. Each step up takes about twice as long.
WIDTHS, MIDDLE = (8, 12, 16, 24, 32), 16
# Seconds of a step, before any is measured.
GUESSED_STEP_S = 0.4
# With fewer steps than these a narrower network learns more; a wider one must leave as many as these. See docs/recipes.md.
LEAST_STEPS, WIDER_STEPS = 800, 5_000
# With fewer than these no network learns much, however narrow it is.
FEW_STEPS = 100
# bfloat16 must be faster by this factor, because it rounds.
BFLOAT16_FACTOR = 1.15

log = logging.getLogger("mri")


@dataclass
class _Clock:
    """The time at which a training began to read its data."""

    start: float


_CLOCK = _Clock(time.monotonic())


@dataclass(frozen=True)
class Share:
    """The part of a command's time that one of its trainings gets.

    Attributes:
        minutes: The time of this training.
        like: The plan of the first fold of the same configuration. The other folds follow it, so that all folds are alike and only the
            first one measures; None for the first.
    """

    minutes: float
    like: Plan | None = None


@dataclass(frozen=True)
class Work:
    """The work of a run besides its steps, in windows of the network.

    Attributes:
        validate: Windows of one validation.
        test: Windows of the predictions after the training, with their overlap.
        cases_s: Seconds to read and score the cases of these predictions.
        judging: The part of the time after that which goes into learning to judge predictions.
    """

    validate: int
    test: int
    cases_s: float
    judging: float = 0.0

    @classmethod
    def count(
        cls, prepared: Mapping[str, Sequence[PreparedCase]], plan: Plan, *, decisions: int, flips: int = 0, judging: float = 0.0
    ) -> "Work":
        """Counts the windows of the prepared cases.

        The validation cases are predicted `decisions` times after the training. With `flips` they are predicted once more, and the test
        cases too: each window so many times.
        """
        window, validate = plan.window.sizes, list(prepared["validate"])
        predicted = [*prepared["test"], *decisions * validate]
        flipped = flips * validate + (flips - 1) * list(prepared["test"])
        return cls(
            sum(count_starts(case.shape, window) for case in validate),
            sum(count_starts(case.shape, window, 0.5) for case in predicted + flipped),
            sum(CASE_SECONDS[len(case.shape)] for case in predicted + (validate if flips else [])),
            judging,
        )


def start_probe(
    settings: Settings, plan: Plan | None, share: Share | None = None, max_devices: int | None = None
) -> AbstractContextManager[Probe | None]:
    """Starts the process that measures steps, where the time decides on a new run's plan; without it the block gets None.

    Args:
        settings: The user's settings.
        plan: The plan of a run that goes on.
        share: The part of the time that this training gets, where there are several.
        max_devices: The most devices of this host to train on.

    Raises:
        ValueError: If the time would have to decide for several hosts, which may differ.
    """
    if plan is not None or settings.epochs or (share and share.like):
        return nullcontext()
    if devices.find_host()[1] > 1:
        raise ValueError("Expected --epochs for several hosts. Received: a time, which one host alone cannot measure. Give --epochs.")
    return Probe(settings, max_devices)


def start_clock() -> float:
    """Lets the time of a training begin now; returns the seconds of the one before."""
    elapsed, _CLOCK.start = find_elapsed(), time.monotonic()
    return elapsed


def find_elapsed() -> float:
    """Returns the seconds since the training began to read its data, see `start_clock`."""
    return time.monotonic() - _CLOCK.start


def draft_share(
    settings: Settings, spec: DatasetSpec, fingerprint: Fingerprint, share: Share | None = None, hardware: Hardware | None = None
) -> Plan:
    """Plans a training that needs no measurement; for one that does, all but network and steps.

    A fold is planned as the first fold of its configuration: the same network, window, batch, recipe and steps. Only what the fold's own
    training cases measure may differ, such as the voxel size.
    """
    like = share.like if share else None
    if like is None:
        return make_plan(settings, spec, fingerprint, hardware=hardware)
    recipe = {name: value for name, value in like.recipe.items() if name != "epochs"}
    alike = replace(settings.fill(recipe), shape=like.window.shape, batch_size=like.batch_size)
    plan = make_plan(alike, spec, fingerprint, Schedule(like.epochs, like.steps_per_epoch), hardware)
    reasons = {**plan.reasons, **like.reasons, "steps": "as in the first fold"}
    # Strides follow from the voxel size. Those of the fold's own need not divide the window.
    stages = {"levels": like.levels, "strides": like.strides, "kernels": like.kernels}
    return replace(plan, recipe=like.recipe, costs=like.costs, reasons=reasons, **stages)


def was_measured(plan: Plan) -> bool:
    """Returns whether a plan was fitted to a time by measured steps."""
    return "validation_s" in plan.costs


def find_shortage(plan: Plan) -> str:
    """Describes that the time of a plan leaves too few steps to learn from, and what helps; "" where it leaves enough."""
    steps = plan.epochs * plan.steps_per_epoch
    if not was_measured(plan) or steps >= FEW_STEPS:
        return ""
    return (
        f"{steps} step(s) of {plan.costs['step_s']:.2g} s are all that is left of {plan.costs['seconds'] / 60:g} minutes, and a network "
        f"learns little in fewer than {FEW_STEPS}. Give more --minutes, or a smaller --shape"
    )


def count_affordable(plan: Plan, windows: int, rank: int) -> int:
    """Counts the predictions that fit into `JUDGING_SHARE` of a training. It follows from the plan alone, so that a run repeats.

    Args:
        plan: The plan.
        windows: Windows of one prediction.
        rank: The rank of a scan.
    """
    if not was_measured(plan):
        # No time was measured or promised. A step computes each sample about three times.
        return int(JUDGING_SHARE * 3 * plan.epochs * plan.steps_per_epoch * plan.batch_size / windows)
    window_s = plan.costs["validation_s"] / plan.batch_size
    # A damaged copy is read and measured as well as scored.
    return int(JUDGING_SHARE * plan.costs["seconds"] / (2 * CASE_SECONDS[rank] + windows * window_s))


def find_schedule(seconds: float, timing: Timing, work: Work, batch_size: int) -> Schedule:
    """Finds how many steps fit into a time.

    Args:
        seconds: The time that is left for the whole command.
        timing: The measured costs of the plan.
        work: The work besides the steps.
        batch_size: Samples of a batch.

    Returns:
        Epochs and steps an epoch, one of each at least.
    """
    window_s = timing.validation_s / batch_size
    epoch_s = math.ceil(work.validate / batch_size) * timing.validation_s + EPOCH_SECONDS
    training_s = (1 - work.judging) * (seconds - timing.first_s - END_SECONDS - work.test * window_s - work.cases_s)
    epochs = max(LEAST_EPOCHS, min(MOST_EPOCHS, int(VALIDATION_SHARE * training_s / epoch_s)))
    epochs = max(1, min(epochs, int(MOST_VALIDATION * training_s / epoch_s)))
    steps = int((training_s - epochs * epoch_s) / timing.step_s)
    epochs = max(1, min(epochs, steps))
    per_epoch = max(1, steps // epochs)
    return Schedule(epochs, per_epoch, f"{per_epoch * epochs} steps of {timing.step_s:.3g} s in {max(training_s, 0) / 60:.1f} min")


def fit_to_time(
    settings: Settings,
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    prepared: Mapping[str, Sequence[PreparedCase]],
    probe: Probe,
    share: Share | None = None,
) -> Plan:
    """Measures candidates and plans the training that the time allows.

    Args:
        settings: The user's settings.
        spec: The data set.
        fingerprint: The fingerprint of the training cases.
        prepared: The prepared cases by split.
        probe: The process that measures.
        share: The part of the time that this training gets; None for all of it.

    Raises:
        ValueError: If the time does not suffice for a single step, or no candidate fits into the memory.
    """
    hardware = probe.hardware
    if settings.minutes is None and hardware.kind == "gpu":
        return make_plan(settings, spec, fingerprint, hardware=hardware)
    minutes = share.minutes if share else settings.minutes or MINUTES
    limit = find_elapsed() + max(15.0, 60 * minutes * PROBE_SHARE)
    voxels = sum(case.voxels for case in prepared["train"])
    bench = _Bench(settings, spec, fingerprint, probe, min(4.0, 60 * minutes * PROBE_SHARE / 10), voxels)
    guess = _guess_schedule(settings, minutes)
    decisions = _count_decisions(settings, spec, hardware)
    judging = JUDGING_SHARE if settings.predict_quality == "learn" else 0.0

    def find_steps(one: _Candidate) -> Schedule:
        return find_schedule(
            60 * minutes - find_elapsed(),
            one.timing,
            Work.count(prepared, one.plan, decisions=decisions, flips=_count_flips(one), judging=judging),
            one.plan.batch_size,
        )

    named = {option.name for option in list_options(make_plan(settings, spec, fingerprint, guess, hardware).network)}
    fixed = "base_filters" not in named or settings.network_options.get("base_filters") is not None
    best = _search(
        fixed,
        _choose_precisions(settings, hardware),
        lambda overrides: bench.measure(settings.fill(overrides), guess),
        lambda one: find_steps(one).steps,
        lambda: find_elapsed() < limit,
    )
    if best is None:
        raise ValueError(
            "Expected a plan that fits into the memory. Received: none. Choose a smaller --shape, --batch-size or --base-filters."
        )
    schedule = find_steps(best)
    # More or fewer steps than we guessed may have another recipe, whose steps take another time.
    if bench.differs(best, schedule):
        best = bench.measure(best.settings, schedule) or best
        schedule = find_steps(best)
    timing, left = best.timing, 60 * minutes - find_elapsed()
    if schedule.steps * timing.step_s + timing.first_s > left:
        part = "the part of this training, " if share else ""
        raise ValueError(
            f"Expected `minutes` for at least one step. Received: {minutes:g}, {part}of which {find_elapsed() / 60:.1f} are over and "
            f"{timing.first_s / 60:.1f} are needed to compile the network; a step takes {timing.step_s:.2g} s. Give more minutes, or "
            "--epochs."
        )
    plan = make_plan(best.settings, spec, fingerprint, schedule, hardware)
    return replace(plan, recipe={**plan.recipe, "precision": best.settings.precision}, costs={"seconds": 60 * minutes, **_describe(timing)})


class _Candidate(NamedTuple):
    """A measured candidate: the settings with what it chooses, its plan and its costs."""

    settings: Settings
    plan: Plan
    timing: Timing


@dataclass(frozen=True)
class _Bench:
    """Measures candidates. `seconds` is the most time for the steps of each, and `voxels` those of all training cases."""

    settings: Settings
    spec: DatasetSpec
    fingerprint: Fingerprint
    probe: Probe
    seconds: float
    voxels: int

    def measure(self, chosen: Settings, schedule: Schedule) -> _Candidate | None:
        """Measures the plan for settings and a length; None where the memory does not suffice."""
        plan = make_plan(chosen, self.spec, self.fingerprint, schedule, self.probe.hardware)
        timing = self.probe.measure(plan, plan.resolve(chosen), self.spec, self.seconds, self.voxels)
        log.debug("probe: %s %s %s", chosen.precision, plan.recipe.get("base_filters"), timing)
        return None if timing is None else _Candidate(chosen, plan, timing)

    def differs(self, one: _Candidate, schedule: Schedule) -> bool:
        """Returns whether a candidate has another recipe for another length."""
        plan = make_plan(one.settings, self.spec, self.fingerprint, schedule, self.probe.hardware)
        return {**plan.recipe, "epochs": 0} != {**one.plan.recipe, "epochs": 0}


def _count_decisions(settings: Settings, spec: DatasetSpec, hardware: Hardware) -> int:
    """Counts how often the validation cases are predicted after the training, to decide how the model predicts."""
    # Regions learn no postprocessing.
    learn = "none" if spec.regions else settings.postprocess
    return count_predictions(learn, settings.predict_precision, bfloat16=hardware.kind == "cpu" and hardware.bfloat16)


def _count_flips(one: "_Candidate") -> int:
    """Counts the flips of a window in predictions that the user wants; 0 for none. The plan's own take next to nothing of the time."""
    wanted = one.settings.predict_mirror == "try" and has_flips(one.plan.resolve(one.settings).augment)
    return 2 ** len(one.plan.window.shape) if wanted else 0


def _guess_schedule(settings: Settings, minutes: float) -> Schedule:
    """Guesses the length of a training, from which the recipe of the candidates follows."""
    epochs = max(MOST_EPOCHS, (settings.warmup_epochs or 0) + 1)
    return Schedule(epochs, max(1, settings.accumulate, round(60 * minutes / GUESSED_STEP_S / epochs)))


def _describe(timing: Timing) -> dict[str, float]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(timing).items()}


def _choose_precisions(settings: Settings, hardware: Hardware) -> list[str]:
    """Lists the precisions that are measured."""
    if settings.precision != "auto":
        return [settings.precision]
    if hardware.kind == "gpu":
        return ["bfloat16" if hardware.bfloat16 else "float32"]
    return ["bfloat16", "float32"] if hardware.bfloat16 else ["float32"]


def _search(fixed: bool, precisions: Sequence[str], measure, count_steps, in_time) -> _Candidate | None:
    """Searches for the widest network that leaves enough steps, beginning in the middle; None where none fits into the memory."""
    middle = place = WIDTHS.index(MIDDLE)
    while True:
        base = {} if fixed else {"base_filters": WIDTHS[place]}
        first = [measure(base | {"precision": precision}) for precision in precisions]
        found = {precision: one for precision, one in zip(precisions, first, strict=True) if one is not None}
        if found or fixed or not place:
            break
        place -= 1
    if not found:
        return None
    precision = min(found, key=lambda name: found[name].timing.step_s * (BFLOAT16_FACTOR if name == "bfloat16" else 1))
    best = found[precision]
    steps = count_steps(best)
    direction = 1 if steps >= LEAST_STEPS else -1
    # A width beyond the memory is not tried again.
    if fixed or (direction > 0 and place < middle):
        return best
    while in_time() and 0 <= place + direction < len(WIDTHS):
        # Twice the width takes three to four times as long.
        expected = steps * (WIDTHS[place] / WIDTHS[place + direction]) ** 1.7
        if direction > 0 and expected < 0.8 * WIDER_STEPS:
            break
        place += direction
        other = measure({"base_filters": WIDTHS[place], "precision": precision})
        if other is None or (direction > 0 and count_steps(other) < WIDER_STEPS):
            break
        best, steps = other, count_steps(other)
        if direction < 0 and steps >= LEAST_STEPS:
            break
    return best
