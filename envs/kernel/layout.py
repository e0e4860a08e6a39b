"""Records of the simulated cluster: what each number is, its unit, and where it lives.

All state of one cluster is a `Cluster`, a named tuple of numpy arrays. Arrays are allocated once;
nothing grows with simulated time. A worker is a *slot*: pools own `max_replicas` consecutive
slots, and a replica is a slot that is not EMPTY. Queues are linked through `Request.next`, so a
request waits in at most one of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner.routing import AGGREGATED, DECODE, PREFILL

__all__ = ["AGGREGATED", "DECODE", "PREFILL"]

EMPTY, STARTING, READY, DRAINING = range(4)  # WORKER.state
IDLE, PREFILLING, LEAPING = range(3)  # WORKER.step
UNFINISHED, FINISHED, REJECTED = range(3)  # REQUEST.status

NONE = -1

# Histogram buckets are half octaves of a millisecond: upper edge of bucket k is 2**((k + 1) / 2).
N_BUCKETS = 48

GLOBAL = np.dtype(
    [
        ("now_s", np.float64),
        ("next_scrape_s", np.float64),
        ("scrape_s", np.float64),
        ("next_sample_s", np.float64),
        ("sample_s", np.float64),  # spacing of the timeline's samples
        ("n_samples", np.int64),
        ("n_scrapes", np.int64),  # scrapes so far; the ring index is this modulo its length
        ("next_arrival", np.int64),  # index of the next request of the trace
        ("accounting_end_s", np.float64),  # GPU time is counted up to here
        ("transfer_seq", np.int64),
        ("n_transfers", np.int64),  # KV transfers under way
        ("prefill_hold_head", np.int64),  # requests no ready worker can prefill
        ("prefill_hold_tail", np.int64),
        ("decode_hold_head", np.int64),  # prefilled requests no ready worker can decode
        ("decode_hold_tail", np.int64),
        ("prefill_turn", np.int64),  # last worker of the round-robin router
        ("decode_turn", np.int64),
        ("router", np.int64),  # see hrl_planner.routing
        ("overlap_weight", np.float64),
        ("block_tokens", np.int64),  # tokens of a KV block
        ("prefix_block_tokens", np.int64),  # tokens of a prefix-cache block
        ("outbox_head", np.int64),  # prefilled requests to be given a decode worker now
        ("outbox_tail", np.int64),
        ("release_prefill", np.int64),  # 1: look through the held requests before going on
        ("release_decode", np.int64),
        ("n_unresolved", np.int64),  # offered and neither finished nor rejected
        ("watts_budget", np.float64),
        ("watts_held", np.float64),
        ("gpus_budget_total", np.int64),
        ("gpus_held_total", np.int64),
        ("ttft_tightest_s", np.float64),
        ("itl_tightest_s", np.float64),
    ],
    align=True,
)

POOL = np.dtype(
    [
        ("role", np.int64),
        ("first", np.int64),  # first slot
        ("n_slots", np.int64),
        ("gpu_type", np.int64),
        ("gpus", np.int64),  # per replica
        ("watts", np.float64),  # per replica
        ("max_num_seqs", np.int64),
        ("max_batched_tokens", np.int64),
        ("kv_capacity_tokens", np.int64),
        ("kv_capacity_blocks", np.int64),
        ("decodable_blocks", np.int64),
        ("cache_blocks", np.int64),  # prefix-cache blocks a worker holds
        ("warmup_s", np.float64),
        ("warmup_slowdown", np.float64),
        ("saturated_s_per_token", np.float64),  # prefill seconds per token of a full batch
        ("price_per_token", np.float64),  # only compared between pools of one role
        ("transfer_s_per_token", np.float64),
        ("transfer_latency_s", np.float64),
        ("target", np.int64),  # replicas asked for
        ("quota", np.int64),
        ("ready", np.int64),
        ("starting", np.int64),
        ("draining", np.int64),
        ("n_starts", np.int64),  # starts so far: the index of the next start-up draw
        ("scale_ups", np.int64),  # replicas added by decisions
        ("scale_downs", np.int64),
        ("failures", np.int64),
        ("gpu_seconds", np.float64),
        ("metered_until_s", np.float64),
        ("outage_until_s", np.float64),  # no metrics before this time
    ],
    align=True,
)

WORKER = np.dtype(
    [
        ("step_start_s", np.float64),
        ("base_s", np.float64),  # first iteration of the leap
        ("slope_s", np.float64),  # each further iteration takes this much longer
        ("clock", np.int64),  # decode iterations done since the replica started
        ("leap", np.int64),  # iterations until the next boundary
        ("context_sum", np.int64),  # tokens in the contexts of running requests
        ("kv_used", np.int64),  # KV blocks reserved by running requests
        ("n_running", np.int32),
        ("n_batch", np.int32),  # requests in the prefill step under way
        ("step", np.int32),
        ("state", np.int32),
        ("pool", np.int32),
        ("epoch", np.int32),  # replicas that lived in this slot before
        ("prefill_head", np.int32),
        ("prefill_tail", np.int32),
        ("prefill_len", np.int32),
        ("decode_head", np.int32),
        ("decode_tail", np.int32),
        ("decode_len", np.int32),
        ("ready_s", np.float64),  # when the replica is, or was, ready
        ("fail_s", np.float64),
        ("boundary_s", np.float64),  # end of the step under way, infinite when idle
        ("cache_at", np.int64),  # first prefix-cache node
        ("hash_at", np.int64),  # first entry of the prefix-cache hash table
        ("hash_mask", np.int64),
        ("cache_size", np.int32),
        ("cache_newest", np.int32),
        ("cache_oldest", np.int32),
    ],
    align=True,
)

REQUEST = np.dtype(
    [
        ("arrival_s", np.float64),
        ("first_token_s", np.float64),
        ("finish_s", np.float64),
        ("queued_s", np.float64),  # when it reached the worker it is at
        ("block_at", np.int64),  # first of its prefix block ids
        ("isl", np.int32),
        ("osl", np.int32),
        ("n_blocks", np.int32),
        ("kv_blocks", np.int32),  # reserved while decoding
        ("done", np.int32),  # prompt tokens computed or found in the prefix cache
        ("chunk", np.int32),  # prompt tokens of the step under way
        ("expected", np.int32),  # prompt tokens its worker's backlog counts for it
        ("cached", np.int32),
        ("next", np.int32),
        ("prefill_worker", np.int32),
        ("decode_worker", np.int32),
        ("decode_epoch", np.int32),
        ("class_id", np.int16),
        ("status", np.int8),
        ("restarts", np.int8),
    ],
    align=True,
)

TRANSFER = np.dtype([("at_s", np.float64), ("seq", np.int64), ("request", np.int64)], align=True)

CACHE_NODE = np.dtype([("block", np.int32), ("newer", np.int32), ("older", np.int32)], align=True)

# What a worker's metrics endpoint would have counted since the last scrape.
COUNTER = np.dtype(
    [
        ("arrivals", np.float64),
        ("isl_sum", np.float64),
        ("isl_square_sum", np.float64),
        ("finished", np.float64),
        ("osl_sum", np.float64),
        ("osl_square_sum", np.float64),
        ("prompt_tokens", np.float64),  # of requests prefilled, cached ones included
        ("cached_tokens", np.float64),
        ("output_tokens", np.float64),
        ("prefilled", np.float64),
        ("ttft_kept", np.float64),
        ("itl_kept", np.float64),
    ],
    align=True,
)
N_COUNTERS = len(COUNTER.names or ())

# What the router counted for an SLO class since the start.
CLASS = np.dtype(
    [
        ("ttft_s", np.float64),
        ("itl_s", np.float64),
        ("value", np.float64),
        ("shed_above", np.float64),
        ("offered", np.float64),
        ("isl_sum", np.float64),
        ("isl_square_sum", np.float64),
        ("finished", np.float64),
        ("osl_sum", np.float64),
        ("osl_square_sum", np.float64),
        ("prompt_tokens", np.float64),
        ("cached_tokens", np.float64),
        ("attained", np.float64),
        ("resolved", np.float64),
    ],
    align=True,
)
CLASS_COUNTERS = (CLASS.names or ())[4:]

# Columns of a pool's scrape in the ring: gauges, then the counters, then two histograms.
GAUGES = ("waiting", "running", "kv_use", "lost")
RING_COUNTERS_AT = len(GAUGES)
RING_TTFT_AT = RING_COUNTERS_AT + N_COUNTERS
RING_ITL_AT = RING_TTFT_AT + N_BUCKETS
RING_WIDTH = RING_ITL_AT + N_BUCKETS

SAMPLE_FIELDS = (
    "target",
    "ready",
    "starting",
    "draining",
    "pending",
    "waiting",
    "running",
    "kv_use",
)


class Cluster(NamedTuple):
    """All state of one simulated cluster. P pools, W slots, C classes, N requests, T GPU types.

    Attributes:
        g: GLOBAL record, shape (1,).
        pools: POOL records, (P,).
        surfaces: SURFACE records of the pools, (P,).
        table: packed latency values of all surfaces.
        workers: WORKER records, (W,).
        load: WORKER_LOAD records the router reads, (W,).
        heaps: finish clock << 32 | request of every running request, (W, most seqs of any pool).
        tree: tournament over the slots' next event times, (2 * leaves,).
        requests: REQUEST records, (N,).
        transfers: heap of TRANSFER records, (N,); only as many as are under way are touched.
        blocks: prefix block ids of all requests.
        cache_nodes: CACHE_NODE records of all slots.
        cache_hash: hash entries of all slots, see `prefix_cache`.
        counters: COUNTER values not scraped yet, float64 (W, N_COUNTERS).
        histograms: TTFT and ITL buckets not scraped yet, float64 (W, 2, N_BUCKETS).
        classes: CLASS records, (C,).
        ring: scrapes of the pools, (R, P, RING_WIDTH).
        ring_classes: scrapes of the class counters, cumulative, (R, C, len(CLASS_COUNTERS)).
        ring_s: scrape times, (R,).
        startup_s: start-up draws, (P, draws).
        lifetime_s: time to failure draws, (P, draws).
        flows: the planner's class-to-pool weights, (C, P).
        served: requests per class and pool since the flows were set, (C, P).
        guard_s: TTFT targets the pools are kept for, see `slo_routing.guards_s`, (C, P).
        ratio: scratch, (P,).
        candidate: scratch, (P,).
        scratch: scratch, (N,).
        overlap: scratch, cached tokens per slot, (W,).
        gpus_free: GPUs of each type that are neither held nor over budget, (T,).
        sample_s: times of the timeline, (S,).
        samples: timeline, float32 (S, P, len(SAMPLE_FIELDS)).
        grid_lengths: static router table, edges between rows, (2, R - 1): prefill, decode.
        grid_targets: edges between columns in ms, (2, K - 1).
        grid_pools: pool per cell, (2, R, K).
    """

    g: NDArray[Any]
    pools: NDArray[Any]
    surfaces: NDArray[Any]
    table: NDArray[np.float64]
    workers: NDArray[Any]
    load: NDArray[Any]
    heaps: NDArray[np.int64]
    tree: NDArray[np.float64]
    requests: NDArray[Any]
    transfers: NDArray[Any]
    blocks: NDArray[np.int32]
    cache_nodes: NDArray[Any]
    cache_hash: NDArray[np.int64]
    counters: NDArray[Any]
    histograms: NDArray[np.float64]
    classes: NDArray[Any]
    ring: NDArray[np.float64]
    ring_classes: NDArray[np.float64]
    ring_s: NDArray[np.float64]
    startup_s: NDArray[np.float64]
    lifetime_s: NDArray[np.float64]
    flows: NDArray[np.float64]
    served: NDArray[np.float64]
    guard_s: NDArray[np.float64]
    ratio: NDArray[np.float64]
    candidate: NDArray[np.int64]
    overlap: NDArray[np.int64]
    scratch: NDArray[np.int64]
    gpus_free: NDArray[np.int64]
    sample_s: NDArray[np.float64]
    samples: NDArray[np.float32]
    grid_lengths: NDArray[np.float64]
    grid_targets: NDArray[np.float64]
    grid_pools: NDArray[np.int64]
