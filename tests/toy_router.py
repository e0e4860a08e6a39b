"""A toy picker and toy workers for tests of Envoy's side: each request's body says what they do.

The body of a request is JSON. `to` and `fallback` are the addresses the picker names, `delay_s` how
long it thinks, `refuse` a status it answers itself, `rewrite` the body it puts in place. A worker
obeys `worker`: `echo` (default), `stream`, `silent`, `silent_after_headers`, `die`, `die_midway`,
`busy`. Run as a script it is the picker alone, so that a test can kill it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from aiohttp import web
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from envoy.type.v3 import http_status_pb2

from hrl_planner.router.envoy import DESTINATION, FALLBACK, METADATA


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Picker:
    """Does what bodies say, and keeps what it was told."""

    def __init__(self) -> None:
        self.requests: list[ext_proc.ProcessingRequest] = []
        self.bytes_seen: list[int] = []
        self.ended: list[Any] = []
        self.cancelled = 0
        self._new_end = asyncio.Condition()

    async def process(self, messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for raw in messages:
            message = ext_proc.ProcessingRequest.FromString(raw)
            self.requests.append(message)
            try:
                yield (await self._answer(message)).SerializeToString()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            # An exchange left open would tie the request's answer to this process.
            return

    async def _answer(self, message: ext_proc.ProcessingRequest) -> ext_proc.ProcessingResponse:
        response = ext_proc.ProcessingResponse()
        body = message.request_body.body
        if not body:
            _refuse(response, 400, "the body is empty")
            return response
        wish = json.loads(body)
        await asyncio.sleep(wish.get("delay_s", 0))
        if "refuse" in wish:
            _refuse(response, wish["refuse"], "the picker says no")
            return response
        response.request_body.response.SetInParent()
        chosen = response.dynamic_metadata.fields[METADATA].struct_value.fields
        for header, key in ((DESTINATION, "to"), (FALLBACK, "fallback")):
            if key in wish:
                chosen[header].string_value = wish[key]
        if "rewrite" in wish:
            rewritten = json.dumps(wish["rewrite"]).encode()
            response.request_body.response.body_mutation.body = rewritten
        return response

    async def log(self, messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for raw in messages:
            logs = als_pb2.StreamAccessLogsMessage.FromString(raw).http_logs
            async with self._new_end:
                self.ended.extend(logs.log_entry)
                self._new_end.notify_all()
        return b""

    async def end_of(self, request_id: str) -> Any:
        """The access log entry of a request, once it is there."""

        def found() -> Any:
            return next((e for e in self.ended if e.request.request_id == request_id), None)

        async with self._new_end:
            await asyncio.wait_for(self._new_end.wait_for(lambda: found() is not None), 10)
        return found()

    async def serve(self, address: str) -> grpc.aio.Server:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "envoy.service.ext_proc.v3.ExternalProcessor",
                    {"Process": grpc.stream_stream_rpc_method_handler(self.process)},
                ),
                grpc.method_handlers_generic_handler(
                    "envoy.service.accesslog.v3.AccessLogService",
                    {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self.log)},
                ),
            )
        )
        server.add_insecure_port(address)
        await server.start()
        return server


def _refuse(response: ext_proc.ProcessingResponse, status: int, message: str) -> None:
    refusal = response.immediate_response
    refusal.status.code = http_status_pb2.StatusCode.Name(status) and status
    refusal.body = json.dumps({"error": {"message": message, "code": "mine"}}).encode()
    header = refusal.headers.set_headers.add()
    header.header.key, header.header.raw_value = "content-type", b"application/json"
    refusal.details = "picker_refused"


class Workers:
    """Toy engines on loopback; each answers with its name."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []

    async def start(self, *names: str) -> None:
        for name in names:
            app = web.Application(client_max_size=64 << 20)
            app.router.add_route("*", "/{path:.*}", self._handler(name))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            port = free_port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.addresses[name] = f"127.0.0.1:{port}"

    def _handler(self, name: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            wish = json.loads(body) if body else {}
            behaviour = wish.get("worker", "echo")
            if isinstance(behaviour, dict):
                behaviour = behaviour.get(name, "echo")
            self.seen.append((name, behaviour))
            assert request.transport is not None
            if behaviour == "echo":
                headers = {k.lower(): v for k, v in request.headers.items()}
                return web.json_response({"name": name, "headers": headers, "body": wish})
            if behaviour == "busy":
                return web.json_response({"error": {"message": "draining"}}, status=503)
            if behaviour == "silent":
                await asyncio.sleep(3600)
            if behaviour == "die":
                request.transport.abort()
                return web.Response()
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            if behaviour == "silent_after_headers":
                await asyncio.sleep(3600)
            for number in range(wish.get("chunks", 5)):
                await response.write(f"data: {name} {number}\n\n".encode())
                if behaviour == "die_midway" and number == 1:
                    await asyncio.sleep(0.05)
                    request.transport.abort()
                    return response
                await asyncio.sleep(wish.get("pause_s", 0.01))
            return response

        return handle


class Background:
    """An event loop in a thread, so that servers outlive the test functions that use them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any, timeout_s: float = 60) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

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
    server = await Picker().serve(address)
    print("serving", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_picker_alone(sys.argv[1]))
