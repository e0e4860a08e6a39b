"""What one plan is made of, and what it comes to: read by all parts of the fluid planner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrl_planner.flow import Allocation
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.demand import Demand
from hrl_planner.planner.policy import FloatArray, IntArray
from hrl_planner.planner.pool_memory import or_zero

Rates = tuple[FloatArray, FloatArray]
"""Requests/s per replica and share of them in time, as `capacity` has them, shape (C, P) each."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Rates of requests, and how fast replicas serve them.

    Attributes:
        demand: requests/s per class, shape (C,).
        cap: requests/s per replica, shape (C, P).
        share: part of the requests that is in time, shape (C, P).
        offered: requests/s whose service is worth 1 in all, shape (C,).
        usable: share of each pool's capacity to plan with, shape (P,).
    """

    demand: FloatArray
    cap: FloatArray
    share: FloatArray
    offered: FloatArray
    usable: FloatArray


@dataclass(frozen=True, slots=True)
class Rebuild:
    """One under way.

    Attributes:
        replicas: of the new mix, shape (P,).
        until_s: when it ends at the latest.
    """

    replicas: IntArray
    until_s: float

    def under_way(self, now_s: float, ready: FloatArray) -> bool:
        """Say whether something of it is still to come up."""
        return now_s < self.until_s and bool(np.any(ready < self.replicas))


@dataclass(frozen=True, slots=True)
class Moment:
    """What one decision is made of; it can be planned for again on other terms.

    Attributes:
        observation: what was seen.
        current: replicas asked for so far, shape (P,).
        demand: what is asked of the cluster.
        rates: of the replicas that serve now.
        flows: that suit these replicas, shape (C, P); None where nothing does.
        idle: pools that have had nothing to do for long, shape (P,).
        gpus: that can be had of each type, shape (T,).
        by_rule: replicas the rule asks for in pools without a profile, in their order.
        spare: replicas that no plan of the last `spare_s` had a use for, shape (P,).
        useless: the same of the last `idle_s`.
        settled: whether enough has been seen to release replicas on.
        young: whether the trend may still be that of traffic that has just begun to be seen.
        rebuild: that is under way, or None.
    """

    observation: ClusterObservation
    current: IntArray
    demand: Demand
    rates: Rates
    flows: FloatArray | None
    idle: NDArray[np.bool_]
    gpus: FloatArray
    by_rule: FloatArray
    spare: FloatArray
    useless: FloatArray
    settled: bool
    young: bool
    rebuild: Rebuild | None

    @property
    def ready(self) -> FloatArray:
        """Replicas that serve, 0 where that is not known, shape (P,)."""
        return or_zero(self.observation.pool_field("ready"))

    @property
    def starting(self) -> FloatArray:
        """Replicas that start, 0 where that is not known, shape (P,)."""
        return or_zero(self.observation.pool_field("starting"))


@dataclass(frozen=True, slots=True)
class Solution:
    """What the LP came to.

    Attributes:
        best: the allocation.
        traffic: what it was planned for.
        least: replicas that must be, whatever serves now, shape (P,).
        most: replicas that may be, shape (P,).
    """

    best: Allocation
    traffic: Traffic
    least: FloatArray
    most: FloatArray
