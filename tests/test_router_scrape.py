"""Worker metrics and presence, from servers that behave, hang, close, and die."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from hrl_planner.router.discovery import Worker
from hrl_planner.router.scrape import Scraper, WorkerMetrics, parse
from tests.toy_router import eventually, free_port

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m {x} \\"y\\""} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_running_by_reason gauge
vllm:num_requests_running_by_reason{reason="other"} 99.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.7
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1e+06
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 250.0
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
"""


class Heard:
    """What a scraper says."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[WorkerMetrics]] = {}
        self.presence: dict[str, list[bool]] = {}

    def measured(self, name: str, metrics: WorkerMetrics) -> None:
        self.metrics.setdefault(name, []).append(metrics)

    def present(self, name: str, alive: bool) -> None:
        self.presence.setdefault(name, []).append(alive)


@asynccontextmanager
async def scraping(heard: Heard, *workers: Worker) -> AsyncIterator[Scraper]:
    scraper = Scraper(
        interval_s=0.02, timeout_s=0.05, on_metrics=heard.measured, on_presence=heard.present
    )
    await scraper.start()
    scraper.watch(workers)
    try:
        yield scraper
    finally:
        await scraper.close()


@asynccontextmanager
async def engine(handle: object = None, **options: float) -> AsyncIterator[Worker]:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=VLLM)

    app = web.Application()
    app.router.add_get("/metrics", handle or metrics)  # type: ignore[arg-type]
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True, **options
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        yield Worker("w", "pool", f"127.0.0.1:{port}")
    finally:
        await runner.cleanup()


def test_vllm_counts_are_added_over_ranks_and_shares_averaged() -> None:
    found = parse(VLLM, at_s=7.0)
    assert found == WorkerMetrics(7.0, 2.0, 0.6, 1e6, 250.0, 7.0)


def test_sglang_and_vllms_older_name_are_known() -> None:
    page = 'sglang:num_running_reqs{m="x"} 162.0\nsglang:num_queue_reqs{m="x"} 28.0\n'
    page += 'sglang:token_usage{m="x"} 0.28\nsglang:generation_tokens_total{m="x"} 9.0\n'
    found = parse(page, 0.0)
    assert found is not None
    assert (found.running, found.waiting, found.kv_use) == (162.0, 28.0, 0.28)
    assert found.generation_tokens_total == 9.0
    assert math.isnan(found.prompt_tokens_total)
    older = parse('vllm:gpu_cache_usage_perc{m="x"} 0.25\n', 0.0)
    assert older is not None
    assert older.kv_use == 0.25


def test_dynamos_own_count_serves_only_where_the_engines_is_missing() -> None:
    page = 'dynamo_component_inflight_requests{dynamo_endpoint="generate"} 5\n'
    alone, beside = parse(page, 0.0), parse(page + VLLM, 0.0)
    assert alone is not None
    assert (alone.running, alone.waiting) == (5.0, 0.0)
    assert beside is not None
    assert beside.running == 7.0


def test_a_page_of_something_else_says_nothing() -> None:
    assert parse("# TYPE python_info gauge\npython_info 1.0\n", 0.0) is None
    assert parse("", 0.0) is None


def test_metrics_come_again_and_again() -> None:
    async def scenario() -> None:
        heard = Heard()
        async with engine() as worker, scraping(heard, worker):
            await eventually(lambda: len(heard.metrics.get("w", ())) >= 3)
        first, second = heard.metrics["w"][:2]
        assert first.running == 7.0
        assert second.at_s > first.at_s
        assert heard.presence["w"] == [True]

    asyncio.run(scenario())


def test_a_process_that_is_killed_is_gone_at_once_and_known_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "metrics").write_text(VLLM)

    async def serve() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"),
            cwd=tmp_path,
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )

    async def scenario() -> None:
        heard = Heard()
        process = await serve()
        async with scraping(heard, Worker("w", "pool", f"127.0.0.1:{port}")):
            await eventually(lambda: heard.metrics)
            seen = heard.presence["w"]
            process.kill()
            await process.wait()
            await eventually(lambda: seen[-2:] == [True, False])
            process = await serve()
            await eventually(lambda: seen[-3:] == [True, False, True])
        process.kill()
        await process.wait()

    asyncio.run(scenario())


def test_a_worker_that_is_not_there_is_said_to_be_gone() -> None:
    async def scenario() -> None:
        heard = Heard()
        async with scraping(heard, Worker("w", "pool", f"127.0.0.1:{free_port()}")):
            await eventually(lambda: heard.presence)
        assert heard.presence["w"] == [False]
        assert heard.metrics == {}

    asyncio.run(scenario())


def test_a_server_that_closes_idle_connections_is_still_there() -> None:
    async def scenario() -> None:
        heard = Heard()
        closed = 0

        async def close_soon(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal closed
            await asyncio.sleep(0.01)
            writer.close()
            closed += 1

        server = await asyncio.start_server(close_soon, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        scraper = Scraper(
            interval_s=60, timeout_s=1, on_metrics=heard.measured, on_presence=heard.present
        )
        await scraper.start()
        scraper.watch([Worker("w", "pool", f"127.0.0.1:{port}")])
        await eventually(lambda: closed >= 4)
        await scraper.close()
        server.close()
        assert heard.presence["w"] == [True]

    asyncio.run(scenario())


def test_a_worker_that_hangs_is_gone_until_it_answers() -> None:
    async def scenario() -> None:
        heard = Heard()
        awake = asyncio.Event()

        async def answer(_: web.Request) -> web.Response:
            await awake.wait()
            return web.Response(text=VLLM)

        async with engine(answer) as worker, scraping(heard, worker):
            await eventually(lambda: heard.presence.get("w") == [True, False])
            awake.set()
            await eventually(lambda: heard.presence["w"] == [True, False, True])
            await eventually(lambda: heard.metrics)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        web.HTTPNotFound(),
        web.Response(text="vllm:num_requests_running{ 3 not a metric"),
        web.Response(body=b"\xff\xfe" * 10),
        web.Response(body=b"x" * (5 << 20)),
    ],
)
def test_a_worker_without_readable_metrics_is_still_there(answer: web.Response) -> None:
    async def scenario() -> None:
        heard = Heard()
        asked = 0

        async def handle(_: web.Request) -> web.StreamResponse:
            nonlocal asked
            asked += 1
            if isinstance(answer, web.HTTPException):
                raise web.HTTPNotFound
            return web.Response(body=answer.body)

        async with engine(handle) as worker, scraping(heard, worker):
            await eventually(lambda: asked >= 7)
        assert heard.presence["w"] == [True]
        assert heard.metrics == {}

    asyncio.run(scenario())


def test_a_worker_that_moved_is_watched_at_its_new_address() -> None:
    async def scenario() -> None:
        heard = Heard()
        async with engine() as old, engine() as new, scraping(heard, old) as scraper:
            await eventually(lambda: heard.metrics)
            heard.metrics.clear()
            scraper.watch([new])
            await eventually(lambda: heard.metrics)

    asyncio.run(scenario())


def test_workers_that_come_and_go_leave_nothing_behind() -> None:
    def watching() -> int:
        # Tasks of the server in this loop, one per connection, end when their client's pool does.
        names = (task.get_name() for task in asyncio.all_tasks())
        return sum(name.startswith(("presence of", "metrics of")) for name in names)

    async def scenario() -> None:
        heard = Heard()
        async with engine() as worker, scraping(heard) as scraper:
            for generation in range(20):
                scraper.watch(
                    [Worker(f"w{generation}-{i}", "p", worker.address) for i in range(10)]
                )
                await eventually(lambda g=generation: f"w{g}-9" in heard.presence)
                assert watching() <= 40
            scraper.watch([])
            heard.presence.clear()
            await eventually(lambda: watching() == 0)
            assert heard.presence == {}

    asyncio.run(scenario())
