"""One Dynamo worker's KV events: its publisher found, followed, and asked for what was missed.

    records of discovery -> publisher -+-> subscription -+-> history
                                       +-> recovery -----+          at a connection, and at a gap

A publisher lives as long as its process, so another one is another, empty cache. While there is no
connection the records are looked at every second: a new process has a new port there.

A worker keeps its last events, and can tell its whole cache; so a router that starts late, or that
misses something, asks once. Where that fails (no local indexer at the worker, no way back to the
router) the history is incomplete and the worker `approximate`, until it clears its cache or starts
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from hrl_planner.errors import RouterError
from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv.feed import Feed
from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.history import History
from hrl_planner.router.kv.plane.records import Source, SourceName, Store, find
from hrl_planner.router.kv.plane.recovery import ask
from hrl_planner.router.kv.plane.wire import (
    FIRST_ID,
    Message,
    Missed,
    Numbered,
    decode_message,
    decode_missed,
)
from hrl_planner.router.kv.subscription import subscription

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
_RECOVERY_TIMEOUT_S = 10.0
_TOPIC = b"kv-events"
_EVENTS_AT_ONCE = 64  # of a dump; requests want the event loop too


class PlaneFeed(Feed):
    """Keeps a worker's blocks as Dynamo's event plane tells them.

    Args:
        worker: whose events; its `kv_events` is a `SourceName`.
        store: of the records of Dynamo's discovery.
        blocks: the worker's, written by this feed alone.
        block_tokens: block size of the index; a worker with another one is refused.
        replays: how many feeds may take in a whole cache at once.
        silence_s: how long requests may run without any event before the feed counts as lost.
        clock: seconds, monotonic.

    Raises:
        RouterError: `kv_events` is no name of a source.
    """

    def __init__(
        self,
        worker: Worker,
        store: Store,
        blocks: HeldBlocks,
        block_tokens: int,
        replays: asyncio.Semaphore,
        silence_s: float,
        clock: Callable[[], float],
    ) -> None:
        name = worker.kv_events or ""
        history = History(worker.name, blocks, block_tokens, counts_copies=False)
        super().__init__(worker.name, name, history, silence_s, clock)
        self._source_name = SourceName.parse(name)
        self._host = worker.address.rpartition(":")[0]
        self._store = store
        self._block_tokens = block_tokens
        self._replays = replays
        self._one_at_a_time = asyncio.Lock()  # a recovery and the stream must not interleave
        self._down = asyncio.Event()  # no connection to the publisher
        self._publisher_id: int | None = None
        self._complaint = ""

    async def run(self, context: zmq.asyncio.Context) -> None:
        """Follow the worker, and whoever comes in its place, until cancelled or refused."""
        try:
            while True:
                source = await self._next_source()
                if source.block_tokens != self._block_tokens:
                    self._history.refuse(source.block_tokens)
                    return
                with subscription(context, source.endpoint, _TOPIC) as (socket, monitor):
                    self._down.set()
                    async with asyncio.TaskGroup() as group:
                        following = [
                            group.create_task(self._watch(monitor, source)),
                            group.create_task(self._follow(socket, source)),
                        ]
                        await self._replaced(source)
                        for task in following:
                            task.cancel()
        except zmq.ZMQError as error:
            _log.error("worker %s: KV events of %s: %s", self._name, self._source, error)
        finally:
            self._end()

    async def _next_source(self) -> Source:
        """Wait for a publisher; what another one has told before is no longer so."""
        while (source := await self._look()) is None:
            await asyncio.sleep(_LOOK_AGAIN_S)
        if source.publisher_id != self._publisher_id:
            self._forget()
            self._publisher_id = source.publisher_id
        return source

    async def _replaced(self, source: Source) -> None:
        """Return when another publisher has taken this one's place."""
        while True:
            await self._down.wait()
            await asyncio.sleep(_LOOK_AGAIN_S)
            found = await self._look()
            if found is not None and found.publisher_id != source.publisher_id:
                return

    async def _look(self) -> Source | None:
        try:
            return await find(self._store, self._source_name, self._host)
        except RouterError as error:
            self._complain(error)
            return None

    async def _watch(self, monitor: zmq.asyncio.Socket, source: Source) -> None:
        while True:
            message = await recv_monitor_message(monitor)
            if message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._down.clear()
                async with self._one_at_a_time:
                    await self._catch_up(source)
                    self._heard()
            else:
                self._down.set()
                self._lose()

    async def _follow(self, socket: zmq.asyncio.Socket, source: Source) -> None:
        while True:
            frames = await socket.recv_multipart()
            async with self._one_at_a_time:
                try:
                    message = decode_message(frames, self._block_tokens)
                except ValueError as error:  # what it would have told is a gap
                    self._complain(error)
                else:
                    await self._receive(message, source)
            await asyncio.sleep(0)  # what waits is received without a pause: others have a turn

    async def _receive(self, message: Message, source: Source) -> None:
        if message.publisher_id != source.publisher_id:
            return
        self._heard()
        events = self._new(message.events)
        if events and not self._follows(events[0].id):
            await self._catch_up(source)
            events = self._new(events)
            if events and not self._follows(events[0].id):
                if self._history.last_seq > 0:
                    _log.warning(
                        "worker %s: KV events %d to %d are lost, its index starts anew",
                        self._name,
                        self._history.next_seq,
                        events[0].id - 1,
                    )
                self._forget()
        self._take(events)

    def _new(self, events: list[Numbered]) -> list[Numbered]:
        return [event for event in events if event.id > self._history.last_seq]

    def _follows(self, event_id: int) -> bool:
        history = self._history
        if history.last_seq < 0:
            return event_id == FIRST_ID
        return event_id == history.next_seq

    def _take(self, events: list[Numbered]) -> None:
        if not events:
            return
        if events[0].id == FIRST_ID:
            self._history.starts_empty()
        self._history.apply([event.event for event in events if event.event is not None])
        self._history.last_seq = events[-1].id

    async def _catch_up(self, source: Source) -> None:
        """Ask for what came after the last known event, or for the whole cache."""
        if source.recovery is None:
            return
        history = self._history
        first_id = history.next_seq if history.complete and history.last_seq > 0 else None
        question = {
            "worker_id": source.worker_id,
            "dp_rank": source.dp_rank,
            "start_event_id": first_id,
            "end_event_id": None,
            "supports_tree_dump_failed": True,
        }
        try:
            answer = await ask(source.recovery, question, _RECOVERY_TIMEOUT_S)
            async with self._replays:
                await self._take_in(decode_missed(answer, self._block_tokens))
        except (OSError, ValueError) as error:
            self._complain(error)

    async def _take_in(self, missed: Missed) -> None:
        if not missed.is_dump:
            self._take(self._new(missed.events))
            return
        self._forget()
        history = self._history
        for start in range(0, len(missed.events), _EVENTS_AT_ONCE):
            part = missed.events[start : start + _EVENTS_AT_ONCE]
            history.apply([event.event for event in part if event.event is not None])
            await asyncio.sleep(0)
        history.complete = True
        history.last_seq = missed.last_id

    def _complain(self, error: Exception) -> None:
        """Log what is wrong, once."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            _log.warning("worker %s: KV events of %s: %s", self._name, self._source, error)
