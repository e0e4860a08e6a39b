"""Is the router what the simulator says it is: four rules, one trace, both worlds.

Two fast and two cheap pools (prefill and decode on H100 and L40S) of mock engines, two workers
each, behind the real router with Envoy; and the same spec, trace and classes in the simulator.
The order of the rules must agree, and attainment may differ by five points.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from envs.simulation import Simulation
from hrl_planner.load import LoadOptions, Target, replay
from hrl_planner.mock_engine.cluster import MockCluster
from hrl_planner.router.local import local_router
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests, sessions
from hrl_planner.workload.lengths import Lengths
from hrl_planner.workload.prefixes import SessionModel
from hrl_planner.workload.trace import Trace
from hrl_planner.workload.transform import merge

RULES = ("kv_slo", "static_grid", "least_loaded", "round_robin")
_BLOCK = 16
_WORKERS_EACH = 2


@dataclass(frozen=True)
class Attainment:
    """One rule in both worlds; shares are over offered requests.

    Attributes:
        rule: of routing.
        simulated: all classes together.
        measured: ...
        by_class: class name to (simulated, measured).
        cached: share of prompt tokens found in a prefix cache, (simulated, measured).
        client_cpu_share: of the load client, to tell whether it was in the way.
    """

    rule: str
    simulated: float
    measured: float
    by_class: dict[str, tuple[float, float]]
    cached: tuple[float, float]
    client_cpu_share: float

    @property
    def gap_points(self) -> float:
        """Percentage points between the two."""
        return 100.0 * abs(self.simulated - self.measured)


def mixed_trace(duration_s: float, seed: int) -> Trace:
    """Return conversations under a tight promise and long single requests under a loose one."""
    rate_rps = 14.0
    chat = sessions(
        constant(0.7 * rate_rps, duration_s, isl=6000, osl=80),
        SessionModel(
            first=Lengths(6000, cv=0.7, high=24_000),
            added=Lengths(2000, cv=0.7, high=8000),
            output=Lengths(80, cv=0.5, high=300),
            turns_scale=3,
            gap_median_s=8,
        ),
        seed=seed,
        label="interactive",
        block_tokens=_BLOCK,
    )
    batch = independent_requests(
        constant(0.3 * rate_rps, duration_s, isl=3000, osl=120),
        seed=seed + 100,
        isl=Lengths(3000, cv=0.5, high=12_000),
        osl=Lengths(120, cv=0.4, high=400),
        label="batch",
    )
    return merge([chat, batch], name="mixed")


def fixed_spec(rule: str) -> ClusterSpec:
    """Return the small spec with the same workers all the time."""
    small = ClusterSpec.load("small")
    pools = [
        {**pool.model_dump(), "initial_replicas": _WORKERS_EACH, "min_replicas": _WORKERS_EACH}
        for pool in small.pools
    ]
    return small.replace(pools=pools, router={**small.router.model_dump(), "kind": rule})


def simulate(spec: ClusterSpec, trace: Trace) -> tuple[dict[str, float], float, float]:
    """Return attainment by class, overall, and the share of cached prompt tokens."""
    run = Simulation(spec, trace, seed=0)
    run.finish()
    result = run.result()
    by_class = {
        item.name: float(result.attained[result.class_id == index].mean())
        for index, item in enumerate(spec.slo_classes)
    }
    cached = float(result.cached_tokens.sum() / result.isl_tokens.sum())
    return by_class, float(result.attained.mean()), cached


async def measure(rule: str, trace: Trace, folder: Path) -> Attainment:
    """Run one rule in both worlds."""
    spec = fixed_spec(rule)
    (folder / "spec.yaml").write_text(
        yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False)
    )
    engines = MockCluster(spec, folder / "workers.yaml")
    config = {
        "spec": "spec.yaml",
        "discovery": {"kind": "file", "path": "workers.yaml"},
        "tokenizer": {"kind": "words"},
    }
    try:
        await engines.start()
        async with local_router(config, folder) as router:
            target = Target(router.url, spec.model, prompt="ids")
            result = await replay(trace, target, LoadOptions(grace_s=30.0), spec=spec)
            cached = await _cached_share(engines)
    finally:
        await engines.stop()
    simulated_by_class, simulated, simulated_cached = simulate(spec, trace)
    by_class = {
        item.name: (
            simulated_by_class[item.name],
            float(result.outcomes.attained[result.class_id == index].mean()),
        )
        for index, item in enumerate(spec.slo_classes)
    }
    return Attainment(
        rule,
        simulated,
        float(result.outcomes.attained.mean()),
        by_class,
        (simulated_cached, cached),
        result.client.cpu_share,
    )


async def _cached_share(engines: MockCluster) -> float:
    """Return the share of prompt tokens that the engines which prefill found in their caches."""
    found = {"vllm:prefix_cache_hits_total": 0.0, "vllm:prefix_cache_queries_total": 0.0}
    async with aiohttp.ClientSession() as session:
        for worker in engines.workers.values():
            if worker.pool.startswith("decode"):
                continue
            async with session.get(f"http://{worker.address}/metrics") as response:
                for family in text_string_to_metric_families(await response.text()):
                    for sample in family.samples:
                        if sample.name in found:
                            found[sample.name] += sample.value
    hits, queries = found.values()
    return hits / max(1.0, queries)


async def compare(duration_s: float, seed: int) -> list[Attainment]:
    """Run all rules one after another on one trace."""
    trace = mixed_trace(duration_s, seed)
    found = []
    for rule in RULES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(await measure(rule, trace, Path(folder)))
    return found


def main(duration_s: float = 60.0, seed: int = 1) -> list[Attainment]:
    """Print the table."""
    found = asyncio.run(compare(duration_s, seed))
    print(f"{'rule':14} {'simulated':>9} {'measured':>9} {'points':>7}  by class; cached; client")
    for row in found:
        classes = ", ".join(f"{k} {a:.3f}/{b:.3f}" for k, (a, b) in row.by_class.items())
        print(
            f"{row.rule:14} {row.simulated:9.3f} {row.measured:9.3f} {row.gap_points:7.1f}  "
            f"{classes}; {row.cached[0]:.2f}/{row.cached[1]:.2f}; {row.client_cpu_share:.2f}"
        )
    return found


if __name__ == "__main__":
    main()
