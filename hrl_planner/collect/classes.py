"""Rows of SLO classes from what the routers counted.

A router counts, by class, requests offered and over, and sums of lengths and their squares, so mean
and deviation are exact for prompts (answers are estimated by the router). Several routers add up. A
router that was restarted counts from 0 again; requests it had are then in nobody's books.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from hrl_planner.collect.histogram import FloatArray
from hrl_planner.collect.window import Timing
from hrl_planner.observation import CLASS_FIELDS, ClassObservation
from hrl_planner.worker_metrics import Series

ROUTER_PREFIXES = ("hrl_router_class_", "hrl_router_slo_total")
# What is read of a router's page, the columns of a class.
_COLUMNS = (
    "offered",
    "resolved",
    "prompt_tokens",
    "prompt_tokens_squared",
    "placed_tokens",
    "cached_tokens",
    "answers",
    "answer_tokens",
    "answer_tokens_squared",
    "attained",
)
_COLUMN = {f"hrl_router_class_{name}_total": k for k, name in enumerate(_COLUMNS)}
_ATTAINED = len(_COLUMNS) - 1
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


def read_router(series: Iterable[Series], classes: Sequence[str]) -> FloatArray | None:
    """Return a router's counts since its start, shape (C, columns); None for another page."""
    counts = np.zeros((len(classes), len(_COLUMNS)))
    known = False
    for name, text, value in series:
        column = _COLUMN.get(name, -1)
        if column < 0 and name != "hrl_router_slo_total":
            continue
        labels = {key: _unescaped(found) for key, found in _LABEL.findall(text)}
        if column < 0:
            if labels.get("outcome") != "attained":
                continue
            column = _ATTAINED
        else:
            known = True
        if labels.get("class") in classes:
            counts[classes.index(labels["class"]), column] += value
    return counts if known and np.all(np.isfinite(counts)) else None


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: {"n": "\n"}.get(match[1], match[1]), text)


class ClassWindow:
    """The last while of all routers.

    Args:
        timing: which samples count.
        n_classes: number of classes.
        since_s: when somebody began to listen.
    """

    def __init__(self, timing: Timing, n_classes: int, since_s: float) -> None:
        self._timing = timing
        self._n_classes = n_classes
        self._since_s = since_s
        self._routers: dict[str, list[tuple[float, FloatArray]]] = {}
        self._listed: set[str] = set()

    def set_routers(self, names: Iterable[str]) -> None:
        """Say which routers there are."""
        self._listed = set(names)

    def add(self, router: str, at_s: float, counts: FloatArray) -> None:
        """Take what a router said; see `read_router`."""
        samples = self._routers.setdefault(router, [])
        at = bisect.bisect_left(samples, at_s, key=_time)
        if at < len(samples) and samples[at][0] == at_s:
            samples[at] = (at_s, counts)
        else:
            samples.insert(at, (at_s, counts))
        _forget(samples, samples[-1][0] - self._timing.lag_s - self._timing.window_s)

    def rows(self, now_s: float) -> list[ClassObservation]:
        """Return the rows of the classes, NaN for what is not known."""
        until_s = now_s - self._timing.lag_s
        after_s = until_s - self._timing.window_s
        rate = np.zeros((self._n_classes, len(_COLUMNS)))
        in_system = np.zeros(self._n_classes)
        heard = present = heard_now = 0.0
        for name, samples in list(self._routers.items()):
            _forget(samples, after_s)
            if name not in self._listed and samples[-1][0] <= after_s:
                del self._routers[name]
        start_s = max(after_s, self._since_s)
        for name in {*self._routers, *self._listed}:
            samples = [s for s in self._routers.get(name, ()) if s[0] <= until_s]
            covered_s, counts = _counted(samples, after_s)
            began_s = max(start_s, samples[0][0]) if samples else start_s
            ended_s = until_s if name in self._listed or not samples else samples[-1][0]
            # What goes through a router that went is soon counted by the others.
            presence = max(0.0, ended_s - began_s) / max(until_s - start_s, 1e-9)
            present += presence
            if covered_s > 0.0:
                rate += presence * counts / covered_s
                heard += presence
            if name in self._listed and samples and samples[-1][0] > after_s:
                in_system += samples[-1][1][:, 0] - samples[-1][1][:, 1]
                heard_now += 1.0
        if heard <= 0.0 or until_s <= start_s:
            return [ClassObservation(*[math.nan] * len(CLASS_FIELDS))] * self._n_classes
        rate *= present / heard
        in_system *= len(self._listed) / heard_now if heard_now else math.nan
        return [_row(rate[k], float(in_system[k])) for k in range(self._n_classes)]


def _time(sample: tuple[float, FloatArray]) -> float:
    return sample[0]


def _forget(samples: list[tuple[float, FloatArray]], before_s: float) -> None:
    old = bisect.bisect_right(samples, before_s, key=_time) - 1
    if old > 0:
        del samples[:old]


def _counted(
    samples: Sequence[tuple[float, FloatArray]], after_s: float
) -> tuple[float, FloatArray]:
    """Return the seconds that samples of one router span within the window, and what it counted."""
    covered_s, counts = 0.0, np.zeros(())
    for (from_s, old), (to_s, new) in itertools.pairwise(samples):
        if to_s > after_s:
            covered_s += to_s - from_s
            counts = counts + (new if np.any(new < old) else new - old)
    return covered_s, counts


def _row(rate: FloatArray, in_system: float) -> ClassObservation:
    (offered, resolved, isl, isl_2, placed, cached, answers, osl, osl_2, attained) = rate.tolist()
    isl_mean, isl_std = _mean_std(isl, isl_2, offered)
    osl_mean, osl_std = _mean_std(osl, osl_2, answers)
    return ClassObservation(
        arrivals_rps=offered,
        isl_mean_tokens=isl_mean,
        isl_std_tokens=isl_std,
        osl_mean_tokens=osl_mean,
        osl_std_tokens=osl_std,
        prefix_hit_rate=min(1.0, cached / placed) if placed > 0.0 else math.nan,
        attainment=min(1.0, attained / resolved) if resolved > 0.0 else math.nan,
        in_system=max(0.0, in_system),
    )


def _mean_std(total: float, square: float, count: float) -> tuple[float, float]:
    if count <= 0.0:
        return math.nan, math.nan
    mean = total / count
    return mean, math.sqrt(max(0.0, square / count - mean * mean))
