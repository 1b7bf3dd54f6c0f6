"""Predicts many scans by workers: each predicts one shard by a call of predict.py, and one whose worker was lost is begun again."""

import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from modules.backend_choice import name_for_workers
from modules.run.workers import Crew, WorkerOptions, make_command, open_workers, strip_worker_flags

# The exit statuses of calls that did what they could: all, or all but some scans that failed.
_ACCEPTED = (0, 3)
# The line of a worker that counts its scans.
_COUNTED = re.compile(r"\d+ done, \d+ failed, \d+ skipped")

log = logging.getLogger("mri")


def predict_parts(script: Path, argv: Sequence[str] | None, options: Namespace, models: Sequence[Path], workers: WorkerOptions) -> bool:
    """Predicts the scans of a command line in as many shards as there are workers; returns whether every shard ended.

    Each shard loads the models once. A shard that is done again skips what the first call had finished, unless `--overwrite` is given.
    No shard writes the results of all: of 100,000 scans that takes so long that the shards would wait for each other.

    Args:
        script: The file of predict.py.
        argv: Its command line; None for the process's own.
        options: What the command line says.
        models: The runs or bundles that it stands for, so that all workers take the same.
        workers: Who works.

    Raises:
        ValueError: If no shard could do anything.
    """
    if not workers.number:
        raise ValueError(f"Expected --workers beside --{workers.kind}. Received: none. Say how many shards to divide the scans into.")
    arguments = [*strip_worker_flags(argv), "--no-results"]
    if not options.model:
        arguments += ["--model", *map(str, models)]
    if not options.backend:
        arguments += name_for_workers(None)
    errors = []
    with open_workers(workers, Path(options.output or "predictions") / "workers") as submit, Crew(submit, accepted=_ACCEPTED) as crew:
        for index in range(workers.number):
            command = make_command(script, *arguments, "--shard", f"{index}/{workers.number}")
            crew.add(f"shard {index}/{workers.number}", lambda command=command: command)
        for name, ended in crew.wait():
            if ended.status in _ACCEPTED:
                counted = _COUNTED.search(ended.text)
                log.info("%s: %s", name, counted[0] if counted else "ended")
            else:
                errors.append(ended.error)
                log.error("failed: %s: %s", name, ended.error)
    if len(errors) == workers.number:
        raise ValueError(errors[0].partition("error: ")[2] or errors[0])
    if errors:
        log.error("%d of %d shards failed; the same command does the rest, and writes results.json", len(errors), workers.number)
    return not errors
