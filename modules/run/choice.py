"""Chooses a configuration, or a pair of them, by scores of subjects that its models never saw.

A pair costs twice as much as one model. It is therefore chosen only where its advantage over the best single one is clear: the whole
95 % interval of the paired difference, of 5 subjects or more, lies above 0. All functions are pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules import score_tables
from modules.scoring import Score

# With fewer subjects the interval is far too narrow, see `modules.score_tables.estimate_intervals`.
LEAST_SUBJECTS = 5


@dataclass(frozen=True)
class Candidate:
    """One configuration, or several whose probabilities are averaged.

    Attributes:
        members: Names of its configurations.
        scores: Its out-of-fold scores: each case by models that never saw its subject.
        weights: Weights of the networks of one fold.
        seconds: Seconds that the trainings of all folds took.
    """

    members: tuple[str, ...]
    scores: Sequence[Score]
    weights: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The names of the members, joined by "+"."""
        return "+".join(self.members)


@dataclass(frozen=True)
class Choice:
    """The chosen candidate and how the others compare with it.

    Attributes:
        chosen: The candidate.
        reason: Why, in a sentence.
        subjects: Mean Dice of each subject by candidate, see `modules.score_tables.compare_subjects`.
        means: Their mean over subjects by candidate.
        differences: Paired difference to the chosen candidate with its interval, for every other candidate.
    """

    chosen: Candidate
    reason: str
    subjects: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    differences: Mapping[str, Mapping[str, float]]


def choose(candidates: Sequence[Candidate], subjects: Mapping[str, str]) -> Choice:
    """Chooses the best single candidate, or the best pair if it is clearly better.

    Among single candidates the highest mean wins; of equal ones that with fewer weights, then the first.

    Args:
        candidates: Single ones and pairs, with scores of the same cases.
        subjects: `{case or volume identifier: subject}`, see `modules.score_tables.map_subjects`.

    Raises:
        ValueError: If there is no single candidate, or they did not score the same cases.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    of_subjects = score_tables.compare_subjects({name: candidate.scores for name, candidate in by_name.items()}, subjects)
    means = {name: math.fsum(values.values()) / len(values) if values else math.nan for name, values in of_subjects.items()}

    def rank(candidate: Candidate) -> tuple[float, int]:
        mean = means[candidate.name]
        return (math.inf if math.isnan(mean) else -mean), candidate.weights

    singles = sorted((candidate for candidate in candidates if len(candidate.members) == 1), key=rank)
    pairs = sorted((candidate for candidate in candidates if len(candidate.members) > 1), key=rank)
    if not singles:
        raise ValueError("Expected a single candidate among `candidates`. Received: none. Add the configurations themselves.")
    chosen = singles[0]
    reason = "the only one" if len(candidates) == 1 else "the best single one"
    if pairs:
        advantage = score_tables.estimate_difference(of_subjects[pairs[0].name], of_subjects[chosen.name])
        few = advantage["subjects"] < LEAST_SUBJECTS
        words = f"{advantage['mean']:+.4f} [{advantage['low']:+.4f}, {advantage['high']:+.4f}] Dice"
        words += f", of only {advantage['subjects']} subject(s)" if few else ""
        if advantage["low"] > 0 and not few:
            reason = f"the best pair, clearly better than {chosen.name} alone: {words}"
            chosen = pairs[0]
        else:
            reason += f"; {pairs[0].name} is not clearly better: {words}"
    differences = {
        name: score_tables.estimate_difference(values, of_subjects[chosen.name])
        for name, values in of_subjects.items()
        if name != chosen.name
    }
    return Choice(chosen, reason, of_subjects, means, differences)


def describe_candidates(candidates: Sequence[Candidate], choice: Choice) -> list[dict[str, Any]]:
    """Describes the candidates as plain values: name, Dice by class and mean, difference to the chosen one, weights and seconds."""
    described = []
    for candidate in candidates:
        levels = score_tables.summarise(candidate.scores)
        classes = levels["volume" if "volume" in levels else "slice"]
        described.append(
            {
                "name": candidate.name,
                "members": list(candidate.members),
                "dice": {name: value["dice"] for name, value in classes.items() if name != "mean"},
                "mean": choice.means[candidate.name],
                "difference": choice.differences.get(candidate.name),
                "weights": candidate.weights,
                "seconds": round(candidate.seconds, 1),
            }
        )
    return described


def format_candidates(described: Sequence[Mapping[str, Any]], chosen: str) -> list[str]:
    """Formats what `describe_candidates` returned as lines of a console table; an asterisk marks the chosen one."""
    heads = {name: max(len(name), 6) + 2 for name in described[0]["dice"]} | {"mean": 8}
    first = max(18, *(len(item["name"]) + 4 for item in described))
    titles = "".join(f"{name:>{width}}" for name, width in heads.items())
    lines = [f"{'out-of-fold Dice':<{first}}{titles}{'difference [95 %]':>28}{'weights':>14}{'seconds':>10}"]
    for item in described:
        values = {**item["dice"], "mean": item["mean"]}
        cells = "".join(f"{values[name]:>{width}.4f}" for name, width in heads.items())
        gap = item["difference"]
        words = f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else "chosen"
        name = ("* " if item["name"] == chosen else "  ") + item["name"]
        lines.append(f"{name:<{first}}{cells}{words:>28}{item['weights']:>14,}{item['seconds']:>10.0f}")
    return lines
