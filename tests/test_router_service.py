"""The router's way from a body to a destination, against prefill workers that are real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from hrl_planner.router.discovery import Worker
from hrl_planner.router.handoff import Handoff
from hrl_planner.router.hasher import PromptHasher
from hrl_planner.router.request import COMPLETIONS, Call, Refusal
from hrl_planner.router.service import Routed, Router
from hrl_planner.spec import ClusterSpec
from hrl_planner.worker_metrics import series_of
from tests.routers import Bench, aggregated_spec

DECODE = Worker("decode-0", "decode-h100", "10.9.0.1:8000")
OTHER_DECODE = Worker("decode-1", "decode-h100", "10.9.0.2:8000")


class Engine:
    """A prefill worker that answers as it is told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.gate: asyncio.Event | None = None
        self.cancelled = 0
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        params = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_block_ids": [1, 2]}
        return web.json_response({"choices": [], "kv_transfer_params": params})

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post(COMPLETIONS, self.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = "{}:{}".format(*runner.addresses[0][:2])
        try:
            yield self.address
        finally:
            await runner.cleanup()


def make_router(bench: Bench) -> Router:
    handoff = Handoff(bench.config.handoff)
    hasher = PromptHasher(bench.config.tokenizer, bench.spec.kv_block_tokens)
    return Router(bench.config, bench.desk, bench.classes, hasher, handoff, bench.metrics)


def call(isl_tokens: int = 400, **body: object) -> Call:
    fields = {"prompt": list(range(isl_tokens)), "max_tokens": 20, "stream": True, **body}
    return Call("request-1", COMPLETIONS, json.dumps(fields).encode(), trace="00-ab-cd-01")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


@asynccontextmanager
async def routing(
    engines: int = 1, decodes: tuple[Worker, ...] = (DECODE,), **sections: object
) -> AsyncIterator[tuple[Router, list[Engine], Bench]]:
    """A router over real prefill workers and decode workers in name only."""
    made = [Engine() for _ in range(engines)]
    bench = Bench(ClusterSpec.load("small"), [], **sections)
    router = make_router(bench)
    await router._handoff.start()
    contexts = [engine.listening() for engine in made]
    for context in contexts:
        await context.__aenter__()
    found = [Worker(f"prefill-{i}", "prefill-h100", e.address) for i, e in enumerate(made)]
    bench.apply([*found, *decodes])
    try:
        yield router, made, bench
    finally:
        await router._handoff.close()
        for context in contexts:
            await context.__aexit__(None, None, None)


def total_load(bench: Bench) -> dict[str, int]:
    load = bench.fleet.state.load
    return {field: int(load[field].sum()) for field in ("active", "backlog_tokens", "kv_blocks")}


NOTHING = {"active": 0, "backlog_tokens": 0, "kv_blocks": 0}


def test_a_prompt_is_computed_by_a_prefill_worker_and_answered_by_a_decode_worker():
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            routed = await router.route(call(stream_options={"include_usage": True}, seed=5))
            assert routed.destination == DECODE.address and routed.worker == "decode-0"
            first = engine.bodies[0]
            assert first["max_tokens"] == 1 and first["stream"] is False
            assert "stream_options" not in first and first["seed"] == 5
            assert first["kv_transfer_params"]["do_remote_decode"] is True
            assert engine.headers[0]["x-request-id"] == "request-1"
            assert engine.headers[0]["traceparent"] == "00-ab-cd-01"
            body = json.loads(routed.body or b"")
            assert body["kv_transfer_params"]["remote_block_ids"] == [1, 2]
            assert body["max_tokens"] == 20 and body["stream"] is True
            assert bench.load("prefill-0")["active"] == 0
            assert bench.load("decode-0")["active"] == 1
            router.ended(routed.flight)
            assert router.ended(routed.flight) is None
            assert total_load(bench) == NOTHING

    run(scenario)


def test_a_failing_prefill_worker_is_replaced_by_another():
    async def scenario() -> None:
        async with routing(engines=2) as (router, engines, bench):
            engines[0].status = 500  # asked first: the lowest index wins a tie
            routed = await router.route(call())
            assert routed.body is not None
            assert [len(engine.bodies) for engine in engines] == [1, 1]
            router.ended(routed.flight)
            assert total_load(bench) == NOTHING

    run(scenario)


def test_when_all_prefill_workers_fail_the_decode_worker_does_both():
    async def scenario() -> None:
        async with routing(engines=2) as (router, engines, bench):
            for engine in engines:
                engine.status = 503
            routed = await router.route(call())
            assert routed.destination == DECODE.address and routed.body is None
            assert bench.load("decode-0")["backlog_tokens"] == 400
            # Both rest now, so the next request does not even try.
            assert all(not bench.load(f"prefill-{i}")["accepting"] for i in range(2))
            router.ended(routed.flight)
            assert total_load(bench) == NOTHING

    run(scenario)


def test_a_refused_connection_is_a_failure_like_any_other():
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            gone = Worker("prefill-x", "prefill-h100", "127.0.0.1:1")
            bench.apply([gone, DECODE])
            routed = await router.route(call())
            assert routed.body is None and not engine.bodies
            assert not bench.load("prefill-x")["accepting"]

    run(scenario)


def test_what_an_engine_finds_wrong_with_a_request_goes_back_to_its_client():
    async def scenario() -> None:
        async with routing(engines=2) as (router, engines, bench):
            for engine in engines:
                engine.status = 400
            with pytest.raises(Refusal) as refused:
                await router.route(call())
            assert refused.value.status == 400
            assert json.loads(refused.value.body()) == {"error": {"message": "no"}}
            assert sum(len(engine.bodies) for engine in engines) == 1
            assert bench.load("prefill-0")["accepting"] == 1
            assert total_load(bench) == NOTHING

    run(scenario)


def test_a_client_that_leaves_during_prefill_cancels_it_and_frees_its_place():
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            engine.gate = asyncio.Event()
            task = asyncio.create_task(router.route(call()))
            while not engine.bodies:
                await asyncio.sleep(0.005)
            assert bench.load("prefill-0")["active"] == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not engine.cancelled:
                await asyncio.sleep(0.005)
            assert total_load(bench) == NOTHING

    run(scenario)


def test_a_computed_prompt_waits_for_a_decode_worker():
    async def scenario() -> None:
        async with routing(decodes=()) as (router, (engine,), bench):
            task = asyncio.create_task(router.route(call()))
            while not router.somebody_waits:
                await asyncio.sleep(0.005)
            found = Worker("prefill-0", "prefill-h100", engine.address)
            bench.apply([found, DECODE])
            router.look()
            assert (await task).destination == DECODE.address

    run(scenario)


def test_the_fallback_is_another_worker_of_the_pool():
    async def scenario() -> None:
        async with routing(decodes=(DECODE, OTHER_DECODE)) as (router, _, bench):
            routed = await router.route(call())
            assert {routed.destination, routed.fallback} == {DECODE.address, OTHER_DECODE.address}
            alone = [place.worker for place in bench.fleet if place.worker is not OTHER_DECODE]
            bench.apply(alone)
            routed = await router.route(call(401))
            assert routed.fallback == routed.destination

    run(scenario)


def test_sglang_workers_get_the_request_at_once_and_meet_in_a_room():
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            engine.gate = asyncio.Event()
            prefill = Worker(
                "prefill-0",
                "prefill-h100",
                engine.address,
                engine="sglang",
                bootstrap="10.0.0.9:8998",
            )
            bench.apply([prefill, Worker("decode-0", "decode-h100", "10.9.0.1:8000")])
            routed = await router.route(call())  # not held up by the gate
            body = json.loads(routed.body or b"")
            assert (body["bootstrap_host"], body["bootstrap_port"]) == ("10.0.0.9", 8998)
            assert engine.bodies[0]["bootstrap_room"] == body["bootstrap_room"]
            assert engine.bodies[0]["max_tokens"] == 20
            assert bench.load("prefill-0")["active"] == 1
            engine.gate.set()
            while bench.load("prefill-0")["active"]:
                await asyncio.sleep(0.005)
            router.ended(routed.flight)
            assert total_load(bench) == NOTHING

    run(scenario)


async def sglang_at_work(
    router: Router, engine: Engine, bench: Bench, decodes: tuple[Worker, ...]
) -> asyncio.Task[Routed]:
    """Return a request whose prompt an SGLang worker has begun and does not end."""
    engine.gate = asyncio.Event()
    kind = {"engine": "sglang", "bootstrap": "10.0.0.9:8998"}
    bench.apply([Worker("prefill-0", "prefill-h100", engine.address, **kind), *decodes])
    task = asyncio.create_task(router.route(call()))
    while not engine.bodies:
        await asyncio.sleep(0.005)
    return task


async def cancelled(engine: Engine, bench: Bench) -> None:
    """Wait until the engine was told, and nothing is booked."""
    async with asyncio.timeout(10):
        while not engine.cancelled:
            await asyncio.sleep(0.005)
    assert total_load(bench) == NOTHING
    assert bench.load("prefill-0")["accepting"] == 1


@pytest.mark.parametrize("waits_for_decode", [False, True])
def test_a_client_that_leaves_before_its_decode_worker_is_found_cancels_sglangs_prompt(
    waits_for_decode: bool,
):
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            task = await sglang_at_work(router, engine, bench, ())
            while waits_for_decode and not router.somebody_waits:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await cancelled(engine, bench)

    run(scenario)


def test_a_request_that_finds_no_decode_worker_cancels_sglangs_prompt():
    async def scenario() -> None:
        async with routing(admission={"max_wait_s": 0.1}) as (router, (engine,), bench):
            task = await sglang_at_work(router, engine, bench, ())
            async with asyncio.timeout(10):
                while not task.done():
                    router.look()
                    await asyncio.sleep(0.005)
            with pytest.raises(Refusal, match="no decode worker"):
                await task
            await cancelled(engine, bench)

    run(scenario)


def test_an_answer_that_ends_before_sglangs_prompt_cancels_it():
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            routed = await (await sglang_at_work(router, engine, bench, (DECODE,)))
            assert engine.cancelled == 0 and bench.load("prefill-0")["active"] == 1
            router.ended(routed.flight)
            await cancelled(engine, bench)

    run(scenario)


@pytest.mark.parametrize("field", [b'"user": "\xff"', b'"temperature": 1e999'])
def test_a_field_that_only_engines_read_is_refused_where_it_cannot_be_handed_on(field: bytes):
    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            raw = b'{"prompt": "' + b"a " * 4000 + b'", "max_tokens": 2, ' + field + b"}"
            with pytest.raises(Refusal) as refused:
                await router.route(Call("request-1", COMPLETIONS, raw))
            assert (refused.value.status, refused.value.reason) == (400, "bad_body")
            assert not engine.bodies and total_load(bench) == NOTHING

    run(scenario)


def test_what_planners_count_of_a_class_ends_however_a_request_ends():
    """Answered, its client gone, refused by the engine; one that no worker could ever hold is no
    traffic."""

    async def scenario() -> None:
        async with routing() as (router, (engine,), bench):
            routed = await router.route(call(400))
            engine.gate = asyncio.Event()
            other = call(prompt=list(range(5000, 5200)))
            task = asyncio.create_task(router.route(other))
            while len(engine.bodies) < 2:
                await asyncio.sleep(0.005)
            assert class_counts(bench)[:2] == (2.0, 0.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            router.ended(routed.flight)
            router.ended(routed.flight)
            engine.gate, engine.status = None, 400
            for isl_tokens in (300, 3_000_000):
                with pytest.raises(Refusal):
                    await router.route(call(prompt=list(range(9000, 9000 + isl_tokens))))
            assert class_counts(bench) == (3.0, 3.0, 900.0, 400.0**2 + 200.0**2 + 300.0**2)

    run(scenario)


def class_counts(bench: Bench) -> tuple[float, ...]:
    """What was counted over all classes: offered, resolved, prompt tokens and their squares."""
    page = bench.metrics.page().decode()
    names = [
        f"hrl_router_class_{name}_total"
        for name in ("offered", "resolved", "prompt_tokens", "prompt_tokens_squared")
    ]
    series = list(series_of(page, tuple(names)))
    return tuple(sum(s.value for s in series if s.name == name) for name in names)


def test_a_request_that_fits_no_worker_is_refused_with_its_length():
    async def scenario() -> None:
        bench = Bench(aggregated_spec())
        with pytest.raises(Refusal, match="3000000 prompt tokens") as refused:
            await make_router(bench).route(call(3_000_000))
        assert refused.value.reason == "context_length_exceeded"

    run(scenario)


def test_a_request_waits_until_load_falls():
    async def scenario() -> None:
        bench = Bench(aggregated_spec())
        router = make_router(bench)
        legs = [
            bench.desk.flights.book(place, 0.0, new_tokens=10**6, kv_blocks=1, watched=True)
            for place in bench.fleet
        ]
        task: asyncio.Task[Routed] = asyncio.create_task(router.route(call()))
        while not router.somebody_waits:
            await asyncio.sleep(0.001)
        router.look()
        assert not task.done()
        for leg in legs:
            bench.desk.flights.end(leg)
        router.look()
        assert (await task).destination.startswith("10.")

    run(scenario)
