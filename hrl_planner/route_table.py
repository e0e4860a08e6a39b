"""What the router's rules need to know of a spec, as the records and tables they read.

Simulator and router build these from the same spec with the same functions, so both compare pools
by the same prices and capacities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrl_planner import surface
from hrl_planner.routing import DECODE, POOL_ROUTE, ROLES
from hrl_planner.spec import ClusterSpec, GridSpec

# The batch and context at which decode pools are compared by price.
_TYPICAL_BATCH = 64
_TYPICAL_CONTEXT_TOKENS = 2048.0


def pack_surfaces(spec: ClusterSpec) -> surface.Surface:
    """Return the latency surfaces of all pools, in pool order."""
    return surface.concatenate(
        [
            surface.pack(profile, pool.max_num_seqs, pool.latency_scale)
            for pool, profile in zip(spec.pools, spec.profiles(), strict=True)
        ]
    )


def fill_routes(rows: NDArray[Any], spec: ClusterSpec, packed: surface.Surface) -> None:
    """Write the fields of POOL_ROUTE, slots of `max_replicas` per pool, one row per pool.

    Args:
        rows: records with at least the fields of POOL_ROUTE, shape (P,).
        spec: the cluster.
        packed: its surfaces, see `pack_surfaces`.
    """
    table = packed.table
    first = 0
    for index, (pool, profile) in enumerate(zip(spec.pools, spec.profiles(), strict=True)):
        row, record = rows[index], packed.record[index]
        row["role"] = ROLES.index(pool.role)
        row["first"] = first
        row["n_slots"] = pool.max_replicas
        first += pool.max_replicas
        row["max_num_seqs"] = pool.max_num_seqs
        row["kv_capacity_tokens"] = profile.kv_capacity_tokens
        row["kv_capacity_blocks"] = profile.kv_capacity_tokens // spec.kv_block_tokens
        tokens = float(pool.max_num_batched_tokens)
        row["saturated_s_per_token"] = (
            surface.prefill_step_s(record, table, 1.0, tokens, 0.0) / tokens
        )
        per_token_s = float(row["saturated_s_per_token"])
        if pool.role == "decode":
            batch = min(_TYPICAL_BATCH, pool.max_num_seqs)
            per_token_s = (
                surface.decode_step_s(record, table, batch, _TYPICAL_CONTEXT_TOKENS) / batch
            )
        row["price_per_token"] = pool.price_per_gpu_hour * pool.gpus_per_replica * per_token_s
        row["transfer_s_per_token"] = spec.kv_bytes_per_token / (
            spec.kv_transfer.bandwidth_gb_per_s * 1e9
        )
        row["transfer_latency_s"] = spec.kv_transfer.latency_ms * 1e-3
    decodes = rows["role"] == DECODE
    rows["decodable_blocks"] = rows["kv_capacity_blocks"][decodes].max(initial=0)


def route_table(spec: ClusterSpec, packed: surface.Surface) -> NDArray[Any]:
    """Return the POOL_ROUTE records of a spec, shape (P,)."""
    rows = np.zeros(len(spec.pools), POOL_ROUTE)
    fill_routes(rows, spec, packed)
    return rows


def grid_tables(
    spec: ClusterSpec,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return both static tables in one shape; short ones are padded by edges never reached.

    Returns:
        Edges between rows (2, R - 1), edges between columns in ms (2, K - 1), pool per cell
        (2, R, K); index 0 is prefill, 1 decode.
    """
    grids = [spec.router.prefill_grid, spec.router.decode_grid]
    rows = max(len(grid.pools) if grid else 1 for grid in grids)
    columns = max(len(grid.pools[0]) if grid else 1 for grid in grids)
    lengths = np.full((2, rows - 1), np.inf)
    targets = np.full((2, columns - 1), np.inf)
    pools = np.zeros((2, rows, columns), np.int64)
    for stage, grid in enumerate(grids):
        if grid is not None:
            _fill_grid(spec, grid, lengths[stage], targets[stage], pools[stage])
    return lengths, targets, pools


def _fill_grid(
    spec: ClusterSpec,
    grid: GridSpec,
    lengths: NDArray[np.float64],
    targets: NDArray[np.float64],
    pools: NDArray[np.int64],
) -> None:
    lengths[: len(grid.isl_edges)] = grid.isl_edges
    targets[: len(grid.target_edges_ms)] = grid.target_edges_ms
    for i, row in enumerate(grid.pools):
        for j, name in enumerate(row):
            pools[i, j] = spec.pool_index(name)
