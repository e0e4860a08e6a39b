"""One engine's KV events: heard over ZMQ, completed from its replay socket, put into its history.

A gap in the numbers is asked for again. Where the engine has no replay socket, or no longer has
the batches, the history starts anew, incomplete: the worker counts as `approximate` until the
engine clears its cache or starts again.

A broken connection loses nothing yet: whoever then answers with the batch that was heard last, or
goes on with the number after it, is the same engine. All else is a new one with an empty cache.

Late joiners ask for everything from number 0. The wire format is vLLM's `ZmqEventPublisher`, which
SGLang shares: PUB for the stream; ROUTER for the replay, which answers one request
`["", first number]` with many `["", number, payload]` and ends with number -1. A REQ socket cannot
take many answers, so this side is a DEALER.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from enum import StrEnum

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.history import History

_log = logging.getLogger(__name__)

_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_REPLAY_TIMEOUT_MS = 5_000
_REPLAY_PAUSE_MS = 500  # an answer comes in one go; after such a pause its end was dropped
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 5_000
_HEARTBEAT_MS = 2_000
_QUEUED_MESSAGES = 100_000  # as many as vLLM's publisher keeps for a slow subscriber


class FeedState(StrEnum):
    """How far the index can be trusted about a worker.

    Attributes:
        LIVE: the index is what the engine has told, and that is all it holds.
        APPROXIMATE: the router's own decisions, and events where some come.
        LOST: events should come and do not; the router's own decisions stand in.
    """

    LIVE = "live"
    APPROXIMATE = "approximate"
    LOST = "lost"


class EventFeed:
    """Keeps a worker's blocks as its engine tells them.

    Args:
        worker: whose events.
        blocks: the worker's, written by this feed alone.
        block_tokens: block size of the index; an engine with another one is refused.
        replays: how many feeds may take in a replay at once: where a router starts beside
            hundreds of engines, requests want the event loop too.
        silence_s: how long requests may run without any event before the feed counts as lost.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        worker: Worker,
        blocks: HeldBlocks,
        block_tokens: int,
        replays: asyncio.Semaphore,
        silence_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._worker = worker
        self._history = History(worker.name, blocks, block_tokens)
        self._replays = replays
        self._silence_s = silence_s
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()  # a replay and the stream must not interleave
        self._same_engine = True  # False from a new connection on until a message shows it
        self._replayed_until = -1
        self._waiting_since_s: float | None = None
        self._lost_since_s: float | None = clock()

    @property
    def state(self) -> FeedState:
        """How far the worker's blocks can be trusted now."""
        if self._history.refused:
            return FeedState.APPROXIMATE
        if self._lost_since_s is not None:
            return FeedState.LOST
        return FeedState.LIVE if self._history.complete else FeedState.APPROXIMATE

    def expect_event(self, now_s: float) -> None:
        """A request was routed to the worker: sooner or later it must store a block."""
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s

    def check(self, now_s: float, forget_after_s: float) -> None:
        """Notice silence, and forget what a feed lost for long once told."""
        waiting = self._waiting_since_s
        if waiting is not None and now_s - waiting > self._silence_s:
            self._lose(now_s)
        lost = self._lost_since_s
        if lost is not None and now_s - lost > forget_after_s:
            self._forget()

    async def run(self, context: zmq.asyncio.Context) -> None:
        """Follow the engine until cancelled, or until it is refused."""
        self._context = context
        socket = context.socket(zmq.SUB)
        try:
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            monitor = socket.get_monitor_socket(events)
            self._connect(socket)
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._watch(monitor))
                await self._follow(socket)
                watcher.cancel()
        except zmq.ZMQError as error:
            _log.error("worker %s: KV events at %s: %s", self._worker.name, self._endpoint, error)
        finally:
            if self._lost_since_s is None:
                self._lost_since_s = self._clock()
            socket.disable_monitor()
            socket.close(linger=0)

    @property
    def _endpoint(self) -> str:
        return self._worker.kv_events or ""

    def _connect(self, socket: zmq.asyncio.Socket) -> None:
        socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        # A host that vanishes closes no connection; a ping without an answer shows it.
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(self._endpoint)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            message = await recv_monitor_message(monitor)
            if message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                async with self._one_at_a_time:
                    await self._connected()
            else:
                self._lose(self._clock())

    async def _follow(self, socket: zmq.asyncio.Socket) -> None:
        while not self._history.refused:
            frames = await socket.recv_multipart()
            if len(frames) == 3 and len(frames[1]) == 8:
                async with self._one_at_a_time:
                    await self._receive(int.from_bytes(frames[1], "big"), frames[2])
            await asyncio.sleep(0)  # what waits is received without a pause: others have a turn

    def _lose(self, now_s: float) -> None:
        self._waiting_since_s = None
        if self._lost_since_s is None:
            self._lost_since_s = now_s
            _log.warning("worker %s: KV events lost: %s", self._worker.name, self._endpoint)

    def _heard(self) -> None:
        self._waiting_since_s = None
        if self._lost_since_s is not None:
            self._lost_since_s = None
            _log.info("worker %s: KV events from %s", self._worker.name, self._endpoint)

    async def _connected(self) -> None:
        history = self._history
        self._same_engine = history.last_seq < 0
        try:
            if not self._same_engine and not await self._answers_with_last():
                self._forget()
            self._same_engine = True
            await self._catch_up()
            if history.last_seq < 0:
                history.starts_empty()
        except TimeoutError:
            self._same_engine = history.last_seq < 0
        self._heard()

    async def _receive(self, seq: int, payload: bytes) -> None:
        history = self._history
        self._heard()
        if not self._same_engine:
            self._same_engine = True
            if seq != history.next_seq:
                self._forget()
        if seq <= history.last_seq:
            if seq <= self._replayed_until:
                return  # it waited in the queue while the replay brought it
            self._forget()
        if seq > history.next_seq:
            try:
                await self._catch_up()
            except TimeoutError:
                pass
            if seq <= history.last_seq:
                return
            if seq > history.next_seq:
                if history.last_seq >= 0:
                    _log.warning(
                        "worker %s: KV events %d to %d are lost, its index starts anew",
                        self._worker.name,
                        history.next_seq,
                        seq - 1,
                    )
                self._forget()
        history.take(seq, payload)

    def _forget(self) -> None:
        self._history.forget()
        self._replayed_until = -1

    async def _answers_with_last(self) -> bool:
        """Whether the engine's replay begins with the batch heard last."""
        async with aclosing(self._replay(self._history.last_seq)) as batches:
            async for seq, payload in batches:
                return self._history.is_last(seq, payload)
        return False

    async def _catch_up(self) -> None:
        """Take what the replay has from the next number on; TimeoutError without an answer."""
        while await self._takes_part_of_the_rest():
            pass
        self._replayed_until = self._history.last_seq

    async def _takes_part_of_the_rest(self) -> bool:
        """Ask once; whether something is missing that a full queue dropped on the way."""
        history = self._history
        asked = history.next_seq
        try:
            async with aclosing(self._replay(asked)) as batches:
                async for seq, payload in batches:
                    if seq > history.next_seq:
                        if history.next_seq > asked:
                            return True
                        self._forget()  # the engine keeps no older ones
                    if seq >= history.next_seq:
                        history.take(seq, payload)
        except TimeoutError:
            if history.next_seq == asked:
                raise
            return True
        return False

    async def _replay(self, first_seq: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """What the replay socket sends from a number on; TimeoutError where nothing answers."""
        if self._worker.kv_replay is None:
            raise TimeoutError
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(self._worker.kv_replay)
            await socket.send_multipart([b"", first_seq.to_bytes(8, "big")])
            if not await socket.poll(_REPLAY_TIMEOUT_MS):
                raise TimeoutError
            async with self._replays:
                while await socket.poll(_REPLAY_PAUSE_MS):
                    frames = await socket.recv_multipart()
                    if len(frames) < 2 or frames[-2] == _END_OF_REPLAY:
                        return
                    yield int.from_bytes(frames[-2], "big"), frames[-1]
                    await asyncio.sleep(0)
            raise TimeoutError
        finally:
            socket.close(linger=0)
