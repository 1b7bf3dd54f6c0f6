"""The command `dataset.py check`: reads every case of a data set as a training does, and tells what is wrong or unusual.

It writes `check.json`, the table `check.csv` and the picture `check.png`. One case at a time is in memory.
"""

import argparse
import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import modules
from modules.data.case import Case, read_case
from modules.data.files import replace_file
from modules.data.mend import Mended, check_target, write_mended
from modules.data.regions import name_shown, to_shown
from modules.data.spec import DatasetSpec, find_cases, load_spec
from modules.data.splits import split_cases
from modules.data.subjects import assign_subjects
from modules.run.check_table import describe_scans, flatten, make_record
from modules.run.division import describe_account, describe_related
from modules.run.examine import Examined, examine, keep_quiet
from modules.run.findings import ERROR, WARNING, Finding, Scan, format_number, join_scans, judge
from modules.run.flags import check_takes
from modules.run.settings import Settings

if TYPE_CHECKING:
    from modules.reports import Checked

log = logging.getLogger("mri")

PICTURES = 30
# Findings of one kind that the console shows; `check.json` has all.
_MOST_SHOWN = 8
_WARNING = "warning: "


def check(options: argparse.Namespace, datasets: Mapping[str, DatasetSpec]) -> int:
    """Checks a data set.

    Args:
        options: The flags.
        datasets: The catalogue.

    Returns:
        The exit status: 1 if there is an error, 0 if there are only warnings or nothing.

    Raises:
        FileNotFoundError, ValueError: For wrong flags, and for a folder in which no cases are found.
    """
    settings = _make_settings(options, datasets)
    root, output = settings.data_folder(), Path(options.output or Path("check") / options.dataset)
    if options.fix:
        _check_folders(root, Path(options.fix), output)
    if options.demo:
        datasets[options.dataset].write_phantom(root, seed=options.seed)
    # Labels are read once more below, so that nothing need be remembered.
    spec = load_spec(datasets[options.dataset], root, replace(settings.tell_wishes(), cache=None, tolerant=True))
    cases = assign_subjects(find_cases(spec, root, ignore_geometry=options.ignore_geometry), settings.subjects)
    splits, lines = _divide(cases, settings)
    told = [line for line in (*spec.found, *lines) if not line.startswith(_WARNING)]
    _tell(told)
    examined = [examine(case, spec) for case in _show_progress(cases)]
    scans = join_scans(examined, splits)
    findings = judge(examined, scans, spec)
    findings += [Finding(WARNING, "files", line.removeprefix(_WARNING)) for line in (*spec.found, *lines) if line.startswith(_WARNING)]
    _tell(describe_scans(examined, scans, spec))
    _tell_findings(findings)
    records = [make_record(one, splits.get((one.case.case_id, one.case.split), ""), spec, root) for one in examined]
    _write_table(output / "check.csv", [flatten(record) for record in records])
    unread = sum(one.measures is None for one in examined)
    picture = _draw(output / "check.png", scans, findings, spec, options.pictures, unread)
    content = _make_content(root, spec, told, findings, records)
    _write_json(output / "check.json", content)
    if options.fix:
        _write_json(output / "check.json", content | {"mended": _mend(root, Path(options.fix), cases, spec)._asdict()})
    errors = content["errors"]
    written = ", ".join(str(output / name) for name in ("check.json", "check.csv", *(["check.png"] if picture else [])))
    log.info("checked: %d case(s), %d error(s), %d warning(s): %s", len(cases), errors, len(findings) - errors, written)
    return 1 if errors else 0


def _make_settings(options: argparse.Namespace, datasets: Mapping[str, DatasetSpec]) -> Settings:
    if options.pictures < 0:
        raise ValueError(f"Expected `--pictures` of 0 or more. Received: {options.pictures}.")
    check_takes(datasets[options.dataset], vars(options), datasets)
    names = ("data", "cases", "modality", "subjects", "demo", "ignore_geometry", "seed")
    return Settings(options.dataset, classes=tuple(options.classes), **{name: getattr(options, name) for name in names})


def _check_folders(root: Path, target: Path, output: Path) -> None:
    """Raises ValueError, before anything is read, if a mended copy cannot be written to `target`."""
    check_target(root, target)
    if output.resolve().is_relative_to(target.resolve()):
        raise ValueError(f"Expected --output apart from the folder of --fix, {target}. Received: {output}. Choose another.")


def _divide(cases: Sequence[Case], settings: Settings) -> tuple[dict[tuple[str, str | None], str], list[str]]:
    """Divides cases as a training with the same settings does.

    Returns:
        The split of each case by its name and official split, and what there is to say about files and splits.
    """
    remarks: list[str] = []
    try:
        splits, remarks = split_cases(cases, (settings.validate_fraction, settings.test_fraction), settings.seed)
    except ValueError as error:
        splits, remarks = {"": list(cases)}, [f"{_WARNING}no training can divide the cases: {error}"]
    try:
        lines = describe_account(splits, settings)
    except (OSError, ValueError):
        # A header that says which files belong to a case cannot be read. The case is refused by name below.
        lines = ["files: not counted, because a header cannot be read"]
    found = {(case.case_id, case.split): split for split, members in splits.items() for case in members}
    return found, [*lines, *remarks, *describe_related(splits, settings)]


def _show_progress(cases: Sequence[Case]) -> Iterable[Case]:
    from tqdm import tqdm

    return tqdm(cases, desc="checking", unit="case", disable=None, leave=False)


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        log.info("%s", line)


def _tell_findings(findings: Sequence[Finding]) -> None:
    """Logs the first findings of each kind, and how many more there are."""
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.kind, finding.numbers.get("measure", "")), []).append(finding)
    for (level, *_), members in kinds.items():
        for finding in members[:_MOST_SHOWN]:
            log.log(logging.ERROR if level == ERROR else logging.WARNING, "%s: %s", level, finding.text)
        if len(members) > _MOST_SHOWN:
            log.warning("%s: %d more of this kind in check.json", level, len(members) - _MOST_SHOWN)


# ---------------------------------------------------------------------------------------------------------------- results


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _make_content(
    root: Path, spec: DatasetSpec, lines: Sequence[str], findings: Sequence[Finding], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Makes the content of `check.json`."""
    return {
        "version": modules.__version__,
        "dataset": spec.name,
        "data": str(root),
        "channels": list(spec.channels),
        "classes": list(spec.class_names),
        "errors": sum(finding.level == ERROR for finding in findings),
        "warnings": sum(finding.level == WARNING for finding in findings),
        "findings": [finding._asdict() for finding in findings],
        "files": list(lines),
        "cases": list(records),
        "mended": None,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _mend(root: Path, target: Path, cases: Sequence[Case], spec: DatasetSpec) -> Mended:
    """Writes the mended copy, and says what was mended and what could not be."""
    with keep_quiet():
        mended = write_mended(root, target, cases, spec)
    _tell(f"mended: {target / name}: {what}" for name, what in mended.files.items())
    _tell(f"not mended: {line}" for line in mended.left)
    log.info("mended copy: %s, %d file(s) mended, %d fault(s) left", target, len(mended.files), len(mended.left))
    return mended


# ---------------------------------------------------------------------------------------------------------------- picture


def _draw(path: Path, scans: Sequence[Scan], findings: Sequence[Finding], spec: DatasetSpec, number: int, unread: int) -> bool:
    """Draws at most `number` scans, those that findings name first; returns whether there was any to draw.

    The title says how many cases are not there because they cannot be read.
    """
    remarks: dict[str, list[str]] = {}
    for finding in findings:
        for name in finding.scans:
            remarks.setdefault(name, []).append(_name_remark(finding))
    rank = {name: place for place, name in enumerate(remarks)}
    odd = sorted((scan for scan in scans if scan.name in rank), key=lambda scan: rank[scan.name])
    others = [scan for scan in scans if scan.name not in rank]
    left = min(len(others), max(0, number - len(odd)))
    # Those that nothing is known of are taken at equal distances, so that every part of the data set is seen.
    chosen = [*odd[:number], *(others[place * len(others) // left] for place in range(left))]
    if not chosen:
        # That of an earlier check would not fit the table.
        path.unlink(missing_ok=True)
        return False
    # This import brings matplotlib, for which `--help` need not wait.
    from modules import reports

    names = name_shown(spec.class_names, spec.regions) + (["ignore"] if spec.label_rule.ignores else [])
    title = f"{spec.name}: {spec.title}. {len(chosen)} of {len(scans)} scans" + (", the odd ones first" if odd else "")
    title += f"; {unread} case(s) cannot be read" if unread else ""
    plane = spec.defaults.get("plane", "axial")
    drawn = _read_scans(chosen, remarks, spec)
    reports.draw_checked(path, drawn, names, title=title, plane=plane, ignored=spec.label_rule.ignores)
    return True


def _read_scans(scans: Iterable[Scan], remarks: Mapping[str, Sequence[str]], spec: DatasetSpec) -> Iterator["Checked"]:
    """Reads the slice of each scan that shows its structures best, or the volume."""
    from modules.reports import Checked

    for scan in scans:
        case = _choose_case(scan.slices)
        with keep_quiet():
            image, label = read_case(case, spec)
        label = None if label is None else to_shown(label, spec.regions, spec.num_classes)
        yield Checked(case.case_id, image, label, remarks.get(scan.name, ()))


def _choose_case(slices: Sequence[Examined]) -> Case:
    from modules.reports.views import choose_slice

    return slices[choose_slice(np.array([one.measures.voxels for one in slices if one.measures]))].case


def _name_remark(finding: Finding) -> str:
    """Says in few words what a finding is about, for a picture."""
    numbers = finding.numbers
    if finding.kind == "outlier":
        value, median = (format_number(numbers[name]) for name in ("value", "median"))
        return f"{numbers['measure']}: {value} {numbers['unit']}".rstrip() + f", median {median}"
    words = {
        "leak": "in two splits",
        "copy": "there twice",
        "alike": "looks like another subject's",
        "sides": "left and right swapped",
        "empty": "only background",
        "absent": finding.text.split(" is in ")[0] + " is missing",
        "refused": "refused",
    }
    return words.get(finding.kind, finding.kind)
