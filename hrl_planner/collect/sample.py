"""One scrape of one worker, and what happened between two of them.

Engines count from their start. A count that is lower than it was means that the engine was
restarted; what it counts now, it counted since. Requests that arrived are not counted by every
engine; then they are those that finished plus those that are now in the engine and were not before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hrl_planner.collect.histogram import FloatArray, Histogram
from hrl_planner.worker_metrics import COUNTERS, DISTRIBUTIONS, HistogramCounts, Reading

# What is kept of the counters of a page, and of what follows from them.
COLUMNS = (*COUNTERS, "in_engine", "first_tokens")
_AT = {name: k for k, name in enumerate(COLUMNS)}
_COUNTED = slice(0, len(COUNTERS))


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """What a worker said at a moment; NaN for what it did not say.

    Attributes:
        at_s: the moment.
        running: requests in its batch.
        waiting: requests in its queue.
        kv_use: share of its KV blocks in use.
        counts: by COLUMNS, since the engine's start; `in_engine` is running plus waiting.
        histograms: since the engine's start, by Distribution.
    """

    at_s: float
    running: float
    waiting: float
    kv_use: float
    counts: FloatArray
    histograms: Mapping[str, HistogramCounts]

    @staticmethod
    def of(reading: Reading, at_s: float) -> WorkerSample | None:
        """Return what a page says; None if it has none of the known families."""
        if not reading.scalars and not reading.histograms:
            return None
        # A number that is none (NaN, infinite, negative) is as good as not said.
        said = {name: v for name, v in reading.scalars.items() if 0.0 <= v < math.inf}
        running = said.get("running", math.nan)
        waiting = said.get("waiting", 0.0 if "running" in said else math.nan)
        counts = np.array([said.get(name, math.nan) for name in COLUMNS])
        counts[_AT["in_engine"]] = running + waiting
        histograms = {name: h for name, h in reading.histograms.items() if _is_sound(h)}
        if "ttft_s" in histograms:
            counts[_AT["first_tokens"]] = histograms["ttft_s"].cumulative[-1]
        kv_use = said.get("kv_use", math.nan)
        return WorkerSample(at_s, running, waiting, kv_use, counts, histograms)


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
class Increment:
    """What a worker did between two scrapes; NaN for what is not known.

    Attributes:
        from_s: time of the earlier one.
        to_s: time of the later one.
        restarted: the engine was started anew in between.
        counts: by COUNTERS, but `arrived` is known where anything tells it; that one can be
            negative by a request or so where a page is not of one moment.
        histograms: values seen, by Distribution.
    """

    from_s: float
    to_s: float
    restarted: bool
    counts: FloatArray
    histograms: Mapping[str, Histogram]

    @staticmethod
    def between(earlier: WorkerSample, later: WorkerSample) -> Increment:
        """Return what happened between two samples of one worker."""
        restarted = _was_restarted(earlier, later)
        before = np.zeros(len(COLUMNS)) if restarted else earlier.counts
        change = later.counts - before
        if math.isnan(change[_AT["arrived"]]):
            arrived = change[_AT["finished"]] + change[_AT["in_engine"]]
            if math.isnan(arrived):
                arrived = change[_AT["first_tokens"]]
            change[_AT["arrived"]] = arrived
        histograms: dict[str, Histogram] = {}
        for name in DISTRIBUTIONS:
            new, old = later.histograms.get(name), earlier.histograms.get(name)
            if new is None:
                continue
            if restarted:
                old = HistogramCounts(new.upper_edges, (0.0,) * len(new.cumulative), 0.0)
            if old is not None and old.upper_edges == new.upper_edges:
                cumulative = np.array(new.cumulative) - np.array(old.cumulative)
                histograms[name] = Histogram(
                    np.array(new.upper_edges),
                    # Never below 0 here by more than a page read in the middle of an update.
                    np.maximum(np.diff(cumulative, prepend=0.0), 0.0),
                    new.total - old.total,
                )
        counts = change[_COUNTED]
        return Increment(earlier.at_s, later.at_s, restarted, counts, histograms)


def _was_restarted(earlier: WorkerSample, later: WorkerSample) -> bool:
    if bool(np.any(later.counts[_COUNTED] < earlier.counts[_COUNTED])):
        return True
    for name, new in later.histograms.items():
        old = earlier.histograms.get(name)
        if old is not None and new.cumulative[-1] < old.cumulative[-1]:
            return True
    return False
