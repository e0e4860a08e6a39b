"""The cheapest engine there can be: answers every prompt at once with tokens at a steady pace.

    python -m benchmarks.router.upstream --port 8000 --itl-ms 20

Routers are compared in front of it, so that what is measured is them: 1,000 streams at 20 ms are
50,000 tokens a second, which costs it a fraction of a core. It wakes once per pace and writes one
chunk to every stream; where receivers do not keep up, or a pace of 0 is asked for, they set
the pace. It says it is healthy to whoever asks, under the names that vLLM, SGLang and
the routers of either use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from benchmarks.router.processes import Stack, free_port

MODEL = "bench"

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_DEFAULT_TOKENS = 16
_IDLE_S = 0.001
_YIELD_EVERY = 32

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_GENERATION = {"/v1/completions": False, "/v1/chat/completions": True}  # whether it is a chat
_PATHS = {
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
    "/get_server_info": {"model_id": MODEL, "model_path": MODEL},
    "/server_info": {"model_id": MODEL, "model_path": MODEL},
    "/get_model_info": {"model_path": MODEL, "is_generation": True},
    "/model_info": {"model_path": MODEL, "is_generation": True},
}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(data: object) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _token(chat: bool) -> bytes:
    text = {"delta": {"content": " t1"}} if chat else {"text": " t1"}
    choice = {"index": 0, **text, "finish_reason": None}
    kind = "chat.completion.chunk" if chat else "text_completion"
    event = {"id": "1", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}
    return _chunk(_event(event))


_TOKENS = {chat: _token(chat) for chat in (False, True)}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}


def _end(tokens: int) -> bytes:
    usage = _event({"id": "1", "model": MODEL, "choices": [], "usage": _usage(tokens)})
    return _chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(answer: object) -> bytes:
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _completion(chat: bool, tokens: int) -> bytes:
    text = {"message": {"role": "assistant", "content": "t1"}} if chat else {"text": "t1"}
    choice = {"index": 0, **text, "finish_reason": "length"}
    kind = "chat.completion" if chat else "text_completion"
    answer = {"id": "1", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}
    return _whole({**answer, "usage": _usage(tokens)})


class _Connection(asyncio.Protocol):
    """One connection; `streams` holds it while it answers with a stream."""

    def __init__(self, streams: set[_Connection]) -> None:
        self._streams = streams
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._token = b""
        self._left = 0
        self._tokens = 0
        self._full = False  # the receiver does not keep up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.discard(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if not end or len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        method, target, _ = head.split(b" ", 2)
        path = target.decode().partition("?")[0]
        if method == b"GET":
            self._transport.write(_whole(_PATHS.get(path, {})))
            return
        if path not in _GENERATION:  # vllm-router asks `/v1/completions/render` for token ids
            self._transport.write(_NOT_FOUND)
            return
        found = _MAX_TOKENS.search(body)
        tokens = int(found[1]) if found else _DEFAULT_TOKENS
        chat = _GENERATION[path]
        if not _STREAM.search(body):
            self._transport.write(_completion(chat, tokens))
            return
        self._token, self._left, self._tokens = _TOKENS[chat], tokens, tokens
        self._transport.write(_HEAD)
        self._streams.add(self)

    def step(self) -> None:
        """Send one token, unless the ones before are still to be taken or nobody listens."""
        if self._full or self not in self._streams:
            return
        assert self._transport is not None
        self._left -= 1
        if self._left > 0:
            self._transport.write(self._token)
        else:
            self._transport.write(self._token + _end(self._tokens))
            self._streams.discard(self)


async def serve(port: int, itl_s: float) -> None:
    """Serve on the loopback interface until SIGTERM."""
    streams: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_server(lambda: _Connection(streams), "127.0.0.1", port, backlog=4096)
    due_s = loop.time()
    while not stop.is_set():
        due_s = max(due_s + itl_s, loop.time())
        await asyncio.sleep(max(due_s - loop.time(), 0.0 if streams else _IDLE_S))
        for i, stream in enumerate(list(streams)):
            stream.step()
            if i % _YIELD_EVERY == 0:  # the loop takes one new connection at a time
                await asyncio.sleep(0)


@contextmanager
def running(count: int, itl_ms: float) -> Iterator[list[str]]:
    """So many engines in processes of their own; yields `ip:port` of each."""
    with tempfile.TemporaryDirectory(prefix="upstream-") as name, Stack(Path(name)) as stack:
        root = Path(__file__).parents[2]
        addresses = []
        for i in range(count):
            port = free_port()
            command = [sys.executable, "-m", __spec__.name, "--port", str(port)]
            stack.start(
                f"engine-{i}", [*command, "--itl-ms", str(itl_ms)], {"PYTHONPATH": str(root)}
            )
            addresses.append(f"127.0.0.1:{port}")
        for address in addresses:
            stack.wait_for(f"http://{address}/v1/models", MODEL)
        yield addresses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--itl-ms", type=float, default=20.0)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.port, args.itl_ms / 1e3))


if __name__ == "__main__":
    main()
