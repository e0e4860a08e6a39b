"""Which worker holds how many leading blocks of a prompt: asked once per request.

All workers share one radix tree. A worker has two holders in it, because the two feeds name blocks
differently and forget them differently: one for what its engine tells, one for what the router has
sent it. A request's overlap with a worker is the larger of the two.

    engine's KV events -> Feed -> HeldBlocks ---------+
                                                      +--> RadixTree --> overlap_blocks
    own decisions -----> RoutedBlocks -> HeldBlocks --+

Everything runs in the event loop's thread. Holder ids carry a serial number, so a slot that another
worker takes later never meets what was said about the one before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import zmq
import zmq.asyncio
from dynamo.llm import RadixTree
from numpy.typing import NDArray

from hrl_planner.errors import RouterError
from hrl_planner.router.discovery.base import DYNAMO_SCHEME, Worker
from hrl_planner.router.kv.approximate import RoutedBlocks
from hrl_planner.router.kv.events import EventFeed
from hrl_planner.router.kv.feed import Feed, FeedState
from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.plane import PlaneFeed, Store

_log = logging.getLogger(__name__)

_SLOT_BITS = 16
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_SWEEP_INTERVAL_S = 1.0
_REPLAYS_AT_ONCE = 4
_MAX_SOCKETS = 8 * _SLOT_MASK


@dataclass(frozen=True, slots=True)
class KvSizes:
    """What the index holds now, for metrics.

    Attributes:
        event_blocks: blocks told by engines, over all workers.
        routed_blocks: blocks taken for cached after own decisions, over all workers.
        workers: workers known.
    """

    event_blocks: int
    routed_blocks: int
    workers: int


@dataclass(slots=True)
class _Slot:
    worker: Worker
    told: HeldBlocks
    routed: RoutedBlocks
    feed: Feed | None
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> FeedState:
        return FeedState.APPROXIMATE if self.feed is None else self.feed.state


class KvIndex:
    """The prefix index over all workers of the router.

    Args:
        block_tokens: tokens per block; the engines' own block size.
        by_tokens: whether prompts are hashed by token ids. Hashes of text match no engine's
            events, so without a tokenizer every worker is approximate.
        ttl_s: how long a routed prompt is taken for cached without events.
        silence_s: how long requests may run without any event before a feed counts as lost.
        dynamo: records of Dynamo's discovery, for workers whose events are on Dynamo's event
            plane (`dyn://...`).
        clock: seconds, monotonic; the `now_s` of all methods is of this clock.
    """

    def __init__(
        self,
        block_tokens: int,
        *,
        by_tokens: bool = True,
        ttl_s: float = 120.0,
        silence_s: float = 60.0,
        dynamo: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._block_tokens = block_tokens
        self._by_tokens = by_tokens
        self._ttl_s = ttl_s
        self._silence_s = silence_s
        self._dynamo = dynamo
        self._clock = clock
        self._tree = RadixTree()
        self._slots: dict[int, _Slot] = {}
        self._serial = 0
        self._replays = asyncio.Semaphore(_REPLAYS_AT_ONCE)
        self._context: zmq.asyncio.Context | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def add_worker(self, index: int, worker: Worker, kv_blocks: int) -> None:
        """Know the worker under this slot from now on.

        A worker that is there already stays as it is; one whose endpoints have changed, or another
        one, starts with an empty index.

        Args:
            index: slot of the router's worker arrays.
            worker: as discovery has it.
            kv_blocks: blocks of its KV cache, from its pool's profile.
        """
        if not 0 <= index <= _SLOT_MASK:
            raise ValueError(f"worker index {index} lies outside 0..{_SLOT_MASK}")
        known = self._slots.get(index)
        if known is not None:
            if _same_source(known.worker, worker):
                known.worker = worker
                return
            self.drop_worker(index)
        told_id, routed_id = self._new_holder_id(index), self._new_holder_id(index)
        told = HeldBlocks(self._tree, told_id)
        feed = self._new_feed(worker, told) if self._by_tokens else None
        routed = RoutedBlocks(self._tree, routed_id, self._ttl_s, kv_blocks)
        slot = self._slots[index] = _Slot(worker, told, routed, feed)
        if self._context is not None:
            self._follow(slot, self._context)

    def drop_worker(self, index: int) -> None:
        """Forget the worker of this slot; the slot may be given to another at once."""
        slot = self._slots.pop(index, None)
        if slot is None:
            return
        slot.told.clear()
        slot.routed.clear()
        if slot.task is not None:
            slot.task.cancel()

    def overlap_blocks(self, hashes: list[int], out: NDArray[np.int64]) -> None:
        """Write for each slot how many leading blocks of the prompt its worker holds."""
        blocks = [0] * len(out)
        # The package's stub has holders as keys; in truth they are (holder, dp_rank).
        scores = cast("Mapping[tuple[int, int], int]", self._tree.find_matches(hashes).scores)
        for (holder, _), count in scores.items():
            index = holder & _SLOT_MASK
            if count > blocks[index]:
                blocks[index] = count
        out[:] = blocks

    def routed(self, index: int, hashes: list[int], now_s: float) -> None:
        """A prompt was sent to the worker of this slot."""
        slot = self._slots.get(index)
        if slot is None:
            return
        if slot.feed is not None:
            slot.feed.expect_event(now_s)
        if slot.state != FeedState.LIVE:
            slot.routed.routed(hashes, now_s)

    def sweep(self, now_s: float) -> None:
        """Forget what is overdue; `start` has this done every second."""
        for slot in self._slots.values():
            if slot.feed is not None:
                slot.feed.check(now_s, forget_after_s=self._ttl_s)
            if slot.state == FeedState.LIVE:
                slot.routed.clear()
            else:
                slot.routed.sweep(now_s)

    def states(self) -> dict[str, FeedState]:
        """How far the index can be trusted, by worker name."""
        return {slot.worker.name: slot.state for slot in self._slots.values()}

    def sizes(self) -> KvSizes:
        """Return what the index holds now."""
        return KvSizes(
            event_blocks=sum(len(slot.told) for slot in self._slots.values()),
            routed_blocks=sum(len(slot.routed) for slot in self._slots.values()),
            workers=len(self._slots),
        )

    async def start(self) -> None:
        """Follow the engines' events and sweep, until `close`."""
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        for slot in self._slots.values():
            self._follow(slot, self._context)
        self._sweeper = asyncio.create_task(self._sweep_forever(), name="kv-index-sweep")

    async def close(self) -> None:
        """Stop following and free the sockets; what is indexed stays."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for slot in self._slots.values():
            if slot.task is not None:
                slot.task.cancel()
        tasks = [*self._ending, *([self._sweeper] if self._sweeper else [])]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _new_feed(self, worker: Worker, told: HeldBlocks) -> Feed | None:
        if worker.kv_events is None:
            return None
        if not worker.kv_events.startswith(DYNAMO_SCHEME):
            return EventFeed(
                worker, told, self._block_tokens, self._replays, self._silence_s, self._clock
            )
        try:
            if self._dynamo is None:
                raise RouterError(f"{worker.kv_events!r} needs kv.dynamo in the router's config")
            return PlaneFeed(
                worker,
                self._dynamo,
                told,
                self._block_tokens,
                self._replays,
                self._silence_s,
                self._clock,
            )
        except RouterError as error:
            _log.error("worker %s: kv_events: %s", worker.name, error)
            return None

    def _new_holder_id(self, index: int) -> int:
        self._serial += 1
        return self._serial << _SLOT_BITS | index

    def _follow(self, slot: _Slot, context: zmq.asyncio.Context) -> None:
        if slot.feed is None:
            return
        name = f"kv-events-{slot.worker.name}"
        slot.task = asyncio.create_task(slot.feed.run(context), name=name)
        self._ending.add(slot.task)
        slot.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s ended", task.get_name(), exc_info=task.exception())

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            self.sweep(self._clock())


def _same_source(one: Worker, other: Worker) -> bool:
    if (one.name, one.kv_events, one.kv_replay) != (other.name, other.kv_events, other.kv_replay):
        return False
    # Dynamo's workers of one endpoint are told apart by their hosts.
    return one.address == other.address or not (one.kv_events or "").startswith(DYNAMO_SCHEME)
