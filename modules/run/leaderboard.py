"""The leaderboard of `train.py --compare` without a run: all runs of a folder, those of the same test cases together."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.data.documents import to_line
from modules.run.contestants import Contestant, read_contestants
from modules.run.listing import SEARCH_FILE
from modules.run.pairing import name_subjects
from modules.score_tables import estimate_intervals
from modules.scoring import LEVELS

_COLUMNS = (("dice", "mean Dice [95 %]", 24, 4), ("nsd", "NSD [95 %]", 24, 4), ("hd95_mm", "HD95 mm [95 %]", 22, 2))

log = logging.getLogger("mri")


@dataclass(frozen=True)
class Group:
    """Runs that were tested on the same cases.

    Attributes:
        data_set: The name of the data set.
        level: "slice" or "volume".
        class_names: The classes.
        cases: Number of test cases.
        runs: Each run with its means over classes and subjects, `{score: {mean, low, high, subjects}}`; the best Dice is first.
    """

    data_set: str
    level: str
    class_names: tuple[str, ...]
    cases: int
    runs: tuple[tuple[Contestant, Mapping[str, Mapping[str, float]]], ...]


def show_leaderboard(runs: Path) -> None:
    """Logs the finished runs below a folder, by data set and test cases, the best mean Dice first.

    Raises:
        FileNotFoundError: If no run there is finished.
    """
    contestants = []
    for path in sorted(runs.glob("*")):
        if not any((path / name).is_file() for name in ("scores.csv", SEARCH_FILE)):
            continue
        try:
            contestants += read_contestants([path])
        except (OSError, ValueError) as error:
            # One spoilt run must not hide the others.
            log.warning("left out: %s", to_line(error))
    if not contestants:
        raise FileNotFoundError(f"Expected finished runs in {runs}. Received: none. Train one, or name their folder with --runs.")
    for group in group_runs(contestants):
        for line in format_group(group):
            log.info("%s", line)


def group_runs(contestants: Sequence[Contestant]) -> list[Group]:
    """Groups runs by data set, classes, test cases and labels; of scans and slices, scans count. Runs without a score are left out."""
    groups: dict[tuple, list[tuple[Contestant, Mapping[str, Mapping[str, float]]]]] = {}
    for one in contestants:
        level = max((score.level for score in one.scores), key=LEVELS.index, default=LEVELS[0])
        scores = [score for score in one.scores if score.level == level]
        labels = tuple(sorted((score.case, score.class_name, score.reference_voxels) for score in scores))
        if labels:
            means = estimate_intervals(scores, name_subjects([scores]), keys=[key for key, *_ in _COLUMNS])[level]["mean"]
            key = (str(one.settings.get("dataset", "unknown data set")), level, labels)
            groups.setdefault(key, []).append((one, means))
    result = []
    for (data_set, level, labels), runs in sorted(groups.items(), key=lambda item: item[0]):
        # A mean that is not known comes last.
        ranked = sorted(runs, key=lambda run: (math.isnan(run[1]["dice"]["mean"]), -run[1]["dice"]["mean"]))
        class_names = dict.fromkeys(score.class_name for score in runs[0][0].scores)
        result.append(Group(data_set, level, tuple(class_names), len({case for case, *_ in labels}), tuple(ranked)))
    return result


def format_group(group: Group) -> list[str]:
    """Formats a group as lines of a console table, one a run."""
    first = max(24, *(len(one.name) + 4 for one, _ in group.runs))
    heads = "".join(f"{title:>{width}}" for _, title, width, _ in _COLUMNS)
    lines = [
        f"{group.data_set}, {group.cases} test {group.level}(s), {', '.join(group.class_names)}:",
        f"{'  run':<{first}}{heads}{'subjects':>10}{'minutes':>9}{'parameters':>14}",
    ]
    for one, means in group.runs:
        cells = "".join(f"{_format_mean(means[key], digits):>{width}}" for key, _, width, digits in _COLUMNS)
        minutes, weights = one.costs.get("minutes"), one.costs.get("parameters")
        took = f"{minutes or '-':>9}{f'{weights:,}' if weights else '-':>14}"
        lines.append(f"{f'  {one.name}':<{first}}{cells}{means['dice']['subjects']:>10}{took}")
    return lines


def _format_mean(value: Mapping[str, float], digits: int) -> str:
    mean, low, high = (f"{value[part]:.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if value["subjects"] > 1 else mean if value["subjects"] else "-"
