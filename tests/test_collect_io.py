"""The collector over the network: engines that answer, hang, die and come, and a Prometheus."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from hrl_planner.collect import (
    Collector,
    PageSource,
    PoolWorker,
    PrometheusSource,
    Replicas,
    Target,
)
from hrl_planner.collect.source import Heard
from hrl_planner.errors import HrlPlannerError
from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.observation import PoolObservation
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.spec import ClusterSpec, IntervalSpec
from hrl_planner.worker_metrics import Series
from tests.builders import cluster, linear_profile, pool
from tests.toy_router import eventually, free_port

FAST = IntervalSpec(scrape_s=0.1, scrape_lag_s=0.0, window_s=5.0)
REPLICAS = {"aggregated": Replicas(2, 3, 2)}


class Engine:
    """An engine that finishes 10 requests a second, and what may be wrong with it."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.awake = asyncio.Event()
        self.awake.set()
        self.page: bytes | None = None
        self.asked = 0

    def text(self) -> str:
        done = 10.0 * (time.monotonic() - self.began_s)
        return (
            "vllm:num_requests_running 4.0\nvllm:num_requests_waiting 1.0\n"
            f"vllm:kv_cache_usage_perc 0.5\nvllm:request_success_total {done}\n"
        )

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        await self.awake.wait()
        return web.Response(body=self.text().encode() if self.page is None else self.page)


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Any], path: str) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", path, handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def collecting(source: Any = None, spec: ClusterSpec | None = None) -> AsyncIterator[Any]:
    spec = spec or cluster(pool("aggregated", replicas=2), intervals=FAST)
    collector = Collector(spec, source or PageSource(timeout_s=0.05), grace_s=0.0)
    await collector.start()
    try:
        yield collector
    finally:
        await collector.close()


def worker(name: str, address: str, pool_name: str = "aggregated") -> PoolWorker:
    return PoolWorker(Target(name, address), pool_name, -math.inf)


def seen(collector: Collector) -> PoolObservation:
    return collector.observe(REPLICAS).pool(0)


def test_pages_become_an_observation_and_the_dead_are_made_up_for():
    async def scenario() -> None:
        engine = Engine()
        async with serving(engine.answer, "/metrics") as address, collecting() as collector:
            assert math.isnan(seen(collector).arrivals_rps)
            collector.watch([worker("a", address), worker("dead", f"127.0.0.1:{free_port()}")])
            await eventually(lambda: engine.asked >= 6)
            found = seen(collector)
        assert found.arrivals_rps == pytest.approx(20.0, rel=0.2)
        assert (found.running, found.waiting, found.kv_use) == (8.0, 2.0, 0.5)
        assert 0.0 <= found.metrics_age_s < 1.0
        assert (found.target_replicas, found.quota) == (2.0, 3.0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "page", [b"\xff\xfe", b"vllm:num_requests_running{ no", b"python_info 1\n", b"x" * (5 << 20)]
)
def test_an_engine_that_is_unreadable_does_not_stop_the_others(page: bytes):
    async def scenario() -> None:
        good, bad = Engine(), Engine()
        bad.page = page
        async with (
            serving(good.answer, "/metrics") as one,
            serving(bad.answer, "/metrics") as other,
            collecting() as collector,
        ):
            collector.watch([worker("good", one), worker("bad", other)])
            await eventually(lambda: bad.asked >= 3 and good.asked >= 3)
            assert seen(collector).running == 8.0

    asyncio.run(scenario())


def test_an_engine_that_hangs_ages_and_comes_back():
    async def scenario() -> None:
        engine = Engine()
        async with serving(engine.answer, "/metrics") as address, collecting() as collector:
            collector.watch([worker("a", address)])
            await eventually(lambda: seen(collector).arrivals_rps > 0.0)
            engine.awake.clear()
            await eventually(lambda: seen(collector).metrics_age_s > 0.5)
            engine.awake.set()
            await eventually(lambda: seen(collector).metrics_age_s < 0.3)
            assert seen(collector).arrivals_rps == pytest.approx(10.0, rel=0.2)

    asyncio.run(scenario())


def test_workers_come_and_go():
    async def scenario() -> None:
        engine = Engine()
        async with serving(engine.answer, "/metrics") as address, collecting() as collector:
            collector.watch([worker(f"w{k}", address) for k in range(3)])
            await eventually(lambda: seen(collector).running == 12.0)
            collector.watch([worker("w0", address), worker("x", address, "no such pool")])
            assert seen(collector).running == 4.0
            collector.watch([])
            gone = collector.observe({"aggregated": Replicas(0, 0, 0)}).pool(0)
            assert (gone.running, gone.kv_use) == (0.0, 0.0)
            assert math.isnan(seen(collector).running)  # ready replicas nobody told of
            await asyncio.sleep(0.2)  # the round under way
            asked = engine.asked
            await asyncio.sleep(0.2)
            assert engine.asked == asked

    asyncio.run(scenario())


def test_routers_tell_of_classes():
    async def scenario() -> None:
        metrics = RouterMetrics(("any",))

        async def answer(_: web.Request) -> web.Response:
            metrics.offered(0, 100)
            return web.Response(body=metrics.page())

        async with serving(answer, "/metrics") as address, collecting() as collector:
            collector.watch([], [Target("router", address)])
            await eventually(lambda: collector.observe(REPLICAS).class_field("in_system")[0] >= 3)
            row = collector.observe(REPLICAS).classes[0]
            assert row[0] == pytest.approx(10.0, rel=0.5)
            assert row[1] == pytest.approx(100.0)
            assert row[2] == pytest.approx(0.0, abs=1e-3)

    asyncio.run(scenario())


def test_no_more_pages_are_open_at_once_than_allowed():
    async def scenario() -> None:
        engine, most, now = Engine(), 0, 0

        async def answer(request: web.Request) -> web.Response:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.002)
            now -= 1
            return await engine.answer(request)

        async with serving(answer, "/metrics") as address:
            source = PageSource(timeout_s=5.0, at_once=3)
            await source.start()
            heard: list[str] = []
            targets = [Target(f"w{k}", address) for k in range(40)]
            await source.round(targets, ("vllm:",), 5.0, lambda name, at_s, s: heard.append(name))
            await source.close()
        assert sorted(heard) == sorted(t.name for t in targets)
        assert most <= 3

    asyncio.run(scenario())


class Prometheus:
    """As much of Prometheus' HTTP API as a query needs, over samples of a given age."""

    def __init__(self, rows: list[tuple[dict[str, str], str]], age_s: float) -> None:
        self.rows, self.age_s = rows, age_s
        self.queries: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        self.queries.append(query)
        now_s = 1000.0
        if query.startswith("timestamp(up"):
            workers = {labels["pod"] for labels, _ in self.rows if "pod" in labels}
            result = [
                {"metric": {"pod": name}, "value": [now_s, str(now_s - self.age_s)]}
                for name in sorted(workers)
            ]
        else:
            result = [{"metric": labels, "value": [now_s, value]} for labels, value in self.rows]
        data = {"resultType": "vector", "result": result}
        return web.json_response({"status": "success", "data": data})


def told(prometheus: Prometheus, targets: list[Target], **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def heard(name: str, at_s: float, series: Any) -> None:
        found[name] = (at_s, list(series))

    async def scenario(hear: Heard) -> None:
        async with serving(prometheus.answer, "/api/v1/query") as address:
            source = PrometheusSource(f"http://{address}/", clock=lambda: 50.0, **options)
            await source.start()
            await source.round(targets, ("vllm:b", "vllm:a"), 5.0, hear)
            await source.close()

    asyncio.run(scenario(heard))
    return found


def test_prometheus_tells_values_and_their_age():
    labels = {"__name__": "vllm:a", "pod": "p-0", "le": "0.5", "odd": 'a"b\\\n'}
    prometheus = Prometheus([(labels, "7"), ({"__name__": "vllm:b", "pod": "p-0"}, "NaN")], 8.0)
    found = told(prometheus, [Target("p-0", ""), Target("p.1", "")], selector='namespace="n"')
    at_s, series = found["p-0"]
    assert at_s == 42.0
    assert series[0] == Series("vllm:a", 'pod="p-0",le="0.5",odd="a\\"b\\\\\\n"', 7.0)
    assert math.isnan(series[1].value)
    assert prometheus.queries == [
        'timestamp(up{pod=~"p-0|p\\\\x{2e}1", namespace="n"})',
        '{__name__=~"(?:vllm:a|vllm:b).*", pod=~"p-0|p\\\\x{2e}1", namespace="n"}',
    ]


def test_many_targets_take_several_queries():
    prometheus = Prometheus([], 0.0)
    assert told(prometheus, [Target(f"p{k}", "") for k in range(450)]) == {}
    assert len(prometheus.queries) == 6


def test_a_prometheus_that_fails_is_logged_and_nothing_is_heard(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert told(Prometheus([({"pod": "p", "__name__": "x"}, "no number")], 0.0),
                    [Target("p", "")]) == {}  # fmt: skip
    assert "prometheus does not answer: could not convert string to float" in caplog.text


def test_why_prometheus_does_not_answer_is_told_once_until_it_changes(
    caplog: pytest.LogCaptureFixture,
):
    statuses = iter((503, 503, 503, 500, 500))

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(statuses))

    async def scenario() -> None:
        async with serving(answer, "/api/v1/query") as address:
            source = PrometheusSource(f"http://{address}")
            await source.start()
            for _ in range(5):
                for targets, prefixes in (([Target("p", "")], ("vllm:",)), ([], ("hrl_",))):
                    await source.round(targets, prefixes, 5.0, lambda *_: None)
            await source.close()

    asyncio.run(scenario())
    reasons = [m for m in caplog.messages if "prometheus does not answer: " in m]
    assert [[code for code in ("503", "500") if code in m] for m in reasons] == [["503"], ["500"]]


@pytest.mark.parametrize("url", ["notaurl", "", "prometheus:9090", "http://", "http://p:port"])
def test_what_is_no_url_of_a_prometheus_is_refused_at_once(url: str):
    with pytest.raises(HrlPlannerError, match="is no URL of a server"):
        PrometheusSource(url)


@pytest.mark.slow
def test_real_engines_under_load_are_seen_as_they_are(tmp_path: Path):
    """A prefill and a decode engine as processes; 20 requests/s of known lengths."""
    profile = linear_profile(0.01, decode_ms=2.0)
    spec = cluster(
        pool("prefill", profile), pool("decode", profile),
        intervals=IntervalSpec(scrape_s=0.25, scrape_lag_s=0.0, window_s=4.0),
    )  # fmt: skip
    replicas = {name: Replicas(1, 1, 1) for name in ("prefill", "decode")}

    async def ask(session: aiohttp.ClientSession, address: str, k: int, osl: int) -> None:
        prompt = " ".join(f"w{k}x{n}" for n in range(80))
        body = {"prompt": prompt, "max_tokens": osl, "ignore_eos": True}
        async with session.post(f"http://{address}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()

    async def scenario() -> list[PoolObservation]:
        engines = MockCluster(spec, tmp_path / "workers.yaml", events=False)
        await engines.start()
        try:
            async with collecting(PageSource(timeout_s=0.2), spec) as collector:
                found = list(engines.workers.values())
                collector.watch([worker(w.name, w.address, w.pool) for w in found])
                await asyncio.wait_for(collector.asked.wait(), 5.0)
                async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
                    for k in range(80):
                        for w in found:
                            osl = 1 if w.pool == "prefill" else 30
                            tasks.create_task(ask(session, w.address, k, osl))
                        await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                observation = collector.observe(replicas)
                return [observation.pool(0), observation.pool(1)]
        finally:
            await engines.stop()

    prefill, decode = asyncio.run(scenario())
    assert prefill.arrivals_rps == pytest.approx(20.0, rel=0.3)
    assert decode.osl_mean_tokens == 30.0
    assert prefill.isl_mean_tokens == pytest.approx(decode.isl_mean_tokens)
    assert math.isnan(prefill.osl_mean_tokens) and math.isnan(decode.ttft_p50_ms)
    assert prefill.ttft_attainment == decode.itl_attainment == 1.0
