"""Proofs of a run: hashes of its data files, its program and its weights, and checks that they are still the same."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from modules.data.case import Case
from modules.data.files import hash_file
from modules.data.formats import hash_source

# {file, relative to the data set's folder: [its split, SHA-256 of its bytes]}
Manifest = dict[str, list[str]]


def make_manifest(
    splits: Mapping[str, Sequence[Case]], root: Path, hashes: Iterable[str] | None = None, tables: Iterable[Path] = ()
) -> Manifest:
    """Describes the data of a run.

    Args:
        splits: The run's labelled cases by split.
        root: The data set's folder.
        hashes: SHA-256 of each file of each case, the label's last, if they are known; otherwise every file is read.
        tables: Files that say what belongs together and what it means. One outside of the folder is known by its name.
    """
    files = [
        (path, uid, split)
        for split, cases in splits.items()
        for case in cases
        for path, uid in zip_longest((*case.image_paths, case.label_path), case.series, fillvalue="")
        if path
    ]
    hashes = (hash_source(path, uid) for path, uid, _ in files) if hashes is None else hashes
    manifest = {_name_file(path, root): [split, digest] for (path, _, split), digest in zip(files, hashes, strict=True)}
    names = {path: _name_file(path, root) if path.is_relative_to(root) else path.name for path in tables}
    return manifest | {name: ["table", hash_file(path)] for path, name in names.items()}


def hash_manifest(manifest: Manifest) -> str:
    """Returns the SHA-256 of a manifest, which is the same for the same bytes in the same splits, wherever the folder lies."""
    lines = sorted(f"{split} {digest} {name}\n" for name, (split, digest) in manifest.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def hash_code(root: Path) -> str:
    """Returns the SHA-256 of the program: of all `.py` and `.toml` files at the root and in `modules`, by name.

    An installed package has no `modules` beside the commands: there they lie in a folder of the package, which is hashed whole.
    """
    whole, rooms = (root, root / "modules") if (root / "modules").is_dir() else (root.parent, root.parent)
    files = sorted({*root.glob("*.py"), *rooms.rglob("*.py"), *rooms.rglob("*.toml")})
    lines = [f"{path.relative_to(whole).as_posix()} {hash_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_data(begun: Manifest, now: Manifest, run: Path) -> None:
    """Checks that the data are those that a run began with.

    Raises:
        ValueError: If a file was changed, moved to another split, added or removed. It names the first, and counts the others.
    """
    for what, names in (
        ("changed", [name for name in begun if name in now and begun[name][1] != now[name][1]]),
        ("moved to another split", [name for name in begun if name in now and begun[name][0] != now[name][0]]),
        ("missing", [name for name in begun if name not in now]),
        ("new", [name for name in now if name not in begun]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"Expected the data that {run} began with. Received: {names[0]}{more} {what}. Restore it, or start a new run.")


def check_equal(what: str, begun: object, now: object, run: Path, *, remedy: str = "Restore it") -> None:
    """Checks that a value is still that of the run; raises ValueError naming both."""
    if begun != now:
        raise ValueError(f"Expected the {what} of {run}, {begun!s:.16}. Received: {now!s:.16}. {remedy}, or start a new run.")


def _name_file(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def hash_weights(model) -> str:
    """Returns the SHA-256 over the names, shapes and bytes of all weights, in order. It is equal only for bit-identical weights."""
    from keras import ops

    digest = hashlib.sha256()
    for weight in model.weights:
        array = ops.convert_to_numpy(weight)
        # Keras numbers layers by how many the process made before, so only the last part of the path is the weight's own.
        digest.update(f"{weight.path.rpartition('/')[2]} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
