"""The installed package has one name of its own, every source in its place, and imports that were rewritten or refused."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def backend():
    """The build backend."""
    pytest.importorskip("setuptools.build_meta")
    spec = importlib.util.spec_from_file_location("package_backend", ROOT / ".ci" / "package_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _list_sources():
    return [*(ROOT / "modules").rglob("*.py"), *(ROOT / f"{name}.py" for name in ("dataset", "predict", "train", "utils"))]


def test_imports_are_rewritten_by_hand(backend):
    source = """import modules
import utils
from modules import devices  # a comment
from modules.data.case import (
    Case,
)
def late():
    \"\"\"Tells of modules.data.\"\"\"
    import train as command
    from dataset import DATASETS
import os
"""
    assert (
        backend.rewrite(source, "a.py")
        == """import mri_segmentation as modules
import mri_segmentation.commands.utils as utils
from mri_segmentation import devices  # a comment
from mri_segmentation.data.case import (
    Case,
)
def late():
    \"\"\"Tells of modules.data.\"\"\"
    import mri_segmentation.commands.train as command
    from mri_segmentation.commands.dataset import DATASETS
import os
"""
    )


def test_messages_name_the_commands_as_they_are_typed(backend):
    source = 'run("train.py", "go on with: python train.py --resume %s", "dataset.py, or my_train.py and predict.pyc")'
    expected = 'run("mri-train", "go on with: mri-train --resume %s", "mri-dataset, or my_train.py and predict.pyc")'
    assert backend.name_commands(source) == expected
    scripts = {f"mri-{name}" for name in backend.COMMANDS if name != "utils"}
    assert scripts <= set(PROJECT["project"]["scripts"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import modules.data.case", "Expected `from modules.room import name` in line 1 of a.py. Received: 'import modules.data.case'."),
        ("from  modules import devices", "Expected 'from modules import' once in line 1 of a.py."),
        ("from modules import (a); from modules import b", "Expected 'from modules import' once in line 1 of a.py."),
        ("name = 'modules.run.probe_worker'", "Expected no text that names our modules in line 1 of a.py. Received: 'modules.run"),
        ("code = f'import sys; from modules import {name}'", "Expected no text that names our modules in line 1 of a.py."),
    ],
)
def test_what_is_not_understood_ends_the_build(backend, line, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        backend.rewrite(line, "a.py")


def test_every_room_is_packed_and_every_dependency_is_in_one_list():
    rooms = {path.parent.relative_to(ROOT / "modules").as_posix().replace("/", ".") for path in (ROOT / "modules").rglob("__init__.py")}
    expected = {f"mri_segmentation.{room}".removesuffix("..") for room in rooms - {"."}} | {"mri_segmentation", "mri_segmentation.commands"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected
    project = PROJECT["project"]
    lines = set((ROOT / "requirements.txt").read_text().split())
    assert {*project["dependencies"], *project["optional-dependencies"]["train"]} == {
        line for line in lines if not line.startswith("pytest")
    }


USE = """
import os, sys
sys.path.insert(0, sys.argv[1])
import mri_segmentation
from mri_segmentation.run import probe_worker, proof, settings
from mri_segmentation.commands import dataset, predict, train
assert mri_segmentation.Predictor.__module__ == "mri_segmentation.api.predictor"
assert "demo" in settings.PRESETS
assert not {"modules", "utils", "train", "dataset", "predict"} & set(sys.modules)
first = proof.hash_code(train.ROOT)
with open(proof.__file__, "a") as file:
    file.write("# changed")
assert proof.hash_code(train.ROOT) != first
assert train.main(["--help"]) == 0
"""


def test_a_wheel_has_one_name_and_runs(tmp_path):
    pytest.importorskip("setuptools.build_meta")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    # The build writes its own folders, so it gets a copy of the sources.
    copy = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    if copy.returncode:
        pytest.skip("git is not installed")
    for name in copy.stdout.splitlines():
        if name.startswith(("modules/", ".ci/")) or "/" not in name:
            target = tmp_path / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    (tmp_path / "source" / "mine.py").write_text("raise SystemExit")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, "."]
    result = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mri_segmentation"}
    assert len([name for name in names if name.endswith(".py")]) == len(_list_sources()) + 1
    assert {"mri_segmentation/presets/demo.toml", "mri_segmentation/reports/assets/page.js"} <= set(names)
    for path in (tmp_path / "site").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (modules|dataset|predict|train|utils)\b", path.read_text(), re.MULTILINE), path
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    use = subprocess.run(
        [sys.executable, "-c", USE, tmp_path / "site"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "usage: mri-train" in use.stdout, use.stderr


def test_an_editable_installation_is_refused(backend):
    with pytest.raises(SystemExit, match="Expected an ordinary installation. Received: an editable one"):
        backend.build_editable("somewhere")
    assert backend.get_requires_for_build_editable is backend.build_editable
