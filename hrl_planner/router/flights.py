"""Requests under way: what the router has booked on which worker, and how that is put right.

A *leg* is one request at one worker. It is booked when the router decides and taken off when the
answer ends, so that load numbers are right the moment a decision is made, not a scrape later.
Prompt tokens are taken off when the prompt is computed. The router sees that for a prefill worker
it called itself; for a worker that answers the client directly, tokens do not pass here, and the
prompt counts as computed when the profile says so.

Books drift: another router sends requests too, this one was restarted, an end was never reported.
Worker metrics correct them. Requests a worker has beyond those booked count as `strangers`; legs a
worker does not have any more, seen so several times, are closed.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np

from hrl_planner.router.fleet import Fleet, Place

# A leg younger than this may not be in the metrics yet.
_SETTLE_S = 2.0
# Scrapes in a row that must miss a leg before it is closed.
_MISSED_SCRAPES = 3


@dataclass(eq=False, slots=True)
class Leg:
    """One request at one worker.

    Attributes:
        place: the worker.
        new_tokens: prompt tokens it computes.
        kv_blocks: blocks it reserves until the end; 0 at a worker that only prefills.
        since_s: when it was booked.
    """

    place: Place
    new_tokens: int
    kv_blocks: int
    since_s: float
    computing: bool = False
    open: bool = True


class Flights:
    """The books over all workers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._load = fleet.state.load
        n = len(self._load)
        self._legs: list[dict[Leg, None]] = [{} for _ in range(n)]  # oldest first
        self._clear_s = np.zeros(n)  # when a worker is through its booked prompts
        self._missed = np.zeros(n, np.int64)
        self._strangers = np.zeros(n, np.int64)
        self._stranger_blocks = np.zeros(n, np.int64)
        self._due: list[tuple[float, int, Leg]] = []
        self._order = itertools.count()

    def under_way(self, slot: int) -> int:
        """Return the legs booked at a worker."""
        return len(self._legs[slot])

    def book(
        self, place: Place, now_s: float, *, new_tokens: int, kv_blocks: int, watched: bool
    ) -> Leg:
        """Book a request at a worker.

        Args:
            place: the worker.
            now_s: now.
            new_tokens: prompt tokens it computes, 0 when they come from a prefill worker.
            kv_blocks: blocks of the whole request, 0 where the answer is another worker's.
            watched: whether `computed` will be called; else the profile tells when.
        """
        leg = Leg(place, new_tokens, kv_blocks, now_s, computing=new_tokens > 0)
        row = self._load[place.slot]
        row["active"] += 1
        row["kv_blocks"] += kv_blocks
        row["backlog_tokens"] += new_tokens
        self._legs[place.slot][leg] = None
        if leg.computing and not watched:
            pool = self._fleet.state.pools[place.pool]
            start_s = max(now_s, float(self._clear_s[place.slot]))
            done_s = start_s + new_tokens * float(pool["saturated_s_per_token"])
            self._clear_s[place.slot] = done_s
            heapq.heappush(self._due, (done_s, next(self._order), leg))
        return leg

    def computed(self, leg: Leg) -> None:
        """Take a prompt off its worker's backlog."""
        if leg.open and leg.computing:
            leg.computing = False
            self._load[leg.place.slot]["backlog_tokens"] -= leg.new_tokens

    def end(self, leg: Leg) -> None:
        """Take a request off its worker; again, or at a worker that is gone, is no error."""
        if not leg.open:
            return
        self.computed(leg)
        leg.open = False
        slot = leg.place.slot
        del self._legs[slot][leg]
        row = self._load[slot]
        row["active"] -= 1
        row["kv_blocks"] -= leg.kv_blocks

    def vacated(self, slot: int) -> None:
        """Forget what was booked on a worker that lost its slot; its answers may go on."""
        for leg in self._legs[slot]:
            leg.open = False
        self._legs[slot].clear()
        self._clear_s[slot] = 0.0
        self._missed[slot] = self._strangers[slot] = self._stranger_blocks[slot] = 0

    def advance(self, now_s: float) -> bool:
        """Count prompts as computed that are due; tell whether there were any."""
        any_due = False
        while self._due and self._due[0][0] <= now_s:
            self.computed(heapq.heappop(self._due)[2])
            any_due = True
        return any_due

    def correct(self, slot: int, now_s: float, in_engine: int, kv_use: float) -> bool:
        """Put the books of a worker right by its metrics.

        Args:
            slot: the worker.
            now_s: time of the sample.
            in_engine: requests running and waiting there.
            kv_use: share of KV blocks in use, 0 to 1.

        Returns:
            Whether load went down.
        """
        row = self._load[slot]
        legs = self._legs[slot]
        settled = [leg for leg in legs if leg.since_s < now_s - _SETTLE_S]
        closed = self._close_lost(slot, settled, in_engine)
        strangers = max(0, in_engine - len(legs))
        # Blocks in use that no leg accounts for; without strangers they are prefix cache.
        pool = self._fleet.state.pools[self._fleet.pool_of[slot]]
        booked = sum(leg.kv_blocks for leg in legs)
        used = int(kv_use * pool["kv_capacity_blocks"]) if strangers and kv_use == kv_use else 0
        blocks = max(0, used - booked) if self._fleet.answers(slot) else 0
        lower = strangers < self._strangers[slot] or blocks < self._stranger_blocks[slot]
        row["active"] += strangers - self._strangers[slot]
        row["kv_blocks"] += blocks - self._stranger_blocks[slot]
        self._strangers[slot], self._stranger_blocks[slot] = strangers, blocks
        return bool(lower or closed)

    def _close_lost(self, slot: int, settled: list[Leg], in_engine: int) -> bool:
        surplus = len(settled) - in_engine
        if surplus <= 0:
            self._missed[slot] = 0
            return False
        self._missed[slot] += 1
        if self._missed[slot] < _MISSED_SCRAPES:
            return False
        self._missed[slot] = 0
        for leg in settled[:surplus]:
            self.end(leg)
        return True
