"""Finds the reference label of each scan that is predicted, by its name."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modules.data.bids import find_subject, match_labels
from modules.data.case import Case, LabelRule
from modules.data.files import stem_of
from modules.data.layout_names import LABEL_ENDING


class LabelFolder:
    """The files in a folder of reference labels and below it, by their names."""

    def __init__(self, folder: Path, files: Sequence[Path], rule: LabelRule) -> None:
        """Takes the folder, the images and labels below it, and the model's rule for the names of labels."""
        self.folder, self._rule = folder, rule
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._by_stem[stem_of(file)].append(file)

    @functools.cached_property
    def _marked(self) -> dict[str, list[str]]:
        """The stems that end like labels, by what stands before: `a` has `a_seg` and `a_mask`."""
        marked = defaultdict(list)
        for stem in self._by_stem:
            if match := LABEL_ENDING.search(stem):
                marked[stem[: match.start()]].append(stem)
        return marked

    @functools.cached_property
    def _by_subject(self) -> dict[str, list[str]]:
        """The stems by the subject that BIDS names."""
        subjects = defaultdict(list)
        for stem in self._by_stem:
            if subject := find_subject(stem):
                subjects[subject].append(stem)
        return subjects

    def find(self, file: Path, name: str, folder: str) -> Path:
        """Finds an image's label: by the model's rule, by the image's name, by that with an ending, or as BIDS names it.

        Args:
            file: The image, of several channels the first.
            name: The case's name, without its folder.
            folder: The sub-folder of the output that its results go to. Labels may lie in such sub-folders too.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If there are several, and not one alone lies in the image's own sub-folder.
        """
        names = dict.fromkeys([self._rule.name_label(file.name), file.name])
        if stem_of(file).startswith(stem_of(Path(next(iter(names))))) and not stem_of(file).endswith("_0000"):
            # Only a channel's number may be taken away: p01 is not the label of p01_2019.
            names = {file.name: None}
        expected = dict.fromkeys([*(stem_of(Path(other)) for other in names), name])
        # Labels of several endings may differ, so they are one way.
        marked = [stem for one in expected for stem in self._marked.get(one, ())]
        bids = match_labels(name, self._by_subject.get(find_subject(name) or "", ()))
        ways = [
            [path for stem in stems for path in self._by_stem.get(stem, ()) if path != file]
            for stems in (*([stem] for stem in expected), marked, bids)
        ]
        found = next(filter(None, ways), [])
        if not found:
            raise FileNotFoundError(
                f"Expected a label for {file}. Received: no {' or '.join(names)} in {self.folder}. Without it, it is not scored."
            )
        near = [path for path in found if self._name_folder(path) == folder]
        found = near if len(near) == 1 else found
        if len(found) > 1:
            raise ValueError(f"Expected one label for {file}. Received: {found[0]} and {found[1]}. Name a folder with one of them.")
        return found[0]

    def take_shared(self, cases: Sequence[Case], folders: Sequence[str]) -> tuple[list[Case], list[Exception]]:
        """Takes a label away from cases that share it with others, except from the one in the label's own sub-folder.

        Scans of many people have one name, such as `T1`, and one label can be that of one person only.

        Args:
            cases: The cases.
            folders: The sub-folder of the output of each.

        Returns:
            The cases, and an error for each that lost its label.
        """
        users: dict[Path, list[int]] = defaultdict(list)
        for number, case in enumerate(cases):
            if case.label_path is not None:
                users[case.label_path].append(number)
        result: list[Case] = list(cases)
        lacking: list[Exception] = []
        for path, numbers in users.items():
            near = [number for number in numbers if folders[number] == self._name_folder(path)]
            for number in numbers if len(numbers) > 1 else ():
                if near == [number]:
                    continue
                other = next(cases[another].image_paths[0] for another in numbers if another != number)
                lacking.append(
                    ValueError(
                        f"Expected a label of its own for {cases[number].image_paths[0]}. Received: {path}, which {other} has too. Without "
                        "it, it is not scored. Put the labels into sub-folders like the images'."
                    )
                )
                result[number] = replace(result[number], label_path=None)
        return result, lacking

    def _name_folder(self, label: Path) -> str:
        """Returns the folder of a label below this one, with `/`; "" for this one itself."""
        name = label.parent.relative_to(self.folder).as_posix()
        return "" if name == "." else name
