"""Cross-validates: trains every fold of every mode, pools the scores, and lets `combine` choose what becomes the run's model.

Each subject is tested by a model that never saw it. The functions that train lie at the root, so they are handed over.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modules import score_lines, score_tables
from modules.data.case import Case
from modules.data.spec import DatasetSpec, choose_target
from modules.run.budget import MINUTES, Share, start_clock
from modules.run.combine import combine
from modules.run.division import divide
from modules.run.flags import TrainingRequest
from modules.run.folder import RunFolder, write_json
from modules.run.merge import check_parts
from modules.run.plan import draft_plan
from modules.run.plan_table import describe_prepared
from modules.run.prepared import PreparedRun
from modules.run.report import write_report
from modules.run.settings import Settings
from modules.run.training_parts import train_fold_parts

# The part of the time that is kept for the scores of pairs, where there are several modes.
CHOICE_SHARE = 0.1

log = logging.getLogger("mri")


@dataclass(frozen=True)
class Program:
    """The functions of train.py.

    Attributes:
        load: Finds the data set and all its cases: `load(settings)`.
        prepare: Prepares a training: `prepare(settings, max_devices, share=share)`.
        train: Trains a new run: `train(settings, run, max_devices, share)`.
        resume: Goes on with a run: `resume(run, settings, max_devices)`.
        script: Its file, which workers run.
    """

    load: Callable[[Settings], tuple[DatasetSpec, list[Case]]]
    prepare: Callable[..., PreparedRun]
    train: Callable[..., RunFolder]
    resume: Callable[..., RunFolder]
    script: Path


def cross_validate(settings: Settings, request: TrainingRequest, program: Program) -> RunFolder:
    """Trains and scores every fold below one folder, pools the scores and, of several modes, chooses the best.

    Finished folds are taken as they are: those of an interrupted command, and those that `--merge` collects.

    Args:
        settings: The settings of the whole.
        request: The run to resume, the folds to merge, and the devices.
        program: The functions that load and train.

    Returns:
        The folder of the whole.

    Raises:
        ValueError, OSError: If a setting does not fit a mode, folds do not fit together, or a training fails.
    """
    modes = _list_modes(settings)
    run = RunFolder(request.resume) if request.resume else RunFolder.name(settings)
    if request.resume:
        run.claim()
    else:
        # A wrong setting shows before the folder is made.
        spec, cases = program.load(settings)
        divide(cases, replace(settings, fold=0, modes=()))
        _check_modes(modes, choose_target(spec, settings.target))
        run.check_new()
        if request.parts:
            check_parts(request.parts, _list_tests(cases, settings), settings.data_folder())
        run.create(settings, parts=request.parts)
    with run:
        if request.workers:
            runs = {name: run.list_folds(settings.folds, name) for name in modes}
            train_fold_parts(run, runs, modes, program.script, request.workers, request.worker_flags, _find_training_share(settings))
        else:
            train_folds(run, settings, program, request.devices)
        cases = program.load(settings)[1]
        subjects = score_tables.map_subjects(cases)
        for name, own in modes.items():
            pool_folds(RunFolder(run.path / name), own, subjects)
        if settings.modes:
            combine(run, settings, _list_tests(cases, settings), subjects)
        write_report(run)
        log.info("next: python predict.py IMAGE --model %s", run.path)
    return run


def plan_folds(settings: Settings, request: TrainingRequest, program: Program) -> None:
    """Logs the plan of the first fold of each mode; the other folds follow it."""
    modes = _list_modes(settings)
    for name, own in modes.items():
        log.info("fold 0 of %d%s", settings.folds, f", mode {name}" if name else "")
        start_clock()
        minutes = (settings.minutes or MINUTES) * _find_training_share(settings) / (len(modes) * settings.folds)
        prepared = program.prepare(replace(own, fold=0), request.devices, share=None if settings.epochs else Share(minutes))
        for line in describe_prepared(prepared):
            log.info("%s", line)


def _list_modes(settings: Settings) -> dict[str, Settings]:
    """Lists the settings of each mode by its folder; without `--modes` there is one, in the folder of the whole."""
    return {mode: replace(settings, mode=mode, modes=()) for mode in settings.modes} or {"": settings}


def _check_modes(modes: Mapping[str, Settings], spec: DatasetSpec) -> None:
    """Raises ValueError for a setting that does not fit every mode."""
    for name, own in modes.items():
        try:
            draft_plan(own, spec)
        except ValueError as error:
            raise ValueError(f"{error} Every mode of --modes gets the same flags, '{name}' too." if name else str(error)) from error


def _list_tests(cases: Sequence[Case], settings: Settings) -> list[list[Case]]:
    """Lists the test cases of each fold."""
    return [divide(cases, replace(settings, fold=fold, modes=()))[0]["test"] for fold in range(settings.folds)]


def train_folds(run: RunFolder, settings: Settings, program: Program, max_devices: int | None) -> None:
    """Trains the folds that are not finished, mode by mode."""
    modes = _list_modes(settings)
    runs = {name: run.list_folds(settings.folds, name) for name in modes}
    # TensorFlow takes several trainings in one process for a mistake, and warns of it.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    spent = 0.0
    for name, own in modes.items():
        for fold, fold_run in enumerate(runs[name]):
            spent += start_clock()
            fold_settings = replace(own, fold=fold)
            if fold_run.record.is_file() and not fold_run.finished:
                program.resume(fold_run, fold_settings, max_devices)
            elif not fold_run.finished:
                share = None if settings.epochs else find_share(settings, runs, name, spent)
                program.train(fold_settings, fold_run, max_devices, share)


def find_share(settings: Settings, runs: Mapping[str, Sequence[RunFolder]], name: str, spent: float) -> Share:
    """Finds the time of the next training: an equal part of what is left for all trainings that have no plan yet.

    Args:
        settings: The settings of the whole.
        runs: The runs of the folds by mode.
        name: The mode of the next training.
        spent: Seconds that this process has spent. Trainings that an earlier process began count with the time that they planned.
    """
    everyone = [fold for folds in runs.values() for fold in folds]
    planned = [float(fold.read_plan().costs.get("seconds", 0)) for fold in everyone if fold.plan.is_file()]
    left = 60 * (settings.minutes or MINUTES) * _find_training_share(settings) - max(spent, sum(planned))
    like = runs[name][0].read_plan() if runs[name][0].plan.is_file() else None
    return Share(max(left, 0) / 60 / (len(everyone) - len(planned)), like)


def _find_training_share(settings: Settings) -> float:
    return 1 - CHOICE_SHARE if len(settings.modes) > 1 else 1.0


def pool_folds(run: RunFolder, settings: Settings, subjects: Mapping[str, str]) -> None:
    """Writes the pooled scores of all folds, their intervals over subjects, and a picture.

    Args:
        run: The folder of the folds, which are all finished.
        settings: The settings of the cross-validation.
        subjects: `{case or volume identifier: subject}`.

    Raises:
        FileNotFoundError, ValueError: If a fold has no scores, or two folds tested the same case.
    """
    from modules import reports

    tested = {f"fold {number}": score_tables.read_scores(fold.scores) for number, fold in enumerate(run.list_folds(settings.folds))}
    scores = score_tables.pool_scores(tested)
    score_tables.write_scores(run.scores, scores)
    title = f"{settings.dataset}{f' by {settings.mode}' if settings.mode else ''}: each subject tested once in {settings.folds} folds"
    picture = reports.draw_folds(run.figures / "folds.png", tested, subjects, title=title)
    intervals = score_tables.estimate_intervals(scores, subjects)
    for line in score_lines.format_scores(score_tables.summarise(scores), intervals):
        log.info("%s", line)
    log.info("picture: %s", picture)
    write_json(run.summary, {"test": intervals})
