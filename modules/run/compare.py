"""`train.py --compare`: the same test cases by several models, with paired differences, what the models took, and which settings differ."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from modules.data.files import replace_file
from modules.run.contestants import Contestant, check_alike, find_different, read_contestants
from modules.run.folder import write_json
from modules.run.leaderboard import show_leaderboard
from modules.run.pairing import PERFECT, Difference, count_nameless, find_differences, pair_scores

# Titles and digits of the scores that the console shows.
_SHOWN = {"dice": ("Dice", 4), "nsd": ("NSD", 4), "hd95_mm": ("HD95 mm", 2)}
# With fewer subjects that differ no p of a signed-rank test is below 0.05.
_LEAST_SUBJECTS = 6
_MOST_SETTINGS = 20

log = logging.getLogger("mri")


@dataclass(frozen=True)
class Comparison:
    """The task of a comparison.

    Attributes:
        paths: Runs and folders; the first is the baseline. None of them stands for a leaderboard of all runs below `runs`.
        labels: The folder of the references of label maps.
        output: Where `compare.json`, `compare.csv` and `compare.png` are written.
        runs: The folder of the runs.
        classes: The classes of label maps, see `modules.run.contestants.read_contestants`.
        tolerance_mm: The tolerance for label maps, likewise.
    """

    paths: tuple[Path, ...]
    labels: Path | None = None
    output: Path = Path("comparison")
    runs: Path = Path("runs")
    classes: tuple[str, ...] = ()
    tolerance_mm: tuple[float, ...] = ()


def compare(wanted: Comparison) -> None:
    """Compares models that were tested on the same cases, or shows the leaderboard; logs tables, and writes them with a picture.

    Raises:
        FileNotFoundError, ValueError: If something cannot be read, or classes, test cases or labels differ.
    """
    if not wanted.paths:
        show_leaderboard(wanted.runs)
        return
    if len(wanted.paths) < 2:
        raise ValueError(f"Expected two runs or more for --compare, or none for a leaderboard. Received: {wanted.paths[0]}. Add another.")
    contestants = check_alike(read_contestants(wanted.paths, wanted.labels, wanted.classes, wanted.tolerance_mm))
    names = [one.name for one in contestants]
    pairs = {key: pair_scores([one.scores for one in contestants], key) for key in PERFECT}
    cases = len({score.case for score in contestants[0].scores})
    if not pairs["dice"]:
        raise ValueError(f"Expected a class in any label or label map. Received: background alone in {cases} test case(s). Compare others.")
    differences = find_differences(names, pairs)
    different = find_different(contestants)
    for line in [
        *_format_differences(names, differences, cases),
        *_format_costs(contestants),
        *_format_settings(names, different),
    ]:
        log.info("%s", line)
    if nameless := count_nameless([one.scores for one in contestants]):
        log.info("no table says who was scanned in %d case(s): each of them counts as a subject of its own", nameless)
    _write(wanted.output, contestants, differences, different)
    from modules import reports

    dice = [row for row in differences if row.score == "dice"]
    captions = {row.class_name: _describe(row) for row in dice} if len(names) == 2 else {}
    title = f"Dice of each subject by {', '.join(names)}; {cases} test cases"
    picture = reports.draw_pairs(wanted.output / "compare.png", names, pairs["dice"], captions, title=title)
    log.info("comparison: %s, compare.json, compare.csv", picture)


def _describe(row: Difference) -> str:
    return f"difference {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]\np {_format_p(row.p_holm)}"


def _format_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _format_differences(names: Sequence[str], differences: Sequence[Difference], cases: int) -> list[str]:
    """Formats the differences as lines of a console table: Dice class by class, and of other scores the mean over classes."""
    lines = [f"compared with {names[0]} on {cases} test cases; [95 %]: bootstrap over subjects; p: Wilcoxon signed-rank, corrected by Holm"]
    classes = len({row.class_name for row in differences})
    for name in names[1:]:
        rows = [row for row in differences if row.run == name and row.score in _SHOWN]
        rows = [row for row in rows if row.score == "dice" or row.class_name == "mean" or classes == 1]
        first = max(len(name), *(len(row.class_name) + 10 for row in rows), 20) + 2 if rows else 22
        lines.append(
            f"{name:<{first}}{'mean':>9}{'baseline':>10}{'difference [95 %]':>28}{'p':>8}{'better':>8}{'worse':>7}{'subjects':>10}"
        )
        for row in rows:
            title, digits = _SHOWN[row.score]
            gap = f"{row.difference:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
            lines.append(
                f"  {f'{title} {row.class_name}':<{first - 2}}{row.mean:>9.{digits}f}{row.baseline_mean:>10.{digits}f}{gap:>28}"
                f"{_format_p(row.p_holm):>8}{row.better:>8}{row.worse:>7}{row.subjects:>10}"
            )
    scored = {row.score for row in differences}
    if missing := [title for key, (title, _) in _SHOWN.items() if key not in scored]:
        lines.append(f"not compared: {', '.join(missing)}, because a table lacks it, as scans of slices do, or has other tolerances")
    fewest = min((row.subjects for row in differences if row.score == "dice"), default=0)
    if fewest < _LEAST_SUBJECTS:
        lines.append(f"{fewest} subject(s) are too few for a p below 0.05, whatever they show")
    return lines


def _format_costs(contestants: Sequence[Contestant]) -> list[str]:
    """Formats what each model took; nothing where nobody knows."""
    if not any(one.costs for one in contestants):
        return []
    first = max(20, *(len(one.name) for one in contestants)) + 2
    lines = [f"{'costs':<{first}}{'minutes':>9}{'parameters':>14}{'peak memory':>13}  trained on"]
    for one in contestants:
        minutes, weights, peak = (one.costs.get(name) for name in ("minutes", "parameters", "peak_bytes"))
        memory = f"{peak / 1e9:.1f} GB" if peak else "-"
        number = f"{weights:,}" if weights else "-"
        lines.append(f"{one.name:<{first}}{minutes or '-':>9}{number:>14}{memory:>13}  {one.costs.get('device') or '-'}")
    return lines


def _format_settings(names: Sequence[str], different: Mapping[str, Sequence[Any]]) -> list[str]:
    """Formats the first settings that differ, a line each."""
    lines = [f"settings that differ ({' | '.join(names)}):"] if different else []
    for name, row in list(different.items())[:_MOST_SETTINGS]:
        lines.append(f"  {name:<30} {' | '.join('-' if value is None else str(value) for value in row)}")
    if len(different) > _MOST_SETTINGS:
        lines.append(f"  and {len(different) - _MOST_SETTINGS} more in compare.json")
    return lines


def _write(output: Path, contestants: Sequence[Contestant], differences: Sequence[Difference], different: Mapping[str, Any]) -> None:
    """Writes `compare.json` and `compare.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    scores = contestants[0].scores
    content = {
        "baseline": contestants[0].name,
        "level": scores[0].level,
        "cases": sorted({score.case for score in scores}),
        "models": [{"name": one.name, "path": str(one.path), **one.costs} for one in contestants],
        "differences": [asdict(row) for row in differences],
        "settings": different,
    }
    write_json(output / "compare.json", content)
    with replace_file(output / "compare.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Difference)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in differences)
