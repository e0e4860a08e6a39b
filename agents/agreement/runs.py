"""A run in the form of a simulation, whoever made it: what came of requests, what pools did.

`measured.py` makes one of a run on a cluster, `simulated.py` one of the simulator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.kernel.layout import SAMPLE_FIELDS
from envs.simulation import SimResult
from hrl_planner.spec import ClusterSpec

Ints = NDArray[np.int64]
_SAMPLE_FIELDS = SAMPLE_FIELDS[:-1]  # whole numbers; KV use stands behind them


@dataclass(frozen=True)
class Steps:
    """A step function per pool, as it was looked at.

    Attributes:
        t_s: of each look, ascending, shape (S,).
        values: from then on, shape (S, P).
    """

    t_s: NDArray[np.float64]
    values: Ints

    def at(self, t_s: NDArray[np.float64]) -> Ints:
        """Return the values at some times; before the first look they are its values."""
        index = np.clip(np.searchsorted(self.t_s, t_s, side="right") - 1, 0, None)
        return np.asarray(self.values[index])

    def slowed(self, speed: float) -> Steps:
        """Return it on a clock that runs `speed` times faster."""
        return Steps(self.t_s * speed, self.values)


@dataclass(frozen=True)
class Run:
    """One of the two.

    Attributes:
        name: for people.
        result: requests and timeline.
        quota: as in force.
        placed: requests by class and pool; one with two workers counts in two pools.
        looks_over: looks at which the GPUs held exceeded the budget.
        looks: how many there were.
    """

    name: str
    result: SimResult
    quota: Steps
    placed: Mapping[tuple[str, str], int]
    looks_over: int
    looks: int

    def replicas(self, field: str) -> Steps:
        """Return a field of the timeline: target, ready, ..."""
        timeline = self.result.timeline
        return Steps(timeline["t_s"], timeline[field].astype(np.int64))


def timeline_of(t_s: NDArray[np.float64], fields: Mapping[str, Ints]) -> NDArray[Any]:
    """Return a simulation's timeline; what only engines know, queues and KV use, is left 0."""
    pools = fields["ready"].shape[1]
    kinds = [(name, "<i4", (pools,)) for name in _SAMPLE_FIELDS]
    timeline = np.zeros(t_s.size, [("t_s", "<f8"), *kinds, (SAMPLE_FIELDS[-1], "<f4", (pools,))])
    timeline["t_s"] = t_s
    for name in ("target", "ready", "starting", "draining"):
        timeline[name] = fields[name]
    live = fields["ready"] + fields["starting"]
    timeline["pending"] = np.maximum(fields["target"] - live, 0)
    return timeline


def slowed(run: Run, spec: ClusterSpec, speed: float) -> Run:
    """Return a run of a cluster that was played faster, in the times of the spec as it is."""
    if speed == 1.0:
        return run
    result = run.result
    timeline = result.timeline.copy()
    timeline["t_s"] *= speed
    times = ("duration_s", "arrival_s", "first_token_s", "finish_s", "gpu_seconds")
    changed = {name: getattr(result, name) * speed for name in times}
    slow = replace(result, spec=spec, timeline=timeline, **changed)
    return replace(run, result=slow, quota=run.quota.slowed(speed))
