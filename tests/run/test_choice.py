"""The choice of a mode or a pair of modes, from tables of scores made by hand."""

import math

import pytest

from modules.run.choice import Candidate, choose, describe_candidates, format_candidates
from modules.score_tables import compare_subjects, estimate_difference
from modules.scoring import Score

NAN = math.nan


def _make_scores(cases, level="volume"):
    """Scores of `{case: (Dice of class a, Dice of class b)}`."""
    rest = (NAN,) * 6
    return [Score(level, case, name, dice, *rest, 0, 0) for case, values in cases.items() for name, dice in zip("ab", values, strict=True)]


def _make_candidate(name, values, weights=0):
    """A candidate whose subject number `i` has the Dice `values[i]` in both classes."""
    return Candidate(tuple(name.split("+")), _make_scores({f"s{number}": (value, value) for number, value in enumerate(values)}), weights)


SUBJECTS = {f"s{number}": f"s{number}" for number in range(8)}
LOW, HIGH = (0.5, 0.6, 0.7, 0.6, 0.5, 0.7), (0.6, 0.7, 0.8, 0.7, 0.6, 0.8)


def test_a_pair_that_is_better_for_every_subject_is_chosen():
    candidates = [_make_candidate("slice", LOW), _make_candidate("patch", LOW[::-1]), _make_candidate("slice+patch", HIGH)]
    choice = choose(candidates, SUBJECTS)
    assert choice.chosen is candidates[2]
    assert choice.means == pytest.approx({"slice": 0.6, "patch": 0.6, "slice+patch": 0.7})
    # Every subject gains 0.1, so that each resample does.
    assert choice.differences["slice"] == pytest.approx({"mean": -0.1, "low": -0.1, "high": -0.1, "subjects": 6})
    assert choice.reason == "the best pair, clearly better than slice alone: +0.1000 [+0.1000, +0.1000] Dice"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        # Worse, equal, and better only on average: four subjects gain 0.1, two lose 0.15.
        ((0.4, 0.5, 0.6, 0.5, 0.4, 0.6), "-0.1000 [-0.1000, -0.1000] Dice"),
        (LOW, "+0.0000 [+0.0000, +0.0000] Dice"),
        ((0.6, 0.7, 0.8, 0.7, 0.35, 0.55), "+0.0167 [-0.0667, +0.1000] Dice"),
    ],
)
def test_a_pair_that_is_not_clearly_better_is_not_chosen(pair, words):
    choice = choose([_make_candidate("slice", LOW), _make_candidate("patch", LOW), _make_candidate("slice+patch", pair)], SUBJECTS)
    assert choice.chosen.name == "slice"
    assert choice.reason == f"the best single one; slice+patch is not clearly better: {words}"


def test_few_subjects_prove_nothing():
    choice = choose(
        [_make_candidate("slice", LOW[:4]), _make_candidate("patch", LOW[:4]), _make_candidate("slice+patch", HIGH[:4])], SUBJECTS
    )
    assert choice.chosen.name == "slice"
    assert choice.reason.endswith("+0.1000 [+0.1000, +0.1000] Dice, of only 4 subject(s)")


def test_of_single_ones_the_best_wins_and_of_equal_ones_the_smaller():
    assert choose([_make_candidate("slice", LOW), _make_candidate("patch", HIGH)], SUBJECTS).chosen.name == "patch"
    assert choose([_make_candidate("slice", LOW, 9), _make_candidate("patch", LOW, 5)], SUBJECTS).chosen.name == "patch"
    assert choose([_make_candidate("slice", LOW, 5), _make_candidate("patch", LOW, 5)], SUBJECTS).chosen.name == "slice"
    assert choose([_make_candidate("patch", LOW)], SUBJECTS).reason == "the only one"
    with pytest.raises(ValueError, match="Expected a single candidate among `candidates`"):
        choose([_make_candidate("slice+patch", LOW)], SUBJECTS)


def test_a_class_that_one_draws_where_there_is_none_counts_against_it():
    # Class b is not in x. The first candidate rightly draws none, the second draws some. Nobody knows b in y, nor any class in z.
    tables = {
        "first": _make_scores({"x": (0.5, NAN), "y": (0.8, NAN), "z": (NAN, NAN)}),
        "second": _make_scores({"x": (0.7, 0.0), "y": (0.6, NAN), "z": (NAN, NAN)}),
    }
    means = compare_subjects(tables, {"x": "p", "y": "p", "z": "q"})
    # (mean of 0.5 and 1, and 0.8) / 2, against (mean of 0.7 and 0, and 0.6) / 2.
    assert means == {"first": {"p": pytest.approx(0.775)}, "second": {"p": pytest.approx(0.475)}}
    assert estimate_difference(means["first"], means["second"])["mean"] == pytest.approx(0.3)
    assert math.isnan(estimate_difference(means["first"], means["second"])["low"])
    assert compare_subjects({"first": tables["first"][4:]}, {"z": "q"}) == {"first": {}}


def test_scans_count_before_their_slices():
    scores = [*_make_scores({"x_1": (0.1, 0.1)}, "slice"), *_make_scores({"x": (0.5, 0.7)})]
    assert compare_subjects({"one": scores}, {"x": "p"}) == {"one": {"p": pytest.approx(0.6)}}


def test_tables_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match=r"Expected the same cases from all candidates. Received: a of y, not from all. Score two anew."):
        compare_subjects({"one": _make_scores({"x": (1, 1)}), "two": _make_scores({"x": (1, 1), "y": (1, 1)})}, {"x": "p", "y": "p"})
    with pytest.raises(ValueError, match="Expected the subject of every case. Received: none for x."):
        compare_subjects({"one": _make_scores({"x": (1, 1)})}, {})
    with pytest.raises(ValueError, match="Expected the same subjects for a paired difference. Received: 1 and 2"):
        estimate_difference({"x": 1.0}, {"x": 1.0, "y": 0.5})


def test_the_table_marks_the_chosen_one():
    candidates = [
        Candidate(("slice",), _make_scores({"s0": (0.5, 0.25), "s1": (0.7, NAN)}), 1234, 60.04),
        _make_candidate("patch", (0.2, 0.2)),
    ]
    choice = choose(candidates, SUBJECTS)
    described = describe_candidates(candidates, choice)
    # Class b is in no reading of s1 by slices, but patches draw it: (mean of 0.5 and 0.25, mean of 0.7 and 1) / 2.
    assert described[0] == {
        "name": "slice",
        "members": ["slice"],
        "dice": {"a": pytest.approx(0.6), "b": 0.25},
        "mean": pytest.approx(0.6125),
        "difference": None,
        "weights": 1234,
        "seconds": 60.0,
    }
    lines = format_candidates(described, choice.chosen.name)
    assert lines[0].split() == ["out-of-fold", "Dice", "a", "b", "mean", "difference", "[95", "%]", "weights", "seconds"]
    assert lines[1].split() == ["*", "slice", "0.6000", "0.2500", "0.6125", "chosen", "1,234", "60"]
    assert lines[2].split()[:5] == ["patch", "0.2000", "0.2000", "0.2000", "-0.4125"]
    assert len({len(line) for line in lines}) == 1
