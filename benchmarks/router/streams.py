"""What the router costs a stream: 1,000 at a time, through it and through Envoy alone.

The same engines, the same load client, in turns, and engines faster than two cores can pass on, so
that whatever a token costs on its way shows. Throughput is the sum of the streams' own rates from
first to last token: how fast they begin is the picker benchmark's question. Meanwhile the picker's
processor time is watched: tokens do not pass it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.router import envoy_alone, upstream
from benchmarks.router.processes import cpu_s
from benchmarks.router.spec import one_pool
from benchmarks.router.upstream import MODEL
from hrl_planner.load import Closed, LoadOptions, LoadResult, Target, replay
from hrl_planner.router.local import local_router
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.lengths import Lengths

STREAMS = 1000
_ENGINES = 2
_ITL_MS = 10.0
_OSL = 1200
_ROUNDS = 3
_WATCH_AFTER_S = 4.0
_WATCH_S = 6.0


@dataclass(frozen=True)
class Streams:
    """Medians over rounds.

    Attributes:
        ours_tokens_per_s: through the router.
        alone_tokens_per_s: through Envoy with a static route.
        ratio: median over rounds of the one over the other.
        picker_idle_share: processor share of the picker with no request at all.
        picker_streaming_share: ... while 1,000 streams run and none begins or ends.
        client_cores: processor time of the load client over the run's.
    """

    ours_tokens_per_s: float
    alone_tokens_per_s: float
    ratio: float
    picker_idle_share: float
    picker_streaming_share: float
    client_cores: float


async def _share(pid: int, after_s: float, seconds: float) -> float:
    """Return a process's share of a processor."""
    await asyncio.sleep(after_s)
    before = cpu_s(pid)
    await asyncio.sleep(seconds)
    return (cpu_s(pid) - before) / seconds


async def _streams(url: str) -> LoadResult:
    """Run the streams, all begun at once."""
    trace = independent_requests(
        constant(2.0 * STREAMS, 1.0, isl=100, osl=_OSL),
        seed=0,
        isl=Lengths(100, "constant"),
        osl=Lengths(_OSL, "constant"),
    )
    options = LoadOptions(loop=Closed(STREAMS, requests=STREAMS))
    result = await replay(trace, Target(url, MODEL), options)
    if not result.finished.all():
        raise RuntimeError(f"{(~result.finished).sum()} streams failed: {set(result.detail)}")
    return result


def _tokens_per_s(result: LoadResult) -> float:
    """Return the sum of the streams' rates."""
    spans = result.last_token_s - result.first_token_s
    return float(np.sum((result.tokens - 1) / spans))


async def measure(upstreams: Sequence[str]) -> Streams:
    """Measure with engines that run."""
    ours: list[float] = []
    alone: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        config = one_pool(Path(name), MODEL, upstreams)
        async with local_router(config, Path(name)) as router:
            pid = (await router.children())["picker"]
            idle = await _share(pid, 1.0, 5.0)
            with envoy_alone.serving(upstreams, concurrency=1) as (_, alone_url):
                for _ in range(_ROUNDS):
                    watching = asyncio.create_task(_share(pid, _WATCH_AFTER_S, _WATCH_S))
                    result = await _streams(router.url)
                    ours.append(_tokens_per_s(result))
                    shares.append(await watching)
                    alone.append(_tokens_per_s(await _streams(alone_url)))
    ratio = statistics.median(a / b for a, b in zip(ours, alone, strict=True))
    return Streams(
        statistics.median(ours),
        statistics.median(alone),
        ratio,
        idle,
        statistics.median(shares),
        result.client.cpu_share,
    )


def main() -> Streams:
    """Print the figures."""
    with upstream.running(_ENGINES, _ITL_MS) as upstreams:
        found = asyncio.run(measure(upstreams))
    print(
        f"{STREAMS} streams: {found.ours_tokens_per_s:,.0f} tokens/s through the router, "
        f"{found.alone_tokens_per_s:,.0f} through Envoy alone, ratio {found.ratio:.3f}; picker's "
        f"processor share {found.picker_idle_share:.3f} idle, {found.picker_streaming_share:.3f} "
        f"while streaming; client {found.client_cores:.2f} cores"
    )
    return found


if __name__ == "__main__":
    main()
