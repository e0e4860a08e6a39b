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

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from hrl_planner.router.discovery.base import Worker
from hrl_planner.router.kv.feed import Feed
from hrl_planner.router.kv.held import HeldBlocks
from hrl_planner.router.kv.history import History
from hrl_planner.router.kv.subscription import subscription

_log = logging.getLogger(__name__)

_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_REPLAY_TIMEOUT_MS = 5_000
_REPLAY_PAUSE_MS = 500  # an answer comes in one go; after such a pause its end was dropped


class EventFeed(Feed):
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
        history = History(worker.name, blocks, block_tokens)
        super().__init__(worker.name, worker.kv_events or "", history, silence_s, clock)
        self._worker = worker
        self._replays = replays
        self._one_at_a_time = asyncio.Lock()  # a replay and the stream must not interleave
        self._same_engine = True  # False from a new connection on until a message shows it
        self._replayed_until = -1

    async def run(self, context: zmq.asyncio.Context) -> None:
        """Follow the engine until cancelled, or until it is refused."""
        self._context = context
        try:
            with subscription(context, self._source) as (socket, monitor):
                async with asyncio.TaskGroup() as group:
                    watcher = group.create_task(self._watch(monitor))
                    await self._follow(socket)
                    watcher.cancel()
        except zmq.ZMQError as error:
            _log.error("worker %s: KV events at %s: %s", self._name, self._source, error)
        finally:
            self._end()

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            message = await recv_monitor_message(monitor)
            if message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                async with self._one_at_a_time:
                    await self._connected()
            else:
                self._lose()

    async def _follow(self, socket: zmq.asyncio.Socket) -> None:
        while not self._history.refused:
            frames = await socket.recv_multipart()
            if len(frames) == 3 and len(frames[1]) == 8:
                async with self._one_at_a_time:
                    await self._receive(int.from_bytes(frames[1], "big"), frames[2])
            await asyncio.sleep(0)  # what waits is received without a pause: others have a turn

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
                        self._name,
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
