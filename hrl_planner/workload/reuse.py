"""How much of a trace's prompts a prefix cache would save, as a function of its size.

A block counts as cached when a request before had it, at most `within_s` ago. An LRU cache of a
given size keeps a block for about the same time whatever the block (Che, Tung and Wang,
*Hierarchical Web caching systems*, IEEE JSAC 20, 2002): `retention_s` is the time at which the
blocks kept that long fill the cache on average. One cache for all is what this describes; those of
many workers hold some blocks twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrl_planner.workload.trace import Trace

FloatArray = NDArray[np.float64]


class PrefixReuse:
    """The times between uses of the same block.

    Args:
        trace: the requests.
    """

    def __init__(self, trace: Trace) -> None:
        """Sort the uses of all blocks once."""
        self._trace = trace
        self._blocks = np.diff(trace.block_offsets)
        self._owner = np.repeat(np.arange(len(trace)), self._blocks)
        used_s = trace.arrival_s[self._owner]
        order = np.argsort(trace.block_ids, kind="stable")
        ids, sorted_s = trace.block_ids[order], used_s[order]
        again = ids[1:] == ids[:-1]
        gap_s = np.diff(sorted_s)
        since, until = np.full(ids.size, np.inf), np.full(ids.size, np.inf)
        since[1:][again] = gap_s[again]
        until[:-1][again] = gap_s[again]
        self._since_s = np.empty_like(since)
        self._since_s[order] = since
        self._until_s = np.minimum(until, trace.duration_s - sorted_s)

    def cached_tokens(self, within_s: float = np.inf) -> NDArray[np.int64]:
        """Return each request's prompt tokens in cached blocks, at most all but one, shape (N,)."""
        isl = self._trace.isl_tokens.astype(np.int64)
        fresh = np.isinf(self._since_s) | (self._since_s > within_s)
        new = np.bincount(self._owner, weights=fresh, minlength=isl.size).astype(np.int64)
        return np.asarray(np.minimum((self._blocks - new) * self._trace.block_tokens, isl - 1))

    def retention_s(self, cache_tokens: float) -> float:
        """Return how long an LRU cache of this size keeps a block after its last use."""
        low, high = 0.0, max(self._trace.duration_s, 1e-9)
        if self._held_tokens(high) <= cache_tokens:
            return float(np.inf)
        for _ in range(20):
            middle = 0.5 * (low + high)
            fits = self._held_tokens(middle) <= cache_tokens
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _held_tokens(self, within_s: float) -> float:
        """Return the tokens in blocks used at most `within_s` ago, mean over the trace."""
        block_s = np.minimum(self._until_s, within_s).sum()
        return float(block_s) / self._trace.duration_s * self._trace.block_tokens
