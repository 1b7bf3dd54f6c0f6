"""CONTRIBUTING.md shows how to add to the program; its diffs must apply to the current files."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)


def test_there_is_a_diff_for_each_kind_of_addition():
    text = "\n".join(DIFFS)
    for path in ("dataset.py", "modules/networks/", "modules/model/losses.py", "modules/scoring.py"):
        assert f"+++ b/{path}" in text


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: re.search(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE)[1])
def test_each_diff_applies(diff, tmp_path):
    (tmp_path / "a.diff").write_text(diff)
    result = subprocess.run(["git", "apply", "--check", tmp_path / "a.diff"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
