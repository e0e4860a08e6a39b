"""What a scraper sees: per-worker counters and histograms, collected now and then.

Workers count; a scrape moves the counts of every live worker into a ring of samples per pool and
starts them anew, which is what a scraper computes from monotone counters. What a worker counted
since the last scrape is lost when it goes. Planners read the ring with a lag (`observe`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from envs.kernel.layout import (
    CLASS_COUNTERS,
    DRAINING,
    EMPTY,
    N_BUCKETS,
    N_COUNTERS,
    READY,
    RING_COUNTERS_AT,
    RING_TTFT_AT,
    STARTING,
    Cluster,
)
from hrl_planner._compiled import inlined, lean

N_CLASS_COUNTERS = len(CLASS_COUNTERS)

_MANTISSA = (1 << 52) - 1
_SQRT_HALF_OCTAVE = int(np.float64(math.sqrt(2.0)).view(np.int64)) & _MANTISSA


@inlined
def bucket(seconds: float) -> int:
    """Return the histogram bucket of a duration."""
    if seconds <= 1e-3:
        return 0
    # Half octaves from the bits of the float: a logarithm here is a tenth of the simulation.
    bits = np.float64(seconds * 1e3).view(np.int64)
    octave = (bits >> 52) - 1023
    upper_half = (bits & _MANTISSA) >= _SQRT_HALF_OCTAVE
    return min(N_BUCKETS - 1, int(2 * octave + upper_half))


@inlined
def count_prefilled(cluster: Cluster, slot: int, request: Any, now_s: float) -> None:
    """Count a prompt whose prefill ended at a worker."""
    waited_s = now_s - request.queued_s
    counter = cluster.counters[slot]
    counter.prefilled += 1.0
    counter.prompt_tokens += request.isl
    counter.cached_tokens += request.cached
    if waited_s <= cluster.g[0].ttft_tightest_s:
        counter.ttft_kept += 1.0
    cluster.histograms[slot, 0, bucket(waited_s)] += 1.0
    kind = cluster.classes[request.class_id]
    kind.prompt_tokens += request.isl
    kind.cached_tokens += request.cached


@inlined
def count_arrival(cluster: Cluster, slot: int, request: Any) -> None:
    """Count a request that reaches a worker."""
    counter = cluster.counters[slot]
    isl = float(request.isl)
    counter.arrivals += 1.0
    counter.isl_sum += isl
    counter.isl_square_sum += isl * isl


@inlined
def count_offered(cluster: Cluster, request: Any) -> None:
    """Count a request at the router."""
    kind = cluster.classes[request.class_id]
    isl = float(request.isl)
    kind.offered += 1.0
    kind.isl_sum += isl
    kind.isl_square_sum += isl * isl


@inlined
def count_finished(cluster: Cluster, slot: int, request: Any) -> None:
    """Count a finished request at its worker and at the router."""
    osl = float(request.osl)
    itl_s = 0.0
    if request.osl > 1:
        itl_s = (request.finish_s - request.first_token_s) / (osl - 1.0)
    counter = cluster.counters[slot]
    counter.finished += 1.0
    counter.osl_sum += osl
    counter.osl_square_sum += osl * osl
    if itl_s <= cluster.g[0].itl_tightest_s:
        counter.itl_kept += 1.0
    cluster.histograms[slot, 1, bucket(itl_s)] += 1.0
    kind = cluster.classes[request.class_id]
    kind.finished += 1.0
    kind.osl_sum += osl
    kind.osl_square_sum += osl * osl
    kind.resolved += 1.0
    if request.first_token_s - request.arrival_s <= kind.ttft_s and itl_s <= kind.itl_s:
        kind.attained += 1.0


@inlined
def _pool_gauges(cluster: Cluster, index: int, gauges: Any) -> None:
    """Write waiting, running and mean KV use of a pool's live workers into `gauges`."""
    pool = cluster.pools[index]
    gauges[0] = 0.0
    gauges[1] = 0.0
    gauges[2] = 0.0
    for slot in range(pool.first, pool.first + pool.n_slots):
        worker = cluster.workers[slot]
        if worker.state == READY or worker.state == DRAINING:
            gauges[0] += worker.prefill_len - worker.n_batch + worker.decode_len
            gauges[1] += worker.n_running + worker.n_batch
            gauges[2] += worker.kv_used
    live = pool.ready + pool.draining
    if live > 0:
        gauges[2] /= live * pool.kv_capacity_blocks


@lean
def scrape(cluster: Cluster, now_s: float) -> None:
    """Collect every pool's counters into the next entry of the ring."""
    g = cluster.g[0]
    entry = g.n_scrapes % cluster.ring_s.size
    cluster.ring_s[entry] = now_s
    for index in range(cluster.pools.size):
        pool = cluster.pools[index]
        row = cluster.ring[entry, index]
        row[:] = 0.0
        if now_s < pool.outage_until_s:
            row[3] = 1.0
            continue
        _pool_gauges(cluster, index, row)
        for slot in range(pool.first, pool.first + pool.n_slots):
            state = cluster.workers[slot].state
            if state == EMPTY or state == STARTING:
                continue
            counter = cluster.counters[slot]
            values = row[RING_COUNTERS_AT:]
            values[0] += counter.arrivals
            values[1] += counter.isl_sum
            values[2] += counter.isl_square_sum
            values[3] += counter.finished
            values[4] += counter.osl_sum
            values[5] += counter.osl_square_sum
            values[6] += counter.prompt_tokens
            values[7] += counter.cached_tokens
            values[8] += counter.output_tokens
            values[9] += counter.prefilled
            values[10] += counter.ttft_kept
            values[11] += counter.itl_kept
            for kind, counted in enumerate((counter.prefilled, counter.finished)):
                if counted > 0.0:
                    at = RING_TTFT_AT + kind * N_BUCKETS
                    for k in range(N_BUCKETS):
                        row[at + k] += cluster.histograms[slot, kind, k]
            forget_counts(cluster, slot)
    for c in range(cluster.classes.size):
        kind_ = cluster.classes[c]
        out = cluster.ring_classes[entry, c]
        out[0] = kind_.offered
        out[1] = kind_.isl_sum
        out[2] = kind_.isl_square_sum
        out[3] = kind_.finished
        out[4] = kind_.osl_sum
        out[5] = kind_.osl_square_sum
        out[6] = kind_.prompt_tokens
        out[7] = kind_.cached_tokens
        out[8] = kind_.attained
        out[9] = kind_.resolved
    g.n_scrapes += 1


@inlined
def forget_counts(cluster: Cluster, slot: int) -> None:
    """Start a slot's counters anew."""
    counter = cluster.counters[slot]
    if counter.prefilled > 0.0:
        cluster.histograms[slot, 0] = 0.0
    if counter.finished > 0.0:
        cluster.histograms[slot, 1] = 0.0
    counter.arrivals = 0.0
    counter.isl_sum = 0.0
    counter.isl_square_sum = 0.0
    counter.finished = 0.0
    counter.osl_sum = 0.0
    counter.osl_square_sum = 0.0
    counter.prompt_tokens = 0.0
    counter.cached_tokens = 0.0
    counter.output_tokens = 0.0
    counter.prefilled = 0.0
    counter.ttft_kept = 0.0
    counter.itl_kept = 0.0


@lean
def sample(cluster: Cluster, now_s: float) -> None:
    """Write one row of the timeline."""
    g = cluster.g[0]
    at = g.n_samples
    if at >= cluster.sample_s.size:
        return
    cluster.sample_s[at] = now_s
    for index in range(cluster.pools.size):
        pool = cluster.pools[index]
        row = cluster.samples[at, index]
        row[0] = pool.target
        row[1] = pool.ready
        row[2] = pool.starting
        row[3] = pool.draining
        row[4] = max(0, pool.target - pool.ready - pool.starting)
        _pool_gauges(cluster, index, row[5:])
    g.n_samples = at + 1


assert N_COUNTERS == 12 and N_CLASS_COUNTERS == 10
