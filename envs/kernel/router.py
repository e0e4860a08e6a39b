"""The router inside the simulation: it feeds the rules of production with live state.

The rules are `hrl_planner.choice`.

Requests that no ready worker can take wait here in order (`hold_*`) and are looked through again
when a worker becomes ready or dies. A request that fits no pool at all, or that its class sheds,
is rejected.
"""

from __future__ import annotations

import numpy as np

from envs.kernel import metrics
from envs.kernel.heaps import transfer_push
from envs.kernel.layout import NONE, REJECTED, Cluster
from envs.kernel.prefix_cache import cached_blocks
from envs.kernel.queues import as_index, hold_for_decode, hold_for_prefill
from envs.kernel.worker import enqueue_prefill, step_ends_s
from hrl_planner._compiled import inlined, lean
from hrl_planner.choice import choose_decode, choose_prefill
from hrl_planner.routing import DECODE, KV_SLO, NOBODY, REJECT, STATIC_GRID


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
def _pick_prefill(cluster: Cluster, request: int, now_s: float, fresh: bool) -> int:
    """Return the worker for a prompt, NOBODY to hold the request, or REJECT."""
    q = cluster.requests[request]
    kind = cluster.classes[q.class_id]
    router = cluster.g[0].router
    if router == KV_SLO or router == STATIC_GRID:
        _look_up_overlap(cluster, request)
    return int(
        choose_prefill(
            cluster,
            q.class_id,
            q.isl,
            q.kv_blocks,
            kind.ttft_s - (now_s - q.arrival_s),
            kind.ttft_s,
            kind.itl_s,
            kind.shed_above if fresh else np.inf,
            np.inf,
        )
    )


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
def route_decode(cluster: Cluster, request: int, now_s: float) -> None:
    """Start a prefilled request's KV transfer to a decode worker, or hold it."""
    q = cluster.requests[request]
    slot = choose_decode(cluster, q.class_id, q.isl, q.kv_blocks, cluster.classes[q.class_id].itl_s)
    if slot == NOBODY:
        hold_for_decode(cluster, request)
        return
    g = cluster.g[0]
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
