"""Robust distances from the median, by hand."""

import math

import numpy as np
import pytest

from modules.data.outliers import find_outliers, measure_deviations


def test_deviations_by_hand():
    # The median is 3, and the distances 2, 1, 0, 1, 17 have the median 1.
    np.testing.assert_allclose(measure_deviations(np.array([1.0, 2, 3, 4, 20])), np.array([-2, -1, 0, 1, 17]) / 1.4826)


def test_an_outlier_is_given_with_median_and_z():
    [outlier] = find_outliers([1.0, 2, 3, 4, 20])
    assert outlier[:3] == (4, 20.0, 3.0)
    assert outlier.z == pytest.approx(17 / 1.4826)
    # Here z of 8 is 3.4.
    assert find_outliers([1.0, 2, 3, 4, 8]) == []


def test_half_and_double_are_equally_far_where_values_are_compared_by_their_logarithm():
    values = [2.0**power for power in (4, 5, 6, 7, 8, 0, 12)]
    found = find_outliers(values, relative=True)
    # The distances of the exponents from 6 are 2, 1, 0, 1, 2, 6, 6 with the median 2.
    assert [(outlier.place, round(outlier.z, 6)) for outlier in found] == []
    found = find_outliers([*values, 2.0**6, 2.0**6], relative=True)
    assert [(outlier.place, outlier.value, outlier.median) for outlier in found] == [(5, 1.0, 64.0), (6, 4096.0, 64.0)]
    assert [outlier.z for outlier in found] == pytest.approx([-6 / 1.4826, 6 / 1.4826])


def test_what_differs_by_less_than_a_half_is_no_outlier_however_alike_the_others_are():
    assert find_outliers([1.0] * 9 + [1.4]) == []
    [outlier] = find_outliers([1.0] * 9 + [1.6])
    assert (outlier.place, outlier.z) == (9, math.inf)
    # Rounding in a header makes no spread.
    assert [outlier.z for outlier in find_outliers([1.0, 1 + 1e-7, 1 - 1e-7, 1.0, 1.0, 0.5])] == [-math.inf]


def test_of_few_values_none_is_an_outlier():
    assert find_outliers([1.0, 1, 1, 9]) == []
    assert find_outliers([]) == []
