"""Envoy's options, its traces, and what becomes of requests when the picker or Envoy ends."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import pytest

from hrl_planner.router import envoy
from tests.toy_router import Background, Rig, eventually


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


def test_every_option_makes_a_bootstrap_that_envoy_takes(tmp_path: Any) -> None:
    config = envoy.EnvoyConfig(
        listen="[::1]:8000",
        picker="127.0.0.1:9002",
        picker_http="unix:/run/picker-http.sock",
        otlp_endpoint="127.0.0.1:4317",
        access_log="/dev/stdout",
    )
    child = envoy.child(config, tmp_path / "envoy.json")
    subprocess.run([*child.argv, "--mode", "validate"], check=True, capture_output=True)


def test_with_a_collector_envoy_adds_its_spans_to_the_clients_trace(
    background: Background, tmp_path: Any
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    exported: list[bytes] = []

    async def export(request: bytes, _: Any) -> bytes:
        exported.append(request)
        return b""

    async def scenario() -> None:
        collector = grpc.aio.server()
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
        collector.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        port = collector.add_insecure_port("127.0.0.1:0")
        await collector.start()
        rig = Rig(tmp_path, {"otlp_endpoint": f"127.0.0.1:{port}"})
        await rig.start()
        try:
            sent = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
            for _ in range(10):
                answer = await rig.post({"to": "a"}, headers=sent)
            received = answer.json()["headers"]["traceparent"]
            assert received.split("-")[1] == trace_id
            assert received != sent["traceparent"]
            await eventually(lambda: any(bytes.fromhex(trace_id) in each for each in exported))
        finally:
            await rig.stop()
            await collector.stop(0)

    background.run(scenario())


def test_requests_outlive_the_picker_and_streams_do_not_notice(
    background: Background, tmp_path: Any
) -> None:
    rig = Rig(tmp_path, own_picker=True)

    async def scenario() -> None:
        stream = asyncio.create_task(rig.post({"to": "a", "worker": "stream"}))
        await eventually(lambda: rig.workers.asked)
        sizes = (1, 100_000, 3_000_000)
        deciding = [rig.post({"to": "a", "delay_s": 0.5, "x": "y" * n}) for n in sizes]
        deciding = [asyncio.create_task(each) for each in deciding]
        await asyncio.sleep(0.2)
        rig.process.kill()
        await rig.process.wait()
        arriving = [asyncio.create_task(rig.post({"to": "a", "x": "y" * n})) for n in sizes]
        await asyncio.sleep(0.5)
        assert [each for each in (stream, *deciding, *arriving) if each.done()] == []
        await rig.start_picker()
        for answer in await asyncio.gather(*deciding, *arriving):
            assert answer.status == 200
        rig.workers.go_on.set()
        assert (await stream).body.endswith(b"[DONE]\n\n")

    background.run(rig.start())
    try:
        background.run(scenario())
    finally:
        background.run(rig.stop())


def test_a_drain_lets_answers_end_and_takes_no_new_ones(
    background: Background, tmp_path: Any
) -> None:
    rig = Rig(tmp_path, {"drain_s": 1})

    async def scenario() -> None:
        stream = asyncio.create_task(rig.post({"to": "a", "worker": "stream"}))
        await eventually(lambda: rig.workers.asked)
        draining = asyncio.create_task(envoy.drain(rig.config))
        async with asyncio.timeout(10):
            while (await rig.get("/health")).status != 503:
                await asyncio.sleep(0.02)
        # A load balancer that has not looked yet still gets its answer.
        assert (await rig.post({"to": "b"})).status == 200
        async with asyncio.timeout(10):
            while not await _refused(rig):
                await asyncio.sleep(0.05)
        assert not draining.done()
        rig.workers.go_on.set()
        assert (await stream).body.endswith(b"[DONE]\n\n")
        async with asyncio.timeout(10):
            await draining

    background.run(rig.start())
    try:
        background.run(scenario())
    finally:
        background.run(rig.stop())


async def _refused(rig: Rig) -> bool:
    try:
        await rig.get("/health")
    except aiohttp.ClientConnectorError:
        return True
    return False
