"""Calibration errors and rank correlations by hand."""

import math

import numpy as np
import pytest

from modules.predict.doubt import LOGITS
from modules.run.calibration import Judged, correlate_ranks, describe_calibration, list_bins, measure_error, summarise_judged, write_judged


def _truth(rows):
    """Counts `{logit: (voxels outside, voxels of the class)}`."""
    truth = np.zeros((2, LOGITS.size))
    for logit, counts in rows.items():
        truth[:, np.argmin(np.abs(LOGITS - logit))] = counts
    return truth


def test_the_calibration_error_by_hand():
    one, other = (1 / (1 + math.exp(-logit)) for logit in (1.375, -1.375))
    truth = _truth({1.375: (40, 60), -1.375: (95, 5), -15.875: (10_000, 0)})
    bins = list_bins(truth, 1.0)
    assert [round(row["voxels"]) for row in bins] == [10_000, 100, 100]
    assert bins[2] == {"probability": pytest.approx(one), "frequency": 0.6, "voxels": 100}
    assert measure_error(truth, 1.0, 0.01, 0.99) == pytest.approx((abs(one - 0.6) + abs(other - 0.05)) / 2)
    # Voxels that are surely something else hide the error.
    assert measure_error(truth, 1.0) == pytest.approx((abs(one - 0.6) + abs(other - 0.05)) / 102, abs=1e-5)
    assert math.isnan(measure_error(_truth({15.875: (0, 3)}), 1.0, 0.01, 0.99))
    # A temperature makes no sure voxel contested, so that the errors before and after it are of the same voxels.
    both = _truth({1.375: (40, 60), 6.125: (0, 1000)})
    assert measure_error(both, 4.0, 0.01, 0.99) == measure_error(_truth({1.375: (40, 60)}), 4.0, 0.01, 0.99)


def test_ranks_by_hand():
    assert correlate_ranks(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 25])) == pytest.approx(0.8)
    # Equal values share a rank: 1, 2.5, 2.5, 4 beside 1, 2, 3, 4.
    assert correlate_ranks(np.array([1.0, 2, 2, 4]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(correlate_ranks(np.arange(3.0), np.arange(3.0)))
    assert math.isnan(correlate_ranks(np.ones(5), np.arange(5.0)))


def test_judged_cases_are_summarised_and_written(tmp_path):
    judged = [
        Judged("one", "a", 0.9, 0.8, 0.7, 0.95, 0.5, 0),
        Judged("two", "a", 0.5, 0.8, 0.7, 0.9, 1.5, 1),
        Judged("two", "b", math.nan, 0.8, 0.7, 0.9, 1.5, 1),
    ]
    summary = summarise_judged(judged, ("a", "b"))
    assert (summary["cases"], summary["checked"]) == (2, 1)
    assert summary["classes"]["a"] == {"cases": 2, "spearman": pytest.approx(math.nan, nan_ok=True), "mean_error": 0.2, "within": 0.5}
    assert summary["classes"]["b"]["cases"] == 0
    lines = describe_calibration({"classes": {}, "predicted": summary})
    assert lines[-1] == "check this one: 1 of 2 test case(s)"
    assert "wrong by 0.200 on average, 50% of 2 case(s)" in lines[0]
    write_judged(tmp_path / "judged.csv", judged)
    assert (tmp_path / "judged.csv").read_text().splitlines()[:2] == [
        "case,class,dice,predicted,low,high,distance,check",
        "one,a,0.9,0.8,0.7,0.95,0.5,0",
    ]
