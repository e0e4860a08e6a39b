"""The simulated cluster as an object: advance, observe, apply, and at the end a result.

`Simulation` satisfies the `Cluster` protocol of `hrl_planner.planner.loop`, so a planner cannot
tell it from a real one. It owns no physics: every step is `envs.kernel`, here are only the
scenario's events, the translation of plans, and the columns of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.build import build_cluster
from envs.kernel import lifecycle, loop
from envs.kernel.layout import DRAINING, FINISHED, READY, SAMPLE_FIELDS, Cluster
from envs.kernel.observe import observe
from hrl_planner.errors import TraceError
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, ClusterObservation
from hrl_planner.planner.policy import Plan
from hrl_planner.slo_routing import guards_s
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.classes import assign_classes
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace

_FINISH_STEP_S = 10.0
# Fixed when a cluster is built, and most of its memory.
_UNCHANGING = {
    "surfaces",
    "table",
    "blocks",
    "startup_s",
    "lifetime_s",
    "grid_lengths",
    "grid_targets",
    "grid_pools",
}


@dataclass(frozen=True)
class SimResult:
    """What came of every request, and what the cluster looked like meanwhile.

    Attributes:
        spec: the cluster.
        duration_s: length of the trace; GPU time is counted until here.
        arrival_s: float64 (N,).
        class_id: int16 (N,).
        isl_tokens: int32 (N,).
        osl_tokens: int32 (N,).
        prefill_pool: int32 (N,), -1 if it never reached one.
        decode_pool: int32 (N,), -1 if it never reached one; an aggregated pool is both.
        cached_tokens: int32 (N,), prompt tokens found in the prefix cache.
        first_token_s: float64 (N,), NaN if there was none.
        finish_s: float64 (N,), NaN if unfinished.
        status: int8 (N,), 0 unfinished, 1 finished, 2 rejected.
        restarts: int8 (N,).
        timeline: structured array (S,) with `t_s` and, per pool, the fields of SAMPLE_FIELDS.
        gpu_seconds: float64 (P,), starting and draining replicas included.
        scale_ups: int64 (P,), replicas added by decisions.
        scale_downs: int64 (P,), replicas removed by decisions.
        failures: int64 (P,), workers that died.
    """

    spec: ClusterSpec
    duration_s: float
    arrival_s: NDArray[np.float64]
    class_id: NDArray[np.int16]
    isl_tokens: NDArray[np.int32]
    osl_tokens: NDArray[np.int32]
    prefill_pool: NDArray[np.int32]
    decode_pool: NDArray[np.int32]
    cached_tokens: NDArray[np.int32]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    status: NDArray[np.int8]
    restarts: NDArray[np.int8]
    timeline: NDArray[Any]
    gpu_seconds: NDArray[np.float64]
    scale_ups: NDArray[np.int64]
    scale_downs: NDArray[np.int64]
    failures: NDArray[np.int64]

    @cached_property
    def ttft_s(self) -> NDArray[np.float64]:
        """Time from arrival to first token, NaN where there was none, shape (N,)."""
        return self.first_token_s - self.arrival_s

    @cached_property
    def itl_s(self) -> NDArray[np.float64]:
        """Mean inter-token latency per request, 0 for a single token, shape (N,)."""
        steps = np.maximum(self.osl_tokens - 1, 1)
        return np.asarray((self.finish_s - self.first_token_s) / steps)

    @cached_property
    def attained(self) -> NDArray[np.bool_]:
        """Whether a request finished and met both targets, shape (N,)."""
        classes = self.spec.slo_classes
        ttft_s = np.array([c.ttft_ms for c in classes])[self.class_id] * 1e-3
        itl_s = np.array([c.itl_ms for c in classes])[self.class_id] * 1e-3
        finished = self.status == FINISHED
        return np.asarray(finished & (self.ttft_s <= ttft_s) & (self.itl_s <= itl_s))


class Simulation:
    """One simulated cluster under one trace.

    Args:
        spec: the cluster.
        trace: the requests it is offered.
        seed: of start-up times, failures and the assignment of classes.
        events: what else happens, in any order.
        class_id: SLO class per request, shape (N,); assigned by the spec's rules when absent.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        trace: Trace,
        *,
        seed: int = 0,
        events: Sequence[ClusterEvent] = (),
        class_id: NDArray[np.int16] | None = None,
    ) -> None:
        """See the class."""
        if class_id is None:
            class_id = assign_classes(trace, spec, seed)
        elif len(class_id) != len(trace):
            raise TraceError(
                f"trace {trace.name}: {len(class_id)} class ids for {len(trace)} requests"
            )
        self.spec = spec
        self.trace = trace
        self.class_id = class_id
        self.cluster: Cluster = build_cluster(spec, trace, class_id, seed)
        self._events = sorted(events, key=lambda event: event.t_s)
        self._next_event = 0
        self._inventory_cut = np.zeros(len(spec.gpu_types), np.int64)
        for index, pool in enumerate(spec.pools):
            self.cluster.pools[index]["quota"] = pool.initial
            self.cluster.pools[index]["target"] = pool.initial
            for _ in range(pool.initial):
                lifecycle.start_replica(self.cluster, index, 0.0, True)

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self.cluster.g[0]["now_s"])

    @property
    def all_resolved(self) -> bool:
        """Whether the whole trace was offered and every request finished or was rejected."""
        g = self.cluster.g[0]
        return bool(g["next_arrival"] == len(self.trace) and g["n_unresolved"] == 0)

    def branch(self) -> Simulation:
        """Return a copy that goes on from here by itself; what never changes is shared."""
        other = copy(self)
        fields = set(Cluster._fields) - _UNCHANGING
        own = {name: getattr(self.cluster, name).copy() for name in fields}
        other.cluster = self.cluster._replace(**own)
        other._inventory_cut = self._inventory_cut.copy()
        return other

    def gpu_seconds(self) -> NDArray[np.float64]:
        """Return the GPU time of every pool so far, starting and draining included, shape (P,)."""
        for index in range(len(self.spec.pools)):
            lifecycle.meter(self.cluster, index, self.now_s)
        return np.array(self.cluster.pools["gpu_seconds"])

    def advance_to(self, t_s: float) -> None:
        """Let time pass until `t_s`, with the scenario's events at their times."""
        while self._next_event < len(self._events):
            event = self._events[self._next_event]
            if event.t_s > t_s:
                break
            loop.advance(self.cluster, max(event.t_s, self.now_s))
            self.happen(event)
            self._next_event += 1
        loop.advance(self.cluster, max(float(t_s), self.now_s))

    def observe(self) -> ClusterObservation:
        """Return what a scraper would have delivered by now."""
        intervals = self.spec.intervals
        pools = np.empty((len(self.spec.pools), len(POOL_FIELDS)))
        classes = np.empty((len(self.spec.slo_classes), len(CLASS_FIELDS)))
        observe(self.cluster, intervals.scrape_lag_s, intervals.window_s, pools, classes)
        return ClusterObservation(self.now_s, pools, classes)

    def apply(self, plan: Plan) -> None:
        """Set targets, quotas and, if the plan has any, the router's weights."""
        limits = np.array([pool.max_replicas for pool in self.spec.pools])
        targets = np.clip(plan.replicas, 0, limits).astype(np.int64)
        quotas = targets if plan.quotas is None else plan.quotas
        self.cluster.pools["quota"] = quotas
        if plan.flows is not None:
            self.set_flows(plan.flows)
        lifecycle.set_targets(self.cluster, targets, self.now_s)

    def set_flows(self, flows: NDArray[np.float64]) -> None:
        """Set the router's class-to-pool weights, shape (C, P)."""
        classes = self.cluster.classes
        self.cluster.flows[:] = flows
        self.cluster.served[:] = 0.0
        self.cluster.guard_s[:] = guards_s(flows, classes["ttft_s"], classes["value"])

    def finish(self, grace_s: float = 300.0) -> None:
        """Run to the trace's end, then until every request is resolved or the grace is over."""
        self.advance_to(self.trace.duration_s)
        end_s = self.now_s + grace_s
        while not self.all_resolved and self.now_s < end_s:
            self.advance_to(min(end_s, self.now_s + _FINISH_STEP_S))

    def result(self) -> SimResult:
        """Return the columns of all requests and the timeline so far."""
        cluster = self.cluster
        gpu_seconds = self.gpu_seconds()
        requests = cluster.requests
        pool_of = np.append(cluster.workers["pool"], -1).astype(np.int32)
        names = ("isl_tokens", "isl"), ("osl_tokens", "osl"), ("cached_tokens", "cached")
        same = ("arrival_s", "class_id", "first_token_s", "finish_s", "status", "restarts")
        columns = {to: requests[column].copy() for to, column in names}
        columns |= {name: requests[name].copy() for name in same}
        # A leap writes the first token's time ahead; nobody has seen it before then.
        columns["first_token_s"][columns["first_token_s"] > self.now_s] = np.nan
        counts = ("scale_ups", "scale_downs", "failures")
        return SimResult(
            spec=self.spec,
            duration_s=self.trace.duration_s,
            prefill_pool=pool_of[requests["prefill_worker"]],
            decode_pool=pool_of[requests["decode_worker"]],
            timeline=self._timeline(),
            gpu_seconds=gpu_seconds,
            **columns,
            **{name: cluster.pools[name].copy() for name in counts},
        )

    def _timeline(self) -> NDArray[Any]:
        cluster = self.cluster
        n = int(cluster.g[0]["n_samples"])
        n_pools = len(self.spec.pools)
        kinds = [(name, "<i4", (n_pools,)) for name in SAMPLE_FIELDS[:-1]]
        timeline = np.zeros(n, [("t_s", "<f8"), *kinds, (SAMPLE_FIELDS[-1], "<f4", (n_pools,))])
        timeline["t_s"] = cluster.sample_s[:n]
        for column, name in enumerate(SAMPLE_FIELDS):
            timeline[name] = cluster.samples[:n, :, column]
        return timeline

    def happen(self, event: ClusterEvent) -> None:
        """Carry out an event now."""
        cluster = self.cluster
        pool = None if event.pool is None else self.spec.pool_index(event.pool)
        if event.kind == "set_replicas" and pool is not None:
            targets = cluster.pools["target"].copy()
            targets[pool] = min(int(event.value), self.spec.pools[pool].max_replicas)
            lifecycle.set_targets(cluster, targets, self.now_s)
        elif event.kind == "inventory" and event.gpu_type is not None:
            self._set_inventory(event.gpu_type, int(event.value))
        elif event.kind == "kill_worker" and pool is not None:
            self._kill(pool, int(event.value))
        elif event.kind == "metrics_outage":
            hit = slice(None) if pool is None else slice(pool, pool + 1)
            cluster.pools["outage_until_s"][hit] = self.now_s + event.value

    def _set_inventory(self, gpu_type: str, gpus: int) -> None:
        """Physically there are `gpus` of a type now: what runs stays, what is free shrinks."""
        index = self.spec.gpu_types.index(gpu_type)
        cut = max(0, self.spec.budget.gpus[gpu_type] - gpus)
        self.cluster.gpus_free[index] += self._inventory_cut[index] - cut
        self._inventory_cut[index] = cut
        lifecycle.start_pending(self.cluster, self.now_s)

    def _kill(self, pool: int, count: int) -> None:
        """Let workers die: ready ones from the lowest slot on, then draining ones."""
        first = int(self.cluster.pools[pool]["first"])
        state = self.cluster.workers["state"][first : first + self.spec.pools[pool].max_replicas]
        victims = [*np.flatnonzero(state == READY), *np.flatnonzero(state == DRAINING)]
        for slot in victims[:count]:
            loop.kill(self.cluster, first + int(slot))
