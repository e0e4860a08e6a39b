"""What a request's latency would be in every pool: the predictions of the KV-aware SLO router.

Each prediction is a ratio to the request's target, so that pools of any kind compare: below 1 the
target is kept. `routing.pick_pool` chooses among them. What is predicted comes from the latency
surfaces and the live load alone; `guards_s` adds what the planner wants pools kept for, and
`hopeless` says when a request had better be refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import lean
from hrl_planner.routing import (
    AGGREGATED,
    DECODE,
    NOBODY,
    PREFILL,
    fits,
    pick_decode_worker,
    pick_prefill_worker,
)
from hrl_planner.surface import decode_step_s, prefill_step_s

Float64Array = NDArray[np.float64]

# Share of a class's flow below which a pool is not kept for it.
_FLOW_TO_SPEAK_OF = 0.01


@lean
def prefill_ratio(
    surface: Any,
    table: Float64Array,
    saturated_s_per_token: float,
    backlog_tokens: int,
    isl_tokens: int,
    cached_tokens: int,
    extra_s: float,
    target_s: float,
) -> float:
    """Return the predicted time to first token as a ratio of the target left.

    Args:
        surface: SURFACE record of the pool.
        table: packed values.
        saturated_s_per_token: seconds per prompt token of a full batch.
        backlog_tokens: prompt tokens in front at the worker.
        isl_tokens: prompt length.
        cached_tokens: prompt tokens the worker's prefix cache holds.
        extra_s: KV transfer and first decode step behind the prefill.
        target_s: what is left of the TTFT target; not above 0 means it is missed already.
    """
    new_tokens = max(1, isl_tokens - cached_tokens)
    own_s = prefill_step_s(surface, table, 1.0, new_tokens, isl_tokens - new_tokens)
    predicted_s = backlog_tokens * saturated_s_per_token + own_s + extra_s
    return predicted_s / max(target_s, 1e-3)


@lean
def decode_ratio(
    surface: Any,
    table: Float64Array,
    active: int,
    kv_blocks: int,
    capacity_blocks: int,
    block_tokens: int,
    request_blocks: int,
    max_num_seqs: int,
    target_s: float,
) -> float:
    """Return the predicted inter-token latency at a worker as a ratio of the target.

    A worker whose KV blocks or sequences run out would let the request wait: the ratio then lies
    above 1 and grows with the overflow, so that such a worker is the last choice.
    """
    batch = active + 1
    blocks = kv_blocks + request_blocks
    # Reserved blocks hold a request's final length; half of the output is there on average, and
    # outputs are short against prompts, so the reservation stands for the context.
    context = blocks * block_tokens / batch
    ratio = decode_step_s(surface, table, min(batch, max_num_seqs), context) / target_s
    overflow = max(blocks / capacity_blocks, batch / max_num_seqs)
    if overflow > 1.0:
        ratio = max(ratio, 1.0) + overflow
    return ratio


@lean
def prefill_ratios(
    pools: NDArray[Any],
    surfaces: NDArray[Any],
    table: Float64Array,
    load: NDArray[Any],
    overlap_tokens: NDArray[np.int64],
    overlap_weight: float,
    block_tokens: int,
    isl_tokens: int,
    request_blocks: int,
    ttft_left_s: float,
    itl_s: float,
    guard_s: Float64Array,
    ratio: Float64Array,
    candidate: NDArray[np.int64],
) -> None:
    """Write, per pool, the best worker and its predicted latency over target.

    Args:
        pools: POOL_ROUTE records, shape (P,).
        surfaces: SURFACE records, shape (P,).
        table: packed latency values.
        load: WORKER_LOAD records, shape (W,).
        overlap_tokens: cached prompt tokens per worker, shape (W,).
        overlap_weight: see `pick_prefill_worker`.
        block_tokens: tokens of a KV block.
        isl_tokens: prompt length.
        request_blocks: KV blocks of prompt and output together.
        ttft_left_s: TTFT target less the time since arrival.
        itl_s: ITL target; an aggregated pool must keep both.
        guard_s: tightest TTFT target each pool is kept for, see `guards_s`, shape (P,).
        ratio: written, infinite where the pool cannot take the request now.
        candidate: written, the worker or NOBODY.
    """
    for index in range(pools.size):
        pool = pools[index]
        ratio[index] = np.inf
        candidate[index] = NOBODY
        if pool.role == DECODE or not fits(pool, isl_tokens, request_blocks):
            continue
        worker = pick_prefill_worker(
            load, pool.first, pool.n_slots, isl_tokens, overlap_tokens, overlap_weight
        )
        if worker == NOBODY:
            continue
        candidate[index] = worker
        transfer_s = 0.0
        if pool.role == PREFILL:
            transfer_s = pool.transfer_latency_s + isl_tokens * pool.transfer_s_per_token
        ratio[index] = prefill_ratio(
            surfaces[index],
            table,
            pool.saturated_s_per_token,
            load[worker].backlog_tokens,
            isl_tokens,
            overlap_tokens[worker],
            transfer_s,
            min(ttft_left_s, guard_s[index]),
        )
        if pool.role == AGGREGATED:
            ratio[index] = max(
                ratio[index],
                decode_ratio(
                    surfaces[index],
                    table,
                    load[worker].active,
                    load[worker].kv_blocks,
                    pool.kv_capacity_blocks,
                    block_tokens,
                    request_blocks,
                    pool.max_num_seqs,
                    itl_s,
                ),
            )


def guards_s(flows: Float64Array, ttft_s: Float64Array, value: Float64Array) -> Float64Array:
    """Return the TTFT target that each class must keep every pool below, shape (C, P).

    A pool the planner gives to a class is filled by less valuable ones only as far as that class's
    target allows, however patient they are; without it a queue of patient requests would lock the
    others out. Infinite where nothing more valuable has flow to speak of.

    Args:
        flows: the planner's class-to-pool weights, shape (C, P).
        ttft_s: TTFT targets, shape (C,).
        value: value of a request, shape (C,).
    """
    uses = flows > _FLOW_TO_SPEAK_OF * flows.sum(axis=1, keepdims=True)
    target = np.where(uses, ttft_s[:, None], np.inf)
    return np.array([target[value > own].min(axis=0, initial=np.inf) for own in value])


@lean
def decode_ratios(
    pools: NDArray[Any],
    surfaces: NDArray[Any],
    table: Float64Array,
    load: NDArray[Any],
    block_tokens: int,
    request_blocks: int,
    itl_s: float,
    ratio: Float64Array,
    candidate: NDArray[np.int64],
) -> None:
    """Write, per decode pool, the best worker and its predicted ITL over target."""
    for index in range(pools.size):
        pool = pools[index]
        ratio[index] = np.inf
        candidate[index] = NOBODY
        if pool.role != DECODE or request_blocks > pool.kv_capacity_blocks:
            continue
        worker = pick_decode_worker(load, pool.first, pool.n_slots)
        if worker == NOBODY:
            continue
        candidate[index] = worker
        ratio[index] = decode_ratio(
            surfaces[index],
            table,
            load[worker].active,
            load[worker].kv_blocks,
            pool.kv_capacity_blocks,
            block_tokens,
            request_blocks,
            pool.max_num_seqs,
            itl_s,
        )


@lean
def hopeless(prefill: float, decode: Float64Array, shed_above: float) -> bool:
    """Tell whether a request is shed: its latency is predicted that many times over its target.

    Args:
        prefill: ratio of the pool picked for its prompt.
        decode: ratios of the decode pools, infinite for those that take nothing now; all infinite
            says nothing, the request may well find a worker later.
        shed_above: the class's limit.
    """
    least = np.inf
    for index in range(decode.size):
        least = min(least, decode[index])
    return bool(prefill > shed_above or (least < np.inf and least > shed_above))
