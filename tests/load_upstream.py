"""An OpenAI server that does what a test tells it to, in a thread of its own.

`plan` gives, per request in order of arrival, how it is answered; the default answers at once. Raw
asyncio instead of a web framework, because what is tested is what happens between the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        status: of the answer; not 200 sends `body` whole.
        first_s: time before the first token.
        stall_s: time before the second token.
        tokens: how many come; None is as many as were asked for.
        reset_after: cut the connection after so many tokens.
        done: whether [DONE] is sent.
        close: close the connection after a complete answer, without saying so before.
        piece: bytes per write; the chunks are cut without regard for what they hold.
        usage: the usage object; None is what was asked for, {} sends none.
        error_after: say after so many tokens that the engine failed.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    first_s: float = 0.0
    stall_s: float = 0.0
    tokens: int | None = None
    reset_after: int | None = None
    done: bool = True
    close: bool = False
    piece: int | None = None
    usage: dict[str, Any] | None = None
    error_after: int | None = None


@dataclass
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int


Plan = Callable[[int], Answer]


class Upstream:
    """The server; use `upstream(...)`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.requests: list[Received] = []
        self.connections = 0
        self.running = 0
        self.most_running = 0
        self.url = ""
        self.answered = threading.Semaphore(0)  # one more for each answer
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task that `leave` knows of, begun or not."""
        self._open[asyncio.create_task(self._serve(reader, writer))] = writer

    async def leave(self) -> None:
        """End all connections; clients may have left some open."""
        mine = {asyncio.current_task(), *self._open}
        await asyncio.gather(*(asyncio.all_tasks() - mine))  # of connections just accepted
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        for writer in self._open.values():
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        with (
            contextlib.closing(writer),
            contextlib.suppress(asyncio.IncompleteReadError, ConnectionError),
        ):
            while True:
                received = await _read(reader, connection)
                self.requests.append(received)
                answer = self._plan(len(self.requests) - 1)
                self.running += 1
                self.most_running = max(self.most_running, self.running)
                try:
                    kept = await _answer(answer, received, writer)
                finally:
                    self.running -= 1
                self.answered.release()
                if not kept:
                    break


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split()[1], headers, json.loads(body or b"{}"), connection)


async def _answer(answer: Answer, received: Received, writer: asyncio.StreamWriter) -> bool:
    if received.path == "/v1/models":
        await _whole(writer, 200, {}, json.dumps({"data": [{"id": "served-model"}]}))
        return True
    if answer.status != 200:
        await asyncio.sleep(answer.first_s)
        await _whole(writer, answer.status, answer.headers, answer.body)
        return True
    osl = int(received.body["max_tokens"])
    count = osl if answer.tokens is None else answer.tokens
    asked = {"prompt_tokens": 7, "completion_tokens": count}
    usage = asked if answer.usage is None else answer.usage
    if not received.body["stream"]:
        await asyncio.sleep(answer.first_s)
        choice = {"index": 0, "text": " t" * count, "finish_reason": "length"}
        text = json.dumps({"choices": [choice], "usage": usage})
        await _whole(writer, 200, answer.headers, text)
        return True
    return await _stream(answer, count, usage, "messages" in received.body, writer)


async def _stream(
    answer: Answer, count: int, usage: dict[str, Any], chat: bool, writer: asyncio.StreamWriter
) -> bool:
    lines = [f"{name}: {value}\r\n" for name, value in answer.headers.items()]
    head = f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{''.join(lines)}\r\n"
    writer.write(head.encode())
    if chat:
        await _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}, answer)
    for i in range(count):
        if i < 2:
            await asyncio.sleep((answer.first_s, answer.stall_s)[i])
        if answer.error_after == i:
            await _event(writer, {"error": {"message": "engine died"}}, answer)
            usage = {}
            break
        if answer.reset_after == i:
            writer.transport.abort()
            return False
        choice: dict[str, Any] = {"delta": {"content": f" t{i}"}} if chat else {"text": f" t{i}"}
        await _event(writer, {"choices": [{"index": 0, **choice, "finish_reason": None}]}, answer)
    if usage:
        await _event(writer, {"choices": [], "usage": usage}, answer)
    if answer.done:
        await _event(writer, "[DONE]", answer)
    await _write(writer, b"0\r\n\r\n", answer.piece)
    return not answer.close


async def _event(writer: asyncio.StreamWriter, event: object, answer: Answer) -> None:
    text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    data = f"data: {text}\n\n".encode()
    await _write(writer, b"%x\r\n%b\r\n" % (len(data), data), answer.piece)


async def _write(writer: asyncio.StreamWriter, data: bytes, piece: int | None) -> None:
    step = piece or len(data)
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
        await writer.drain()
        if piece:
            await asyncio.sleep(0)


async def _whole(
    writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: str
) -> None:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    data = body.encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{''.join(lines)}\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


def always(answer: Answer) -> Plan:
    """Answer every request the same."""
    return lambda _: answer


def in_turn(*answers: Answer) -> Plan:
    """Answer the first request with the first, and every one past the last with the last."""
    return lambda i: answers[min(i, len(answers) - 1)]


@contextlib.contextmanager
def upstream(plan: Plan = always(Answer())) -> Iterator[Upstream]:  # noqa: B008
    """A running server, gone at the end of the block."""
    served = Upstream(plan)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(served.accept, "127.0.0.1", 0)
        served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        # A server closed while it accepts leaks the socket: first no more come, then it is closed.
        loop.remove_reader(server.sockets[0].fileno())
        await served.leave()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
