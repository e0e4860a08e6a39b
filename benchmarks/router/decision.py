"""How long a decision takes: 256 workers, 8,192-token prompts, every worker's cache warm.

A decision is everything between a request's body and its destination on one core, network and
prefill excluded: parsing the body, hashing the prompt, looking up every worker's cache, rating
every pool, booking. The prompt comes as token ids, or as text that is hashed in pieces; what a
tokenizer would add, in a thread beside the event loop, `benchmarks.bench_router_kv` tells.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from dataclasses import dataclass

import numpy as np

from hrl_planner.router.classes import Classes
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.desk import Desk
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.router.fleet import Fleet
from hrl_planner.router.handoff import Handoff
from hrl_planner.router.hasher import PromptHasher
from hrl_planner.router.kv import KvIndex, blocks_of_ids
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.request import COMPLETIONS, Call
from hrl_planner.router.service import Router
from hrl_planner.router.warm import warm
from hrl_planner.spec import ClusterSpec

WORKERS = 256
ISL_TOKENS = 8192
_ROUNDS = 2000


@dataclass(frozen=True)
class DecisionTimes:
    """Milliseconds per decision."""

    ids_p50_ms: float
    ids_p99_ms: float
    text_p50_ms: float
    text_p99_ms: float


def wide_spec() -> ClusterSpec:
    """Return the large spec, every pool of it one that answers alone: no prefill to wait for."""
    large = ClusterSpec.load("large")
    pools = [
        {**pool.model_dump(), "role": "aggregated", "max_num_batched_tokens": 8192}
        for pool in large.pools
    ]
    return large.replace(pools=pools)


def make_router(spec: ClusterSpec, tokenizer: str) -> tuple[Router, KvIndex]:
    """Return a router over WORKERS workers, spread over all pools."""
    config = RouterConfig.model_validate(
        {
            "spec": "large",
            "discovery": {"kind": "file", "path": "none"},
            "tokenizer": {"kind": tokenizer},
            "admission": {"queue": False},
        }
    )
    classes = Classes(spec)
    fleet, metrics = Fleet(spec, classes), RouterMetrics(classes.names)
    index = KvIndex(spec.kv_block_tokens)
    workers = [
        Worker(f"{pool.name}-{k}", pool.name, f"10.0.{k}.{p}:8000")
        for k in range(max(pool.max_replicas for pool in spec.pools))
        for p, pool in enumerate(spec.pools)
        if k < pool.max_replicas
    ][:WORKERS]
    fleet.apply(Snapshot(tuple(workers)), 0.0)
    for place in fleet:
        index.add_worker(place.slot, place.worker, 100_000)
    desk = Desk(config, fleet, index, metrics)
    hasher = PromptHasher(config.tokenizer, spec.kv_block_tokens)
    return Router(config, desk, classes, hasher, Handoff(config.handoff), metrics), index


async def _times_ms(router: Router, bodies: list[bytes]) -> np.ndarray:
    """Route and end requests one after another."""
    times = []
    gc.collect()
    gc.freeze()
    for k in range(_ROUNDS):
        call = Call(str(k), COMPLETIONS, bodies[k % len(bodies)])
        start = time.perf_counter()
        routed = await router.route(call)
        times.append(time.perf_counter() - start)
        router.ended(routed.flight)
    return np.array(times[_ROUNDS // 10 :]) * 1e3


def measure() -> DecisionTimes:
    """Measure both kinds of prompt."""
    spec = wide_spec()
    warm(spec)
    rng = np.random.default_rng(0)
    found: list[float] = []
    for tokenizer in ("words", "text"):
        router, index = make_router(spec, tokenizer)
        bodies = []
        for _ in range(4):
            ids = rng.integers(0, 128_000, ISL_TOKENS).tolist()
            prompt = (
                ids if tokenizer == "words" else " ".join(f"{i:x}" for i in ids)[: 4 * ISL_TOKENS]
            )
            bodies.append(
                json.dumps({"prompt": prompt, "max_tokens": 100, "stream": True}).encode()
            )
            if tokenizer == "words":
                hashes = blocks_of_ids(ids, spec.kv_block_tokens).hashes
                for place in router.desk.fleet:
                    index.routed(place.slot, hashes, time.monotonic())
        times = asyncio.run(_times_ms(router, bodies))
        found += [float(np.percentile(times, 50)), float(np.percentile(times, 99))]
    return DecisionTimes(*found)


def main() -> DecisionTimes:
    """Print the figures."""
    found = measure()
    print(f"decision, {WORKERS} workers, {ISL_TOKENS} tokens, ms:     p50    p99")
    print(
        f"  token ids, all caches warm              {found.ids_p50_ms:7.3f} {found.ids_p99_ms:6.3f}"
    )
    print(
        "  text, hashed in pieces                  "
        f"{found.text_p50_ms:7.3f} {found.text_p99_ms:6.3f}"
    )
    return found


if __name__ == "__main__":
    main()
