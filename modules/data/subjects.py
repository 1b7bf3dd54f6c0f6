"""Subjects: who was scanned in each case, by the user's own rule, and signs that one person is in two splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modules.data.case import Case
from modules.data.files import stem_of
from modules.data.tables import read_table

COLUMNS = ["case", "subject"]
# Words for a visit within a name, with their number or letter: `_visit2`, `_ses-b`, `_week_1`, `-baseline`, `_m12`, `_MR1`, `_frame01`.
_TIMES = "visit|session|ses|week|wk|month|mon|day|year|yr|timepoint|time|tp|followup|follow-up|fup|fu"
_WORDS = f"{_TIMES}|scan|exam|study|mr|frame|phase|run|rep|fraction|fx"
_NUMBER = r"[_-]?(?:\d+|[a-z]\b|[a-z](?=_)|pre|post)"
_VISIT = re.compile(
    rf"(?i)[_.-](?:(?:{_WORDS})(?:{_NUMBER})?|baseline|bl|pre|post|retest|rescan|repeat|[vtwmdy]\d+)(?=[_.-]|$)"
    # Right behind a number, as in `s01v2` and `Patient3VisitB`.
    rf"|(?<=\d)(?:(?:{_WORDS}){_NUMBER}|[vt]\d+)(?=[_.-]|$)"
    # In front, as in `visit2_p01`.
    rf"|^(?:(?:{_TIMES}){_NUMBER}|baseline|[vt]\d+)[_.-]"
)
# A date or year, one digit, or one letter at the end: `p01_2019`, `p01_2`, `p01b`. Longer numbers count people more often than visits.
_ENDING = re.compile(r"(?i)[_.-](?:(?:19|20)\d\d(?:[_.-]?\d\d[_.-]?\d\d)?|\d|[a-z])$|(?<=\d)[a-vx-z]$")
_MOST_LINES = 10


def check_subjects(subjects: str) -> None:
    """Checks the setting `subjects` before any file is looked for. Whether a table is there shows when it is read: a run may have moved.

    Raises:
        ValueError: If it is no regular expression, or has no group.
    """
    if not subjects or is_table(subjects):
        return
    try:
        groups = re.compile(subjects).groups
    except re.error as error:
        raise ValueError(
            f"Expected a regular expression or a .csv file for `subjects`. Received: {subjects!r} ({error}). Correct it."
        ) from error
    if not groups:
        raise ValueError(
            f"Expected a group in the regular expression of `subjects`. Received: {subjects!r}. Put brackets round the subject."
        )


def is_table(subjects: str) -> bool:
    """Returns whether the setting `subjects` names a table and is no regular expression."""
    return subjects.lower().endswith((".csv", ".tsv"))


def assign_subjects(cases: Sequence[Case], subjects: str) -> list[Case]:
    """Gives each case the subject that the user's rule says; without a rule the cases keep their own.

    Args:
        cases: The cases.
        subjects: A regular expression, whose first group is the subject in the case's name or else in its file's name. Or a table
            (.csv, .tsv) with the columns case and subject. A row may name a case, the scan that slices were cut from, or the image's file.

    Raises:
        FileNotFoundError, ValueError: If the rule is wrong, or says nothing of a case; the case is named.
    """
    check_subjects(subjects)
    if not subjects:
        return list(cases)
    table = _read_table(Path(subjects)) if is_table(subjects) else None
    found = [_look_up(case, table) if table is not None else _match(case, subjects) for case in cases]
    lacking = [case for case, subject in zip(cases, found, strict=True) if not subject]
    if lacking:
        raise ValueError(
            f"Expected the subject of every case from `subjects`, {subjects}. Received: none for {lacking[0].case_id} "
            f"({lacking[0].image_paths[0]}), and {len(lacking)} of {len(cases)} cases in all. Correct it."
        )
    return [replace(case, subject_id=subject) for case, subject in zip(cases, found, strict=True) if subject]


def _names(case: Case) -> list[str]:
    """Lists the names by which a rule may know a case."""
    files = [name for path in case.image_paths for name in (path.name, stem_of(path), str(path))]
    return [case.case_id, *([case.volume_id] if case.volume_id else []), *files]


def _match(case: Case, pattern: str) -> str | None:
    for name in (case.case_id, case.image_paths[0].name):
        if (match := re.search(pattern, name)) and match[1]:
            return match[1]
    return None


def _look_up(case: Case, table: Mapping[str, str]) -> str | None:
    return next((table[name] for name in _names(case) if name in table), None)


def _read_table(path: Path) -> dict[str, str]:
    """Reads `{case: subject}` from a table with these two columns; other columns are passed over."""
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a table in {path} for `subjects`. Received: no such file. Check the path; with --resume too, `--subjects` names it."
        )
    header, rows = read_table(path)
    names = [name.lower() for name in header]
    if not set(COLUMNS) <= set(names):
        raise ValueError(
            f"Expected the columns case,subject in {path}. Received: {','.join(header) or 'none'}. Name them in its first line."
        )
    table: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        cells = dict(zip(names, row, strict=False))
        case, subject = (cells.get(name, "") for name in COLUMNS)
        if not case or not subject:
            raise ValueError(
                f"Expected a case and its subject in each row of {path}. Received: {case!r},{subject!r} in row {number}. Fill it in."
            )
        if table.setdefault(case, subject) != subject:
            raise ValueError(f"Expected one subject of {case} in {path}. Received: {table[case]} and {subject}. Remove a row.")
    return table


def guess_person(subject: str) -> str:
    """Guesses a person's name from a subject's: it takes visits, dates and endings such as `_2` away where an identifier is left."""
    for pattern in (_VISIT, _ENDING):
        shorter = pattern.sub("", subject)
        # A name without a digit, such as `case` of `case_3`, says nothing of a person, unless BIDS says so.
        if shorter and (re.search(r"\d", shorter) or shorter.startswith("sub-")):
            subject = shorter
    return subject


def _guess_persons(subjects: Iterable[str]) -> dict[str, str]:
    """Guesses the person of each subject, by its name and by what all names have in common; upper and lower case are alike.

    Where fewer different endings follow the names than there are names without them, the endings count visits: `p01-000`, `p01-001`,
    `p02-000`. Where more do, they count people: `site1-001` to `site1-050`, `site2-051`.
    """
    names = {subject: guess_person(subject) for subject in subjects}
    parts = {name: match for name in names.values() if (match := re.fullmatch(r"(.*\d.*)[_.-]([^_.-]+)", name))}
    if len({match[2] for match in parts.values()}) < len({match[1] for match in parts.values()}):
        names = {subject: parts[name][1] if name in parts else name for subject, name in names.items()}
    known: dict[str, str] = {}
    return {subject: known.setdefault(names[subject].casefold(), names[subject]) for subject in sorted(names)}


def find_related(splits: Mapping[str, Sequence[Case]]) -> list[str]:
    """Writes a warning for each person who, by the names of subjects, seems to be in two splits. It names a file of each split."""
    persons = _guess_persons({case.subject_id for cases in splits.values() for case in cases})
    people: dict[str, dict[str, Case]] = {}
    for split, cases in splits.items():
        for case in cases:
            people.setdefault(persons[case.subject_id], {}).setdefault(split, case)
    if len(people) == 1:
        # One name for all is a name of the data set.
        return []
    parted = {person: places for person, places in people.items() if len(places) > 1}
    lines = []
    for person, places in parted.items():
        cases = " and ".join(f"{case.case_id} ({split}, {case.image_paths[0]})" for split, case in places.items())
        lines.append(f"warning: {cases} seem to be of one subject, {person}, by their names. Give --subjects to keep them in one split.")
    return _limit(lines, list(parted))


def find_copies(splits: Mapping[str, Sequence[Case]], hashes: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Writes a warning for each image that equals one of another split to the byte, and one for all copies within splits.

    Args:
        splits: The cases by split.
        hashes: SHA-256 of each file of each case, images before the label, by split.
    """
    known: dict[str, dict[str, Path]] = {}
    repeated = []
    for split, cases in splits.items():
        for case, digests in zip(cases, hashes[split], strict=True):
            for path, digest in zip(case.image_paths, digests, strict=False):
                first = known.setdefault(digest, {}).setdefault(split, path)
                if first != path:
                    repeated.append(f"{first} and {path} ({split})")
    copies = [places for places in known.values() if len(places) > 1]
    lines = []
    for places in copies:
        files = " and ".join(f"{path} ({split})" for split, path in places.items())
        lines.append(f"warning: {files} are equal to the byte, so that scores are not of unseen scans. Remove one.")
    lines = _limit(lines, [str(path) for places in copies for path in list(places.values())[-1:]])
    if repeated:
        lines.append(f"warning: {len(repeated)} image(s) count twice: {repeated[0]} are equal to the byte. Remove one.")
    return lines


def _limit(lines: list[str], names: Iterable[str]) -> list[str]:
    """Keeps the first lines, and names in one line what the others are about."""
    if len(lines) <= _MOST_LINES:
        return lines
    others = list(names)[_MOST_LINES:]
    more = ", ".join(others[: 10 * _MOST_LINES]) + (", ..." if len(others) > 10 * _MOST_LINES else "")
    return [*lines[:_MOST_LINES], f"warning: the same holds for {len(others)} more: {more}"]
