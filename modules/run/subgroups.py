"""Scores by subgroup of the tested people: age, sex, scanner, or whatever else a table of people says.

The groups and their scores are kept in `subgroups.json` of the run, and `report.html` shows them in the model card.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import score_tables
from modules.data.case_table import read_table
from modules.run.folder import RunFolder, without_nan, write_json

log = logging.getLogger("mri")

# Names of the column that says who somebody is; the second is that of BIDS.
IDENTIFIERS = ("subject", "participant_id", "participant", "subject_id", "patient", "patient_id")
UNKNOWN = "unknown"
_NOT_KNOWN = ("", "n/a", "na", "nan", "none", "unknown")
# Numbers of more values than this are put into three groups of about as many people. Texts of more are names or remarks.
MOST_GROUPS = 6
_MOST_NAMED = 3


def write_subgroups(run: RunFolder, table: Path) -> None:
    """Scores the tested people of a finished run by each column of a table of people.

    Args:
        run: The run.
        table: A `.csv` or `.tsv` with a row a person, such as `participants.tsv` of BIDS.

    Raises:
        FileNotFoundError: If the table or the run's scores are not there.
        ValueError: If the table does not say who is who, or knows none of the tested people.
    """
    scores = score_tables.read_scores(run.scores)
    subjects = {score.case: score.subject for score in scores}
    if not all(subjects.values()):
        raise ValueError(f"Expected the subject of every case beside {run.scores}. Received: none, as version 0.1 wrote. Train anew.")
    people = read_people(table, sorted(set(subjects.values())))
    content: dict[str, Any] = {}
    for column, values in people.items():
        groups = group_people(values)
        if groups is None:
            log.info("%s has too many texts for groups, so it is left out", column)
            continue
        content[column] = {}
        for group in sorted(set(groups.values()), key=lambda name: (name == UNKNOWN, _find_place(name), name)):
            of_group = [score for score in scores if groups[score.subject] == group]
            intervals = score_tables.estimate_intervals(of_group, subjects, keys=("dice",))
            content[column][group] = {"subjects": sum(one == group for one in groups.values()), **without_nan(intervals)}
    write_json(run.subgroups, content)
    log.info("subgroups: %s in %s", ", ".join(content) or "none", run.subgroups)


def read_people(path: Path, subjects: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads what a table says of people: `{column: {subject: text}}`, with `UNKNOWN` where it says nothing. It tells who has no row.

    Args:
        path: The table.
        subjects: The people who are wanted. `sub-` of BIDS may be there or not.

    Raises:
        FileNotFoundError, ValueError: If there is no such table, no column of subjects or no wanted person, or a person or column twice.
    """
    header, rows = read_table(path)
    key = next((place for name in IDENTIFIERS for place, one in enumerate(header) if one.lower() == name), None)
    if key is None:
        raise ValueError(f"Expected a column {' or '.join(IDENTIFIERS[:2])} in {path}. Received: {', '.join(header)}. Name it so.")
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"Expected each column once in {path}. Received: {twice} twice. Rename one.")
    known: dict[str, list[str]] = {}
    for row in rows:
        name = row[key].removeprefix("sub-") if key < len(row) else ""
        if name and known.setdefault(name, row) is not row:
            raise ValueError(f"Expected each subject once in {path}. Received: {name} twice. Remove a row.")
    found = {subject: known.get(subject.removeprefix("sub-")) for subject in subjects}
    if not any(found.values()):
        raise ValueError(
            f"Expected tested subjects, such as {subjects[0]}, in {path}. Received: none of {len(subjects)}. Correct the table; "
            "spreadsheets drop leading zeros."
        )
    if lacking := [subject for subject, row in found.items() if row is None]:
        named = ", ".join(lacking[:_MOST_NAMED]) + (", ..." if len(lacking) > _MOST_NAMED else "")
        log.warning(
            "%s has no row of %d of %d tested subjects (%s), who are in the group %s", path, len(lacking), len(found), named, UNKNOWN
        )
    columns = [(place, name) for place, name in enumerate(header) if place != key and name]
    if not columns:
        raise ValueError(
            f"Expected a column beside {header[key]} in {path}, such as age or sex. Received: none. Add what shall make groups."
        )
    return {name: {subject: _read_cell(row, place) if row else UNKNOWN for subject, row in found.items()} for place, name in columns}


def group_people(values: Mapping[str, str]) -> dict[str, str] | None:
    """Puts people into groups by one column: `{subject: group}`.

    Numbers of many values are put into three groups of about as many people, such as ages "20 to 34". People of one number stay together.

    Args:
        values: `{subject: text}`.

    Returns:
        The group of each person; None for a column of too many texts.
    """
    known = {subject: text for subject, text in values.items() if text != UNKNOWN}
    if len(set(known.values())) <= MOST_GROUPS:
        return dict(values)
    numbers = {subject: _read_number(text) for subject, text in known.items()}
    if any(math.isnan(number) for number in numbers.values()):
        return None
    ordered = sorted(numbers.values())
    ends = [ordered[math.ceil(len(ordered) * part / 3) - 1] for part in (1, 2, 3)]
    groups = {subject: next(place for place, end in enumerate(ends) if number <= end) for subject, number in numbers.items()}
    names = {}
    for place in set(groups.values()):
        members = [numbers[subject] for subject, own in groups.items() if own == place]
        names[place] = f"{min(members):g} to {max(members):g}"
    return {subject: names[groups[subject]] if subject in groups else UNKNOWN for subject in values}


def _read_cell(row: Sequence[str], place: int) -> str:
    text = row[place] if place < len(row) else ""
    return UNKNOWN if text.lower() in _NOT_KNOWN else text


def _read_number(text: str) -> float:
    try:
        # Where semicolons part the cells, a comma may stand for the point.
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def _find_place(name: str) -> float:
    """Returns the number that a group's name begins with, by which groups of numbers are ordered; 0 for texts."""
    number = _read_number(name.partition(" to ")[0])
    return 0.0 if math.isnan(number) else number
