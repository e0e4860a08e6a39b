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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ENDPOINT = "ns.worker.generate"
_LOOPBACK = ("EVENT_PLANE", "TCP_RPC", "TCP_RESPONSE_STREAM", "SYSTEM")


def environment(store: Path) -> dict[str, str]:
    """File discovery and loopback."""
    return {
        **os.environ,
        "DYN_FILE_KV": str(store),
        "DYN_LOG": "error",
        **{f"DYN_{part}_HOST": "127.0.0.1" for part in _LOOPBACK},
    }


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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.dynamo_publisher", str(block_tokens), str(int(recovery))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(store),
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None
        worker_id = int(await process.stdout.readline())
        card = store / "v1" / "mdc" / f"ns%2Fworker%2Fgenerate%2F{worker_id:x}"
        card.parent.mkdir(exist_ok=True)
        card.write_text(json.dumps({"card_json": {"kv_cache_block_size": block_tokens}}))
        yield DynamoPublisher(process, worker_id)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _publish(block_tokens: int, recovery: bool) -> None:
    from dynamo.llm import KvEventPublisher
    from dynamo.runtime import DistributedRuntime

    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(ENDPOINT)
    publisher = KvEventPublisher(
        endpoint, kv_block_size=block_tokens, enable_local_indexer=recovery
    )
    store = Path(os.environ["DYN_FILE_KV"])
    while not any((store / "v1" / "event_sources").glob("*")):
        await asyncio.sleep(0.01)
    print(endpoint.connection_id(), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, arguments = json.loads(line)
        getattr(publisher, method)(*arguments)
        print(flush=True)
    publisher.shutdown()
    runtime.shutdown()


if __name__ == "__main__":
    asyncio.run(_publish(int(sys.argv[1]), bool(int(sys.argv[2]))))
