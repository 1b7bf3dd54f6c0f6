"""The scores of a folder of predictions, to which several calls, and shards that run at the same time, add theirs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modules import score_tables
from modules.data.case import Case
from modules.data.files import hold
from modules.predict.batch import Batch, find_incomplete
from modules.scoring import Score

SCORES = "scores.csv"


def list_scored(output: Path, *, overwrite: bool = False) -> set[str]:
    """Lists the cases and scans that have scores in a folder of predictions.

    Args:
        output: The folder.
        overwrite: Whether a `scores.csv` that is not ours will be replaced. It counts as none then.

    Raises:
        ValueError: If `scores.csv` is not ours otherwise.
    """
    return {score.case for score in _read(output / SCORES, overwrite)}


def add_scores(batch: Batch, scores: Sequence[Score], cases: Sequence[Case], *, overwrite: bool = False) -> list[Score]:
    """Writes the scores of a call into the table of its folder, and returns all that the table then holds.

    Of scores that are there already, those stay whose label maps are whole, made by the same models in the same way, and not of this call.
    An interrupted call keeps the scores of the label maps that it leaves.

    Args:
        batch: What became of the cases of this call.
        scores: The scores of those that were predicted.
        cases: The cases of this call and, for a shard, those of all others too.
        overwrite: As for `list_scored`.
    """
    # Shards that end at the same time would otherwise lose each other's scores.
    with hold(batch.record_path):
        earlier = _read(batch.output / SCORES, overwrite)
        whole = batch.find_whole(cases, {score.case for score in earlier})
        kept = {name for case in whole for name in (case.case_id, case.volume_id)}
        scores = [score for score in earlier if score.case in kept] + list(scores)
        # A later call may say by `--subjects` who was scanned.
        subjects = score_tables.map_subjects(cases)
        scores = [replace(score, subject=subjects.get(score.case, score.subject)) for score in scores]
        incomplete = find_incomplete([*batch.failed, *(case for case in cases if case.label_path is None)])
        scores = score_tables.sort_by_case([score for score in scores if score.case not in incomplete], cases)
        if scores:
            score_tables.write_scores(batch.output / SCORES, scores)
    return scores


def _read(table: Path, overwrite: bool) -> list[Score]:
    try:
        return score_tables.read_scores(table) if table.is_file() else []
    except ValueError:
        if not overwrite:
            raise
        return []
