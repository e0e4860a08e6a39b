"""KV events over ZMQ, framed and encoded as vLLM's ZmqEventPublisher does it.

A PUB socket sends [topic, sequence number as 8 bytes big-endian, payload]. The payload is msgpack,
an array [time, events, data parallel rank]. A ROUTER socket answers [first sequence number wanted]
with [sequence number, payload] per batch still kept, and ends with sequence number -1 and nothing.
Source: vllm/distributed/kv_events.py, vllm/config/kv_events.py (github.com/vllm-project/vllm).

An event is an array that starts with its name, as vLLM wrote it until pull request 42892 (June
2026), or a map with the name under "type", as it does since. Consumers meet both.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from hrl_planner.errors import EngineError
from hrl_planner.mock_engine.config import EventsConfig, EventsFormat
from hrl_planner.mock_engine.engine import Job, StepReport

_END = (-1).to_bytes(8, "big", signed=True)
_MEDIUM = "GPU"


class BlockStored(msgspec.Struct, array_like=True, tag=True):
    """Blocks of one prompt that are in the cache now, each the child of the one before."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = _MEDIUM


class BlockRemoved(msgspec.Struct, array_like=True, tag=True):
    """Blocks that are not in the cache any more."""

    block_hashes: list[int]
    medium: str | None = _MEDIUM


class AllBlocksCleared(msgspec.Struct, array_like=True, tag=True):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


def block_hashes(token_ids: Sequence[int], block_size: int) -> list[int]:
    """Return one 64-bit id per full block; it stands for the block and all in front of it."""
    raw = np.asarray(token_ids, np.uint32).tobytes()
    width = 4 * block_size
    parent = b""
    hashes = []
    for at in range(0, len(raw) - width + 1, width):
        parent = blake2b(parent + raw[at : at + width], digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "big"))
    return hashes


def events_of(report: StepReport, block_size: int) -> Iterator[Event]:
    """Yield what a step did to the prefix cache, in order."""
    for job, change in zip(report.end.completed, report.end.remembered, strict=True):
        for first, last in _runs(change.stored):
            yield _stored(job, first, last, block_size)
        if change.evicted:
            yield BlockRemoved(change.evicted)


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of every run of consecutive positions."""
    first = last = -2
    for position in positions:
        if position != last + 1:
            if first >= 0:
                yield first, last
            first = position
        last = position
    if first >= 0:
        yield first, last


def _stored(job: Job, first: int, last: int, block_size: int) -> BlockStored:
    return BlockStored(
        block_hashes=list(job.blocks[first : last + 1]),
        parent_block_hash=job.blocks[first - 1] if first else None,
        token_ids=list(job.token_ids[first * block_size : (last + 1) * block_size]),
        block_size=block_size,
    )


class EventPublisher:
    """Publishes the events of each step as one batch, and replays batches that were missed.

    Attributes:
        port: of the PUB socket.
        replay_port: of the ROUTER socket, None without one.
    """

    def __init__(self, config: EventsConfig, host: str, block_size: int) -> None:
        """Bind the sockets."""
        self._config = config
        self._block_size = block_size
        self._encoder = msgspec.msgpack.Encoder()
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_batches)
        self._sequence = 0
        self._context = zmq.asyncio.Context()
        # Sending on PUB never blocks and needs no event loop; plain sockets do it at once.
        self._publish: zmq.Socket[bytes] = zmq.Context(self._context).socket(zmq.PUB)
        self._replay: zmq.asyncio.Socket | None = None
        self._replaying: asyncio.Task[None] | None = None
        self.replay_port: int | None = None
        try:
            self.port = _bind(self._publish, host, config.port or 0, "kv-events-port")
            if config.replay_port is not None:
                self._replay = self._context.socket(zmq.ROUTER)
                self.replay_port = _bind(self._replay, host, config.replay_port, "kv-replay-port")
                self._replaying = asyncio.create_task(self._serve_replay(self._replay))
        except EngineError:
            self.close()
            raise

    def on_step(self, report: StepReport) -> None:
        """Publish what a step did to the prefix cache, if anything."""
        events = list(events_of(report, self._block_size))
        if events:
            self._send(events)

    def on_clear(self) -> None:
        """Publish that the prefix cache is empty."""
        self._send([AllBlocksCleared()])

    def close(self) -> None:
        """Close the sockets; what is queued is still sent."""
        if self._replaying is not None:
            self._replaying.cancel()
        if self._replay is not None:
            self._replay.close(linger=0)
        self._publish.close(linger=500)
        self._context.term()

    def _send(self, events: list[Event]) -> None:
        payload = self._encoder.encode([time.time(), encodable(events, self._config.format), 0])
        sequence = self._sequence
        self._sequence += 1
        self._batches.append((sequence, payload))
        frames = (self._config.topic.encode(), sequence.to_bytes(8, "big"), payload)
        self._publish.send_multipart(frames)

    async def _serve_replay(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            # An empty frame stands behind the client's name when it is a REQ socket.
            client, *delimiter, start = await socket.recv_multipart()
            envelope = [client, *delimiter]
            first = int.from_bytes(start, "big")
            for sequence, payload in list(self._batches):
                if sequence >= first:
                    number = sequence.to_bytes(8, "big")
                    await socket.send_multipart([*envelope, number, payload])
            await socket.send_multipart([*envelope, _END, b""])


def encodable(events: list[Event], form: EventsFormat) -> list[Any]:
    """Return events as msgpack shall see them."""
    if form == "array":
        return list(events)
    return [_as_map(event) for event in events]


def _as_map(event: Event) -> dict[str, Any]:
    fields = {"type": type(event).__name__, **msgspec.structs.asdict(event)}
    # vLLM's decoders of today want the name there, whatever it is.
    return fields | {"lora_name": None} if isinstance(event, BlockStored) else fields


def _bind(socket: zmq.Socket[Any], host: str, port: int, option: str) -> int:
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise EngineError(f"--{option} {port}: cannot bind on {host}: {error.strerror}") from error
    endpoint: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])
