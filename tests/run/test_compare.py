"""The command `train.py --compare`: tables, files, a picture, the leaderboard, and what is refused."""

import csv
import json
import math
import shutil

import pytest
from command_helpers import expect_one_line
from compare_helpers import make_run, make_scores

import train

CASES = "stuvwxyz"


@pytest.fixture
def pair(tmp_path):
    """Two runs below `runs`: the second is better by 0.1 in the first class of every case, and as good in the other."""
    runs = tmp_path / "runs"
    base = [score for case in CASES for score in make_scores(case, subject=case, nsd=0.5, tolerance_mm=1.0)]
    gains = [score if score.class_name == "b" else score.__class__(**vars(score) | {"dice": 0.6, "hd95_mm": 0.5}) for score in base]
    return [make_run(runs / "base", base), make_run(runs / "new", gains, weights=2000, seconds=600.0, loss="ce")]


def _compare(*argv):
    return train.main(["--compare", *map(str, argv)])


def test_two_runs(pair, tmp_path, capsys):
    assert _compare(*pair, "--output", tmp_path / "out") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "compared with base on 8 test cases; [95 %]: bootstrap over subjects; p: Wilcoxon signed-rank, corrected by Holm"
    # Eight of eight are better: p is 2 / 256, twice that for two classes.
    assert lines[2] == "Dice a 0.6000 0.5000 +0.1000 [+0.1000, +0.1000] 0.016 8 0 8"
    assert lines[3] == "Dice b 0.5000 0.5000 +0.0000 [+0.0000, +0.0000] 1.000 0 0 8"
    assert lines[4] == "Dice mean 0.5500 0.5000 +0.0500 [+0.0500, +0.0500] 0.008 8 0 8"
    assert lines[6] == "HD95 mm mean 0.75 1.00 -0.25 [-0.25, -0.25] 0.008 8 0 8"
    assert "base 1.5 100 2.0 GB cpu:0" in lines
    assert "new 10.0 2,000 2.0 GB cpu:0" in lines
    assert "loss dice | ce" in lines
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (content["baseline"], content["level"], content["cases"]) == ("base", "volume", list(CASES))
    assert content["settings"] == {"loss": ["dice", "ce"]}
    assert content["models"][1] == {
        "name": "new", "path": str(pair[1]), "minutes": 10, "parameters": 2000, "peak_bytes": 2_000_000_000, "epochs": 3, "device": "cpu:0",
    }  # fmt: skip
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["score"], row["class_name"]) for row in rows[:4]] == [("dice", "a"), ("dice", "b"), ("dice", "mean"), ("nsd", "a")]
    assert {name: str(value) for name, value in content["differences"][0].items()} == rows[0]
    assert (tmp_path / "out" / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_beside_itself_differs_in_nothing(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _compare(pair[0], pair[0]) == 0
    differences = json.loads((tmp_path / "comparison" / "compare.json").read_text())["differences"]
    assert {(row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) for row in differences} == {(0, 0, 0, 1, 1)}
    text = capsys.readouterr().out
    assert "base (2)" in text
    assert "settings that differ" not in text


def test_few_subjects_and_unnamed_ones_are_told(tmp_path, capsys):
    runs = [make_run(tmp_path / name, make_scores(subject="")) for name in ("one", "two")]
    assert _compare(*runs, "--output", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "not compared: NSD, because a table lacks it, as scans of slices do, or has other tolerances" in text
    assert "2 subject(s) are too few for a p below 0.05, whatever they show" in text
    assert "no table says who was scanned in 2 case(s): each of them counts as a subject of its own" in text


def test_a_search_stands_for_its_best_trial(pair, tmp_path, capsys):
    found = pair[0].parent / "found"
    shutil.copytree(pair[1], found / "trial_001")
    (found / "search.jsonl").touch()
    expect_one_line(capsys, _compare(pair[0], found), f"Expected a finished search. Received: {found}, which is not.")
    (found / "summary.json").write_text(json.dumps({"best_trial": "trial_001"}))
    assert _compare(pair[0], found, "--output", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [one["name"] for one in content["models"]] == ["base", "found"]
    assert content["differences"][0]["difference"] == pytest.approx(0.1)
    capsys.readouterr()
    assert _compare("--runs", found.parent) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["found", "new", "base"]


def test_the_leaderboard_groups_runs_and_sorts_them(pair, tmp_path, capsys):
    runs = pair[0].parent
    make_run(runs / "other-cases", make_scores("pq"))
    make_run(runs / "other-set", make_scores("pq"), dataset="c")
    (runs / "unfinished").mkdir()
    shutil.copytree(pair[0], runs / "spoilt")
    (runs / "spoilt" / "scores.csv").write_text("case,dice\n")
    assert _compare("--runs", runs) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("left out: Expected the columns level,case,")
    assert [line for line in lines if line.endswith(":")] == [
        "c, 2 test volume(s), a, b:", "d, 2 test volume(s), a, b:", "d, 8 test volume(s), a, b:",
    ]  # fmt: skip
    assert lines[-2:] == [
        "new 0.5500 [0.5500, 0.5500] 0.5000 [0.5000, 0.5000] 0.75 [0.75, 0.75] 8 10.0 2,000",
        "base 0.5000 [0.5000, 0.5000] 0.5000 [0.5000, 0.5000] 1.00 [1.00, 1.00] 8 1.5 100",
    ]
    # One subject has no interval, and nobody knows its surfaces.
    assert lines[3] == "other-set 0.5000 - 1.00 1 1.5 100"


def test_what_is_refused_in_a_line(pair, tmp_path, capsys):
    for argv, message in (
        ([pair[0]], f"Expected two runs or more for --compare, or none for a leaderboard. Received: {pair[0]}. Add another."),
        (
            [*pair, "--epochs", "3"],
            "Expected nothing beside --compare but --labels, --output, --runs, --classes, --tolerance-mm. Received: ",
        ),
        ([*pair, "--resume", pair[0]], "Received: --resume. Leave it out."),
        ([*pair, make_run(tmp_path / "c", make_scores("z"))], "Received: c lacks s, t, u and 4 more. Compare "),
        (["--runs", tmp_path / "nothing"], f"Expected finished runs in {tmp_path / 'nothing'}. Received: none. Train one, or name"),
    ):
        expect_one_line(capsys, _compare(*argv), message)
    nothing = [make_run(tmp_path / name, make_scores(dice=math.nan, voxels=0, reference_voxels=0)) for name in ("d", "e")]
    expect_one_line(capsys, _compare(*nothing), "Expected a class in any label or label map. Received: background alone in 2 test ")
    for flag in ("--labels", "--output"):
        expect_one_line(capsys, train.main([flag, "x"]), f"Expected --compare beside {flag}. Received: {flag} alone. Name the runs")
    assert not (tmp_path / "comparison").exists()
