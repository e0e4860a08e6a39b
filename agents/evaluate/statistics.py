"""Aggregate statistics over few runs, with honest intervals.

The methods are those of Agarwal et al., "Deep RL at the edge of the statistical precipice"
(NeurIPS 2021): the interquartile mean as the point estimate, percentile intervals from a
stratified bootstrap (runs are redrawn within each workload, never across workloads), and the
probability of improvement. Runs are paired here: the same seed gives every policy the same
requests and the same start-up luck, so differences are taken per pair before they are averaged,
which removes the variance that the trace itself brings.

Scores are arrays of shape [workloads, seeds]. A missing run is NaN and is left out. Everything
random comes from the seed in the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate with its interval.

    Attributes:
        value: the estimate; NaN when there is no run.
        low: lower end of the 95 % interval; NaN with fewer than two runs.
        high: upper end of the interval.
        runs: how many runs stand behind it.
    """

    value: float
    low: float
    high: float
    runs: int


def iqm(values: FloatArray) -> float:
    """Interquartile mean: the mean of the middle half of the values.

    The outer quarter at each end is cut exactly, a value on the edge counts in part, so that
    the estimate stays defined and smooth for any number of runs.

    >>> iqm(np.array([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    values = np.sort(values[~np.isnan(values)])
    if values.size == 0:
        return float("nan")
    return float(_sorted_iqm(values[None, :])[0])


def _sorted_iqm(rows: FloatArray) -> FloatArray:
    """IQM of every row; rows are sorted ascending."""
    n = rows.shape[1]
    index = np.arange(n)
    weights = np.clip(np.minimum(index + 1, 0.75 * n) - np.maximum(index, 0.25 * n), 0.0, 1.0)
    weights /= weights.sum()
    # An infinite value outside the middle half has weight 0 and must not turn the sum into NaN.
    used = weights > 0
    return np.asarray(rows[:, used] @ weights[used], dtype=np.float64)


def _row_iqm(rows: FloatArray) -> FloatArray:
    return _sorted_iqm(np.sort(rows, axis=1))


def _row_mean(rows: FloatArray) -> FloatArray:
    return np.asarray(rows.mean(axis=1), dtype=np.float64)


def _strata(scores: FloatArray) -> list[FloatArray]:
    """Runs of each workload, missing ones dropped, empty workloads dropped."""
    kept = [row[~np.isnan(row)] for row in np.atleast_2d(scores)]
    return [row for row in kept if row.size]


def _bootstrap(
    strata: list[FloatArray],
    statistic: Callable[[FloatArray], FloatArray],
    seed: int,
    draws: int,
) -> tuple[float, float]:
    """Percentile interval of a statistic over runs redrawn within each stratum."""
    rng = np.random.default_rng(seed)
    redrawn = np.concatenate(
        [row[rng.integers(0, row.size, size=(draws, row.size))] for row in strata], axis=1
    )
    values = statistic(redrawn)
    tail = (1.0 - CONFIDENCE) / 2.0
    # "inverted_cdf" picks an existing draw, so infinite scores do not become NaN.
    low, high = np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def estimate(scores: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """IQM over all runs with its 95 % stratified bootstrap interval.

    Args:
        scores: [workloads, seeds] or [seeds]; NaN marks a missing run.
        seed: of the bootstrap.
        draws: bootstrap draws; the interval ends wobble by about 1/sqrt(draws).
    """
    strata = _strata(scores)
    if not strata:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    pooled = np.concatenate(strata)
    if pooled.size < 2:
        return Estimate(float(pooled[0]), float("nan"), float("nan"), 1)
    low, high = _bootstrap(strata, _row_iqm, seed, draws)
    return Estimate(iqm(pooled), low, high, int(pooled.size))


def paired_difference(
    scores: FloatArray, baseline: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """IQM of `scores - baseline`, run by run, with its interval.

    Args:
        scores: [workloads, seeds].
        baseline: the other policy on the same workloads and seeds.
        seed: of the bootstrap.
        draws: bootstrap draws.
    """
    with np.errstate(invalid="ignore"):
        return estimate(np.asarray(scores - baseline, dtype=np.float64), seed=seed, draws=draws)


def probability_of_improvement(
    scores: FloatArray,
    baseline: FloatArray,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> Estimate:
    """Chance that a run of one policy beats the run of the other on the same pair.

    A tie counts one half. The mean is over pairs, so 0.5 means neither is better. Unlike the
    Mann-Whitney form for independent runs this keeps the pairing: a seed that is hard for both
    does not blur who won it.

    Args:
        scores: [workloads, seeds].
        baseline: the other policy on the same workloads and seeds.
        higher_is_better: False for costs and latencies.
        seed: of the bootstrap.
        draws: bootstrap draws.
    """
    won = scores > baseline if higher_is_better else scores < baseline
    outcome = np.where(won, 1.0, np.where(scores == baseline, 0.5, 0.0))
    outcome[np.isnan(scores) | np.isnan(baseline)] = np.nan
    strata = _strata(outcome)
    if not strata:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    pooled = np.concatenate(strata)
    if pooled.size < 2:
        return Estimate(float(pooled[0]), float("nan"), float("nan"), 1)
    low, high = _bootstrap(strata, _row_mean, seed, draws)
    return Estimate(float(pooled.mean()), low, high, int(pooled.size))
