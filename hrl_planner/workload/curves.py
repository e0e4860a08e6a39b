"""Rate curves: how the load and the typical request change over time.

A `RateCurve` is piecewise constant: on each interval a request rate, a mean prompt length and a
mean output length. Curves come from files (hours or days of a real service in a few kilobytes) or
from the shapes below, and `arrivals` turns one into a non-homogeneous Poisson process. Bursts are
curves too: a Markov-modulated process is a Poisson process on a random curve.

Arrivals are drawn by inversion: given their number, the arrivals of a Poisson process are
independent draws from the normalised rate, and the integral of a piecewise constant rate inverts
by linear interpolation. No thinning, no loop, exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hrl_planner.errors import TraceError
from hrl_planner.workload.transform import DAY_S, split_days

Floats = NDArray[np.float64]

STEP_S = 1.0
"""Resolution of smooth shapes: far below any planner's interval."""

MAX_REQUESTS = 50_000_000
"""Most requests one trace may be generated with: above it is a slip, not a wish."""


@dataclass(frozen=True, eq=False)
class RateCurve:
    """K intervals of constant rate.

    Attributes:
        name: for the trace made of it.
        edges_s: float64[K + 1], bounds of the intervals, increasing from 0.
        rate_rps: float64[K], requests per second, >= 0.
        mean_isl: float64[K], mean prompt tokens.
        mean_osl: float64[K], mean output tokens.
    """

    name: str
    edges_s: Floats
    rate_rps: Floats
    mean_isl: Floats
    mean_osl: Floats

    def __post_init__(self) -> None:
        """Check shapes, order and signs."""
        for field in ("edges_s", "rate_rps", "mean_isl", "mean_osl"):
            column = np.ascontiguousarray(getattr(self, field), dtype=np.float64)
            object.__setattr__(self, field, column)
            if not np.isfinite(column).all():
                self._refuse(field, "holds a value that is not finite")
        k = len(self.rate_rps)
        if k == 0 or len(self.edges_s) != k + 1:
            self._refuse("edges_s", f"{len(self.edges_s)} edges for {k} intervals")
        if self.edges_s[0] != 0 or (np.diff(self.edges_s) <= 0).any():
            self._refuse("edges_s", "must increase strictly from 0")
        if (self.rate_rps < 0).any():
            self._refuse("rate_rps", f"value {self.rate_rps.min()} is negative")
        for field, column in (("mean_isl", self.mean_isl), ("mean_osl", self.mean_osl)):
            if len(column) != k:
                self._refuse(field, f"{len(column)} values for {k} intervals")
            if (column < 1).any():
                self._refuse(field, f"value {column.min()} is below 1 token")

    def _refuse(self, field: str, why: str) -> None:
        raise TraceError(f"rate curve {self.name} field {field}: {why}")

    @property
    def duration_s(self) -> float:
        """End of the last interval."""
        return float(self.edges_s[-1])

    @property
    def expected_requests(self) -> float:
        """Mean number of requests over the whole curve."""
        return float(self.rate_rps @ np.diff(self.edges_s))

    def scale(self, *, time: float = 1.0, rate: float = 1.0) -> RateCurve:
        """Stretch time by `time` without changing rates, and multiply rates by `rate`.

        ``scale(time=1/24)`` plays a day in an hour at the day's own rates.
        """
        if not (time > 0 and rate >= 0):
            self._refuse("scale", f"factors must be time > 0 and rate >= 0, got {time}, {rate}")
        return replace(self, edges_s=self.edges_s * time, rate_rps=self.rate_rps * rate)

    def slice(self, start_s: float, end_s: float) -> RateCurve:
        """The part in [start_s, end_s), with time counted from start_s."""
        if not 0 <= start_s < end_s <= self.duration_s:
            self._refuse("slice", f"{start_s} to {end_s} s is not within 0 to {self.duration_s} s")
        inner = self.edges_s[(self.edges_s > start_s) & (self.edges_s < end_s)]
        edges = np.concatenate(([start_s], inner, [end_s]))
        at = np.searchsorted(self.edges_s, edges[:-1], side="right") - 1
        return RateCurve(
            self.name, edges - start_s, self.rate_rps[at], self.mean_isl[at], self.mean_osl[at]
        )

    def split_by_day(
        self, *, validation: float = 0.2, test: float = 0.2, day_s: float = DAY_S
    ) -> tuple[RateCurve, RateCurve, RateCurve]:
        """Train, validation and test parts that have no day in common, in this order in time."""
        bounds = split_days(
            self.duration_s, validation=validation, test=test, day_s=day_s, name=self.name
        )
        train, val, tst = (self.slice(low, high) for low, high in bounds)
        return train, val, tst

    def arrivals(self, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
        """Sorted arrival times of one draw of the process, and the interval each fell into."""
        if self.expected_requests > MAX_REQUESTS:
            self._refuse(
                "rate_rps",
                f"stands for {self.expected_requests:.3g} requests, at most {MAX_REQUESTS}; "
                "take a part of it or scale the rate down",
            )
        mass = np.concatenate(([0.0], np.cumsum(self.rate_rps * np.diff(self.edges_s))))
        n = int(rng.poisson(mass[-1]))
        # Sums of exponentials, normalised, are sorted uniforms: cheaper than sorting.
        steps = np.cumsum(rng.standard_exponential(n + 1))
        level = steps[:-1] / steps[-1] * mass[-1]
        interval = np.minimum(np.searchsorted(mass, level, side="right") - 1, len(mass) - 2)
        # An interval without load has no mass: nothing falls into it, whatever the rounding.
        width = np.diff(self.edges_s)[interval]
        share = (level - mass[interval]) / np.maximum(np.diff(mass)[interval], 1e-300)
        return self.edges_s[interval] + np.clip(share, 0.0, 1.0) * width, interval


def constant(
    rate_rps: float, duration_s: float, *, isl: float = 1024, osl: float = 256
) -> RateCurve:
    """One rate for the whole duration: a plain Poisson process."""
    return _curve("constant", np.array([0.0, duration_s]), np.array([rate_rps]), isl, osl)


def steps(
    rates_rps: list[float], duration_s: float, *, isl: float = 1024, osl: float = 256
) -> RateCurve:
    """Levels of equal length, one after another."""
    edges = np.linspace(0.0, duration_s, len(rates_rps) + 1)
    return _curve("steps", edges, np.asarray(rates_rps, dtype=np.float64), isl, osl)


def ramp(
    low_rps: float,
    high_rps: float,
    duration_s: float,
    *,
    start_s: float = 0.0,
    ramp_s: float | None = None,
    isl: float = 1024,
    osl: float = 256,
) -> RateCurve:
    """From one rate to another in `ramp_s` (absent: until the end), level before and after."""
    edges = _grid(duration_s)
    length = duration_s - start_s if ramp_s is None else ramp_s
    progress = np.clip((_middle(edges) - start_s) / length, 0.0, 1.0)
    return _curve("ramp", edges, low_rps + (high_rps - low_rps) * progress, isl, osl)


def sinusoid(
    low_rps: float,
    high_rps: float,
    duration_s: float,
    *,
    period_s: float = 900.0,
    isl: float = 1024,
    osl: float = 256,
) -> RateCurve:
    """Swing between two rates, starting at the low one."""
    edges = _grid(duration_s)
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * _middle(edges) / period_s)
    return _curve("sinusoid", edges, low_rps + (high_rps - low_rps) * wave, isl, osl)


def diurnal(
    peak_rps: float,
    duration_s: float,
    *,
    trough: float = 0.25,
    day_s: float = DAY_S,
    peak_at: float = 0.58,
    isl: float = 1024,
    osl: float = 256,
) -> RateCurve:
    """A working day: quiet night, steep morning, a dip at noon, a second peak, a slow evening.

    Args:
        peak_rps: highest rate.
        duration_s: how long; may hold many days or a part of one.
        trough: lowest rate as a share of the peak.
        day_s: length of a day; below 86,400 it is a compressed one.
        peak_at: where in the day, 0 to 1, the afternoon peak lies.
        isl: mean prompt tokens.
        osl: mean output tokens.
    """
    edges = _grid(duration_s)
    phase = np.mod(_middle(edges) / day_s, 1.0)
    morning = 0.92 * _bump(phase - (peak_at - 0.16), 0.065)
    afternoon = _bump(phase - peak_at, 0.09)
    evening = 0.55 * _bump(phase - (peak_at + 0.22), 0.12)
    shape = np.maximum.reduce((morning, afternoon, evening))
    return _curve("diurnal", edges, peak_rps * (trough + (1 - trough) * shape), isl, osl)


def bursts(
    quiet_rps: float,
    burst_rps: float,
    duration_s: float,
    *,
    seed: int,
    mean_quiet_s: float = 240.0,
    mean_burst_s: float = 45.0,
    isl: float = 1024,
    osl: float = 256,
) -> RateCurve:
    """Markov-modulated: exponentially long quiet and burst phases, starting quiet."""
    rng = np.random.default_rng(seed)
    pairs = int(np.ceil(duration_s / (mean_quiet_s + mean_burst_s))) * 4 + 32
    lengths = rng.standard_exponential((pairs, 2)) * (mean_quiet_s, mean_burst_s)
    ends = np.cumsum(lengths.ravel())
    while ends[-1] < duration_s:  # four times the expected number is all but always enough
        more = rng.standard_exponential((pairs, 2)) * (mean_quiet_s, mean_burst_s)
        ends = np.concatenate((ends, ends[-1] + np.cumsum(more.ravel())))
    edges = np.concatenate(([0.0], ends[ends < duration_s], [duration_s]))
    phase = np.arange(len(edges) - 1) % 2
    return _curve("bursts", edges, np.where(phase == 0, quiet_rps, burst_rps), isl, osl)


def drift(
    curve: RateCurve,
    *,
    isl: tuple[float, float] | None = None,
    osl: tuple[float, float] | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> RateCurve:
    """The same rates while mean lengths move from one value to another between two times.

    Lengths move geometrically: doubling takes as long at the start as at the end.
    """
    end = curve.duration_s if end_s is None else end_s
    extra = _grid(curve.duration_s)
    edges = np.unique(np.concatenate((curve.edges_s, extra)))
    at = np.searchsorted(curve.edges_s, edges[:-1], side="right") - 1
    progress = np.clip((_middle(edges) - start_s) / max(end - start_s, 1e-9), 0.0, 1.0)
    mean_isl, mean_osl = curve.mean_isl[at], curve.mean_osl[at]
    if isl is not None:
        mean_isl = isl[0] * (isl[1] / isl[0]) ** progress
    if osl is not None:
        mean_osl = osl[0] * (osl[1] / osl[0]) ** progress
    return RateCurve(curve.name, edges, curve.rate_rps[at], mean_isl, mean_osl)


def product(curve: RateCurve, factor: RateCurve) -> RateCurve:
    """`curve` with its rate multiplied by the rate of `factor`: bursts riding on a day, say."""
    edges = np.unique(np.concatenate((curve.edges_s, factor.edges_s)))
    edges = edges[edges <= min(curve.duration_s, factor.duration_s)]
    at = np.searchsorted(curve.edges_s, edges[:-1], side="right") - 1
    by = np.searchsorted(factor.edges_s, edges[:-1], side="right") - 1
    return RateCurve(
        curve.name,
        edges,
        curve.rate_rps[at] * factor.rate_rps[by],
        curve.mean_isl[at],
        curve.mean_osl[at],
    )


def _curve(name: str, edges: Floats, rate: Floats, isl: float, osl: float) -> RateCurve:
    k = len(edges) - 1
    return RateCurve(name, edges, rate, np.full(k, float(isl)), np.full(k, float(osl)))


def _grid(duration_s: float) -> Floats:
    return np.linspace(0.0, duration_s, max(1, int(np.ceil(duration_s / STEP_S))) + 1)


def _middle(edges: Floats) -> Floats:
    centre: Floats = (edges[:-1] + edges[1:]) / 2
    return centre


def _bump(offset: Floats, width: float) -> Floats:
    """A bell of height 1 on a circle of circumference 1."""
    around = np.mod(offset + 0.5, 1.0) - 0.5
    bell: Floats = np.exp(-0.5 * (around / width) ** 2)
    return bell
