"""Warns of scans that leave what a model was trained on."""

import logging
from collections.abc import Sequence

from modules.data.case import Case, Volume
from modules.predict.bundle import ModelBundle

log = logging.getLogger("mri")

# So many scans are named; the others are counted.
MOST_NAMED = 5


class Departures:
    """Warns, a line a scan, of scans that leave the ranges of their models' training cases.

    It names the first `MOST_NAMED`, and `summarise` counts the others. Slices of one scan count once.
    """

    def __init__(self, bundles: Sequence[ModelBundle]) -> None:
        """Takes the models. One that knows no ranges, as before format 5, warns of nothing."""
        self._bundles = bundles
        self._scans: set[str] = set()

    def check(self, case: Case, image: Volume) -> None:
        """Warns of a scan, if it leaves the ranges of any model."""
        name = case.volume_id or case.case_id
        if name in self._scans or not (found := self.find(image)):
            return
        self._scans.add(name)
        if len(self._scans) <= MOST_NAMED:
            log.warning(
                "%s leaves what the model was trained on: %s. Look at its label map, bring the scan to these ranges, or train on "
                "scans like it",
                case.image_paths[0],
                "; ".join(found),
            )

    def find(self, image: Volume) -> list[str]:
        """Describes how a scan leaves the ranges of the first model that it leaves, in parts of a sentence; none if it leaves none."""
        for bundle in self._bundles:
            ranges = bundle.trained
            if ranges and (found := ranges.find_departures(image, bundle.preprocessing, bundle.channels, bundle.window.across)):
                return found
        return []

    def summarise(self) -> None:
        """Says how many scans left the ranges, if not all were named."""
        if len(self._scans) > MOST_NAMED:
            log.warning("%d scans leave what the model was trained on; the first %d are named above", len(self._scans), MOST_NAMED)
