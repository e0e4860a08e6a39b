"""Latency lookups on packed surfaces: how long one engine step takes.

A `WorkerProfile` is a grid of measured step times. Here it becomes one flat array of seconds plus
a small record of offsets, so that the simulator's kernel, the planners' capacity formulas and the
router's predictions all read step times through the same compiled functions.

Prefill: trilinear in (requests in the batch, new tokens per request, tokens already computed).
Decode: bilinear in (running requests, mean context); rows for every whole batch size are computed
once, so a lookup is a piecewise linear function of the context. Both are exact on grid points,
clamped outside the grid, and monotone wherever the data are, because linear interpolation is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import lean

Float64Array = NDArray[np.float64]

_FIELDS = np.dtype(
    [
        ("batch_at", np.int64),  # offset of the prefill batch axis
        ("n_batch", np.int64),
        ("tokens_at", np.int64),  # offset of the new-tokens axis
        ("n_tokens", np.int64),
        ("prefix_at", np.int64),  # offset of the cached-prefix axis
        ("n_prefix", np.int64),
        ("prefill_at", np.int64),  # offset of prefill seconds, (n_batch, n_tokens, n_prefix)
        ("context_at", np.int64),  # offset of the decode context axis
        ("n_context", np.int64),
        ("decode_at", np.int64),  # offset of decode seconds, (max_batch + 1, n_context)
        ("max_batch", np.int64),  # largest batch with a decode row
    ],
    align=True,
)
# A record is read by attribute, compiled or not.
SURFACE = np.dtype((np.record, _FIELDS))


class SurfaceGrid(Protocol):
    """The part of a worker profile that a surface is packed from; step times in ms."""

    @property
    def prefill_batch(self) -> Float64Array:
        """Requests per prefill batch, shape (NB,)."""

    @property
    def prefill_new_tokens(self) -> Float64Array:
        """New tokens per request, shape (NS,)."""

    @property
    def prefill_prefix_tokens(self) -> Float64Array:
        """Tokens already computed in front, shape (NP,)."""

    @property
    def prefill_ms(self) -> Float64Array:
        """One prefill step, shape (NB, NS, NP)."""

    @property
    def decode_batch(self) -> Float64Array:
        """Running requests, shape (MB,)."""

    @property
    def decode_context_tokens(self) -> Float64Array:
        """Mean context, shape (MC,)."""

    @property
    def decode_ms(self) -> Float64Array:
        """One decode step, shape (MB, MC)."""


class Surface(NamedTuple):
    """A packed profile.

    Attributes:
        record: one SURFACE record, shape (1,).
        table: every axis and value the record points to, flat.
    """

    record: NDArray[Any]
    table: Float64Array


@lru_cache(maxsize=256)
def pack(grid: SurfaceGrid, max_num_seqs: int, scale: float = 1.0) -> Surface:
    """Pack a profile's grids into one flat table of seconds, once; do not write into it.

    Args:
        grid: axes and step times in ms.
        max_num_seqs: decode rows are made for batches 0 to this.
        scale: multiplies every step time.
    """
    to_seconds = 1e-3 * scale
    batches = np.clip(np.arange(max_num_seqs + 1), grid.decode_batch[0], grid.decode_batch[-1])
    rows = np.stack(
        [np.interp(batches, grid.decode_batch, column) for column in grid.decode_ms.T], axis=1
    )
    parts = {
        "batch_at": grid.prefill_batch,
        "tokens_at": grid.prefill_new_tokens,
        "prefix_at": grid.prefill_prefix_tokens,
        "prefill_at": grid.prefill_ms * to_seconds,
        "context_at": grid.decode_context_tokens,
        "decode_at": rows * to_seconds,
    }
    record = np.zeros(1, SURFACE)
    offset = 0
    for name, values in parts.items():
        record[name] = offset
        offset += values.size
    record["n_batch"], record["n_tokens"], record["n_prefix"] = grid.prefill_ms.shape
    record["n_context"] = grid.decode_context_tokens.size
    record["max_batch"] = max_num_seqs
    table = np.concatenate([np.asarray(v, np.float64).ravel() for v in parts.values()])
    return Surface(record, table)


def concatenate(surfaces: list[Surface]) -> Surface:
    """Join packed profiles into one table with one record each, shape (P,)."""
    records = np.concatenate([surface.record for surface in surfaces])
    base = 0
    for index, surface in enumerate(surfaces):
        for name in SURFACE.names or ():
            if name.endswith("_at"):
                records[index][name] += base
        base += surface.table.size
    return Surface(records, np.concatenate([surface.table for surface in surfaces]))


@lean
def _cell(table: Float64Array, at: int, n: int, x: float) -> int:
    """Return i such that axis[i] <= x < axis[i + 1], clamped to the first and last cell."""
    if n <= 2 or x < table[at + 1]:
        return 0
    low = 1
    high = n - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if table[at + middle] <= x:
            low = middle
        else:
            high = middle
    return low


@lean
def _weight(table: Float64Array, at: int, n: int, i: int, x: float) -> float:
    """Return the weight of the cell's upper end, 0 to 1; 0 on an axis of one point."""
    if n == 1:
        return 0.0
    low = table[at + i]
    high = table[at + i + 1]
    return min(1.0, max(0.0, (x - low) / (high - low)))


@lean
def prefill_step_s(
    surface: Any, table: Float64Array, n_requests: float, total_tokens: float, prefix_tokens: float
) -> float:
    """Return the time of one prefill step in seconds.

    Args:
        surface: one SURFACE record.
        table: the packed values.
        n_requests: requests in the batch; past the grid's last batch the same total is looked up
            as that many longer requests.
        total_tokens: new tokens over all requests of the batch.
        prefix_tokens: mean tokens already computed, weighted by each request's new tokens.
    """
    batch = min(n_requests, table[surface.batch_at + surface.n_batch - 1])
    per_request = total_tokens / batch
    longest = table[surface.tokens_at + surface.n_tokens - 1]
    stretch = 1.0
    if per_request > longest:
        stretch = per_request / longest
        per_request = longest
    i = _cell(table, surface.batch_at, surface.n_batch, batch)
    j = _cell(table, surface.tokens_at, surface.n_tokens, per_request)
    k = _cell(table, surface.prefix_at, surface.n_prefix, prefix_tokens)
    u = _weight(table, surface.batch_at, surface.n_batch, i, batch)
    v = _weight(table, surface.tokens_at, surface.n_tokens, j, per_request)
    w = _weight(table, surface.prefix_at, surface.n_prefix, k, prefix_tokens)
    di = surface.n_tokens * surface.n_prefix if u > 0.0 else 0
    dj = surface.n_prefix if v > 0.0 else 0
    dk = 1 if w > 0.0 else 0
    at = surface.prefill_at + (i * surface.n_tokens + j) * surface.n_prefix + k
    low = (1.0 - v) * ((1.0 - w) * table[at] + w * table[at + dk]) + v * (
        (1.0 - w) * table[at + dj] + w * table[at + dj + dk]
    )
    if di == 0:
        return stretch * low
    at += di
    high = (1.0 - v) * ((1.0 - w) * table[at] + w * table[at + dk]) + v * (
        (1.0 - w) * table[at + dj] + w * table[at + dj + dk]
    )
    return stretch * ((1.0 - u) * low + u * high)


@lean
def decode_piece(
    surface: Any, table: Float64Array, batch: int, context_tokens: float
) -> tuple[float, float, float]:
    """Return the linear piece of the decode step time that holds at a context.

    Args:
        surface: one SURFACE record.
        table: the packed values.
        batch: running requests, at least 1; past the last row that row is used.
        context_tokens: mean context of the running requests.

    Returns:
        Step seconds at `context_tokens`, seconds more per context token, and the context at which
        the piece ends (infinite behind the grid).
    """
    at = surface.context_at
    n = surface.n_context
    row = surface.decode_at + min(batch, surface.max_batch) * n
    if context_tokens < table[at]:
        return table[row], 0.0, table[at]
    if context_tokens >= table[at + n - 1]:
        return table[row + n - 1], 0.0, np.inf
    i = _cell(table, at, n, context_tokens)
    low = table[at + i]
    high = table[at + i + 1]
    w = (context_tokens - low) / (high - low)
    value = (1.0 - w) * table[row + i] + w * table[row + i + 1]
    return value, (table[row + i + 1] - table[row + i]) / (high - low), high


@lean
def decode_step_s(surface: Any, table: Float64Array, batch: int, context_tokens: float) -> float:
    """Return the time of one decode step in seconds, see `decode_piece`."""
    return decode_piece(surface, table, batch, context_tokens)[0]
