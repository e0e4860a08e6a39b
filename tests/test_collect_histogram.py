from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.collect.histogram import Histogram, mean_and_std, quantile, share_below

EDGES = np.array([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, math.inf])


def counted(values, edges=EDGES, known_sum: bool = True) -> Histogram:
    x = np.asarray(values, np.float64)
    counts = np.bincount(np.searchsorted(edges, x), minlength=edges.size).astype(float)
    return Histogram(edges, counts, float(x.sum()) if known_sum else math.nan)


def test_an_even_spread_is_linear_as_in_prometheus():
    even = Histogram(np.array([1.0, 2.0, math.inf]), np.array([0.0, 10.0, 0.0]), math.nan)
    assert quantile([even], 0.5) == pytest.approx(1.5)
    assert share_below([even], 1.2) == pytest.approx(0.2)
    assert mean_and_std([even]) == pytest.approx((1.5, math.sqrt(1.0 / 12.0)))


def test_the_sum_tells_where_in_a_bucket_the_values_are():
    low = counted([0.026] * 50)
    assert share_below([low], 0.03) > 0.98
    assert quantile([low], 0.9) == pytest.approx(0.026, rel=0.1)
    assert mean_and_std([counted([0.05] * 9)]) == pytest.approx((0.05, 0.0), abs=1e-4)


def test_a_sum_that_does_not_fit_is_not_believed():
    odd = Histogram(EDGES, np.array([0, 0, 4.0, 0, 0, 0, 0, 0]), 400.0)
    assert share_below([odd], 0.03) == pytest.approx(0.2)


def test_what_lies_above_the_last_edge_meets_no_target():
    late = counted([0.005, 3.0, 5.0])
    assert share_below([late], 100.0) == pytest.approx(1.0 / 3.0)
    assert quantile([late], 0.9) == 1.0
    assert mean_and_std([late])[0] == pytest.approx(8.005 / 3.0)


def test_no_values_say_nothing():
    nothing = counted([])
    for histograms in ([], [nothing]):
        assert math.isnan(quantile(histograms, 0.5))
        assert math.isnan(share_below(histograms, 0.1))
        assert all(math.isnan(value) for value in mean_and_std(histograms))


values = st.lists(st.floats(1e-4, 0.99), min_size=1, max_size=60)


@given(values, values, st.floats(1e-3, 1.0), st.booleans())
def test_a_share_is_wrong_by_its_bucket_at_most(first, second, target, known_sum):
    other = np.array([0.03, 0.3, 1.0, math.inf])
    both = [counted(first, EDGES, known_sum), counted(second, other, known_sum)]
    true = np.mean(np.array([*first, *second]) <= target)
    unsure = 0
    for x, edges in ((first, EDGES), (second, other)):
        k = np.searchsorted(edges, target)
        low = 0.0 if k == 0 else edges[k - 1]
        unsure += sum(low < v <= edges[k] for v in x)
    found = share_below(both, target)
    assert 0.0 <= found <= 1.0
    assert abs(found - true) <= unsure / (len(first) + len(second)) + 1e-9


@given(values, st.booleans())
def test_quantiles_rise_and_lie_in_the_bucket_of_the_true_one(x, known_sum):
    h = counted(x, EDGES, known_sum)
    found = [quantile([h], q) for q in (0.1, 0.5, 0.9, 1.0)]
    assert found == sorted(found)
    true = np.sort(x)[math.ceil(0.5 * len(x)) - 1]
    k = int(np.searchsorted(EDGES, true))
    assert (0.0 if k == 0 else EDGES[k - 1]) - 1e-9 <= found[1] <= EDGES[k] + 1e-9


@given(values)
def test_the_mean_is_exact_and_the_deviation_wrong_by_the_buckets_at_most(x):
    mean, std = mean_and_std([counted(x)])
    assert mean == pytest.approx(np.mean(x), rel=1e-9)
    widest = 0.5  # of the finite buckets
    assert std == pytest.approx(np.std(x), abs=widest)
