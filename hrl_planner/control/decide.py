"""What planners decide, as pure functions of what they read: the policies on custom resources.

`Allocator` and `Scaler` hold a policy and reset it when what it plans for changes; neither knows
the API server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hrl_planner.budget import BudgetArrays
from hrl_planner.control.metrics import PoolMetrics, observe
from hrl_planner.errors import HrlPlannerError, ProfileError
from hrl_planner.kube.convert import cluster_spec_of
from hrl_planner.kube.resources import PolicySpec, ServingGroup, WorkerPool
from hrl_planner.planner import PlanContext, Policy
from hrl_planner.planner.checkpoint import load
from hrl_planner.planner.deployed import allocator_of, scaler_of
from hrl_planner.planner.loop import within_budget
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.planner.shield import Interventions
from hrl_planner.profile import WorkerProfile
from hrl_planner.spec import ClusterSpec

# The first window is half empty, and so is what a policy makes of it (`FluidPlanner` waits, too).
_YOUNG_WINDOWS = 2.0
QUOTA = "quota"  # the scaler that asks for all it may have


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Quotas and flows decided for a group.

    Attributes:
        quotas: by pool; a pool that is not there keeps its quota.
        flows: requests/s by class and pool; None keeps the weights there are.
        reason: for people.
    """

    quotas: dict[str, int]
    flows: dict[str, dict[str, float]] | None
    reason: str


def plannable(
    group: ServingGroup, pools: Sequence[WorkerPool]
) -> tuple[list[WorkerPool], dict[str, str]]:
    """Return the pools a policy can plan for, and why it cannot for the others."""
    fit, left_out = [], {}
    for pool in pools:
        why = _unplannable(group, pool)
        if why is None:
            fit.append(pool)
        else:
            left_out[pool.name] = why
    return fit, left_out


def _unplannable(group: ServingGroup, pool: WorkerPool) -> str | None:
    spec = pool.spec
    if pool.metadata.deletion_timestamp is not None:
        return "is being deleted"
    if spec.gpus_per_replica is None:
        return "gpusPerReplica is unknown"
    if spec.gpu_type not in group.spec.budget.gpus:
        return f"the group has no budget for {spec.gpu_type}"
    try:
        profile = WorkerProfile.load(spec.profile)
        spec.to_pool(pool.name)
    except (ProfileError, ValueError) as error:
        return str(error)
    if not profile.fits or spec.gpus_per_replica < profile.tp:
        return f"profile {spec.profile} does not fit on {spec.gpus_per_replica} {spec.gpu_type}"
    return None


class Allocator:
    """The global level: decides quotas and flows.

    Args:
        metrics: what is known of the traffic.
    """

    def __init__(self, metrics: PoolMetrics) -> None:
        """See the class."""
        self._metrics = metrics
        self._policy = _Kept()

    def plan(self, group: ServingGroup, pools: Sequence[WorkerPool], now_s: float) -> GroupPlan:
        """Return a plan that fits the budget.

        Raises:
            HrlPlannerError: if group and pools describe no cluster, or the policy is unknown.
        """
        fit, _ = plannable(group, pools)
        spec = cluster_spec_of(group, fit)
        policy = self._policy.of(spec, group.spec.policy, "allocator", now_s)
        observation = observe(spec, fit, self._metrics, now_s)
        plan = within_budget(policy.decide(observation), observation, BudgetArrays.from_spec(spec))
        chosen = plan.replicas if plan.quotas is None else plan.quotas
        quotas = {pool.name: int(n) for pool, n in zip(spec.pools, chosen, strict=True)}
        flows = None
        if plan.flows is not None:
            flows = {
                cls.name: {
                    pool.name: round(float(rate), 6)
                    for pool, rate in zip(spec.pools, row, strict=True)
                    if rate > 0.0
                }
                for cls, row in zip(spec.slo_classes, plan.flows, strict=True)
            }
        return GroupPlan(quotas, flows, plan.reason)


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
        self, group: ServingGroup, pools: Sequence[WorkerPool], name: str, now_s: float
    ) -> tuple[int, str]:
        """Return the replicas a pool should have, and why; errors as for `Allocator.plan`."""
        pool = next(pool for pool in pools if pool.name == name)
        if group.spec.policy.scaler == QUOTA and group.spec.policy.checkpoint is None:
            return pool.spec.quota or 0, "all of the quota"
        fit, left_out = plannable(group, pools)
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
