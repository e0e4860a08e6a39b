"""Requests over raw HTTP/1.1 connections, timed as near to the socket as Python allows.

    Client.send(exchange) -> an idle Connection, or a new one -> bytes out
    Connection.data_received -> Exchange.read: Answer takes the framing off, a meter
                                                   finds the tokens
    Exchange ends, by its answer, an error or the clock -> on_end(exchange), once

General HTTP clients spend 30 to 60 us of Python per chunk; this spends a few, and measuring is what
it is here for. It knows nothing of traces, classes or promises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import urlsplit

from hrl_planner.errors import LoadError
from hrl_planner.load.meter import ErrorMeter, Meter, StreamMeter, WholeMeter
from hrl_planner.load.wire import Answer, Head, WireError

ErrorKind = Literal[
    "", "http", "connect", "reset", "timeout", "protocol", "truncated", "engine", "unfinished",
    "interrupted",
]  # fmt: skip
"""Why a request failed.

"" it did not, "http" a status other than 200, "connect" no connection, "reset" the connection ended
before the answer did, "timeout", "protocol" not HTTP/1.1, "truncated" the answer ended properly but
without saying that it is complete, "engine" an error inside the stream, "unfinished" still running
when the run ended, "interrupted" running when the run was stopped.
"""

monotonic_s = time.perf_counter


@dataclass(eq=False, slots=True)
class Exchange:
    """One request on its way, and what came of it.

    Attributes:
        number: of the request in its run.
        request: head and body as they are sent.
        stream: whether the answer is a stream of events.
        sent_s: when the client began with it.
        head: status and headers of the answer, None so far.
        meter: what the answer's body told, None so far.
        end_s: when it ended.
        error: see `ErrorKind`.
        detail: the error in words.
    """

    number: int
    request: bytes
    stream: bool
    sent_s: float = 0.0
    head: Head | None = None
    meter: Meter | None = None
    end_s: float = 0.0
    error: ErrorKind = ""
    detail: str = ""
    answer: Answer = field(default_factory=Answer)
    connection: Connection | None = None
    timer: asyncio.TimerHandle | None = None
    ended: bool = False

    def read(self, data: bytes, now_s: float) -> bool:
        """Read what the socket gave; return whether the answer is complete."""
        answer = self.answer
        body = answer.feed(data)
        meter = self.meter
        if meter is None:
            if answer.head is None:
                return False
            meter = self._begin(answer.head)
        if body:
            meter.feed(body, now_s)
        return answer.done

    def _begin(self, head: Head) -> Meter:
        self.head = head
        if head.status != 200:
            self.meter = ErrorMeter()
        else:
            self.meter = StreamMeter() if self.stream else WholeMeter()
        return self.meter

    def verdict(self, now_s: float) -> tuple[ErrorKind, str]:
        """What a complete answer amounts to."""
        assert self.head is not None and self.meter is not None
        self.meter.finish(now_s)
        if self.head.status != 200:
            return "http", f"{self.head.status}: {self.meter.error}"
        if self.meter.error is not None:
            return "engine", self.meter.error
        if not self.meter.ended:
            return "truncated", "the stream ended without [DONE]"
        return "", ""


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time.

    Args:
        client: to whom it returns when idle or gone.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self.used = False

    def start(self, exchange: Exchange) -> None:
        """Send a request."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.request)

    def abort(self) -> None:
        """Close at once, whatever is still to come."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour only
        self._client.made(self)

    def data_received(self, data: bytes) -> None:
        """Time and read what came."""
        now_s = monotonic_s()
        exchange = self._exchange
        if exchange is None:  # a server that speaks unasked is not one to ask again
            self.abort()
            return
        try:
            if not exchange.read(data, now_s):
                return
        except WireError as error:
            self.abort()
            self._client.end(exchange, "protocol", str(error))
            return
        self._exchange = None
        self.used = True
        assert exchange.head is not None
        if exchange.head.keep_alive:
            self._client.idle(self)
        else:
            self.abort()
        self._client.end(exchange, *exchange.verdict(now_s))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whose answer ends with this."""
        exchange, self._exchange = self._exchange, None
        self._client.gone(self)
        if exchange is None:
            return
        if exchange.answer.connection_ended():
            self._client.end(exchange, *exchange.verdict(monotonic_s()))
        elif self.used and exchange.answer.untouched:
            # The server closed an idle connection just as it was used again: not a failure.
            self._client.connect(exchange)
        else:
            self._client.end(exchange, "reset", str(exc or "the server closed the connection"))


class Client:
    """Connections to one server.

    Args:
        url: `http://host:port`, with or without a path, which is ignored.
        timeout_s: what a request gets, from sending to the last byte.
        on_end: called once per exchange when it has ended.
    """

    def __init__(self, url: str, timeout_s: float, on_end: Callable[[Exchange], None]) -> None:
        self._address = Address.parse(url)
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self.running: set[Exchange] = set()

    def send(self, exchange: Exchange) -> None:
        """Begin an exchange; returns at once."""
        exchange.sent_s = monotonic_s()
        self.running.add(exchange)
        exchange.timer = self._loop.call_later(self._timeout_s, self._time_out, exchange)
        if self._idle:
            # The youngest: the others may close for want of use.
            self._idle.pop().start(exchange)
        else:
            self.connect(exchange)

    def connect(self, exchange: Exchange) -> None:
        """Send an exchange over a new connection."""
        task = self._loop.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: Exchange) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self),
                self._address.host,
                self._address.port,
                ssl=self._address.tls or None,
            )
        except OSError as error:
            self.end(exchange, "connect", str(error))
            return
        if exchange.ended:
            self._idle.append(connection)
        else:
            connection.start(exchange)

    def stop(self, exchange: Exchange, kind: ErrorKind, detail: str) -> None:
        """Give an exchange up."""
        if exchange.connection is not None:
            exchange.connection.abort()
        self.end(exchange, kind, detail)

    def _time_out(self, exchange: Exchange) -> None:
        self.stop(exchange, "timeout", f"no complete answer within {self._timeout_s:g} s")

    async def close(self) -> None:
        """Close every connection and give up connecting."""
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self._open):
            connection.abort()
        while self._open:
            await asyncio.sleep(0)

    # --- What connections tell ------------------------------------------------------------------

    def made(self, connection: Connection) -> None:
        """A connection is open."""
        self._open.add(connection)

    def idle(self, connection: Connection) -> None:
        """A connection can be used again."""
        self._idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def end(self, exchange: Exchange, kind: ErrorKind, detail: str) -> None:
        """An exchange has ended."""
        if exchange.ended:
            return
        exchange.ended = True
        exchange.end_s, exchange.error, exchange.detail = monotonic_s(), kind, detail
        exchange.connection = None
        if exchange.timer is not None:
            exchange.timer.cancel()
        self.running.discard(exchange)
        self._on_end(exchange)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """What a Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `http://host:port`; raises LoadError for what is not one."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise LoadError(f"url {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"url {url!r}: expected http://HOST:PORT or https://HOST:PORT")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls)
