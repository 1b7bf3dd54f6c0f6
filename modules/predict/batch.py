"""The cases of one call of predict.py: which are done, failed or there already, and a record that lets a later call go on."""

import json
import logging
import os
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.data.case import Case
from modules.data.documents import to_line
from modules.data.files import NIFTI_SUFFIXES, PICTURE_SUFFIXES, append_line, fingerprint_files, name_result_suffix, suffix_of, sweep
from modules.hardware import is_lack_of_memory
from modules.predict.case_log import CaseLog
from modules.predict.outputs import SAVED

log = logging.getLogger("mri")

RECORD = "predictions.jsonl"


class Batch:
    """The cases of one call, and what becomes of each. A bad case never ends the others.

    A record in the output's folder says which image and model each label map was made of. A case whose files are all there, made of the
    same image in the same way, is skipped. Files that were made of another image are never replaced without `overwrite`. Several
    calls may predict different cases into one folder at the same time.

    Attributes:
        output: Folder of the results.
        record_path: File of the record.
        todo: The cases to predict.
        skipped: The cases whose files are there already.
        done: The cases that were predicted.
        failed: The cases that cannot be predicted.
        errors: The errors so far, of cases and of paths.
    """

    def __init__(
        self,
        output: Path,
        made_by: Mapping[str, Any],
        *,
        probabilities: bool = False,
        pictures: bool = True,
        label_format: str = "",
        save: Sequence[str] = (),
        case_log: CaseLog | None = None,
    ) -> None:
        """Reads the record of earlier calls.

        Args:
            output: Folder of the results.
            made_by: All that decides about a label map besides its image: models and options, as plain values.
            probabilities: Whether the probabilities are wanted too.
            pictures: Whether overlays are drawn.
            label_format: The one of `LABEL_FORMATS` that label maps are wanted in; "" for the scan's own.
            save: The kinds of files that are wanted too, of `modules.predict.outputs.SAVED`.
            case_log: The log that is told what becomes of each case.

        Raises:
            OSError: If the output cannot be a folder.
        """
        place = next((part for part in (output, *output.absolute().parents) if part.exists()), output)
        if place.exists() and not place.is_dir():
            raise OSError(f"Expected a folder for the results at {output}. Received: a file, {place}. Choose another `--output`.")
        self.output, self.record_path = output, output / RECORD
        self.todo: list[Case] = []
        self.skipped: list[Case] = []
        self.done: list[Case] = []
        self.failed: list[Case] = []
        self.errors: list[Exception] = []
        self._made_by = dict(made_by)
        self._probabilities, self._pictures = probabilities, pictures
        self._label_format = label_format
        self._save = save
        self._log = case_log or CaseLog()
        self._record = _read_record(self.record_path)

    def add(self, cases: Iterable[Case], scored: Collection[str] | None, *, overwrite: bool = False) -> None:
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
        for case in self.skipped:
            self._log.tell_skipped(case.case_id, self.list_outputs(case))
        if removed := sum(map(sweep, {self.list_outputs(case)["prediction"].parent for case in self.todo} | {self.output})):
            log.info("%d half-written file(s) of a call that was killed are removed", removed)
        self._log.start(len(self.todo))

    def find_whole(self, cases: Iterable[Case], scored: Collection[str]) -> list[Case]:
        """Finds the cases that are not predicted in this call, and of which nothing is missing, as the record is now; see `add`."""
        self._record, own, scored = _read_record(self.record_path), {case.case_id for case in self.todo}, set(scored)
        return [case for case in cases if case.case_id not in own and self._is_whole(case, scored)]

    def list_outputs(self, case: Case) -> dict[str, Path]:
        """Returns the files of a case by kind: prediction and, where they are wanted, overlay, probabilities and those of `SAVED`."""
        source = case.image_paths[0]
        suffix = name_result_suffix(source, self._label_format)
        files = {"prediction": f"_prediction{suffix}"} | ({"overlay": "_overlay.png"} if self._pictures else {})
        if self._probabilities:
            own = suffix_of(source)
            files["probabilities"] = f"_probabilities{'.npz' if own in PICTURE_SUFFIXES else own if own in NIFTI_SUFFIXES else '.nii.gz'}"
        files |= {kind: f"_prediction{SAVED[kind]}" for kind in self._save}
        return {kind: self.output / f"{case.case_id}{ending}" for kind, ending in files.items()}

    def begin(self, case: Case) -> None:
        """Notes that the files of a case are about to be written, so that half of them are known to be its own."""
        self._note(case, {})

    def finish(self, case: Case, result: Mapping[str, Any]) -> None:
        """Notes that all files of a case are written, and what was found in it."""
        made = {"sources": _fingerprint_images(case), "made_by": self._made_by}
        files, earlier = self._name_files(case), self._record.get(case.case_id, {})
        if made.items() <= earlier.items():
            # Files that only an earlier call wanted are those of this image and model too.
            files += [name for name in earlier.get("files", []) if name not in files]
        self._note(case, {**made, "label": _fingerprint_label(case), "files": files, "result": dict(result)})
        self.done.append(case)

    def tell_done(self, case: Case) -> None:
        """Says in the log that a case is predicted, and scored where that is wanted."""
        self._log.tell_done(case.case_id, self.list_outputs(case))

    def list_finished(self) -> list[dict[str, Any]]:
        """Lists the entries of the finished cases of all calls whose label maps are still there."""
        entries = _read_record(self.record_path).values()
        return [entry for entry in entries if entry.get("result") and (self.output / entry["files"][0]).is_file()]

    def fail(self, case: Case, error: Exception) -> None:
        """Notes a case that cannot be predicted, and says why in the log."""
        if is_lack_of_memory(error):
            error = ValueError(
                f"Expected an image that fits in memory. Received: {case.image_paths[0]}. Resample it, or use a larger machine."
            )
        self.failed.append(case)
        self.refuse(error, case.case_id)

    def refuse(self, error: Exception, name: str | None = None) -> None:
        """Notes a path that cannot be used, or a label that is not there, and says so in the log; `name` is that of a case."""
        # Its traceback would keep the arrays of the case in memory.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.errors.append(error)
        self._log.tell_failed(name, to_line(error))

    @contextmanager
    def attempt(self) -> Generator[None, None, None]:
        """Notes an error of the block, which writes what concerns all cases, and goes on: the label maps are there already."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.refuse(error)

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
        # A file that is there may have been made by an earlier model.
        if not entry.get("result") or not set(self._name_files(case)) <= set(entry["files"]):
            return False
        # A label that was corrected since is scored anew.
        wanted = scored is not None and case.label_path is not None
        if wanted and (case.case_id not in scored or entry.get("label") != _fingerprint_label(case)):
            return False
        return all(path.is_file() for path in self.list_outputs(case).values())

    def _name_files(self, case: Case) -> list[str]:
        return [path.relative_to(self.output).as_posix() for path in self.list_outputs(case).values()]

    def _note(self, case: Case, values: Mapping[str, Any]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        # We append one line for each case. Writing the whole record anew for each of 100,000 slices would take hours.
        append_line(self.record_path, json.dumps({"case": case.case_id, "images": _list_places(case), **values}))


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
