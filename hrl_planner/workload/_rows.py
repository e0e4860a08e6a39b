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
def grow_tree(parent: Ints, shared: Ints, offsets: Ints) -> NDArray[np.int32]:
    """Return block ids of rows that repeat the leading `shared` blocks of their parents.

    Args:
        parent: row that is repeated, above the row that does.
        shared: blocks it gives.
        offsets: where each row's blocks begin; one more than there are rows.
    """
    ids = np.empty(offsets[-1], np.int32)
    fresh = 0
    for row in range(parent.size):
        at, start = offsets[row], offsets[parent[row]]
        for j in range(shared[row]):
            ids[at + j] = ids[start + j]
        for own in range(at + shared[row], offsets[row + 1]):
            ids[own] = fresh
            fresh += 1
    return ids
