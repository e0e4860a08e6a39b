"""Planners as a process: rounds on a clock, each under its lease, until told to stop.

One thread runs all planners of the process in turn. A round that fails for the API server's sake is
logged and tried again at the next tick; nothing is kept that a failed round could have spoilt.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from urllib3.exceptions import HTTPError

from hrl_planner.control.decision_log import DecisionLog, Round
from hrl_planner.control.instruments import Instruments
from hrl_planner.control.lease import DURATION_S, Lease
from hrl_planner.control.requests import NotFoundError
from hrl_planner.errors import HrlPlannerError

_log = logging.getLogger(__name__)

RENEW_S = DURATION_S / 3.0


class Planner(Protocol):
    """A planner of either level."""

    name: str
    interval_s: float

    def round(self) -> Round:
        """Look, decide, write; say what was seen and done."""


@dataclass
class Task:
    """A planner, its level for the log, and the lease it acts under."""

    level: str
    planner: Planner
    lease: Lease
    next_s: float = -math.inf
    leads: bool = False


class Runner:
    """Runs tasks until stopped.

    Args:
        tasks: planners of this process.
        log: where decisions go.
        instruments: what is counted and shown.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        log: DecisionLog,
        instruments: Instruments,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See the class."""
        self._tasks = list(tasks)
        self._log = log
        self._instruments = instruments
        self._clock = clock
        self._stop = threading.Event()
        self._turned_s = clock()
        self._answered = False

    def stop(self) -> None:
        """End after the round that runs; may be called from a signal handler."""
        self._stop.set()

    def alive(self) -> bool:
        """Say whether the loop still turns."""
        return self._clock() - self._turned_s < 6.0 * DURATION_S

    def ready(self) -> bool:
        """Say whether the API server has answered; a planner that waits for its turn is ready."""
        return self._answered

    def run(self) -> None:
        """Run until stopped, then let go of all leases."""
        while not self._stop.is_set():
            self._turned_s = self._clock()
            for task in self._tasks:
                if not self._stop.is_set():
                    self._turn(task)
            self._stop.wait(min(RENEW_S, max(self._next_s() - self._clock(), 0.1)))
        for task in self._tasks:
            if task.leads:
                task.lease.release()

    def _next_s(self) -> float:
        return min((t.next_s for t in self._tasks if t.leads), default=math.inf)

    def _turn(self, task: Task) -> None:
        try:
            leads = task.lease.hold()
            self._answered = True
            if leads != task.leads:
                words = "leads" if leads else "no longer leads"
                _log.info("%s planner %s %s", task.level, task.planner.name, words)
                task.leads = leads
                self._instruments.led(task.level, task.planner.name, leads)
            if leads and self._clock() >= task.next_s:
                self._round(task)
        except (HrlPlannerError, HTTPError) as error:
            task.next_s = self._clock() + task.planner.interval_s
            _log.warning("%s planner %s: %s", task.level, task.planner.name, error)

    def _round(self, task: Task) -> None:
        level, name, began_s = task.level, task.planner.name, self._clock()
        try:
            done = task.planner.round()
        except (HrlPlannerError, HTTPError) as error:
            gone = isinstance(error, NotFoundError)
            self._instruments.failed(level, name, self._clock() - began_s, gone=gone)
            raise
        took_s = self._clock() - began_s
        task.next_s = self._clock() + task.planner.interval_s
        self._instruments.rounded(level, name, done, took_s)
        self._log.write(name, done, took_s)
