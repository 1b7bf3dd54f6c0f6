"""Builds the package `mri_segmentation` from the repository's own layout, for pip (PEP 517).

In the repository the rooms lie in `modules`, and the commands beside it. Installed, these names would collide with those of other programs.
So the wheel holds `modules` as `mri_segmentation`, and the commands as `mri_segmentation.commands`. Import lines change, and in texts the
names of the commands: `python train.py` becomes `mri-train`. Each changed file is parsed again and compared with what it must be. An import
that this file does not understand ends the build.
"""

import ast
import os
import re
import shutil
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  (the functions that pip calls)
from setuptools.command.build_py import build_py

PACKAGE = "mri_segmentation"
COMMANDS = ("dataset", "predict", "train", "utils")
# The scripts of pyproject.toml have these names with `mri-` before them.
_TYPED = re.compile(r"\b(?:python )?(dataset|predict|train)\.py\b")
# Texts that are code or name a module for Python. No rewritten import line reaches them.
_HIDDEN = re.compile(rf"\b(from|import)\s+(modules|{'|'.join(COMMANDS)})\b(?!\.py)|modules(\.\w+)+")


def build_editable(*_: object, **__: object) -> str:
    """Refuses an editable installation."""
    raise SystemExit(
        "Expected an ordinary installation. Received: an editable one, whose imports cannot be rewritten. Give `pip install .`, or work in "
        "the repository, which needs no installation: `from modules.api import Predictor`."
    )


get_requires_for_build_editable = build_editable


class BuildPackage(build_py):
    """Copies the sources to their places in the package, with their imports rewritten."""

    def run(self) -> None:
        """Builds into an empty folder, so that no file of an earlier build comes along."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        commands = Path(self.build_lib, PACKAGE, "commands")
        (commands / "__init__.py").write_text('"""The commands: mri-train, mri-predict and mri-dataset."""\n', encoding="utf-8")

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Lists the modules of a package. Beside the commands other scripts may lie at the root."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != f"{PACKAGE}.commands" or entry[1] in COMMANDS]

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Writes a module with its imports rewritten."""
        target = Path(self.get_module_outfile(self.build_lib, package.split("."), module))
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(module_file).read_text(encoding="utf-8")
        target.write_text(rewrite(name_commands(source), module_file), encoding="utf-8")
        return str(target), True

    def get_source_files(self) -> list[str]:
        """Lists what a source distribution holds, this file too."""
        return [*super().get_source_files(), os.path.relpath(__file__)]


def name_commands(source: str) -> str:
    """Names the commands in a source text as those who installed them type them."""
    return _TYPED.sub(r"mri-\1", source)


def rewrite(source: str, name: str) -> str:
    """Rewrites the imports of our own modules in a source text.

    Raises:
        ValueError: For an import that is not of a known form, or hides in a text. It names the file `name` and the line.
    """
    tree, lines = ast.parse(source, name), source.splitlines(keepends=True)
    _refuse_hidden(tree, name)
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]:
        old = _spell(node)
        if _map_import(node, name):
            line = lines[node.lineno - 1]
            if line.count(old) != 1:
                raise ValueError(f"Expected {old!r} once in line {node.lineno} of {name}. Received: {line.strip()!r}. Write it plainly.")
            lines[node.lineno - 1] = line.replace(old, _spell(node))
    result = "".join(lines)
    if ast.dump(ast.parse(result)) != ast.dump(tree):
        raise ValueError(f"Expected {name} to change in its imports alone. Received: other changes. Write its imports plainly.")
    return result


def _map_import(node: ast.Import | ast.ImportFrom, name: str) -> bool:
    """Changes an import of ours in the tree; returns whether it did."""
    before = ast.dump(node)
    if isinstance(node, ast.Import):
        for alias in node.names:
            if (place := _map_name(alias.name)) != alias.name and "." not in alias.name:
                alias.name, alias.asname = place, alias.asname or alias.name
    elif node.level == 0 and node.module:
        node.module = _map_name(node.module)
    if any(_map_name(part) != part for part in _list_names(node)):
        raise ValueError(f"Expected `from modules.room import name` in line {node.lineno} of {name}. Received: {ast.unparse(node)!r}.")
    return ast.dump(node) != before


def _map_name(name: str) -> str:
    """Returns the place of a module in the package; a name that is not ours stays."""
    root, dot, rest = name.partition(".")
    if root == "modules":
        return f"{PACKAGE}{dot}{rest}"
    return f"{PACKAGE}.commands.{name}" if root in COMMANDS else name


def _list_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def _spell(node: ast.Import | ast.ImportFrom) -> str:
    return f"from {node.module} import" if isinstance(node, ast.ImportFrom) else ast.unparse(node)


def _refuse_hidden(tree: ast.Module, name: str) -> None:
    """Raises ValueError for a text, other than documentation, that imports or names a module of ours."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation and _HIDDEN.search(node.value):
            raise ValueError(
                f"Expected no text that names our modules in line {node.lineno} of {name}. Received: {node.value[:80]!r}. Use __package__."
            )
