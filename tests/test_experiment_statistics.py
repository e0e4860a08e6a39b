"""Statistics over training seeds and traces, and distances to a front, by hand and by invariant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agents.evaluate.statistics import (
    bootstrap_p,
    estimate,
    holm,
    mean_estimate,
    performance_profile,
    probability_of_improvement,
    workload_means,
)
from agents.experiment.front import attained_at, hours_for, pareto
from agents.experiment.results import in_common, paired

CUBES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    elements=st.one_of(st.floats(0.0, 1.0), st.just(np.nan)),
)


def test_one_training_seed_is_estimated_like_an_untrained_policy():
    scores = np.random.default_rng(0).normal(size=(4, 10))
    assert estimate(scores) == estimate(scores[None])


def test_luck_of_training_widens_the_interval_however_many_traces_there_are():
    rng = np.random.default_rng(1)
    luck = rng.normal(size=(5, 1, 1))
    few, many = (luck + 0.01 * rng.normal(size=(5, 2, n)) for n in (5, 100))
    widths = [found.high - found.low for found in map(mean_estimate, (few, many))]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    # Were the runs independent, the interval would shrink with the root of their number.
    independent = mean_estimate(many.reshape(1, 1, -1))
    assert widths[1] > 5 * (independent.high - independent.low)


def test_the_interval_over_training_seeds_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        seeds, traces = rng.normal(size=(10, 1, 1)), rng.normal(size=(1, 2, 20))
        noise = rng.normal(size=(10, 2, 20))
        found = mean_estimate(seeds + traces + noise, seed=trial, draws=300)
        hits += found.low <= 0.0 <= found.high
    # 95 % nominal, ten training seeds make it a little narrow; three sigma is 5 %.
    assert 0.85 <= hits / 200 <= 1.0


@settings(max_examples=60)
@given(CUBES)
def test_estimates_lie_within_the_runs_and_count_them(scores):
    present = scores[~np.isnan(scores)]
    for found in (
        estimate(scores, draws=50),
        mean_estimate(scores, draws=50),
    ):
        assert found.runs == present.size
        if present.size:
            assert present.min() - 1e-9 <= found.value <= present.max() + 1e-9
        if present.size > 1 and not np.isnan(found.low):
            assert present.min() - 1e-9 <= found.low <= found.high <= present.max() + 1e-9


@settings(max_examples=60)
@given(CUBES)
def test_a_policy_against_itself_wins_half_and_differs_by_nothing(scores):
    won = probability_of_improvement(scores, scores, draws=50)
    if won.runs:
        assert won.value == 0.5
    means, draws = workload_means(scores, draws=20)
    again, same = workload_means(scores, draws=20)
    assert np.array_equal(means, again, equal_nan=True)
    assert np.array_equal(draws, same, equal_nan=True)


def test_a_constant_advantage_has_no_uncertainty_when_traces_are_drawn_together():
    scores = np.random.default_rng(3).normal(size=(1, 3, 20))
    _, low = workload_means(scores)
    _, high = workload_means(scores + 0.25)
    assert high - low == pytest.approx(0.25)


def test_means_per_workload_leave_missing_runs_out():
    scores = np.array([[[1.0, 3.0], [np.nan, np.nan]], [[5.0, np.nan], [np.nan, np.nan]]])
    means, draws = workload_means(scores, draws=50)
    assert means[0] == pytest.approx(3.0) and np.isnan(means[1])
    assert np.nanmin(draws[:, 0]) >= 1.0 and np.nanmax(draws[:, 0]) <= 5.0
    assert np.isnan(draws[:, 1]).all()


def test_traces_that_were_not_run_are_never_drawn():
    scores = np.full((1, 1, 20), np.nan)
    scores[0, 0, :2] = [1.0, 3.0]
    _, draws = workload_means(scores)
    assert not np.isnan(draws).any()
    assert set(np.unique(draws)) == {1.0, 2.0, 3.0}


def test_one_trace_per_cell_and_one_training_seed_give_no_interval():
    one_each = np.random.default_rng(0).normal(size=(1, 12, 1))
    found = estimate(one_each)
    assert found.runs == 12 and np.isnan(found.low)
    two_seeds = np.concatenate([one_each, one_each + 1.0])
    assert estimate(two_seeds).low < estimate(two_seeds).high


def test_the_profile_is_the_share_of_runs_strictly_above():
    scores = np.array([[[0.0, 0.5, 1.0, np.nan]]])
    value, low, high = performance_profile(scores, np.array([-1.0, 0.0, 0.5, 1.0]))
    assert value == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert (low <= value).all() and (value <= high).all()


@settings(max_examples=40)
@given(CUBES)
def test_profiles_fall(scores):
    value, *_ = performance_profile(scores, np.linspace(-0.1, 1.1, 7), draws=20)
    if not np.isnan(scores).all():
        assert (np.diff(value) <= 0).all()
        assert value[0] == 1.0 and value[-1] == 0.0


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_reorders():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.2 x 1
    assert holm([0.02, 0.2, 0.01, 0.03]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, float("nan"), 0.04])
    assert adjusted[0] == pytest.approx(0.02) and np.isnan(adjusted[1])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_raises_p_values_at_most_by_bonferroni(p_values):
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after + 1e-12
        assert after <= min(1.0, len(p_values) * before) + 1e-12


def test_p_values_count_draws_beyond_zero_and_are_never_zero():
    draws = np.concatenate([np.full(990, 1.0), np.full(9, -1.0)])
    assert bootstrap_p(draws) == pytest.approx(2 * (9 + 1) / 1000)
    assert bootstrap_p(np.ones(999)) == pytest.approx(0.002)
    assert bootstrap_p(np.zeros(10)) == 1.0
    assert np.isnan(bootstrap_p(np.array([])))


def test_pairs_are_seed_by_seed_where_both_were_trained_and_everyone_where_one_was():
    three, two, one = (np.zeros((n, 1, 4)) for n in (3, 2, 1))
    assert [a.shape[0] for a in paired(three, two)] == [2, 2]
    assert [a.shape[0] for a in paired(three, one)] == [3, 3]


def test_common_traces_wait_for_no_seed_that_was_never_run():
    ours = np.array([[[1.0, 1.0, np.nan]], [[np.nan] * 3]])
    theirs = np.array([[[1.0, np.nan, 1.0]]])
    own, other = in_common(ours, theirs)
    assert own.shape == (1, 1, 3)
    assert (~np.isnan(own)).ravel().tolist() == [True, False, False]
    assert (~np.isnan(other)).ravel().tolist() == [True, False, False]


def test_the_front_drops_what_another_beats_and_joins_the_rest_by_lines():
    hours = np.array([10.0, 20.0, 15.0, 30.0, np.nan])
    attained = np.array([0.5, 0.7, 0.4, 0.7, 0.9])
    x, y = pareto(hours, attained)
    assert x.tolist() == [10.0, 20.0] and y.tolist() == [0.5, 0.7]
    assert attained_at(x, y, 15.0) == pytest.approx(0.6)
    assert attained_at(x, y, 99.0) == pytest.approx(0.7), "idle GPUs cost nobody their attainment"
    assert np.isnan(attained_at(x, y, 9.0)), "nobody knows what less would do"
    assert hours_for(x, y, 0.6) == pytest.approx(15.0)
    assert hours_for(x, y, 0.1) == pytest.approx(10.0)
    assert np.isnan(hours_for(x, y, 0.71))
    assert hours_for(x, y, 0.704, slack=0.005) == pytest.approx(20.0)


@given(
    st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
)
def test_no_point_lies_above_its_own_front(found):
    hours, attained = (np.array(column) for column in zip(*found, strict=True))
    x, y = pareto(hours, attained)
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()
    for h, a in found:
        at = attained_at(x, y, h)
        assert at >= a - 1e-9
        assert hours_for(x, y, a) <= h + 1e-9
