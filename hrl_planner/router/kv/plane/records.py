"""Where a Dynamo worker publishes its KV events: the records of Dynamo's file discovery.

A Dynamo process binds a random port and tells it to discovery. With `DYN_DISCOVERY_BACKEND=file`
each record is a JSON file in the directory `DYN_FILE_KV`, its key percent-encoded:

    v1/event_channels/namespace/N/component/C/endpoint/E/topic/kv-events/PUBLISHER   ZMQ endpoint
    v1/event_sources/(the same)                          worker id, rank, where missed events are
    v1/mdc/.../WORKER                                    the model's card, with the block size

Its owner touches a file every few seconds; one that nobody touches is of a process that died.
Read from ai-dynamo 1.6.1; nothing of it is documented as an interface.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from hrl_planner.errors import RouterError

_NAME = re.compile(r"dyn://([^./\s]+)\.([^./\s]+)\.([^./\s]+)(?:/(\d+))?")
_TOPIC = "kv-events"
_DEAD_AFTER_S = 30.0  # three times as long as Dynamo itself gives a record
_T = TypeVar("_T")
_Id = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class SourceName:
    """A worker as Dynamo names it, `dyn://NAMESPACE.COMPONENT.ENDPOINT[/WORKER_ID]`.

    Attributes:
        endpoint: namespace, component and endpoint.
        worker_id: None where the endpoint has one worker, or one on the worker's host.
    """

    endpoint: tuple[str, str, str]
    worker_id: int | None = None

    @staticmethod
    def parse(text: str) -> SourceName:
        """Read `dyn://...`.

        Raises:
            RouterError: it is no such name.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise RouterError(
                f"kv_events: {text!r} is no dyn://NAMESPACE.COMPONENT.ENDPOINT[/WORKER_ID]"
            )
        namespace, component, endpoint, worker_id = found.groups()
        return SourceName(
            (namespace, component, endpoint), None if worker_id is None else int(worker_id)
        )


@dataclass(frozen=True, slots=True)
class Source:
    """One publisher of KV events.

    Attributes:
        publisher_id: another one after each start of the process.
        endpoint: ZMQ endpoint it publishes on.
        worker_id: Dynamo's id of the worker.
        dp_rank: data-parallel rank of the worker.
        recovery: `host:port/path` on the request plane that answers with missed events; None
            where there is none.
        block_tokens: tokens per block, from the worker's model card.
    """

    publisher_id: int
    endpoint: str
    worker_id: int
    dp_rank: int
    recovery: str | None
    block_tokens: int


class _Transport(msgspec.Struct):
    kind: str
    config: dict[str, Any] = {}


class _Channel(msgspec.Struct):
    instance_id: _Id
    transport: _Transport


class _Worker(msgspec.Struct):
    worker_id: _Id
    dp_rank: _Id = 0


class _Target(msgspec.Struct):
    transport: dict[str, Any]


class _Metadata(msgspec.Struct):
    worker: _Worker
    recovery_target: _Target | None = None


class _EventSource(msgspec.Struct):
    metadata: _Metadata


class _Card(msgspec.Struct):
    kv_cache_block_size: int


class _Model(msgspec.Struct):
    card_json: _Card


def find(store: Path, name: SourceName, host: str) -> Source | None:
    """Look up a worker's publisher; None where there is none yet.

    Args:
        store: Dynamo's `DYN_FILE_KV`.
        name: of the worker.
        host: of the worker's address, which tells the workers of one endpoint apart.

    Raises:
        RouterError: more than one fits, or it cannot be followed.
    """
    found = [
        source for source in _sources(store, name) if name.worker_id in (None, source.worker_id)
    ]
    if len(found) > 1:
        found = [s for s in found if urlsplit(s.endpoint).hostname == host.strip("[]")] or found
    if len(found) > 1:
        which = ", ".join(f"{s.worker_id} rank {s.dp_rank}" for s in found)
        raise RouterError(
            f"{store}: {len(found)} publishers of KV events at {'.'.join(name.endpoint)}: {which}; "
            "name one as dyn://.../WORKER_ID"
        )
    return found[0] if found else None


def _sources(store: Path, name: SourceName) -> list[Source]:
    namespace, component, endpoint = name.endpoint
    prefix = _file_name(
        f"namespace/{namespace}/component/{component}/endpoint/{endpoint}/topic/{_TOPIC}/"
    )
    sources = []
    for path in (store / "v1" / "event_channels").glob(f"{prefix}*"):
        channel = _read(path, _Channel)
        told = _read(store / "v1" / "event_sources" / path.name, _EventSource)
        if channel is None or told is None or _is_dead(path):
            continue
        worker = told.metadata.worker
        block_tokens = _block_tokens(store, worker.worker_id)
        if block_tokens is None:
            continue
        target = told.metadata.recovery_target
        sources.append(
            Source(
                publisher_id=channel.instance_id,
                endpoint=_zmq_endpoint(path, channel.transport),
                worker_id=worker.worker_id,
                dp_rank=worker.dp_rank,
                recovery=None if target is None else target.transport.get("tcp"),
                block_tokens=block_tokens,
            )
        )
    return sources


def _block_tokens(store: Path, worker_id: int) -> int | None:
    for path in (store / "v1" / "mdc").glob(f"*{_file_name('/')}{worker_id:x}"):
        model = _read(path, _Model)
        if model is not None:
            return model.card_json.kv_cache_block_size
    return None


def _zmq_endpoint(path: Path, transport: _Transport) -> str:
    if transport.kind != "Zmq":
        raise RouterError(
            f"{path}: transport.kind {transport.kind!r}: only a Zmq plane without broker can be "
            "followed (DYN_EVENT_PLANE=zmq)"
        )
    return str(transport.config["endpoint"])


def _is_dead(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _DEAD_AFTER_S
    except OSError:
        return True


def _read(path: Path, type_: type[_T]) -> _T | None:
    """A record; None where it is gone or is written just now."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (OSError, msgspec.DecodeError):
        return None


def _file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", lambda found: f"%{ord(found[0]):02X}", key)
