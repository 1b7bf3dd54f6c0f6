"""A search for settings: what is searched, what Optuna is told, kills of a trial and of the search, and the best model alone is tested."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_helpers import TINY, expect_one_line
from worker_helpers import write_history

import train
from modules.run import search, workers
from modules.run.folder import RunFolder
from modules.run.listing import list_models
from modules.run.search import list_space, list_tenths, read_progress
from modules.run.settings import NETWORK_OPTIONS, Settings
from modules.run.workers import Crew, Ended, Job

# Stands for train.py: the Dice follows from the settings, and rises from epoch to epoch. A trial of strong augmentation is bad and slow.
TRAINING = """
import json, os, shutil, signal, sys, time
from pathlib import Path

sys.path[:0] = {paths}
from worker_helpers import write_history

flags = sys.argv[1:]
names = dict(zip(flags, flags[1:]))
if "--resume" in flags:
    run = Path(names["--resume"])
    if "--train-only" not in flags:
        (run / "summary.json").write_text('{"test": 1}')
        sys.exit(0)
else:
    run = Path(names["--runs"], names["--name"])
    shutil.copytree({template}, run)
    record = json.loads(Path(names["--config"]).read_text())
    (run / "run.json").write_text(json.dumps(record))
config = json.loads((run / "run.json").read_text())["config"]
strong = config["augment"] == "strong"
dice = 0.1 if strong else {"none": 0.7, "mild": 0.8, "light": 0.9}.get(config["augment"], 0.75)
for epoch in range(1, 4):
    write_history(run, [dice * part / 3 for part in range(1, epoch + 1)])
    kill = run.with_suffix(".killed")
    if run.name == "trial_001" and epoch == 2 and not kill.exists():
        kill.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(20 if strong and epoch == 2 else 0.1)
"""


@pytest.fixture
def command(runs, phantoms, tmp_path, monkeypatch):
    """Runs a search of 12 trials below `tmp_path`, where only the augmentation is open, by a script that stands for train.py."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(search, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(search, "WARMUP_TRIALS", 2)
    template = tmp_path / "template"
    template.mkdir()
    shutil.copy(runs["hipmri"] / "plan.json", template)
    script = tmp_path / "training.py"
    script.write_text(TRAINING.replace("{paths}", repr(sys.path[:8])).replace("{template}", repr(str(template))))
    monkeypatch.setattr(train, "__file__", str(script))
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    fixed = [*("--dataset", "hipmri", "--data", str(phantoms / "hipmri"), *TINY), "--loss", "dice", "--keep", "best", *places]

    def run(*flags):
        return train.main([*fixed, "--name", "found", "--search", "12", *flags])

    return run


def test_a_search_that_is_killed_goes_on_to_the_best_trial(command, tmp_path, monkeypatch, capsys):
    poll, polls = workers.Crew.poll, []

    def interrupt(self):
        polls.append(self.names)
        # The second trial has been killed and begun again by then, or is about to be.
        if len(polls) > 1 and "trial_001" in polls[-2]:
            raise KeyboardInterrupt
        return poll(self)

    with monkeypatch.context() as patch:
        patch.setattr(workers.Crew, "poll", interrupt)
        assert command() == 130
    run = tmp_path / "runs" / "found"
    capsys.readouterr()
    expect_one_line(capsys, train.main(["--verify", str(run)]), "Expected a finished search. Received: ")
    assert train.main(["--resume", str(run), "--workers", "2"]) == 0
    assert (run / "trial_001.killed").exists()

    with (run / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert rows[0]["augment"] == ""
    complete = [row for row in rows if row["state"] == "complete"]
    expected = {"": 0.75, "none": 0.7, "mild": 0.8, "light": 0.9, "strong": 0.1}
    assert all(float(row["validation_dice"]) == pytest.approx(expected[row["augment"]]) for row in complete)
    # What is below the median of the others may be stopped; the best never is.
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert all(row["augment"] != "light" and row["epochs"] in "123" for row in pruned)
    assert len(complete) + len(pruned) == 12

    summary = json.loads((run / "summary.json").read_text())
    best = max(complete, key=lambda row: float(row["validation_dice"]))
    assert summary["validation_dice"] == float(best["validation_dice"])
    trial = run / summary["best_trial"]
    # No other trial has seen the test cases.
    assert [path.parent.name for path in run.glob("trial_*/summary.json")] == [summary["best_trial"]]
    assert list_models([run]) == [trial]
    expect_one_line(capsys, train.main(["--resume", str(run)]), "Expected an interrupted run. Received: ")


class FakeTrial:
    def __init__(self, number):
        self.number, self.params, self.reports = number, {}, []

    def suggest_float(self, name, low, high, *, log):
        assert log
        self.params[name] = low

    def suggest_categorical(self, name, values):
        self.params[name] = values[0]

    def report(self, value, step):
        self.reports.append((value, step))

    def should_prune(self):
        return self.reports[-1][0] < 0.2


class FakeStudy:
    def __init__(self):
        self.trials, self.told = [], {}

    def ask(self):
        self.trials.append(FakeTrial(len(self.trials)))
        self.trials[-1].state = self
        return self.trials[-1]

    def is_finished(self):
        return True

    def tell(self, trial, value=None, state=None):
        self.told[trial.number] = state or value


def test_a_trial_below_the_others_is_stopped_and_one_that_fails_is_told(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "POLL_SECONDS", 0)
    run, cancelled = RunFolder(tmp_path / "found"), set()
    curves = {"trial_000": [0.3, 0.6, 0.9], "trial_001": [0.1, 0.1, 0.1]}

    def submit(commands):
        return [start(command[command.index("--name") + 1]) for command in commands]

    def start(name):
        folder, looks = run.path / name, []
        status = {"trial_000": 0, "trial_001": 130, "trial_002": 2}[name]
        end = Ended(status, "train.py: error: Expected.")
        if name == "trial_002":
            return Job(lambda: True, lambda: end, lambda: None)
        folder.mkdir()
        for file in ("run.json", "plan.json"):
            shutil.copy(runs["hipmri"] / file, folder)
        (folder / "run.json").write_text((folder / "run.json").read_text().replace('"keep": ""', '"keep": "best"'))

        def is_done():
            looks.append(1)
            write_history(folder, curves[name][: len(looks)])
            return name in cancelled or len(looks) == 4

        return Job(is_done, lambda: end, lambda: cancelled.add(name))

    study, states = FakeStudy(), SimpleNamespace(PRUNED="pruned", FAIL="failed")
    optuna = SimpleNamespace(trial=SimpleNamespace(TrialState=states))
    settings = Settings("hipmri", loss="ce", augment="none", schedule="cosine", ema=0.0, epochs=3)
    with Crew(submit) as crew:
        search._Search(optuna, study, run, settings, Path("train.py"), crew, ["--devices", "1"]).carry_out(3, 2)
    assert study.told == {0: 0.9, 1: "pruned", 2: "failed"}
    assert cancelled == {"trial_001"}
    assert [trial.params for trial in study.trials] == [{}, *2 * [{"learning_rate": 3e-4, "base_filters": 8}]]
    tenths = [0.3] * 3 + [0.6] * 3 + [0.9] * 4
    assert study.trials[0].reports == list(zip(tenths, range(1, 11), strict=True))
    assert json.loads((run.workers / "trial_001.json").read_text())["config"]["learning_rate"] == 3e-4


def test_the_time_is_shared():
    settings = Settings("oasis", minutes=60.0)
    assert [search._share_time(settings, 12, number) for number in (1, 2, 50)] == [5, 10, 60]
    assert search._share_time(Settings("oasis", epochs=3), 12, 1) is None


def test_what_is_open_is_searched(monkeypatch):
    assert list(list_space(Settings("oasis"))) == ["learning_rate", "loss", "augment", "schedule", "ema", "base_filters"]
    some = Settings("oasis", loss="ce", learning_rate=1e-3, ema=0.0, network="unet2d")
    monkeypatch.setitem(NETWORK_OPTIONS, "base_filters", {"unet3d": None})
    assert list(list_space(some)) == ["augment", "schedule"]
    assert "base_filters" not in list_space(Settings("oasis", network_options={"base_filters": 8}))
    with pytest.raises(
        ValueError, match="Expected an open setting to search, of .*. Received: all are set, as --demo and presets do. Leave one out."
    ):
        list_space(replace(some, augment="none", schedule="constant"))


def test_tenths_by_hand():
    # Of 3 epochs the first holds three tenths, the second three more.
    assert list_tenths([0.1, 0.2], 3) == [0.1] * 3 + [0.2] * 3
    assert list_tenths([0.1, 0.2, 0.3], 3) == [0.1] * 3 + [0.2] * 3 + [0.3] * 4
    # Of 20 epochs every second ends a tenth.
    assert list_tenths([number / 20 for number in range(1, 6)], 20) == [0.1, 0.2]
    assert list_tenths([], 0) == []


def test_progress_of_a_run(runs, tmp_path):
    assert read_progress(RunFolder(tmp_path)) == ([], 0)
    for name in ("run.json", "plan.json"):
        shutil.copy(runs["hipmri"] / name, tmp_path)
    write_history(tmp_path, [0.5, float("nan"), 0.25])
    for keep, expected in (("best", [0.5, 0.5, 0.5]), ("last", [0.5, 0.0, 0.25])):
        record = json.loads((tmp_path / "run.json").read_text())
        record["config"]["keep"] = keep
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert read_progress(RunFolder(tmp_path)) == (expected, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--search", "3", "--folds", "2"), "Expected --search alone. Received: --folds, --train-only, --plan-only, --verify or --merge."),
        (("--search", "-1"), "Expected `search` of 1 training or more. Received: -1."),
        (("--workers", "2"), "Expected --folds or --search beside workers. Received: one training, which is not divided."),
        (("--train-only", "--folds", "2"), "Expected one new training beside --train-only."),
    ],
)
def test_what_cannot_be_is_one_line(capsys, flags, message):
    expect_one_line(capsys, train.main(["--dataset", "hipmri", "--demo", *flags]), message)


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    expect_one_line(capsys, train.main(["--dataset", "hipmri", "--demo", "--search", "3"]), "pip install optuna; the extra 'search' of")
