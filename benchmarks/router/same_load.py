"""Our router under the load of `dynamo_path`: two fast and two cheap pools, prefill and decode.

Engines are mock engines at ten times life's speed, so that they are no bottleneck, as the mockers
behind Dynamo's path are none: what saturates is what lies between client and engine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.router.dynamo_path import CLASSES
from benchmarks.router.loads import Measured, Shape, closed_loop
from benchmarks.router.processes import cpu_s
from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.router.local import local_router
from hrl_planner.spec import ClusterSpec

_SPEED = 10.0


def same_spec() -> ClusterSpec:
    """Return the small spec, one worker a pool, with the peer's promises as its classes."""
    small = ClusterSpec.load("small")
    pools = [
        {**pool.model_dump(), "min_replicas": 0, "initial_replicas": 1} for pool in small.pools
    ]
    classes = [
        {"name": item.name, "ttft_ms": item.ttft_ms, "itl_ms": item.itl_ms} for item in CLASSES
    ]
    return small.replace(pools=pools, slo_classes=classes, router={"kind": "kv_slo"})


async def measure(
    duration_s: float = 15.0, concurrencies: Sequence[int] = (64, 128, 256)
) -> dict[int, Measured]:
    """Return a run per number of requests at a time."""
    spec = same_spec()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(
            yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False)
        )
        engines = MockCluster(spec, folder / "workers.yaml", speed=_SPEED)
        config = {
            "spec": "spec.yaml",
            "discovery": {"kind": "file", "path": "workers.yaml"},
            "tokenizer": {"kind": "words"},
        }
        try:
            await engines.start()
            async with local_router(config, folder) as router:
                of_engines = [worker.process.pid for worker in engines.workers.values()]
                pids = [*of_engines, *(await router.children()).values()]
                return {
                    n: await asyncio.to_thread(
                        closed_loop,
                        router.url,
                        spec.model,
                        Shape(api="chat", classes=CLASSES, seed=n),
                        concurrency=n,
                        duration_s=duration_s,
                        cpu_s=lambda: sum(map(cpu_s, pids)),
                        engines_cpu_s=lambda: sum(map(cpu_s, of_engines)),
                    )
                    for n in concurrencies
                }
        finally:
            await engines.stop()


def saturated(runs: dict[int, Measured]) -> Measured:
    """Return the run with the most requests per second."""
    return max(runs.values(), key=lambda run: run.requests_rps)


def main() -> Measured:
    """Print the figures."""
    runs = asyncio.run(measure())
    for n, run in runs.items():
        print(
            f"our path, {n:3} at a time: {run.requests_rps:6.1f} requests/s, "
            f"{run.tokens_per_s:7,.0f} tokens/s, {run.failed} failed {run.first_error}, "
            f"TTFT p50 {run.ttft_p50_ms:.0f} ms, {run.stack_ms_per_request:.1f} ms of processor "
            f"per request, {run.engines_ms_per_request:.1f} of it the engines', "
            f"client {run.client_cores:.2f} cores"
        )
    return saturated(runs)


if __name__ == "__main__":
    main()
