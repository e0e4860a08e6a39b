"""Messages of Dynamo's event plane about KV caches, decoded.

Over ZMQ a message is `[topic, publisher id, number, frame]`, both numbers of 8 bytes, big-endian. A
frame is one byte version, four bytes length, and a msgpack map whose `payload` is msgpack again: a
list of events. Each has an id; the ids of a publisher count from 1 without a gap. Blocks come
with two hashes: `block_hash` names a block and all before it, `tokens_hash` its content, the same
as `hashing.py` makes of a prompt. A block that several requests have stored goes once, with the
last of them.

Blocks outside GPU memory, of images, or placed by position instead of by parent are left out, and
so is everything that follows them. What depends on an adapter or a salt has another `tokens_hash`
and meets no prompt.

Sources: ai-dynamo 1.6.1 on the wire; github.com/ai-dynamo/dynamo, `lib/kv-router/src/protocols.rs`
and `lib/runtime/src/transports/event_plane/zmq_transport.rs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hrl_planner.router.kv.wire import Cleared, Event, Removed, Stored

FIRST_ID = 1
_VERSION = 1
_HEADER_BYTES = 5
_Hash = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Numbered:
    """An event with its id; None in place of one that does not concern the index."""

    id: int
    event: Event | None


@dataclass(frozen=True, slots=True)
class Message:
    """What one publisher told at once."""

    publisher_id: int
    events: list[Numbered]


@dataclass(frozen=True, slots=True)
class Missed:
    """An answer to what was missed.

    Attributes:
        events: the missed ones; of a dump, all that builds the cache from nothing.
        last_id: id of the last event they bring the index up to.
        is_dump: whether what was known before is to be forgotten.
    """

    events: list[Numbered]
    last_id: int
    is_dump: bool


class _Block(msgspec.Struct):
    block_hash: _Hash
    tokens_hash: _Hash
    mm_extra_info: Any = None


class _StoredData(msgspec.Struct):
    blocks: list[_Block]
    parent_hash: _Hash | None = None
    start_position: int | None = None


class _RemovedData(msgspec.Struct):
    block_hashes: list[_Hash]


class _Data(msgspec.Struct):
    stored: _StoredData | None = None
    removed: _RemovedData | None = None


class _Event(msgspec.Struct):
    event_id: _Hash
    data: _Data | str


class _RouterEvent(msgspec.Struct):
    event: _Event
    storage_tier: str = "device"
    residency_domain: str = "worker"


class _Envelope(msgspec.Struct):
    payload: bytes


class _Events(msgspec.Struct):
    events: list[_RouterEvent]
    last_event_id: int


class _TooNew(msgspec.Struct):
    newest_available: int


class _Answers(msgspec.Struct):
    dump: _Events | None = msgspec.field(default=None, name="TreeDump")
    events: _Events | None = msgspec.field(default=None, name="Events")
    too_new: _TooNew | None = msgspec.field(default=None, name="TooNew")


class _Answer(msgspec.Struct):
    data: _Answers


_envelope = msgspec.msgpack.Decoder(_Envelope).decode
_router_events = msgspec.msgpack.Decoder(list[_RouterEvent]).decode
_answer = msgspec.msgpack.Decoder(_Answer).decode


def decode_message(frames: Sequence[bytes], block_tokens: int) -> Message:
    """Read a ZMQ message; ValueError on what is none.

    Args:
        frames: its four parts.
        block_tokens: the publisher's block size, which no event tells.
    """
    if len(frames) != 4 or len(frames[1]) != 8 or frames[3][:1] != bytes([_VERSION]):
        raise ValueError(f"not a message of event plane version {_VERSION}: {frames[-1][:8]!r}")
    try:
        events = _router_events(_envelope(frames[3][_HEADER_BYTES:]).payload)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a batch of KV events: {error}") from error
    numbered = [_numbered(event, block_tokens) for event in events]
    return Message(int.from_bytes(frames[1], "big"), numbered)


def decode_missed(answer: bytes, block_tokens: int) -> Missed:
    """Read a worker's answer to a question for missed events; ValueError where it has none."""
    try:
        data = _answer(answer).data
    except msgspec.DecodeError as error:
        raise ValueError(f"not an answer about KV events: {error}") from error
    if data.too_new is not None:
        return Missed([], data.too_new.newest_available, is_dump=False)
    found = data.dump or data.events
    if found is None:
        raise ValueError(f"no missed events: {answer[:200]!r}")
    return Missed(
        [_numbered(event, block_tokens) for event in found.events],
        found.last_event_id,
        is_dump=data.dump is not None,
    )


def _numbered(router_event: _RouterEvent, block_tokens: int) -> Numbered:
    event = router_event.event
    here = router_event.storage_tier == "device" and router_event.residency_domain == "worker"
    return Numbered(event.event_id, _indexed(event.data, block_tokens) if here else None)


def _indexed(data: _Data | str, block_tokens: int) -> Event | None:
    if isinstance(data, str):
        return Cleared() if data == "cleared" else None
    if data.removed is not None:
        return Removed(data.removed.block_hashes, None)
    stored = data.stored
    if stored is None or (stored.parent_hash is None and stored.start_position):
        return None
    blocks = stored.blocks
    for n, block in enumerate(blocks):
        if block.mm_extra_info is not None:
            blocks = blocks[:n]
            break
    return Stored(
        keys=[block.block_hash for block in blocks],
        parent=stored.parent_hash,
        hashes=[block.tokens_hash for block in blocks],
        block_tokens=block_tokens,
        group=None,
    )
