"""Shows how far predictions are."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from modules.predict.cases import PredictionOptions
from modules.predict.windows import Tiling

log = logging.getLogger("mri")
T = TypeVar("T")
# A case of fewer batches is done before anybody reads how it is cut.
MANY_BATCHES = 20


class PredictionProgress:
    """Progress bars of predictions: one over cases, and one over windows where a case takes many.

    The log names the windows of a case that takes long.
    """

    def __init__(self, cases: int, title: str) -> None:
        """Shows the bar over cases.

        Args:
            cases: Number of cases.
            title: The bar's name.
        """
        from tqdm import tqdm

        self._bar = tqdm(total=cases, desc=title, unit="case", leave=False, disable=None)
        self._windows: tqdm | None = None
        self._told: set[str] = set()

    def options(self, **values: Any) -> PredictionOptions:
        """Makes options of a prediction that reports to these bars."""
        return PredictionOptions(**values, on_tiling=self._begin, on_batch=self._advance)

    def count(self, items: Iterable[T]) -> Iterator[T]:
        """Counts predicted cases and passes them on."""
        for item in items:
            self._bar.update()
            yield item
            # Memory need not hold it while the next one is made.
            del item

    def _begin(self, tiling: Tiling) -> None:
        if len(tiling.starts) == 1:
            return
        from tqdm import tqdm

        # Slices of one shape come by the hundred.
        if len(tiling.starts) > MANY_BATCHES * tiling.batch_size and str(tiling) not in self._told:
            log.info("%s", tiling)
            self._told.add(str(tiling))
        bar = self._windows or tqdm(total=0, unit="window", leave=False, disable=None)
        bar.total = (bar.total or 0) + len(tiling.starts)
        self._windows = bar

    def _advance(self, number: int) -> None:
        if self._windows is not None:
            self._windows.update(number)

    def __enter__(self) -> "PredictionProgress":
        return self

    def __exit__(self, *error: object) -> None:
        for bar in (self._bar, self._windows):
            if bar is not None:
                bar.close()
