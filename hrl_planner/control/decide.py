"""What planners decide, as pure functions of what they read: the policies on custom resources.

`Allocator` and `Scaler` hold a policy and reset it when what it plans for changes; neither knows
the API server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hrl_planner.budget import BudgetArrays
from hrl_planner.control.metrics import PoolMetrics, observe
from hrl_planner.control.planned import plannable, planned
from hrl_planner.control.pool_list import PoolList
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import cluster_spec_of
from hrl_planner.kube.resources import PolicySpec, ServingGroup
from hrl_planner.planner import PlanContext, Policy
from hrl_planner.planner.checkpoint import load
from hrl_planner.planner.deployed import allocator_of, scaler_of
from hrl_planner.planner.loop import within_budget
from hrl_planner.planner.policy import FloatArray, Listener
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.planner.shield import Interventions
from hrl_planner.spec import ClusterSpec

Flows = dict[str, dict[str, float]]  # requests/s by class and pool

# The first window is half empty, and so is what a policy makes of it (`FluidPlanner` waits, too).
_YOUNG_WINDOWS = 2.0
QUOTA = "quota"  # the scaler that asks for all it may have


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Quotas and flows decided for a group.

    Attributes:
        quotas: by pool; a pool that is not there keeps its quota.
        flows: None keeps the weights there are.
        reason: for people.
    """

    quotas: dict[str, int]
    flows: Flows | None
    reason: str


class Allocator:
    """The global level: decides quotas and flows.

    Args:
        metrics: what is known of the traffic.
    """

    def __init__(self, metrics: PoolMetrics) -> None:
        """See the class."""
        self._metrics = metrics
        self._policy = _Kept()

    def plan(self, group: ServingGroup, listed: PoolList, now_s: float) -> GroupPlan:
        """Return a plan that fits the budget.

        Raises:
            HrlPlannerError: if group and pools describe no cluster, or the policy is unknown.
        """
        cluster = planned(group, listed)
        spec = cluster.spec
        policy = self._policy.of(spec, group.spec.policy, "allocator", now_s)
        observation = observe(cluster.described, cluster.pools, self._metrics, now_s)
        plan = within_budget(policy.decide(observation), observation, BudgetArrays.from_spec(spec))
        chosen = plan.replicas if plan.quotas is None else plan.quotas
        quotas = {pool.name: int(n) for pool, n in zip(spec.pools, chosen, strict=True)}
        return GroupPlan(quotas, _by_name(spec, plan.flows), plan.reason)

    def listen(self, group: ServingGroup, listed: PoolList, now_s: float) -> Flows | None:
        """Let the policy see what happens between its plans; return flows if it has new ones.

        Raises:
            HrlPlannerError: as `plan`.
        """
        cluster = planned(group, listed)
        policy: object = self._policy.of(cluster.spec, group.spec.policy, "allocator", now_s)
        observation = observe(cluster.described, cluster.pools, self._metrics, now_s)
        if not isinstance(policy, Listener):
            return None
        return _by_name(cluster.spec, policy.listen(observation))


def _by_name(spec: ClusterSpec, flows: FloatArray | None) -> Flows | None:
    if flows is None:
        return None
    return {
        cls.name: {
            pool.name: round(float(rate), 6)
            for pool, rate in zip(spec.pools, row, strict=True)
            if rate > 0.0
        }
        for cls, row in zip(spec.slo_classes, flows, strict=True)
    }


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
        self._policy = _Kept()

    def want(
        self, group: ServingGroup, listed: PoolList, name: str, now_s: float
    ) -> tuple[int, str]:
        """Return the replicas a pool should have, and why; errors as for `Allocator.plan`."""
        pool = next(pool for pool in listed.pools if pool.name == name)
        if decides_nothing(group):
            return pool.spec.quota or 0, "all of the quota"
        fit, left_out = plannable(group, listed)
        if name in left_out:
            raise HrlPlannerError(f"workerpool {name}: {left_out[name]}")
        spec = cluster_spec_of(group, fit)
        policy = self._policy.of(spec, group.spec.policy, "scaler", now_s)
        plan = policy.decide(observe(spec, fit, self._metrics, now_s))
        wanted = int(plan.replicas[spec.pool_index(name)])
        has = min(pool.status.desired or 0, pool.spec.quota or 0)
        young = now_s - self._policy.since_s < _YOUNG_WINDOWS * spec.intervals.window_s
        if young and wanted < has:
            return has, f"{plan.reason}: {wanted}, but too new to release replicas"
        return wanted, plan.reason


def decides_nothing(group: ServingGroup) -> bool:
    """Say whether pools take all they may have, so that a new quota needs no decision."""
    return group.spec.policy.scaler == QUOTA and group.spec.policy.checkpoint is None


class _Kept:
    """A policy, made anew when the cluster or the choice of policy has changed."""

    def __init__(self) -> None:
        self._made_for: tuple[ClusterSpec, PolicySpec] | None = None
        self._policy: Policy | None = None
        self.since_s = 0.0

    def of(self, spec: ClusterSpec, choice: PolicySpec, level: str, now_s: float) -> Policy:
        if self._policy is None or self._made_for != (spec, choice):
            self.since_s = now_s
            self._policy = _make(choice, level)
            self._policy.reset(PlanContext(spec))
            self._made_for = (spec, choice)
        return self._policy


def _make(choice: PolicySpec, level: str) -> Policy:
    if choice.checkpoint is not None:
        checkpoint = load(Path(choice.checkpoint))
        log = Interventions()
        return allocator_of(checkpoint, log) if level == "allocator" else scaler_of(checkpoint, log)
    policy = make_policy(choice.allocator if level == "allocator" else choice.scaler)
    if level == "scaler" and isinstance(policy, RulePolicy):
        policy.within_quota = True
    return policy
