"""Which pool serves a request, and which worker of it: the rules of simulator and router alike.

Two choices are made for a disaggregated request, at arrival for prefill and at the end of prefill
for decode, each in the same two steps. The *global* step predicts, for every pool, the request's
latency as a ratio of its target (`slo_routing`) and picks a pool (`pick_pool`); the *local* step
picks the worker with the least work in front of the request, counting what its prefix cache saves
(`pick_prefill_worker`, `pick_decode_worker`).

Everything here is a function of arrays: `WORKER_LOAD` records that the caller keeps up to date,
one record per pool with the fields of `POOL_ROUTE` (more do no harm), and latency surfaces. No
function remembers anything; the round-robin turn and the served counts belong to the caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import lean

Float64Array = NDArray[np.float64]

WORKER_LOAD = np.dtype(
    [
        ("backlog_tokens", np.int64),  # prompt tokens routed here and not computed yet
        ("kv_blocks", np.int64),  # KV blocks of requests routed here, reserved to their full length
        ("active", np.int32),  # requests routed here and not finished
        ("accepting", np.int32),  # 1 when ready and not draining
        ("pool", np.int32),
    ],
    align=True,
)

POOL_ROUTE = np.dtype(
    [
        ("role", np.int64),
        ("first", np.int64),  # index of the pool's first worker
        ("n_slots", np.int64),  # workers of the pool
        ("max_num_seqs", np.int64),
        ("kv_capacity_tokens", np.int64),
        ("kv_capacity_blocks", np.int64),
        ("decodable_blocks", np.int64),  # prefill: most KV blocks any decode pool's worker holds
        ("saturated_s_per_token", np.float64),  # prefill seconds per prompt token, full batch
        ("price_per_token", np.float64),  # compared between pools of one role
        ("transfer_s_per_token", np.float64),
        ("transfer_latency_s", np.float64),
    ],
    align=True,
)

PREFILL, DECODE, AGGREGATED = range(3)
ROLES = ("prefill", "decode", "aggregated")

KV_SLO, ROUND_ROBIN, LEAST_LOADED, STATIC_GRID = range(4)
ROUTER_KINDS = {
    "kv_slo": KV_SLO,
    "round_robin": ROUND_ROBIN,
    "least_loaded": LEAST_LOADED,
    "static_grid": STATIC_GRID,
}

# A pool counts as able to keep a target while its prediction stays below this share of it: the
# prediction knows neither later arrivals nor the batch they join.
SLO_MARGIN = 0.8

NOBODY = -1
REJECT = -2
WAIT = -3


@lean
def prefill_cost_tokens(
    backlog_tokens: int, isl_tokens: int, overlap_tokens: int, overlap_weight: float
) -> float:
    """Return the prompt tokens a worker computes until this request has its first token.

    The prefill term of Dynamo's KV router cost: work in front plus own tokens less the cached ones.
    """
    return backlog_tokens + max(1.0, isl_tokens - overlap_weight * overlap_tokens)


@lean
def pick_prefill_worker(
    load: NDArray[Any],
    first: int,
    count: int,
    isl_tokens: int,
    overlap_tokens: NDArray[np.int64],
    overlap_weight: float,
) -> int:
    """Return the accepting worker with the least prefill cost, the lowest index on a tie.

    Args:
        load: WORKER_LOAD records of all workers.
        first: index of the pool's first worker.
        count: workers of the pool.
        isl_tokens: prompt length.
        overlap_tokens: cached prompt tokens per worker, same indices as `load`.
        overlap_weight: 0 ignores the prefix cache, 1 counts a cached token as saved.

    Returns:
        The worker's index, or NOBODY.
    """
    best = NOBODY
    best_cost = np.inf
    for worker in range(first, first + count):
        if load[worker].accepting != 0:
            cost = prefill_cost_tokens(
                load[worker].backlog_tokens, isl_tokens, overlap_tokens[worker], overlap_weight
            )
            if cost < best_cost:
                best_cost = cost
                best = worker
    return best


@lean
def pick_decode_worker(load: NDArray[Any], first: int, count: int) -> int:
    """Return the accepting worker with the fewest KV blocks, or NOBODY; lowest index on a tie."""
    best = NOBODY
    best_blocks = np.int64(np.iinfo(np.int64).max)
    for worker in range(first, first + count):
        if load[worker].accepting != 0 and load[worker].kv_blocks < best_blocks:
            best_blocks = load[worker].kv_blocks
            best = worker
    return best


@lean
def fits(pool: Any, isl_tokens: int, request_blocks: int) -> bool:
    """Tell whether a request's KV cache fits an empty worker of a pool at all.

    A prefill pool fits a request only if some decode pool then does.
    """
    if pool.role == PREFILL:
        return bool(
            isl_tokens <= pool.kv_capacity_tokens and request_blocks <= pool.decodable_blocks
        )
    return bool(request_blocks <= pool.kv_capacity_blocks)


@lean
def _serves(pool: Any, decode: bool) -> bool:
    """Tell whether a pool takes part in a choice: decode pools in one, all others in the other."""
    return bool((pool.role == DECODE) == decode)


@lean
def pick_least_loaded(
    pools: NDArray[Any],
    load: NDArray[Any],
    isl_tokens: int,
    request_blocks: int,
    decode: bool,
) -> int:
    """Return the accepting worker with the fewest requests over all pools that can serve.

    The lowest index wins a tie; NOBODY when none accepts.
    """
    best = NOBODY
    best_active = np.int64(np.iinfo(np.int32).max)
    for index in range(pools.size):
        pool = pools[index]
        if _serves(pool, decode) and fits(pool, isl_tokens, request_blocks):
            for worker in range(pool.first, pool.first + pool.n_slots):
                if load[worker].accepting != 0 and load[worker].active < best_active:
                    best_active = np.int64(load[worker].active)
                    best = worker
    return best


@lean
def pick_next(
    pools: NDArray[Any],
    load: NDArray[Any],
    isl_tokens: int,
    request_blocks: int,
    decode: bool,
    turn: int,
) -> int:
    """Return the first accepting worker behind `turn`, circularly over all pools, or NOBODY."""
    for step in range(load.size):
        worker = (turn + 1 + step) % load.size
        if load[worker].accepting != 0:
            pool = pools[load[worker].pool]
            if _serves(pool, decode) and fits(pool, isl_tokens, request_blocks):
                return worker
    return NOBODY


@lean
def pick_pool(
    ratio: Float64Array,
    weight: Float64Array,
    served: Float64Array,
    price: Float64Array,
) -> int:
    """Return the pool for a request, or NOBODY when no pool can take it.

    Among pools predicted to keep the target, the planner's weights decide: the pool that is
    furthest behind its share of the requests served so far. Without weights the cheapest pool
    per token that still keeps the target is taken, which leaves fast pools to tight targets.
    When no pool keeps the target, the one that misses it least is.

    Args:
        ratio: predicted latency over target per pool, infinite where the pool cannot take it.
        weight: the planner's class-to-pool flows, all 0 for none.
        served: requests of this class given to each pool since the weights were set.
        price: cost of a token in each pool.
    """
    best = NOBODY
    best_share = np.inf
    cheapest = NOBODY
    best_price = np.inf
    nearest = NOBODY
    best_ratio = np.inf
    for pool in range(ratio.size):
        if ratio[pool] < best_ratio:
            best_ratio = ratio[pool]
            nearest = pool
        if ratio[pool] <= SLO_MARGIN:
            if price[pool] < best_price:
                best_price = price[pool]
                cheapest = pool
            if weight[pool] > 0.0:
                share = (served[pool] + 1.0) / weight[pool]
                if share < best_share:
                    best_share = share
                    best = pool
    if best != NOBODY:
        return best
    if cheapest != NOBODY:
        return cheapest
    return nearest


@lean
def grid_pool(
    isl_edges: Float64Array,
    target_edges: Float64Array,
    pools: NDArray[np.int64],
    length_tokens: float,
    target_ms: float,
) -> int:
    """Return the pool that a static length x target table names (Dynamo's GlobalRouter).

    Args:
        isl_edges: upper edges between rows, shape (R - 1,), ascending.
        target_edges: upper edges between columns, shape (K - 1,), ascending.
        pools: pool index per cell, shape (R, K).
        length_tokens: prompt length (prefill) or context (decode).
        target_ms: TTFT (prefill) or ITL (decode) target.
    """
    row = 0
    while row < isl_edges.size and length_tokens >= isl_edges[row]:
        row += 1
    column = 0
    while column < target_edges.size and target_ms >= target_edges[column]:
        column += 1
    return int(pools[row, column])


@lean
def fits_somewhere(pools: NDArray[Any], isl_tokens: int, request_blocks: int) -> bool:
    """Tell whether any pool could ever take a request that arrives."""
    for index in range(pools.size):
        if pools[index].role != DECODE and fits(pools[index], isl_tokens, request_blocks):
            return True
    return False
