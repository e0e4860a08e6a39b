"""The router inside the simulation: it feeds the rules of production with live state.

The rules are `hrl_planner.routing` and `hrl_planner.slo_routing`.

Requests that no ready worker can take wait here in order (`hold_*`) and are looked through again
when a worker becomes ready or dies. A request that fits no pool at all, or that its class sheds,
is rejected.
"""

from __future__ import annotations

import numpy as np

from envs.kernel import metrics
from envs.kernel.heaps import transfer_push
from envs.kernel.layout import NONE, PREFILL, REJECTED, Cluster
from envs.kernel.prefix_cache import cached_blocks
from envs.kernel.queues import as_index, hold_for_decode, hold_for_prefill
from envs.kernel.worker import enqueue_prefill, step_ends_s
from hrl_planner._compiled import inlined, lean
from hrl_planner.routing import (
    DECODE,
    LEAST_LOADED,
    NOBODY,
    REJECT,
    ROUND_ROBIN,
    STATIC_GRID,
    fits,
    fits_somewhere,
    grid_pool,
    pick_decode_worker,
    pick_least_loaded,
    pick_next,
    pick_pool,
    pick_prefill_worker,
)
from hrl_planner.slo_routing import decode_ratios, hopeless, prefill_ratios


@inlined
def _look_up_overlap(cluster: Cluster, request: int) -> None:
    """Write the cached prompt tokens of every prefilling worker into `cluster.overlap`."""
    q = cluster.requests[request]
    if q.n_blocks == 0:
        if cluster.cache_hash.size > 1:
            cluster.overlap[:] = 0
        return
    block_tokens = cluster.g[0].prefix_block_tokens
    for index in range(cluster.pools.size):
        pool = cluster.pools[index]
        if pool.role == DECODE:
            continue
        for slot in range(pool.first, pool.first + pool.n_slots):
            if cluster.load[slot].accepting != 0:
                hit = cached_blocks(cluster, slot, q.block_at, q.n_blocks)
                cluster.overlap[slot] = min(hit * block_tokens, q.isl - 1)


@inlined
def _by_grid(cluster: Cluster, request: int, decode: bool) -> int:
    """Apply the static table; the worker inside the named pool is chosen as by the KV router."""
    q = cluster.requests[request]
    kind = cluster.classes[q.class_id]
    stage = 1 if decode else 0
    target_s = kind.itl_s if decode else kind.ttft_s
    index = grid_pool(
        cluster.grid_lengths[stage],
        cluster.grid_targets[stage],
        cluster.grid_pools[stage],
        float(q.isl),
        target_s * 1e3,
    )
    pool = cluster.pools[index]
    worker = NOBODY
    if fits(pool, q.isl, q.kv_blocks):
        if decode:
            worker = pick_decode_worker(cluster.load, pool.first, pool.n_slots)
        else:
            worker = pick_prefill_worker(
                cluster.load,
                pool.first,
                pool.n_slots,
                q.isl,
                cluster.overlap,
                cluster.g[0].overlap_weight,
            )
    if worker == NOBODY:
        worker = pick_least_loaded(cluster.pools, cluster.load, q.isl, q.kv_blocks, decode)
    return worker


@inlined
def _rate_decode(cluster: Cluster, request: int) -> None:
    """Write the decode pools' ratios and workers for a request into the scratch arrays."""
    q = cluster.requests[request]
    g = cluster.g[0]
    decode_ratios(
        cluster.pools,
        cluster.surfaces,
        cluster.table,
        cluster.load,
        g.block_tokens,
        q.kv_blocks,
        cluster.classes[q.class_id].itl_s,
        cluster.ratio,
        cluster.candidate,
    )


@inlined
def _by_prefill_slo(cluster: Cluster, request: int, now_s: float, may_shed: bool) -> int:
    q = cluster.requests[request]
    g = cluster.g[0]
    kind = cluster.classes[q.class_id]
    prefill_ratios(
        cluster.pools,
        cluster.surfaces,
        cluster.table,
        cluster.load,
        cluster.overlap,
        g.overlap_weight,
        g.block_tokens,
        q.isl,
        q.kv_blocks,
        kind.ttft_s - (now_s - q.arrival_s),
        kind.itl_s,
        cluster.guard_s[q.class_id],
        cluster.ratio,
        cluster.candidate,
    )
    index = pick_pool(
        cluster.ratio,
        cluster.flows[q.class_id],
        cluster.served[q.class_id],
        cluster.pools["price_per_token"],
    )
    if index == NOBODY:
        return NOBODY
    slot = int(cluster.candidate[index])
    if may_shed and kind.shed_above < np.inf:
        predicted = cluster.ratio[index]
        if cluster.pools[index].role == PREFILL:
            _rate_decode(cluster, request)
        else:
            cluster.ratio[:] = np.inf
        if hopeless(predicted, cluster.ratio, kind.shed_above):
            return REJECT
    cluster.served[q.class_id, index] += 1.0
    return slot


@inlined
def _pick_prefill(cluster: Cluster, request: int, now_s: float, fresh: bool) -> int:
    """Return the worker for a prompt, NOBODY to hold the request, or REJECT."""
    q = cluster.requests[request]
    g = cluster.g[0]
    if fresh and not fits_somewhere(cluster.pools, q.isl, q.kv_blocks):
        return REJECT
    if g.router == LEAST_LOADED:
        return int(pick_least_loaded(cluster.pools, cluster.load, q.isl, q.kv_blocks, False))
    if g.router == ROUND_ROBIN:
        worker = pick_next(cluster.pools, cluster.load, q.isl, q.kv_blocks, False, g.prefill_turn)
        if worker != NOBODY:
            g.prefill_turn = worker
        return int(worker)
    _look_up_overlap(cluster, request)
    if g.router == STATIC_GRID:
        return _by_grid(cluster, request, False)
    return _by_prefill_slo(cluster, request, now_s, fresh)


@inlined
def route_prefill(cluster: Cluster, request: int, now_s: float, fresh: bool) -> None:
    """Give a request to a worker that prefills; else hold or reject it."""
    slot = _pick_prefill(cluster, request, now_s, fresh)
    if slot == REJECT:
        q = cluster.requests[request]
        q.status = REJECTED
        cluster.classes[q.class_id].resolved += 1.0
        cluster.g[0].n_unresolved -= 1
    elif slot == NOBODY:
        hold_for_prefill(cluster, request)
    else:
        enqueue_prefill(cluster, slot, request, now_s, cluster.overlap[slot])


@inlined
def _pick_decode(cluster: Cluster, request: int) -> int:
    q = cluster.requests[request]
    g = cluster.g[0]
    if g.router == LEAST_LOADED:
        return int(pick_least_loaded(cluster.pools, cluster.load, q.isl, q.kv_blocks, True))
    if g.router == ROUND_ROBIN:
        worker = pick_next(cluster.pools, cluster.load, q.isl, q.kv_blocks, True, g.decode_turn)
        if worker != NOBODY:
            g.decode_turn = worker
        return int(worker)
    if g.router == STATIC_GRID:
        return _by_grid(cluster, request, True)
    _rate_decode(cluster, request)
    index = pick_pool(
        cluster.ratio,
        cluster.flows[q.class_id],
        cluster.served[q.class_id],
        cluster.pools["price_per_token"],
    )
    if index == NOBODY:
        return NOBODY
    cluster.served[q.class_id, index] += 1.0
    return int(cluster.candidate[index])


@inlined
def route_decode(cluster: Cluster, request: int, now_s: float) -> None:
    """Start a prefilled request's KV transfer to a decode worker, or hold it."""
    slot = _pick_decode(cluster, request)
    if slot == NOBODY:
        hold_for_decode(cluster, request)
        return
    g = cluster.g[0]
    q = cluster.requests[request]
    q.decode_worker = slot
    q.decode_epoch = cluster.workers[slot].epoch
    cluster.load[slot].active += 1
    cluster.load[slot].kv_blocks += q.kv_blocks
    pool = cluster.pools[cluster.load[q.prefill_worker].pool]
    lands_s = now_s
    transfer_s = pool.transfer_latency_s + q.isl * pool.transfer_s_per_token
    if transfer_s > 0.0:
        # The decode engine pulls: its scheduler must see the request between two steps first.
        lands_s = step_ends_s(cluster, slot, now_s) + transfer_s
    transfer_push(cluster.transfers, g.n_transfers, lands_s, g.transfer_seq, request)
    g.n_transfers += 1
    g.transfer_seq += 1


@inlined
def _route_chain(cluster: Cluster, request: int, now_s: float) -> None:
    """Route a linked chain of prefilled requests in order."""
    while request != NONE:
        following = as_index(cluster.requests[request].next)
        route_decode(cluster, request, now_s)
        request = following


@inlined
def take_outbox(cluster: Cluster, now_s: float) -> None:
    """Route the prompts that were completed in this step."""
    g = cluster.g[0]
    first = g.outbox_head
    g.outbox_head = NONE
    g.outbox_tail = NONE
    _route_chain(cluster, first, now_s)


@lean
def retry_decode(cluster: Cluster, now_s: float) -> None:
    """Look through the prefilled requests that wait for a decode worker, in order."""
    g = cluster.g[0]
    first = g.decode_hold_head
    g.decode_hold_head = NONE
    g.decode_hold_tail = NONE
    _route_chain(cluster, first, now_s)


@inlined
def observe_offer(cluster: Cluster, request: int) -> None:
    """Count a request that the trace offers now."""
    metrics.count_offered(cluster, cluster.requests[request])
    cluster.g[0].n_unresolved += 1
