"""The whole router: Envoy, picker, supervisor, and engines that are processes of their own.

One stack serves the whole module; every test leaves it as it found it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.router.local import LocalRouter, local_router
from hrl_planner.spec import ClusterSpec

pytestmark = pytest.mark.slow


class Stack:
    """Engines of the small spec and a router, on an event loop of their own."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.engines = MockCluster(
            ClusterSpec.load("small"), folder / "workers.yaml", options=["--allow-faults"]
        )
        config = {
            "spec": "small",
            "discovery": {"kind": "file", "path": "workers.yaml"},
            "tokenizer": {"kind": "words"},
            "envoy": {"max_body_bytes": 200_000, "first_byte_timeout_s": 3.0},
        }
        self._entered = local_router(config, folder)
        self.router: LocalRouter = self.run(self._start())

    async def _start(self) -> LocalRouter:
        await self.engines.start({"decode-h100": 2, "prefill-h100": 2})
        return await self._entered.__aenter__()

    def run(self, scenario: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(scenario)

    def close(self) -> None:
        self.run(self._entered.__aexit__(None, None, None))
        self.run(self.engines.stop())
        self.runner.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(self.router.url, timeout=timeout) as session:
            yield session

    async def state(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.router.picker_url}/debug/state") as response,
        ):
            return dict(await response.json())

    async def metric(self, name: str, **labels: str) -> float:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.router.picker_url}/metrics") as response,
        ):
            page = await response.text()
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def until(self, holds: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> None:
        """Wait for the router to see the world in some way."""
        async with asyncio.timeout(within_s):
            while not holds(await self.state()):
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("router"))
    yield made
    made.close()


def body(words: int = 300, start: int = 0, **fields: object) -> dict[str, object]:
    prompt = " ".join(f"w{start + i}" for i in range(words))
    return {"prompt": prompt, "max_tokens": 8, **fields}


async def read_stream(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    chunks = []
    async for line in response.content:
        if line.startswith(b"data: {"):
            chunks.append(json.loads(line[6:]))
    return chunks


def test_a_streamed_answer_comes_from_a_decode_worker_token_by_token(stack: Stack):
    async def scenario() -> None:
        async with stack.client() as client:
            request = body(stream=True, stream_options={"include_usage": True})
            async with client.post("/v1/completions", json=request) as response:
                chunks = await read_stream(response)
                assert response.status == 200
                assert response.headers["x-hrl-worker"].startswith("decode-")
            assert sum(bool(chunk["choices"]) for chunk in chunks) == 8
            assert chunks[-1]["usage"]["prompt_tokens"] == 300
        assert await stack.metric("hrl_router_decisions_total", reason="decode") >= 1
        await stack.until(lambda state: state["under_way"] == 0)
        assert await stack.metric("hrl_router_slo_total", outcome="attained") >= 1

    stack.run(scenario())


def test_chat_and_models_and_health_are_openais(stack: Stack):
    async def scenario() -> None:
        async with stack.client() as client:
            chat = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 3}
            async with client.post("/v1/chat/completions", json=chat) as response:
                answer = await response.json()
                assert answer["choices"][0]["message"]["role"] == "assistant"
                assert answer["usage"]["completion_tokens"] == 3
            async with client.get("/v1/models") as response:
                models = (await response.json())["data"]
                assert models[0]["id"] == "meta-llama/Meta-Llama-3.1-8B"
            async with client.get("/health") as response:
                assert response.status == 200

    stack.run(scenario())


def test_a_prompt_seen_before_goes_to_the_worker_that_holds_it(stack: Stack):
    async def scenario() -> None:
        async with stack.client() as client:
            before = await stack.metric("hrl_router_overlap_ratio_sum")
            for _ in range(3):
                async with client.post("/v1/completions", json=body(800, 5000)) as response:
                    assert response.status == 200
            overlap = await stack.metric("hrl_router_overlap_ratio_sum") - before
            assert overlap > 1.8  # two of the three found all but the last block

    stack.run(scenario())


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b'{"prompt": ', 400, "bad_body"),
        (b'{"prompt": "a", "model": "gpt"}', 404, "model_not_found"),
        (b"", 400, "empty_body"),
        (b'{"prompt": "\xff"}', 400, "bad_body"),
    ],
)
def test_bad_bodies_are_refused_in_openais_words(stack: Stack, raw: bytes, status: int, code: str):
    async def scenario() -> None:
        async with stack.client() as client:
            async with client.post("/v1/completions", data=raw) as response:
                assert response.status == status
                assert (await response.json(content_type=None))["error"]["code"] == code

    stack.run(scenario())


def test_a_client_cannot_choose_its_worker(stack: Stack):
    async def scenario() -> None:
        forged = {
            "x-gateway-destination-endpoint": "127.0.0.1:1",
            "x-gateway-fallback-endpoint": "127.0.0.1:1",
            "x-envoy-attempt-count": "2",
            "x-envoy-original-dst-host": "127.0.0.1:1",
        }
        async with stack.client() as client:
            async with client.post("/v1/completions", json=body(), headers=forged) as response:
                assert response.status == 200

    stack.run(scenario())


def test_a_draining_worker_gets_nothing_new_and_a_new_one_does(stack: Stack):
    async def scenario() -> None:
        engines = stack.engines
        for worker in engines.workers.values():
            worker.draining = worker.pool == "decode-h100" or worker.name == "decode-l40s-0"
        engines.write()
        new = await engines.add("decode-h100")
        try:
            await stack.until(
                lambda state: (
                    sum(w["draining"] for p in state["pools"] for w in p["workers"]) == 3
                    and any(w["name"] == new.name for p in state["pools"] for w in p["workers"])
                )
            )
            async with stack.client() as client:
                async with client.post("/v1/completions", json=body(start=90)) as response:
                    assert response.headers["x-hrl-worker"] == new.name
        finally:
            for worker in engines.workers.values():
                worker.draining = False
            await engines.drain(new.name)
        await stack.until(
            lambda state: all(w["accepting"] for p in state["pools"] for w in p["workers"])
        )

    stack.run(scenario())


def test_streams_outlive_the_picker_and_requests_wait_for_its_successor(stack: Stack):
    async def scenario() -> None:
        async with stack.client() as client:
            long = body(stream=True, max_tokens=400)
            async with client.post("/v1/completions", json=long) as streaming:
                await streaming.content.readline()
                old = (await stack.router.children())["picker"]
                os.kill(old, signal.SIGKILL)
                async with client.post("/v1/completions", json=body(start=7)) as response:
                    assert response.status == 200
                chunks = await read_stream(streaming)
            assert len(chunks) >= 399
            assert (await stack.router.children())["picker"] != old

    stack.run(scenario())


def test_a_killed_worker_costs_only_the_streams_it_was_sending(stack: Stack):
    async def scenario() -> None:
        engines = stack.engines
        victim = await engines.add("decode-h100")
        await stack.until(
            lambda state: any(
                w["name"] == victim.name for p in state["pools"] for w in p["workers"]
            )
        )
        async with stack.client() as client:

            async def one(k: int) -> tuple[str, bool]:
                """Return the worker of a stream, and whether it came whole."""
                request = body(200, start=k * 1000, stream=True, max_tokens=150)
                async with client.post("/v1/completions", json=request) as response:
                    name = response.headers.get("x-hrl-worker", "")
                    try:
                        await response.content.readline()
                        if name == victim.name:
                            sending.set()
                        chunks = await read_stream(response)
                    except aiohttp.ClientPayloadError:
                        chunks = []
                    return name, len(chunks) == 149

            sending = asyncio.Event()
            streams = [asyncio.create_task(one(k)) for k in range(12)]
            await sending.wait()
            engines.kill(victim.name)
            later = [asyncio.create_task(one(k)) for k in range(20, 32)]
            first, second = await asyncio.gather(*streams), await asyncio.gather(*later)
        assert {name for name, whole in first if not whole} == {victim.name}
        assert all(whole for _, whole in second)
        engines.forget(victim.name)
        await stack.until(lambda state: state["under_way"] == 0)

    stack.run(scenario())


def test_a_hanging_worker_loses_no_request_that_had_no_byte_yet(stack: Stack):
    async def scenario() -> None:
        victim = next(w for w in stack.engines.workers.values() if w.pool == "decode-h100")
        fault = f"http://{victim.address}/fault"
        async with stack.client() as client:
            async with client.post(fault, json={"hang": True}) as response:
                assert response.status == 200, await response.text()
            answers = [client.post("/v1/completions", json=body(start=k * 50)) for k in range(6)]
            statuses = [response.status for response in await asyncio.gather(*answers)]
            async with client.post(fault, json={"hang": False}) as response:
                assert response.status == 200
        assert statuses == [200] * 6
        await stack.until(lambda state: state["under_way"] == 0)

    stack.run(scenario())
