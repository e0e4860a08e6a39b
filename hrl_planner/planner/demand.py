"""What is asked of the cluster: requests/s per class now and over the start-up horizon.

`ObservedDemand` reads the router's counters and extrapolates; `TraceDemand` reads the future, for
clairvoyant bounds. A plan made now serves when its replicas are up, so the demand planned for is
the peak between now and then; it is kept for a while after it has passed (stabilisation), and work
that has piled up is added as if it arrived anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hrl_planner.capacity import ClassLoad
from hrl_planner.observation import CLASS_FIELDS, ClusterObservation
from hrl_planner.planner.policy import FloatArray, PlanContext

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec

# Longer than any engine takes: capacities are computed chunk by chunk, and a metric gone wrong
# (1e12 tokens) must not keep the planner busy for minutes.
_LONGEST_TOKENS = 1e7
_SHAPE_MEMORY = 0.5  # weight of a new observation of lengths and hit rates
_TREND_POINTS = 6
_TREND_WINDOW_S = 180.0
_TYPICAL = {  # in the order of ClassLoad
    "isl_mean_tokens": 1024.0,
    "isl_std_tokens": 512.0,
    "osl_mean_tokens": 256.0,
    "osl_std_tokens": 128.0,
    "prefix_hit_rate": 0.0,
}
_SHAPE_COLUMNS = [CLASS_FIELDS.index(name) for name in _TYPICAL]


@dataclass(frozen=True, slots=True)
class Demand:
    """One estimate.

    Attributes:
        now: requests/s per class, shape (C,); NaN where nothing is known.
        planned: requests/s per class to have capacity for, shape (C,).
        load: what the requests look like.
    """

    now: FloatArray
    planned: FloatArray
    load: ClassLoad


class DemandSource(Protocol):
    """Where a planner learns what is asked for."""

    def reset(self, context: PlanContext) -> None:
        """Prepare for a cluster."""

    def estimate(self, observation: ClusterObservation) -> Demand:
        """Return rates and lengths."""


class Recent:
    """Rows of the last while, oldest first, in arrays that are read without being rebuilt."""

    def __init__(self, width: int) -> None:
        self._t_s: FloatArray = np.empty(128)
        self._rows: FloatArray = np.empty((128, width))
        self._first = self._last = 0

    def __len__(self) -> int:
        return self._last - self._first

    @property
    def t_s(self) -> FloatArray:
        """When each row was added."""
        return self._t_s[self._first : self._last]

    @property
    def rows(self) -> FloatArray:
        """The rows, shape (len, width)."""
        return self._rows[self._first : self._last]

    def add(self, t_s: float, row: FloatArray) -> None:
        """Append a row."""
        if self._last == self._t_s.size:
            size = max(2 * len(self), 128)
            t_old, rows_old = self.t_s, self.rows
            self._t_s, self._rows = np.empty(size), np.empty((size, rows_old.shape[1]))
            self._first, self._last = 0, t_old.size
            self._t_s[: self._last], self._rows[: self._last] = t_old, rows_old
        self._t_s[self._last], self._rows[self._last] = t_s, row
        self._last += 1

    def forget(self, before_s: float) -> None:
        """Drop rows older than a time, but never the newest."""
        while self._last - self._first > 1 and self._t_s[self._first] < before_s:
            self._first += 1


class ObservedDemand:
    """Demand from metrics: level, damped trend over the horizon, backlog, stabilisation.

    Args:
        horizon_s: how far ahead replicas started now will serve.
        hold_s: how long a passed peak still counts.
        drain_s: time in which piled-up requests should be worked off.
        trend: share of the recent slope that is extrapolated, 0 for the last value.
    """

    def __init__(self, horizon_s: float, hold_s: float, drain_s: float, trend: float) -> None:
        """See the class."""
        self._horizon_s, self._hold_s, self._drain_s = horizon_s, hold_s, drain_s
        self._trend = trend
        self._seen = self._peaks = Recent(0)
        self._shape: FloatArray = np.zeros((len(_TYPICAL), 0))
        self._residence_s: FloatArray = np.zeros(0)
        self._itl_s: FloatArray = np.zeros(0)

    def reset(self, context: PlanContext) -> None:
        """Forget everything."""
        classes = context.spec.slo_classes
        self._seen, self._peaks = Recent(len(classes)), Recent(len(classes))
        self._shape = np.repeat(list(_TYPICAL.values()), len(classes)).reshape(len(_TYPICAL), -1)
        self._residence_s = np.array([c.ttft_ms for c in classes]) * 1e-3
        self._itl_s = np.array([c.itl_ms for c in classes]) * 1e-3

    def estimate(self, observation: ClusterObservation) -> Demand:
        """Take in one observation and return the estimate."""
        t_s = observation.now_s
        seen = observation.classes[:, _SHAPE_COLUMNS].T
        fresh = self._shape + _SHAPE_MEMORY * (seen - self._shape)
        self._shape = np.where(np.isnan(seen), self._shape, fresh)
        load = load_of(self._shape)
        now = observation.class_field("arrivals_rps")
        if np.isnan(now).any():
            return Demand(now, self._highest(t_s), load)
        if not len(self._seen) or self._seen.t_s[-1] < t_s:
            self._seen.add(t_s, now)
        self._seen.forget(t_s - _TREND_WINDOW_S)
        ahead = np.maximum(now, now + self._slope() * self._trend * self._horizon_s)
        planned = ahead + self._backlog(observation, now, load) / self._drain_s
        self._peaks.add(t_s, planned)
        return Demand(now, self._highest(t_s), load)

    def _highest(self, t_s: float) -> FloatArray:
        self._peaks.forget(t_s - self._hold_s)
        if not len(self._peaks):
            return np.zeros_like(self._itl_s)
        highest: FloatArray = self._peaks.rows.max(axis=0)
        return highest

    def _slope(self) -> FloatArray:
        """Return the least-squares slope of recent rates, requests/s per second."""
        if len(self._seen) < _TREND_POINTS // 2:
            return np.zeros_like(self._itl_s)
        t, rates = self._seen.t_s, self._seen.rows
        t = t - t.mean()
        slope: FloatArray = t @ (rates - rates.mean(axis=0)) / max(float(t @ t), 1e-9)
        return slope

    def _backlog(
        self, observation: ClusterObservation, now: FloatArray, load: ClassLoad
    ) -> FloatArray:
        """Return the requests in the system beyond what kept promises would leave there."""
        normal = now * (self._residence_s + load.osl * self._itl_s)
        spread = 2.0 * np.sqrt(normal)
        # What is not known is no backlog.
        return np.fmax(observation.class_field("in_system") - normal - spread, 0.0)


def load_of(shape: Sequence[FloatArray] | FloatArray) -> ClassLoad:
    """Return class loads from the observation fields of _TYPICAL, shape (5, C)."""
    isl, isl_std, osl, osl_std = np.minimum(shape[:-1], _LONGEST_TOKENS)
    return ClassLoad(isl, isl_std, osl, osl_std, np.minimum(np.maximum(shape[-1], 0.0), 0.99))


@dataclass
class TraceDemand:
    """Demand read from the trace itself: perfect foresight of rates and lengths.

    Only prefix hits are observed, because they follow from routing.

    Attributes:
        horizon_s: how far ahead to look.
        smooth_s: rates are means over windows this long.
    """

    horizon_s: float
    smooth_s: float = 30.0
    _rates: FloatArray = field(default_factory=lambda: np.zeros((0, 0)), init=False)
    _sums: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0)), init=False)
    _observed: ObservedDemand | None = field(default=None, init=False)

    def reset(self, context: PlanContext) -> None:
        """Count the trace into windows."""
        trace, spec = context.trace, context.spec
        if trace is None:
            from hrl_planner.errors import PolicyError

            raise PolicyError("a clairvoyant policy needs the trace it runs on; none was given")
        class_id = context.class_id
        if class_id is None:
            from hrl_planner.workload.classes import assign_classes

            class_id = assign_classes(trace, spec, context.seed)
        n_bins = int(trace.duration_s // self.smooth_s) + 1
        bins = np.minimum((trace.arrival_s // self.smooth_s).astype(np.int64), n_bins - 1)
        isl = trace.isl_tokens.astype(np.float64)
        osl = trace.osl_tokens.astype(np.float64)
        columns = (np.ones_like(isl), isl, isl * isl, osl, osl * osl)
        at = bins * len(spec.slo_classes) + class_id
        size = n_bins * len(spec.slo_classes)
        counted = [np.bincount(at, column, size).reshape(n_bins, -1) for column in columns]
        self._sums = np.stack(counted)
        self._rates = self._sums[0] / self.smooth_s
        self._observed = ObservedDemand(self.horizon_s, 0.0, 60.0, 0.0)
        self._observed.reset(context)

    def estimate(self, observation: ClusterObservation) -> Demand:
        """Return the peak of the true rates over the horizon, and the lengths in it."""
        assert self._observed is not None
        seen = self._observed.estimate(observation)
        first = min(int(observation.now_s // self.smooth_s), len(self._rates) - 1)
        last = int((observation.now_s + self.horizon_s) // self.smooth_s) + 1
        ahead = self._rates[first:last]
        n, isl, isl2, osl, osl2 = self._sums[:, first:last].sum(axis=1)
        load = seen.load
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_isl, mean_osl = isl / n, osl / n
            shape = [
                np.where(n > 0, mean_isl, load.isl),
                np.where(n > 0, np.sqrt(np.maximum(isl2 / n - mean_isl**2, 0)), load.isl_std),
                np.where(n > 0, mean_osl, load.osl),
                np.where(n > 0, np.sqrt(np.maximum(osl2 / n - mean_osl**2, 0)), load.osl_std),
                load.hit_rate,
            ]
        backlog = np.maximum(seen.planned - np.nan_to_num(seen.now), 0.0)
        return Demand(self._rates[first], ahead.max(axis=0) + backlog, load_of(shape))


def startup_horizon_s(spec: ClusterSpec) -> float:
    """Return the time from a decision until most of its replicas serve, and one interval."""
    starts = [p.startup.mean_s * (1.0 + p.startup.cv) + p.startup.spread_s for p in spec.pools]
    return max(starts) + spec.intervals.global_s
