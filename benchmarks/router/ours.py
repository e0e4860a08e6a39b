"""Our router under the loads of `peers`, on the same engines: what choosing by SLO costs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.router import envoy_alone
from benchmarks.router.loads import Shape, closed_loop, short_requests_rps
from benchmarks.router.peers import Peer
from benchmarks.router.processes import cpu_s
from benchmarks.router.spec import one_pool
from benchmarks.router.upstream import MODEL
from hrl_planner.router.local import local_router


async def measure(upstreams: Sequence[str], duration_s: float = 10.0) -> Peer:
    """Run the three loads.

    Args:
        upstreams: `ip:port` of each engine.
        duration_s: of each of the loads.
    """
    with tempfile.TemporaryDirectory() as name:
        config = one_pool(Path(name), MODEL, upstreams)
        async with local_router(config, Path(name)) as router:
            pids = list((await router.children()).values())

            def used_s() -> float:
                return sum(map(cpu_s, pids))

            url = router.url
            return Peer(
                version("hrl-planner"),
                await asyncio.to_thread(
                    short_requests_rps, url, MODEL, duration_s=duration_s
                ),
                await asyncio.to_thread(
                    closed_loop, url, MODEL, Shape(),
                    concurrency=64, duration_s=duration_s, cpu_s=used_s,
                ),
                await asyncio.to_thread(
                    envoy_alone.streams, url, MODEL, cpu_s=used_s,
                ),
            )  # fmt: skip
