"""An engine's side of the KV events, written from the format: PUB stream and ROUTER replay."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

END = (-1).to_bytes(8, "big", signed=True)


def stored(
    keys: list[Any], tokens: list[int], parent: Any = None, block_tokens: int = 4, *more: Any
) -> list[Any]:
    """`BlockStored` as an array: lora_id, medium and later fields follow."""
    return ["BlockStored", keys, parent, tokens, block_tokens, *(more or (None, "GPU"))]


def removed(keys: list[Any], *more: Any) -> list[Any]:
    return ["BlockRemoved", keys, *(more or ("GPU",))]


CLEARED = ["AllBlocksCleared"]


class Publisher:
    """Numbers batches, sends them to subscribers and answers replay requests from its buffer."""

    def __init__(
        self, replay: bool = True, buffer_steps: int = 10_000, replay_queue: int | None = None
    ) -> None:
        self._context = zmq.asyncio.Context()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._seq = 0
        self._replay_queue = replay_queue  # what an answer has beyond it is dropped
        self.replays_asked = 0
        self._bind("tcp://127.0.0.1:*")
        self.replay_endpoint: str | None = None
        self._server: asyncio.Task[None] | None = None
        if replay:
            self._router = self._context.socket(zmq.ROUTER)
            self._router.bind("tcp://127.0.0.1:*")
            self.replay_endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
            self._server = asyncio.create_task(self._answer_replays())

    def _bind(self, endpoint: str) -> None:
        # XPUB is PUB that also tells who subscribes: the test can wait for it.
        self._pub = self._context.socket(zmq.XPUB)
        self._pub.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._pub.bind(endpoint)
        self.endpoint = self._pub.getsockopt_string(zmq.LAST_ENDPOINT)

    async def subscribed(self) -> None:
        while (await self._pub.recv())[:1] != b"\x01":
            pass

    async def publish(self, *events: Any, lose: bool = False) -> None:
        """Send a batch; `lose` keeps it from the wire, as a full queue would."""
        await self.publish_payload(msgspec.msgpack.encode([0.5, list(events), 0]), lose)

    async def publish_payload(self, payload: bytes, lose: bool = False) -> None:
        if not lose:
            await self._pub.send_multipart([b"kv-events", self._seq.to_bytes(8, "big"), payload])
        self._buffer.append((self._seq, payload))
        self._seq += 1

    def disconnect(self) -> None:
        self._pub.close(linger=0)

    def reconnect(self) -> None:
        self._bind(self.endpoint)

    async def close(self) -> None:
        if self._server is not None:
            self._server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._server
            self._router.close(linger=0)
        self._pub.close(linger=0)
        self._context.destroy(linger=0)

    async def _answer_replays(self) -> None:
        while True:
            client, empty, first = await self._router.recv_multipart()
            self.replays_asked += 1
            answer = [
                (seq.to_bytes(8, "big"), payload)
                for seq, payload in self._buffer
                if seq >= int.from_bytes(first, "big")
            ]
            for frames in [*answer, (END, b"")][: self._replay_queue]:
                await self._router.send_multipart([client, empty, *frames])


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another task brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)
