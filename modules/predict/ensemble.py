"""The folder of an ensemble: several bundles whose probabilities are averaged, and a manifest that says which and why.

The folder holds `ensemble.json` and a sub-folder for each member. It may be moved anywhere.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import modules
from modules.data.documents import Rule, anything, check_fields, many, number, optional, read_json, text, whole
from modules.data.files import TEMPORARY, hash_file, name_failure, replace_file
from modules.predict.bundle import INTENDED_USE, find_bundle, read_description
from modules.predict.schema import DESCRIPTION_FILE, HASH, MOST_BYTES

MANIFEST = "ensemble.json"
FORMAT = 1
_REMEDY = "Copy the ensemble again, or train it again."
_NAME = Rule(
    "a folder's name of 1 to 100 letters, digits, '_', '+' or '-'",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_+-]{1,100}", value)),
)
_FIELDS = {
    "format": whole(1, 99),
    "version": text(),
    "members": many(anything(), 1, 1_000),
    "chosen": text(),
    "reason": text(1_000),
    "candidates": many(anything(), 1, 1_000),
    "intended_use": text(2_000),
    "ensemble_sha256": HASH,
}
_MEMBER = {"name": _NAME, "bundle_sha256": HASH}
_CANDIDATE = {"name": text(), "mean": optional(number(0, 1))}


def write_ensemble(folder: Path, members: Mapping[str, Path], *, chosen: str, reason: str, candidates: list[dict[str, Any]]) -> None:
    """Writes an ensemble; `folder` appears whole or not at all, and one that is there is replaced.

    Files of the members are hard links where the file system has them, so that they take no room. All our writers replace files.

    Args:
        folder: The folder to write.
        members: The bundle of each member, or its run, by the member's name.
        chosen: The name of the chosen candidate.
        reason: Why it was chosen, in a sentence.
        candidates: Name and out-of-fold scores of all candidates, as plain values.

    Raises:
        FileNotFoundError, ValueError: If a member is no bundle.
    """
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    with name_failure(folder):
        temporary.mkdir(parents=True)
    listed = []
    for name, run in members.items():
        bundle = find_bundle(run)
        (temporary / name).mkdir()
        for file in (DESCRIPTION_FILE, *read_description(bundle)["files_sha256"]):
            if (bundle / file).is_file():
                _link(bundle / file, temporary / name / file)
        listed.append({"name": name, "bundle_sha256": hash_file(bundle / DESCRIPTION_FILE)})
    manifest = {
        "format": FORMAT,
        "version": modules.__version__,
        "members": listed,
        "chosen": chosen,
        "reason": reason,
        "candidates": candidates,
        "intended_use": INTENDED_USE,
    }
    with replace_file(temporary / MANIFEST) as path:
        path.write_text(json.dumps(manifest | {"ensemble_sha256": _hash(manifest)}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _link(source: Path, target: Path) -> None:
    with name_failure(target):
        try:
            os.link(source, target)
        except OSError:
            # Another file system, or one without links.
            shutil.copy2(source, target)


def find_ensemble(folder: Path) -> Path | None:
    """Finds the folder of an ensemble, given that folder or the run that contains it; None where there is none."""
    return next((place for place in (folder, folder / "ensemble") if (place / MANIFEST).is_file()), None)


def list_members(folder: Path) -> list[Path]:
    """Lists the bundles of an ensemble, in the manifest's order.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If the manifest or a member's description was altered, a field is not as it should be, or a link leads out of the
            folder. The hashes in a member's description are checked when it is loaded.
    """
    manifest = _read_manifest(folder / MANIFEST)
    places = []
    for member in manifest["members"]:
        place = folder / member["name"]
        for path in (place, place / DESCRIPTION_FILE):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"Expected a member of the ensemble at {path}. Received: a link out of its folder. Copy the member there.")
        if hash_file(find_bundle(place) / DESCRIPTION_FILE) != member["bundle_sha256"]:
            raise ValueError(f"Expected {place / DESCRIPTION_FILE} as {MANIFEST} knows it. Received: a file altered since. {_REMEDY}")
        places.append(place)
    return places


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path, _REMEDY, MOST_BYTES)
    check_fields(manifest, _FIELDS, path, _REMEDY)
    if manifest["format"] != FORMAT:
        raise ValueError(f"Expected an ensemble of `format` {FORMAT} in {path}. Received: {manifest['format']}. Update this program.")
    for name, rules in (("members", _MEMBER), ("candidates", _CANDIDATE)):
        for index, item in enumerate(manifest[name]):
            check_fields(item, rules, path, _REMEDY, within=f"{name}.{index}", others=name == "candidates")
    names = [member["name"] for member in manifest["members"]]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected members of distinct names in {path}. Received: {', '.join(names)}. {_REMEDY}")
    if _hash(manifest) != manifest["ensemble_sha256"]:
        raise ValueError(f"Expected {path} as it was saved. Received: a file altered since. {_REMEDY}")
    return manifest


def _hash(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "ensemble_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
