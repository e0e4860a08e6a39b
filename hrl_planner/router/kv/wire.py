"""The KV events that engines publish over ZMQ, decoded.

A message is `[topic, 8-byte big-endian sequence number, msgpack payload]`, its payload a batch of
`ts, events, data_parallel_rank`. SGLang and vLLM's first releases write batch and events as arrays,
the event's name first; later vLLM writes the events as maps with the name under `type`, and the
batch either way. New fields come at the end. Sources: vLLM `vllm/distributed/kv_events.py` (at
0181ea3), SGLang `python/sglang/srt/disaggregation/kv_events.py` (at 7a699dc, array form).

Content hashes are computed here, from an event's tokens: what comes out is the same whether an
engine tells tokens or, as on Dynamo's event plane (`plane/wire.py`), the hashes themselves.

Only what the index can use comes out: full-attention blocks in GPU memory whose hash depends on
tokens alone. Blocks of a LoRA adapter, of images or of a salted cache match no prompt of the
router, so they are left out here, and so is everything that follows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from dynamo.llm import compute_block_hash_for_seq

_MASK_64 = 2**64 - 1
_FULL_ATTENTION = {None, "full_attention", "mla_attention", "sink_full_attention"}
_STORED_FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED_FIELDS = ("block_hashes", "medium", "group_idx")


@dataclass(frozen=True, slots=True)
class Stored:
    """A run of blocks is now in the cache.

    Attributes:
        keys: the engine's own hash of each block, 64 bits.
        parent: the block before the first one; None at the start of a prompt.
        hashes: of each block's tokens, as `hashing.py` makes them of a prompt.
        block_tokens: the engine's block size.
        group: cache group of a hybrid model; None where the engine has one.
    """

    keys: list[int]
    parent: int | None
    hashes: list[int]
    block_tokens: int
    group: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks left the cache."""

    keys: list[int]
    group: int | None


@dataclass(frozen=True, slots=True)
class Cleared:
    """The cache is empty."""


Event = Stored | Removed | Cleared


def decode_batch(payload: bytes) -> list[Event]:
    """Return the events of a batch that concern the index; ValueError on what is no batch."""
    try:
        batch = msgspec.msgpack.decode(payload)
        events = batch["events"] if isinstance(batch, Mapping) else batch[1]
        decoded = [_event(event) for event in events]
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a batch of KV events: {error!r}") from error
    return [event for event in decoded if event is not None]


def _event(event: Any) -> Event | None:
    name = event["type"] if isinstance(event, Mapping) else event[0]
    if name == "AllBlocksCleared":
        return Cleared()
    if name == "BlockStored":
        return _stored(_fields(event, _STORED_FIELDS))
    if name == "BlockRemoved":
        fields = _fields(event, _REMOVED_FIELDS)
        if not _on_gpu(fields):
            return None
        return Removed([_key(block) for block in fields["block_hashes"]], fields.get("group_idx"))
    return None  # a later engine's event of another kind


def _stored(fields: Mapping[str, Any]) -> Stored | None:
    by_tokens_alone = (
        fields.get("lora_id") is None
        and fields.get("lora_name") is None
        and not any(fields.get("extra_keys") or ())
    )
    if not by_tokens_alone or not _on_gpu(fields):
        return None
    if fields.get("kv_cache_spec_kind") not in _FULL_ATTENTION:
        return None
    keys = [_key(block) for block in fields["block_hashes"]]
    token_ids, block_tokens = fields["token_ids"], fields["block_size"]
    if block_tokens < 1 or len(token_ids) != len(keys) * block_tokens:
        raise ValueError(
            f"BlockStored has {len(token_ids)} tokens for {len(keys)} blocks of {block_tokens}"
        )
    parent = fields.get("parent_block_hash")
    return Stored(
        keys=keys,
        parent=None if parent is None else _key(parent),
        hashes=compute_block_hash_for_seq(token_ids, block_tokens),
        block_tokens=block_tokens,
        group=fields.get("group_idx"),
    )


def _on_gpu(fields: Mapping[str, Any]) -> bool:
    return fields.get("medium") in (None, "GPU")


def _fields(event: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(event, Mapping):
        return event
    return dict(zip(names, event[1:], strict=False))


def _key(block_hash: int | bytes) -> int:
    """64 bits of an engine's hash: the last eight bytes, as vLLM itself shortens it."""
    if isinstance(block_hash, bytes):
        return int.from_bytes(block_hash[-8:], "big")
    return block_hash & _MASK_64
