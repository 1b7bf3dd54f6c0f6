"""The two rules of the house: imports go down the floors, and nothing in modules imports the root or prints."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "nifti": 0, "volume": 1, "patches": 1, "devices": 1, "optimizers": 1, "augment": 1, "loss_spec": 1, "metrics": 1, "proof": 2,
    "losses": 2, "phantom": 2, "preprocess": 2, "msd": 2, "scoring": 2, "inference": 2, "networks": 2, "trainer": 2,
    "engines": 2, "records": 2, "folds": 2, "bundle": 3, "cache": 3, "reports": 3,
    "pipeline": 4, "callbacks": 4, "tracking": 4, "export": 4,
}  # fmt: skip
SOURCES = sorted((ROOT / "modules").rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _floor(path):
    parts = path.relative_to(ROOT / "modules").with_suffix("").parts
    return parts[0]


def test_every_module_has_a_floor():
    assert {_floor(path) for path in SOURCES} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    root_files = {file.stem for file in ROOT.glob("*.py")}
    for name in _imports(path):
        assert name.partition(".")[0] not in root_files, f"{path} imports {name} from the root"
        parts = name.split(".")
        if parts[0] == "modules" and len(parts) > 1 and parts[1] != _floor(path):
            assert FLOORS[parts[1]] < FLOORS[_floor(path)], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_do_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
