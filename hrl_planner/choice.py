"""The router's whole choice for a request, in the two stages of disaggregated serving.

`choose_prefill` at arrival and `choose_decode` at the end of the prompt apply the configured rule
(KV-aware SLO routing, static grid, least loaded, round-robin) with the parts of `routing` and
`slo_routing`. The simulator calls them with its `Cluster`, the router in production with a
`RouteState`; both are named tuples of arrays that hold the fields read here, so the very same
functions choose in both. All they change is the scratch arrays, the round-robin turn, and
`served`, the count that keeps the planner's weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import inlined
from hrl_planner.routing import (
    LEAST_LOADED,
    NOBODY,
    PREFILL,
    REJECT,
    ROUND_ROBIN,
    STATIC_GRID,
    WAIT,
    fits,
    fits_somewhere,
    grid_pool,
    pick_decode_worker,
    pick_least_loaded,
    pick_next,
    pick_pool,
    pick_prefill_worker,
)
from hrl_planner.slo_routing import decode_ratios, hopeless, prefill_ratios

ROUTE_GLOBAL = np.dtype(
    [
        ("router", np.int64),  # see routing.ROUTER_KINDS
        ("overlap_weight", np.float64),
        ("block_tokens", np.int64),  # tokens of a KV block
        ("prefill_turn", np.int64),  # last worker of the round-robin rule
        ("decode_turn", np.int64),
    ],
    align=True,
)


class RouteState(NamedTuple):
    """What a choice reads. P pools, W workers, C classes.

    Attributes:
        g: ROUTE_GLOBAL record, shape (1,).
        pools: POOL_ROUTE records, (P,).
        surfaces: SURFACE records of the pools, (P,).
        table: packed latency values of all surfaces.
        load: WORKER_LOAD records, (W,).
        overlap: cached prompt tokens of the request per worker, (W,).
        flows: the planner's class-to-pool weights, (C, P).
        served: requests per class and pool since the flows were set, (C, P).
        guard_s: TTFT targets the pools are kept for, see `slo_routing.guards_s`, (C, P).
        ratio: written: predicted latency over target per pool, (P,).
        candidate: written: best worker per pool, (P,).
        grid_lengths: static table, edges between rows, (2, R - 1): prefill, decode.
        grid_targets: edges between columns in ms, (2, K - 1).
        grid_pools: pool per cell, (2, R, K).
    """

    g: NDArray[Any]
    pools: NDArray[Any]
    surfaces: NDArray[Any]
    table: NDArray[np.float64]
    load: NDArray[Any]
    overlap: NDArray[np.int64]
    flows: NDArray[np.float64]
    served: NDArray[np.float64]
    guard_s: NDArray[np.float64]
    ratio: NDArray[np.float64]
    candidate: NDArray[np.int64]
    grid_lengths: NDArray[np.float64]
    grid_targets: NDArray[np.float64]
    grid_pools: NDArray[np.int64]


@inlined
def _by_grid(state: Any, isl_tokens: int, request_blocks: int, target_s: float, stage: int) -> int:
    """Apply the static table; the worker inside the named pool is chosen as by the KV router."""
    index = grid_pool(
        state.grid_lengths[stage],
        state.grid_targets[stage],
        state.grid_pools[stage],
        float(isl_tokens),
        target_s * 1e3,
    )
    pool = state.pools[index]
    worker = NOBODY
    if fits(pool, isl_tokens, request_blocks):
        if stage == 1:
            worker = pick_decode_worker(state.load, pool.first, pool.n_slots)
        else:
            worker = pick_prefill_worker(
                state.load,
                pool.first,
                pool.n_slots,
                isl_tokens,
                state.overlap,
                state.g[0].overlap_weight,
            )
    if worker == NOBODY:
        worker = pick_least_loaded(state.pools, state.load, isl_tokens, request_blocks, stage == 1)
    return worker


@inlined
def _rate_decode(state: Any, request_blocks: int, itl_s: float) -> None:
    """Write the decode pools' ratios and workers for a request into the scratch arrays."""
    decode_ratios(
        state.pools,
        state.surfaces,
        state.table,
        state.load,
        state.g[0].block_tokens,
        request_blocks,
        itl_s,
        state.ratio,
        state.candidate,
    )


@inlined
def _by_prefill_slo(
    state: Any,
    class_id: int,
    isl_tokens: int,
    request_blocks: int,
    ttft_left_s: float,
    itl_s: float,
    shed_above: float,
    wait_above: float,
) -> int:
    g = state.g[0]
    prefill_ratios(
        state.pools,
        state.surfaces,
        state.table,
        state.load,
        state.overlap,
        g.overlap_weight,
        g.block_tokens,
        isl_tokens,
        request_blocks,
        ttft_left_s,
        itl_s,
        state.guard_s[class_id],
        state.ratio,
        state.candidate,
    )
    index = pick_pool(
        state.ratio,
        state.flows[class_id],
        state.served[class_id],
        state.pools["price_per_token"],
    )
    if index == NOBODY:
        return NOBODY
    worker = int(state.candidate[index])
    predicted = state.ratio[index]
    if predicted > wait_above:
        return WAIT
    if shed_above < np.inf:
        if state.pools[index].role == PREFILL:
            _rate_decode(state, request_blocks, itl_s)
        else:
            state.ratio[:] = np.inf
        if hopeless(predicted, state.ratio, shed_above):
            return REJECT
    state.served[class_id, index] += 1.0
    return worker


@inlined
def choose_prefill(
    state: Any,
    class_id: int,
    isl_tokens: int,
    request_blocks: int,
    ttft_left_s: float,
    ttft_s: float,
    itl_s: float,
    shed_above: float,
    wait_above: float,
) -> int:
    """Return the worker that computes a prompt; for an aggregated pool, the whole answer.

    Args:
        state: a `RouteState`, or a simulated cluster; `overlap` must be that of this request if
            the rule looks at prefix caches (KV-aware and grid).
        class_id: SLO class.
        isl_tokens: prompt length.
        request_blocks: KV blocks of prompt and output together.
        ttft_left_s: TTFT target less the time since arrival.
        ttft_s: TTFT target; the static table's column.
        itl_s: ITL target.
        shed_above: reject when predicted that many times over target; infinite for never.
        wait_above: answer WAIT when predicted above this everywhere; infinite for never.

    Returns:
        The worker, NOBODY when none accepts now, WAIT, or REJECT.
    """
    g = state.g[0]
    if not fits_somewhere(state.pools, isl_tokens, request_blocks):
        return REJECT
    if g.router == LEAST_LOADED:
        return int(pick_least_loaded(state.pools, state.load, isl_tokens, request_blocks, False))
    if g.router == ROUND_ROBIN:
        worker = pick_next(
            state.pools, state.load, isl_tokens, request_blocks, False, g.prefill_turn
        )
        if worker != NOBODY:
            g.prefill_turn = worker
        return int(worker)
    if g.router == STATIC_GRID:
        return _by_grid(state, isl_tokens, request_blocks, ttft_s, 0)
    return _by_prefill_slo(
        state, class_id, isl_tokens, request_blocks, ttft_left_s, itl_s, shed_above, wait_above
    )


@inlined
def choose_decode(
    state: Any, class_id: int, isl_tokens: int, request_blocks: int, itl_s: float
) -> int:
    """Return the worker of a decode pool that answers a computed prompt, or NOBODY."""
    g = state.g[0]
    if g.router == LEAST_LOADED:
        return int(pick_least_loaded(state.pools, state.load, isl_tokens, request_blocks, True))
    if g.router == ROUND_ROBIN:
        worker = pick_next(state.pools, state.load, isl_tokens, request_blocks, True, g.decode_turn)
        if worker != NOBODY:
            g.decode_turn = worker
        return int(worker)
    if g.router == STATIC_GRID:
        return _by_grid(state, isl_tokens, request_blocks, itl_s, 1)
    _rate_decode(state, request_blocks, itl_s)
    index = pick_pool(
        state.ratio,
        state.flows[class_id],
        state.served[class_id],
        state.pools["price_per_token"],
    )
    if index == NOBODY:
        return NOBODY
    state.served[class_id, index] += 1.0
    return int(state.candidate[index])
