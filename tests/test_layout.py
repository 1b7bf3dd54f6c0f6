"""The rules of the layout: imports go down the floors without a circle, only `api` and `serve` import the root, and no module prints."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The floors from the ground up. A room imports from lower floors only.
FLOORS = (
    ("backend_choice", "networks", "packages"),
    ("devices",),
    ("hardware",),
    ("compiled", "data", "model", "phantom"),
    ("masks",),
    ("scoring",),
    ("score_lines", "score_tables", "predict"),
    ("reports",),
    ("run",),
    ("api",),
    ("serve",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted((ROOT / "modules").rglob("*.py"))
PYTHON = [*SOURCES, *sorted(ROOT.glob("*.py"))]
OTHERS = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def _name(path):
    """Returns the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name(path) for path in PYTHON}


def _imports(path):
    """Yields the project's own modules that a file imports anywhere. `modules` itself is left out: it holds the version."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {name if name in NAMES else node.module for name in found}
        else:
            continue
        yield from found & NAMES - {"modules"}


def test_every_room_has_a_floor():
    assert {path.relative_to(ROOT / "modules").with_suffix("").parts[0] for path in SOURCES} - {"__init__"} == set(FLOOR)


def test_the_documented_floors_are_these():
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    rows = [line.split("|")[1:3] for line in lines if re.match(r"\| \d+ \|", line)]
    assert {name.removesuffix(".py"): int(number) for number, names in rows for name in re.findall("`(.+?)`", names)} == FLOOR


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = _name(path).split(".")[1:2]
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "modules":
            # The Python interface and the server stand above the commands.
            assert own in (["api"], ["serve"]), f"{path} imports {name} from the root"
            continue
        if parts[1:2] != own:
            assert FLOOR[parts[1]] < FLOOR[own[0]], f"{path} imports {name}, which is not below it"


def test_no_imports_go_round_in_a_circle():
    # Python loads a package's `__init__.py` with each of its modules, so its imports form no circle among the modules.
    graph = {_name(path): set(_imports(path)) for path in PYTHON if path.name != "__init__.py"}
    graph = {name: needed & set(graph) for name, needed in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_do_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", [*PYTHON, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    most = 180 if path.name in ("train.py", "predict.py") else 400
    assert len(path.read_text().splitlines()) <= most
