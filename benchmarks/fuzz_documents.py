"""The mutants of documents for `fuzz.py`: bundles and data sets whose JSON, files or hashes are nonsense."""

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_mutants import Rng, pick, spoil_bytes

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 254, 255, 256, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "\x1b[31m", "a\nb", "\ud800", "..", "/etc/passwd", "0", "1", "\u0663", [], {}, [[]], [None], [0], [1, 1], [16, 32], [0, 1, 2],
    {"a": 1}, {"0": "x"}, ["x", "x"], [float("nan")], [1e308, 1], [10**30, 1], [[1, 2]], [["(", ""]], [["a", "\\9"]], {"values": {}},
)  # fmt: skip


def list_places(content: Any) -> list[tuple]:
    """Lists the places of all values within a document, as tuples of keys and indices."""
    places, todo = [], [((), content)]
    while todo:
        place, value = todo.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        inner = [((*place, key), item) for key, item in items]
        places += [place for place, _ in inner]
        todo += inner
    return places


def spoil_document(rng: Rng, content: Any) -> tuple[Any, str]:
    """Replaces, removes, doubles or adds a value at a random place."""
    content = json.loads(json.dumps(content))
    places = list_places(content)
    if not places:
        return pick(rng, JUNK), "all"
    place = pick(rng, places)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    way = pick(rng, ("junk", "junk", "junk", "junk", "huge", "deep", "remove", "add", "swap"))
    value = parent[place[-1]]
    if way == "junk":
        parent[place[-1]] = pick(rng, JUNK)
    elif way == "huge":
        parent[place[-1]] = pick(rng, ("x" * (10 << 20), ["x"] * 100_000, {str(index): index for index in range(10_000)}))
    elif way == "deep":
        for _ in range(pick(rng, (3, 70, 500))):
            value = [value]
        parent[place[-1]] = value
    elif way == "remove":
        del parent[place[-1]]
    elif way == "swap":
        parent[place[-1]] = copy.deepcopy(content[pick(rng, tuple(content))]) if isinstance(content, dict) and content else None
    elif isinstance(parent, dict):
        parent[pick(rng, ("x", "", "../x", "/x", "99", "-1", "1.5", "x" * 100_000))] = pick(rng, JUNK)
    else:
        parent.append(pick(rng, JUNK))
    return content, f"{way} at {'.'.join(map(str, place))[:60]}"


def spoil_text(rng: Rng, text: bytes) -> tuple[bytes, str]:
    """Spoils the text of a document."""
    key = b'"' + text.split(b'"')[1] + b'": 1, ' if text.count(b'"') > 1 else b""
    options: tuple[tuple[str, Callable[[], bytes]], ...] = (
        ("empty", lambda: b""),
        ("not UTF-8", lambda: text.replace(b"a", b"\xff", 1)),
        ("byte order mark", lambda: b"\xef\xbb\xbf" + text),
        ("UTF-16", lambda: text.decode("utf-8").encode("utf-16")),
        ("deep", lambda: b"[" * pick(rng, (100, 100_000, 3_000_000))),
        ("a key twice", lambda: text.replace(b"{", b"{" + key, 1)),
        ("long number", lambda: text.replace(b"1", b"9" * 5_000, 1)),
        ("huge", lambda: text + b" " * (6 << 20)),
        ("no object", lambda: pick(rng, (b"[]", b"3", b"null", b'"x"', b"NaN", b"true"))),
    )
    if rng.random() < 0.5:
        return spoil_bytes(rng, text)
    name, make = pick(rng, options)
    return make(), name


def hash_description(content: Any) -> str:
    """Returns the hash that a bundle's description has of itself."""
    content = {name: value for name, value in content.items() if name != "bundle_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mutate_bundle(rng: Rng, seed: Path, folder: Path) -> str:
    """Writes a mutant of the bundle `seed` into the empty `folder`; returns what was done."""
    files = {path.name: path.read_bytes() for path in seed.iterdir()}
    content = json.loads(files["bundle.json"])
    way = pick(rng, ("field", "field", "field", "field", "text", "model", "config", "manifest", "manifest"))
    rehash = rng.random() < 0.85
    what = way
    if way == "field":
        content, what = spoil_document(rng, content)
    elif way == "model":
        files["model.keras"], what = spoil_bytes(rng, files["model.keras"])
    elif way == "config":
        files["model.keras"], what = _spoil_archive(rng, files["model.keras"])
    elif way == "manifest":
        outside = folder.parent / "outside.bin"
        outside.write_bytes(b"outside")
        digest = hashlib.sha256(b"outside").hexdigest()
        what = pick(rng, ("../outside.bin", str(outside), "a file more", "link out", "linked model", "unlisted", "no model"))
        if what == "unlisted":
            files[pick(rng, ("openvino.xml", "notes.txt", ".DS_Store", "weights.h5"))] = b"outside"
        elif what == "no model":
            content["files_sha256"] = {}
        elif what in ("link out", "linked model"):
            name = "openvino.bin" if what == "link out" else "model.keras"
            outside.write_bytes(files.get(name, b"outside"))
            files.pop(name, None)
            content["files_sha256"][name] = hashlib.sha256(outside.read_bytes()).hexdigest()
            (folder / name).symlink_to(outside)
        else:
            content["files_sha256"]["notes.txt" if what == "a file more" else what] = digest
            files["notes.txt"] = b"outside"
    if way in ("model", "config") and rehash:
        content["files_sha256"]["model.keras"] = hashlib.sha256(files["model.keras"]).hexdigest()
    if isinstance(content, dict) and rehash:
        content["bundle_sha256"] = hash_description(content)
    files["bundle.json"] = json.dumps(content, indent=1).encode()
    if way == "text":
        files["bundle.json"], what = spoil_text(rng, files["bundle.json"])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"{way}: {what}{', hashes mended' * rehash}"


def _spoil_archive(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """Spoils a part of a `.keras` archive, or packs zeros into it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name, what = pick(rng, tuple(parts)), "bytes"
    way = zipfile.ZIP_STORED
    if name == "config.json" and rng.random() < 0.8:
        content, what = spoil_document(rng, json.loads(parts[name]))
        parts[name] = json.dumps(content).encode()
    elif rng.random() < 0.3:
        parts["zeros"], way, what = bytes(64 << 20), zipfile.ZIP_DEFLATED, "a bomb"
    elif rng.random() < 0.2:
        del parts[name]
        what = "removed"
    else:
        parts[name], what = spoil_bytes(rng, parts[name])
    with zipfile.ZipFile(result, "w", way) as archive:
        for part, body in parts.items():
            archive.writestr(part, body)
    return result.getvalue(), f"{name} {what}"


DATASETS: tuple[dict[str, Any], ...] = (
    {
        "name": "d", "description": "a set", "licence": "CC0", "modality": {"0": "T1"}, "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/s{i}.nii.gz", "label": f"./labelsTr/s{i}.nii.gz"} for i in range(3)],
    },
    {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz", "numTraining": 2},
    {
        "channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz",
        "dataset": {f"s{i}": {"images": [f"imagesTr/s{i}.nii.gz"], "label": f"labelsTr/s{i}.nii.gz"} for i in range(3)},
    },
)  # fmt: skip


def mutate_dataset(rng: Rng, folder: Path) -> str:
    """Writes a data set with a mutant of `dataset.json` into the empty `folder`; returns what was done."""
    number = int(rng.integers(len(DATASETS)))
    content: Any = DATASETS[number]
    stems = [f"s{i}_{channel:04d}" for i in range(2) for channel in range(2)] if number == 1 else ["s0", "s1", "s2"]
    for sub, names in (("imagesTr", stems), ("labelsTr", sorted({stem[:2] for stem in stems}))):
        (folder / sub).mkdir()
        for name in names:
            (folder / sub / f"{name}.nii.gz").touch()
    if rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 3))):
            content, what = spoil_document(rng, content)
        text = json.dumps(content).encode()
    else:
        text, what = spoil_text(rng, json.dumps(content).encode())
    (folder / "dataset.json").write_bytes(text)
    return f"layout {number}: {what}"
