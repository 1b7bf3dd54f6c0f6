"""Scores by groups of people: the table, the groups, and the numbers on the page."""

import json
import shutil

import pytest
from command_helpers import expect_one_line
from page_helpers import Page, check_numbers

import train
from modules.run.subgroups import group_people, read_people


def _write(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_ages_make_three_groups_and_texts_one_each():
    ages = {f"s{age}": str(age) for age in (20, 31, 25, 40, 52, 60, 71, 80, 22)} | {"x": "unknown"}
    groups = group_people(ages)
    assert groups["s20"] == groups["s22"] == groups["s25"] == "20 to 25"
    assert groups["s31"] == groups["s52"] == "31 to 52"
    assert groups["s60"] == groups["s80"] == "60 to 80"
    assert groups["x"] == "unknown"
    # People of one age are in one group.
    same = group_people({str(place): str(age) for place, age in enumerate([1, 2, 3, 4, 5, 5, 5, 6, 7, 8])})
    assert same["4"] == same["5"] == same["6"]
    assert group_people({"a": "F", "b": "M", "c": "F"}) == {"a": "F", "b": "M", "c": "F"}
    assert group_people({str(place): f"remark {place}" for place in range(9)}) is None


def test_a_table_of_bids_is_read(tmp_path, caplog):
    table = _write(tmp_path / "participants.tsv", "participant_id\tage\tsex", "sub-01\t30\tF", "sub-02\tn/a\tM", "sub-09\t5\tM")
    assert read_people(table, ["01", "sub-02", "03"]) == {
        "age": {"01": "30", "sub-02": "unknown", "03": "unknown"},
        "sex": {"01": "F", "sub-02": "M", "03": "unknown"},
    }
    assert caplog.messages == [f"{table} has no row of 1 of 3 tested subjects (03), who are in the group unknown"]


def test_a_table_of_a_spreadsheet_is_read(tmp_path):
    people = [f"{place};{20 + place},5" for place in range(7)]
    table = tmp_path / "people.csv"
    table.write_bytes("\r\n".join(["\ufeffsubject;age", *people, ""]).encode())
    ages = read_people(table, [str(place) for place in range(7)])["age"]
    assert ages["0"] == "20,5"
    assert set(group_people(ages).values()) == {"20.5 to 22.5", "23.5 to 24.5", "25.5 to 26.5"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["name,age", "01,3"], r"Expected a column subject or participant_id in .*a.csv. Received: name, age. Name it so."),
        (["subject,age", "07,3"], r"Expected tested subjects, such as 01, in .*a.csv. Received: none of 1."),
        (["subject,age", "01,3", "sub-01,4"], r"Expected each subject once in .*a.csv. Received: 01 twice."),
        (["subject,age", "1,3"], r"Correct the table; spreadsheets drop leading zeros."),
        (["subject", "01"], r"Expected a column beside subject in .*a.csv, such as age or sex."),
        (["subject,age,age", "01,3,4"], r"Expected each column once in .*a.csv. Received: age twice."),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_people(_write(tmp_path / "a.csv", *rows), ["01"])


def test_the_card_shows_the_groups_of_a_run(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs["hipmri"], run, ignore=shutil.ignore_patterns("bundle", "checkpoint"))
    assert "No scores by age, sex or scanner" in Page(run / "report.html").text
    subjects = sorted({line.split(",")[2] for line in (run / "scored_cases.csv").read_text().splitlines()[1:]})
    assert len(subjects) == 2
    table = _write(tmp_path / "people.csv", "Subject,scanner,note", f"{subjects[0]},one <b>,x", f"{subjects[1]},two,x")
    assert train.main(["--report", str(run), "--people", str(table)]) == 0
    assert f"subgroups: scanner, note in {run / 'subgroups.json'}" in capsys.readouterr().out
    content = json.loads((run / "subgroups.json").read_text())
    assert list(content["scanner"]) == ["one <b>", "two"]
    summary = json.loads((run / "summary.json").read_text())["intervals"]["volume"]["mean"]["dice"]
    groups = [content["scanner"][name]["volume"]["mean"]["dice"] for name in content["scanner"]]
    assert sum(group["mean"] for group in groups) / 2 == pytest.approx(summary["mean"])
    assert [group["low"] for group in groups] == [None, None]
    # All people together have the interval of the summary.
    assert content["note"]["x"]["volume"]["mean"]["dice"] == summary
    page = Page(run / "report.html")
    assert {"/scanner/two/subjects", "/note/x/volume/mean/dice/low"} <= set(check_numbers(page, run, "subgroups.json"))
    assert "one <b>" in page.text
    assert "No scores by age, sex or scanner" not in page.text
    expect_one_line(capsys, train.main(["--people", str(table)]), "Expected --people beside --report RUN")
    expect_one_line(capsys, train.main(["--report", str(run), "--people", "none.csv"]), "Expected a table in none.csv.")
