"""What every feed of KV events is: an engine's history, and whether the engine is heard.

A feed writes one worker's blocks for as long as it runs. How events reach it is the business of
`events.py` (an engine's own ZMQ stream) and `plane/` (Dynamo's event plane).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum

import zmq.asyncio

from hrl_planner.router.kv.history import History

_log = logging.getLogger(__name__)


class FeedState(StrEnum):
    """How far the index can be trusted about a worker.

    Attributes:
        LIVE: the index is what the engine has told, and that is all it holds.
        APPROXIMATE: the router's own decisions, and events where some come.
        LOST: events should come and do not; the router's own decisions stand in.
    """

    LIVE = "live"
    APPROXIMATE = "approximate"
    LOST = "lost"


class Feed(ABC):
    """Keeps a worker's blocks as its engine tells them.

    Args:
        name: the worker's, for the log.
        source: where its events come from, for the log.
        history: of the engine, written by this feed alone.
        silence_s: how long requests may run without any event before the feed counts as lost.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        source: str,
        history: History,
        silence_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._source = source
        self._history = history
        self._silence_s = silence_s
        self._clock = clock
        self._waiting_since_s: float | None = None
        self._lost_since_s: float | None = clock()

    @abstractmethod
    async def run(self, context: zmq.asyncio.Context) -> None:
        """Follow the engine until cancelled, or until it is refused."""

    @property
    def state(self) -> FeedState:
        """How far the worker's blocks can be trusted now."""
        if self._history.refused:
            return FeedState.APPROXIMATE
        if self._lost_since_s is not None:
            return FeedState.LOST
        return FeedState.LIVE if self._history.complete else FeedState.APPROXIMATE

    def expect_event(self, now_s: float) -> None:
        """A request was routed to the worker: sooner or later it must store a block."""
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s

    def check(self, now_s: float, forget_after_s: float) -> None:
        """Notice silence, and forget what a feed lost for long once told."""
        waiting = self._waiting_since_s
        if waiting is not None and now_s - waiting > self._silence_s:
            self._lose(now_s)
        lost = self._lost_since_s
        if lost is not None and now_s - lost > forget_after_s:
            self._forget()

    def _forget(self) -> None:
        self._history.forget()

    def _lose(self, now_s: float | None = None) -> None:
        self._waiting_since_s = None
        if self._lost_since_s is None:
            self._lost_since_s = self._clock() if now_s is None else now_s
            _log.warning("worker %s: KV events lost: %s", self._name, self._source)

    def _heard(self) -> None:
        self._waiting_since_s = None
        if self._lost_since_s is not None:
            self._lost_since_s = None
            _log.info("worker %s: KV events from %s", self._name, self._source)

    def _end(self) -> None:
        """Nothing is heard any more, for whatever reason `run` ends."""
        if self._lost_since_s is None:
            self._lost_since_s = self._clock()
