"""How a decode worker claims a KV cache: the side channel beside the HTTP port, as NIXL has one.

One connection between two workers carries all their claims, a line each way, answered in order:

    decode -> prefill    ["engine id", "request id"]
    decode <- prefill    true, or false where the KV cache is gone

Every request over two workers makes a claim; as an HTTP request of its own it would cost both
engines more than the request itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import cast

import msgspec

Address = tuple[str, int]
Held = Callable[[str, str], bool]

_CLAIM_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 64 * 1024
_decode_claim = msgspec.json.Decoder(tuple[str, str]).decode


class _Lines(asyncio.Protocol):
    """A connection of lines."""

    def __init__(self) -> None:
        self._rest = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def lines(self, data: bytes) -> list[bytes]:
        """Whole lines so far; the rest waits. Whoever sends none is cut off."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES and self.transport is not None:
            self.transport.abort()
        return whole


class _Answering(_Lines):
    """The prefill worker's end."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self._held = held

    def data_received(self, data: bytes) -> None:
        answers = b"".join(self._answer(line) for line in self.lines(data))
        if answers and self.transport is not None:
            self.transport.write(answers)

    def _answer(self, line: bytes) -> bytes:
        try:
            engine_id, request_id = _decode_claim(line)
        except msgspec.MsgspecError:
            return b"false\n"
        return b"true\n" if self._held(engine_id, request_id) else b"false\n"


class _Asking(_Lines):
    """The decode worker's end."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self.open = True

    async def ask(self, engine_id: str, request_id: str) -> bool:
        """Claim a KV cache."""
        assert self.transport is not None
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.transport.write(json.dumps([engine_id, request_id]).encode() + b"\n")
        return await answer

    def data_received(self, data: bytes) -> None:
        for line in self.lines(data):
            self._resolve(line == b"true")

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        while self._waiting:
            self._resolve(False)

    def _resolve(self, held: bool) -> None:
        if self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():  # its request was not given up
                answer.set_result(held)


async def listen(host: str, held: Held) -> tuple[asyncio.Server, int]:
    """Answer claims on a free port, which is returned with the server."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(held), host, 0)
    return server, int(server.sockets[0].getsockname()[1])


class Claims:
    """Connections to the side channels of other workers."""

    def __init__(self) -> None:
        """Connect to nobody yet."""
        self._connections: dict[Address, asyncio.Task[_Asking]] = {}

    async def claim(self, address: Address, engine_id: str, request_id: str) -> bool:
        """Claim a KV cache, once; False when it is gone, or its engine is."""
        try:
            async with asyncio.timeout(_CLAIM_TIMEOUT_S):
                connection = await asyncio.shield(self._connection(address))
                return await connection.ask(engine_id, request_id)
        except (OSError, OverflowError):  # unreachable, too late, no port
            self._drop(address)
            return False

    def close(self) -> None:
        """Close every connection."""
        for address in list(self._connections):
            self._drop(address)

    def _connection(self, address: Address) -> asyncio.Task[_Asking]:
        known = self._connections.get(address)
        if known is not None and not (known.done() and not _is_open(known)):
            return known
        made = self._connections[address] = asyncio.create_task(_connect(address))
        return made

    def _drop(self, address: Address) -> None:
        known = self._connections.pop(address, None)
        if known is None:
            return
        if not known.done():
            known.cancel()
        elif _is_open(known) and (transport := known.result().transport) is not None:
            transport.abort()


def _is_open(connecting: asyncio.Task[_Asking]) -> bool:
    return (
        not connecting.cancelled() and connecting.exception() is None and connecting.result().open
    )


async def _connect(address: Address) -> _Asking:
    _, connection = await asyncio.get_running_loop().create_connection(_Asking, *address)
    return connection
