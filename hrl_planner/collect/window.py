"""The last while of one pool: samples of its workers in, rates, gauges and distributions out.

No clock and no network: whoever feeds it says when a sample was taken, and in whatever order.
Samples younger than the lag are not visible yet, those older than lag and window do not count any
more, as in the simulator (`envs/kernel/observe.py`).

What each worker did is known over the part of the window that its samples span. Rates are per
second of that part, times the share of the window the worker was there; workers that are there and
were not heard are taken to do what the others do. So a pool of which half answers shows its whole
traffic, one that nobody heard shows NaN, and one without workers shows none. A worker that went
counts with what it had said; its gauges do not count.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hrl_planner.collect.histogram import FloatArray, Histogram
from hrl_planner.collect.sample import Increments, Layout, WorkerSample
from hrl_planner.spec import IntervalSpec
from hrl_planner.worker_metrics import COUNTERS


@dataclass(frozen=True, slots=True)
class Timing:
    """Which samples count.

    Attributes:
        window_s: how far back.
        lag_s: how old a sample must be to be seen.
        scrape_s: between two samples of a worker.
        grace_s: how long after it was ready a worker's latencies are those of its warm-up.
    """

    window_s: float
    lag_s: float = 0.0
    scrape_s: float = 5.0
    grace_s: float = 0.0

    @property
    def kept_s(self) -> float:
        """How far back samples are kept: a restart before the window can make its begin cold."""
        return self.lag_s + self.window_s + self.grace_s

    @staticmethod
    def of(intervals: IntervalSpec, grace_s: float) -> Timing:
        """Return what a spec says."""
        return Timing(intervals.window_s, intervals.scrape_lag_s, intervals.scrape_s, grace_s)


@dataclass(frozen=True, slots=True)
class PoolTotals:
    """A pool over its window; NaN for what is not known.

    Attributes:
        rates: per second, by Counter.
        waiting: requests in the workers' queues.
        running: requests in their batches.
        kv_use: mean share of KV blocks in use.
        age_s: half of the workers were heard not longer ago than this.
        histograms: values seen, by Distribution.
    """

    rates: Mapping[str, float]
    waiting: float
    running: float
    kv_use: float
    age_s: float
    histograms: Mapping[str, list[Histogram]]

    @staticmethod
    def unknown() -> PoolTotals:
        """Return that nothing is known."""
        nan = math.nan
        return PoolTotals(dict.fromkeys(COUNTERS, nan), nan, nan, nan, nan, {})


@dataclass(slots=True)
class _History:
    """Samples of one worker, by time, and since when it is ready."""

    ready_since_s: float = -math.inf
    times: list[float] = field(default_factory=list)
    samples: list[WorkerSample] = field(default_factory=list)

    def add(self, sample: WorkerSample) -> None:
        at = bisect.bisect_left(self.times, sample.at_s)
        if at < len(self.times) and self.times[at] == sample.at_s:
            self.samples[at] = sample
        else:
            self.times.insert(at, sample.at_s)
            self.samples.insert(at, sample)

    def forget(self, before_s: float) -> None:
        """Drop samples older than a time but the newest of them, what follows is measured by it."""
        old = bisect.bisect_right(self.times, before_s) - 1
        if old > 0:
            del self.times[:old], self.samples[:old]

    def newest(self, until_s: float) -> WorkerSample | None:
        at = bisect.bisect_right(self.times, until_s)
        return self.samples[at - 1] if at else None

    def increments(self, until_s: float) -> Increments | None:
        """Return what happened until a time."""
        return Increments.between(self.samples[: bisect.bisect_right(self.times, until_s)])


@dataclass(frozen=True, slots=True)
class _Part:
    """What one worker did in the window.

    Attributes:
        presence: share of the window in which it was there.
        increments: None where its samples do not span any time in it.
        begins_s: when its engine began, as far as it matters.
    """

    presence: float
    increments: Increments | None
    begins_s: list[float]


class PoolWindow:
    """See the module.

    Args:
        timing: which samples count.
        since_s: when somebody began to listen; no traffic is known of before.
    """

    def __init__(self, timing: Timing, since_s: float) -> None:
        self._timing = timing
        self._since_s = since_s
        self._workers: dict[str, _History] = {}
        self._listed: set[str] = set()

    def set_workers(self, ready_since_s: Mapping[str, float]) -> None:
        """Say which workers serve now, and since when; minus infinity for one long warm."""
        self._listed = set(ready_since_s)
        for name, since_s in ready_since_s.items():
            self._workers.setdefault(name, _History()).ready_since_s = since_s

    def add(self, worker: str, sample: WorkerSample) -> None:
        """Take a sample of a worker; one at the same time as another takes its place."""
        history = self._workers.setdefault(worker, _History())
        history.add(sample)
        history.forget(history.times[-1] - self._timing.kept_s)

    def totals(self, now_s: float) -> PoolTotals:
        """Return what is known now, and forget what cannot count any more."""
        until_s = now_s - self._timing.lag_s
        after_s = until_s - self._timing.window_s
        self._forget(now_s - self._timing.kept_s)
        start_s = max(after_s, self._since_s)
        if until_s <= start_s:
            return PoolTotals.unknown()
        parts = []
        for name, history in self._workers.items():
            kept = history.increments(until_s)
            begins_s = [history.ready_since_s]
            increments = None
            if kept is not None:
                begins_s += kept.to_s[kept.restarted].tolist()
                increments = kept.after(after_s)
                increments = increments if increments.to_s.size else None
            presence = self._presence(name, history, increments, start_s, until_s)
            parts.append(_Part(presence, increments, begins_s))
        rates = _rates(parts)
        histograms = self._histograms(parts)
        # One that is new and was not asked yet has hardly any load.
        asked_s = until_s - 2.0 * self._timing.scrape_s
        newest = [
            sample
            for name in sorted(self._listed)
            if (sample := self._workers[name].newest(until_s)) is not None
            or self._workers[name].ready_since_s <= asked_s
        ]
        return PoolTotals(rates, *_gauges(newest, after_s), self._age(now_s), histograms)

    def _forget(self, before_s: float) -> None:
        for name, history in list(self._workers.items()):
            history.forget(before_s)
            if name not in self._listed and history.newest(math.inf) is None:
                del self._workers[name]
            elif name not in self._listed and history.times[-1] <= before_s:
                del self._workers[name]

    def _presence(
        self,
        name: str,
        history: _History,
        increments: Increments | None,
        start_s: float,
        until_s: float,
    ) -> float:
        """Return the share of the window in which a worker was there."""
        listed = name in self._listed
        # A worker that was not ready for a moment was there before.
        began_s = min(
            history.ready_since_s if listed else math.inf,
            math.inf if increments is None else float(increments.from_s[0]),
        )
        last_s = -math.inf if increments is None else float(increments.to_s[-1])
        ended_s = until_s if listed else last_s
        return max(0.0, ended_s - max(start_s, began_s)) / (until_s - start_s)

    def _histograms(self, parts: Sequence[_Part]) -> dict[str, list[Histogram]]:
        """Add up what pages of one layout counted; latencies of warm-ups are left out."""
        sums: dict[Layout, FloatArray] = {}
        for part in parts:
            if (increments := part.increments) is None:
                continue
            layout, rows = increments.layout, increments.rows
            cold = np.zeros(increments.to_s.size, bool)
            for begin_s in part.begins_s:
                ends_s = begin_s + self._timing.grace_s
                cold |= (increments.to_s >= begin_s) & (increments.from_s < ends_s)
            row = rows.sum(axis=0)
            if cold.any():
                row[layout.latency] = rows[np.ix_(~cold, layout.latency)].sum(axis=0)
            known = sums.get(layout)
            sums[layout] = row if known is None else known + row
        found: dict[str, list[Histogram]] = {}
        for layout, row in sums.items():
            for name, histogram in layout.split(row).items():
                found.setdefault(name, []).append(histogram)
        return found

    def _age(self, now_s: float) -> float:
        """Return the age that half of the workers' newest samples do not exceed."""
        until_s = now_s - self._timing.lag_s
        if not self._listed:
            return self._timing.lag_s
        newest = [
            (history.newest(until_s), history.ready_since_s)
            for history in (self._workers[name] for name in self._listed)
        ]
        if all(sample is None or sample.at_s <= until_s - self._timing.window_s
               for sample, _ in newest):  # fmt: skip
            return math.nan
        ages = sorted(
            now_s - (max(since_s, self._since_s) if sample is None else sample.at_s)
            for sample, since_s in newest
        )
        return ages[(len(ages) - 1) // 2]


def _rates(parts: Sequence[_Part]) -> dict[str, float]:
    """Return rates per second of the whole pool."""
    present = sum(part.presence for part in parts)
    if present <= 0.0:
        return dict.fromkeys(COUNTERS, 0.0)
    rates = np.zeros(len(COUNTERS))
    known_presence = np.zeros(len(COUNTERS))
    for part in parts:
        presence, increments = part.presence, part.increments
        if increments is None or presence <= 0.0:
            continue
        counts = increments.counts
        known = ~np.isnan(counts)
        covered_s = (increments.to_s - increments.from_s) @ known
        has = covered_s > 0.0
        done = np.where(known, counts, 0.0).sum(axis=0)
        rates[has] += presence * done[has] / covered_s[has]
        known_presence[has] += presence
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(known_presence > 0.0, rates * present / known_presence, np.nan)
    return dict(zip(COUNTERS, np.maximum(scaled, 0.0).tolist(), strict=True))


def _gauges(newest: Sequence[WorkerSample | None], after_s: float) -> tuple[float, float, float]:
    """Return waiting, running and KV use: sums over workers, those not heard like the others."""
    if not newest:
        return 0.0, 0.0, 0.0
    fresh = [s for s in newest if s is not None and s.at_s > after_s]
    found = []
    for values in ([s.waiting for s in fresh], [s.running for s in fresh]):
        known = [value for value in values if not math.isnan(value)]
        found.append(math.fsum(known) * len(newest) / len(known) if known else math.nan)
    shares = [s.kv_use for s in fresh if not math.isnan(s.kv_use)]
    kv_use = math.fsum(shares) / len(shares) if shares else math.nan
    return found[0], found[1], kv_use
