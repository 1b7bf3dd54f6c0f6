"""What the log says of a case's windows."""

import logging

import pytest

from modules.predict.progress import MANY_BATCHES, PredictionProgress
from modules.predict.windows import Tiling


@pytest.mark.parametrize(("windows", "told"), [(1, 0), (2 * MANY_BATCHES, 0), (2 * MANY_BATCHES + 1, 1)])
def test_windows_are_named_once_where_a_case_takes_many(windows: int, told: int, caplog: pytest.LogCaptureFixture) -> None:
    tiling = Tiling((8, 8, 8), (4, 4, 4), ((0, 0, 0),) * windows, num_classes=2, batch_size=2)
    with caplog.at_level(logging.INFO, "mri"), PredictionProgress(2, "test") as progress:
        options = progress.options()
        for _ in range(2):
            assert options.on_tiling
            options.on_tiling(tiling)
    assert caplog.messages == [str(tiling)] * told
