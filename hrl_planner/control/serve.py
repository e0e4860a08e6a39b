"""Planners as a service: watches, election, rounds and health of one process, put together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hrl_planner.control.connector import Connector
from hrl_planner.control.decision import Decision, Followed
from hrl_planner.control.decision_log import DecisionLog, Round
from hrl_planner.control.election import EachItsOwn, Elector, OneHeartbeat
from hrl_planner.control.fleet import Fleet, Planners
from hrl_planner.control.health import Health
from hrl_planner.control.instruments import Instruments
from hrl_planner.control.lease import Leases
from hrl_planner.control.mirrors import Mirrors
from hrl_planner.control.run import Key, Runner
from hrl_planner.control.watched import Watched
from hrl_planner.kube.access import find_configuration


class Service:
    """Runs planners of one namespace until it is stopped.

    Args:
        connector: of the namespace.
        planners: makes them.
        kubeconfig: of the watches; absent: as `kube.access` finds one.
        keys: planners to run, which then watch only what is theirs; absent: those of all groups.
        groups: where there are no keys, only those of these groups.
        log: where decisions go.
        instruments: what is counted and shown.
    """

    def __init__(
        self,
        connector: Connector,
        planners: Planners,
        kubeconfig: Path | None,
        keys: Sequence[Key] | None,
        groups: Sequence[str] = (),
        *,
        log: DecisionLog,
        instruments: Instruments,
    ) -> None:
        """See the class."""
        self._instruments = instruments
        audience = _Heard(log, instruments)
        self._mirrors = Mirrors(partial(find_configuration, kubeconfig))
        watched = Watched(connector, self._mirrors, whole=keys is None, wake=self._wake)
        leases = Leases(connector.api, connector.namespace, this_process(), time.monotonic)
        if keys is None:
            fleet = Fleet(watched, planners, groups)
            self._elector = Elector(OneHeartbeat(leases))
            self._runner = Runner(fleet.planners, self._elector, audience)
        else:
            fixed = {key: planners.make(key, watched) for key in keys}
            self._elector = Elector(EachItsOwn(leases))
            self._runner = Runner(lambda: fixed, self._elector, audience)

    def run(self, health_host: str, health_port: int) -> None:
        """Run until stopped, then let go of all leases.

        Args:
            health_host: where to answer `/healthz`, `/readyz` and `/metrics`.
            health_port: likewise; 0 for any free one.

        Raises:
            HrlPlannerError: if nobody can listen there.
        """
        runner, page = self._runner, self._instruments.page
        # Where nobody can listen, nobody has begun to lead.
        with (
            self._mirrors,
            Health(health_port, runner.alive, runner.ready, page, health_host),
            self._elector,
        ):
            runner.run()

    def stop(self) -> None:
        """End after the rounds that run; may be called from a signal handler."""
        self._runner.stop()

    @property
    def watches(self) -> int:
        """How many watches are kept."""
        return len(self._mirrors)

    def _wake(self, level: str, name: str) -> None:
        self._runner.wake(Key(level, name))


class _Heard:
    """Tells the log and the instruments of the process what its planners do."""

    def __init__(self, log: DecisionLog, instruments: Instruments) -> None:
        self._log = log
        self.led, self.ended = instruments.led, instruments.ended
        self._rounded, self._failed = instruments.rounded, instruments.failed

    def rounded(self, level: str, name: str, done: Round, took_s: float) -> None:
        self._rounded(level, name, done, took_s)
        self._log.write(name, done, took_s)

    def failed(
        self, level: str, name: str, took_s: float, *, gone: bool, asked: Decision | None
    ) -> None:
        self._failed(level, name, took_s, gone=gone)
        if asked is not None:  # the policy remembers it
            self._log.write(name, Followed(asked.spec.name, asked, "failed"), took_s)

    def followed(self, level: str, name: str, done: Followed, took_s: float) -> None:
        if done.decision is not None:  # what is remembered of it belongs to what is decided later
            self._log.write(name, done, took_s)


def this_process() -> str:
    """Return the name under which this process leads and decides."""
    return f"{socket.gethostname()}-{os.getpid()}"
