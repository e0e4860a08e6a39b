"""The estimates: defined for few runs, exact where the answer is known, seeded, honest in width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from agents.evaluate.statistics import (
    estimate,
    iqm,
    paired_difference,
    probability_of_improvement,
)


@pytest.mark.parametrize("n", [4, 8, 20])
def test_iqm_is_the_25_percent_trimmed_mean_where_that_is_exact(n):
    values = np.random.default_rng(0).normal(size=n)
    assert iqm(values) == pytest.approx(trim_mean(values, 0.25))


def test_iqm_of_three_runs_weighs_the_outer_ones_in_part():
    # Middle half of 3 values is 1.5 values wide: the middle one whole, a quarter of each other.
    assert iqm(np.array([0.0, 6.0, 12.0 * 3])) == pytest.approx((0.25 * 0 + 6 + 0.25 * 36) / 1.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_iqm_lies_between_the_extremes_and_ignores_order(values):
    array = np.array(values)
    assert array.min() - 1e-6 <= iqm(array) <= array.max() + 1e-6
    assert iqm(array) == pytest.approx(iqm(array[::-1]), rel=1e-9, abs=1e-9)


def test_iqm_survives_a_run_that_never_finished():
    assert np.isfinite(iqm(np.array([1.0, 2.0, 3.0, np.inf])))
    assert np.isinf(iqm(np.array([1.0, np.inf, np.inf, np.inf])))


def test_one_run_has_a_value_but_no_interval():
    found = estimate(np.array([[3.0]]))
    assert found.value == 3.0
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.runs == 1


def test_missing_runs_are_left_out():
    found = estimate(np.array([[1.0, np.nan, 1.0], [np.nan, np.nan, np.nan]]))
    assert (found.value, found.runs) == (1.0, 2)
    assert estimate(np.array([[np.nan]])).runs == 0


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(1).normal(size=(3, 10))
    assert estimate(scores, seed=5) == estimate(scores, seed=5)
    assert estimate(scores, seed=5) != estimate(scores, seed=6)


def test_strata_are_redrawn_within_themselves():
    # All variance lies between workloads: a stratified bootstrap must not see any.
    scores = np.array([[0.0] * 5, [10.0] * 5])
    found = estimate(scores)
    assert (found.low, found.high) == (found.value, found.value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        found = estimate(rng.normal(size=(1, 20)), seed=trial, draws=300)
        hits += found.low <= 0.0 <= found.high
    # 95 % nominal; percentile intervals of 20 runs are a little narrow. Three sigma is 5 %.
    assert 0.86 <= hits / 200 <= 1.0


def test_pairing_removes_what_the_trace_brings():
    rng = np.random.default_rng(3)
    trace = 100.0 * rng.normal(size=(1, 10))
    worse = trace + 0.1 * rng.normal(size=trace.shape)
    better = trace + 1.0 + 0.1 * rng.normal(size=trace.shape)
    gap = paired_difference(better, worse)
    assert 0.8 < gap.low < gap.value < gap.high < 1.2
    assert probability_of_improvement(better, worse).value == 1.0
    # Unpaired, the same runs say nothing.
    assert estimate(better).low < estimate(worse).high


def test_a_tie_is_half_an_improvement_and_costs_count_downwards():
    ours, theirs = np.array([[1.0, 1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 1.0, 1.0]])
    assert probability_of_improvement(ours, theirs).value == pytest.approx(2.5 / 4)
    down = probability_of_improvement(ours, theirs, higher_is_better=False)
    assert down.value == pytest.approx(1.5 / 4)


def test_pairs_with_a_missing_run_do_not_count():
    found = probability_of_improvement(np.array([[1.0, np.nan]]), np.array([[0.0, 0.0]]))
    assert (found.value, found.runs) == (1.0, 1)
