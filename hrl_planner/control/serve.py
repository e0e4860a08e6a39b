"""Planners as a service: watches, election, rounds and health of one process, put together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from hrl_planner.control.connector import Connector
from hrl_planner.control.election import EachItsOwn, Elector, OneHeartbeat
from hrl_planner.control.fleet import Fleet, Planners
from hrl_planner.control.health import Health
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
    """

    def __init__(
        self,
        connector: Connector,
        planners: Planners,
        kubeconfig: Path | None,
        keys: Sequence[Key] | None,
        groups: Sequence[str] = (),
    ) -> None:
        """See the class."""
        self._mirrors = Mirrors(partial(find_configuration, kubeconfig))
        watched = Watched(connector, self._mirrors, whole=keys is None, wake=self._wake)
        holder = f"{socket.gethostname()}-{os.getpid()}"
        leases = Leases(connector.api, connector.namespace, holder, time.monotonic)
        if keys is None:
            fleet = Fleet(watched, planners, groups)
            self._elector = Elector(OneHeartbeat(leases))
            self._runner = Runner(fleet.planners, self._elector)
        else:
            fixed = {key: planners.make(key, watched) for key in keys}
            self._elector = Elector(EachItsOwn(leases))
            self._runner = Runner(lambda: fixed, self._elector)

    def run(self, log: TextIO, health_host: str, health_port: int) -> None:
        """Run until stopped, then let go of all leases.

        Args:
            log: where decisions go, a JSON object a line.
            health_host: where to answer `/healthz` and `/readyz`.
            health_port: likewise; 0 for any free one.
        """
        health = Health(health_port, self._runner.alive, self._runner.ready, health_host)
        with self._mirrors, self._elector, health:
            self._runner.run(log)

    def stop(self) -> None:
        """End after the rounds that run; may be called from a signal handler."""
        self._runner.stop()

    @property
    def watches(self) -> int:
        """How many watches are kept."""
        return len(self._mirrors)

    def _wake(self, level: str, name: str) -> None:
        self._runner.wake(Key(level, name))
