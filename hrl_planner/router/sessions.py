"""Which worker a session was last sent to: the least recently used are forgotten."""

from __future__ import annotations

from collections import OrderedDict

from hrl_planner.router.fleet import Place


class Sessions:
    """Session id -> worker, with a time to live and a bound on how many are kept."""

    def __init__(self, ttl_s: float, max_sessions: int) -> None:
        self._ttl_s = ttl_s
        self._most = max_sessions
        self._places: OrderedDict[str, tuple[Place, float]] = OrderedDict()

    def __len__(self) -> int:
        """Sessions kept."""
        return len(self._places)

    def get(self, session: str, now_s: float) -> Place | None:
        """Return the worker of a session, None for one that is new or too long ago."""
        found = self._places.get(session)
        if found is None or now_s - found[1] > self._ttl_s:
            return None
        return found[0]

    def put(self, session: str, place: Place, now_s: float) -> None:
        """Remember where a session was sent."""
        self._places[session] = (place, now_s)
        self._places.move_to_end(session)
        while self._places:
            oldest = next(iter(self._places.values()))
            if len(self._places) <= self._most and now_s - oldest[1] <= self._ttl_s:
                break
            self._places.popitem(last=False)
