"""A real Envoy between a toy picker and toy workers: each request's body says what they shall do.

The body of a request is JSON. `to` and `fallback` are names of workers (or addresses) for the
picker to answer with, `delay_s` how long it thinks, `refuse` a status it answers itself, `rewrite`
the body it puts in place,
`grow` how long a one. A worker obeys `worker`, or `worker[its name]`: `echo` (default),
`stream`, `busy`, `silent`, `silent_after_headers`, `die`, `die_midway`. Run as a module it is the
picker alone, so that a test can kill it.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from aiohttp import web
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from hrl_planner.router import envoy
from hrl_planner.router.envoy import DESTINATION, FALLBACK, METADATA, EnvoyConfig

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(holds: Callable[[], Any], within_s: float = 20.0) -> None:
    """Wait until something holds that no event tells of."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


class ToyPicker:
    """Does what bodies say, and keeps what it was told."""

    def __init__(self) -> None:
        self.asked: list[ext_proc.ProcessingRequest] = []
        self.cancelled = 0
        self.ended: dict[str, Any] = {}

    async def _process(self, messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        message = ext_proc.ProcessingRequest.FromString(await anext(messages))
        self.asked.append(message)
        try:
            answer = await self._answer(message.request_body.body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield answer.SerializeToString()

    async def _answer(self, body: bytes) -> ext_proc.ProcessingResponse:
        answer = ext_proc.ProcessingResponse()
        wish = json.loads(body) if body else {"refuse": 400}
        await asyncio.sleep(wish.get("delay_s", 0))
        if "refuse" in wish:
            refusal = answer.immediate_response
            refusal.status.code = wish["refuse"]
            refusal.body = b'{"error": {"code": "from the picker"}}'
            refusal.details = f"{envoy.REFUSED}says_no"
            return answer
        answer.request_body.response.SetInParent()
        chosen = answer.dynamic_metadata.fields[METADATA].struct_value.fields
        for header, key in ((DESTINATION, "to"), (FALLBACK, "fallback")):
            if key in wish:
                chosen[header].string_value = wish[key]
        if "grow" in wish:
            wish["rewrite"] = {"grown": "x" * wish["grow"]}
        if "rewrite" in wish:
            rewritten = json.dumps(wish["rewrite"]).encode()
            answer.request_body.response.body_mutation.body = rewritten
        return answer

    async def _log(self, messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for raw in messages:
            logs = als_pb2.StreamAccessLogsMessage.FromString(raw).http_logs
            self.ended.update(
                (entry.common_properties.stream_id, entry) for entry in logs.log_entry
            )
        return b""

    async def serve(self, address: str) -> grpc.aio.Server:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        handlers = (
            (
                "envoy.service.ext_proc.v3.ExternalProcessor",
                {"Process": grpc.stream_stream_rpc_method_handler(self._process)},
            ),
            (
                "envoy.service.accesslog.v3.AccessLogService",
                {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._log)},
            ),
        )
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(*handler) for handler in handlers)
        )
        server.add_insecure_port(address)
        await server.start()
        return server


class ToyWorkers:
    """Toy engines on loopback; each answers with its name."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.go_on = asyncio.Event()
        self._runners: list[web.AppRunner] = []

    async def start(self, *names: str) -> None:
        for name in names:
            app = web.Application(client_max_size=64 << 20)
            app.router.add_route("*", "/{path:.*}", self._handler(name))
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
            )
            await runner.setup()
            self._runners.append(runner)
            port = free_port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.addresses[name] = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def _handler(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            wish = json.loads(body) if body else {}
            behaviour = wish.get("worker", "echo")
            if isinstance(behaviour, dict):
                behaviour = behaviour.get(name, "echo")
            self.asked.append((name, behaviour))
            if behaviour == "echo":
                headers = {key.lower(): value for key, value in request.headers.items()}
                return web.json_response(
                    {"name": name, "headers": headers, "body": wish, "path": request.path_qs}
                )
            if behaviour == "busy":
                return web.json_response({"error": {"code": "from the engine"}}, status=503)
            if behaviour == "silent":
                await asyncio.Event().wait()
            if behaviour == "die":
                _abort(request)
                return web.Response()
            return await self._stream(request, name, behaviour)

        return handle

    async def _stream(self, request: web.Request, name: str, behaviour: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if behaviour == "silent_after_headers":
            await asyncio.Event().wait()
        await response.write(f"data: {name} first\n\n".encode())
        await self.go_on.wait()
        if behaviour == "die_midway":
            _abort(request)
            return response
        await response.write(b"data: [DONE]\n\n")
        return response


def _abort(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Rig:
    """Envoy, a picker in this process or in one of its own, and two workers, `a` and `b`."""

    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    own_picker: bool = False

    async def start(self) -> None:
        self.workers = ToyWorkers()
        await self.workers.start("a", "b")
        self.picker = ToyPicker()
        address = f"unix:{self.folder}/picker.sock"
        self.port = free_port()
        self.config = EnvoyConfig(
            listen=f"127.0.0.1:{self.port}",
            admin_port=free_port(),
            picker=address,
            picker_http=self.workers.addresses["a"],
            concurrency=1,
            **self.overrides,
        )
        self._grpc = None if self.own_picker else await self.picker.serve(address)
        if self.own_picker:
            await self.start_picker()
        child = envoy.child(self.config, self.folder / "envoy.json")
        with (self.folder / "envoy.log").open("wb") as log:
            self.envoy = subprocess.Popen(child.argv, stdout=log, stderr=log)
        async with asyncio.timeout(20):
            while not await envoy.ready(self.config):
                assert self.envoy.poll() is None, (self.folder / "envoy.log").read_text()
                await asyncio.sleep(0.02)
        self.session = aiohttp.ClientSession(
            f"http://127.0.0.1:{self.port}", connector=aiohttp.TCPConnector(force_close=True)
        )

    async def start_picker(self) -> None:
        command = (sys.executable, "-m", "tests.toy_router", self.config.picker)
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"serving\n"

    async def stop(self) -> None:
        await self.session.close()
        self.envoy.kill()
        self.envoy.wait()
        await self.workers.stop()
        if self._grpc is not None:
            await self._grpc.stop(0)
        if self.own_picker and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def body(self, wish: Any) -> bytes:
        """A wish as a request's body, with addresses in place of names."""
        if isinstance(wish, bytes):
            return wish
        named = {
            key: self.workers.addresses.get(value, value) if key in ("to", "fallback") else value
            for key, value in wish.items()
        }
        return json.dumps(named).encode()

    async def post(
        self, wish: Any, path: str = "/v1/completions", headers: Mapping[str, str] | None = None
    ) -> Answer:
        async with self.session.post(
            path, data=io.BytesIO(self.body(wish)), headers=headers
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Answer:
        async with self.session.get(path) as response:
            return Answer(response.status, response.headers, await response.read())

    async def raw(self, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """What comes back for bytes on a connection, until Envoy closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def write() -> None:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause_s)

        writing = asyncio.create_task(write())
        answer = b""
        try:
            async with asyncio.timeout(20):
                while chunk := await reader.read(65536):
                    answer += chunk
        except ConnectionError:
            pass
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.close()
        return answer


class Background:
    """An event loop in a thread, for servers that outlive the test functions that use them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _picker_alone(address: str) -> None:
    server = await ToyPicker().serve(address)
    print("serving", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_picker_alone(sys.argv[1]))
