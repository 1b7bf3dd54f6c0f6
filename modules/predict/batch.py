"""The cases of one call of predict.py: which are done, failed or there already, and a record that lets a later call go on."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.documents import to_line
from modules.data.files import PICTURE_SUFFIXES, fingerprint_files, name_result_suffix
from modules.hardware import is_lack_of_memory

log = logging.getLogger("mri")

RECORD = "predictions.jsonl"


class Batch:
    """The cases of one call, and what becomes of each. A bad case never ends the others.

    A record in the output's folder says which image and model each label map was made of. A case whose files are all there, made of the
    same image in the same way, is skipped. Files that were made of another image are never replaced without `overwrite`.

    Attributes:
        todo: The cases to predict.
        skipped: The cases whose files are there already.
        done: The cases that were predicted.
        failed: The cases that cannot be predicted.
        errors: The errors so far, of cases and of paths.
    """

    def __init__(self, output: Path, made_by: Mapping[str, Any], *, probabilities: bool = False, pictures: bool = True) -> None:
        """Reads the record of earlier calls.

        Args:
            output: Folder of the results.
            made_by: All that decides about a label map besides its image: models and options, as plain values.
            probabilities: Whether the probabilities are wanted too.
            pictures: Whether overlays are drawn.

        Raises:
            OSError: If the output cannot be a folder.
        """
        place = next((part for part in (output, *output.absolute().parents) if part.exists()), output)
        if place.exists() and not place.is_dir():
            raise OSError(f"Expected a folder for the results at {output}. Received: a file, {place}. Choose another `--output`.")
        self.output = output
        self.todo: list[Case] = []
        self.skipped: list[Case] = []
        self.done: list[Case] = []
        self.failed: list[Case] = []
        self.errors: list[Exception] = []
        self._made_by = dict(made_by)
        self._probabilities, self._pictures = probabilities, pictures
        self._record = _read_record(output / RECORD)

    def add(self, cases: Iterable[Case], scored: Iterable[str] | None, *, overwrite: bool = False) -> None:
        """Sorts cases into those to predict, those to skip, and those that would replace another image's files.

        Args:
            cases: The cases.
            scored: Identifiers of the cases that have scores already; None where no scores are wanted. Slices of one scan are scored
                together, so they are skipped together or not at all.
            overwrite: Whether to predict all of them.
        """
        scored = None if scored is None else set(scored)
        scans: dict[str, list[Case]] = {}
        for case in cases:
            if not overwrite and (other := self._find_other(case)):
                self.fail(case, ValueError(other))
            else:
                scan = case.volume_id if scored is not None and case.volume_id else case.case_id
                scans.setdefault(scan, []).append(case)
        for members in scans.values():
            whole = not overwrite and all(self._is_whole(case, scored) for case in members)
            (self.skipped if whole else self.todo).extend(members)

    def list_outputs(self, case: Case) -> dict[str, Path]:
        """Returns the files of a case by kind: prediction and, where they are wanted, overlay and probabilities."""
        suffix = name_result_suffix(case.image_paths[0])
        files = {"prediction": f"_prediction{suffix}"} | ({"overlay": "_overlay.png"} if self._pictures else {})
        if self._probabilities:
            files["probabilities"] = f"_probabilities{'.npz' if suffix in PICTURE_SUFFIXES else suffix}"
        return {kind: self.output / f"{case.case_id}{ending}" for kind, ending in files.items()}

    def begin(self, case: Case) -> None:
        """Notes that the files of a case are about to be written, so that half of them are known to be its own."""
        self._note(case, {})

    def finish(self, case: Case) -> None:
        """Notes that all files of a case are written."""
        self._note(case, {"sources": _fingerprint_images(case), "label": _fingerprint_label(case), "made_by": self._made_by})
        self.done.append(case)

    def fail(self, case: Case, error: Exception) -> None:
        """Notes a case that cannot be predicted, and says why in the log."""
        if is_lack_of_memory(error):
            error = ValueError(
                f"Expected an image that fits in memory. Received: {case.image_paths[0]}. Resample it, or use a larger machine."
            )
        self.failed.append(case)
        self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Notes a path that cannot be used, or a label that is not there, and says so in the log."""
        self.errors.append(error)
        log.error("failed: %s", to_line(error))

    def describe(self) -> str:
        """Returns a line that counts what became of the cases."""
        text = f"{len(self.done)} done, {len(self.errors)} failed, {len(self.skipped)} skipped"
        if self.skipped:
            names = ", ".join(case.case_id for case in self.skipped[:8]) + (", ..." if len(self.skipped) > 8 else "")
            text += f", whose files are there already ({names}); --overwrite predicts them again"
        return text

    def _find_other(self, case: Case) -> str:
        """Returns an error text if a file of the case was made of another image, else ""."""
        path = next((path for path in self.list_outputs(case).values() if path.exists()), None)
        known = self._record.get(case.case_id, {}).get("images")
        if path is None or known == _list_places(case):
            return ""
        other = f"made of {known[0]}" if known else f"which is not in {RECORD}"
        return (
            f"Expected no other image's results at {path} for {case.image_paths[0]}. Received: a file {other}. "
            "Name another --output, or replace it with --overwrite."
        )

    def _is_whole(self, case: Case, scored: set[str] | None) -> bool:
        """Tells whether nothing is missing of a case."""
        entry = self._record.get(case.case_id, {})
        if entry.get("made_by") != self._made_by or entry.get("sources") != _fingerprint_images(case):
            return False
        # A label that was corrected since is scored anew.
        wanted = scored is not None and case.label_path is not None
        if wanted and (case.case_id not in scored or entry.get("label") != _fingerprint_label(case)):
            return False
        return all(path.is_file() for path in self.list_outputs(case).values())

    def _note(self, case: Case, values: Mapping[str, Any]) -> None:
        path = self.output / RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        # We append one line for each case. Writing the whole record anew for each of 100,000 slices would take hours.
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case.case_id, "images": _list_places(case), **values}) + "\n")


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the last entry of each case. A line that a killed call left half written is passed over."""
    entries: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("case"), str) and isinstance(entry.get("images"), list) and entry["images"]:
            entries[entry["case"]] = entry
    return entries


def _list_places(case: Case) -> list[str]:
    """Lists the places of a case's images, and which series of a folder each is.

    A linked folder is resolved; a linked file, as in a git-annex, is not.
    """
    places = [os.path.join(os.path.realpath(path.parent), path.name) for path in case.image_paths]
    series = case.series or ("",) * len(places)
    return [f"{place} (series {uid})" if uid else place for place, uid in zip(places, series, strict=True)]


def _fingerprint_images(case: Case) -> str:
    return _fingerprint(replace(case, label_path=None))


def _fingerprint_label(case: Case) -> str:
    return _fingerprint(replace(case, image_paths=(), series=()))


def _fingerprint(case: Case) -> str:
    """Returns a hash that changes with the files of a case; "" where one is not there or cannot be read."""
    try:
        return fingerprint_files(case.list_files())
    except (OSError, ValueError):
        return ""


def find_incomplete(failed: Sequence[Case]) -> set[str]:
    """Returns the scans that lack a slice: the other slices together do not give the scan's score."""
    return {case.volume_id for case in failed if case.volume_id}
