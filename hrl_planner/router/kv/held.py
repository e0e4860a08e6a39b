"""The blocks one worker holds, kept in step with the radix tree that all workers share.

The tree finds prefixes but cannot say what it holds, answers an unknown block with an error and
drops a whole branch when its first block goes. So each holder remembers its blocks' parents here,
passes on only what the tree can do, and always takes children out before their parents.

Only dicts from int to int: the garbage collector does not visit them, however many blocks there
are. About 0.1 kB a block here and as much in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from dynamo.llm import RadixTree

_ROOT = -1  # parent of a first block; no key is negative
_encode = msgspec.json.Encoder().encode


class HeldBlocks:
    """Blocks of one holder.

    Blocks are named by their path keys (`paths.py`).

    Args:
        tree: shared by all holders.
        holder_id: the tree's worker id; never used for another holder.
    """

    def __init__(self, tree: RadixTree, holder_id: int) -> None:
        self._tree = tree
        self._id = holder_id
        self._parents: dict[int, int] = {}
        self._children: dict[int, int] = {}  # only blocks that have some

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, key: int) -> bool:
        return key in self._parents

    def parent(self, key: int) -> int | None:
        """Key of the block before this one; None for a first block."""
        parent = self._parents[key]
        return None if parent == _ROOT else parent

    def children(self, key: int) -> int:
        """How many held blocks come right after this one."""
        return self._children.get(key, 0)

    def store(self, parent: int | None, keys: Sequence[int], hashes: Sequence[int]) -> bool:
        """Hold a run of blocks, each the next one's parent; False where `parent` is not held."""
        if parent is not None and parent not in self._parents:
            return False
        before = _ROOT if parent is None else parent
        run_parent, run = before, list[dict[str, int]]()
        for key, tokens_hash in zip(keys, hashes, strict=True):
            if key in self._parents:
                self._send_stored(run_parent, run)
                run_parent, run = key, []
            else:
                self._parents[key] = before
                if before != _ROOT:
                    self._children[before] = self._children.get(before, 0) + 1
                run.append({"block_hash": key, "tokens_hash": tokens_hash})
            before = key
        self._send_stored(run_parent, run)
        return True

    def remove(self, keys: Iterable[int]) -> None:
        """Let those that are held go, and with each all blocks that follow it."""
        going = {key for key in keys if key in self._parents}
        order = self._leave(going)
        if going:
            # Blocks stay behind that follow a removed one: no engine finds them any more without
            # it. Engines evict from the end, so this walk over all blocks is rare.
            for key, parent in self._parents.items():  # a parent always comes before its children
                if parent in going:
                    going.add(key)
            order += self._leave(going)
        if order:
            self._send({"removed": {"block_hashes": order}})

    def clear(self) -> None:
        """Hold nothing."""
        if self._parents:
            self._tree.remove_worker(self._id)
        self._parents.clear()
        self._children.clear()

    def _leave(self, going: set[int]) -> list[int]:
        """Take out of `going` and of the maps all that nothing follows, children first."""
        order = []
        ends = [key for key in going if key not in self._children]
        while ends:
            key = ends.pop()
            going.discard(key)
            order.append(key)
            parent = self._parents.pop(key)
            if parent == _ROOT:
                continue
            left = self._children[parent] - 1
            if left:
                self._children[parent] = left
            else:
                del self._children[parent]
                if parent in going:
                    ends.append(parent)
        return order

    def _send_stored(self, parent: int, run: list[dict[str, int]]) -> None:
        if run:
            parent_hash = None if parent == _ROOT else parent
            self._send({"stored": {"parent_hash": parent_hash, "blocks": run}})

    def _send(self, data: dict[str, object]) -> None:
        self._tree.apply_event(self._id, _encode({"event_id": 0, "data": data, "dp_rank": 0}))
