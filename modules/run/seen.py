"""The scans that a model has seen: written into its bundle, and compared with the scans that shall judge what is trained from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.data.cache import PreparedCase
from modules.data.case import Case
from modules.data.documents import read_json
from modules.run.folder import REMEDY, RunFolder

# The splits that shape a model, with what their scans did to it.
ROLES = {"train": "trained", "validate": "chose the best epoch of"}
# The first digits of a SHA-256 that a bundle keeps: 48 bits, by which ten thousand scans hardly ever have two alike.
_DIGITS = 12
_MOST_NAMES = 10


@dataclass(frozen=True)
class Seen:
    """The scans that a model has seen.

    Attributes:
        files: First digits of the SHA-256 of image files, by the split of `ROLES` that they were in.
        cases: Case identifiers likewise, where the model was trained on the same data set.
        known: Whether anything tells.
    """

    files: Mapping[str, frozenset[str]]
    cases: Mapping[str, frozenset[str]]
    known: bool

    def find(self, splits: Mapping[str, Sequence[Case]], prepared: Mapping[str, Sequence[PreparedCase]]) -> dict[str, dict[str, list[str]]]:
        """Finds the subjects of a new run that the model has seen.

        A file that several subjects have, such as a black slice, tells nothing.

        Returns:
            The names of subjects, sorted, by our split ("validate", "test") and then by the split of `ROLES` that showed them. Those that
            validate here and did so there are no leak.
        """
        owners: dict[str, set[str]] = {}
        for case, digests in _list_digests(splits, prepared):
            for digest in digests:
                owners.setdefault(digest, set()).add(case.subject_id)
        found: dict[str, dict[str, list[str]]] = {}
        for role in ROLES:
            files = {digest for digest in self.files.get(role, ()) if len(owners.get(digest, ())) == 1}
            ids = self.cases.get(role, frozenset())
            subjects = {case.subject_id for case, digests in _list_digests(splits, prepared) if case.case_id in ids or files & set(digests)}
            for split in ("validate", "test"):
                names = subjects & {case.subject_id for case in splits[split]}
                found.setdefault(split, {})[role] = [] if split == role else sorted(names)
        return found


def read_seen(provenance: Mapping[str, Any], run: RunFolder | None, dataset: str) -> Seen:
    """Reads which scans a model has seen.

    Args:
        provenance: That of its bundle.
        run: Its run, where the bundle lies in one. An older bundle does not tell by itself.
        dataset: The data set whose case identifiers mean the same; "" for none.
    """
    told = provenance.get("seen")
    told = {role: text for role, text in told.items() if isinstance(text, str)} if isinstance(told, dict) else {}
    files = {role: set(told.get(role, "").split()) for role in ROLES}
    cases: dict[str, set[str]] = {role: set() for role in ROLES}
    if run is not None and run.data.is_file() and run.record.is_file():
        content, record = read_json(run.data, REMEDY), run.read_record()
        for entry in content.values() if isinstance(content, dict) else ():
            if isinstance(entry, list) and len(entry) == 2 and entry[0] in ROLES:
                files[entry[0]].add(find_digest(str(entry[1])))
        splits, config = record.get("splits"), record["config"]
        if dataset and isinstance(splits, dict) and isinstance(config, dict) and config.get("dataset") == dataset:
            cases = {role: set(map(str, splits.get(role) or ())) for role in ROLES}
    known = any(files.values()) or any(cases.values())
    return Seen({role: frozenset(names) for role, names in files.items()}, {role: frozenset(ids) for role, ids in cases.items()}, known)


def write_seen(splits: Mapping[str, Sequence[Case]], prepared: Mapping[str, Sequence[PreparedCase]], before: Seen | None) -> dict[str, str]:
    """Makes the entry of a bundle's provenance that `read_seen` reads: the run's own scans, and those that its first weights had seen."""
    files = {role: set(before.files.get(role, ()) if before else ()) for role in ROLES}
    for role in ROLES:
        for _, digests in _list_digests({role: splits.get(role, ())}, prepared):
            files[role] |= digests
    return {role: " ".join(sorted(names)) for role, names in files.items()}


def describe_seen(found: Mapping[str, Mapping[str, Sequence[str]]], splits: Mapping[str, Sequence[Case]], source: str) -> list[str]:
    """Writes a warning for each split that holds subjects that the model in `source` has seen, naming them."""
    lines = []
    for split, roles in found.items():
        for role, names in roles.items():
            if names:
                number = len({case.subject_id for case in splits[split]})
                more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
                lines.append(
                    f"warning: {len(names)} of {number} {split} subjects {ROLES[role]} the model of --init, {source}: "
                    f"{', '.join(names[:_MOST_NAMES])}{more}. So {split} scores are not of unseen scans. Divide as it did, or take another."
                )
    return lines


def find_digest(sha256: str) -> str:
    """Returns the first digits of a SHA-256, by which a scan is known again."""
    return sha256[:_DIGITS]


def _list_digests(splits: Mapping[str, Sequence[Case]], prepared: Mapping[str, Sequence[PreparedCase]]) -> Iterable[tuple[Case, set[str]]]:
    """Yields each case with the first digits of the SHA-256 of its image files."""
    for split, cases in splits.items():
        for case, ready in zip(cases, prepared.get(split, ()), strict=False):
            yield case, {find_digest(digest) for digest in ready.sources_sha256[: len(case.image_paths)]}
