"""One decision: the rules of `hrl_planner.choice` on the fleet as it is now.

Nothing here waits or remembers; `service` asks, books what it is told, and asks again when the
world has changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrl_planner.choice import choose_decode, choose_prefill
from hrl_planner.router.classes import Targets
from hrl_planner.router.fleet import Fleet, Place
from hrl_planner.router.kv import KvIndex, PromptBlocks
from hrl_planner.routing import (
    DECODE,
    NOBODY,
    PREFILL,
    SLO_MARGIN,
    fits,
    pick_decode_worker,
    pick_prefill_worker,
)
from hrl_planner.slo_routing import decode_ratio, prefill_ratio

# Requests that wait are looked at every few milliseconds; caches do not change that fast.
_FRESH_S = 0.25


@dataclass(slots=True)
class Ask:
    """A request as the rules see it.

    Attributes:
        blocks: its prompt, hashed in blocks.
        kv_blocks: KV blocks of prompt and expected answer.
        targets: class and SLO.
        arrived_s: when the router got it.
        avoid: workers that have failed it.
        overlap: cached tokens per worker when they were looked up last, at `looked_s`.
        looked_s: ...
    """

    blocks: PromptBlocks
    kv_blocks: int
    targets: Targets
    arrived_s: float
    avoid: list[Place] = field(default_factory=list)
    overlap: NDArray[np.int64] | None = None
    looked_s: float = -math.inf

    @property
    def isl_tokens(self) -> int:
        """Length of the prompt."""
        return self.blocks.isl_tokens

    def ttft_left_s(self, now_s: float) -> float:
        """What is left of the TTFT target."""
        return self.targets.ttft_s - (now_s - self.arrived_s)


class Chooser:
    """The rules over one fleet and one index of prefix caches."""

    def __init__(self, fleet: Fleet, index: KvIndex) -> None:
        self._fleet = fleet
        self._index = index
        self._state = fleet.state
        self._block_tokens = fleet.spec.kv_block_tokens
        self._is_decode = fleet.state.pools["role"][fleet.pool_of] == DECODE
        self._surfaces = [fleet.state.surfaces[i] for i in range(len(fleet.state.surfaces))]

    def look_up(self, ask: Ask, now_s: float) -> None:
        """Write the prompt tokens each worker's prefix cache holds; before any choice."""
        overlap = self._state.overlap
        if ask.overlap is not None and now_s - ask.looked_s < _FRESH_S:
            overlap[:] = ask.overlap
            return
        self._index.overlap_blocks(ask.blocks.hashes, overlap)
        np.multiply(overlap, self._block_tokens, out=overlap)
        np.minimum(overlap, ask.isl_tokens - 1, out=overlap)
        ask.overlap, ask.looked_s = overlap.copy(), now_s

    def prefill(self, ask: Ask, now_s: float, *, shed: bool, wait: bool) -> int:
        """Return the worker for a prompt, or NOBODY, WAIT or REJECT, see `choose_prefill`."""
        targets = ask.targets
        with self._without(ask.avoid):
            return int(
                choose_prefill(
                    self._state,
                    targets.class_id,
                    ask.isl_tokens,
                    ask.kv_blocks,
                    ask.ttft_left_s(now_s),
                    targets.ttft_s,
                    targets.itl_s,
                    targets.shed_above if shed else math.inf,
                    1.0 if wait else math.inf,
                )
            )

    def decode(self, ask: Ask) -> int:
        """Return the worker that answers a computed prompt, or NOBODY."""
        targets = ask.targets
        with self._without(ask.avoid):
            return int(
                choose_decode(
                    self._state, targets.class_id, ask.isl_tokens, ask.kv_blocks, targets.itl_s
                )
            )

    def second(self, slot: int, ask: Ask) -> int:
        """Return the next best worker of the same pool, for a retry, or NOBODY."""
        pool = self._state.pools[self._fleet.pool_of[slot]]
        first, count = int(pool["first"]), int(pool["n_slots"])
        with self._without([*ask.avoid, self._fleet.place(slot)]):
            if self._decodes(slot):
                return int(pick_decode_worker(self._state.load, first, count))
            return int(
                pick_prefill_worker(
                    self._state.load,
                    first,
                    count,
                    ask.isl_tokens,
                    self._state.overlap,
                    self._state.g[0]["overlap_weight"],
                )
            )

    def keeps_session(self, place: Place, ask: Ask, now_s: float) -> bool:
        """Tell whether the worker a session is used to would keep this request's targets."""
        if not self._fleet.is_current(place) or place in ask.avoid:
            return False
        if not self._state.load[place.slot]["accepting"]:
            return False
        if not fits(self._state.pools[place.pool], ask.isl_tokens, ask.kv_blocks):
            return False
        limit_s = min(
            ask.ttft_left_s(now_s), float(self._state.guard_s[ask.targets.class_id, place.pool])
        )
        return self.predicted_ttft_s(place.slot, ask) <= SLO_MARGIN * limit_s

    def cached_tokens(self, slot: int) -> int:
        """Prompt tokens of the request looked up last that a worker holds."""
        return int(self._state.overlap[slot])

    def predicted_ttft_s(self, slot: int, ask: Ask) -> float:
        """Return the time to first token at a worker, queue and KV transfer included."""
        backlog = int(self._state.load[slot]["backlog_tokens"])
        return self._ttft_s(int(self._fleet.pool_of[slot]), ask, backlog, self.cached_tokens(slot))

    def _ttft_s(self, index: int, ask: Ask, backlog_tokens: int, cached_tokens: int) -> float:
        pool = self._state.pools[index]
        transfer_s = 0.0
        if pool["role"] == PREFILL:
            transfer_s = float(
                pool["transfer_latency_s"] + ask.isl_tokens * pool["transfer_s_per_token"]
            )
        return float(
            prefill_ratio(
                self._surfaces[index],
                self._state.table,
                float(pool["saturated_s_per_token"]),
                backlog_tokens,
                ask.isl_tokens,
                cached_tokens,
                transfer_s,
                1.0,
            )
        )

    def predicted_itl_s(self, slot: int, ask: Ask) -> float:
        """Return the time between tokens at a worker with this request in its batch."""
        index = int(self._fleet.pool_of[slot])
        pool, load = self._state.pools[index], self._state.load[slot]
        return float(
            decode_ratio(
                self._surfaces[index],
                self._state.table,
                int(load["active"]),
                int(load["kv_blocks"]),
                int(pool["kv_capacity_blocks"]),
                self._block_tokens,
                ask.kv_blocks,
                int(pool["max_num_seqs"]),
                1.0,
            )
        )

    def best_case_ttft_s(self, ask: Ask) -> float:
        """Return the time to first token without any queue, at the best pool that accepts."""
        state, best = self._state, math.inf
        for index, pool in enumerate(state.pools):
            if pool["role"] == DECODE:
                continue
            slots = slice(int(pool["first"]), int(pool["first"] + pool["n_slots"]))
            accepting = state.load["accepting"][slots] != 0
            if accepting.any():
                cached = int(state.overlap[slots][accepting].max())
                best = min(best, self._ttft_s(index, ask, 0, cached))
        return best

    def most_cached_decode(self, ask: Ask) -> int:
        """Return the accepting decode worker that holds most of the prompt, or NOBODY."""
        state = self._state
        slots = np.flatnonzero((state.load["accepting"] != 0) & self._is_decode)
        if not slots.size:
            return NOBODY
        return int(slots[np.argmax(state.overlap[slots])])

    def _decodes(self, slot: int) -> bool:
        return bool(self._is_decode[slot])

    @contextmanager
    def _without(self, places: Iterable[Place]) -> Iterator[None]:
        """Choose as if these workers accepted nothing."""
        load = self._state.load
        closed = [p.slot for p in places if self._fleet.is_current(p) and load[p.slot]["accepting"]]
        load["accepting"][closed] = 0
        try:
            yield
        finally:
            load["accepting"][closed] = 1
