"""The time of a training: steps by hand, the search for a width, and the plan that follows from measurements."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import make_fingerprint

from dataset import DATASETS
from modules.hardware import Hardware
from modules.predict import engines
from modules.run import budget, recipe
from modules.run.budget import Share, Work, count_affordable, draft_share, find_schedule, find_shortage, fit_to_time, start_probe
from modules.run.plan import Plan, make_plan
from modules.run.probe import Timing
from modules.run.recipe import Schedule
from modules.run.settings import Settings

FIND_ELAPSED = budget.find_elapsed
SPEC = DATASETS["oasis"]
SCANS = make_fingerprint([(64, 64)] * 20)
PREPARED = {
    "train": [SimpleNamespace(voxels=64 * 64)] * 20,
    "validate": [SimpleNamespace(shape=(64, 64))] * 40,
    "test": [SimpleNamespace(shape=(64, 64))] * 20,
}
# A recipe that is the same for each length.
RECIPE = {"loss": "dice_ce", "augment": "none", "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine"}
MEMORY = {"base_bytes": 1 << 29, "held_bytes": 1 << 29, "peak_bytes": 1 << 30, "device_bytes": 0}
TIMING = Timing(first_s=10.0, step_s=0.5, validation_s=0.25, weights=100, **MEMORY)


@pytest.fixture(autouse=True)
def _constants(monkeypatch):
    """Fixes the numbers that were measured, the recipe, and the time that is over: half a minute."""
    monkeypatch.setattr(
        recipe, "choose_recipe", lambda settings, *_: {name: value for name, value in RECIPE.items() if settings.is_open(name)}
    )
    values = {
        "VALIDATION_SHARE": 0.08,
        "LEAST_EPOCHS": 4,
        "MOST_EPOCHS": 40,
        "EPOCH_SECONDS": 0.6,
        "END_SECONDS": 18.0,
        "CASE_SECONDS": {3: 0.15, 2: 0.03},
    }
    for name, value in values.items():
        monkeypatch.setattr(budget, name, value)
    monkeypatch.setattr(budget, "LEAST_STEPS", 600)
    monkeypatch.setattr(budget, "WIDER_STEPS", 600)
    monkeypatch.setattr(budget, "find_elapsed", lambda: 30.0)
    monkeypatch.setattr(budget, "_CLOCK", budget._Clock(time.monotonic()))


@pytest.mark.parametrize(
    ("seconds", "epochs", "steps"),
    [
        # 10 s compile, 18 s end, 80 / 4 test batches take 5 s and 20 cases 3 s: 624 s are left. A validation takes 10 batches and a
        # checkpoint, 3.1 s, so 8 % of 624 s pay for 16 of them, and 624 - 49.6 s for 1148 steps.
        (660, 16, 71),
        # 2400 s would pay for 61 validations; (2400 - 124) / 0.5 = 4552 steps.
        (2436, 40, 113),
        # 100 s pay for 2 validations, and there are 4 at least; (100 - 12.4) / 0.5 = 175 steps.
        (136, 4, 43),
        # Four would take more than a half of 20 s, so there are 3; (20 - 9.3) / 0.5 = 21 steps.
        (56, 3, 7),
        # No time for a validation and a step.
        (38, 1, 1),
        (0, 1, 1),
    ],
)
def test_steps_by_hand(seconds, epochs, steps):
    schedule = find_schedule(seconds, TIMING, Work(validate=40, test=80, cases_s=3.0), batch_size=4)
    assert (schedule.epochs, schedule.steps_per_epoch) == (epochs, steps)
    assert schedule.reason == f"{epochs * steps} steps of 0.5 s in {max(0, seconds - 36) / 60:.1f} min"


def test_windows_are_counted_by_hand():
    window = SimpleNamespace(window=SimpleNamespace(sizes=(10, 10, 1)))
    cases = [SimpleNamespace(shape=shape) for shape in ((10, 10, 3), (15, 20, 2))]
    # Without overlap 1 x 1 x 3 and 2 x 2 x 2 windows. With a half, 2 x 3 x 2 of the second case.
    prepared = {"train": [], "validate": cases, "test": cases}
    work = Work.count(prepared, window, decisions=0)
    assert work == Work(3 + 8, 3 + 12, pytest.approx(2 * 0.15))
    # Postprocessing is learnt from one more prediction of the validation cases, and bfloat16 is judged by another one.
    assert Work.count(prepared, window, decisions=1) == Work(3 + 8, 2 * (3 + 12), pytest.approx(4 * 0.15))
    assert Work.count(prepared, window, decisions=2) == Work(3 + 8, 3 * (3 + 12), pytest.approx(6 * 0.15))
    # Flips in three dimensions take each window 8 times: of the test cases in place of once, of the validation cases besides.
    assert Work.count(prepared, window, decisions=1, flips=8) == Work(3 + 8, (2 + 7 + 8) * (3 + 12), pytest.approx(6 * 0.15))
    # A slice is read and scored sooner than a scan.
    slices = {"validate": [], "test": [SimpleNamespace(shape=(10, 10))] * 5}
    window = SimpleNamespace(window=SimpleNamespace(sizes=(10, 10)))
    assert Work.count(slices, window, decisions=2) == Work(0, 5, pytest.approx(5 * 0.03))


def _search(steps, *, fixed=False, precisions=("float32",), step_s=None, in_time=lambda: True):
    """Searches among widths that leave so many steps; returns what was found, and the widths that were measured."""
    measured = []

    def measure(overrides):
        width, precision = overrides.get("base_filters", 16), overrides["precision"]
        assert fixed == ("base_filters" not in overrides)
        measured.append(width if len(precisions) == 1 else (width, precision))
        if steps.get(width) is None:
            return None
        timing = SimpleNamespace(step_s=(step_s or {}).get(precision, 1.0))
        return SimpleNamespace(name=measured[-1], width=width, plan=SimpleNamespace(window=SimpleNamespace(shape=(8, 8))), timing=timing)

    found = budget._search(fixed, precisions, measure, lambda one: steps[one.width], in_time)
    return found and found.name, measured


@pytest.mark.parametrize(
    ("steps", "expected", "measured"),
    [
        # Much time: wider, as long as 600 steps remain.
        ({16: 9000, 24: 4000, 32: 1500}, 32, [16, 24, 32]),
        ({16: 2000, 24: 500}, 16, [16, 24]),
        # 800 / (24 / 16)**1.7 would be 400 steps, far too few to try it.
        ({16: 800}, 16, [16]),
        # Too slow: narrower, until 600 steps remain or nothing is left to try.
        ({16: 300, 12: 700}, 12, [16, 12]),
        ({16: 100, 12: 300, 8: 500}, 8, [16, 12, 8]),
        # Beyond the memory: narrower, and not wider again.
        ({16: None, 12: 5000}, 12, [16, 12]),
        ({16: None, 12: 300, 8: 900}, 8, [16, 12, 8]),
        ({16: 9000, 24: None}, 16, [16, 24]),
        ({}, None, [16, 12, 8]),
    ],
)
def test_the_width_follows_the_time(steps, expected, measured):
    assert _search(steps) == (expected, measured)


def test_the_search_ends_with_its_time_and_leaves_a_width_that_was_set():
    assert _search({16: 9000}, in_time=lambda: False) == (16, [16])
    assert _search({16: 9000}, fixed=True) == (16, [16])
    assert _search({16: 1}, fixed=True) == (16, [16])
    assert _search({}, fixed=True) == (None, [16])


def test_bfloat16_must_be_faster_by_a_good_part():
    precisions = ("bfloat16", "float32")
    for factor, chosen in ((1.2, "bfloat16"), (1.1, "float32")):
        found, measured = _search({16: 2000, 24: 700}, precisions=precisions, step_s={"bfloat16": 1.0, "float32": factor})
        # The other widths are measured in the chosen precision alone.
        assert (found, measured[2:]) == ((24, chosen), [(24, chosen)])


class _Probe:
    """A probe whose steps take as many hundredths of a second as the network has filters."""

    def __init__(self, most_filters=99, **hardware):
        self.hardware, self.most_filters, self.asked = Hardware(**hardware), most_filters, []

    def measure(self, plan, settings, spec, seconds, voxels):
        self.asked.append(settings)
        assert voxels == 20 * 64 * 64
        filters = settings.network_options["base_filters"]
        assert seconds <= 4
        return None if filters > self.most_filters else Timing(10.0, filters / 100, 0.25, weights=1000 * filters, **MEMORY)


def _fit(probe, share=None, **settings):
    return fit_to_time(Settings("oasis", **settings), SPEC, SCANS, PREPARED, probe, share)


def test_measured_steps_are_written_down():
    probe = _Probe()
    plan = _fit(probe, minutes=10.0, batch_size=4)
    # 600 - 30 - 10 - 18 s, 60 / 4 * 0.25 s to predict 20 test and 40 validation slices, and 1.8 s to read them: 536.45 s are left. A
    # twentieth pays for the judgement of predictions, and 509.6 s for 13 validations of 3.1 s, and 1466 steps of 0.32 s.
    assert (plan.recipe["base_filters"], plan.epochs, plan.steps_per_epoch) == (32, 13, 112)
    assert [settings.network_options["base_filters"] for settings in probe.asked] == [16, 24, 32]
    assert plan.recipe["precision"] == "float32"
    assert plan.costs == {"seconds": 600.0, "first_s": 10.0, "step_s": 0.32, "validation_s": 0.25, "weights": 32000, **MEMORY}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), "plan.json") == plan
    filled = plan.resolve(Settings("oasis", minutes=10.0))
    assert (filled.minutes, filled.epochs, filled.precision, filled.network_options["base_filters"]) == (None, 13, "float32", 32)


def test_flags_override_what_is_measured():
    probe = _Probe(bfloat16=True)
    plan = _fit(probe, minutes=10.0, batch_size=4, precision="float32", network_options={"base_filters": 12})
    assert {(settings.precision, settings.network_options["base_filters"]) for settings in probe.asked} == {("float32", 12)}
    assert plan.recipe["base_filters"] == 12
    # Rules about the length of a training wait until the length is known.
    _fit(_Probe(), minutes=10.0, warmup_epochs=3, accumulate=2)
    # A GPU computes in bfloat16 where it can.
    for able, precision in ((True, "bfloat16"), (False, "float32")):
        probe = _Probe(kind="gpu", bfloat16=able, device_bytes=8 << 30)
        assert _fit(probe, minutes=10.0).recipe["precision"] == precision
        assert {settings.precision for settings in probe.asked} == {precision}


@pytest.mark.parametrize(
    ("wanted", "installed", "hardware", "steps"),
    [
        # 542 s less 100 windows of 1/16 s and 100 slices of 0.03 s are 532.75 s. 19 parts in 20 of these pay for 13
        # validations of 3.1 s, and 3881 steps of 0.12 s.
        ("auto", True, {"bfloat16": True}, 298),
        # Predicted once, 60 windows and slices leave 536.45 s, and 3911 steps.
        ("float32", True, {"bfloat16": True}, 300),
        ("auto", False, {"bfloat16": True}, 300),
        ("auto", True, {}, 300),
    ],
)
def test_the_time_counts_what_bfloat16_is_judged_by(monkeypatch, wanted, installed, hardware, steps):
    monkeypatch.setattr(engines, "has_openvino", lambda: installed)
    own = {"precision": "float32", "predict_precision": wanted, "network_options": {"base_filters": 12}}
    plan = _fit(_Probe(**hardware), minutes=10.0, batch_size=4, **own)
    assert (plan.epochs, plan.steps_per_epoch) == (13, steps)


def test_a_twentieth_of_a_training_pays_for_the_judgement_of_predictions():
    timed = _fit(_Probe(), minutes=10.0, batch_size=4)
    # A twentieth of 600 s; a slice takes twice 0.03 s and 8 windows of 0.25 / 4 s.
    assert count_affordable(timed, 8, 2) == int(30 / (0.06 + 0.5))
    # Without a time 3 passes of 10 epochs of 20 batches of 4 count, in windows.
    given = replace(timed, costs={"seconds": 9e9}, epochs=10, steps_per_epoch=20)
    assert count_affordable(given, 8, 2) == 3 * 10 * 20 * 4 // 20 // 8
    without = _fit(_Probe(), minutes=10.0, batch_size=4, predict_quality="none")
    assert without.epochs * without.steps_per_epoch > timed.epochs * timed.steps_per_epoch


def test_a_time_that_leaves_few_steps_is_told_with_the_remedy():
    timed = _fit(_Probe(), minutes=10.0, batch_size=4)
    assert find_shortage(timed) == ""
    costs = timed.costs | {"step_s": 2.5, "seconds": 60.0}
    assert find_shortage(replace(timed, epochs=20, steps_per_epoch=5, costs=costs)) == ""
    assert find_shortage(replace(timed, epochs=9, steps_per_epoch=11, costs=costs)) == (
        "99 step(s) of 2.5 s are all that is left of 1 minutes, and a network learns little in fewer than 100. Give more --minutes, or a "
        "smaller --shape"
    )
    # Without a measured time the user chose the number of steps.
    assert find_shortage(replace(timed, epochs=1, steps_per_epoch=1, costs={"seconds": 60.0, "step_s": 2.5})) == ""


def test_flips_that_the_user_wants_take_their_time():
    def count_steps(**settings):
        plan = _fit(_Probe(), minutes=10.0, batch_size=4, network_options={"base_filters": 16}, **settings)
        return plan.epochs * plan.steps_per_epoch

    # As above, 509.6 s pay for 13 validations and 2933 steps of 0.16 s. 4 flips of 40 validation slices and 3 more of 20 test slices are
    # 220 windows of 1/16 s, and 40 slices are read in 1.2 s. 19 parts in 20 of the rest are 495.4 s for 12 validations and 2863 steps.
    assert count_steps(augment="light", predict_mirror="never") == 13 * 225
    assert count_steps(augment="light", predict_mirror="try") == 12 * 238
    # Nothing is flipped that the training did not flip, and the plan's own choice is cheap.
    assert count_steps(augment="mild", predict_mirror="try") == count_steps(augment="light") == 13 * 225


def test_an_hour_on_a_cpu_and_the_whole_recipe_on_a_gpu():
    assert _fit(_Probe()).costs["seconds"] == 3600.0
    probe = _Probe(kind="gpu", device_bytes=8 << 30)
    plan = _fit(probe)
    assert (plan.epochs, plan.steps_per_epoch, plan.costs) == (recipe.WHOLE.epochs, recipe.WHOLE.steps_per_epoch, {})
    assert probe.asked == []


def test_a_training_of_several_gets_its_share_and_the_next_fold_follows_it():
    first = _fit(_Probe(), share=Share(2.0), minutes=10.0, batch_size=4)
    assert first.costs["seconds"] == 120.0
    with pytest.raises(ValueError, match=r"Received: 0.6, the part of this training, of which 0.5 are over"):
        _fit(_Probe(), share=Share(0.6), minutes=10.0)
    # Another fold has other cases, and the same plan but for what they measure.
    settings, share = Settings("oasis", minutes=10.0, batch_size=4), Share(2.0, first)
    with start_probe(settings, None, share) as probe:
        assert probe is None
    other = draft_share(settings, SPEC, make_fingerprint([(60, 70)] * 3), share)
    assert other.reasons["steps"] == "as in the first fold"
    assert replace(other, reasons={}) == replace(first, reasons={})
    assert draft_share(settings, SPEC, SCANS) == make_plan(settings, SPEC, SCANS)


def test_a_fold_of_other_voxels_has_the_strides_that_divide_its_window():
    settings = Settings("ibsr18", minutes=10.0, mode="patch", resample="none")
    spec, schedule = DATASETS["ibsr18"], Schedule(1, 9)
    # Slices that lie 4.1 mm apart are halved once, and those of 3.9 mm twice, which does not divide 18 of them.
    flat, deep = (make_fingerprint([(32, 32, 18)] * 4, (1.0, 1.0, depth)) for depth in (4.1, 3.9))
    first = make_plan(settings, spec, flat, schedule)
    assert first.window.sizes == (32, 32, 18)
    assert make_plan(settings, spec, deep, schedule).window.sizes == (32, 32, 20)
    other = draft_share(settings, spec, deep, Share(2.0, replace(first, costs={"seconds": 120.0})))
    assert (other.window, other.levels, other.strides, other.kernels) == (first.window, first.levels, first.strides, first.kernels)


def test_the_clock_of_a_training_begins_anew(monkeypatch):
    monkeypatch.setattr(budget, "find_elapsed", FIND_ELAPSED)
    budget._CLOCK.start -= 100
    assert budget.start_clock() >= 100
    assert budget.find_elapsed() < 100


def test_a_recipe_that_changes_with_the_length_is_measured_again(monkeypatch):
    def by_length(settings, spec, rank, schedule, *_):
        return RECIPE | {"augment": "none" if schedule.steps < 1400 else "light"}

    monkeypatch.setattr(recipe, "choose_recipe", by_length)
    probe = _Probe()
    # The guess is 1000 steps of 0.4 s, and there is time for more than 1400 of 0.16 s.
    plan = _fit(probe, minutes=6.67, batch_size=4, network_options={"base_filters": 16})
    assert plan.epochs * plan.steps_per_epoch > 1400
    assert [settings.augment for settings in probe.asked] == ["none", "light"]


def test_too_little_time_or_memory_is_one_line():
    with pytest.raises(
        ValueError, match=r"^Expected `minutes` for at least one step. Received: 0.6, of which 0.5 are over and 0.2 are .*epochs.$"
    ):
        _fit(_Probe(), minutes=0.6)
    with pytest.raises(ValueError, match=r"^Expected a plan that fits into the memory. Received: none. Choose a smaller --shape, .*\.$"):
        _fit(_Probe(most_filters=4), minutes=10.0)
    assert _fit(_Probe(most_filters=12), minutes=10.0).recipe["base_filters"] == 12


def test_no_probe_is_started_where_the_steps_are_known(monkeypatch):
    monkeypatch.setattr(budget, "Probe", lambda *_: pytest.fail("it starts a process"))
    plan = make_plan(Settings("oasis", epochs=2), SPEC, SCANS, Schedule(1, 1))
    for settings, known in ((Settings("oasis", epochs=2), None), (Settings("oasis", minutes=5.0), plan), (Settings("oasis"), plan)):
        with start_probe(settings, known) as probe:
            assert probe is None
    monkeypatch.setattr(budget, "Probe", lambda *given: given)
    assert start_probe(Settings("oasis"), None, None, 3) == (Settings("oasis"), 3)
    monkeypatch.setattr(budget.devices, "find_host", lambda: (0, 2))
    with pytest.raises(ValueError, match="Expected --epochs for several hosts. Received: a time, which one host alone cannot measure."):
        start_probe(Settings("oasis"), None)
