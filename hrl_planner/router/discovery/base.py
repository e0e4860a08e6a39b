"""What every discovery tells the router: the workers as they are now, all of them, each time.

Level-triggered: a snapshot replaces the one before it, so a missed or repeated one does no harm.
A worker that is in no snapshot any more takes no new requests; those it is answering go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Engine = Literal["vllm", "sglang"]
DYNAMO_SCHEME = "dyn://"


@dataclass(frozen=True, slots=True)
class Worker:
    """One engine of a pool.

    Attributes:
        name: unique among all workers; the pod's name in Kubernetes.
        pool: pool of the spec it belongs to.
        address: `ip:port` of its OpenAI server.
        draining: whether it finishes its requests and takes no new ones.
        engine: which fields of the prefill/decode hand-off it speaks.
        kv_events: ZMQ endpoint it publishes KV events on, `tcp://ip:port`, or its name on Dynamo's
            event plane, `dyn://namespace.component.endpoint[/worker id]`; None without events.
        kv_replay: ZMQ endpoint that answers with missed events; None where there is none.
        bootstrap: `host:port` of an SGLang prefill worker's bootstrap server.
    """

    name: str
    pool: str
    address: str
    draining: bool = False
    engine: Engine = "vllm"
    kv_events: str | None = None
    kv_replay: str | None = None
    bootstrap: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All workers, and the planner's class-to-pool weights where a planner gives any.

    Attributes:
        workers: ready and draining ones.
        flows: class name -> pool name -> weight; empty when no planner speaks.
    """

    workers: tuple[Worker, ...] = ()
    flows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Discovery(Protocol):
    """A source of snapshots."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield the first snapshot once known, then one per change, until cancelled.

        A source that is lost for a while keeps the last snapshot and logs; it does not end.
        """
        ...
