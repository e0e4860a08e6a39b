"""One scrape of one worker, and what happened between its scrapes.

Engines count from their start. A count that is lower than it was means that the engine was
restarted; what it counts now, it counted since. Requests that arrived are not counted by every
engine; then they are those that finished plus those that are now in the engine and were not before.

Everything a page counts is one row of numbers, so that a window of a worker is one matrix: there
may be ten thousand workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hrl_planner.collect.histogram import FloatArray, Histogram
from hrl_planner.worker_metrics import COUNTERS, HistogramCounts, Reading

# The distributions that an observation needs; latencies are those that a warm-up spoils.
_DISTRIBUTIONS = ("ttft_s", "itl_s", "prompt_length", "answer_length")
_LATENCIES = ("ttft_s", "itl_s")
_COLUMNS = (*COUNTERS, "in_engine", "first_tokens")
_AT = {name: k for k, name in enumerate(_COLUMNS)}


@dataclass(frozen=True, eq=False)
class Layout:
    """What the numbers of a row are: _COLUMNS, then buckets and sum of each histogram.

    Attributes:
        histograms: name, first column and upper edges of each.
        width: of a row.
        latency: columns of latencies, bool (width,).
        counted: columns that never fall while an engine lives, bool (width,).
    """

    histograms: tuple[tuple[str, int, tuple[float, ...]], ...]
    width: int
    latency: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    def split(self, row: FloatArray) -> dict[str, Histogram]:
        """Return the histograms of a row."""
        found = {}
        for name, at, edges in self.histograms:
            end = at + len(edges)
            found[name] = Histogram(np.array(edges), row[at:end], float(row[end]))
        return found


@lru_cache(maxsize=256)
def _layout(shapes: tuple[tuple[str, tuple[float, ...]], ...]) -> Layout:
    at, histograms = len(_COLUMNS), []
    for name, edges in shapes:
        histograms.append((name, at, edges))
        at += len(edges) + 1
    latency, counted = np.zeros(at, bool), np.ones(at, bool)
    counted[_AT["in_engine"]] = False
    for name, first, edges in histograms:
        latency[first : first + len(edges) + 1] = name in _LATENCIES
        counted[first + len(edges)] = False
    return Layout(tuple(histograms), at, latency, counted)


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """What a worker said at a moment; NaN for what it did not say.

    Attributes:
        at_s: the moment.
        running: requests in its batch.
        waiting: requests in its queue.
        kv_use: share of its KV blocks in use.
        row: what it has counted since the engine's start, shape (layout.width,).
        layout: what the numbers of the row are.
    """

    at_s: float
    running: float
    waiting: float
    kv_use: float
    row: FloatArray
    layout: Layout

    @staticmethod
    def of(reading: Reading, at_s: float) -> WorkerSample | None:
        """Return what a page says; None if it has none of the known families."""
        if not reading.scalars and not reading.histograms:
            return None
        # A number that is none (NaN, infinite, negative) is as good as not said.
        said = {name: v for name, v in reading.scalars.items() if 0.0 <= v < math.inf}
        running = said.get("running", math.nan)
        waiting = said.get("waiting", 0.0 if "running" in said else math.nan)
        sound = {
            name: found
            for name in _DISTRIBUTIONS
            if (found := reading.histograms.get(name)) is not None and _is_sound(found)
        }
        layout = _layout(tuple((name, found.upper_edges) for name, found in sound.items()))
        row = np.empty(layout.width)
        row[: len(COUNTERS)] = [said.get(name, math.nan) for name in COUNTERS]
        row[_AT["in_engine"]] = running + waiting
        row[_AT["first_tokens"]] = sound["ttft_s"].cumulative[-1] if "ttft_s" in sound else math.nan
        for name, at, edges in layout.histograms:
            row[at : at + len(edges)] = np.diff(sound[name].cumulative, prepend=0.0)
            row[at + len(edges)] = sound[name].total
        return WorkerSample(at_s, running, waiting, said.get("kv_use", math.nan), row, layout)


def _is_sound(h: HistogramCounts) -> bool:
    counts = np.array(h.cumulative)
    return bool(
        counts.size
        and h.upper_edges[-1] == math.inf
        and np.all(np.isfinite(counts))
        and counts[0] >= 0.0
        and np.all(np.diff(counts) >= 0.0)
    )


@dataclass(frozen=True, slots=True)
class Increments:
    """What a worker did between its scrapes, one row per interval, oldest first.

    Attributes:
        from_s: times of the earlier scrape, shape (N,).
        to_s: times of the later scrape, shape (N,).
        restarted: whether the engine was started anew in between, shape (N,).
        counts: by COUNTERS, NaN for what is not known, shape (N, len(COUNTERS)). `arrived` is known
            where anything tells it, and negative by a request or so where a page is not of one
            moment.
        rows: all that was counted, shape (N, layout.width).
        layout: what the numbers of a row are.
    """

    from_s: FloatArray
    to_s: FloatArray
    restarted: NDArray[np.bool_]
    counts: FloatArray
    rows: FloatArray
    layout: Layout

    @staticmethod
    def between(samples: Sequence[WorkerSample]) -> Increments | None:
        """Return what happened between samples, by time, of one worker; None for fewer than two.

        A page that has other histograms than before is another engine's: the worker's history
        begins with it.
        """
        first = len(samples) - 1
        while first > 0 and samples[first - 1].layout is samples[-1].layout:
            first -= 1
        samples = samples[first:] if samples else samples
        if len(samples) < 2:
            return None
        layout = samples[0].layout
        said = np.array([sample.row for sample in samples])
        times = np.array([sample.at_s for sample in samples])
        rows = np.diff(said, axis=0)
        restarted: NDArray[np.bool_] = np.any(rows[:, layout.counted] < 0.0, axis=1)
        rows[restarted] = said[1:][restarted]
        counts = rows[:, : len(COUNTERS)].copy()
        arrived = counts[:, _AT["arrived"]]
        for guess in (
            rows[:, _AT["finished"]] + rows[:, _AT["in_engine"]],
            rows[:, _AT["first_tokens"]],
        ):
            unknown = np.isnan(arrived)
            arrived[unknown] = guess[unknown]
        return Increments(times[:-1], times[1:], restarted, counts, rows, layout)

    def after(self, after_s: float) -> Increments:
        """Return those that ended after a time."""
        k = int(np.searchsorted(self.to_s, after_s, side="right"))
        return Increments(
            self.from_s[k:], self.to_s[k:], self.restarted[k:],
            self.counts[k:], self.rows[k:], self.layout,
        )  # fmt: skip
