"""Where a Dynamo worker publishes its KV events: the records of Dynamo's discovery.

A Dynamo process binds a random port and tells it to discovery. Wherever records are kept, a file
each or in an object of Kubernetes, three of them say what is needed, each JSON under a key:

    event_channels  namespace/N/component/C/endpoint/E/topic/kv-events/PUBLISHER   ZMQ endpoint
    event_sources   the same           worker id, rank, where missed events are
    model cards     .../WORKER         the model's card, with the block size

Read from ai-dynamo 1.6.1; nothing of it is documented as an interface.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

import msgspec

from hrl_planner.errors import RouterError

_NAME = re.compile(r"dyn://([^./\s]+)\.([^./\s]+)\.([^./\s]+)(?:/(\d+))?")
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

    @property
    def key_prefix(self) -> str:
        """What the keys of its channels and sources begin with."""
        namespace, component, endpoint = self.endpoint
        return f"namespace/{namespace}/component/{component}/endpoint/{endpoint}/topic/kv-events/"

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


class Channel(msgspec.Struct):
    """Of `event_channels`."""

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


class Told(msgspec.Struct):
    """Of `event_sources`."""

    metadata: _Metadata


class _Card(msgspec.Struct):
    kv_cache_block_size: int


class Model(msgspec.Struct):
    """A model card."""

    card_json: _Card


class Store(Protocol):
    """Where records are kept."""

    async def sources(self, name: SourceName) -> list[Source]:
        """Return the publishers of an endpoint, those with all of their records.

        Raises:
            RouterError: they cannot be read, or not be followed.
        """
        ...


def source(where: str, channel: Channel, told: Told, model: Model) -> Source:
    """Return what the three records of a publisher say.

    Raises:
        RouterError: it publishes in a way that cannot be followed.
    """
    transport, metadata = channel.transport, told.metadata
    if transport.kind != "Zmq":
        raise RouterError(
            f"{where}: transport.kind {transport.kind!r}: only a Zmq plane without broker can be "
            "followed (DYN_EVENT_PLANE=zmq)"
        )
    target = metadata.recovery_target
    return Source(
        publisher_id=channel.instance_id,
        endpoint=str(transport.config["endpoint"]),
        worker_id=metadata.worker.worker_id,
        dp_rank=metadata.worker.dp_rank,
        recovery=None if target is None else target.transport.get("tcp"),
        block_tokens=model.card_json.kv_cache_block_size,
    )


async def find(store: Store, name: SourceName, host: str) -> Source | None:
    """Look up a worker's publisher; None where there is none yet.

    Args:
        store: of the records.
        name: of the worker.
        host: of the worker's address, which tells the workers of one endpoint apart.

    Raises:
        RouterError: more than one fits, or the records are of no use.
    """
    found = [s for s in await store.sources(name) if name.worker_id in (None, s.worker_id)]
    if len(found) > 1:
        found = [s for s in found if urlsplit(s.endpoint).hostname == host.strip("[]")] or found
    if len(found) > 1:
        which = ", ".join(f"{s.worker_id} rank {s.dp_rank}" for s in found)
        raise RouterError(
            f"{len(found)} publishers of KV events at {'.'.join(name.endpoint)}: {which}; "
            "name one as dyn://.../WORKER_ID"
        )
    return found[0] if found else None
