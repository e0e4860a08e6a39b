"""Rows of different lengths in one flat array: the loops under prefix blocks.

A million blocks are copied in one pass here, where index arrays would take five.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled

Ints = NDArray[np.int64]


@compiled
def gather(values: NDArray[Any], starts: Ints, counts: Ints) -> NDArray[Any]:
    """Return ``values[s : s + c]`` of every start and count, one after another."""
    gathered = np.empty(counts.sum(), values.dtype)
    at = 0
    for row in range(starts.size):
        start = starts[row]
        for k in range(counts[row]):
            gathered[at + k] = values[start + k]
        at += counts[row]
    return gathered


@compiled
def grow_tree(parent: Ints, shared: Ints, count: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Return block ids of rows that share leading blocks with earlier rows, and their offsets.

    Args:
        parent: row whose leading blocks a row repeats, above it; -1 for none.
        shared: how many blocks are repeated, as far as both rows have them.
        count: blocks of each row.
    """
    offsets = np.zeros(count.size + 1, np.int64)
    offsets[1:] = np.cumsum(count)
    ids = np.empty(offsets[-1], np.int32)
    fresh = 0
    for row in range(parent.size):
        at, above = offsets[row], parent[row]
        repeated = 0
        if above >= 0:
            repeated = min(shared[row], min(count[row], count[above]))
            start = offsets[above]
            for j in range(repeated):
                ids[at + j] = ids[start + j]
        for own in range(at + repeated, offsets[row + 1]):
            ids[own] = fresh
            fresh += 1
    return ids, offsets
