"""From a spec and a trace to the arrays of a `Cluster`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.kernel import layout
from envs.kernel.layout import NONE, Cluster
from envs.luck import lifetime_draws, startup_draws
from hrl_planner import surface
from hrl_planner._compiled import lean
from hrl_planner.route_table import fill_routes, grid_tables, pack_surfaces
from hrl_planner.routing import ROUTER_KINDS, WORKER_LOAD
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.trace import Trace

MAX_SAMPLES = 2048  # of the timeline: longer runs are sampled further apart
_NO_LIMIT = 1 << 60


def build_cluster(
    spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16], seed: int
) -> Cluster:
    """Allocate a cluster with no replicas; nothing is allocated later.

    Args:
        spec: the cluster.
        trace: the requests.
        class_id: SLO class of each request, shape (N,).
        seed: of start-up times and failures.
    """
    packed = pack_surfaces(spec)
    pools = _pools(spec, packed, trace)
    workers, n_nodes, n_hashes = _workers(pools, bool(trace.block_ids.size))
    n_slots = len(workers)
    n_pools = len(pools)
    n_classes = len(spec.slo_classes)
    intervals = spec.intervals
    ring = math.ceil((intervals.window_s + intervals.scrape_lag_s) / intervals.scrape_s) + 3
    leaves = 1 << max(1, (n_slots - 1).bit_length())
    load = np.zeros(n_slots, WORKER_LOAD)
    load["pool"] = workers["pool"]
    grid_lengths, grid_targets, grid_pools = grid_tables(spec)
    return Cluster(
        g=_globals(spec, trace),
        pools=pools,
        surfaces=packed.record,
        table=packed.table,
        workers=workers,
        load=load,
        heaps=np.zeros((n_slots, int(pools["max_num_seqs"].max())), np.int64),
        tree=np.full(2 * leaves, np.inf),
        requests=_requests(spec, trace, class_id),
        transfers=np.empty(max(1, len(trace)), layout.TRANSFER),
        blocks=trace.block_ids if trace.block_ids.size else np.zeros(1, np.int32),
        cache_nodes=np.zeros(max(1, n_nodes), layout.CACHE_NODE),
        cache_hash=np.full(max(1, n_hashes), -1, np.int64),
        counters=np.zeros(n_slots, layout.COUNTER),
        histograms=np.zeros((n_slots, 2, layout.N_BUCKETS)),
        classes=_classes(spec),
        ring=np.zeros((ring, n_pools, layout.RING_WIDTH)),
        ring_classes=np.zeros((ring, n_classes, len(layout.CLASS_COUNTERS))),
        ring_s=np.zeros(ring),
        startup_s=startup_draws(spec, seed),
        lifetime_s=lifetime_draws(spec, seed),
        flows=np.zeros((n_classes, n_pools)),
        served=np.zeros((n_classes, n_pools)),
        guard_s=np.full((n_classes, n_pools), np.inf),
        ratio=np.zeros(n_pools),
        candidate=np.zeros(n_pools, np.int64),
        overlap=np.zeros(n_slots, np.int64),
        scratch=np.empty(max(1, len(trace)), np.int64),
        gpus_free=np.array([spec.budget.gpus[t] for t in spec.gpu_types], np.int64),
        sample_s=np.zeros(MAX_SAMPLES),
        samples=np.zeros((MAX_SAMPLES, n_pools, len(layout.SAMPLE_FIELDS)), np.float32),
        grid_lengths=grid_lengths,
        grid_targets=grid_targets,
        grid_pools=grid_pools,
    )


def _globals(spec: ClusterSpec, trace: Trace) -> NDArray[Any]:
    g = np.zeros(1, layout.GLOBAL)
    scrape_s = spec.intervals.scrape_s
    g["scrape_s"] = scrape_s
    # Room for the requests that finish after the trace's end.
    span_s = 1.25 * trace.duration_s + 600.0
    g["sample_s"] = scrape_s * max(1, math.ceil(span_s / scrape_s / MAX_SAMPLES))
    g["accounting_end_s"] = trace.duration_s
    g["router"] = ROUTER_KINDS[spec.router.kind]
    g["overlap_weight"] = spec.router.overlap_weight
    g["block_tokens"] = spec.kv_block_tokens
    g["prefix_block_tokens"] = trace.block_tokens
    g["watts_budget"] = np.inf if spec.budget.watts is None else spec.budget.watts
    total = spec.budget.total_gpus
    g["gpus_budget_total"] = _NO_LIMIT if total is None else total
    g["ttft_tightest_s"] = min(c.ttft_ms for c in spec.slo_classes) * 1e-3
    g["itl_tightest_s"] = min(c.itl_ms for c in spec.slo_classes) * 1e-3
    for name in ("prefill_hold", "decode_hold", "outbox"):
        g[f"{name}_head"] = NONE
        g[f"{name}_tail"] = NONE
    g["prefill_turn"] = NONE
    g["decode_turn"] = NONE
    return g


def _pools(spec: ClusterSpec, packed: surface.Surface, trace: Trace) -> NDArray[Any]:
    pools = np.zeros(len(spec.pools), layout.POOL)
    fill_routes(pools, spec, packed)
    for index, (pool, profile) in enumerate(zip(spec.pools, spec.profiles(), strict=True)):
        row = pools[index]
        row["gpu_type"] = spec.gpu_types.index(pool.gpu_type)
        row["gpus"] = pool.gpus_per_replica
        row["watts"] = spec.power_w_per_replica(index)
        row["max_batched_tokens"] = pool.max_num_batched_tokens
        capacity = profile.kv_capacity_tokens
        row["cache_blocks"] = min(capacity // trace.block_tokens, max(1, trace.n_blocks))
        row["warmup_s"] = pool.startup.warmup_s
        row["warmup_slowdown"] = pool.startup.warmup_slowdown
    pools["outage_until_s"] = -np.inf
    return pools


def _workers(pools: NDArray[Any], with_cache: bool) -> tuple[NDArray[Any], int, int]:
    """Return the slots, and how many cache nodes and hash entries they need together."""
    workers = np.zeros(int(pools["n_slots"].sum()), layout.WORKER)
    nodes = hashes = slot = 0
    for index, pool in enumerate(pools):
        for _ in range(int(pool["n_slots"])):
            row = workers[slot]
            row["pool"] = index
            row["cache_at"] = nodes
            row["hash_at"] = hashes
            if with_cache and pool["role"] != layout.DECODE:
                size = int(pool["cache_blocks"])
                entries = 1 << max(1, (2 * size).bit_length())
                row["hash_mask"] = entries - 1
                nodes += size
                hashes += entries
            slot += 1
    workers["boundary_s"] = np.inf
    workers["fail_s"] = np.inf
    for name in ("prefill", "decode"):
        workers[f"{name}_head"] = NONE
        workers[f"{name}_tail"] = NONE
    workers["cache_newest"] = NONE
    workers["cache_oldest"] = NONE
    return workers, nodes, hashes


def _requests(spec: ClusterSpec, trace: Trace, class_id: NDArray[np.int16]) -> NDArray[Any]:
    requests = np.zeros(len(trace), layout.REQUEST)
    _fill_requests(
        requests,
        trace.arrival_s,
        trace.isl_tokens,
        trace.osl_tokens,
        class_id,
        trace.block_offsets,
        spec.kv_block_tokens,
    )
    return requests


@lean
def _fill_requests(
    requests: Any,
    arrival_s: NDArray[np.float64],
    isl_tokens: NDArray[np.int32],
    osl_tokens: NDArray[np.int32],
    class_id: NDArray[np.int16],
    block_offsets: NDArray[np.int64],
    kv_block_tokens: int,
) -> None:
    """Write each request once: column by column, every row would pass the cache ten times."""
    for r in range(arrival_s.size):
        row = requests[r]
        row.arrival_s = arrival_s[r]
        row.isl = isl_tokens[r]
        row.osl = osl_tokens[r]
        row.class_id = class_id[r]
        row.block_at = block_offsets[r]
        row.n_blocks = block_offsets[r + 1] - block_offsets[r]
        row.kv_blocks = (row.isl + row.osl + kv_block_tokens - 1) // kv_block_tokens
        row.first_token_s = np.nan
        row.finish_s = np.nan
        row.next = NONE
        row.prefill_worker = NONE
        row.decode_worker = NONE


def _classes(spec: ClusterSpec) -> NDArray[Any]:
    classes = np.zeros(len(spec.slo_classes), layout.CLASS)
    for row, slo in zip(classes, spec.slo_classes, strict=True):
        row["ttft_s"] = slo.ttft_ms * 1e-3
        row["itl_s"] = slo.itl_ms * 1e-3
        row["value"] = slo.value
        row["shed_above"] = np.inf if slo.shed_above is None else slo.shed_above
    return classes
