"""Reads the file of `--config`: settings in TOML or JSON, or the `run.json` of a run that is to be trained again."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import modules
from modules.data.documents import read_json, shorten, to_line
from modules.run.settings import Settings

_REMEDY = "Correct the file."
# Of two such settings only one can be given. One that a flag gives takes the place of the file's other one.
_EITHER = (("data", "demo"), ("minutes", "epochs"), ("mode", "modes"))


def read_config(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Reads settings by name from a file.

    The name of a run is left out, because two runs never share a folder.

    Args:
        path: A TOML file or JSON of settings, a `run.json`, or the folder of a run.
        given: The settings that the flags give. They win, and a fault that they mend is none.

    Returns:
        The file's settings, and whether they are those of a run, which has all of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For another content, an unknown key or a wrong value. It names the file, and lists the known keys.
    """
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of settings in {path} for --config. Received: no such file. Check the path.")
    values = _read_toml(path) if path.suffix.lower() == ".toml" else _read_json(path)
    is_run = isinstance(values, dict) and isinstance(values.get("config"), dict)
    version = values.get("version", modules.__version__) if is_run else modules.__version__
    values = values["config"] if is_run else values
    if not isinstance(values, dict):
        raise ValueError(f"Expected settings by name in {path}. Received: {shorten(values)}. {_REMEDY}")
    others = {"name"} if is_run else set()
    others |= {other for pair in _EITHER for name, other in (pair, pair[::-1]) if given.get(name) and not given.get(other)}
    values = {name: value for name, value in values.items() if name not in others}
    try:
        Settings.from_json({"dataset": "", **values, **given}, str(path))
    except ValueError as error:
        of = f" The run is of version {shorten(version)}, and this program of {modules.__version__}."
        other = of if version != modules.__version__ else ""
        remedy = "" if str(path) in str(error) else f" Correct {path}, or the flags beside it."
        raise ValueError(f"{error}{other}{remedy}") from error
    return values, is_run


def _read_toml(path: Path) -> Any:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected TOML in {path}. Received: {to_line(error)}. {_REMEDY}") from error


def _read_json(path: Path) -> Any:
    if path.suffix.lower() != ".json":
        raise ValueError(f"Expected a .toml or .json file for --config. Received: {path}. Give the file or the folder of a run.")
    return read_json(path, _REMEDY)
