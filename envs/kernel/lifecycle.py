"""Replicas: pending, starting, ready, draining, gone.

Starting and draining replicas hold their GPUs. A replica starts only when a slot, the GPUs of its
type, the total and the watts are free; otherwise it is pending, which is no state but the
difference between the pool's target and its live replicas. Every release tries pending ones.
"""

from __future__ import annotations

import numpy as np

from envs.kernel import prefix_cache
from envs.kernel.heaps import finish_pop, finish_push, finish_request, tree_set
from envs.kernel.layout import (
    DRAINING,
    EMPTY,
    IDLE,
    NONE,
    READY,
    STARTING,
    Cluster,
)
from envs.kernel.metrics import forget_counts
from envs.kernel.queues import as_index, hold_for_prefill
from hrl_planner._compiled import inlined, lean


@inlined
def meter(cluster: Cluster, index: int, now_s: float) -> None:
    """Add the GPU time a pool held since it was last metered."""
    pool = cluster.pools[index]
    until_s = min(now_s, cluster.g[0].accounting_end_s)
    if until_s > pool.metered_until_s:
        held = pool.ready + pool.starting + pool.draining
        pool.gpu_seconds += held * pool.gpus * (until_s - pool.metered_until_s)
        pool.metered_until_s = until_s


@inlined
def reschedule(cluster: Cluster, slot: int) -> None:
    """Tell the event tree when this slot acts next."""
    worker = cluster.workers[slot]
    time_s = np.inf
    if worker.state == STARTING:
        time_s = worker.ready_s
    elif worker.state != EMPTY:
        time_s = min(worker.boundary_s, worker.fail_s)
    tree_set(cluster.tree, slot, time_s)


@lean
def make_ready(cluster: Cluster, slot: int, now_s: float) -> None:
    """A starting replica begins to serve."""
    worker = cluster.workers[slot]
    pool = cluster.pools[worker.pool]
    meter(cluster, worker.pool, now_s)
    pool.starting -= 1
    pool.ready += 1
    worker.state = READY
    worker.step = IDLE
    worker.boundary_s = np.inf
    cluster.load[slot].accepting = 1
    forget_counts(cluster, slot)
    reschedule(cluster, slot)


@inlined
def _free_slot(cluster: Cluster, index: int) -> int:
    pool = cluster.pools[index]
    for slot in range(pool.first, pool.first + pool.n_slots):
        if cluster.workers[slot].state == EMPTY:
            return slot
    return NONE


@inlined
def _fits(cluster: Cluster, index: int) -> bool:
    g = cluster.g[0]
    pool = cluster.pools[index]
    return (
        cluster.gpus_free[pool.gpu_type] >= pool.gpus
        and g.gpus_held_total + pool.gpus <= g.gpus_budget_total
        and g.watts_held + pool.watts <= g.watts_budget
    )


@lean
def start_replica(cluster: Cluster, index: int, now_s: float, warm: bool) -> bool:
    """Start a replica of a pool where slot and budget allow; a warm one is ready at once."""
    slot = _free_slot(cluster, index)
    if slot == NONE or not _fits(cluster, index):
        return False
    g = cluster.g[0]
    pool = cluster.pools[index]
    worker = cluster.workers[slot]
    meter(cluster, index, now_s)
    cluster.gpus_free[pool.gpu_type] -= pool.gpus
    g.gpus_held_total += pool.gpus
    g.watts_held += pool.watts
    pool.starting += 1
    worker.state = STARTING
    draw = pool.n_starts % cluster.startup_s.shape[1]
    pool.n_starts += 1
    if warm:
        # Ready since ever: no warm-up is left.
        worker.ready_s = -np.inf
        worker.fail_s = now_s + cluster.lifetime_s[index, draw]
        make_ready(cluster, slot, now_s)
    else:
        worker.ready_s = now_s + cluster.startup_s[index, draw]
        worker.fail_s = worker.ready_s + cluster.lifetime_s[index, draw]
        reschedule(cluster, slot)
    return True


@lean
def start_pending(cluster: Cluster, now_s: float) -> None:
    """Start whatever is pending and fits, in pool order."""
    for index in range(cluster.pools.size):
        pool = cluster.pools[index]
        while pool.ready + pool.starting < pool.target:
            if not start_replica(cluster, index, now_s, False):
                break


@lean
def remove_replica(cluster: Cluster, slot: int, now_s: float) -> None:
    """A replica is gone: its GPUs, its prefix cache and its unscraped counts with it."""
    g = cluster.g[0]
    worker = cluster.workers[slot]
    pool = cluster.pools[worker.pool]
    meter(cluster, worker.pool, now_s)
    if worker.state == STARTING:
        pool.starting -= 1
    elif worker.state == READY:
        pool.ready -= 1
    else:
        pool.draining -= 1
    cluster.gpus_free[pool.gpu_type] += pool.gpus
    g.gpus_held_total -= pool.gpus
    g.watts_held -= pool.watts
    worker.state = EMPTY
    worker.epoch += 1
    worker.step = IDLE
    worker.boundary_s = np.inf
    worker.fail_s = np.inf
    worker.clock = 0
    worker.context_sum = 0
    worker.kv_used = 0
    worker.n_running = 0
    worker.n_batch = 0
    worker.prefill_head = NONE
    worker.prefill_tail = NONE
    worker.prefill_len = 0
    worker.decode_head = NONE
    worker.decode_tail = NONE
    worker.decode_len = 0
    load = cluster.load[slot]
    load.accepting = 0
    load.active = 0
    load.backlog_tokens = 0
    load.kv_blocks = 0
    prefix_cache.clear(cluster, slot)
    forget_counts(cluster, slot)
    reschedule(cluster, slot)


@lean
def _victim(cluster: Cluster, index: int) -> int:
    """Return the slot to give up next: the latest start, else the replica with the least work."""
    pool = cluster.pools[index]
    best = NONE
    latest_s = -np.inf
    for slot in range(pool.first, pool.first + pool.n_slots):
        worker = cluster.workers[slot]
        if worker.state == STARTING and worker.ready_s >= latest_s:
            latest_s = worker.ready_s
            best = slot
    if best != NONE:
        return best
    least = np.iinfo(np.int32).max
    for slot in range(pool.first, pool.first + pool.n_slots):
        if cluster.workers[slot].state == READY and cluster.load[slot].active <= least:
            least = cluster.load[slot].active
            best = slot
    return best


@lean
def _give_up_one(cluster: Cluster, index: int, now_s: float) -> None:
    slot = _victim(cluster, index)
    worker = cluster.workers[slot]
    pool = cluster.pools[index]
    if worker.state == STARTING or cluster.load[slot].active == 0:
        remove_replica(cluster, slot, now_s)
        return
    meter(cluster, index, now_s)
    worker.state = DRAINING
    pool.ready -= 1
    pool.draining += 1
    cluster.load[slot].accepting = 0


@lean
def set_targets(cluster: Cluster, targets: np.ndarray, now_s: float) -> None:
    """Ask for replicas per pool: first every reduction, then starts, both in pool order."""
    for index in range(cluster.pools.size):
        pool = cluster.pools[index]
        change = targets[index] - pool.target
        pool.scale_ups += max(0, change)
        pool.scale_downs += max(0, -change)
        pool.target = targets[index]
        while pool.ready + pool.starting > pool.target:
            _give_up_one(cluster, index, now_s)
    start_pending(cluster, now_s)


@inlined
def restart(cluster: Cluster, request: int, now_s: float) -> None:
    """Forget where a request was; tokens its user has seen stay seen."""
    q = cluster.requests[request]
    q.restarts += 1
    q.prefill_worker = NONE
    q.decode_worker = NONE
    q.cached = 0
    # A leap writes the first token's time ahead; a death in its first iteration takes it back.
    if q.first_token_s > now_s:
        q.first_token_s = np.nan


@lean
def fail(cluster: Cluster, slot: int, now_s: float) -> None:
    """A worker dies: its requests wait at the router to start again, in request order."""
    worker = cluster.workers[slot]
    lost = cluster.scratch
    n = 0
    for entry in range(worker.n_running):
        finish_push(lost, n, 0, finish_request(cluster.heaps[slot, entry]))
        n += 1
    for first in (worker.prefill_head, worker.decode_head):
        request = as_index(first)
        while request != NONE:
            finish_push(lost, n, 0, request)
            n += 1
            request = as_index(cluster.requests[request].next)
    cluster.pools[worker.pool].failures += 1
    remove_replica(cluster, slot, now_s)
    for size in range(n, 0, -1):
        request = as_index(finish_request(finish_pop(lost, size)))
        restart(cluster, request, now_s)
        hold_for_prefill(cluster, request)
    start_pending(cluster, now_s)
