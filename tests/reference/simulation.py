"""The cluster as a heap of events, as plain as it can be written.

Events at equal times happen in this order: KV caches that reach their decode worker, requests that
arrive, what workers do (a step starts or ends, a replica is ready or dies; lowest slot first), and
events of the scenario: whatever arrives at a moment is queued when a worker looks at its queues.
Nothing is leapt over: every decode iteration of every worker is an event of its own.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.luck import lifetime_draws, startup_draws
from hrl_planner import routing
from hrl_planner.mock_engine.model import Limits
from hrl_planner.planner.policy import Plan
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.classes import assign_classes
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace
from tests.reference.latency import StepTimes
from tests.reference.routing import Router
from tests.reference.worker import FINISHED, REJECTED, Pool, Replica, Request, State

TRANSFER, ARRIVAL, WORKER, SCENARIO = range(4)  # the order at equal times

RESULT_COLUMNS = (
    "arrival_s",
    "class_id",
    "prefill_pool",
    "decode_pool",
    "cached_tokens",
    "first_token_s",
    "finish_s",
    "status",
    "restarts",
)


class ReferenceSimulation:
    """One cluster under one trace."""

    def __init__(
        self,
        spec: ClusterSpec,
        trace: Trace,
        seed: int = 0,
        events: Sequence[ClusterEvent] = (),
        class_id: NDArray[np.int16] | None = None,
    ) -> None:
        """Place the initial replicas, ready at time 0, and queue every arrival and event."""
        self.spec = spec
        self.seed = seed
        self.now_s = 0.0
        self.duration_s = trace.duration_s
        self.gpu_seconds = np.zeros(len(spec.pools))  # until duration_s
        self.pools = make_pools(spec, trace)
        self.slots: list[Replica | None] = [None] * sum(p.max_replicas for p in spec.pools)
        self.inventory = dict(spec.budget.gpus)
        classes = assign_classes(trace, spec, seed) if class_id is None else class_id
        self.requests = make_requests(spec, trace, classes)
        self.router = Router(self)
        self.startup_s = startup_draws(spec, seed)
        self.lifetime_s = lifetime_draws(spec, seed)
        self.held_arrivals: list[Request] = []
        self.held_transfers: list[Request] = []
        self._heap: list[tuple[float, int, int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for pool in self.pools:
            pool.target = pool.spec.initial
            for slot in range(pool.first_slot, pool.first_slot + pool.target):
                # Ready since ever, so that warm-up is over.
                self.slots[slot] = Replica(pool, slot, -np.inf, pool.starts, State.READY)
                self._schedule_death(self.slots[slot])
                pool.starts += 1
        for request in self.requests:
            self._at(request.arrival_s, ARRIVAL, 0, lambda request=request: self._arrive(request))
        for event in events:
            self._at(event.t_s, SCENARIO, 0, lambda event=event: self._happen(event))

    # ---- what a test calls

    def advance_to(self, until_s: float) -> None:
        """Let everything happen that happens at or before a time."""
        while self._heap and self._heap[0][0] <= until_s:
            time_s, _, _, _, action = heapq.heappop(self._heap)
            assert time_s >= self.now_s, "time ran back"
            self._pass_time(time_s)
            action()
        self._pass_time(until_s)

    def apply(self, plan: Plan) -> None:
        """Set the target of every pool and, if the plan has any, the router's weights."""
        for pool, target in zip(self.pools, plan.replicas, strict=True):
            pool.target = int(np.clip(target, 0, pool.spec.max_replicas))
        if plan.flows is not None:
            self.router.set_weights(plan.flows)
        self._reconcile()

    def rows(self) -> dict[str, NDArray[np.float64]]:
        """Return the result of every request, one array per column of RESULT_COLUMNS."""
        return {
            name: np.array([getattr(request, name) for request in self.requests], np.float64)
            for name in RESULT_COLUMNS
        }

    def counts(self, pool: Pool) -> dict[str, int]:
        """Return a pool's replicas by state, and its requests."""
        replicas = [r for r in self.slots if r is not None and r.pool is pool]
        live = self._live(pool)
        computing = [r.step.chunks if r.step is not None else [] for r in replicas]
        prompts = sum(len(chunks) for chunks in computing)
        return {
            "target": pool.target,
            "ready": len(self.replicas_of(pool, State.READY)),
            "starting": len(self.replicas_of(pool, State.STARTING)),
            "draining": len(self.replicas_of(pool, State.DRAINING)),
            "pending": max(0, pool.target - live),
            "waiting": sum(len(r.fifo) + len(r.waiting) for r in replicas) - prompts,
            "running": sum(len(r.running) for r in replicas) + prompts,
        }

    def replicas_of(self, pool: Pool, *states: State) -> list[Replica]:
        """Return a pool's replicas in some states, lowest slot first."""
        slots = self.slots[pool.first_slot : pool.first_slot + pool.spec.max_replicas]
        return [replica for replica in slots if replica is not None and replica.state in states]

    def held_gpus(self, gpu_type: str | None = None) -> int:
        """Return the GPUs that replicas hold, of one type or of all."""
        return sum(
            replica.pool.spec.gpus_per_replica
            for replica in self.slots
            if replica is not None and gpu_type in (None, replica.pool.spec.gpu_type)
        )

    # ---- events

    def _pass_time(self, until_s: float) -> None:
        billed_s = min(until_s, self.duration_s) - min(self.now_s, self.duration_s)
        for replica in self.slots:
            if replica is not None:
                pool = replica.pool
                self.gpu_seconds[pool.index] += billed_s * pool.spec.gpus_per_replica
        self.now_s = until_s

    def _at(self, time_s: float, rank: int, slot: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time_s, rank, slot, next(self._order), action))

    def _arrive(self, request: Request) -> None:
        if any(pool.prefills and self.fits(pool, request) for pool in self.pools):
            self._enter(request, fresh=True)
        else:
            request.status = REJECTED

    def _enter(self, request: Request, *, fresh: bool = False) -> None:
        """Route a request to a worker that computes its prompt, or hold it; `fresh` may be shed."""
        worker = self.router.prefill_worker(request, fresh)
        if worker == routing.NOBODY:
            self.held_arrivals.append(request)
            return
        if worker == routing.REJECT:
            request.status = REJECTED
            return
        assert isinstance(worker, Replica)
        request.prefill_pool = worker.pool.index
        if worker.pool.aggregated:
            request.decode_pool = worker.pool.index
        request.decodes_here = worker.pool.aggregated
        request.worker = worker
        worker.assigned.append(request)
        worker.fifo.append(request)
        self._wake(worker)

    def _hand_over(self, request: Request) -> None:
        """Route a request whose prompt is computed to a decode worker, or hold it."""
        worker = self.router.decode_worker(request)
        if worker is None:
            self.held_transfers.append(request)
            return
        request.decode_pool = worker.pool.index
        request.worker = worker
        request.under_way = True
        worker.assigned.append(request)
        link = self.spec.kv_transfer
        seconds = link.latency_ms * 1e-3 + request.isl * self.spec.kv_bytes_per_token / (
            link.bandwidth_gb_per_s * 1e9
        )
        starts_s = self.now_s
        if seconds > 0.0 and worker.step is not None:
            starts_s = worker.step_ends_s
        self._at(starts_s + seconds, TRANSFER, 0, lambda: self._receive(request, worker))

    def _receive(self, request: Request, worker: Replica) -> None:
        """A KV cache reaches the decode worker it was sent to."""
        request.under_way = False
        if worker.state is State.GONE:
            self._restart(request)
            return
        worker.waiting.append(request)
        self._wake(worker)

    def _wake(self, worker: Replica) -> None:
        """Let an idle worker look at its queues when all that arrives now is in them."""
        if worker.step is None and not worker.waking:
            worker.waking = True
            self._at(self.now_s, WORKER, worker.slot, lambda: self._look(worker))

    def _look(self, worker: Replica) -> None:
        worker.waking = False
        if worker.state is not State.GONE:
            self._begin_step(worker)

    def _begin_step(self, worker: Replica) -> None:
        seconds = worker.begin_step(self.now_s)
        if seconds is not None:
            worker.step_ends_s = self.now_s + seconds
            self._at(worker.step_ends_s, WORKER, worker.slot, lambda: self._end_step(worker))

    def _end_step(self, worker: Replica) -> None:
        if worker.state is State.GONE:
            return
        ended = worker.end_step(self.now_s)
        for request in ended.finished:
            request.status = FINISHED
            request.finish_s = self.now_s
            worker.assigned.remove(request)
        if not worker.pool.aggregated:
            for request in ended.completed:
                worker.assigned.remove(request)
                self._hand_over(request)
        if worker.state is State.DRAINING and not worker.assigned:
            self._remove(worker)
            self._reconcile()
            return
        self._begin_step(worker)

    def _become_ready(self, worker: Replica) -> None:
        if worker.state is not State.STARTING:
            return
        worker.state = State.READY
        self._schedule_death(worker)
        arrivals, self.held_arrivals = self.held_arrivals, []
        for request in arrivals:
            self._enter(request)
        transfers, self.held_transfers = self.held_transfers, []
        for request in transfers:
            self._hand_over(request)

    def _happen(self, event: ClusterEvent) -> None:
        if event.kind == "inventory":
            assert event.gpu_type is not None
            self.inventory[event.gpu_type] = int(event.value)
            self._reconcile()
            return
        pool = next(pool for pool in self.pools if pool.spec.name == event.pool)
        if event.kind == "set_replicas":
            pool.target = min(int(event.value), pool.spec.max_replicas)
            self._reconcile()
        elif event.kind == "kill_worker":
            victims = self.replicas_of(pool, State.READY) + self.replicas_of(pool, State.DRAINING)
            for worker in victims[: int(event.value)]:
                self._kill(worker)

    def _schedule_death(self, worker: Replica) -> None:
        """A worker dies a drawn time after it is ready, unless it is gone by then."""
        lifetimes = self.lifetime_s[worker.pool.index]
        dies_s = self.now_s + float(lifetimes[worker.start % lifetimes.size])
        if np.isfinite(dies_s):
            self._at(dies_s, WORKER, worker.slot, lambda: self._die(worker))

    def _die(self, worker: Replica) -> None:
        if worker.state is not State.GONE:
            self._kill(worker)

    def _kill(self, worker: Replica) -> None:
        """A worker dies with all it holds; its requests start again from routing."""
        self._remove(worker)
        self._reconcile()
        lost = [request for request in worker.assigned if not request.under_way]
        for request in sorted(lost, key=lambda request: request.index):
            self._restart(request)

    def _restart(self, request: Request) -> None:
        request.forget_progress()
        request.restarts += 1
        self._enter(request)

    def fits(self, pool: Pool, request: Request) -> bool:
        """Whether a pool's empty worker, and a decode worker after it, can hold a request."""
        if pool.spec.role != "prefill":
            return request.kv_blocks <= pool.limits.kv_blocks
        return request.isl <= pool.kv_tokens and any(
            other.spec.role == "decode" and self.fits(other, request) for other in self.pools
        )

    # ---- replica life cycle

    def _reconcile(self) -> None:
        """Move every pool towards its target: first release, then start in pool order."""
        for pool in self.pools:
            self._release(pool)
        for pool in self.pools:
            while self._live(pool) < pool.target and self._start(pool):
                pass

    def _live(self, pool: Pool) -> int:
        return len(self.replicas_of(pool, State.STARTING, State.READY))

    def _release(self, pool: Pool) -> None:
        while self._live(pool) > pool.target:
            starting = self.replicas_of(pool, State.STARTING)
            if starting:
                self._remove(max(starting, key=lambda replica: (replica.ready_s, replica.slot)))
                continue
            ready = self.replicas_of(pool, State.READY)
            idlest = min(ready, key=lambda replica: (len(replica.assigned), -replica.slot))
            idlest.state = State.DRAINING
            if not idlest.assigned:
                self._remove(idlest)

    def _start(self, pool: Pool) -> bool:
        """Start a replica in the lowest free slot, unless no slot or no GPU is free."""
        slots = range(pool.first_slot, pool.first_slot + pool.spec.max_replicas)
        free = [slot for slot in slots if self.slots[slot] is None]
        if not free or not self._gpus_allow(pool):
            return False
        draw = self.startup_s[pool.index, pool.starts % self.startup_s.shape[1]]
        ready_s = self.now_s + float(draw)
        replica = Replica(pool, free[0], ready_s, pool.starts)
        pool.starts += 1
        self.slots[free[0]] = replica
        self._at(ready_s, WORKER, replica.slot, lambda: self._become_ready(replica))
        return True

    def _gpus_allow(self, pool: Pool) -> bool:
        budget = self.spec.budget
        gpu_type = pool.spec.gpu_type
        gpus = pool.spec.gpus_per_replica
        limit = min(budget.gpus[gpu_type], self.inventory[gpu_type])
        if self.held_gpus(gpu_type) + gpus > limit:
            return False
        if budget.total_gpus is not None and self.held_gpus() + gpus > budget.total_gpus:
            return False
        watts = self.spec.power_w_per_replica(pool.index) + sum(
            self.spec.power_w_per_replica(replica.pool.index)
            for replica in self.slots
            if replica is not None
        )
        return budget.watts is None or watts <= budget.watts

    def _remove(self, replica: Replica) -> None:
        replica.state = State.GONE
        self.slots[replica.slot] = None


def make_pools(spec: ClusterSpec, trace: Trace) -> list[Pool]:
    """Return the pools of a spec, slots numbered in their order."""
    pools = []
    first_slot = 0
    for index, (pool, profile) in enumerate(zip(spec.pools, spec.profiles(), strict=True)):
        capacity = profile.kv_capacity_tokens
        pools.append(
            Pool(
                index=index,
                spec=pool,
                times=StepTimes(profile, pool.latency_scale),
                limits=Limits(
                    max_num_seqs=pool.max_num_seqs,
                    max_num_batched_tokens=pool.max_num_batched_tokens,
                    kv_blocks=capacity // spec.kv_block_tokens,
                    cache_blocks=capacity // trace.block_tokens,
                    cache_block_tokens=trace.block_tokens,
                ),
                first_slot=first_slot,
                kv_tokens=capacity,
            )
        )
        first_slot += pool.max_replicas
    return pools


def make_requests(spec: ClusterSpec, trace: Trace, classes: NDArray[np.int16]) -> list[Request]:
    """Return one request per row of the trace."""
    requests = []
    for index in range(len(trace)):
        isl, osl = int(trace.isl_tokens[index]), int(trace.osl_tokens[index])
        low, high = trace.block_offsets[index : index + 2]
        requests.append(
            Request(
                index=index,
                arrival_s=float(trace.arrival_s[index]),
                class_id=int(classes[index]),
                isl=isl,
                osl=osl,
                blocks=trace.block_ids[low:high].tolist(),
                kv_blocks=-(-(isl + osl) // spec.kv_block_tokens),
            )
        )
    return requests
