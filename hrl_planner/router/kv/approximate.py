"""What a worker without live events probably holds: the prompts lately routed to it.

A routed prompt is one path in the tree; what it refreshes is the path's end, since a block lives
as long as something after it does. Ends wait in the order of their deadlines, and whoever routes
or sweeps takes the overdue ones out, from the end of the path to where another prompt needs it.
So a request costs its new blocks, not its length, and an expired block is visited once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from dynamo.llm import RadixTree
from numpy.typing import NDArray

from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.paths import path_keys


class RoutedBlocks:
    """Blocks of the prompts lately routed to one worker.

    Args:
        tree: shared by all holders.
        holder_id: the tree's worker id; never used for another holder.
        ttl_s: how long a prompt is taken for cached after it was routed.
        max_blocks: what the worker's KV cache holds; the prompts routed longest ago make room.
    """

    def __init__(self, tree: RadixTree, holder_id: int, ttl_s: float, max_blocks: int) -> None:
        self._held = HeldBlocks(tree, holder_id)
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._deadline_of_end: dict[int, float] = {}
        self._ends: deque[tuple[float, int]] = deque()  # by deadline; refreshed ones appear again

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """How many deadlines are kept, refreshed ones included."""
        return len(self._ends)

    def routed(self, hashes: Sequence[int], now_s: float) -> None:
        """Take the prompt of these blocks for cached from now on."""
        hashes = hashes[: self._max_blocks]
        if not hashes:
            return
        keys = path_keys(hashes)
        known = self._known(keys)
        new = keys[known:].tolist()
        if new:
            self._held.store(int(keys[known - 1]) if known else None, new, hashes[known:])
        end = int(keys[-1])
        deadline = now_s + self._ttl_s
        if self._deadline_of_end.get(end) != deadline:
            self._deadline_of_end[end] = deadline
            self._ends.append((deadline, end))
        self.sweep(now_s)

    def sweep(self, now_s: float) -> None:
        """Forget what is overdue, and the oldest while there is more than the cache holds."""
        while self._ends:
            deadline, end = self._ends[0]
            overdue = deadline <= now_s
            if not overdue and len(self._held) <= self._max_blocks:
                break
            self._ends.popleft()
            if self._deadline_of_end.get(end) != deadline:
                continue
            del self._deadline_of_end[end]
            excess = len(self._held) if overdue else len(self._held) - self._max_blocks
            self._forget_path(end, deadline, excess)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._deadline_of_end.clear()
        self._ends.clear()

    def _known(self, keys: NDArray[np.uint64]) -> int:
        """How many leading blocks are held: all before a held one are, so bisection finds it."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if int(keys[middle]) in self._held:
                low = middle + 1
            else:
                high = middle
        return low

    def _forget_path(self, end: int, deadline: float, at_most: int) -> None:
        """Remove up to `at_most` blocks from the end of a path, as far as no other needs them."""
        gone: list[int] = []
        key: int | None = end
        while key is not None and key not in self._deadline_of_end:
            if self._held.children(key) > (1 if gone else 0):
                break
            if len(gone) == at_most:
                self._deadline_of_end[key] = deadline
                self._ends.appendleft((deadline, key))
                break
            gone.append(key)
            key = self._held.parent(key)
        self._held.remove(gone)
