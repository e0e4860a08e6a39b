"""A worker's prefix cache: which block ids it holds, least recently used first out.

A block id stands for a whole prefix, so a request's blocks form a chain. Blocks are touched last
first: a parent is always younger than its children, eviction takes children first, and the cached
part of any chain is a prefix of it. That is what lets `cached_blocks` search by halving.

Each slot owns a fixed range of list nodes and of an open-addressing hash table (linear probing,
deletion by backward shift), so memory does not depend on the number of distinct blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.kernel.layout import NONE, Cluster
from envs.kernel.queues import as_index
from hrl_planner._compiled import inlined, lean

_MULTIPLIER = 2654435761  # Knuth's multiplicative hash

# A hash entry is the block and its node in one word: a probe touches one cache line.
_NODE_BITS = 32
_NODE_MASK = (1 << _NODE_BITS) - 1
_FREE = -1


@inlined
def _home(block: int, mask: int) -> int:
    return int(((np.int64(block) * _MULTIPLIER) >> 11) & mask)


@inlined
def _find(cluster: Cluster, worker: Any, block: int) -> int:
    """Return the node that holds a block, or NONE."""
    at = _home(block, worker.hash_mask)
    while True:
        entry = cluster.cache_hash[worker.hash_at + at]
        if entry == _FREE:
            return NONE
        if entry >> _NODE_BITS == block:
            return int(entry & _NODE_MASK)
        at = (at + 1) & worker.hash_mask


@inlined
def _hash_add(cluster: Cluster, worker: Any, block: int, node: int) -> None:
    at = _home(block, worker.hash_mask)
    while cluster.cache_hash[worker.hash_at + at] != _FREE:
        at = (at + 1) & worker.hash_mask
    cluster.cache_hash[worker.hash_at + at] = (np.int64(block) << _NODE_BITS) | node


@inlined
def _hash_remove(cluster: Cluster, worker: Any, block: int) -> None:
    base = worker.hash_at
    mask = worker.hash_mask
    hole = _home(block, mask)
    while cluster.cache_hash[base + hole] >> _NODE_BITS != block:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        entry = cluster.cache_hash[base + at]
        if entry == _FREE:
            break
        home = _home(entry >> _NODE_BITS, mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            cluster.cache_hash[base + hole] = entry
            hole = at
    cluster.cache_hash[base + hole] = _FREE


@inlined
def _unlink(cluster: Cluster, worker: Any, node: int) -> None:
    at = worker.cache_at
    newer = cluster.cache_nodes[at + node].newer
    older = cluster.cache_nodes[at + node].older
    if newer == NONE:
        worker.cache_newest = older
    else:
        cluster.cache_nodes[at + newer].older = older
    if older == NONE:
        worker.cache_oldest = newer
    else:
        cluster.cache_nodes[at + older].newer = newer


@inlined
def _link_newest(cluster: Cluster, worker: Any, node: int) -> None:
    at = worker.cache_at
    head = worker.cache_newest
    cluster.cache_nodes[at + node].newer = NONE
    cluster.cache_nodes[at + node].older = head
    if head == NONE:
        worker.cache_oldest = node
    else:
        cluster.cache_nodes[at + head].newer = node
    worker.cache_newest = node


@lean
def cached_blocks(cluster: Cluster, slot: int, block_at: int, n_blocks: int) -> int:
    """Return how many leading blocks of a chain a slot's cache holds."""
    worker = cluster.workers[slot]
    if worker.cache_size == 0 or n_blocks == 0:
        return 0
    if _find(cluster, worker, cluster.blocks[block_at]) == NONE:
        return 0
    held = 1
    missing = n_blocks + 1
    while missing - held > 1:
        middle = (held + missing) >> 1
        if _find(cluster, worker, cluster.blocks[block_at + middle - 1]) == NONE:
            missing = middle
        else:
            held = middle
    return held


@lean
def touch_blocks(cluster: Cluster, slot: int, block_at: int, n_blocks: int) -> None:
    """Make the leading blocks of a chain present and the most recently used, last block first."""
    worker = cluster.workers[slot]
    capacity = cluster.pools[worker.pool].cache_blocks
    # Of a chain longer than the cache only the head survives its own insertion.
    for index in range(min(n_blocks, capacity) - 1, -1, -1):
        block = cluster.blocks[block_at + index]
        node = _find(cluster, worker, block)
        if node != NONE:
            _unlink(cluster, worker, node)
        else:
            if worker.cache_size < capacity:
                node = as_index(worker.cache_size)
                worker.cache_size += 1
            else:
                node = as_index(worker.cache_oldest)
                _hash_remove(cluster, worker, cluster.cache_nodes[worker.cache_at + node].block)
                _unlink(cluster, worker, node)
            cluster.cache_nodes[worker.cache_at + node].block = block
            _hash_add(cluster, worker, block, node)
        _link_newest(cluster, worker, node)


@lean
def clear(cluster: Cluster, slot: int) -> None:
    """Forget everything: the replica is gone."""
    worker = cluster.workers[slot]
    if worker.cache_size > 0:
        cluster.cache_hash[worker.hash_at : worker.hash_at + worker.hash_mask + 1] = _FREE
    worker.cache_size = 0
    worker.cache_newest = NONE
    worker.cache_oldest = NONE
