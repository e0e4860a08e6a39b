"""What faults cost: each under load, against the real router and real engine processes.

Every scenario offers a steady load of streamed requests, lets something go wrong in the middle of
it, and counts what clients lost. Nothing may be lost but the streams a dying engine was sending.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from hrl_planner.load import LoadOptions, LoadResult, SloTarget, Target, replay
from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.router.local import LocalRouter, local_router
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.trace import Trace

RATE_RPS = 8.0
SECONDS = 24.0
FAULT_AT_S = 8.0
_COUNTS = {"prefill-h100": 2, "prefill-l40s": 1, "decode-h100": 3, "decode-l40s": 2}


@dataclass(frozen=True)
class FaultReport:
    """One scenario.

    Attributes:
        name: what went wrong.
        requests: offered.
        failed: that did not come whole.
        excused: of those, streams that an engine which died was sending.
        ttft_p50_ms: over those that had a first token.
        ttft_max_ms: ...
        picker_mb: its memory before and after.
        more: further figures.
    """

    name: str
    requests: int
    failed: int
    excused: int
    ttft_p50_ms: float
    ttft_max_ms: float
    picker_mb: tuple[float, float]
    more: dict[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Requests lost without excuse."""
        return self.failed - self.excused


@dataclass
class Stage:
    """What a scenario works with."""

    engines: MockCluster
    router: LocalRouter
    target: Target

    async def load(self, seconds: float = SECONDS, seed: int = 0) -> LoadResult:
        """Offer the steady load."""
        options = LoadOptions(seed=seed, grace_s=60.0, timeout_s=90.0, send_slo=False)
        return await replay(steady(seconds, seed), self.target, options, slo=SloTarget("batch"))

    async def picker_mb(self) -> float:
        """Return the picker's resident memory."""
        pid = (await self.router.children())["picker"]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def metric(self, name: str) -> float:
        """Return the sum over a metric's samples."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.router.picker_url}/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def steady(seconds: float, seed: int) -> Trace:
    """Return Poisson arrivals of middling requests."""
    return independent_requests(
        constant(RATE_RPS, seconds, isl=800, osl=80),
        seed=seed,
        isl=Lengths(800, cv=0.5, high=4000),
        osl=Lengths(80, cv=0.3, high=200),
    )


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Run engines and a router."""
    spec = ClusterSpec.load("small")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engines = MockCluster(spec, folder / "workers.yaml", options=["--allow-faults"])
        config = {
            "spec": "small",
            "discovery": {"kind": "file", "path": "workers.yaml"},
            "tokenizer": {"kind": "words"},
            "scrape": {"stalled_after_s": 3.0},
            "envoy": {
                "first_byte_timeout_s": 5.0,
                "headers_timeout_s": 5.0,
                "max_body_bytes": 2**20,
            },
        }
        try:
            await engines.start(_COUNTS)
            async with local_router(config, folder) as router:
                target = Target(router.url, spec.model, prompt="ids")
                yield Stage(engines, router, target)
        finally:
            await engines.stop()


async def under_load(
    found: Stage, name: str, fault: Callable[[], Awaitable[dict[str, float]]], victim: str = ""
) -> FaultReport:
    """Run a scenario: load, the fault in the middle of it, and the count."""
    before = await found.picker_mb()
    load = asyncio.create_task(found.load())
    await asyncio.sleep(FAULT_AT_S)
    more = await fault()
    result = await load
    return report(name, result, victim, (before, await found.picker_mb()), more)


def report(
    name: str, result: LoadResult, victim: str, memory: tuple[float, float], more: dict[str, float]
) -> FaultReport:
    """Count what came of a load."""
    failed = ~result.finished
    began = result.tokens > 0
    excused = failed & began & np.array([worker == victim for worker in result.worker])
    ttft_ms = result.ttft_s[np.isfinite(result.ttft_s)] * 1e3
    return FaultReport(
        name,
        len(result),
        int(failed.sum()),
        int(excused.sum()) if victim else 0,
        float(np.median(ttft_ms)),
        float(ttft_ms.max()),
        memory,
        more,
    )


async def calm(found: Stage) -> FaultReport:
    """Nothing goes wrong: what the others compare with."""

    async def fault() -> dict[str, float]:
        return {}

    return await under_load(found, "none", fault)


async def engine_killed(found: Stage) -> FaultReport:
    """A decode worker is killed while it streams; its pod is gone from discovery 3 s later."""
    victim = _busiest(found)

    async def fault() -> dict[str, float]:
        found.engines.kill(victim)
        await asyncio.sleep(3.0)
        found.engines.forget(victim)
        return {"retried": await found.metric("hrl_router_retried_total")}

    result = await under_load(found, "decode engine killed", fault, victim)
    await found.engines.add("decode-h100")
    return result


async def prefill_killed(found: Stage) -> FaultReport:
    """A prefill worker is killed; another one takes its prompts."""
    victim = next(n for n, w in found.engines.workers.items() if w.pool == "prefill-h100")

    async def fault() -> dict[str, float]:
        found.engines.kill(victim)
        await asyncio.sleep(3.0)
        found.engines.forget(victim)
        return {"prefill_failures": await found.metric("hrl_router_prefill_failures_total")}

    result = await under_load(found, "prefill engine killed", fault)
    await found.engines.add("prefill-h100")
    return result


async def engine_hangs(found: Stage) -> FaultReport:
    """A decode worker takes requests and computes nothing for 12 s."""
    victim = _busiest(found)
    url = f"http://{found.engines.workers[victim].address}/fault"

    async def fault() -> dict[str, float]:
        async with aiohttp.ClientSession() as session:
            await session.post(url, json={"hang": True})
            await asyncio.sleep(12.0)
            await session.post(url, json={"hang": False})
        return {"retried": await found.metric("hrl_router_retried_total")}

    return await under_load(found, "decode engine hangs 12 s", fault, victim)


async def picker_killed(found: Stage) -> FaultReport:
    """The picker is killed three times, 4 s apart."""

    async def fault() -> dict[str, float]:
        away = []
        for _ in range(3):
            pid = (await found.router.children())["picker"]
            os.kill(pid, signal.SIGKILL)
            start = time.monotonic()
            while not await _answers(found.router.picker_url):
                await asyncio.sleep(0.02)
            away.append(time.monotonic() - start)
            await asyncio.sleep(max(0.0, 4.0 - away[-1]))
        return {"away_s": float(np.median(away))}

    return await under_load(found, "picker killed three times", fault)


async def events_lost(found: Stage) -> FaultReport:
    """The KV-event streams of two prefill workers are cut; their index becomes approximate."""
    names = [n for n, w in found.engines.workers.items() if w.pool == "prefill-h100"]
    relays = [await _relay(found, name) for name in names]
    found.engines.write()
    await asyncio.sleep(3.0)

    async def fault() -> dict[str, float]:
        live = await found.metric('hrl_router_kv_index_workers{state="live"}')
        for cut in relays:
            await cut()
        await asyncio.sleep(4.0)
        after = await found.metric('hrl_router_kv_index_workers{state="live"}')
        return {"live_before": live, "live_after": after}

    return await under_load(found, "KV events of 2 workers cut", fault)


async def slow_loris(found: Stage) -> FaultReport:
    """Five hundred clients send a header byte a second."""
    url = urlsplit(found.router.url)

    async def one() -> float:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        start = time.monotonic()
        try:
            for byte in b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100:
                writer.write(bytes([byte]))
                if await _ended_within(reader, 1.0):
                    break
        except OSError:
            pass
        writer.close()
        return time.monotonic() - start

    async def fault() -> dict[str, float]:
        held = await asyncio.gather(*(one() for _ in range(500)))
        return {"held_s_max": max(held)}

    return await under_load(found, "500 slow-loris clients", fault)


async def garbage(found: Stage) -> FaultReport:
    """Two thousand bodies that are no requests, some of them too large."""
    rng = random.Random(0)

    async def fault() -> dict[str, float]:
        statuses: dict[int, int] = {}
        async with aiohttp.ClientSession(found.router.url) as session:
            for _ in range(2000):
                raw = rng.choice(
                    (rng.randbytes(200), b'{"prompt": [1, "x"]}', b'{"prompt": {}}', b"[")
                )
                if rng.random() < 0.005:
                    raw = b'{"prompt": "' + b"a" * 3_000_000 + b'"}'
                try:
                    async with session.post("/v1/completions", data=raw) as response:
                        status = response.status
                        await response.read()
                except aiohttp.ClientError:
                    status = 413  # refused and closed while still being sent
                statuses[status] = statuses.get(status, 0) + 1
        return {f"status_{status}": float(count) for status, count in sorted(statuses.items())}

    return await under_load(found, "2,000 malformed or oversized bodies", fault)


async def churn(found: Stage, minutes: float) -> FaultReport:
    """A tenth of the workers is replaced every minute, by draining as a rolling update does."""
    before = await found.picker_mb()
    load = asyncio.create_task(found.load(60.0 * minutes, seed=7))
    replaced = 0
    rng = random.Random(1)
    end_s = time.monotonic() + 60.0 * minutes - 20.0
    per_minute = max(1, round(0.1 * len(found.engines.workers)))
    while time.monotonic() < end_s:
        await asyncio.sleep(60.0 / per_minute)
        name = rng.choice(sorted(found.engines.workers))
        await found.engines.add(found.engines.workers[name].pool)
        await found.engines.drain(name)
        replaced += 1
    result = await load
    memory = (before, await found.picker_mb())
    more = {"replaced": float(replaced), "minutes": minutes}
    return report(
        f"{per_minute} of {len(found.engines.workers)} workers replaced a minute",
        result,
        "",
        memory,
        more,
    )


def _busiest(found: Stage) -> str:
    """Return a decode worker that gets requests: the rules take the lowest slot on a tie."""
    return next(n for n, w in sorted(found.engines.workers.items()) if w.pool == "decode-h100")


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _ended_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), seconds)
    except TimeoutError:
        return False
    return True


async def _relay(found: Stage, name: str) -> Callable[[], Awaitable[None]]:
    """Put a TCP relay before an engine's event socket; returns what cuts it."""
    worker = found.engines.workers[name]
    real = worker.ports["kv_events_port"]
    pipes: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", real)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(_pump(source, sink))
            pipes.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    worker.ports["kv_events_port"] = server.sockets[0].getsockname()[1]

    async def cut() -> None:
        server.close()
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    return cut


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


SCENARIOS = (
    calm,
    engine_killed,
    prefill_killed,
    engine_hangs,
    events_lost,
    picker_killed,
    slow_loris,
    garbage,
)


async def run(minutes_of_churn: float) -> list[FaultReport]:
    """Run all scenarios on one stage; the churn last, when asked for."""
    async with stage() as found:
        reports = []
        for scenario in SCENARIOS:
            reports.append(await scenario(found))
            print_row(reports[-1])
        if minutes_of_churn:
            reports.append(await churn(found, minutes_of_churn))
            print_row(reports[-1])
    return reports


def print_row(row: FaultReport) -> None:
    """Print one line."""
    more = ", ".join(f"{name} {value:g}" for name, value in row.more.items())
    print(
        f"{row.name:38} {row.requests:5} requests, {row.failed:3} failed, {row.excused:3} of "
        f"them by its engine's death; "
        f"TTFT p50 {row.ttft_p50_ms:4.0f} max {row.ttft_max_ms:6.0f} ms; "
        f"picker {row.picker_mb[0]:.0f} -> {row.picker_mb[1]:.0f} MB; {more}",
        flush=True,
    )


def main(minutes_of_churn: float = 0.0) -> list[FaultReport]:
    """Run and print."""
    return asyncio.run(run(minutes_of_churn))


if __name__ == "__main__":
    import sys

    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
