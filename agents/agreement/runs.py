"""The two runs of a comparison in one form, that of a simulation.

    cluster    what clients measured, and what a watcher saw of pods and pools
    simulator  the same spec, trace and policy in `envs`

Both begin alike: replicas as the spec begins with, an idle cluster for as long as metrics look
back, then at time 0 the first request and the first decision of a policy that remembers nothing.
From there the simulator runs the planners as the pods do: the allocator on the global clock, the
scaler on the local one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import agents.peers  # noqa: F401  (registers policies)
from agents.evaluate.config import GRACE_S
from agents.evaluate.metrics import STATUS_REJECTED, budget_violations
from envs.kernel.layout import FINISHED, SAMPLE_FIELDS
from envs.simulation import SimResult, Simulation
from hrl_planner.control.decision import QUOTA
from hrl_planner.load.result import REJECTED_STATUS
from hrl_planner.localcluster.demo import DemoResult
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


def measured(demo: DemoResult) -> Run:
    """Return what came of the cluster."""
    spec, load = demo.spec, demo.load
    t_s, fields = demo.watch.timeline(demo.start_s)
    within = (t_s >= 0.0) & (t_s <= demo.trace.duration_s)
    timeline = _timeline(t_s[within], {name: rows[within] for name, rows in fields.items()})
    held = sum(timeline[name] for name in ("ready", "starting", "draining"))
    gpus = np.array([pool.gpus_per_replica for pool in spec.pools])
    lasted_s = np.diff(np.append(timeline["t_s"], demo.trace.duration_s))
    steps = np.diff(timeline["target"].astype(np.int64), axis=0)
    rejected = np.isin(load.status, REJECTED_STATUS)
    refused = np.where(rejected, STATUS_REJECTED, 0)
    n = len(load)
    result = SimResult(
        spec=spec,
        duration_s=demo.trace.duration_s,
        arrival_s=load.due_s,
        class_id=load.class_id,
        isl_tokens=load.isl_tokens,
        osl_tokens=np.where(load.finished, load.tokens, load.osl_tokens),
        prefill_pool=np.full(n, -1, np.int32),
        decode_pool=_pools_of(spec, load.worker),
        cached_tokens=load.cached_tokens,
        first_token_s=load.first_token_s,
        finish_s=np.where(load.finished, load.last_token_s, np.nan),
        status=np.where(load.finished, FINISHED, refused).astype(np.int8),
        restarts=np.zeros(n, np.int8),
        timeline=timeline,
        gpu_seconds=(held * lasted_s[:, None]).sum(axis=0) * gpus,
        scale_ups=np.maximum(steps, 0).sum(axis=0),
        scale_downs=np.maximum(-steps, 0).sum(axis=0),
        failures=np.zeros(len(spec.pools), np.int64),
    )
    quota = Steps(t_s[within], fields["quota"][within])
    watch = demo.watch
    return Run("cluster", result, quota, watch.routed.placed, watch.over, watch.samples)


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
    timeline = _timeline(t_s[within], {name: rows[within] for name, rows in fields.items()})
    result = _earlier(simulation.result(), idle_s, timeline)
    over = budget_violations(result)
    quota = Steps(t_s[within], fields["quota"][within])
    return Run("simulator", result, quota, _placed(result), over, timeline.size)


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


def _timeline(t_s: NDArray[np.float64], fields: dict[str, Ints]) -> NDArray[Any]:
    pools = fields["ready"].shape[1]
    kinds = [(name, "<i4", (pools,)) for name in _SAMPLE_FIELDS]
    timeline = np.zeros(t_s.size, [("t_s", "<f8"), *kinds, (SAMPLE_FIELDS[-1], "<f4", (pools,))])
    timeline["t_s"] = t_s
    for name in ("target", "ready", "starting", "draining"):
        timeline[name] = fields[name]
    live = fields["ready"] + fields["starting"]
    timeline["pending"] = np.maximum(fields["target"] - live, 0)
    return timeline


def _pools_of(spec: ClusterSpec, workers: tuple[str, ...]) -> NDArray[np.int32]:
    """Return the pool of each worker by its pod's name, POOL-HASH-ID; -1 for none."""
    index = {pool.name: number for number, pool in enumerate(spec.pools)}
    names = (worker.rsplit("-", 2)[0] for worker in workers)
    return np.array([index.get(name, -1) for name in names], np.int32)
