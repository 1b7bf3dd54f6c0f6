"""Searches for settings: trains with some, validates, and lets Optuna choose the next; the best model alone sees the test cases.

Each trial is a call of train.py by a worker, in a folder of its own below the search's. Optuna's storage is a file there, so that a search
which was killed goes on. What the user sets is not searched.
"""

import csv
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.data.files import replace_file
from modules.data.spec import choose_target
from modules.run.budget import MINUTES
from modules.run.crossvalidation import Program
from modules.run.division import divide
from modules.run.flags import TrainingRequest
from modules.run.folder import RunFolder, write_json
from modules.run.listing import SEARCH_FILE
from modules.run.plan import draft_plan
from modules.run.settings import NETWORK_OPTIONS, Settings
from modules.run.training_parts import make_training_command
from modules.run.workers import POLL_SECONDS, Crew, Ended, WorkerOptions, open_workers

# What is searched where the user leaves it open. A pair is a range on a logarithmic scale.
SPACE: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (3e-4, 1e-2),
    "loss": ("dice_ce", "dice:1+focal:1", "tversky"),
    "augment": ("none", "mild", "light", "strong"),
    "schedule": ("cosine", "polynomial", "constant"),
    "ema": (0.0, 0.99),
    "base_filters": (8, 16, 24, 32),
}
_RANGES = ("learning_rate",)
# A trial may be stopped when so many tenths of it are over, and so many others have ended.
WARMUP_TENTHS, WARMUP_TRIALS = 3, 4
_COLUMNS = ("trial", "state", "validation_dice", "epochs", "seconds")

log = logging.getLogger("mri")


@dataclass
class _Trial:
    """A trial under way.

    Attributes:
        trial: Optuna's object.
        run: The run.
        told: The tenths of the training of which Optuna knows the Dice.
        stopped: Whether it was stopped because others are better.
    """

    trial: Any
    run: RunFolder
    told: int = 0
    stopped: bool = False


def search(settings: Settings, request: TrainingRequest, program: Program) -> RunFolder:
    """Trains `request.search` trials, scores the best of them on the test cases, and returns the folder of the search.

    The first trial has the plan's own choices. The time is divided among the trials, each of which gets the same.

    Args:
        settings: The settings of the whole.
        request: The search to resume, the number of trials, the devices and the workers.
        program: The functions that load, and the file that workers run.

    Raises:
        ModuleNotFoundError: Without Optuna.
        ValueError, OSError: If nothing is left to search, the data do not fit, or no trial could be trained.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = RunFolder(request.resume) if request.resume else RunFolder.name(settings, "search")
    workers = request.workers or WorkerOptions("local", 1)
    if request.resume:
        run.claim()
    else:
        list_space(settings)
        spec, cases = program.load(settings)
        divide(cases, settings)
        draft_plan(settings, choose_target(spec, settings.target))
        run.check_new()
        run.create(settings, search=request.search, minutes=_share_time(settings, request.search, workers.number or 1))
    with run:
        minutes = run.read_record()["minutes"]
        study = _open_study(optuna, run, settings.seed)
        with open_workers(workers, run.workers) as submit, Crew(submit) as crew:
            _Search(optuna, study, run, replace(settings, minutes=minutes), program.script, crew, request.worker_flags).carry_out(
                request.search, workers.number or 1
            )
            best = RunFolder(_name_trial(run, _find_best(study, run).number))
            _score(best, crew, program.script, settings, run, request.worker_flags)
        _write_table(study, run)
        log.info("best: %s; next: python predict.py IMAGE --model %s", best.path, run.path)
        write_json(run.summary, {"best_trial": best.path.name, "validation_dice": study.best_value, "settings": study.best_trial.params})
    return run


def list_space(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """Lists what is searched: the settings of `SPACE` that are open; raises ValueError where there is none."""
    given = settings.network_options

    def is_open(name: str) -> bool:
        if name not in NETWORK_OPTIONS:
            return settings.is_open(name)
        return given.get(name) is None and (not settings.network or settings.network in NETWORK_OPTIONS[name])

    names = [name for name in SPACE if is_open(name)]
    if not names:
        raise ValueError(
            f"Expected an open setting to search, of {tuple(SPACE)}. Received: all are set, as --demo and presets do. Leave one out."
        )
    return {name: SPACE[name] for name in names}


def read_progress(run: RunFolder) -> tuple[list[float], int]:
    """Reads how far a training has come.

    Returns:
        The validation Dice of each epoch, as far as the kept model has it: the best so far, or that of the last epoch. And the number of
        epochs of the plan. Both are empty before the first epoch. No foreground at all counts as 0.
    """
    if not (run.history.is_file() and run.plan.is_file()):
        return [], 0
    with run.history.open(newline="", encoding="utf-8") as file:
        values = [float(row["val_mean_dice"]) for row in csv.DictReader(file)]
    values = [0.0 if math.isnan(value) else value for value in values]
    plan = run.read_plan()
    if plan.resolve(run.read_settings()).keep != "last":
        values = [max(values[: place + 1]) for place in range(len(values))]
    return values, plan.epochs


def list_tenths(values: Sequence[float], epochs: int) -> list[float]:
    """Lists the Dice at the end of each tenth of a training that is over, so that trainings of any length compare."""
    ends = [math.ceil(tenth * epochs / 10) for tenth in range(1, 11)]
    return [values[end - 1] for end in ends if 0 < end <= len(values)]


def _share_time(settings: Settings, trials: int, workers: int) -> float | None:
    """Shares the time of the whole among the trials; None where epochs are given."""
    return None if settings.epochs else (settings.minutes or MINUTES) * min(workers, trials) / trials


def _open_study(optuna, run: RunFolder, seed: int):
    """Opens the study in the run's folder. The sampler draws anew after each resume, not the same again."""
    backend = optuna.storages.journal.JournalFileBackend(str(run.path / SEARCH_FILE))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WARMUP_TRIALS, n_warmup_steps=WARMUP_TENTHS),
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=5, constant_liar=True)
    return study


@dataclass
class _Search:
    """A search under way."""

    optuna: Any
    study: Any
    run: RunFolder
    settings: Settings
    script: Path
    crew: Crew
    flags: Sequence[str]

    def carry_out(self, number: int, workers: int) -> None:
        """Trains trials until there are so many, no more of them at the same time than there are workers."""
        running = {}
        for frozen in self.study.trials:
            if not frozen.state.is_finished():
                # The search was killed while this one was trained.
                trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
                self._start(running, trial, len(frozen.intermediate_values))
        while running or len(self.study.trials) < number:
            while len(running) < workers and len(self.study.trials) < number:
                self._start(running, self._ask())
            for name, ended in self.crew.poll().items():
                self._finish(running.pop(name), ended)
            for name, one in running.items():
                if self._observe(one) and not one.stopped and one.trial.should_prune():
                    one.stopped = True
                    self.crew.cancel(name)
            time.sleep(POLL_SECONDS)

    def _ask(self):
        trial = self.study.ask()
        # The first trial shows what the plan does by itself.
        for name, values in list_space(self.settings).items() if trial.number else ():
            if name in _RANGES:
                trial.suggest_float(name, *values, log=True)
            else:
                trial.suggest_categorical(name, values)
        return trial

    def _start(self, running: dict[str, _Trial], trial, told: int = 0) -> None:
        one = _Trial(trial, RunFolder(_name_trial(self.run, trial.number)), told)
        own = self.settings.fill(trial.params)
        flags = ["--train-only", *self.flags]
        chosen = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items())
        log.info("%s: %s", one.run.path.name, chosen or "as planned")
        self.crew.add(one.run.path.name, lambda: make_training_command(self.script, one.run, own, self.run.workers, *flags))
        running[one.run.path.name] = one

    def _observe(self, one: _Trial) -> bool:
        """Tells Optuna of the tenths that are over since the last call; returns whether there are any."""
        tenths = list_tenths(*read_progress(one.run))
        for place in range(one.told, len(tenths)):
            one.trial.report(tenths[place], place + 1)
        new, one.told = len(tenths) > one.told, max(one.told, len(tenths))
        return new

    def _finish(self, one: _Trial, ended: Ended) -> None:
        states = self.optuna.trial.TrialState
        values, _ = read_progress(one.run)
        if ended.status == 0 and values:
            self.study.tell(one.trial, values[-1])
            log.info("%s: validation Dice %.4f after %d epochs", one.run.path.name, values[-1], len(values))
        elif one.stopped:
            self.study.tell(one.trial, state=states.PRUNED)
            log.info("%s: stopped at %.4f after %d epochs, below the median of the others", one.run.path.name, values[-1], len(values))
        else:
            self.study.tell(one.trial, state=states.FAIL)
            log.warning("%s failed: %s", one.run.path.name, ended.error)


def _name_trial(run: RunFolder, number: int) -> Path:
    return run.path / f"trial_{number:03}"


def _find_best(study, run: RunFolder):
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise ValueError(f"Expected a trial that can be trained. Received: none of {len(study.trials)}. Their errors are in {run.log}.")
    return study.best_trial


def _score(best: RunFolder, crew: Crew, script: Path, settings: Settings, run: RunFolder, flags: Sequence[str]) -> None:
    """Scores the best trial on the test cases, by a worker."""
    if best.finished:
        return
    crew.add(best.path.name, lambda: make_training_command(script, best, settings, run.workers, *flags))
    for _, ended in crew.wait():
        if not best.finished:
            raise ValueError(f"Expected test scores of {best.path}. Received: {ended.error}. Mend that, and go on by --resume {run.path}.")


def _write_table(study, run: RunFolder) -> None:
    """Writes a row a trial: its state, its validation Dice, and what it was trained with."""
    names = [name for name in SPACE if any(name in trial.params for trial in study.trials)]
    with replace_file(run.path / "search.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *names])
        for trial in study.trials:
            values, _ = read_progress(RunFolder(_name_trial(run, trial.number)))
            seconds = round(trial.duration.total_seconds(), 1) if trial.duration else ""
            dice = values[-1] if values else ""
            writer.writerow(
                [trial.number, trial.state.name.lower(), dice, len(values), seconds, *(trial.params.get(name, "") for name in names)]
            )
