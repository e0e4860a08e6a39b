"""The simulator's run of what a cluster ran: the same spec, requests, classes and policy.

It begins as the cluster's does: replicas as the spec begins with, an idle cluster for as long as
metrics look back, then the first request and the first decision of a policy that remembers nothing.
From there planners run as the pods do: the allocator on the global clock, the scaler on the local
one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import agents.peers  # noqa: F401  (registers policies)
from agents.agreement.runs import Ints, Run, Steps, timeline_of
from agents.evaluate.config import GRACE_S
from agents.evaluate.metrics import budget_violations
from envs.simulation import SimResult, Simulation
from hrl_planner.control.decide import QUOTA
from hrl_planner.localcluster.demo_watch import FIELDS, LOOK_S
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner import PlanContext, Policy, loop
from hrl_planner.planner.deployed import DeployedPlanner
from hrl_planner.planner.hierarchy import HierarchicalPlanner
from hrl_planner.planner.policy import Plan
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace


def simulated(spec: ClusterSpec, trace: Trace, policy: Policy, seed: int, idle_s: float) -> Run:
    """Simulate what the cluster did.

    Args:
        spec: the cluster.
        trace: the requests.
        policy: decides from the first request on.
        seed: of classes.
        idle_s: how long metrics cover an idle cluster before.
    """
    later = replace(trace, arrival_s=trace.arrival_s + idle_s, duration_s=trace.duration_s + idle_s)
    simulation = _Watched(spec, later, seed=seed)
    simulation.advance_to(idle_s)
    policy.reset(PlanContext(_as_resources_say(spec), seed=seed))
    loop.run(simulation, policy, later.duration_s)
    simulation.finish(GRACE_S)
    t_s, fields = simulation.timeline(idle_s)
    within = (t_s >= 0.0) & (t_s <= trace.duration_s)
    timeline = timeline_of(t_s[within], {name: rows[within] for name, rows in fields.items()})
    result = _earlier(simulation.result(), idle_s, timeline)
    over = budget_violations(result)
    quota = Steps(t_s[within], fields["quota"][within])
    return Run("simulator", result, quota, _placed(result), over, timeline.size)


def policy_of(choice: dict[str, Any]) -> Policy:
    """Return the policy that planner pods with this choice run between them."""
    if choice.get("checkpoint") is not None:
        return DeployedPlanner(Path(choice["checkpoint"]))
    allocator, scaler = make_policy(choice["allocator"]), _WholeQuota()
    if choice["scaler"] == QUOTA:
        return HierarchicalPlanner(allocator, scaler)
    local = make_policy(choice["scaler"])
    if isinstance(local, RulePolicy):
        local.within_quota = True
    return HierarchicalPlanner(allocator, local)


class _WholeQuota:
    """The local planner that asks for all it may have."""

    name = QUOTA
    interval_s = 10.0

    def reset(self, context: PlanContext) -> None:
        """Take the clock of the spec."""
        self.interval_s = context.spec.intervals.local_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Return the quotas as targets."""
        return Plan(observation.pool_field("quota").astype(np.int64))


def _as_resources_say(spec: ClusterSpec) -> ClusterSpec:
    """Return what planners know of a cluster: not with how many replicas a pool begins."""
    pools = [pool.model_copy(update={"initial_replicas": None}) for pool in spec.pools]
    return spec.replace(pools=pools)


class _Watched(Simulation):
    """A simulation that is looked at as often as the cluster's pods are."""

    def __init__(self, spec: ClusterSpec, trace: Trace, seed: int) -> None:
        super().__init__(spec, trace, seed=seed)
        self._looks: list[tuple[float, Ints]] = []

    def advance_to(self, t_s: float) -> None:
        """Let time pass, and note the pools on the way."""
        while self.now_s < t_s - 1e-9:
            super().advance_to(min(self.now_s + LOOK_S, t_s))
            pools = self.cluster.pools
            self._looks.append((self.now_s, np.stack([pools[name] for name in FIELDS], axis=1)))

    def timeline(self, start_s: float) -> tuple[NDArray[np.float64], dict[str, Ints]]:
        """Return seconds since a time, and each field by pool."""
        rows = np.stack([row for _, row in self._looks]).astype(np.int64)
        t_s = np.array([t_s for t_s, _ in self._looks]) - start_s
        return t_s, {name: rows[:, :, index] for index, name in enumerate(FIELDS)}


def _earlier(result: SimResult, by_s: float, timeline: NDArray[Any]) -> SimResult:
    """Return a result without its first seconds, in which nothing was decided or asked."""
    idle = np.array([pool.initial * pool.gpus_per_replica for pool in result.spec.pools])
    return replace(
        result,
        duration_s=result.duration_s - by_s,
        arrival_s=result.arrival_s - by_s,
        first_token_s=result.first_token_s - by_s,
        finish_s=result.finish_s - by_s,
        timeline=timeline,
        gpu_seconds=result.gpu_seconds - idle * by_s,
    )


def _placed(result: SimResult) -> Counter[tuple[str, str]]:
    """Count requests by class and pool."""
    classes, pools = result.spec.slo_classes, result.spec.pools
    placed: Counter[tuple[str, str]] = Counter()
    for of_class, prefill, decode in zip(
        result.class_id, result.prefill_pool, result.decode_pool, strict=True
    ):
        for pool in {int(prefill), int(decode)} - {-1}:
            placed[classes[of_class].name, pools[pool].name] += 1
    return placed
