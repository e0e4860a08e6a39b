"""What can be said of values that were only counted into buckets, and of which the sum is known.

Inside a bucket values are not taken to be spread evenly, as Prometheus does: an engine whose every
token takes 31 ms has all of them in the bucket from 25 to 50 ms, and an even spread would put 72 %
of them above 32 ms. The sum tells better. The density in every bucket is an exponential with one
rate common to all buckets, such that the mean is the known one: of all densities with these counts
and this mean, the one of the largest entropy. Rate 0 is the even spread; it is used where the sum
is not known or does not fit the counts.

Means are exact. Quantiles and shares can be wrong by the bucket they fall into, and not by more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hrl_planner.observation import histogram_quantile

FloatArray = NDArray[np.float64]

# Nothing bounds what lies above the last edge; that bucket is taken to end at so many times its
# lower edge where its width matters.
_OPEN_BUCKET = 2.0
_NEWTON_STEPS = 40
_STEEPEST = 1e3  # all mass on one edge
# Points inside a bucket between which a quantile is linear.
_FINE = np.linspace(0.0, 1.0, 17)[1:]


@dataclass(frozen=True)
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

    @cached_property
    def rate(self) -> float:
        """Rate of the exponential density in every bucket."""
        return _rate(self)


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
    lower = np.append(0.0, edges[:-1])
    edges = (lower[:, None] + (edges - lower)[:, None] * _FINE).ravel()
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
    """Return how many observations lie at or below each value."""
    rate = h.rate
    cumulative = np.append(0.0, np.cumsum(h.counts))
    lower = np.append(0.0, h.upper_edges[:-1])
    at = np.minimum(np.searchsorted(h.upper_edges, values), h.upper_edges.size - 1)
    width = h.upper_edges[at] - lower[at]
    inside = np.clip(values - lower[at], 0.0, width)
    inner = np.isfinite(width) & (width > 0.0)
    share = np.zeros(values.size)
    share[inner] = _share_inside(inside[inner], width[inner], rate)
    below: FloatArray = cumulative[at] + h.counts[at] * share
    return below


def _moments(h: Histogram) -> tuple[float, float]:
    """Return mean and variance of one histogram that is not empty."""
    lower, width, weights = _buckets(h)
    means, variances = _truncated_exponential(width, h.rate)
    centre = float(weights @ (lower + means))
    between = float(weights @ np.square(lower + means - centre))
    mean = centre if np.isnan(h.total) else h.total / h.n
    return mean, float(weights @ variances) + between


def _buckets(h: Histogram) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return lower edge, width and share of all values of the buckets that have any."""
    lower = np.append(0.0, h.upper_edges[:-1])
    upper = np.where(np.isfinite(h.upper_edges), h.upper_edges, _OPEN_BUCKET * lower)
    used = h.counts > 0.0
    return lower[used], np.maximum(upper - lower, 0.0)[used], h.counts[used] / h.n


def _rate(h: Histogram) -> float:
    """Return the rate of the exponential that gives the known mean; 0 where there is none."""
    if np.isnan(h.total):
        return 0.0
    lower, width, weights = _buckets(h)
    wanted = h.total / h.n - float(weights @ lower)
    scale, room = float(width.max()), float(weights @ width)
    if not -1e-6 * scale <= wanted <= room + 1e-6 * scale:
        return 0.0  # counts and sum are not of one moment
    low, high, rate = -_STEEPEST / scale, _STEEPEST / scale, 0.0
    for _ in range(_NEWTON_STEPS):
        means, variances = _truncated_exponential(width, rate)
        error = float(weights @ means) - wanted
        if abs(error) <= 1e-4 * scale:
            break
        low, high = (rate, high) if error < 0.0 else (low, rate)
        # The mean's derivative by the rate is the variance inside the buckets.
        slope = float(weights @ variances)
        rate = rate - error / slope if slope > 0.0 else low
        if not low < rate < high:
            rate = 0.5 * (low + high)
    return rate


def _truncated_exponential(width: FloatArray, rate: float) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of densities like `exp(rate x)` on [0, width]."""
    z = np.clip(rate * width, -_STEEPEST, _STEEPEST)
    small = np.abs(z) < 1e-2
    safe = np.where(small, 1.0, z)
    with np.errstate(over="ignore"):
        ratio = 1.0 / -np.expm1(-safe)  # exp(z) / (exp(z) - 1)
        means = width * np.where(small, 0.5 + z / 12.0, ratio - 1.0 / safe)
        squeezed = 1.0 / np.square(safe) - ratio * (ratio - 1.0)
    variances = np.square(width) * np.where(small, 1.0 / 12.0 - z * z / 240.0, squeezed)
    return means, np.maximum(variances, 0.0)


def _share_inside(x: FloatArray, width: FloatArray, rate: float) -> FloatArray:
    """Return the share of such densities that lies below x."""
    z = np.clip(rate * width, -_STEEPEST, _STEEPEST)
    small = np.abs(z) < 1e-2
    safe = np.where(small, 1.0, z)
    t = x / width
    steep = np.abs(safe)
    # Whichever end the mass is at, no exponent is positive.
    from_low = np.expm1(-steep * t) / np.expm1(-steep)
    from_high = 1.0 - np.expm1(-steep * (1.0 - t)) / np.expm1(-steep)
    share: FloatArray = np.where(small, t, np.where(safe < 0.0, from_low, from_high))
    return share
