"""Choosing and booking in one step, so that no two requests see the same free place.

The desk owns the rules (`Chooser`), the books (`Flights`), what is known of prefix caches
(`KvIndex`) and of sessions. It never waits: where there is no place it says so, and whoever asked
decides what that means.
"""

from __future__ import annotations

from dataclasses import dataclass

from hrl_planner.router.chooser import Ask, Chooser
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.fleet import Fleet
from hrl_planner.router.flights import Flights, Leg
from hrl_planner.router.kv import KvIndex
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.request import no_worker, shed
from hrl_planner.router.sessions import Sessions
from hrl_planner.routing import NOBODY, REJECT, WAIT


@dataclass(frozen=True, slots=True)
class Seat:
    """A place that was chosen and booked.

    Attributes:
        leg: the booking.
        reason: why there, for metrics and logs.
        predicted_ttft_s: since the request arrived here.
    """

    leg: Leg
    reason: str
    predicted_ttft_s: float


class Desk:
    """Places at workers."""

    def __init__(
        self, config: RouterConfig, fleet: Fleet, index: KvIndex, metrics: RouterMetrics
    ) -> None:
        self._config = config
        self._index = index
        self._metrics = metrics
        self.fleet = fleet
        self.flights = Flights(fleet)
        self.chooser = Chooser(fleet, index)
        self.sessions = Sessions(config.sessions.ttl_s, config.sessions.max_sessions)

    def arrive(self, ask: Ask, session: str, now_s: float) -> Seat | None:
        """Give a new request a place; None when it has to wait.

        Raises:
            Refusal: 429, its class sheds what is late and nothing waits here.
        """
        self.flights.advance(now_s)
        self.chooser.look_up(ask, now_s)
        seat = self._of_session(ask, session, now_s) or self._without_hop(ask, now_s)
        if seat is None:
            seat = self._by_rules(ask, now_s, forced=not self._config.admission.queue)
        if seat is not None and session:
            self.sessions.put(session, seat.leg.place, now_s)
        return seat

    def place(self, ask: Ask, now_s: float, forced: bool) -> Seat | None:
        """Give a request that waits a place; None when it should go on waiting.

        Raises:
            Refusal: 503, it has waited enough and there is still no worker.
        """
        self.chooser.look_up(ask, now_s)
        seat = self._by_rules(ask, now_s, forced=forced)
        if seat is None and forced:
            raise no_worker("worker")
        return seat

    def another_prefill(self, ask: Ask, now_s: float) -> Seat | None:
        """Give a request whose prefill worker failed another one that only prefills, or None."""
        self.chooser.look_up(ask, now_s)
        slot = self.chooser.prefill(ask, now_s, shed=False, wait=False)
        return None if slot in (NOBODY, REJECT) else self._book(slot, ask, now_s, "retry")

    def decode(self, ask: Ask, now_s: float, *, prefilled: bool) -> Seat | None:
        """Give a request its decode worker; None when none accepts.

        Args:
            ask: the request.
            now_s: now.
            prefilled: whether its KV cache comes from a prefill worker; else this one computes it.
        """
        slot = self.chooser.decode(ask)
        if slot == NOBODY:
            return None
        if not prefilled:
            self.chooser.look_up(ask, now_s)
            return self._book(slot, ask, now_s, "prefill_failed")
        place = self.fleet.place(slot)
        leg = self.flights.book(place, now_s, new_tokens=0, kv_blocks=ask.kv_blocks, watched=True)
        self._index.routed(slot, ask.blocks.hashes, now_s)
        self._metrics.chosen(place, ask.targets.class_id, "decode")
        return Seat(leg, "decode", now_s - ask.arrived_s)

    def _of_session(self, ask: Ask, session: str, now_s: float) -> Seat | None:
        place = self.sessions.get(session, now_s) if session else None
        if place is None or not self.chooser.keeps_session(place, ask, now_s):
            return None
        return self._book(place.slot, ask, now_s, "session")

    def _without_hop(self, ask: Ask, now_s: float) -> Seat | None:
        """Book a decode worker that holds nearly all of the prompt: the hop is not worth it."""
        slot = self.chooser.most_cached_decode(ask)
        if slot == NOBODY:
            return None
        missing = ask.isl_tokens - self.chooser.cached_tokens(slot)
        if missing > self._config.handoff.local_below_tokens:
            return None
        if self.chooser.predicted_itl_s(slot, ask) > ask.targets.itl_s:
            return None
        return self._book(slot, ask, now_s, "decode_only")

    def _by_rules(self, ask: Ask, now_s: float, *, forced: bool) -> Seat | None:
        slot = self.chooser.prefill(ask, now_s, shed=forced, wait=not forced)
        if slot in (WAIT, NOBODY):
            return None
        if slot == REJECT:
            raise shed(ask.targets.ttft_s)
        return self._book(slot, ask, now_s, "forced" if forced else "rules")

    def _book(self, slot: int, ask: Ask, now_s: float, reason: str) -> Seat:
        place = self.fleet.place(slot)
        answers = self.fleet.answers(slot)
        cached = self.chooser.cached_tokens(slot)
        predicted_s = now_s - ask.arrived_s + self.chooser.predicted_ttft_s(slot, ask)
        leg = self.flights.book(
            place,
            now_s,
            new_tokens=max(1, ask.isl_tokens - cached),
            kv_blocks=ask.kv_blocks if answers else 0,
            watched=not answers,
        )
        self._index.routed(slot, ask.blocks.hashes, now_s)
        self._metrics.chosen(place, ask.targets.class_id, reason)
        self._metrics.overlap(place, ask.targets.class_id, cached, ask.isl_tokens)
        return Seat(leg, reason, predicted_s)
