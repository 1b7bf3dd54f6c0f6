"""The table of wrong changes fits the source, and only a test that fails by itself counts."""

import shlex

import pytest

from benchmarks import mutations
from benchmarks.mutations import find_killer, main, read_table

MUTATIONS = read_table()


def test_each_change_replaces_one_place_and_names_tests_that_are_there():
    for mutation in MUTATIONS:
        files = [part for part in shlex.split(mutation.tests) if part.startswith("tests/")]
        assert files
        assert all((mutations.ROOT / file.partition("::")[0]).is_file() for file in files), mutation.name
        assert mutation.wrong.endswith(".")


def test_changes_are_in_every_room():
    rooms = {"/".join(mutation.file.split("/")[:2]) for mutation in MUTATIONS}
    assert {f"modules/{room}" for room in ("data", "model", "predict", "reports", "run", "scoring.py", "score_tables.py")} <= rooms
    assert len(MUTATIONS) >= 60


@pytest.mark.parametrize(
    ("status", "output", "killer"),
    [
        (1, "FAILED tests/a.py::test_b[x - AssertionError: assert 1 == 2\n", "tests/a.py::test_b[x"),
        (1, "FAILED tests/a.py::test_b[a c]\n", "tests/a.py::test_b[a c]"),
        (1, "FAILED tests/a.py::test_b - NameError: name 'x' is not defined\n", ""),
        (1, "ERROR tests/a.py::test_b - ValueError\n", ""),
        (2, "ERROR tests/a.py - SyntaxError\n", ""),
        (0, "3 passed", ""),
        (5, "no tests ran", ""),
        (-1, "", ""),
    ],
)
def test_only_a_test_that_fails_by_itself_counts(status, output, killer):
    assert find_killer(status, output) == killer


def test_a_table_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    table = tmp_path / "table.toml"
    table.write_text('[twice]\nfile = "a.py"\nold = "x = 1"\nnew = "x = 2"\ntests = ""\nwrong = ""\n')
    with pytest.raises(ValueError, match="Expected the old text of 'twice' once in a.py. Received: 2 times. Correct table.toml"):
        read_table(table, tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    assert [mutation.name for mutation in read_table(table, tmp_path)] == ["twice"]
    table.write_text(table.read_text().replace("x = 2", "x = 1"))
    with pytest.raises(ValueError, match="Expected a change by 'twice' in table.toml. Received: the old text again"):
        read_table(table, tmp_path)


def test_names_are_listed_and_unknown_ones_refused(capsys):
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MUTATIONS)
    assert main(["--only", "none-such"]) == 2
    assert capsys.readouterr().err == "mutations.py: error: Expected names of --list. Received: 'none-such'. See --list.\n"
