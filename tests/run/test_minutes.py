"""Trainings by the time they may take, through the command: the plan alone, the steps it writes down, and their resume."""

import csv
import dataclasses
import json
from contextlib import nullcontext

import pytest
from command_helpers import OWN, TINY, expect_one_line, read_summary

import train
from dataset import DATASETS
from modules.hardware import Hardware
from modules.run import budget, costs, learn_quality, plan_table
from modules.run.callbacks import Checkpoint
from modules.run.flags import parse_training
from modules.run.folder import RunFolder
from modules.run.plan import make_plan
from modules.run.probe import Timing

# The tiny training, but for its epochs.
TIMED = [*TINY[2:], *OWN["oasis"]]
assert TINY[0] == "--epochs"


class _Probe:
    """A probe of a machine whose steps take 40 seconds."""

    hardware = Hardware(cores=2)

    def measure(self, plan, settings, spec, seconds, voxels):
        memory = {"base_bytes": 1 << 29, "held_bytes": 1 << 29, "peak_bytes": 1 << 30, "device_bytes": 0}
        return Timing(first_s=10.0, step_s=40.0, validation_s=0.0, weights=1, **memory)


@pytest.fixture
def data(phantoms):
    return ["--dataset", "oasis", "--data", str(phantoms / "oasis")]


@pytest.fixture
def _timed(monkeypatch):
    """Fixes what is measured: half a minute is over, and the rest of five minutes holds three epochs of two steps."""
    for name, value in (
        ("END_SECONDS", 0.0),
        ("CASE_SECONDS", {2: 1e-9, 3: 1e-9}),
        ("EPOCH_SECONDS", 1.0),
        ("LEAST_EPOCHS", 3),
        ("MOST_EPOCHS", 3),
    ):
        monkeypatch.setattr(budget, name, value)
    # Whatever the time would pay for, as much is learnt from as by a tiny run of so many epochs.
    monkeypatch.setattr(learn_quality, "MOST", dict.fromkeys((2, 3), learn_quality.LEAST))
    monkeypatch.setattr(budget, "find_elapsed", lambda: 30.0)
    monkeypatch.setattr(train, "start_probe", lambda settings, plan, *_: nullcontext(None if plan or settings.epochs else _Probe()))


@pytest.mark.usefixtures("_timed")
def test_a_training_of_so_many_minutes_is_killed_and_ends_as_one_of_so_many_steps(runs, data, tmp_path, monkeypatch):
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "cut"]
    with monkeypatch.context() as patch:
        write = Checkpoint.on_epoch_end

        def interrupt(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt
            write(self, epoch, logs)

        patch.setattr(Checkpoint, "on_epoch_end", interrupt)
        assert train.main([*data, *TIMED, "--minutes", "5", *places]) == 130
    cut = RunFolder(tmp_path / "runs" / "cut")
    plan = cut.read_plan()
    # 19 parts in 20 of 300 - 30 - 10 s, less 3 s, are 6 steps of 40 s.
    assert (plan.epochs, plan.steps_per_epoch, plan.recipe["precision"], plan.costs["step_s"]) == (3, 2, "float32", 40.0)
    # The user's settings stay as they were given.
    assert (cut.read_settings().minutes, cut.read_settings().epochs) == (5.0, None)
    # The rest of the training follows its plan and measures nothing, however much time there is.
    monkeypatch.setattr(train, "start_probe", budget.start_probe)
    monkeypatch.setattr(budget, "Probe", lambda *_: pytest.fail("it measures again"))
    assert train.main(["--resume", str(cut.path)]) == 0
    # A training of three epochs has the same steps, and ends equal to the bit.
    assert read_summary(cut.path) == read_summary(runs["oasis"])
    assert (cut.path / "scores.csv").read_text() == (runs["oasis"] / "scores.csv").read_text()
    assert (cut.path / "bundle" / "bundle.json").is_file()
    with cut.history.open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.usefixtures("_timed")
@pytest.mark.parametrize("flags", [["--minutes", "5"], ["--epochs", "3"], ["--minutes", "5", "--folds", "2"]])
def test_a_plan_is_printed_and_nothing_is_trained(data, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it trains"))
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert train.main([*data, *TIMED, *flags, *places, "--plan-only"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.startswith("plan ")]
    assert 10 <= len(lines) <= 15
    told = {words[1]: words[2:] for words in lines}
    assert told["window"][0] == "64x64,"
    assert told["batch"][0] == "4,"[: 1 + (flags[0] == "--minutes")]
    assert told["time"][-1] == ("measured" if flags[0] == "--minutes" else "estimated")
    # No user who asks for few epochs is told that they are few.
    assert (" step(s) of 40 s are all that is left of " in out) == (flags[0] == "--minutes")
    if flags == ["--minutes", "5"]:
        assert (told["steps"][:3], told["time"][:2]) == (["3", "x", "2"], ["5.0", "min"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("_timed")
def test_memory_that_will_not_do_is_a_warning_before_the_training(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_table, "find_limit", lambda costs: 1 << 29)
    # The training took half a GiB besides the libraries.
    for name, value in (("read_memory", 2 << 30), ("read_peak", 0)):
        monkeypatch.setattr(costs, name, lambda value=value: value)
    monkeypatch.setattr(costs, "estimate_end", lambda *_: 1 << 29)
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    assert train.main([*data, *TIMED, "--minutes", "5", *places, "--plan-only"]) == 0
    assert "warning: the training needs about 3.0 GiB of memory, and there are 0.5. Choose a smaller --shape" in capsys.readouterr().out


def test_times_and_plans_that_contradict_are_one_line(data, runs, tmp_path, capsys):
    for flags, message in (
        ([*data, "--minutes", "5", "--epochs", "3"], "Expected either `minutes` or `epochs`. Received: 5 and 3. Leave one out."),
        ([*data, "--minutes", "0"], "Expected `minutes` above 0. Received: 0.0."),
        (["--resume", str(runs["oasis"]), "--plan-only"], "Expected --plan-only for a new run. Received: a run that has its plan"),
        (["--verify", str(runs["oasis"]), "--plan-only"], "Expected --plan-only for a new run. Received: a run that has its plan"),
    ):
        expect_one_line(capsys, train.main([*flags, "--runs", str(tmp_path / "runs")]), message)


def test_a_time_stands_for_the_epochs_of_a_preset():
    for flags in (["--preset", "oasis_unet2d"], ["--dataset", "oasis", "--demo"], ["--dataset", "ibsr18", "--demo"]):
        before = parse_training(flags, DATASETS).settings
        after = parse_training([*flags, "--minutes", "5"], DATASETS).settings
        assert (before.minutes, after.minutes, after.epochs) == (None, 5.0, None)
        assert before.epochs
        assert after.learning_rate == before.learning_rate


def test_a_plan_of_another_content_is_refused_by_its_file(runs, tmp_path):
    folder = RunFolder(tmp_path)
    values = json.loads((runs["oasis"] / "plan.json").read_text())
    for name, value, message in (
        ("recipe", [], "an object of any entries, .* for `recipe` in .*plan.json. Received: "),
        ("recipe", {"speed": 1}, r"Expected a plan in .*plan.json. Received: Expected settings in \('dataset'"),
        ("recipe", {"loss": "zzz"}, "Expected a plan in .*plan.json. Received: Expected `loss` as a name in "),
        ("recipe", {"ema": "a"}, "Received: Expected `ema` of type float. Received: 'a'"),
        ("costs", {"step_s": "a"}, "for `costs` in .*plan.json. Received: "),
        ("costs", {"step_s": -1}, "for `costs` in .*plan.json. Received: "),
        ("costs", 3, "for `costs` in .*plan.json. Received: 3"),
        ("epochs", 0, "a whole number from 1 .*for `epochs` in .*plan.json. Received: 0"),
    ):
        folder.plan.write_text(json.dumps(values | {name: value}))
        with pytest.raises(ValueError, match=message):
            folder.read_plan()


def test_volumes_are_prepared_for_the_window_that_was_measured(phantoms, tmp_path, monkeypatch):
    """On a GPU the width that the time allows changes the window, which whole volumes are brought to."""
    flags = ["--data", str(phantoms / "ibsr18"), "--cache", str(tmp_path), "--mode", "volume", "--network", "unet3d", "--levels", "1"]
    settings = parse_training(["--dataset", "ibsr18", *flags, "--base-filters", "2", "--shape", "16", "16", "16"], DATASETS).settings

    def fit_to_time(settings, spec, fingerprint, prepared, *_):
        assert {case.shape for cases in prepared.values() for case in cases} == {(16, 16, 16)}
        return make_plan(dataclasses.replace(settings, shape=(8, 16, 8), epochs=1), spec, fingerprint)

    asked = []
    monkeypatch.setattr(train, "start_probe", lambda *given: asked.append(given) or nullcontext(_Probe()))
    monkeypatch.setattr(train, "fit_to_time", fit_to_time)
    prepared = train.prepare(settings, 1)
    # The probe trains on as many devices as the run.
    assert asked == [(settings, None, None, 1)]
    assert prepared.plan.preprocessing.shape == (8, 16, 8)
    assert {case.shape for cases in prepared.prepared.values() for case in cases} == {(8, 16, 8)}
