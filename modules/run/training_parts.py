"""Trains the folds of a cross-validation by workers: each fold is a call of train.py, and one whose worker was lost is resumed."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modules.backend_choice import has_nvidia
from modules.run.budget import MINUTES
from modules.run.folder import RunFolder, write_json
from modules.run.settings import Settings
from modules.run.workers import Crew, WorkerOptions, make_command, open_workers

log = logging.getLogger("mri")


def make_training_command(script: Path, run: RunFolder, settings: Settings, folder: Path, *flags: str) -> list[str]:
    """Makes the command of a worker that trains a run, or goes on with one that has begun.

    Args:
        script: The file of train.py.
        run: The folder of the run; it need not exist.
        settings: Its settings. They are handed over in a file, whose name is that of the run.
        folder: The folder of that file.
        flags: Further flags.
    """
    if run.record.is_file():
        return make_command(script, "--resume", str(run.path), *flags)
    config = folder / run.path.relative_to(folder.parent).with_suffix(".json")
    write_json(config, {"config": settings.to_json()})
    return make_command(script, "--config", str(config), "--name", run.path.name, "--runs", str(run.path.parent), *flags)


def train_fold_parts(
    run: RunFolder,
    folds: Mapping[str, Sequence[RunFolder]],
    settings: Mapping[str, Settings],
    script: Path,
    workers: WorkerOptions,
    flags: Sequence[str] = (),
    share: float = 1.0,
) -> None:
    """Trains the folds that are not finished, as many at the same time as there are workers.

    With `--epochs` each fold is that of a single command, to the bit. With `--minutes` each measures its own machine and plans by it.

    Args:
        run: The cross-validation.
        folds: The runs of the folds by mode.
        settings: The settings of each mode.
        script: The file of train.py.
        workers: Who works.
        flags: Flags of each training.
        share: The share of the time that the trainings get.

    Raises:
        ValueError: If a fold cannot be trained. The others are, and `--resume` goes on.
    """
    todo = [(name, number, fold) for name, members in folds.items() for number, fold in enumerate(members) if not fold.finished]
    if not todo:
        return
    # Those that are finished had their part of the time.
    everyone = sum(map(len, folds.values()))
    rounds = math.ceil(everyone / (workers.number or everyone))
    most = 0 if workers.kind == "slurm" else workers.number
    failed = {}
    with open_workers(workers, run.workers) as submit, Crew(submit, most) as crew:
        for name, number, fold in todo:
            minutes = settings[name].minutes
            if workers.kind == "local" and not settings[name].epochs and not has_nvidia():
                # Each worker would take the hour that a CPU has for all.
                minutes = minutes or MINUTES
            own = replace(settings[name], fold=number, minutes=minutes and minutes * share / rounds)
            crew.add(str(fold.path), lambda fold=fold, own=own: make_training_command(script, fold, own, run.workers, *flags))
        log.info("%d folds by workers; each writes its own log, such as %s", len(todo), todo[0][2].log)
        for name, ended in crew.wait():
            log.info("%s %s", name, "is trained" if RunFolder(Path(name)).finished else f"failed: {ended.error}")
            failed |= {} if RunFolder(Path(name)).finished else {name: ended.error}
    for name, error in failed.items():
        error = error.partition("error: ")[2] or error
        raise ValueError(f"Expected every fold to be trained. Received: {error} in {name}. Mend that, and go on by --resume {run.path}.")
