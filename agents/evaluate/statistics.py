"""Aggregate statistics over few runs, with honest intervals.

The methods are those of Agarwal et al., "Deep RL at the edge of the statistical precipice"
(NeurIPS 2021): the interquartile mean as the point estimate, percentile intervals from a
stratified bootstrap (runs are redrawn within each workload, never across workloads), and the
probability of improvement. Runs are paired here: the same seed gives every policy the same
requests and the same start-up luck, so differences are taken per pair before they are averaged,
which removes the variance that the trace itself brings.

Scores are arrays of shape [workloads, seeds], or [training seeds, workloads, seeds] for a policy
that was trained several times. Training seeds and traces are crossed, every trained policy meets
every trace, so both are redrawn independently of each other: training seeds first, then traces
within each workload, the same ones for all training seeds (Owen, "The pigeonhole bootstrap",
Annals of Applied Statistics 2007). A missing run is NaN and is left out. Everything random comes
from the seed in the arguments; two arrays of one shape are redrawn alike under one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000
_TAIL = (1.0 - CONFIDENCE) / 2.0
_CHUNK_VALUES = 4_000_000  # redrawn scores held at a time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate with its interval.

    Attributes:
        value: the estimate; NaN when there is no run.
        low: lower end of the 95 % interval; NaN where no workload has two runs.
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
    """IQM of every row over what is not missing; NaN for a row that is empty."""
    rows = np.sort(rows, axis=1)  # NaN goes to the end
    counts = (~np.isnan(rows)).sum(axis=1)
    found = np.full(len(rows), np.nan)
    for count in np.unique(counts[counts > 0]):
        same = counts == count
        found[same] = _sorted_iqm(rows[same, :count])
    return found


def row_mean(rows: FloatArray) -> FloatArray:
    """Mean of every row over what is not missing; NaN for a row that is empty."""
    present = ~np.isnan(rows)
    counts = present.sum(axis=1)
    total = np.where(present, rows, 0.0).sum(axis=1)
    found: FloatArray = np.divide(total, counts, out=np.full(len(rows), np.nan), where=counts > 0)
    return found


def _strata(scores: FloatArray) -> list[FloatArray]:
    """Scores of each workload as [training seeds, seeds]; seeds nobody has run are dropped."""
    cube = np.atleast_2d(scores)
    cube = cube[None] if cube.ndim == 2 else cube
    kept = [cube[:, w][:, ~np.isnan(cube[:, w]).all(axis=0)] for w in range(cube.shape[1])]
    return [block for block in kept if block.size]


def redraw(
    scores: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Iterator[FloatArray]:
    """Bootstrap draws of all runs, as chunks of rows with one draw per row.

    Args:
        scores: [workloads, seeds] or [training seeds, workloads, seeds]; NaN marks a missing run.
        seed: of the bootstrap.
        draws: rows in all.
    """
    strata = _strata(scores)
    rng = np.random.default_rng(seed)
    # Drawn for all rows at once: the chunks must not change the numbers.
    traces = [rng.integers(0, block.shape[1], size=(draws, block.shape[1])) for block in strata]
    trained = strata[0].shape[0]
    seeds = np.random.default_rng([seed, 1]).integers(0, trained, size=(draws, trained))
    step = max(1, _CHUNK_VALUES // sum(block.size for block in strata))
    for start in range(0, draws, step):
        part = slice(start, start + step)
        who = seeds[part, :, None]
        drawn = [
            block[who, at[part, None, :]].reshape(len(who), -1)
            if trained > 1
            else block[0][at[part]]
            for block, at in zip(strata, traces, strict=True)
        ]
        yield np.concatenate(drawn, axis=1)


def _estimated(
    scores: FloatArray, statistic: Callable[[FloatArray], FloatArray], seed: int, draws: int
) -> Estimate:
    """A statistic over all runs with its percentile interval."""
    present = np.asarray(scores[~np.isnan(scores)], dtype=np.float64)
    if not present.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(statistic(present[None])[0])
    if not can_be_redrawn(scores):
        return Estimate(value, float("nan"), float("nan"), int(present.size))
    values = np.concatenate([statistic(r) for r in redraw(scores, seed=seed, draws=draws)])
    low, high = interval(values)
    return Estimate(value, low, high, int(present.size))


def can_be_redrawn(scores: FloatArray) -> bool:
    """Whether a bootstrap says anything: some workload has two runs. One run of each has none."""
    return any(block.size > 1 for block in _strata(scores))


def interval(draws: FloatArray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap draws; draws that gave nothing are left out."""
    kept = draws[~np.isnan(draws)]
    if not kept.size:
        return float("nan"), float("nan")
    # "inverted_cdf" picks an existing draw, so infinite scores do not become NaN.
    low, high = np.quantile(kept, [_TAIL, 1.0 - _TAIL], method="inverted_cdf")
    return float(low), float(high)


def estimate(scores: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """IQM over all runs with its 95 % stratified bootstrap interval.

    Args:
        scores: [workloads, seeds], [seeds] or [training seeds, workloads, seeds]; NaN marks a
            missing run.
        seed: of the bootstrap.
        draws: bootstrap draws; the interval ends wobble by about 1/sqrt(draws).
    """
    return _estimated(scores, _row_iqm, seed, draws)


def mean_estimate(scores: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """The same for the mean, which, unlike the IQM, the worst quarter of the runs is part of."""
    return _estimated(scores, row_mean, seed, draws)


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
        seed: of the bootstrap.
        draws: bootstrap draws.
    """
    won = scores > baseline if higher_is_better else scores < baseline
    outcome = np.asarray(np.where(won, 1.0, np.where(scores == baseline, 0.5, 0.0)))
    outcome[np.isnan(scores) | np.isnan(baseline)] = np.nan
    return _estimated(outcome, row_mean, seed, draws)


def performance_profile(
    scores: FloatArray,
    thresholds: FloatArray,
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Share of runs that score above each threshold, with a pointwise 95 % band.

    The score distribution of Agarwal et al., section 4.2.

    Returns:
        value, low and high, each of the shape of `thresholds`; NaN without runs.
    """
    present = scores[~np.isnan(scores)]
    if not present.size:
        nothing = np.full(len(thresholds), np.nan)
        return nothing, nothing, nothing
    value = _shares_above(present[None], thresholds)[0]
    rows = [_shares_above(r, thresholds) for r in redraw(scores, seed=seed, draws=draws)]
    low, high = np.quantile(np.concatenate(rows), [_TAIL, 1.0 - _TAIL], axis=0)
    return value, low, high


def _shares_above(rows: FloatArray, thresholds: FloatArray) -> FloatArray:
    ordered = np.sort(rows, axis=1)
    counts = (~np.isnan(ordered)).sum(axis=1)
    below = np.stack(
        [
            np.searchsorted(row[:n], thresholds, side="right")
            for row, n in zip(ordered, counts, strict=True)
        ]
    )
    return np.asarray(1.0 - below / np.maximum(counts, 1)[:, None])


def workload_means(
    scores: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS, stream: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Mean score per workload, and its bootstrap draws.

    Policies that miss the same traces, or none, get the same traces in a draw, so that any function
    of several policies' means (a difference, a distance to a front) keeps the pairing.

    Args:
        scores: [training seeds, workloads, seeds] with the same seeds for every policy.
        seed: of the bootstrap.
        draws: how many.
        stream: policies that were trained independently of each other get different ones.

    Returns:
        Means (workloads,) and draws (draws, workloads); NaN where nothing was run.
    """
    trained, n_workloads, _ = scores.shape
    present = ~np.isnan(scores)
    filled = np.where(present, scores, 0.0)
    rng = np.random.default_rng(seed)
    who = np.random.default_rng([seed, 1, stream]).multinomial(
        trained, np.full(trained, 1.0 / trained), size=draws
    )
    values = np.full((draws, n_workloads), np.nan)
    for w in range(n_workloads):
        run = present[:, w].any(axis=0)
        n_run = int(run.sum())
        if not n_run:
            continue
        times = rng.multinomial(n_run, np.full(n_run, 1.0 / n_run), size=draws)
        total = ((who @ filled[:, w, run]) * times).sum(axis=1)
        count = ((who @ present[:, w, run].astype(np.float64)) * times).sum(axis=1)
        np.divide(total, count, out=values[:, w], where=count > 0)
    counts = present.sum(axis=(0, 2))
    means = np.divide(
        filled.sum(axis=(0, 2)), counts, out=np.full(n_workloads, np.nan), where=counts > 0
    )
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
