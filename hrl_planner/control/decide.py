"""What planners decide, as functions of what they read: policies on custom resources.

`Allocator` and `Scaler` make a cluster and an observation of custom resources and ask the policy
the group chose. Neither knows the API server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hrl_planner.control.decision import QUOTA, WHOLE_QUOTA, Choice, Decider, Decision, Flows
from hrl_planner.control.metrics import PoolMetrics, observe
from hrl_planner.control.planned import plannable, planned
from hrl_planner.control.pool_list import PoolList
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import cluster_spec_of
from hrl_planner.kube.resources import ServingGroup

# The first window is half empty, and so is what a policy makes of it (`FluidPlanner` waits, too).
_YOUNG_WINDOWS = 2.0


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Quotas and flows decided for a group.

    Attributes:
        quotas: by pool; a pool that is not there keeps its quota.
        flows: None keeps the weights there are.
        reason: for people.
        decision: where they come from.
    """

    quotas: dict[str, int]
    flows: Flows | None
    reason: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Want:
    """Replicas decided for a pool; no decision where the policy could not be asked."""

    replicas: int
    reason: str
    decision: Decision | None = None


class Allocator:
    """The global level: decides quotas and flows.

    Args:
        metrics: what is known of the traffic.
    """

    def __init__(self, metrics: PoolMetrics) -> None:
        """See the class."""
        self._metrics = metrics
        self._decider = Decider()

    def plan(self, group: ServingGroup, listed: PoolList, now_s: float) -> GroupPlan:
        """Return a plan that fits the budget.

        Raises:
            HrlPlannerError: if group and pools describe no cluster, or the policy is unknown.
        """
        cluster = planned(group, listed)
        observation = observe(cluster.described, cluster.pools, self._metrics, now_s)
        choice = Choice.of(group.spec.policy, "allocator")
        made = self._decider.decide(cluster.spec, choice, observation)
        return GroupPlan(made.replicas, made.flows, made.plan.reason, made)

    def listen(self, group: ServingGroup, listed: PoolList, now_s: float) -> Decision | None:
        """Let the policy see what happens between its plans; flows may come of it.

        Raises:
            HrlPlannerError: as `plan`.
        """
        cluster = planned(group, listed)
        observation = observe(cluster.described, cluster.pools, self._metrics, now_s)
        return self._decider.listen(
            cluster.spec, Choice.of(group.spec.policy, "allocator"), observation
        )

    def hear(self, group: ServingGroup, listed: PoolList, now_s: float) -> None:
        """Listen to workers as for a plan; errors as those of one."""
        cluster = planned(group, listed)
        observe(cluster.described, cluster.pools, self._metrics, now_s)


class Scaler:
    """The local level: decides the replicas of one pool.

    A policy that is new, because this planner has just begun to lead or the cluster has changed,
    knows neither what was changed a moment ago nor a whole window of metrics. Until it does it may
    add replicas and release none.

    Args:
        metrics: what is known of the traffic.
    """

    def __init__(self, metrics: PoolMetrics) -> None:
        """See the class."""
        self._metrics = metrics
        self._decider = Decider()
        self._young_until_s = -math.inf

    def want(self, group: ServingGroup, listed: PoolList, name: str, now_s: float) -> Want:
        """Return the replicas a pool should have, and why; errors as for `Allocator.plan`."""
        try:
            made = self._ask(group, listed, name, now_s)
        except HrlPlannerError:
            if not decides_nothing(group):
                raise
            pool = next(pool for pool in listed.pools if pool.name == name)
            return Want(pool.spec.quota or 0, WHOLE_QUOTA)
        if made.turn == 0:
            self._young_until_s = now_s + _YOUNG_WINDOWS * made.spec.intervals.window_s
        wanted, reason = made.replicas[name], made.plan.reason
        pool = next(pool for pool in listed.pools if pool.name == name)
        has = min(pool.status.desired or 0, pool.spec.quota or 0)
        if wanted < has and now_s < self._young_until_s and not decides_nothing(group):
            return Want(has, f"{reason}: {wanted}, but too new to release replicas", made)
        return Want(wanted, reason, made)

    def hear(self, group: ServingGroup, listed: PoolList, now_s: float) -> None:
        """Listen to workers as for a decision; errors as those of one."""
        fit, _ = plannable(group, listed)
        observe(cluster_spec_of(group, fit), fit, self._metrics, now_s)

    def _ask(self, group: ServingGroup, listed: PoolList, name: str, now_s: float) -> Decision:
        fit, left_out = plannable(group, listed)
        if name in left_out:
            raise HrlPlannerError(f"workerpool {name}: {left_out[name]}")
        spec = cluster_spec_of(group, fit)
        observation = observe(spec, fit, self._metrics, now_s)
        return self._decider.decide(spec, Choice.of(group.spec.policy, "scaler"), observation)


def decides_nothing(group: ServingGroup) -> bool:
    """Say whether pools take all they may have, so that a new quota needs no decision."""
    return group.spec.policy.scaler == QUOTA and group.spec.policy.checkpoint is None
