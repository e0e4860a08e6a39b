"""The three priority structures: who acts next, who finishes next, which transfer lands next."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import inlined

_REQUEST_BITS = 32
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1


@inlined
def tree_set(tree: NDArray[np.float64], slot: int, time_s: float) -> None:
    """Set a slot's next event time; the root, `tree[1]`, is the least of all."""
    node = (tree.size >> 1) + slot
    tree[node] = time_s
    while node > 1:
        parent = node >> 1
        least = min(tree[node], tree[node ^ 1])
        if tree[parent] == least:
            return
        tree[parent] = least
        node = parent


@inlined
def tree_first(tree: NDArray[np.float64]) -> int:
    """Return the lowest slot whose event time is the root's."""
    leaves = tree.size >> 1
    node = 1
    while node < leaves:
        node <<= 1
        if tree[node] != tree[node >> 1]:
            node += 1
    return node - leaves


@inlined
def finish_clock(key: int) -> int:
    """Return the worker clock at which a heap entry finishes."""
    return key >> _REQUEST_BITS


@inlined
def finish_request(key: int) -> int:
    """Return the request of a heap entry."""
    return key & _REQUEST_MASK


@inlined
def finish_push(heap: NDArray[np.int64], size: int, clock: int, request: int) -> None:
    """Add a request that finishes at a clock; equal clocks finish in request order."""
    key = (np.int64(clock) << _REQUEST_BITS) | np.int64(request)
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@inlined
def finish_pop(heap: NDArray[np.int64], size: int) -> int:
    """Remove and return the first key of a heap of `size` entries."""
    first = heap[0]
    key = heap[size - 1]
    last = size - 1
    at = 0
    child = 1
    while child < last:
        if child + 1 < last and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = key
    return int(first)


@inlined
def _before(time_a: float, seq_a: int, time_b: float, seq_b: int) -> bool:
    return time_a < time_b or (time_a == time_b and seq_a < seq_b)


@inlined
def transfer_push(
    transfers: NDArray[Any], size: int, time_s: float, seq: int, request: int
) -> None:
    """Add a KV transfer that lands at a time; equal times land in the order they were added."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(time_s, seq, transfers[parent].at_s, transfers[parent].seq):
            break
        transfers[at].at_s = transfers[parent].at_s
        transfers[at].seq = transfers[parent].seq
        transfers[at].request = transfers[parent].request
        at = parent
    transfers[at].at_s = time_s
    transfers[at].seq = seq
    transfers[at].request = request


@inlined
def transfer_pop(transfers: NDArray[Any], size: int) -> int:
    """Remove the first transfer of `size` and return its request."""
    first = transfers[0].request
    last = size - 1
    time_s = transfers[last].at_s
    seq = transfers[last].seq
    request = transfers[last].request
    at = 0
    child = 1
    while child < last:
        if child + 1 < last and _before(
            transfers[child + 1].at_s,
            transfers[child + 1].seq,
            transfers[child].at_s,
            transfers[child].seq,
        ):
            child += 1
        if not _before(transfers[child].at_s, transfers[child].seq, time_s, seq):
            break
        transfers[at].at_s = transfers[child].at_s
        transfers[at].seq = transfers[child].seq
        transfers[at].request = transfers[child].request
        at = child
        child = 2 * at + 1
    transfers[at].at_s = time_s
    transfers[at].seq = seq
    transfers[at].request = request
    return int(first)
