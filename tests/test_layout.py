"""The two rules of the house: imports go down the floors, and nothing in modules imports the root or prints."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "volume": 0, "patches": 0, "devices": 0, "optimizers": 0, "augment": 0, "loss_spec": 0, "metrics": 0, "proof": 1,
    "losses": 1, "phantom": 1, "preprocess": 1, "msd": 1, "scoring": 1, "inference": 1, "networks": 1, "trainer": 1,
    "engines": 1, "convolutions": 0, "folds": 1, "bundle": 2, "cache": 2, "reports": 2,
    "pipeline": 3, "callbacks": 3, "tracking": 3, "export": 3,
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
