"""Metric pages for worker pods that have no process: one server answers on all their addresses.

A demand (requests/s and lengths) is divided among the workers that are ready; each page counts what
a worker of its pool's profile would count of its share, under vLLM's names. Nothing is limited:
workers count what is asked of them, in time or not, so that a demand reads the same whoever serves
it. What goes wrong with pages in real clusters can be switched on: cold engines that are slow,
counts that are NaN, pages that are not answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

from hrl_planner.router.local import free_ports
from hrl_planner.spec import ClusterSpec, PoolSpec

Health = Literal["well", "nan", "silent"]

_TTFT_EDGES_S = (0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 80.0)
_ITL_EDGES_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 5.0)
_LENGTH_EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the whole cluster.

    Attributes:
        rps: requests per second.
        isl: tokens per prompt.
        osl: tokens per answer.
    """

    rps: float
    isl: int
    osl: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker has to do, and how it fares.

    Attributes:
        rps: requests per second.
        running: requests in its batch.
        waiting: requests in its queue.
        kv_use: share of its KV blocks in use.
        ttft_s: of each request.
        itl_s: of each request.
    """

    rps: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    kv_use: float = 0.0
    ttft_s: float = 0.0
    itl_s: float = 0.0


@dataclass
class _Worker:
    """What a worker has counted since it was first asked."""

    since_s: float
    at_s: float
    requests: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    histograms: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, edges: tuple[float, ...], value: float, times: float) -> None:
        row = self.histograms.setdefault(name, [0.0] * (len(edges) + 1))
        row[next((i for i, edge in enumerate(edges) if value <= edge), len(edges))] += times
        self.sums[name] = self.sums.get(name, 0.0) + value * times


class Workers:
    """The pages of all workers; a context manager.

    Args:
        spec: pools and their profiles.
        ready: workers that serve, by pool.
        pool_of: the pool of a pod's address, None for a stranger.

    Attributes:
        demand: change it at any time.
        health: what pages are like.
        cold_s, cold_factor: for so long after its first page a worker's latencies are multiplied.
        port: where every worker's page is.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        ready: Callable[[], Mapping[str, int]],
        pool_of: Callable[[str], str | None],
    ) -> None:
        self.demand = Demand(0.0, 1000, 100)
        self.health: Health = "well"
        self.cold_s, self.cold_factor = 0.0, 1.0
        self.port = free_ports(1)[0]
        self.asked = 0
        self._spec = spec
        self._ready = ready
        self._pool_of = pool_of
        self._profiles = dict(zip([p.name for p in spec.pools], spec.profiles(), strict=True))
        self._workers: dict[str, _Worker] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="workers", daemon=True)

    def __enter__(self) -> Workers:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "0.0.0.0", self.port).start())
        self._up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        pool = self._pool_of(address)
        if self.health == "silent" or pool is None:
            raise web.HTTPServiceUnavailable
        self.asked += 1
        return web.Response(text=self.page(address, pool, time.time()))

    def page(self, address: str, pool: str, now_s: float) -> str:
        """Return the page of a worker, brought up to date."""
        worker = self._workers.setdefault(address, _Worker(now_s, now_s))
        share = self.share(pool, cold=now_s - worker.since_s < self.cold_s)
        self._work(worker, share, now_s - worker.at_s)
        worker.at_s = now_s
        return _page(worker, share, broken=self.health == "nan")

    def share(self, pool: str, *, cold: bool = False) -> Share:
        """Return what each ready worker of a pool does now."""
        ready = self._ready()
        spec = next(p for p in self._spec.pools if p.name == pool)
        peers = [p for p in self._spec.pools if p.role == spec.role and ready.get(p.name)]
        if spec not in peers:
            return Share()
        speeds = {p.name: self._speed(p) * ready[p.name] for p in peers}
        rps = self.demand.rps * speeds[pool] / sum(speeds.values()) / ready[pool]
        factor = self.cold_factor if cold else 1.0
        return self._prefill(spec, rps, factor) if spec.role == "prefill" else self._decode(
            spec, rps, factor
        )  # fmt: skip

    def _speed(self, pool: PoolSpec) -> float:
        """Return how many requests a worker gets, beside others of its role."""
        profile = self._profiles[pool.name]
        if pool.role == "prefill":
            return 1.0 / profile.prefill_step_ms(1, 2000)
        return 1.0 / profile.decode_step_ms(32, 2000)

    def _prefill(self, pool: PoolSpec, rps: float, factor: float) -> Share:
        tokens = min(self.demand.isl, pool.max_num_batched_tokens)
        each_s = self._profiles[pool.name].prefill_step_ms(1, tokens) * 1e-3
        each_s *= factor * self.demand.isl / tokens
        busy = rps * each_s
        return Share(
            rps=rps,
            running=min(busy, 1.0),
            waiting=0.0,
            kv_use=min(1.0, busy * 0.1),
            # The queue of a single server, as long as it has one that ends.
            ttft_s=each_s * (1.0 + 0.5 * min(busy, 0.95) / (1.0 - min(busy, 0.95))),
        )

    def _decode(self, pool: PoolSpec, rps: float, factor: float) -> Share:
        profile, context = self._profiles[pool.name], self.demand.isl + 0.5 * self.demand.osl
        most = min(pool.max_num_seqs, profile.kv_capacity_tokens / context)
        batch, itl_s = 1.0, 0.01
        for _ in range(8):  # a longer batch takes longer, and gets longer by it
            itl_s = profile.decode_step_ms(max(batch, 1.0), context) * 1e-3
            batch = min(rps * self.demand.osl * itl_s, most)
        use = batch * context / profile.kv_capacity_tokens
        return Share(rps=rps, running=batch, kv_use=use, itl_s=itl_s * factor, ttft_s=itl_s)

    def _work(self, worker: _Worker, share: Share, for_s: float) -> None:
        done = share.rps * for_s
        worker.requests += done
        worker.prompt_tokens += done * self.demand.isl
        worker.answer_tokens += done * self.demand.osl
        worker.count("time_to_first_token_seconds", _TTFT_EDGES_S, share.ttft_s, done)
        worker.count("request_time_per_output_token_seconds", _ITL_EDGES_S, share.itl_s, done)
        worker.count("request_prompt_tokens", _LENGTH_EDGES, self.demand.isl, done)
        worker.count("request_generation_tokens", _LENGTH_EDGES, self.demand.osl, done)


_EDGES: Mapping[str, tuple[float, ...]] = {
    "time_to_first_token_seconds": _TTFT_EDGES_S,
    "request_time_per_output_token_seconds": _ITL_EDGES_S,
    "request_prompt_tokens": _LENGTH_EDGES,
    "request_generation_tokens": _LENGTH_EDGES,
}


def _page(worker: _Worker, share: Share, *, broken: bool) -> str:
    # Counts are whole, as an engine's: a fraction that is rounded down is no restart.
    values = {
        "num_requests_running": share.running,
        "num_requests_waiting": share.waiting,
        "kv_cache_usage_perc": share.kv_use,
        'request_success_total{finished_reason="length"}': int(worker.requests),
        "prompt_tokens_total": int(worker.prompt_tokens),
        "generation_tokens_total": int(worker.answer_tokens),
        "prefix_cache_queries_total": int(worker.prompt_tokens),
        "prefix_cache_hits_total": 0,
    }
    lines = [f"vllm:{name} {'NaN' if broken else value}" for name, value in values.items()]
    for name, row in worker.histograms.items():
        total = 0
        for edge, count in zip((*map(str, _EDGES[name]), "+Inf"), row, strict=True):
            total += int(count)
            value = "NaN" if broken else str(total)
            lines.append(f'vllm:{name}_bucket{{le="{edge}"}} {value}')
        lines.append(f"vllm:{name}_sum {'NaN' if broken else worker.sums[name]}")
        lines.append(f"vllm:{name}_count {'NaN' if broken else total}")
    return "\n".join(lines) + "\n"
