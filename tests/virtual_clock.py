"""A clock for engines that turns as fast as its events can be worked off."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """A heap of timers; equal times in the order they were set."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (max(when, self._now), next(self._order), callback))

    def run(self, until_s: float = float("inf")) -> None:
        """Let everything happen that happens at or before a time."""
        while self._timers and self._timers[0][0] <= until_s:
            self.step()

    def step(self) -> None:
        """Let the next timer go off."""
        self._now, _, callback = heapq.heappop(self._timers)
        callback()


class LateClock(VirtualClock):
    """Every timer goes off `late_s` after its time, as it was when the timer was set."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.late_s = late_s

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        super().call_at(when + self.late_s, callback)
