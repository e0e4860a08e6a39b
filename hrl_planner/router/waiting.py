"""The waiting room: requests that no pool can serve in time now.

The nearest deadline goes first, among those of the highest priority. Whenever load falls or a
worker comes, the room is looked through. A request leaves as soon as some pool is predicted to keep
its target. When even an idle worker could not keep it any more, its class decides: a class that
sheds is refused (429), any other goes on waiting for a pool that is idle enough to serve it as if
it had just come, behind all that are still in time, for `max_wait_s` at most.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hrl_planner.router.chooser import Ask
from hrl_planner.router.config import AdmissionConfig
from hrl_planner.router.request import Refusal, shed

T = TypeVar("T")

# Requests looked at in one go; each costs a look-up of its prefix.
_AT_ONCE = 32


@dataclass(eq=False, slots=True)
class _Guest(Generic[T]):
    ask: Ask
    priority: float
    came_s: float
    latest_s: float  # when it must be sent to be in time
    seat: asyncio.Future[T]
    late: bool = field(default=False)

    def rank(self) -> tuple[bool, float, float]:
        return (self.late, -self.priority, self.ask.arrived_s + self.ask.targets.ttft_s)


class WaitingRoom(Generic[T]):
    """Requests that wait, and the rule by which they leave.

    Args:
        config: bounds.
        try_place: decides and books; called with the request, the time, and whether to take the
            least bad pool rather than none. Returns None when it should go on waiting.
        give_back: takes a place back whose request has gone in the very moment it was given.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        try_place: Callable[[Ask, float, bool], T | None],
        give_back: Callable[[T], None],
    ) -> None:
        self._config = config
        self._try_place = try_place
        self._give_back = give_back
        # Those that have left stay in it until `look` or `_forget_gone` comes to them.
        self._guests: list[tuple[tuple[bool, float, float], int, _Guest[T]]] = []
        self._waiting = 0
        self._order = itertools.count()

    def __len__(self) -> int:
        """Requests that wait."""
        return self._waiting

    async def wait(self, ask: Ask, priority: float, now_s: float, latest_s: float) -> T:
        """Wait for a place.

        Raises:
            Refusal: 429 when the room is full, or when the class sheds what is late; 503 when no
                worker came in `max_wait_s`.
        """
        if self._waiting >= self._config.max_waiting:
            raise Refusal(
                429,
                "too many requests wait already",
                reason="queue_full",
                kind="rate_limit_error",
                retry_after_s=1.0,
            )
        self._forget_gone()
        seat: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        guest = _Guest(ask, priority, now_s, latest_s, seat)
        self._push(guest)
        self._waiting += 1
        try:
            return await seat
        except asyncio.CancelledError:
            # The client left. `look` skips a seat that is cancelled; it may be given already.
            if not seat.cancel() and not seat.cancelled() and seat.exception() is None:
                self._give_back(seat.result())
            raise
        finally:
            self._waiting -= 1

    def look(self, now_s: float) -> None:
        """Look through the room: give places, refuse what its class sheds."""
        kept: list[_Guest[T]] = []
        looked = 0
        while self._guests and looked < _AT_ONCE:
            guest = heapq.heappop(self._guests)[2]
            if guest.seat.done():
                continue
            looked += 1
            if not self._serve(guest, now_s):
                kept.append(guest)
        for guest in kept:
            self._push(guest)

    def _serve(self, guest: _Guest[T], now_s: float) -> bool:
        """Give a guest a place or a refusal; False when it stays."""
        ask = guest.ask
        if not guest.late and now_s > guest.latest_s:
            guest.late = True
            if ask.targets.shed_above < float("inf"):
                guest.seat.set_exception(shed(ask.targets.ttft_s))
                return True
        arrived_s = ask.arrived_s
        if guest.late:
            ask.arrived_s = now_s
        try:
            waited_enough = now_s - guest.came_s > self._config.max_wait_s
            placed = self._try_place(ask, now_s, waited_enough)
        except Refusal as refusal:
            guest.seat.set_exception(refusal)
            return True
        finally:
            ask.arrived_s = arrived_s
        if placed is None:
            return False
        guest.seat.set_result(placed)
        return True

    def _forget_gone(self) -> None:
        """Drop those that have left once they may be as many as those that wait."""
        if len(self._guests) >= 2 * self._config.max_waiting:
            self._guests = [entry for entry in self._guests if not entry[2].seat.done()]
            heapq.heapify(self._guests)

    def _push(self, guest: _Guest[T]) -> None:
        heapq.heappush(self._guests, (guest.rank(), next(self._order), guest))
