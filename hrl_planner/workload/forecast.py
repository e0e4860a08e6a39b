"""Forecasts of the next minutes from the last: K series at once, updated in microseconds.

A planner feeds one vector of values per interval (request rates per class, say) and asks for the
vector some seconds ahead. All forecasters here are recursions over a few arrays; nothing is
refitted inside the control loop. Smoothing constants can be fitted beforehand on a recorded series
(`fit_holt_winters`, with statsmodels). A value that is NaN (a scrape that failed) leaves its series
as it was. Predictions are never negative.

`Oracle` reads the future from the trace: for policies with perfect foresight, and only those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import PolicyError
from hrl_planner.workload.trace import Trace

Floats = NDArray[np.float64]


class Forecaster(Protocol):
    """What a planner needs of a forecast."""

    def update(self, t_s: float, values: Floats) -> None:
        """Take in the K values observed at a time later than the last."""

    def predict(self, horizon_s: float) -> Floats:
        """The K values expected `horizon_s` after the last update; NaN for a series never seen."""


class LastValue:
    """Tomorrow is like today."""

    def __init__(self, k: int) -> None:
        self._last = np.full(k, np.nan)

    def update(self, t_s: float, values: Floats) -> None:
        """Remember the values."""
        self._last = np.where(np.isnan(values), self._last, values)

    def predict(self, horizon_s: float) -> Floats:
        """Repeat them."""
        return _not_negative(self._last)


class Ewma:
    """Exponentially weighted mean: noise goes, and with it quick changes.

    Args:
        k: number of series.
        half_life_s: after this long a value counts half.
    """

    def __init__(self, k: int, half_life_s: float = 60.0) -> None:
        _require("ewma", half_life_s=half_life_s)
        self._half_life_s = half_life_s
        self._level = np.full(k, np.nan)
        self._seen_s = np.full(k, np.nan)

    def update(self, t_s: float, values: Floats) -> None:
        """Move the level towards the values by the time that passed since the last ones."""
        keep = 0.5 ** ((t_s - self._seen_s) / self._half_life_s)
        moved = np.where(np.isnan(keep), values, keep * self._level + (1 - keep) * values)
        known = ~np.isnan(values)
        self._level = np.where(known, moved, self._level)
        self._seen_s = np.where(known, t_s, self._seen_s)

    def predict(self, horizon_s: float) -> Floats:
        """The level."""
        return _not_negative(self._level)


class HoltWinters:
    """Level, damped trend and, where a season is given, an additive seasonal figure.

    Args:
        k: number of series.
        step_s: time between updates; longer gaps count as several steps.
        alpha: how fast the level follows, 0 to 1.
        beta: how fast the trend follows, 0 to 1.
        gamma: how fast the season follows, 0 to 1.
        damping: what is left of the trend after a step; below 1, so that far horizons stay sane.
        season_s: length of a season; None for none.
    """

    def __init__(
        self,
        k: int,
        step_s: float = 60.0,
        *,
        alpha: float = 0.5,
        beta: float = 0.2,
        gamma: float = 0.1,
        damping: float = 0.9,
        season_s: float | None = None,
    ) -> None:
        _require("holt-winters", step_s=step_s)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not 0 <= value <= 1:
                raise PolicyError(f"forecaster holt-winters field {name}: {value} is not in 0..1")
        if not 0 < damping <= 1:
            raise PolicyError(f"forecaster holt-winters field damping: {damping} is not in (0, 1]")
        self._step_s = step_s
        self._alpha, self._beta, self._gamma, self._damping = alpha, beta, gamma, damping
        self._slots = 1 if season_s is None else max(2, round(season_s / step_s))
        self._seasonal = season_s is not None
        self._level = np.full(k, np.nan)
        self._trend = np.zeros(k)
        self._season = np.zeros((self._slots, k))
        self._seen_s = np.full(k, np.nan)
        self._now_s = 0.0

    def update(self, t_s: float, values: Floats) -> None:
        """One step of the recursion for every series that has a value."""
        season = self._season[self._slot(t_s)]
        steps = np.maximum((t_s - self._seen_s) / self._step_s, 1e-6)
        drift = self._trend * _damped_sum(self._damping, steps)
        expected = self._level + drift
        level = expected + self._alpha * (values - season - expected)
        slope = (level - self._level) / steps
        # The trend that was left after the gap, moved towards the slope just seen.
        faded = self._trend * self._damping**steps
        trend = faded + self._beta * (slope - faded)
        known = ~np.isnan(values)
        first = known & np.isnan(self._level)
        going = known & ~first
        if self._seasonal:
            season[going] += self._gamma * (values - level - season)[going]
        self._level = np.where(first, values, np.where(going, level, self._level))
        self._trend = np.where(going, trend, self._trend)
        self._seen_s = np.where(known, t_s, self._seen_s)
        self._now_s = t_s

    def predict(self, horizon_s: float) -> Floats:
        """Level, plus the damped trend until then, plus the season then."""
        then_s = self._now_s + horizon_s
        steps = (then_s - self._seen_s) / self._step_s
        ahead = self._level + self._trend * _damped_sum(self._damping, steps)
        return _not_negative(ahead + self._season[self._slot(then_s)])

    def _slot(self, t_s: float) -> int:
        return round(t_s / self._step_s) % self._slots


class SeasonalNaive:
    """What it was one season before; the last value while a season has not passed.

    Args:
        k: number of series.
        season_s: length of a season, as a day.
        step_s: resolution at which the last season is remembered.
    """

    def __init__(self, k: int, season_s: float = 86_400.0, step_s: float = 60.0) -> None:
        _require("seasonal-naive", season_s=season_s, step_s=step_s)
        self._step_s = step_s
        self._memory = np.full((max(1, round(season_s / step_s)), k), np.nan)
        self._last = np.full(k, np.nan)
        self._now_s = 0.0

    def update(self, t_s: float, values: Floats) -> None:
        """Remember the values in the slot of their time."""
        slot = self._memory[self._slot(t_s)]
        np.copyto(slot, values, where=~np.isnan(values))
        self._last = np.where(np.isnan(values), self._last, values)
        self._now_s = t_s

    def predict(self, horizon_s: float) -> Floats:
        """The remembered values of that slot."""
        remembered = self._memory[self._slot(self._now_s + horizon_s)]
        return _not_negative(np.where(np.isnan(remembered), self._last, remembered))

    def _slot(self, t_s: float) -> int:
        return int(t_s / self._step_s + 1e-9) % len(self._memory)


class Oracle:
    """The true request rate per class, read from the trace.

    Args:
        trace: what will happen.
        class_id: int16[N], class of each request.
        k: number of classes.
        window_s: the rate is counted over this long, centred on the time asked for.
    """

    def __init__(
        self, trace: Trace, class_id: NDArray[np.int16], k: int, window_s: float = 60.0
    ) -> None:
        _require("oracle", window_s=window_s)
        self._arrivals = [trace.arrival_s[class_id == c] for c in range(k)]
        self._end_s = trace.duration_s
        self._window_s = window_s
        self._now_s = 0.0

    def update(self, t_s: float, values: Floats) -> None:
        """Take the time; the values are known anyway."""
        self._now_s = t_s

    def predict(self, horizon_s: float) -> Floats:
        """Requests per second around then."""
        centre = self._now_s + horizon_s
        low = max(0.0, centre - self._window_s / 2)
        # At the ends of the trace only the part of the window that lies in it counts.
        high = min(max(centre + self._window_s / 2, low), max(self._end_s, low))
        return self.mean_rate(low, high)

    def mean_rate(self, start_s: float, end_s: float) -> Floats:
        """Requests per second of each class in [start_s, end_s)."""
        if end_s <= start_s:
            return np.zeros(len(self._arrivals))
        counts = [np.diff(np.searchsorted(a, (start_s, end_s)))[0] for a in self._arrivals]
        rates: Floats = np.array(counts, dtype=np.float64) / (end_s - start_s)
        return rates


def fit_holt_winters(
    values: Floats, step_s: float, *, season_s: float | None = None
) -> HoltWinters:
    """Make a HoltWinters whose constants are fitted on recorded series (needs statsmodels).

    Args:
        values: float64[T, K], one row per step. Each series is fitted; the constants are averaged
            with the series' totals as weights, so that a class with no traffic has no say.
        step_s: time between rows.
        season_s: length of a season; at least two must be in the record.
    """
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    if values.ndim != 2 or not np.isfinite(values).all():
        raise PolicyError(
            f"forecaster holt-winters field values: must be finite rows of K, got {values.shape}"
        )
    periods = None if season_s is None else round(season_s / step_s)
    if len(values) < max(12, 2 * (periods or 0)):
        raise PolicyError(
            f"forecaster holt-winters field values: {len(values)} rows are too few to fit on"
        )
    found, weights = [], []
    for series in values.T:
        if np.ptp(series) == 0:
            continue
        model = ExponentialSmoothing(
            series,
            trend="add",
            damped_trend=True,
            seasonal="add" if periods else None,
            seasonal_periods=periods,
            initialization_method="estimated",
        )
        fit = model.fit(optimized=True).params
        gamma = fit["smoothing_seasonal"] if periods else 0.0
        found.append((fit["smoothing_level"], fit["smoothing_trend"], gamma, fit["damping_trend"]))
        weights.append(float(np.abs(series).sum()))
    k = values.shape[1]
    if not found:
        return HoltWinters(k, step_s, season_s=season_s)
    alpha, beta, gamma, damping = (float(x) for x in np.average(found, axis=0, weights=weights))
    # statsmodels smooths the trend by beta times the level's error; ours by beta times the slope's,
    # which is alpha times that error: hence the division.
    return HoltWinters(
        k,
        step_s,
        alpha=float(np.clip(alpha, 0.0, 1.0)),
        beta=float(np.clip(beta / max(alpha, 1e-6), 0.0, 1.0)),
        gamma=float(np.clip(gamma, 0.0, 1.0)),
        damping=float(np.clip(damping, 0.5, 1.0)),
        season_s=season_s,
    )


FORECASTERS: dict[str, Callable[..., Forecaster]] = {
    "last-value": LastValue,
    "ewma": Ewma,
    "holt-winters": HoltWinters,
    "seasonal-naive": SeasonalNaive,
}


def make_forecaster(name: str, k: int, **parameters: float) -> Forecaster:
    """A forecaster by name, for K series.

    Raises:
        PolicyError: unknown name or parameter.
    """
    if name not in FORECASTERS:
        raise PolicyError(f"unknown forecaster {name!r}; one of: {', '.join(FORECASTERS)}")
    try:
        return FORECASTERS[name](k, **parameters)
    except TypeError as error:
        raise PolicyError(f"forecaster {name}: {error}") from error


def _damped_sum(damping: float, steps: Floats) -> Floats:
    """Damping + damping^2 + ... over a number of steps, which need not be whole."""
    if damping == 1.0:
        return steps
    total: Floats = damping * (1.0 - damping**steps) / (1.0 - damping)
    return total


def _not_negative(values: Floats) -> Floats:
    clipped: Floats = np.maximum(values, 0.0)
    return clipped


def _require(name: str, **positive: float) -> None:
    for field, value in positive.items():
        if not (np.isfinite(value) and value > 0):
            raise PolicyError(f"forecaster {name} field {field}: must be > 0, got {value}")
