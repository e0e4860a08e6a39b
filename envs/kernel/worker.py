"""One worker: it runs steps back to back while it has work, and changes its batch between them.

The moment between two steps is a *boundary*. At a boundary a worker admits requests to its decode
batch, then either runs one prefill step (with the decode batch riding along on aggregated workers)
or a *leap*: as many decode iterations as pass before anything can change. In a leap the batch is
constant and the step time linear in the context, so the time of n iterations is an arithmetic
series, n * base + slope * n (n - 1) / 2, and the boundary behind any moment has a closed form.
A request that arrives in a leap cuts it at the next boundary (`interrupt`); at an idle worker it
makes one (`wake`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.kernel import metrics
from envs.kernel.heaps import finish_clock, finish_pop, finish_push, finish_request
from envs.kernel.layout import (
    AGGREGATED,
    FINISHED,
    IDLE,
    LEAPING,
    NONE,
    PREFILLING,
    Cluster,
)
from envs.kernel.lifecycle import reschedule
from envs.kernel.prefix_cache import cached_blocks, touch_blocks
from envs.kernel.queues import as_index, pop_decode, pop_prefill, push_prefill, send_to_decode
from hrl_planner._compiled import inlined
from hrl_planner.surface import decode_piece, decode_step_s, prefill_step_s

_NOT_STARTED = -1  # Request.chunk before the first chunk of a prompt


@inlined
def series_s(base_s: float, slope_s: float, n: int) -> float:
    """Return the time of n iterations of which each takes `slope_s` longer than the last."""
    return n * base_s + slope_s * (0.5 * n * (n - 1))


@inlined
def iterations_until(base_s: float, slope_s: float, elapsed_s: float) -> int:
    """Return the least n >= 1 whose series does not end before `elapsed_s`."""
    if slope_s > 0.0:
        half = base_s - 0.5 * slope_s
        guess = (math.sqrt(half * half + 2.0 * slope_s * elapsed_s) - half) / slope_s
    elif slope_s < 0.0:
        half = base_s - 0.5 * slope_s
        guess = (half - math.sqrt(max(0.0, half * half + 2.0 * slope_s * elapsed_s))) / -slope_s
    else:
        guess = elapsed_s / base_s
    n = max(1, int(guess))
    while series_s(base_s, slope_s, n) < elapsed_s:
        n += 1
    while n > 1 and series_s(base_s, slope_s, n - 1) >= elapsed_s:
        n -= 1
    return n


@inlined
def enqueue_prefill(
    cluster: Cluster, slot: int, request: int, now_s: float, overlap_tokens: int
) -> None:
    """Give a routed request to a worker that prefills."""
    q = cluster.requests[request]
    worker = cluster.workers[slot]
    q.prefill_worker = slot
    q.expected = max(1, q.isl - overlap_tokens)
    q.chunk = _NOT_STARTED
    q.done = 0
    q.cached = 0
    q.queued_s = now_s
    load = cluster.load[slot]
    load.active += 1
    load.backlog_tokens += q.expected
    if cluster.pools[worker.pool].role == AGGREGATED:
        q.decode_worker = slot
        load.kv_blocks += q.kv_blocks
    metrics.count_arrival(cluster, slot, q)
    was_empty = worker.prefill_len == 0
    push_prefill(cluster, slot, request)
    if worker.step == IDLE:
        wake(cluster, slot, now_s)
    elif was_empty and worker.step == LEAPING:
        interrupt(cluster, slot, now_s)


@inlined
def wake(cluster: Cluster, slot: int, now_s: float) -> None:
    """Let an idle worker act now, once everything that arrives at this moment is queued."""
    cluster.workers[slot].boundary_s = now_s
    reschedule(cluster, slot)


@inlined
def interrupt(cluster: Cluster, slot: int, now_s: float) -> None:
    """Cut a leap at the first boundary from now on."""
    worker = cluster.workers[slot]
    n = iterations_until(worker.base_s, worker.slope_s, now_s - worker.step_start_s)
    if n < worker.leap:
        worker.leap = n
        worker.boundary_s = worker.step_start_s + series_s(worker.base_s, worker.slope_s, n)
        reschedule(cluster, slot)


@inlined
def step_ends_s(cluster: Cluster, slot: int, now_s: float) -> float:
    """Return when the decode iteration under way at a worker ends; now if it idles."""
    worker = cluster.workers[slot]
    if worker.step != LEAPING:
        return now_s
    n = iterations_until(worker.base_s, worker.slope_s, now_s - worker.step_start_s)
    return float(worker.step_start_s + series_s(worker.base_s, worker.slope_s, n))


@inlined
def decode_fits(cluster: Cluster, slot: int, request: int) -> bool:
    """Tell whether a request could join the decode batch at a boundary now."""
    worker = cluster.workers[slot]
    pool = cluster.pools[worker.pool]
    return bool(
        worker.n_running < pool.max_num_seqs
        and worker.kv_used + cluster.requests[request].kv_blocks <= pool.kv_capacity_blocks
    )


@inlined
def _slowdown(cluster: Cluster, worker: Any, now_s: float) -> float:
    pool = cluster.pools[worker.pool]
    if now_s < worker.ready_s + pool.warmup_s:
        return float(pool.warmup_slowdown)
    return 1.0


@inlined
def _join(cluster: Cluster, slot: int, request: int, context: int, remaining: int) -> None:
    """Put a request into the decode batch; its blocks are reserved already."""
    worker = cluster.workers[slot]
    finish_push(cluster.heaps[slot], worker.n_running, worker.clock + remaining, request)
    worker.n_running += 1
    worker.context_sum += context


@inlined
def _admit(cluster: Cluster, slot: int) -> int:
    """Admit waiting requests to the decode batch in order and return how many."""
    worker = cluster.workers[slot]
    admitted = 0
    while worker.decode_len > 0 and decode_fits(cluster, slot, worker.decode_head):
        request = pop_decode(cluster, slot)
        q = cluster.requests[request]
        worker.kv_used += q.kv_blocks
        _join(cluster, slot, request, q.isl, q.osl)
        admitted += 1
    return admitted


@inlined
def _first_chunk(cluster: Cluster, slot: int, request: int) -> None:
    """Look a prompt up in the prefix cache; what is found need not be computed."""
    q = cluster.requests[request]
    hit = cached_blocks(cluster, slot, q.block_at, q.n_blocks)
    q.cached = min(hit * cluster.g[0].prefix_block_tokens, q.isl - 1)
    q.done = q.cached
    if hit > 0:
        touch_blocks(cluster, slot, q.block_at, hit)


@inlined
def _begin_prefill(cluster: Cluster, slot: int, now_s: float) -> None:
    """Form a prefill batch from the queue's head on and start its step, if any request can run."""
    worker = cluster.workers[slot]
    pool = cluster.pools[worker.pool]
    budget = pool.max_batched_tokens - worker.n_running
    seats = pool.max_num_seqs - worker.n_running
    n = 0
    total = 0
    weighted = 0.0
    request = as_index(worker.prefill_head)
    while request != NONE and budget > 0 and n < seats:
        q = cluster.requests[request]
        if q.chunk == _NOT_STARTED:
            if pool.role == AGGREGATED:
                if worker.kv_used + q.kv_blocks > pool.kv_capacity_blocks:
                    break
                worker.kv_used += q.kv_blocks
            if q.n_blocks > 0:
                _first_chunk(cluster, slot, request)
        q.chunk = min(q.isl - q.done, budget)
        budget -= q.chunk
        total += q.chunk
        weighted += float(q.chunk) * q.done
        n += 1
        request = as_index(q.next)
    if n == 0:
        return
    surface = cluster.surfaces[worker.pool]
    # Decode tokens riding along pass through the same matrix products as the chunk's: they count
    # as new tokens, and their attention comes on top.
    tokens = float(total + worker.n_running)
    duration_s = prefill_step_s(surface, cluster.table, float(n), tokens, weighted / total)
    if worker.n_running > 0:
        context = worker.context_sum / worker.n_running
        riding_s = decode_step_s(surface, cluster.table, worker.n_running, context)
        duration_s += max(0.0, riding_s - decode_step_s(surface, cluster.table, 1, context))
    worker.step = PREFILLING
    worker.n_batch = n
    worker.leap = 1
    worker.boundary_s = now_s + duration_s * _slowdown(cluster, worker, now_s)


@inlined
def _begin_leap(cluster: Cluster, slot: int, now_s: float) -> None:
    """Start decode iterations up to the next finish, or the next piece of the latency surface."""
    worker = cluster.workers[slot]
    context = worker.context_sum / worker.n_running
    base_s, slope_s, piece_end = decode_piece(
        cluster.surfaces[worker.pool], cluster.table, worker.n_running, context
    )
    slowdown = _slowdown(cluster, worker, now_s)
    worker.base_s = base_s * slowdown
    worker.slope_s = slope_s * slowdown
    n = finish_clock(cluster.heaps[slot, 0]) - worker.clock
    if piece_end < np.inf:
        n = min(n, max(1, math.ceil(piece_end - context)))
    if slowdown != 1.0:
        pool = cluster.pools[worker.pool]
        warm_s = worker.ready_s + pool.warmup_s - now_s
        # The iteration under way when the warm-up ends is still slow.
        if series_s(worker.base_s, worker.slope_s, n) > warm_s:
            n = min(n, iterations_until(worker.base_s, worker.slope_s, warm_s))
    worker.step = LEAPING
    worker.step_start_s = now_s
    worker.leap = n
    worker.boundary_s = now_s + series_s(worker.base_s, worker.slope_s, n)


@inlined
def begin_step(cluster: Cluster, slot: int, now_s: float) -> None:
    """At a boundary: admit, then start the next step or fall idle."""
    worker = cluster.workers[slot]
    worker.step = IDLE
    worker.boundary_s = np.inf
    newcomer = as_index(worker.decode_head)
    admitted = _admit(cluster, slot)
    if worker.prefill_len > 0:
        _begin_prefill(cluster, slot, now_s)
    if worker.step == IDLE and worker.n_running > 0:
        _begin_leap(cluster, slot, now_s)
        for _ in range(admitted):
            q = cluster.requests[newcomer]
            if math.isnan(q.first_token_s):
                q.first_token_s = now_s + worker.base_s
            newcomer = as_index(q.next)
    reschedule(cluster, slot)


@inlined
def _finish(cluster: Cluster, slot: int, request: int, now_s: float) -> None:
    """A request has all its tokens: release what it held."""
    q = cluster.requests[request]
    worker = cluster.workers[slot]
    load = cluster.load[slot]
    q.finish_s = now_s
    q.status = FINISHED
    worker.kv_used -= q.kv_blocks
    load.kv_blocks -= q.kv_blocks
    load.active -= 1
    cluster.g[0].n_unresolved -= 1
    metrics.count_finished(cluster, slot, q)


@inlined
def _end_decode(cluster: Cluster, slot: int, now_s: float) -> None:
    """Give every running request the tokens of the step and finish those that are complete."""
    worker = cluster.workers[slot]
    tokens = worker.leap * worker.n_running
    worker.clock += worker.leap
    worker.context_sum += tokens
    cluster.counters[slot].output_tokens += tokens
    while worker.n_running > 0 and finish_clock(cluster.heaps[slot, 0]) <= worker.clock:
        request = finish_request(finish_pop(cluster.heaps[slot], worker.n_running))
        q = cluster.requests[request]
        worker.n_running -= 1
        worker.context_sum -= q.isl + q.osl
        _finish(cluster, slot, request, now_s)


@inlined
def _end_prefill(cluster: Cluster, slot: int, now_s: float) -> None:
    """Take prompts that are complete off the queue, on to decode."""
    worker = cluster.workers[slot]
    load = cluster.load[slot]
    aggregated = cluster.pools[worker.pool].role == AGGREGATED
    for _ in range(worker.n_batch):
        request = as_index(worker.prefill_head)
        q = cluster.requests[request]
        q.done += q.chunk
        if q.done < q.isl:
            break
        pop_prefill(cluster, slot)
        load.backlog_tokens -= q.expected
        if q.n_blocks > 0:
            touch_blocks(cluster, slot, q.block_at, q.n_blocks)
        metrics.count_prefilled(cluster, slot, q, now_s)
        if not aggregated:
            load.active -= 1
            send_to_decode(cluster, request)
            continue
        if math.isnan(q.first_token_s):
            q.first_token_s = now_s
        cluster.counters[slot].output_tokens += 1.0
        if q.osl == 1:
            _finish(cluster, slot, request, now_s)
        else:
            _join(cluster, slot, request, q.isl + 1, q.osl - 1)
    worker.n_batch = 0


@inlined
def end_step(cluster: Cluster, slot: int, now_s: float) -> None:
    """A boundary is reached: first decode finishes, then prompts complete."""
    worker = cluster.workers[slot]
    if worker.n_running > 0:
        _end_decode(cluster, slot, now_s)
    if worker.step == PREFILLING:
        _end_prefill(cluster, slot, now_s)
