"""The planner's view: scrapes of the last window, as rows of `hrl_planner.observation`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.kernel.layout import (
    DECODE,
    N_BUCKETS,
    RING_COUNTERS_AT,
    RING_ITL_AT,
    RING_TTFT_AT,
    RING_WIDTH,
    STARTING,
    Cluster,
)
from hrl_planner._compiled import compiled, inlined
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, histogram_quantile

UPPER_EDGES_MS = 2.0 ** ((np.arange(N_BUCKETS) + 1) / 2.0)
_ETA_EDGES_S = (30.0, 60.0, 120.0)

# Columns of a pool's row, in the order of POOL_FIELDS.
(
    _TARGET,
    _QUOTA,
    _READY,
    _STARTING,
    _DRAINING,
    _PENDING,
    _ETA_30S,
    _ETA_60S,
    _ETA_120S,
    _ETA_LATE,
    _ARRIVALS,
    _ISL_MEAN,
    _ISL_STD,
    _OSL_MEAN,
    _OSL_STD,
    _WAITING,
    _RUNNING,
    _KV_USE,
    _HIT_RATE,
    _PROMPT_TOKENS,
    _OUTPUT_TOKENS,
    _TTFT_P50,
    _TTFT_P90,
    _ITL_P50,
    _ITL_P90,
    _TTFT_KEPT,
    _ITL_KEPT,
    _AGE,
) = range(len(POOL_FIELDS))
(
    _C_ARRIVALS,
    _C_ISL_MEAN,
    _C_ISL_STD,
    _C_OSL_MEAN,
    _C_OSL_STD,
    _C_HIT_RATE,
    _C_ATTAINMENT,
    _C_IN_SYSTEM,
) = range(len(CLASS_FIELDS))


@inlined
def _mean_std(total: float, square: float, count: float) -> tuple[float, float]:
    if count <= 0.0:
        return np.nan, np.nan
    mean = total / count
    return mean, np.sqrt(max(0.0, square / count - mean * mean))


@inlined
def _replica_counts(cluster: Cluster, index: int, now_s: float, row: NDArray[np.float64]) -> None:
    """Write the replica columns: these come from the API server and do not lag."""
    pool = cluster.pools[index]
    row[_TARGET] = pool.target
    row[_QUOTA] = pool.quota
    row[_READY] = pool.ready
    row[_STARTING] = pool.starting
    row[_DRAINING] = pool.draining
    row[_PENDING] = max(0, pool.target - pool.ready - pool.starting)
    row[_ETA_30S : _ETA_LATE + 1] = 0.0
    if pool.starting > 0:
        for slot in range(pool.first, pool.first + pool.n_slots):
            worker = cluster.workers[slot]
            if worker.state == STARTING:
                eta_s = worker.ready_s - now_s
                k = 0
                while k < 3 and eta_s > _ETA_EDGES_S[k]:
                    k += 1
                row[_ETA_30S + k] += 1.0


@inlined
def _latencies(window: NDArray[np.float64], role: int, row: NDArray[np.float64]) -> None:
    """Write latency quantiles and attainments; the side a pool does not serve stays unknown."""
    counters = window[RING_COUNTERS_AT:]
    if role != DECODE and counters[9] > 0.0:
        ttft = window[RING_TTFT_AT : RING_TTFT_AT + N_BUCKETS]
        row[_TTFT_P50] = histogram_quantile(ttft, UPPER_EDGES_MS, 0.5)
        row[_TTFT_P90] = histogram_quantile(ttft, UPPER_EDGES_MS, 0.9)
        row[_TTFT_KEPT] = counters[10] / counters[9]
    if counters[3] > 0.0:
        itl = window[RING_ITL_AT : RING_ITL_AT + N_BUCKETS]
        row[_ITL_P50] = histogram_quantile(itl, UPPER_EDGES_MS, 0.5)
        row[_ITL_P90] = histogram_quantile(itl, UPPER_EDGES_MS, 0.9)
        row[_ITL_KEPT] = counters[11] / counters[3]


@compiled
def _observe_pool(
    cluster: Cluster, index: int, now_s: float, newest: int, oldest: int, row: NDArray[np.float64]
) -> None:
    """Write one pool's row from scrapes `oldest` to `newest` (counted from the start)."""
    _replica_counts(cluster, index, now_s, row)
    window = np.zeros(RING_WIDTH)
    size = cluster.ring_s.size
    seen = 0
    latest = -1
    for scrape in range(oldest, newest + 1):
        values = cluster.ring[scrape % size, index]
        if values[3] == 0.0:
            window += values
            seen += 1
            latest = scrape
    row[_ARRIVALS:] = np.nan
    if seen == 0:
        return
    span_s = seen * cluster.g[0].scrape_s
    counters = window[RING_COUNTERS_AT:]
    row[_ARRIVALS] = counters[0] / span_s
    row[_ISL_MEAN], row[_ISL_STD] = _mean_std(counters[1], counters[2], counters[0])
    row[_OSL_MEAN], row[_OSL_STD] = _mean_std(counters[4], counters[5], counters[3])
    gauges = cluster.ring[latest % size, index]
    row[_WAITING] = gauges[0]
    row[_RUNNING] = gauges[1]
    row[_KV_USE] = gauges[2]
    if counters[6] > 0.0:
        row[_HIT_RATE] = counters[7] / counters[6]
    row[_PROMPT_TOKENS] = (counters[6] - counters[7]) / span_s
    row[_OUTPUT_TOKENS] = counters[8] / span_s
    _latencies(window, cluster.pools[index].role, row)
    row[_AGE] = now_s - cluster.ring_s[latest % size]


@compiled
def _observe_class(
    cluster: Cluster, index: int, newest: int, before: int, row: NDArray[np.float64]
) -> None:
    """Write one class's row from the difference of two cumulative snapshots."""
    row[:] = np.nan
    if newest <= before:
        return
    size = cluster.ring_s.size
    last = cluster.ring_classes[newest % size, index]
    counts = last - cluster.ring_classes[before % size, index]
    span_s = cluster.ring_s[newest % size] - cluster.ring_s[before % size]
    row[_C_ARRIVALS] = counts[0] / span_s
    row[_C_ISL_MEAN], row[_C_ISL_STD] = _mean_std(counts[1], counts[2], counts[0])
    row[_C_OSL_MEAN], row[_C_OSL_STD] = _mean_std(counts[4], counts[5], counts[3])
    if counts[6] > 0.0:
        row[_C_HIT_RATE] = counts[7] / counts[6]
    if counts[9] > 0.0:
        row[_C_ATTAINMENT] = counts[8] / counts[9]
    row[_C_IN_SYSTEM] = last[0] - last[9]


@compiled
def observe(
    cluster: Cluster,
    lag_s: float,
    window_s: float,
    pools: NDArray[np.float64],
    classes: NDArray[np.float64],
) -> None:
    """Write what a planner sees now.

    Args:
        cluster: the cluster.
        lag_s: scrapes younger than this are not visible yet.
        window_s: scrapes older than this before the newest visible moment do not count.
        pools: written, shape (P, len(POOL_FIELDS)).
        classes: written, shape (C, len(CLASS_FIELDS)).
    """
    g = cluster.g[0]
    size = cluster.ring_s.size
    # Scrape 0, at time 0, has seen nothing: windows begin behind it.
    newest = g.n_scrapes - 1
    first = max(1, g.n_scrapes - size + 1)
    while newest >= first and cluster.ring_s[newest % size] > g.now_s - lag_s:
        newest -= 1
    oldest = newest
    while oldest > first and cluster.ring_s[(oldest - 1) % size] > g.now_s - lag_s - window_s:
        oldest -= 1
    if newest < first:
        oldest = newest + 1
    for index in range(cluster.pools.size):
        _observe_pool(cluster, index, g.now_s, newest, oldest, pools[index])
    for index in range(cluster.classes.size):
        _observe_class(cluster, index, newest, oldest - 1, classes[index])
