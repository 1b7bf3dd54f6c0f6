"""Predicts many scans by workers: each predicts one shard by a call of predict.py, and one whose worker was lost is begun again."""

import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from modules import score_lines, score_tables
from modules.backend_choice import name_for_workers
from modules.run.report import write_predictions_report
from modules.run.shared_scores import SCORES
from modules.run.workers import Crew, Ended, WorkerOptions, make_command, open_workers, strip_worker_flags

# The exit statuses of calls that did what they could, and of one in which some scans failed.
_ACCEPTED, _SOME_FAILED = (0, 3), 3
# The lines of a worker that its user must see: what failed, and how many scans were done.
_TOLD = re.compile(r"failed: |\d+ done, \d+ failed, \d+ skipped")

log = logging.getLogger("mri")


def predict_parts(script: Path, argv: Sequence[str] | None, options: Namespace, models: Sequence[Path], workers: WorkerOptions) -> int:
    """Predicts the scans of a command line in as many shards as there are workers, and returns the exit status of the whole.

    Each shard loads the models once. A shard that is done again skips what the first call had finished, unless `--overwrite` is given.

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
    output = Path(options.output or "predictions")
    arguments = strip_worker_flags(argv)
    if not options.model:
        arguments += ["--model", *map(str, models)]
    if not options.backend:
        arguments += name_for_workers(None)
    failed, errors = False, []
    with open_workers(workers, output / "workers") as submit, Crew(submit, accepted=_ACCEPTED) as crew:
        for index in range(workers.number):
            command = make_command(script, *arguments, "--shard", f"{index}/{workers.number}")
            crew.add(f"shard {index}/{workers.number}", lambda command=command: command)
        for name, ended in crew.wait():
            _tell(name, ended)
            failed = failed or ended.status == _SOME_FAILED
            errors += [] if ended.status in _ACCEPTED else [f"{name}: {ended.error}"]
    if len(errors) == workers.number:
        raise ValueError(errors[0].partition("error: ")[2] or errors[0])
    # A shard that ended while another wrote may have written a page without it.
    write_predictions_report(output)
    if options.labels and (output / SCORES).is_file():
        scores = score_tables.read_scores(output / SCORES)
        intervals = score_tables.estimate_intervals(scores, {score.case: score.subject or score.case for score in scores})
        for line in score_lines.format_scores(score_tables.summarise(scores), intervals):
            log.info("%s", line)
    log.info("label maps: %s", output)
    return _SOME_FAILED if failed or errors else 0


def _tell(name: str, ended: Ended) -> None:
    lines = [line.strip() for line in ended.text.splitlines() if _TOLD.match(line)] or [ended.error]
    for line in lines:
        log.log(logging.ERROR if ended.status not in _ACCEPTED else logging.INFO, "%s: %s", name, line)
