"""What planners decide, as functions of what they read: policies on custom resources.

`Allocator` and `Scaler` make a cluster and an observation of custom resources and ask the policy
the group chose. Neither knows the API server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hrl_planner.control.decision import Choice, Decider, Decision, Flows
from hrl_planner.control.metrics import PoolMetrics, observe
from hrl_planner.control.planned import Planned, plannable, planned
from hrl_planner.control.pool_list import PoolList
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import cluster_spec_of
from hrl_planner.kube.resources import PolicySpec, ServingGroup, WorkerPool
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.quota import QUOTA, WHOLE_QUOTA


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
        choice = Choice.of(group.spec.policy, "allocator")
        made = self._decider.decide(cluster.spec, choice, self._see(cluster, now_s))
        return GroupPlan(made.replicas, made.flows, made.plan.reason, made)

    def listen(self, group: ServingGroup, listed: PoolList, now_s: float) -> Decision | None:
        """Let the policy see what happens between its plans; flows may come of it.

        Raises:
            HrlPlannerError: as `plan`.
        """
        cluster = planned(group, listed)
        choice = Choice.of(group.spec.policy, "allocator")
        return self._decider.listen(cluster.spec, choice, self._see(cluster, now_s))

    def _see(self, cluster: Planned, now_s: float) -> ClusterObservation:
        """Look at the whole cluster: its metrics are one history for the planners of both levels.

        The policy sees of it what it plans for.
        """
        seen = observe(cluster.described, cluster.pools, self._metrics, now_s)
        rows = [cluster.described.pool_index(pool.name) for pool in cluster.spec.pools]
        return replace(seen, pools=seen.pools[rows])


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

    def want(self, group: ServingGroup, listed: PoolList, name: str, now_s: float) -> Want:
        """Return the replicas a pool should have, and why; errors as for `Allocator.plan`."""
        pool = next(pool for pool in listed.pools if pool.name == name)
        try:
            made = self._ask(group, listed, name, now_s)
        except HrlPlannerError:
            if not decides_nothing(group.spec.policy):
                raise
            return Want(pool.spec.quota or 0, WHOLE_QUOTA)
        if decides_nothing(group.spec.policy):
            return Want(made.replicas[name], made.plan.reason, made)
        return self._kept(made, pool)

    def _ask(self, group: ServingGroup, listed: PoolList, name: str, now_s: float) -> Decision:
        fit, left_out = plannable(group, listed)
        if name in left_out:
            raise HrlPlannerError(f"workerpool {name}: {left_out[name]}")
        spec = cluster_spec_of(group, fit)
        observation = observe(spec, fit, self._metrics, now_s)
        return self._decider.decide(spec, Choice.of(group.spec.policy, "scaler"), observation)

    def _kept(self, made: Decision, pool: WorkerPool) -> Want:
        """Return what was decided, without what a policy that is new would release."""
        wanted, reason = made.replicas[pool.name], made.plan.reason
        has = min(pool.status.desired or 0, pool.spec.quota or 0)
        if wanted < has and self._decider.young(made.observation.now_s):
            return Want(has, f"{reason}: {wanted}, but too new to release replicas", made)
        return Want(wanted, reason, made)


def decides_nothing(policy: PolicySpec) -> bool:
    """Say whether pools take all they may have, so that a new quota needs no decision."""
    return policy.scaler == QUOTA and policy.checkpoint is None
