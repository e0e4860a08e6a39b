"""The prefix cache of a worker: blocks of prompts by id, least recently used first to go.

A block's id stands for its tokens and all in front of them, so a prompt's blocks form a chain and
only a leading run of them can be used. Children are marked before their parents, so that a parent
outlives its children.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class CacheChange(NamedTuple):
    """What came of remembering one prompt.

    Attributes:
        stored: positions in the prompt's blocks of those that were not there, ascending.
        evicted: ids of the blocks that went for them.
    """

    stored: list[int]
    evicted: list[int]


class PrefixCache:
    """Blocks of one worker.

    Args:
        capacity_blocks: how many it holds.
    """

    def __init__(self, capacity_blocks: int) -> None:
        """Start empty."""
        self._capacity = capacity_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()  # least recent first

    def leading_hits(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks of a prompt are here."""
        for position, block in enumerate(blocks):
            if block not in self._blocks:
                return position
        return len(blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Mark blocks that are here as used now."""
        for block in reversed(blocks):
            self._blocks.move_to_end(block)

    def remember(self, blocks: Sequence[int]) -> CacheChange:
        """Hold a prompt's blocks as the most recent ones, and let the oldest go for them."""
        stored = []
        for position in range(len(blocks) - 1, -1, -1):
            block = blocks[position]
            if block in self._blocks:
                self._blocks.move_to_end(block)
            else:
                self._blocks[block] = None
                stored.append(position)
        evicted = []
        while len(self._blocks) > self._capacity:
            evicted.append(self._blocks.popitem(last=False)[0])
        stored.reverse()
        return CacheChange(stored, evicted)

    def clear(self) -> None:
        """Forget every block."""
        self._blocks.clear()
