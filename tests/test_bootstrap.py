"""What shares a day, or a training seed, is redrawn together."""

import numpy as np
import pytest

from agents.evaluate.bootstrap import Days, as_cube, can_be_redrawn, day_counts
from agents.evaluate.statistics import (
    estimate,
    mean_estimate,
    performance_profile,
    probability_of_improvement,
    workload_means,
)


def crossed(n_workloads: int, n_days: int) -> Days:
    """All workloads play the same days."""
    apart = Days.apart(n_workloads, n_days)
    return Days(np.zeros(n_workloads, np.int64), apart.day)


def width(found) -> float:
    return found.high - found.low


def test_four_budgets_of_the_same_days_are_not_four_times_the_days():
    days = np.random.default_rng(0).normal(size=(1, 20))
    four = np.repeat(days, 4, axis=0)
    for statistic in (estimate, mean_estimate):
        alone, together = statistic(days), statistic(four, days=crossed(4, 20))
        assert together.value == pytest.approx(alone.value)
        assert width(together) == pytest.approx(width(alone), rel=0.1)
        assert width(statistic(four)) < 0.6 * width(alone)


def test_what_is_certain_on_every_day_stays_certain_under_shared_days():
    days = np.random.default_rng(1).normal(size=(1, 20))
    levels = np.array([[0.0], [1.0], [2.0]])
    won = probability_of_improvement(days + levels + 0.1, days + levels, days=crossed(3, 20))
    assert (won.low, won.value, won.high) == (1.0, 1.0, 1.0)


def test_seeds_that_play_the_same_day_count_as_one_day():
    three = np.random.default_rng(2).normal(size=3)
    repeated = np.tile(three, 7)[None]
    days = Days(np.zeros(1, np.int64), np.tile(np.arange(3), 7)[None])
    assert width(mean_estimate(repeated, days=days)) == pytest.approx(
        width(mean_estimate(three[None])), rel=0.1
    )
    alike = Days(days.group, np.zeros_like(days.day))
    assert not can_be_redrawn(repeated, alike)
    assert np.isnan(mean_estimate(repeated, days=alike).low)


def test_the_interval_over_shared_days_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        scores = rng.normal(size=(1, 20)) + 0.5 * rng.normal(size=(4, 20))
        found = mean_estimate(scores, days=crossed(4, 20), seed=trial, draws=300)
        hits += found.low <= 0.0 <= found.high
    assert 0.86 <= hits / 200 <= 1.0


def test_a_day_is_drawn_as_often_in_every_workload_of_its_group_and_only_if_it_was_run():
    present = np.ones((3, 5), bool)
    present[:2, 4] = False
    days = Days(np.array([0, 0, 1]), Days.apart(3, 5).day)
    counts = day_counts(present, days, np.random.default_rng(4), 50)
    assert np.array_equal(counts[:, 0], counts[:, 1])
    assert not np.array_equal(counts[:, 0], counts[:, 2])
    assert (counts[:, :2].sum(axis=2) == 4).all() and (counts[:, 2].sum(axis=1) == 5).all()
    assert (counts[:, :2, 4] == 0).all()


def test_the_same_draws_reach_every_policy_so_that_differences_keep_their_pairs():
    scores = np.random.default_rng(5).normal(size=(1, 4, 20))
    _, low = workload_means(scores, days=crossed(4, 20))
    _, high = workload_means(scores + 0.25, days=crossed(4, 20))
    assert high - low == pytest.approx(0.25)


def test_profiles_of_shared_days_have_wider_bands():
    days = np.random.default_rng(6).uniform(size=(1, 20))
    four, at = np.repeat(days, 4, axis=0), np.array([0.5])
    _, low, high = performance_profile(four, at, days=crossed(4, 20))
    _, narrow_low, narrow_high = performance_profile(four, at)
    assert (high - low)[0] > 1.5 * (narrow_high - narrow_low)[0]


def test_training_seeds_that_were_never_run_are_not_drawn():
    scores = np.random.default_rng(7).normal(size=(3, 2, 5))
    holes = np.concatenate([scores, np.full((2, 2, 5), np.nan)])
    assert as_cube(holes).shape == (3, 2, 5)
    assert mean_estimate(holes) == mean_estimate(scores)
