"""Merges folds that were trained by separate commands into one cross-validation; checks that they belong together."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.documents import Rule, check_fields, many, mapping, text
from modules.run.folder import REMEDY, RunFolder
from modules.run.listing import list_runs
from modules.run.settings import Settings, may_differ

# Settings that may differ between the folds, besides where they lie: what tells the runs apart, and what affects no result. `check_parts`
# compares the models of `init` by their hashes, wherever they lay.
_OWN = ("fold", "mode", "modes", "name", "track", "demo", "checkpoint_minutes", "init")

_SPLITS = mapping(text(), many(Rule("a case", lambda value: isinstance(value, str)), 0, 1 << 24))

log = logging.getLogger("mri")


def collect_folds(runs: Sequence[Path]) -> tuple[Settings, dict[str, Path]]:
    """Collects finished folds.

    Args:
        runs: Runs of one fold each, or folders with several such runs `fold_I`.

    Returns:
        The settings of the whole, with `modes` if there are several; and the run of each fold by its place in the merged folder.

    Raises:
        FileNotFoundError, ValueError: If a run is no finished fold, has other settings, comes twice, or if folds are missing.
    """
    found: dict[str, dict[int, Path]] = {}
    whole: Settings | None = None
    first = Path()
    for path in list_runs(runs):
        run = RunFolder(path)
        settings = run.read_settings()
        if settings.fold is None:
            raise ValueError(f"Expected runs of single folds to merge. Received: {path}, which is none. Train one by --folds and --fold.")
        if not run.finished:
            raise ValueError(f"Expected finished runs to merge. Received: {path}, which is not. Go on with it by --resume.")
        if whole is None:
            whole, first = settings, path
        _check_settings(whole, settings, first, path)
        folds = found.setdefault(settings.mode or run.read_plan().mode, {})
        if (other := folds.setdefault(settings.fold, path)) is not path:
            raise ValueError(f"Expected each fold once. Received: fold {settings.fold} in {other} and in {path}. Leave one out.")
    if whole is None:
        raise ValueError("Expected runs to merge. Received: none. Name finished runs of single folds.")
    for mode, folds in found.items():
        if missing := [str(fold) for fold in range(whole.folds) if fold not in folds]:
            raise ValueError(
                f"Expected folds 0 to {whole.folds - 1} of mode '{mode}' to merge. Received: no fold {', '.join(missing)}. Train what is "
                f"missing by --folds {whole.folds} --fold NUMBER, and name its run too."
            )
    several = len(found) > 1
    parts = {f"{mode}/fold_{fold}" if several else f"fold_{fold}": folds[fold] for mode, folds in found.items() for fold in sorted(folds)}
    merged = replace(whole, fold=None, mode="" if several else whole.mode, modes=tuple(found) if several else (), name="")
    return merged, parts


def _check_settings(whole: Settings, settings: Settings, first: Path, path: Path) -> None:
    one, other = whole.to_json(), settings.to_json()
    for name in one | other:
        if name not in _OWN and not may_differ(name, one.get(name), other.get(name)):
            raise ValueError(
                f"Expected `{name}` {one.get(name)!r} in every run to merge, as {first} has it. Received: {other.get(name)!r} in {path}. "
                "Leave the run out, or train it anew."
            )


def check_parts(parts: Mapping[str, Path], tests: Sequence[Sequence[Case]], data: Path) -> None:
    """Checks that folds were trained on the same files, from the same model, and that the data here have their test cases.

    It warns of another program.

    Args:
        parts: The run of each fold, from `collect_folds`.
        tests: The test cases of each fold, as the data here give them.
        data: The folder of these data, for the error.

    Raises:
        ValueError: Otherwise, naming the run.
    """
    from modules.run.verify import read_data, read_init, read_origin

    first = next(iter(parts.values()))
    files, origin = _strip(read_data(RunFolder(first))), read_origin(RunFolder(first))
    for path in parts.values():
        run = RunFolder(path)
        own, record = _strip(read_data(run)), read_origin(run)
        for name in sorted(files | own):
            if files.get(name) != own.get(name):
                what = "missing" if name not in own else "new" if name not in files else "changed"
                raise ValueError(f"Expected the data of {first} in every run to merge. Received: {name} {what} in {path}. Train it anew.")
        fold = run.read_settings().fold or 0
        check_fields(record, {"splits": _SPLITS}, run.record, REMEDY, others=True)
        if record["splits"].get("test") != [case.case_id for case in tests[fold]]:
            raise ValueError(f"Expected the test cases of {path} in {data}. Received: others. Give the folder of its data by --data.")
        if _read_data_set(record) != _read_data_set(origin):
            raise ValueError(f"Expected channels and classes of {first} in every run to merge. Received: others in {path}. Train it anew.")
        if read_init(run).get("bundle_sha256") != read_init(RunFolder(first)).get("bundle_sha256"):
            raise ValueError(f"Expected the model of --init of {first} in every run to merge. Received: another in {path}. Train it anew.")
        for name in ("backend", "precision", "devices", "versions", "code_sha256"):
            if record[name] != origin[name]:
                log.warning("%s differs between %s and %s: the models may not be those of one command", name, first, path)


def _read_data_set(record: Mapping[str, Any]) -> dict[str, Any]:
    """Reads channels and classes from the record of a run, without the words for people; nothing of an earlier version's run."""
    content = record.get("data_set")
    return {name: value for name, value in content.items() if name != "found"} if isinstance(content, dict) else {}


def _strip(manifest: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Strips the splits, which differ from fold to fold, off the files and their hashes."""
    return {name: digest for name, (_, digest) in manifest.items()}
