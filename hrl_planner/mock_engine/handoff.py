"""How a KV cache changes hands: leases as vLLM's NIXL connector gives them, SGLang's rooms.

vLLM: the prefill worker answers with the address of the KV cache and keeps it for `lease_s`; the
decode worker claims it there (`side_channel.py`). SGLang: both workers get the request at once, and
the decode worker waits at the prefill worker's bootstrap server until the room is done. No KV cache
exists here; what is handed over is the right to skip a prefill.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from hrl_planner.mock_engine.asks import RemotePrefill, Room
from hrl_planner.mock_engine.side_channel import Claims


class Leases:
    """Prompts whose KV cache is kept for a decode worker.

    Args:
        engine_id: of this engine, new with each start: what an earlier process held is gone.
        lease_s: how long each is kept.
    """

    def __init__(self, engine_id: str, lease_s: float) -> None:
        """Hold nothing."""
        self.engine_id = engine_id
        self._lease_s = lease_s
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._expiry)

    def grant(self, request_id: str) -> None:
        """Keep a prompt's KV cache until it is claimed or its time is over."""
        loop = asyncio.get_running_loop()
        self._expiry[request_id] = loop.call_later(self._lease_s, self._expiry.pop, request_id)

    def claim(self, engine_id: str, request_id: str) -> bool:
        """Hand a KV cache over, once; False when this engine does not hold it."""
        if engine_id != self.engine_id or request_id not in self._expiry:
            return False
        self._expiry.pop(request_id).cancel()
        return True


class Rooms:
    """SGLang's rooms at a prefill worker: done, failed, or awaited.

    Args:
        keep_s: how long a room that nobody has asked for is remembered.
    """

    def __init__(self, keep_s: float) -> None:
        """Start with no room."""
        self._keep_s = keep_s
        self._done: dict[int, asyncio.Future[bool]] = {}
        self._awaited: dict[int, int] = {}  # waiters per room

    def __len__(self) -> int:
        return sum(future.done() for future in self._done.values())

    def finish(self, room: int, ok: bool) -> None:
        """The prompt of a room is computed, or never will be."""
        future = self._room(room)
        if not future.done():
            future.set_result(ok)
        asyncio.get_running_loop().call_later(self._keep_s, self._forget, room, future)

    async def wait(self, room: int) -> bool:
        """Return whether a room's prompt is computed, as soon as that is known."""
        future = self._room(room)
        self._awaited[room] = self._awaited.get(room, 0) + 1
        try:
            return await asyncio.shield(future)
        finally:
            self._awaited[room] -= 1
            if not self._awaited[room]:
                del self._awaited[room]
                self._forget(room, future)

    def _room(self, room: int) -> asyncio.Future[bool]:
        if room not in self._done:
            self._done[room] = asyncio.get_running_loop().create_future()
        return self._done[room]

    def _forget(self, room: int, future: asyncio.Future[bool]) -> None:
        if self._done.get(room) is future:
            del self._done[room]


class Peers:
    """The other workers, as a decode worker asks them."""

    def __init__(self, room_timeout_s: float) -> None:
        """Ask nobody yet."""
        self._room_timeout_s = room_timeout_s
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._claims = Claims()

    async def close(self) -> None:
        """Close every connection."""
        self._claims.close()
        await self._session.close()

    async def claim(self, remote: RemotePrefill) -> bool:
        """Claim a KV cache; False when it is gone, or its engine is."""
        address = remote.host, remote.port
        return await self._claims.claim(address, remote.engine_id, remote.request_id)

    async def meet(self, room: Room) -> bool:
        """Wait until a room's prompt is computed; False when it failed or time is over."""
        url = f"http://{room.host}:{room.port}/rooms/{room.room}"
        timeout = aiohttp.ClientTimeout(total=self._room_timeout_s)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False


def transfer_params(
    leases: Leases, request_id: str, n_blocks: int, host: str, port: int, tp_size: int
) -> dict[str, Any]:
    """Return what a decode worker needs to pull a KV cache, in the words of vLLM's connector."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": leases.engine_id,
        "remote_request_id": request_id,
        "remote_block_ids": list(range(n_blocks)),
        "remote_host": host,
        "remote_port": port,
        "tp_size": tp_size,
    }
