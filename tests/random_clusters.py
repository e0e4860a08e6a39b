"""Random small clusters, traces and what happens to them, for property tests.

Hypothesis chooses the shape of a case (its features, its size and a seed), so that a failing case
shrinks to few features and few requests; the numbers inside come from a generator with that seed.
They are deliberately crooked, and no two prompts are equally long: two events then meet at the same
time only where the semantics make them, and a rounding error of the last bit cannot swap them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from hypothesis import strategies as st

from hrl_planner.planner.policy import Plan
from hrl_planner.spec import (
    BudgetSpec,
    ClusterSpec,
    GridSpec,
    IntervalSpec,
    KvTransferSpec,
    PoolSpec,
    RouterSpec,
    StartupSpec,
)
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace
from tests import builders

GPU_TYPES = ("alpha", "beta")
LAYOUTS = ("disaggregated", "aggregated", "mixed")
ROUTERS = ("round_robin", "least_loaded", "static_grid", "kv_slo")
STARTUPS = ("constant", "uniform", "lognormal")
DURATION_S = 20.0


@dataclass(frozen=True)
class Features:
    """What a case has to have; everything off is the plainest cluster."""

    layout: str
    router: str
    startup: str
    requests: int
    seed: int
    coarse: bool  # many requests at the same time
    prefixes: bool
    chunked: bool  # prompts longer than the token budget of a step
    tight_kv: bool  # little more KV capacity than one request needs
    few_seqs: bool  # batches limited by max_num_seqs
    warmup: bool
    scaling: bool
    tight_budget: bool  # replicas asked for stay pending
    kills: bool
    failures: bool  # workers die by themselves
    hand_edits: bool
    inventory: bool
    flows: bool
    shedding: bool
    slow_link: bool


@dataclass(frozen=True)
class Case:
    """A cluster, its load, and the decisions made for it."""

    features: Features
    spec: ClusterSpec
    trace: Trace
    events: tuple[ClusterEvent, ...]
    plans: tuple[tuple[float, Plan], ...]


def features(routers: tuple[str, ...] = ROUTERS) -> st.SearchStrategy[Features]:
    """All combinations of features."""
    chosen: dict[str, st.SearchStrategy[object]] = {
        "layout": st.sampled_from(LAYOUTS),
        "router": st.sampled_from(routers),
        "startup": st.sampled_from(STARTUPS),
        "requests": st.integers(1, 60),
        "seed": st.integers(0, 2**32 - 1),
    }
    flags = {field.name: st.booleans() for field in fields(Features) if field.type == "bool"}
    return st.builds(Features, **chosen, **flags)


def cases(routers: tuple[str, ...] = ROUTERS) -> st.SearchStrategy[Case]:
    """Random cases over all features."""
    return features(routers).map(make_case)


def make_case(features: Features) -> Case:
    """Fill the chosen features with numbers."""
    rng = np.random.default_rng(features.seed)
    trace = make_trace(rng, features)
    spec = make_spec(rng, features, trace)
    return Case(
        features, spec, trace, make_events(rng, features, spec), make_plans(rng, features, spec)
    )


def make_trace(rng: np.random.Generator, features: Features) -> Trace:
    """Requests that come in a burst, or spread over the run."""
    n = features.requests
    span = DURATION_S * rng.uniform(0.02, 0.9)
    arrivals = np.sort(rng.uniform(0.0, span, n))
    longest = int(rng.integers(60, 900))
    isl = 1 + rng.permutation(longest)[:n]
    osl = np.minimum(rng.geometric(1.0 / rng.integers(2, 40), n), 200)
    if features.coarse:
        arrivals = np.floor(arrivals)
        osl = rng.choice(osl[:3], n)
    blocks = None
    block_tokens = int(rng.choice((16, 64)))
    if features.prefixes:
        blocks = random_prefixes(rng, isl // block_tokens)
    return builders.trace(
        arrivals, isl, osl, blocks=blocks, block_tokens=block_tokens, duration_s=DURATION_S
    )


def random_prefixes(rng: np.random.Generator, counts: np.ndarray) -> list[list[int]]:
    """Walk each request down a random tree: an id stands for the whole path down to it."""
    ids: dict[tuple[int, ...], int] = {}
    rows = []
    for count in counts:
        path: tuple[int, ...] = ()
        row = []
        for _ in range(count):
            branch = 0 if rng.random() < 0.9 else int(rng.integers(1, 4))
            path = (*path, branch)
            row.append(ids.setdefault(path, len(ids)))
        rows.append(row)
    return rows


def random_profile(rng: np.random.Generator, kv_capacity_tokens: int) -> str:
    """Small bumpy surfaces: time grows with every axis, but not monotonically."""
    batch = np.array([1, 2, 4][: rng.integers(1, 3, endpoint=True)])
    tokens = np.array([8, 64, 256, 700][: rng.integers(1, 4, endpoint=True)])
    prefix = np.array([0, 128, 512][: rng.integers(1, 3, endpoint=True)])
    running = np.array([1, 3, 8, 20][: rng.integers(1, 4, endpoint=True)])
    context = np.array([16, 90, 400, 1500][: rng.integers(1, 4, endpoint=True)])
    work = batch[:, None, None] * (tokens[None, :, None] + 0.1 * prefix[None, None, :])
    prefill_ms = rng.uniform(1, 5) + rng.uniform(0.05, 0.5) * work
    load = running[:, None] + 0.01 * running[:, None] * context[None, :]
    decode_ms = rng.uniform(5, 30) + rng.uniform(0.1, 1.0) * load
    return builders.profile_file(
        prefill_batch=batch,
        prefill_new_tokens=tokens,
        prefill_prefix_tokens=prefix,
        prefill_ms=prefill_ms * rng.uniform(0.8, 1.2, prefill_ms.shape),
        decode_batch=running,
        decode_context_tokens=context,
        decode_ms=decode_ms * rng.uniform(0.8, 1.2, decode_ms.shape),
        kv_capacity_tokens=kv_capacity_tokens,
        kv_bytes_per_token=int(rng.integers(1, 100_000)),
    )


def make_spec(rng: np.random.Generator, features: Features, trace: Trace) -> ClusterSpec:
    """Pools of the layout over two GPU types."""
    roles = {
        "disaggregated": ("prefill", "decode"),
        "aggregated": ("aggregated",),
        "mixed": ("prefill", "aggregated", "decode"),
    }[features.layout]
    pools = []
    for role in roles:
        for copy in range(rng.integers(1, 2, endpoint=True)):
            pools.append(make_pool(rng, features, trace, f"{role}-{copy}", role))
    rng.shuffle(pools)  # type: ignore[arg-type]
    classes = (
        builders.slo_class(
            "fast",
            ttft_ms=rng.uniform(20, 400),
            itl_ms=rng.uniform(10, 60),
            assign={"share": 0.6},
            shed_above=rng.uniform(1, 4) if features.shedding else None,
        ),
        builders.slo_class(
            "slow",
            ttft_ms=rng.uniform(400, 4000),
            itl_ms=rng.uniform(30, 200),
            assign={"share": 0.4},
        ),
    )
    slow = features.slow_link
    return ClusterSpec(
        name="random",
        model=builders.MODEL,
        pools=tuple(pools),
        budget=make_budget(rng, features, pools),
        slo_classes=classes,
        router=make_router(rng, features, pools),
        intervals=IntervalSpec(scrape_s=1.0, local_s=1.0, window_s=10.0),
        kv_transfer=KvTransferSpec(
            bandwidth_gb_per_s=rng.uniform(0.01, 0.1) if slow else 50.0,
            latency_ms=rng.uniform(0, 300) if slow else rng.uniform(0, 3),
        ),
        kv_block_tokens=int(rng.choice((1, 16))),
    )


def make_pool(
    rng: np.random.Generator, features: Features, trace: Trace, name: str, role: str
) -> PoolSpec:
    """One pool; small limits where the features ask for them."""
    longest = int((trace.isl_tokens + trace.osl_tokens).max())
    capacity = int(longest * (rng.uniform(0.9, 2.5) if features.tight_kv else 100))
    max_num_seqs = int(rng.integers(1, 4)) if features.few_seqs else 64
    batched = int(rng.integers(40, 300)) if features.chunked else 8192
    max_replicas = int(rng.integers(1, 4, endpoint=True))
    startup: dict[str, float | str] = {
        "distribution": features.startup,
        "mean_s": rng.uniform(0.1, 4.0),
    }
    if features.startup == "uniform":
        startup["spread_s"] = rng.uniform(0.0, 0.1)
    if features.startup == "lognormal":
        startup["cv"] = rng.uniform(0.1, 1.0)
    if features.warmup:
        startup["warmup_s"] = rng.uniform(0.1, 3.0)
        startup["warmup_slowdown"] = rng.uniform(1.1, 3.0)
    return builders.pool(
        role,
        random_profile(rng, max(capacity, 17)),
        name=name,
        gpu_type=str(rng.choice(GPU_TYPES)),
        gpus_per_replica=int(rng.integers(1, 2, endpoint=True)),
        max_replicas=max_replicas,
        initial_replicas=int(
            rng.integers(0 if features.scaling else 1, max_replicas, endpoint=True)
        ),
        startup=StartupSpec(**startup),
        price_per_gpu_hour=rng.uniform(0.5, 4.0),
        power_w_per_gpu=rng.uniform(50.0, 700.0),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(batched, max_num_seqs + 1),
        mtbf_h=rng.uniform(3.0, 60.0) / 3600.0 if features.failures else None,
        latency_scale=float(rng.choice((1.0, rng.uniform(0.5, 2.0)))),
    )


def make_budget(rng: np.random.Generator, features: Features, pools: list[PoolSpec]) -> BudgetSpec:
    """GPUs for every slot, or hardly more than the initial replicas hold."""
    held = {gpu_type: 0 for gpu_type in GPU_TYPES}
    slots = {gpu_type: 0 for gpu_type in GPU_TYPES}
    watts = 0.0
    for pool in pools:
        held[pool.gpu_type] += pool.initial * pool.gpus_per_replica
        slots[pool.gpu_type] += pool.max_replicas * pool.gpus_per_replica
        watts += pool.initial * pool.gpus_per_replica * (pool.power_w_per_gpu or 0.0)
    if not features.tight_budget:
        return BudgetSpec(gpus=slots)
    gpus = {gpu_type: held[gpu_type] + int(rng.integers(0, 3)) for gpu_type in GPU_TYPES}
    limit = rng.integers(3)
    return BudgetSpec(
        gpus=gpus,
        total_gpus=max(1, sum(held.values()) + int(rng.integers(0, 3))) if limit == 1 else None,
        watts=watts + rng.uniform(0.0, 1500.0) if limit == 2 else None,
    )


def make_router(rng: np.random.Generator, features: Features, pools: list[PoolSpec]) -> RouterSpec:
    """The chosen router; grids name random pools that can do the work."""

    def grid(*roles: str) -> GridSpec | None:
        names = [pool.name for pool in pools if pool.role in roles]
        if features.router != "static_grid" or not names:
            return None
        rows = tuple(tuple(str(rng.choice(names)) for _ in range(2)) for _ in range(2))
        return GridSpec(
            isl_edges=(rng.uniform(50, 400),),
            target_edges_ms=(rng.uniform(20, 300),),
            pools=rows,
        )

    return RouterSpec(
        kind=features.router,
        overlap_weight=float(rng.choice((0.0, 1.0, rng.uniform(0.1, 2.0)))),
        prefill_grid=grid("prefill", "aggregated"),
        decode_grid=grid("decode"),
    )


def make_events(
    rng: np.random.Generator, features: Features, spec: ClusterSpec
) -> tuple[ClusterEvent, ...]:
    """What happens to the cluster besides requests."""
    events = []

    def some_time() -> float:
        return float(rng.uniform(0.0, DURATION_S))

    def some_pool() -> PoolSpec:
        return spec.pools[rng.integers(len(spec.pools))]

    if features.kills:
        for _ in range(rng.integers(1, 4)):
            value = float(rng.integers(1, 3))
            events.append(ClusterEvent(some_time(), "kill_worker", some_pool().name, value=value))
    if features.hand_edits:
        for _ in range(2):
            pool = some_pool()
            value = float(rng.integers(0, pool.max_replicas, endpoint=True))
            events.append(ClusterEvent(some_time(), "set_replicas", pool.name, value=value))
    if features.inventory:
        for _ in range(2):
            gpu_type = str(rng.choice(GPU_TYPES))
            value = float(rng.integers(0, 8))
            events.append(ClusterEvent(some_time(), "inventory", gpu_type=gpu_type, value=value))
    return tuple(sorted(events, key=lambda event: event.t_s))


def make_plans(
    rng: np.random.Generator, features: Features, spec: ClusterSpec
) -> tuple[tuple[float, Plan], ...]:
    """Decisions at random times; half the time the last one asks for all replicas."""
    if not (features.scaling or features.flows):
        return ()
    times = np.sort(rng.uniform(0.0, DURATION_S, rng.integers(1, 8)))
    plans = []
    for time_s in times:
        replicas = [pool.initial for pool in spec.pools]
        if features.scaling:
            replicas = [int(rng.integers(0, pool.max_replicas + 1)) for pool in spec.pools]
            if time_s == times[-1] and rng.random() < 0.5:
                replicas = [pool.max_replicas for pool in spec.pools]
        flows = None
        if features.flows:
            flows = rng.uniform(0.0, 2.0, (len(spec.slo_classes), len(spec.pools)))
            flows[rng.random(flows.shape) < 0.3] = 0.0
        plans.append((float(time_s), Plan(np.array(replicas, np.int64), flows)))
    return tuple(plans)
