"""First-in first-out queues linked through `Request.next`: at the workers and at the router."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.kernel.layout import NONE, Cluster
from hrl_planner._compiled import inlined


@inlined
def as_index(link: Any) -> int:
    """Return a 32-bit link as an index: compiled loops need one integer type throughout."""
    return int(np.int64(link))


@inlined
def push_prefill(cluster: Cluster, slot: int, request: int) -> None:
    """Append a request to a worker's prefill queue."""
    worker = cluster.workers[slot]
    cluster.requests[request].next = NONE
    if worker.prefill_tail == NONE:
        worker.prefill_head = request
    else:
        cluster.requests[worker.prefill_tail].next = request
    worker.prefill_tail = request
    worker.prefill_len += 1


@inlined
def pop_prefill(cluster: Cluster, slot: int) -> int:
    """Remove and return the head of a worker's prefill queue."""
    worker = cluster.workers[slot]
    request = worker.prefill_head
    worker.prefill_head = cluster.requests[request].next
    if worker.prefill_head == NONE:
        worker.prefill_tail = NONE
    worker.prefill_len -= 1
    return int(request)


@inlined
def push_decode(cluster: Cluster, slot: int, request: int) -> None:
    """Append a request to a worker's queue for the decode batch."""
    worker = cluster.workers[slot]
    cluster.requests[request].next = NONE
    if worker.decode_tail == NONE:
        worker.decode_head = request
    else:
        cluster.requests[worker.decode_tail].next = request
    worker.decode_tail = request
    worker.decode_len += 1


@inlined
def pop_decode(cluster: Cluster, slot: int) -> int:
    """Remove and return the head of a worker's queue for the decode batch."""
    worker = cluster.workers[slot]
    request = worker.decode_head
    worker.decode_head = cluster.requests[request].next
    if worker.decode_head == NONE:
        worker.decode_tail = NONE
    worker.decode_len -= 1
    return int(request)


@inlined
def hold_for_prefill(cluster: Cluster, request: int) -> None:
    """Append a request to the router's queue for a prefill worker."""
    g = cluster.g[0]
    cluster.requests[request].next = NONE
    if g.prefill_hold_tail == NONE:
        g.prefill_hold_head = request
    else:
        cluster.requests[g.prefill_hold_tail].next = request
    g.prefill_hold_tail = request


@inlined
def hold_for_decode(cluster: Cluster, request: int) -> None:
    """Append a request to the router's queue for a decode worker."""
    g = cluster.g[0]
    cluster.requests[request].next = NONE
    if g.decode_hold_tail == NONE:
        g.decode_hold_head = request
    else:
        cluster.requests[g.decode_hold_tail].next = request
    g.decode_hold_tail = request


@inlined
def send_to_decode(cluster: Cluster, request: int) -> None:
    """Append a request whose prompt was completed in this step to the outbox."""
    g = cluster.g[0]
    cluster.requests[request].next = NONE
    if g.outbox_tail == NONE:
        g.outbox_head = request
    else:
        cluster.requests[g.outbox_tail].next = request
    g.outbox_tail = request
