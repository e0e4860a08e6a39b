"""Aggregate statistics over few runs, with honest intervals.

The methods are those of Agarwal et al., "Deep RL at the edge of the statistical precipice"
(NeurIPS 2021): the interquartile mean as the point estimate, percentile intervals from a
stratified bootstrap (runs are redrawn within each workload, never across workloads), and the
probability of improvement. Runs are paired here: the same seed gives every policy the same
requests and the same start-up luck, so differences are taken per pair before they are averaged,
which removes the variance that the trace itself brings.

Scores are arrays of shape [workloads, seeds], or [training seeds, workloads, seeds] for a policy
that was trained several times. What is redrawn, and what is redrawn together, says
`agents.evaluate.bootstrap`. A missing run is NaN and is left out. Everything random comes from the
seed in the arguments; two arrays of one shape are redrawn alike under one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.evaluate.bootstrap import (
    Days,
    FloatArray,
    as_cube,
    can_be_redrawn,
    counts_of_runs,
    day_counts,
    seed_counts,
)

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000
_TAIL = (1.0 - CONFIDENCE) / 2.0
_Statistic = Callable[
    [FloatArray, FloatArray], FloatArray
]  # of values, counted so often: (draws, n)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate with its interval.

    Attributes:
        value: the estimate; NaN when there is no run.
        low: lower end of the 95 % interval; NaN where nothing can be redrawn.
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
    values = values[~np.isnan(values)]
    return float(_iqm(values, np.ones((1, values.size)))[0])


def _iqm(values: FloatArray, counts: FloatArray) -> FloatArray:
    """IQM of values that count so often, per row of counts; NaN for a row without any."""
    order = np.argsort(values, kind="stable")
    ranked = counts[:, order]
    upper = np.cumsum(ranked, axis=1)
    total = ranked.sum(axis=1, keepdims=True)
    middle = np.minimum(upper, 0.75 * total) - np.maximum(upper - ranked, 0.25 * total)
    return _ratio(_dot(np.maximum(middle, 0.0), values[order]), 0.5 * total[:, 0])


def _mean(values: FloatArray, counts: FloatArray) -> FloatArray:
    """The same for the mean."""
    return _ratio(_dot(counts, values), counts.sum(axis=1))


def _dot(counts: FloatArray, values: FloatArray) -> FloatArray:
    """Weighted sums; an infinite value that does not count must not turn one into NaN."""
    finite = np.isfinite(values)
    sums: FloatArray = counts[:, finite] @ values[finite]
    for infinite in (np.inf, -np.inf):
        sums[(counts[:, values == infinite] > 0.0).any(axis=1)] = infinite
    return sums


def _ratio(sums: FloatArray, totals: FloatArray) -> FloatArray:
    found: FloatArray = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    return found


def row_mean(rows: FloatArray) -> FloatArray:
    """Mean of every row over what is not missing; NaN for a row that is empty."""
    present = ~np.isnan(rows)
    counts = present.sum(axis=1)
    total = np.where(present, rows, 0.0).sum(axis=1)
    found: FloatArray = np.divide(total, counts, out=np.full(len(rows), np.nan), where=counts > 0)
    return found


def _estimated(
    scores: FloatArray, statistic: _Statistic, days: Days | None, seed: int, draws: int
) -> Estimate:
    """A statistic over all runs with its percentile interval."""
    cube = as_cube(scores)
    present = np.asarray(cube[~np.isnan(cube)], dtype=np.float64)
    if not present.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(statistic(present, np.ones((1, present.size)))[0])
    if not can_be_redrawn(cube, days):
        return Estimate(value, float("nan"), float("nan"), int(present.size))
    chunks = counts_of_runs(cube, days, seed, draws)
    low, high = interval(np.concatenate([statistic(present, counts) for counts in chunks]))
    return Estimate(value, low, high, int(present.size))


def interval(draws: FloatArray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap draws; draws that gave nothing are left out."""
    kept = draws[~np.isnan(draws)]
    if not kept.size:
        return float("nan"), float("nan")
    # "inverted_cdf" picks an existing draw, so infinite scores do not become NaN.
    low, high = np.quantile(kept, [_TAIL, 1.0 - _TAIL], method="inverted_cdf")
    return float(low), float(high)


def estimate(
    scores: FloatArray, *, days: Days | None = None, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """IQM over all runs with its 95 % stratified bootstrap interval.

    Args:
        scores: [workloads, seeds], [seeds] or [training seeds, workloads, seeds]; NaN marks a
            missing run.
        days: which runs share a day; absent, none do.
        seed: of the bootstrap.
        draws: bootstrap draws; the interval ends wobble by about 1/sqrt(draws).
    """
    return _estimated(scores, _iqm, days, seed, draws)


def mean_estimate(
    scores: FloatArray, *, days: Days | None = None, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """The same for the mean, which, unlike the IQM, the worst quarter of the runs is part of."""
    return _estimated(scores, _mean, days, seed, draws)


def paired_difference(
    scores: FloatArray, baseline: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """IQM of `scores - baseline`, run by run, with its interval.

    Args:
        scores: [workloads, seeds] or [training seeds, workloads, seeds].
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
    days: Days | None = None,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> Estimate:
    """Chance that a run of one policy beats the run of the other on the same pair.

    A tie counts one half. The mean is over pairs, so 0.5 means neither is better. Unlike the
    Mann-Whitney form for independent runs this keeps the pairing: a seed that is hard for both
    does not blur who won it.

    Args:
        scores: [workloads, seeds] or [training seeds, workloads, seeds].
        baseline: the other policy on the same workloads and seeds.
        higher_is_better: False for costs and latencies.
        days: which runs share a day; absent, none do.
        seed: of the bootstrap.
        draws: bootstrap draws.
    """
    won = scores > baseline if higher_is_better else scores < baseline
    outcome = np.asarray(np.where(won, 1.0, np.where(scores == baseline, 0.5, 0.0)))
    outcome[np.isnan(scores) | np.isnan(baseline)] = np.nan
    return _estimated(outcome, _mean, days, seed, draws)


def performance_profile(
    scores: FloatArray,
    thresholds: FloatArray,
    *,
    days: Days | None = None,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Share of runs that score above each threshold, with a pointwise 95 % band.

    The score distribution of Agarwal et al., section 4.2.

    Returns:
        value, low and high, each of the shape of `thresholds`; NaN without runs.
    """
    cube = as_cube(scores)
    present = cube[~np.isnan(cube)]
    if not present.size:
        nothing = np.full(len(thresholds), np.nan)
        return nothing, nothing, nothing
    value = _shares_above(present, np.ones((1, present.size)), thresholds)[0]
    chunks = counts_of_runs(cube, days, seed, draws)
    rows = np.concatenate([_shares_above(present, counts, thresholds) for counts in chunks])
    low, high = np.nanquantile(rows, [_TAIL, 1.0 - _TAIL], axis=0)
    return value, low, high


def _shares_above(values: FloatArray, counts: FloatArray, thresholds: FloatArray) -> FloatArray:
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(np.pad(counts[:, order], ((0, 0), (1, 0))), axis=1)
    below = upto[:, np.searchsorted(values[order], thresholds, side="right")]
    with np.errstate(invalid="ignore"):
        return np.asarray(1.0 - below / upto[:, -1:])


def workload_means(
    scores: FloatArray,
    *,
    days: Days | None = None,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
    stream: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Mean score per workload, and its bootstrap draws.

    Policies that miss the same traces, or none, get the same days in a draw, so that any function
    of several policies' means (a difference, a distance to a front) keeps the pairing.

    Args:
        scores: [training seeds, workloads, seeds] with the same seeds for every policy.
        days: which runs share a day; absent, none do.
        seed: of the bootstrap.
        draws: how many.
        stream: policies that were trained independently of each other get different ones.

    Returns:
        Means (workloads,) and draws (draws, workloads); NaN where nothing was run.
    """
    cube = as_cube(scores)
    there = ~np.isnan(cube)
    filled = np.where(there, cube, 0.0)
    present = np.asarray(there.any(axis=0))
    days = days or Days.apart(*present.shape)
    which = day_counts(present, days, np.random.default_rng(seed), draws)
    who = seed_counts(cube.shape[0], draws, [seed, 1, stream])
    totals = np.einsum("dt,twn,dwn->dw", who, filled, which, optimize=True)
    counts = np.einsum("dt,twn,dwn->dw", who, there.astype(np.float64), which, optimize=True)
    values = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    n_runs = there.sum(axis=(0, 2))
    means = _ratio(filled.sum(axis=(0, 2)), n_runs.astype(np.float64))
    return means, values


def bootstrap_p(draws: FloatArray) -> float:
    """Two-sided p-value of "the statistic is 0" from its bootstrap draws.

    Twice the smaller share of draws on one side of 0, one draw added to each side so that it
    is never 0 (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4).
    """
    kept = draws[~np.isnan(draws)]
    if not kept.size:
        return float("nan")
    side = min((kept <= 0.0).sum(), (kept >= 0.0).sum())
    return float(min(1.0, 2.0 * (side + 1) / (kept.size + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons made together (Holm 1979); NaN stays NaN.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    known = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    adjusted = [float("nan")] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
