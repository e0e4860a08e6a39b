"""The simulator's run of what a cluster ran: the same spec, requests, classes and policy.

It begins as the cluster's does: replicas as the spec begins with, planners in shadow mode on an
idle cluster for as long as metrics look back, then the first request and the first plan that
counts. Planners decide through the same `Decider`s as in their pods, the allocator on the global
clock, the scalers on the local one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agreement.runs import Ints, Run, Steps, timeline_of
from agents.evaluate.config import GRACE_S
from agents.evaluate.metrics import budget_violations
from envs.simulation import SimResult, Simulation
from hrl_planner.control.decide import decides_nothing
from hrl_planner.control.decision import Choice, Decider
from hrl_planner.kube.resources import PolicySpec
from hrl_planner.localcluster.demo_watch import FIELDS, LOOK_S
from hrl_planner.observation import POOL_FIELDS, ClusterObservation
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import FloatArray, Plan
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace


def simulated(spec: ClusterSpec, trace: Trace, choice: PolicySpec, seed: int, idle_s: float) -> Run:
    """Simulate what the cluster did.

    Args:
        spec: the cluster.
        trace: the requests.
        choice: of the policy.
        seed: of classes.
        idle_s: how long planners watch an idle cluster before they act and requests come.
    """
    later = replace(trace, arrival_s=trace.arrival_s + idle_s, duration_s=trace.duration_s + idle_s)
    simulation = _Watched(spec, later, seed=seed)
    planners = _Planners(_as_resources_say(spec), choice)
    while simulation.now_s < idle_s - 1e-9:
        planners.watch(simulation.observe())
        simulation.advance_to(min(simulation.now_s + planners.interval_s, idle_s))
    planners.activate()
    loop.run(simulation, planners, later.duration_s)
    simulation.finish(GRACE_S)
    t_s, fields = simulation.timeline(idle_s)
    within = (t_s >= 0.0) & (t_s <= trace.duration_s)
    timeline = timeline_of(t_s[within], {name: rows[within] for name, rows in fields.items()})
    result = _earlier(simulation.result(), idle_s, timeline)
    over = budget_violations(result)
    quota = Steps(t_s[within], fields["quota"][within])
    return Run("simulator", result, quota, _placed(result), over, timeline.size)


class _Planners:
    """Both levels as the pods run them, with the pods' own deciders, on one clock."""

    name = "planners"

    def __init__(self, spec: ClusterSpec, choice: PolicySpec) -> None:
        self.interval_s = spec.intervals.local_s
        self._spec = spec
        self._allocator, self._scaler = Decider(), Decider()
        self._choices = Choice.of(choice, "allocator"), Choice.of(choice, "scaler")
        self._releases_at_once = decides_nothing(choice)
        self._next_s = -np.inf
        self._quotas: Ints = np.zeros(len(spec.pools), np.int64)

    def watch(self, observation: ClusterObservation) -> FloatArray | None:
        """Plan without consequence, as in shadow mode; without quotas scalers are not asked."""
        spec, choice, now_s = self._spec, self._choices[0], observation.now_s
        if now_s >= self._next_s - 1e-9:
            self._next_s = now_s + spec.intervals.global_s
            plan = self._allocator.decide(spec, choice, observation).plan
            self._quotas = plan.replicas if plan.quotas is None else plan.quotas
            return plan.flows
        heard = self._allocator.listen(spec, choice, observation)
        if heard is None:
            return None
        if heard.plan.replicas.size:
            self._quotas = heard.plan.replicas
        return heard.plan.flows

    def activate(self) -> None:
        """Plan at the next look: the group has been changed."""
        self._next_s = -np.inf

    def reset(self, context: PlanContext) -> None:
        """Nothing: memory begins in shadow mode."""

    def decide(self, observation: ClusterObservation) -> Plan:
        """Let the allocator plan or listen, then the scalers move within the quotas."""
        flows = self.watch(observation)
        pools = observation.pools.copy()
        pools[:, POOL_FIELDS.index("quota")] = self._quotas
        seen = replace(observation, pools=pools)
        wanted = self._scaler.decide(self._spec, self._choices[1], seen).plan.replicas
        if not self._releases_at_once and self._scaler.young(observation.now_s):
            has = np.minimum(current_targets(observation), self._quotas)
            wanted = np.maximum(wanted, has)
        replicas = np.minimum(wanted, self._quotas)
        return Plan(replicas, flows, quotas=self._quotas)


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
