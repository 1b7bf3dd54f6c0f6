"""The report of a run says what its files say, in one page that loads nothing and runs nothing else."""

import csv
import json
import shutil

import pytest
from command_helpers import expect_one_line
from page_helpers import Page, check_numbers

import predict
import train
from modules.run import report, report_page

HOSTILE = "<script>alert(1)</script>"


def test_a_training_leaves_a_page_whose_numbers_are_those_of_its_files(runs):
    run = runs["oasis"]
    page = Page(run / "report.html")
    places = check_numbers(page, run, "summary.json")
    summary = json.loads((run / "summary.json").read_text())
    for level, classes in summary["intervals"].items():
        for of_class in classes:
            assert f"/intervals/{level}/{of_class}/dice/mean" in places
            assert f"/test/{level}/{of_class}/dice" in places
    assert {"/seconds", "/peak_bytes", "/best_epoch", "/postprocessing/validation_cases"} <= set(places)
    assert {"/costs/weights", "/costs/memory_bytes", "/costs/seconds"} <= set(check_numbers(page, run, "plan.json"))
    record = json.loads((run / "run.json").read_text())
    assert check_numbers(page, run, "run.json") == [f"/subjects/{split}" for split in ("train", "validate", "test")]
    assert check_numbers(page, run, "fingerprint.json")
    with (run / "scores.csv").open() as file:
        dice = {(row["level"], row["case"], row["class"]): float(row["dice"]) for row in csv.DictReader(file)}
    shown = [number for number in page.numbers if number[0] == "scores.csv" and number[2]]
    assert shown
    for _, place, value, _ in shown:
        assert float(value) == dice[tuple(place.split("/")[1:4])]
    for text in (*record["remarks"], record["about"]["licence"], record["code_sha256"], f"--verify {run}", "Few subjects were tested: 1."):
        assert text in page.text
    assert (run / "report.html").stat().st_size < 8_000_000


def test_a_page_loads_nothing_and_names_its_pictures(runs):
    page = Page(runs["oasis"] / "report.html")
    assert page.list_loads() == []
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    titles = [attributes.get("aria-label", "") for _, attributes in page.tags if attributes.get("role") == "img"]
    assert any("(worst test case" in title for title in titles)
    assert any("(best test case" in title for title in titles)
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings[:2] == ["h1", "h2"]


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of a run with hostile names of folder, class and licence, as a version wrote it that kept less in run.json."""
    run = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs["oasis"], run, ignore=shutil.ignore_patterns("bundle", "checkpoint"))
    (run / "scores.csv").write_text((run / "scores.csv").read_text().replace("CSF", HOSTILE))
    for name in ("summary.json", "fingerprint.json"):
        (run / name).write_text((run / name).read_text().replace("CSF", HOSTILE))
    record = json.loads((run / "run.json").read_text())
    for name in ("subjects", "about", "remarks"):
        del record[name]
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_an_older_run_gets_its_page_anew_and_nothing_in_it_runs(copy, capsys):
    (copy / "report.html").unlink()
    assert train.main(["--report", str(copy)]) == 0
    page = Page(copy / "report.html")
    assert len(page.scripts) == 1
    assert page.list_loads() == []
    assert HOSTILE in page.text
    assert any(place.startswith("/intervals/slice/<script>alert(1)<~1script>/") for place in check_numbers(page, copy, "summary.json"))
    assert "OASIS" in page.text
    assert "Its log.txt says so." in page.text
    assert f"report: {copy / 'report.html'}" in capsys.readouterr().out

    (copy / "summary.json").unlink()
    expect_one_line(capsys, train.main(["--report", str(copy)]), f"Expected a finished run in {copy}. Received: no summary.json there.")


def test_the_flag_stands_alone_and_names_a_run(tmp_path, capsys):
    expect_one_line(capsys, train.main(["--report", str(tmp_path)]), f"Expected a run in {tmp_path}")
    status = train.main(["--report", str(tmp_path), "--batch-size", "2"])
    expect_one_line(capsys, status, "Expected --report alone with a run. Received: --batch-size too.")


def test_curves_and_slices_get_the_room_of_a_small_page(copy, monkeypatch):
    need = sum((copy / "figures" / name).stat().st_size for name in ("loss.png", "dice.png", "accuracy.png"))
    monkeypatch.setattr(report_page.Album, "__init__", lambda self: setattr(self, "_room", 1.34 * need))
    assert train.main(["--report", str(copy)]) == 0
    page = Page(copy / "report.html")
    assert [attributes["alt"].split()[0] for tag, attributes in page.tags if tag == "img"] == ["Loss", "Dice", "Share"]
    assert page.text.count("This page has no room for it.") == 5
    assert page.text.count("this page has no room for its slices.") == 2


def test_predictions_get_their_page_at_the_end(runs, phantoms, tmp_path, capsys):
    image = next(path for path in sorted((phantoms / "oasis").rglob("case_*.png")))
    assert predict.main([str(image), "--model", str(runs["oasis"]), "--output", str(tmp_path / "out")]) == 0
    assert f"report: {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    page = Page(tmp_path / "out" / "report.html")
    judged = [f"/cases/0/classes/{index}/predicted_{key}" for index in range(3) for key in ("dice", "low", "high")]
    sizes = [f"/cases/0/classes/{index}/voxels" for index in range(3)]
    assert check_numbers(page, tmp_path / "out", "results.json") == [*judged, *sizes]
    assert page.list_loads() == []
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [f"{image.name.split('.')[0]} with its prediction"]
    assert [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]


def test_the_page_of_predictions_is_told_of(tmp_path, caplog):
    with caplog.at_level("INFO", "mri"):
        report.write_predictions_report(tmp_path)
        assert not caplog.messages
        (tmp_path / "results.json").write_text('{"intended_use": "", "cases": [], "scans": []}')
        report.write_predictions_report(tmp_path)
    assert caplog.messages == [f"report: {tmp_path / 'report.html'}"]
