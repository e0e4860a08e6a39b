"""Time: the next event, in order, until a given moment.

Four things happen: a KV transfer lands, a request arrives, a worker acts (a boundary, a replica
ready, a failure), the scraper comes by. At equal times they happen in this order, so that a worker
finds everything queued that came at the moment it acts.
"""

from __future__ import annotations

import numpy as np

from envs.kernel import metrics
from envs.kernel.heaps import transfer_pop, tree_first
from envs.kernel.layout import (
    DECODE,
    DRAINING,
    IDLE,
    NONE,
    STARTING,
    Cluster,
)
from envs.kernel.lifecycle import fail, make_ready, remove_replica, restart, start_pending
from envs.kernel.queues import as_index, push_decode
from envs.kernel.router import observe_offer, retry_decode, route_prefill, take_outbox
from envs.kernel.worker import begin_step, decode_fits, end_step, interrupt, wake
from hrl_planner._compiled import inlined, lean


@inlined
def _worker_acts(cluster: Cluster, slot: int, now_s: float) -> None:
    """Handle a slot's event: ready, dead, or at a boundary."""
    worker = cluster.workers[slot]
    g = cluster.g[0]
    if worker.state == STARTING:
        make_ready(cluster, slot, now_s)
        role = cluster.pools[worker.pool].role
        g.release_prefill = role != DECODE
        g.release_decode = role == DECODE
        return
    if worker.fail_s < worker.boundary_s:
        fail(cluster, slot, now_s)
        g.release_prefill = 1
        return
    end_step(cluster, slot, now_s)
    if g.outbox_head != NONE:
        take_outbox(cluster, now_s)
    if worker.state == DRAINING and cluster.load[slot].active == 0:
        remove_replica(cluster, slot, now_s)
        start_pending(cluster, now_s)
    else:
        begin_step(cluster, slot, now_s)


@inlined
def _transfer_lands(cluster: Cluster, request: int, now_s: float) -> None:
    """Queue a request at its decode worker."""
    q = cluster.requests[request]
    slot = as_index(q.decode_worker)
    worker = cluster.workers[slot]
    q.queued_s = now_s
    metrics.count_arrival(cluster, slot, q)
    push_decode(cluster, slot, request)
    if worker.step == IDLE:
        wake(cluster, slot, now_s)
    elif worker.decode_len == 1 and decode_fits(cluster, slot, request):
        interrupt(cluster, slot, now_s)


@lean
def release_held(cluster: Cluster, now_s: float) -> None:
    """Look through the requests the router holds, in order."""
    g = cluster.g[0]
    if g.release_prefill != 0:
        request = g.prefill_hold_head
        g.prefill_hold_head = NONE
        g.prefill_hold_tail = NONE
        while request != NONE:
            following = as_index(cluster.requests[request].next)
            route_prefill(cluster, request, now_s, False)
            request = following
    if g.release_decode != 0:
        retry_decode(cluster, now_s)
    g.release_prefill = 0
    g.release_decode = 0


@lean
def _scrape(cluster: Cluster, now_s: float) -> None:
    g = cluster.g[0]
    metrics.scrape(cluster, now_s)
    g.next_scrape_s = g.scrape_s * g.n_scrapes
    if now_s >= g.next_sample_s:
        metrics.sample(cluster, now_s)
        g.next_sample_s = g.sample_s * g.n_samples


@lean
def advance(cluster: Cluster, until_s: float) -> None:
    """Simulate every event at or before a time; the clock then stands at that time."""
    g = cluster.g[0]
    while True:
        worker_s = cluster.tree[1]
        transfer_s = cluster.transfers[0].at_s if g.n_transfers > 0 else np.inf
        arrival_s = np.inf
        if g.next_arrival < cluster.requests.size:
            arrival_s = cluster.requests[g.next_arrival].arrival_s
        now_s = min(min(worker_s, transfer_s), min(arrival_s, g.next_scrape_s))
        if now_s > until_s:
            break
        g.now_s = now_s
        request = NONE
        fresh = False
        if transfer_s == now_s:
            landed = transfer_pop(cluster.transfers, g.n_transfers)
            g.n_transfers -= 1
            q = cluster.requests[landed]
            if cluster.workers[q.decode_worker].epoch == q.decode_epoch:
                _transfer_lands(cluster, landed, now_s)
            else:
                restart(cluster, landed, now_s)
                request = landed
        elif arrival_s == now_s:
            request = g.next_arrival
            g.next_arrival += 1
            observe_offer(cluster, request)
            fresh = True
        elif worker_s == now_s:
            _worker_acts(cluster, tree_first(cluster.tree), now_s)
        else:
            _scrape(cluster, now_s)
        if request != NONE:
            route_prefill(cluster, request, now_s, fresh)
        if g.release_prefill + g.release_decode > 0:
            release_held(cluster, now_s)
    g.now_s = until_s


@lean
def kill(cluster: Cluster, slot: int) -> None:
    """Let the replica in a slot die now."""
    now_s = cluster.g[0].now_s
    fail(cluster, slot, now_s)
    cluster.g[0].release_prefill = 1
    release_held(cluster, now_s)
