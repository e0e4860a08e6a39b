"""What can be said of values that were only counted into buckets.

Quantiles and shares are linear inside a bucket, as Prometheus has it: they can be wrong by the
bucket they fall into, and not by more. Moments know the exact sum besides the buckets, so the mean
is exact; the standard deviation is that of the flattest distribution that has these counts and this
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrl_planner.observation import histogram_quantile

FloatArray = NDArray[np.float64]

# Without it, nothing bounds what lies above the last edge.
_OPEN_BUCKET = 2.0
_NEWTON_STEPS = 40


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values counted by bucket.

    Attributes:
        upper_edges: of the buckets, ascending, the last infinite, shape (K,).
        counts: not cumulative, not negative, shape (K,).
        total: sum of the values; NaN where it is not known.
    """

    upper_edges: FloatArray
    counts: FloatArray
    total: float

    @property
    def n(self) -> float:
        """Number of values."""
        return float(self.counts.sum())


def quantile(histograms: Sequence[Histogram], share: float) -> float:
    """Return a quantile over histograms that may differ in their edges, NaN for no values.

    What lies above the last finite edge counts as lying on it.
    """
    filled = [h for h in histograms if h.n > 0.0]
    if not filled:
        return np.nan
    edges = np.unique(np.concatenate([h.upper_edges[np.isfinite(h.upper_edges)] for h in filled]))
    if edges.size == 0:
        return np.nan
    below = np.zeros(edges.size)
    for h in filled:
        below += _below(h, edges)
    counts = np.append(np.diff(below, prepend=0.0), sum(h.n for h in filled) - below[-1])
    return histogram_quantile(np.maximum(counts, 0.0), np.append(edges, edges[-1]), share)


def share_below(histograms: Sequence[Histogram], value: float) -> float:
    """Return the share of values at or below one, NaN for no values.

    What lies above the last finite edge counts as lying above `value`.
    """
    total = sum(h.n for h in histograms)
    if total <= 0.0:
        return np.nan
    kept = sum(float(_below(h, np.array([value]))[0]) for h in histograms if h.n > 0.0)
    return min(1.0, max(0.0, kept / total))


def mean_and_std(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """Return mean and standard deviation, NaN for no values."""
    count = total = square = 0.0
    for h in histograms:
        if h.n > 0.0:
            mean, variance = _moments(h)
            count += h.n
            total += h.n * mean
            square += h.n * (variance + mean * mean)
    if count <= 0.0:
        return np.nan, np.nan
    mean = total / count
    return mean, float(np.sqrt(max(0.0, square / count - mean * mean)))


def _below(h: Histogram, values: FloatArray) -> FloatArray:
    """Return how many observations lie at or below each value, by linear interpolation."""
    finite = np.isfinite(h.upper_edges)
    edges = h.upper_edges[finite]
    if edges.size == 0:
        return np.zeros(values.size)
    cumulative = np.cumsum(h.counts)[: edges.size]
    if edges[0] > 0.0:
        edges, cumulative = np.append(0.0, edges), np.append(0.0, cumulative)
    below: FloatArray = np.interp(values, edges, cumulative, left=0.0)
    return below


def _moments(h: Histogram) -> tuple[float, float]:
    """Return mean and variance of one histogram.

    In every bucket the density is an exponential with one rate common to all buckets, so chosen
    that the mean is the known one: of all densities with these counts and this mean the one of the
    largest entropy. Rate 0 is the uniform density.
    """
    lower = np.append(0.0, h.upper_edges[:-1])
    upper = np.where(np.isfinite(h.upper_edges), h.upper_edges, _OPEN_BUCKET * lower)
    used = h.counts > 0.0
    weights = h.counts[used] / h.n
    lower, width = lower[used], np.maximum((upper - lower)[used], 0.0)
    if np.isnan(h.total):
        means, variances = _truncated_exponential(width, 0.0)
        mean = float(weights @ (lower + means))
    else:
        mean = h.total / h.n
        means, variances = _tilt(lower, width, weights, mean)
    between = float(weights @ np.square(lower + means - float(weights @ (lower + means))))
    return mean, float(weights @ variances) + between


def _tilt(
    lower: FloatArray, width: FloatArray, weights: FloatArray, mean: float
) -> tuple[FloatArray, FloatArray]:
    """Return each bucket's mean above its lower edge and its variance, for this overall mean."""
    wanted = mean - float(weights @ lower)
    scale = float(width.max(initial=0.0))
    if scale <= 0.0:
        return np.zeros_like(width), np.zeros_like(width)
    # Beyond these rates all mass sits on the edges of the widest bucket.
    low, high, rate = -1e3 / scale, 1e3 / scale, 0.0
    for _ in range(_NEWTON_STEPS):
        means, variances = _truncated_exponential(width, rate)
        error = float(weights @ means) - wanted
        if abs(error) <= 1e-6 * scale:
            break
        low, high = (rate, high) if error < 0.0 else (low, rate)
        # The mean's derivative by the rate is the variance inside the buckets.
        slope = float(weights @ variances)
        rate = rate - error / slope if slope > 0.0 else 0.5 * (low + high)
        if not low < rate < high:
            rate = 0.5 * (low + high)
    return means, variances


def _truncated_exponential(width: FloatArray, rate: float) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of densities `exp(rate x)` on [0, width]."""
    z = np.clip(rate * width, -1e3, 1e3)
    small = np.abs(z) < 1e-2
    safe = np.where(small, 1.0, z)
    with np.errstate(over="ignore"):
        ratio = 1.0 / -np.expm1(-safe)  # exp(z) / (exp(z) - 1)
        means = width * np.where(small, 0.5 + z / 12.0, ratio - 1.0 / safe)
        squeezed = 1.0 / np.square(safe) - ratio * (ratio - 1.0)
    variances = np.square(width) * np.where(small, 1.0 / 12.0 - z * z / 240.0, squeezed)
    return means, np.maximum(variances, 0.0)
