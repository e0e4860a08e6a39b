"""What is known of one engine's cache from its numbered batches of events.

The index is exact about a worker whose history is known from an empty cache on: from sequence
number 0, or from the moment the cache was cleared. This module keeps that promise; where batches
come from, and what is asked again, is the business of `events.py`.
"""

from __future__ import annotations

import logging
import zlib

from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.paths import path_keys
from hrl_planner.router.kv.wire import Cleared, Event, Removed, Stored, decode_batch

_log = logging.getLogger(__name__)


class History:
    """The batches of one engine, applied to the worker's blocks in order.

    Args:
        name: the worker's, for the log.
        blocks: written by this history alone.
        block_tokens: block size of the index; an engine with another one is refused.
        counts_copies: whether an engine that computes a prefix twice also tells twice that it
            goes; else the first time is the last.

    Attributes:
        last_seq: number of the last batch applied; -1 before the first.
        complete: whether `blocks` is all that the engine holds.
        refused: whether the engine's blocks have another size; nothing is applied any more.
    """

    def __init__(
        self, name: str, blocks: HeldBlocks, block_tokens: int, counts_copies: bool = True
    ) -> None:
        self._name = name
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._counts_copies = counts_copies
        self._path_of: dict[int, int] = {}  # by the engine's own hash of the block
        self._extra_copies: dict[int, int] = {}  # only blocks that have some
        self._last_digest = 0
        self._group: int | None = None
        self._group_known = False
        self._warned = False
        self.last_seq = -1
        self.complete = False
        self.refused = False

    @property
    def next_seq(self) -> int:
        """The number that the next batch must have."""
        return self.last_seq + 1

    def is_last(self, seq: int, payload: bytes) -> bool:
        """Whether this is the batch applied last: then it comes from the same engine."""
        return seq == self.last_seq and zlib.crc32(payload) == self._last_digest

    def starts_empty(self) -> None:
        """The engine has said that it has published nothing yet."""
        self.complete = True

    def forget(self) -> None:
        """Know nothing of the engine any more."""
        self._clear()
        self.last_seq = -1
        self.complete = False
        self._group_known = False

    def take(self, seq: int, payload: bytes) -> None:
        """Apply the batch of this number, the next one or the first one known."""
        if self.refused:
            return
        if seq == 0:
            self.complete = True
        self.last_seq, self._last_digest = seq, zlib.crc32(payload)
        try:
            self.apply(decode_batch(payload))
        except (ValueError, TypeError, OverflowError) as error:  # also ids that are none
            if not self._warned:
                _log.warning("worker %s: KV events ignored: %s", self._name, error)
                self._warned = True
            self._clear()
            self.complete = False

    def apply(self, events: list[Event]) -> None:
        """Apply what the engine told, in its order."""
        # Engines evict a run of blocks by one event each: taken together they can leave the tree
        # end first, whatever their order.
        removed: list[int] = []
        for event in events:
            if isinstance(event, Removed):
                if event.group in (None, self._group):
                    removed += event.keys
                continue
            if removed:
                self._remove(removed)
                removed = []
            if isinstance(event, Cleared):
                self._clear()
                self.complete = True
            elif self._is_indexed_group(event.group):
                if event.block_tokens != self._block_tokens:
                    self.refuse(event.block_tokens)
                    return
                self._store(event)
        if removed:
            self._remove(removed)

    def refuse(self, block_tokens: int) -> None:
        """The engine's blocks have this other size: nothing it tells can be used."""
        _log.error(
            "worker %s: KV events refused: its blocks have %d tokens, the router's %d; "
            "set block_tokens of the router or --block-size of the engine",
            self._name,
            block_tokens,
            self._block_tokens,
        )
        self._clear()
        self.complete = False
        self.refused = True

    def _store(self, event: Stored) -> None:
        parent = None if event.parent is None else self._path_of.get(event.parent)
        if event.parent is not None and (parent is None or parent not in self._blocks):
            return  # it follows blocks that are not indexed
        hashes = event.hashes
        paths = path_keys(hashes, parent or 0).tolist()
        for n, (key, path) in enumerate(zip(event.keys, paths, strict=True)):
            known = self._path_of.get(key)
            if known is None or known not in self._blocks:
                self._path_of[key] = path
                self._extra_copies.pop(key, None)
            elif known == path:
                if self._counts_copies:
                    self._extra_copies[key] = self._extra_copies.get(key, 0) + 1
            else:  # one hash for two blocks: the second, and what follows it, cannot be told apart
                paths, hashes = paths[:n], hashes[:n]
                break
        self._blocks.store(parent, paths, hashes)

    def _remove(self, keys: list[int]) -> None:
        """Let one copy of each go: an engine that computes a prefix twice stores it twice."""
        paths = []
        for key in keys:
            extra = self._extra_copies.get(key, 0)
            if extra > 1:
                self._extra_copies[key] = extra - 1
            elif extra == 1:
                del self._extra_copies[key]
            elif key in self._path_of:
                paths.append(self._path_of.pop(key))
        self._blocks.remove(paths)

    def _clear(self) -> None:
        self._blocks.clear()
        self._path_of.clear()
        self._extra_copies.clear()

    def _is_indexed_group(self, group: int | None) -> bool:
        """Whether this is the one full-attention group that stands for the model's cache."""
        if not self._group_known:
            self._group, self._group_known = group, True
        return group == self._group
