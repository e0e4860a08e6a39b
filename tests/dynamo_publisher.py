"""A Dynamo worker's side of the event plane: the runtime's own publisher, in a process of its own.

It publishes what it is told a line at a time, as JSON `[method, arguments]` of `KvEventPublisher`.
Its records lie in the store as Dynamo's file discovery writes them; the model's card, which a
worker registers and a bare publisher does not, is written here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.kv_publisher import until

ENDPOINT = "ns.worker.generate"
_LOOPBACK = ("EVENT_PLANE", "TCP_RPC", "TCP_RESPONSE_STREAM", "SYSTEM")


class DynamoPublisher:
    """A running publisher."""

    def __init__(self, process: asyncio.subprocess.Process, worker_id: int) -> None:
        self._process = process
        self.worker_id = worker_id

    async def stored(self, keys: list[int], tokens: list[int], parent: int | None = None) -> None:
        sizes = [len(tokens) // len(keys)] * len(keys)
        await self.tell("publish_stored", tokens, sizes, keys, parent)

    async def removed(self, keys: list[int]) -> None:
        await self.tell("publish_removed", keys)

    async def tell(self, method: str, *arguments: Any) -> None:
        """Have it published; returns when the publisher has taken it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, arguments]).encode() + b"\n")
        assert await self._process.stdout.readline()

    async def stop(self) -> None:
        """End as a worker does: its records go with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@asynccontextmanager
async def dynamo_publisher(
    store: Path, block_tokens: int, recovery: bool = True
) -> AsyncIterator[DynamoPublisher]:
    """A publisher with its records in the store."""
    discovery = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(store)}
    async with publisher_process(discovery, block_tokens, recovery) as publisher:
        sources = store / "v1" / "event_sources"
        worker_id = str(publisher.worker_id)
        await until(lambda: any(worker_id in path.read_text() for path in sources.glob("*")))
        card = store / "v1" / "mdc" / f"ns%2Fworker%2Fgenerate%2F{publisher.worker_id:x}"
        card.parent.mkdir(exist_ok=True)
        card.write_text(json.dumps({"card_json": {"kv_cache_block_size": block_tokens}}))
        yield publisher


@asynccontextmanager
async def publisher_process(
    discovery: Mapping[str, str], block_tokens: int, recovery: bool = True
) -> AsyncIterator[DynamoPublisher]:
    """A publisher with this discovery in its environment, and no model card."""
    loopback = {f"DYN_{part}_HOST": "127.0.0.1" for part in _LOOPBACK}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.dynamo_publisher", str(block_tokens), str(int(recovery))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "DYN_LOG": "off", **loopback, **discovery},
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None
        yield DynamoPublisher(process, int(await process.stdout.readline()))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _publish(block_tokens: int, recovery: bool) -> None:
    from dynamo.llm import KvEventPublisher
    from dynamo.runtime import DistributedRuntime

    loop = asyncio.get_running_loop()
    backend = os.environ["DYN_DISCOVERY_BACKEND"]
    runtime = DistributedRuntime(loop, backend, "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(ENDPOINT)
    publisher = KvEventPublisher(
        endpoint, kv_block_size=block_tokens, enable_local_indexer=recovery
    )
    print(endpoint.connection_id(), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, arguments = json.loads(line)
        getattr(publisher, method)(*arguments)
        print(flush=True)
    publisher.shutdown()
    runtime.shutdown()


if __name__ == "__main__":
    asyncio.run(_publish(int(sys.argv[1]), bool(int(sys.argv[2]))))
