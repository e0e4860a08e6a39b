"""The small protocol every planner speaks, learned or not.

A policy is told once what it plans for (`PlanContext`), then at every interval it is shown what the
cluster looks like (`ClusterObservation`) and answers with a `Plan`: replicas per pool and, if it
has an opinion, how much of each class each pool should get. A policy never touches the cluster and
need not respect the budget: `planner/loop.py` projects whatever it says before it is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hrl_planner.observation import ClusterObservation

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload import Trace
    from hrl_planner.workload.events import ClusterEvent

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What a policy is told before its first decision.

    Attributes:
        spec: the cluster; static facts such as pools, budget, classes and start-up times.
        seed: for policies that draw random numbers, and for class assignment of the trace.
        trace: the future. Only clairvoyant policies, which serve as bounds, may read it.
        class_id: SLO class of each request of the trace, shape (N,), if already assigned.
        blind_pools: indices of pools whose latency profile planners must not use (scenario S13).
        events: what else will happen; like the trace for clairvoyant policies only.
    """

    spec: ClusterSpec
    seed: int = 0
    trace: Trace | None = None
    class_id: NDArray[np.int16] | None = None
    blind_pools: frozenset[int] = frozenset()
    events: tuple[ClusterEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What a planner knows beyond its plan; a learned policy on top of it reads it.

    Attributes:
        wish: replicas before they were rounded to the nearest, shape (P,).
        marginal: value of one more GPU in each pool, where serving all is worth 1, shape (P,).
        planned_rps: rate each class was planned for, shape (C,).
    """

    wish: FloatArray
    marginal: FloatArray
    planned_rps: FloatArray


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision.

    Attributes:
        replicas: target per pool, shape (P,).
        flows: requests/s of class c meant for pool i, shape (C, P); the router uses them as
            weights. None keeps the weights the router has.
        quotas: upper bound per pool within which local planners may move, shape (P,); None when
            the policy has no hierarchy, and then the quota is the target.
        reason: one line for people, shown in decision logs.
        advice: for a learned policy that corrects this plan.
    """

    replicas: IntArray
    flows: FloatArray | None = None
    quotas: IntArray | None = None
    reason: str = field(default="", compare=False)
    advice: Advice | None = field(default=None, compare=False)

    @classmethod
    def of_flows(cls, flows: FloatArray | None) -> Plan:
        """Return a plan that changes the router's weights alone."""
        return cls(np.zeros(0, np.int64), flows)


@runtime_checkable
class Listener(Protocol):
    """A policy that wants to see the cluster also between its decisions."""

    def listen(self, observation: ClusterObservation) -> Plan | None:
        """Take in an observation; return a plan instead of the one in force, or None to keep it.

        Called every local interval at which `decide` is not. A forecast made of one look a minute
        sees a ramp minutes late. A plan without pools, replicas of shape (0,), changes the
        router's weights alone.
        """


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a planner plans, as factors on its own.

    Attributes:
        capacity: share of each pool's capacity that is planned with, shape (P,).
        stop: cost of stopping a replica of each pool, shape (P,).
        keep: replicas of each pool that stay because they serve what arrives now, shape (P,).
        outlook: demand planned for beyond what arrives now.
        rebuild: what another mix serves more than the plan, where a rebuild is weighed.
    """

    capacity: FloatArray
    stop: FloatArray
    keep: FloatArray
    outlook: float = 1.0
    rebuild: float = 1.0

    @classmethod
    def unchanged(cls, n_pools: int) -> Terms:
        """Return a planner's own terms."""
        return cls(np.ones(n_pools), np.ones(n_pools), np.ones(n_pools))


@runtime_checkable
class Replanner(Protocol):
    """A policy that can plan for the moment of its last decision again, on other terms.

    What it says before its next decision, if it listens, is on these terms as well.
    """

    def replan(self, terms: Terms) -> Plan | None:
        """Return the plan on these terms; None where there is nothing to plan."""


@runtime_checkable
class Policy(Protocol):
    """Decides how many replicas every pool should have."""

    name: str
    interval_s: float

    def reset(self, context: PlanContext) -> None:
        """Forget the past and prepare for a cluster."""

    def decide(self, observation: ClusterObservation) -> Plan:
        """Answer one observation; called every `interval_s` seconds."""
