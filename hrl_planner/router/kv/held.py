"""The blocks one worker holds, kept in step with the radix tree that all workers share.

The tree finds prefixes but cannot say what it holds, answers an unknown block with an error and
drops a whole branch when its first block goes. So each holder remembers its blocks' parents here,
passes on only what the tree can do, and always takes children out before their parents.

Only dicts from int to int: the garbage collector does not visit them, however many blocks there
are. About 0.2 kB a block here and as much in the tree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import msgspec
from dynamo.llm import RadixTree

_ROOT = -1  # parent of a first block; no key is negative
_encode = msgspec.json.Encoder().encode


class HeldBlocks:
    """Blocks of one holder.

    A key names a block of this holder together with all blocks before it: an engine's own hash,
    or one made by `approximate.py`. A block stored twice has two copies and goes with the second
    removal, as engines that compute one prefix twice at a time report it.

    Args:
        tree: shared by all holders.
        holder_id: the tree's worker id; never used for another holder.
    """

    def __init__(self, tree: RadixTree, holder_id: int) -> None:
        self._tree = tree
        self._id = holder_id
        self._parents: dict[int, int] = {}
        self._children: dict[int, int] = {}  # only blocks that have some
        self._extra_copies: dict[int, int] = {}  # only blocks that have some

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
                self._extra_copies[key] = self._extra_copies.get(key, 0) + 1
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
        """Let one copy of each go, and with the last copy all blocks that follow it."""
        going = {key for key in keys if self._takes_last_copy(key)}
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
        self._extra_copies.clear()

    def _takes_last_copy(self, key: int) -> bool:
        extra = self._extra_copies.get(key)
        if extra is None:
            return key in self._parents
        if extra == 1:
            del self._extra_copies[key]
        else:
            self._extra_copies[key] = extra - 1
        return False

    def _leave(self, going: set[int]) -> list[int]:
        """Take out of `going` and of the maps all that nothing follows, children first."""
        order = []
        ends = [key for key in going if key not in self._children]
        while ends:
            key = ends.pop()
            going.discard(key)
            order.append(key)
            self._extra_copies.pop(key, None)
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
        # The tree refuses only where a holder has two keys for the same blocks at the same place:
        # they share a node and the first removal takes both. Then the overlap is too small.
        with contextlib.suppress(RuntimeError):
            self._tree.apply_event(self._id, _encode({"event_id": 0, "data": data, "dp_rank": 0}))
