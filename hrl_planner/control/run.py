"""Planners as a process: rounds on a clock, each under its lease, until told to stop.

A few threads share the rounds that are due, so that a planner that waits for a slow answer keeps
none but itself waiting. A round that fails for the API server's sake is logged and tried again at
the next tick; nothing is kept that a failed round could have spoilt. Which planners there are may
change while it runs. Between two ticks a planner may be woken, since something came that it waits
for; what has been decided stays decided until the next tick.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from urllib3.exceptions import HTTPError

from hrl_planner.control.lease import DURATION_S
from hrl_planner.control.requests import MissingDefinitionError, NotFoundError
from hrl_planner.errors import HrlPlannerError

_log = logging.getLogger(__name__)

_THREADS = 8
# Which planners there are, and who leads, is looked at so often.
_TURN_S = 0.5
# Woken planners make a round at most so often: what changes, changes in bursts.
_LEAST_S = 1.0


class Key(NamedTuple):
    """A planner: its level, and the name of its group or pool."""

    level: str
    name: str

    @property
    def lease(self) -> str:
        """Name of its lease."""
        return f"hrl-planner-{self.level}-{self.name}"


class Planner(Protocol):
    """A planner of either level."""

    name: str
    interval_s: float

    def round(self) -> Any:
        """Look, decide, write; say what was seen and done."""

    def follow(self) -> Any:
        """Look and decide as in a round and write nothing, in order to go on where another ends."""


class Election(Protocol):
    """Says which planners this process leads."""

    answered: bool

    def want(self, names: list[str]) -> None:
        """Say which leases are wanted now."""

    def leads(self, name: str) -> bool:
        """Say whether a lease is ours."""


class Audience(Protocol):
    """Is told what planners do; from any thread."""

    def led(self, level: str, name: str, leads: bool) -> None:
        """Hear now and then whether a planner of this process acts."""

    def rounded(self, level: str, name: str, done: Any, took_s: float) -> None:
        """Hear of a round."""

    def followed(self, level: str, name: str, done: Any, took_s: float) -> None:
        """Hear of what a planner that does not lead has seen."""

    def failed(self, level: str, name: str, took_s: float, *, gone: bool) -> None:
        """Hear of a round that came to no end, perhaps as there is nothing to plan for any more."""

    def ended(self, level: str, name: str) -> None:
        """Hear that a planner is no more."""


@dataclass
class _Task:
    planner: Planner
    next_s: float = -math.inf
    follow_s: float = -math.inf
    last_s: float = -math.inf
    woken: bool = False
    running: bool = False
    complaint: str = ""

    def due_s(self, *, leads: bool) -> float:
        """Return when its next round should be, or its next look if another leads."""
        early_s = self.last_s + _LEAST_S if self.woken and leads else math.inf
        next_s = self.next_s if leads else self.follow_s
        return math.inf if self.running else min(next_s, early_s)


class Runner:
    """Runs planners until stopped.

    Args:
        planners: the planners there should be now; those that are not named any more end.
        election: says which of them may act.
        audience: is told what they do.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        planners: Callable[[], Mapping[Key, Planner]],
        election: Election,
        audience: Audience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See the class."""
        self._planners = planners
        self._election = election
        self._audience = audience
        self._clock = clock
        self._tasks: dict[Key, _Task] = {}
        self._complaint = ""
        self._undefined: set[Key | None] = set()  # whose last try lacked definitions
        self._stopped = False
        self._changed = threading.Condition()
        self._turned_s = clock()

    def stop(self) -> None:
        """End after the rounds that run; may be called from a signal handler."""
        self._stopped = True

    def wake(self, key: Key) -> None:
        """Make a round of a planner soon; may be called from any thread."""
        with self._changed:
            task = self._tasks.get(key)
            if task is not None and not task.woken:
                task.woken = True
                self._changed.notify()

    def alive(self) -> bool:
        """Say whether the loop still turns."""
        return self._clock() - self._turned_s < 6.0 * DURATION_S

    def ready(self) -> bool:
        """Say whether the API server has answered and knows what planners work on.

        A planner that waits for its turn is ready.
        """
        return self._election.answered and not self._undefined

    def run(self) -> None:
        """Run until stopped."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="round") as threads:
            refreshed_s = -math.inf
            while not self._stopped:
                self._turned_s = self._clock()
                if self._turned_s - refreshed_s >= _TURN_S:
                    self._refresh()
                    refreshed_s = self._turned_s
                with self._changed:
                    for key, task in self._due():
                        task.running, task.woken = True, False
                        threads.submit(self._round, key, task)
                    self._changed.wait(self._pause_s())

    def _due(self) -> list[tuple[Key, _Task]]:
        """Return what is due, the longest due first."""
        now_s = self._clock()
        due = [(self._due_s(key, task), key, task) for key, task in self._tasks.items()]
        return [(k, task) for at_s, k, task in sorted(due, key=lambda d: d[0]) if at_s <= now_s]

    def _due_s(self, key: Key, task: _Task) -> float:
        return task.due_s(leads=self._election.leads(key.lease))

    def _pause_s(self) -> float:
        next_s = min((self._due_s(*item) for item in self._tasks.items()), default=math.inf)
        return min(max(next_s - self._clock(), 0.0), _TURN_S)

    def _refresh(self) -> None:
        """Begin with planners that came, and forget those that went."""
        try:
            planners = self._planners()
        except (HrlPlannerError, HTTPError) as error:
            level = logging.DEBUG if str(error) == self._complaint else logging.WARNING
            self._complaint = str(error)
            self._note(None, error)
            _log.log(level, "cannot tell which planners there should be: %s", error)
            return
        self._complaint = ""
        self._note(None, None)
        with self._changed:
            for key in self._tasks.keys() - planners.keys():
                _log.info("%s planner %s ends", key.level, key.name)
                self._audience.ended(*key)
                del self._tasks[key]
                self._undefined.discard(key)
            for key, planner in planners.items():
                if key not in self._tasks:
                    self._tasks[key] = _Task(planner)
        self._election.want([key.lease for key in planners])
        for key in planners:
            self._audience.led(*key, self._election.leads(key.lease))

    def _note(self, key: Key | None, error: Exception | None) -> None:
        """Remember who has found no definitions."""
        with self._changed:
            if isinstance(error, MissingDefinitionError):
                self._undefined.add(key)
            else:
                self._undefined.discard(key)

    def _round(self, key: Key, task: _Task) -> None:
        began_s = self._clock()
        leads = self._election.leads(key.lease)
        try:
            if self._stopped:
                return
            if not leads:
                self._audience.followed(*key, task.planner.follow(), self._clock() - began_s)
                return
            done = task.planner.round()
            task.complaint = ""
            self._note(key, None)
            self._audience.rounded(*key, done, self._clock() - began_s)
        except (HrlPlannerError, HTTPError) as error:
            gone = isinstance(error, NotFoundError)
            if leads:
                self._audience.failed(*key, self._clock() - began_s, gone=gone)
            level = logging.DEBUG if str(error) == task.complaint else logging.WARNING
            task.complaint = str(error)
            self._note(key, error)
            _log.log(level, "%s planner %s: %s", key.level, key.name, error)
        except Exception:  # a fault of this planner must not end the others
            if leads:
                self._audience.failed(*key, self._clock() - began_s, gone=False)
            _log.exception("%s planner %s", key.level, key.name)
        finally:
            with self._changed:
                task.running, task.last_s = False, self._clock()
                if not leads:
                    task.follow_s = task.last_s + task.planner.interval_s
                elif began_s >= task.next_s:
                    task.next_s = task.last_s + task.planner.interval_s
                self._changed.notify()
