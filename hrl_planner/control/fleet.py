"""Which planners there should be: those of the groups there are, and of all their pools.

Asked again and again by the runner: a pool that is new has a planner from then on, and one that is
gone has none any more. Of a group that was deleted the global planner stays until it has let its
deleted pools go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from hrl_planner.control.connector import Connector
from hrl_planner.control.global_planner import GlobalPlanner
from hrl_planner.control.local_planner import SETTLE_S, LocalPlanner
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.run import Key, Planner
from hrl_planner.control.watched import Reader, Watched
from hrl_planner.kube.crds import FINALIZER
from hrl_planner.kube.resources import WorkerPool

GLOBAL, LOCAL = "global", "local"


class Planners:
    """Makes planners that differ in nothing but their level and name.

    Args:
        connector: of their namespace.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        settle_s: see `LocalPlanner`.
        dry_run: write nothing.
        patient: see `GlobalPlanner`.
    """

    def __init__(
        self,
        connector: Connector,
        metrics: PoolMetrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        settle_s: float = SETTLE_S,
        dry_run: bool = False,
        patient: bool = False,
    ) -> None:
        """See the class."""
        self._connector, self._metrics, self._clock = connector, metrics, clock
        self._settle_s, self._dry_run, self._patient = settle_s, dry_run, patient

    def make(self, key: Key, look: Reader) -> Planner:
        """Return a new planner that looks first at what a reader tells."""
        if key.level == GLOBAL:
            return GlobalPlanner(
                self._connector, key.name, self._metrics, self._clock,
                look=look, dry_run=self._dry_run, patient=self._patient,
            )  # fmt: skip
        return LocalPlanner(
            self._connector, key.name, self._metrics, self._clock,
            look=look, settle_s=self._settle_s, dry_run=self._dry_run,
        )  # fmt: skip


class Fleet:
    """The planners of a namespace.

    Args:
        watched: tells which groups and pools there are.
        planners: makes them.
        only: names of groups; none for all groups.
    """

    def __init__(self, watched: Watched, planners: Planners, only: Collection[str] = ()) -> None:
        """See the class."""
        self._watched = watched
        self._make = planners
        self._only = frozenset(only)
        self._planners: dict[Key, Planner] = {}

    def planners(self) -> Mapping[Key, Planner]:
        """Return them all; those that were there before are the same ones.

        Raises:
            KubeError: if neither watches nor the API server can tell.
        """
        groups = self._watched.groups()
        if groups is None and not self._planners:
            groups = self._watched.groups_afresh()  # or hear why nobody can tell
        if groups is not None:
            keys = wanted(groups, self._watched.pools().pools, self._only)
            self._planners = {
                key: self._planners.get(key) or self._make.make(key, self._watched) for key in keys
            }
        return self._planners


def wanted(
    groups: Collection[str], pools: Collection[WorkerPool], only: Collection[str] = ()
) -> list[Key]:
    """Return the planners that groups and pools need: those of pools first, as groups need them."""
    planned = set(only) or set(groups)
    leaving = {
        pool.spec.group
        for pool in pools
        if FINALIZER in pool.metadata.finalizers and pool.metadata.deletion_timestamp
    }
    locals_ = [Key(LOCAL, pool.name) for pool in pools if pool.spec.group in planned]
    guarded = planned if only else planned | leaving
    return [*locals_, *(Key(GLOBAL, name) for name in sorted(guarded))]
