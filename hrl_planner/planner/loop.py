"""The control loop: observe, decide, project onto the budget, apply, wait.

The cluster is anything with four words (`Cluster`): the simulator, and in production a connector.
Whatever a policy answers passes through `budget.project` here, so no policy can exceed the budget
and none has to know how that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hrl_planner.budget import BudgetArrays, project
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.policy import IntArray, Plan, Policy

if TYPE_CHECKING:
    from hrl_planner.spec import ClusterSpec


class Cluster(Protocol):
    """Where decisions land."""

    @property
    def spec(self) -> ClusterSpec:
        """The cluster's specification."""

    @property
    def now_s(self) -> float:
        """Current time."""

    def observe(self) -> ClusterObservation:
        """Return the metrics as a scraper last saw them."""

    def apply(self, plan: Plan) -> None:
        """Set the pools' target replicas, quotas and routing weights."""

    def advance_to(self, t_s: float) -> None:
        """Let time pass until t_s."""


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the loop, for callbacks and logs.

    Attributes:
        t_s: time of the decision.
        observation: what the policy saw.
        wanted: what it answered.
        applied: what was applied after projection onto the budget.
    """

    t_s: float
    observation: ClusterObservation
    wanted: Plan
    applied: Plan


def current_targets(observation: ClusterObservation) -> IntArray:
    """Return the replicas asked for so far, shape (P,); unknown targets count what is live."""
    targets = observation.pool_field("target_replicas")
    live = observation.pool_field("ready") + observation.pool_field("starting")
    known = np.where(np.isnan(targets), live, targets)
    return np.where(np.isnan(known), 0.0, known).astype(np.int64)


def within_budget(plan: Plan, observation: ClusterObservation, arrays: BudgetArrays) -> Plan:
    """Return the plan with its replicas (and quotas) projected onto the budget."""
    current = current_targets(observation)
    replicas = project(plan.replicas.astype(np.float64), current, arrays)
    if plan.quotas is None:
        return replace(plan, replicas=replicas)
    quotas = project(np.maximum(plan.quotas, replicas).astype(np.float64), current, arrays)
    return replace(plan, replicas=np.minimum(replicas, quotas), quotas=quotas)


def run(
    cluster: Cluster,
    policy: Policy,
    until_s: float,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Let a policy, already reset, drive the cluster until `until_s`.

    The first decision is made at once, before any request has been seen: it is the policy's
    chance to correct the initial replicas.
    """
    arrays = BudgetArrays.from_spec(cluster.spec)
    while True:
        t_s = cluster.now_s
        observation = cluster.observe()
        wanted = policy.decide(observation)
        applied = within_budget(wanted, observation, arrays)
        cluster.apply(applied)
        if on_step is not None:
            on_step(Step(t_s, observation, wanted, applied))
        cluster.advance_to(min(t_s + policy.interval_s, until_s))
        if t_s + policy.interval_s >= until_s:
            return
