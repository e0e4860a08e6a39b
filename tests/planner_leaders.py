"""Planners as processes see themselves: what watches tell them, and what they are told to want.

A `Leader` is one process with one of the pods' planners, or one that believes it leads. Its policy
answers what a schedule says, and its watches tell of any moment of the past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner
from hrl_planner.control.connector import parsed_group, parsed_pool, pool_list
from hrl_planner.control.pods import PodCounts, count_pods, pod_of
from hrl_planner.control.pool_list import PoolList
from hrl_planner.control.targets import Targets, TargetState
from hrl_planner.kube.crds import GROUPS, POOLS
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner import Plan, PlanContext
from hrl_planner.planner.registry import register_policy
from tests.modelled_kubernetes import PODS, ModelClient, Request, Store, read
from tests.planner_site import NAMESPACE, TOLD, Counts


class Told:
    """A policy that answers what a schedule says at this moment."""

    name = "told"
    interval_s = 1.0
    plan: ClassVar[Counts] = {}

    def reset(self, context: PlanContext) -> None:
        self._pools = [pool.name for pool in context.spec.pools]

    def decide(self, observation: ClusterObservation) -> Plan:
        return Plan(np.array([self.plan[name] for name in self._pools], np.int64), reason="told")

    def listen(self, observation: ClusterObservation) -> Plan:
        return self.decide(observation)


register_policy(TOLD, Told, "for tests: what a schedule says")


@dataclass
class Leader:
    """A process with one planner, or one that believes it is the leader of it.

    Attributes:
        name: of the pool; empty for a global planner.
        plan: what its policy is told to answer.
        view: what its watches tell, of every kind as of some moment.
        make: a planner without memory.
    """

    name: str
    plan: Counts
    view: Store
    make: Callable[[], GlobalPlanner | LocalPlanner]
    busy: bool = False

    def __post_init__(self) -> None:
        self.planner = self.make()


class Watches:
    """Reads of the past, and of the present where it must be the present."""

    def __init__(self, view: Store, now: Connector, parsed: dict[str, Any]) -> None:
        self._view, self._now, self._parsed = view, now, parsed
        # A target and its scale are read as the server's own, only of the past.
        self._then = Targets(ModelClient(lambda request: read(view, request)), NAMESPACE)

    def group(self, name: str) -> ServingGroup:
        item = self._view[GROUPS].get(name)
        return self._now.group(name) if item is None else self._once(parsed_group, item)

    def pool(self, name: str) -> WorkerPool:
        item = self._view[POOLS].get(name)
        return self._now.pool(name) if item is None else self._once(parsed_pool, item)

    def pools(self, group: str | None = None) -> PoolList:
        found = {name: self._once(parsed_pool, i) for name, i in self._view[POOLS].items()}
        return pool_list(found, group)

    def pools_now(self, group: str | None = None) -> PoolList:
        return self._now.pools_now(group)

    def target(self, ref: ScaleTargetRef) -> TargetState:
        return self._then.read(ref)

    def pods(self, selector: str, per_replica: int = 1) -> PodCounts:
        listed = read(self._view, Request("GET", PODS, labels=selector)).item["items"]
        return count_pods(map(pod_of, listed), per_replica)

    def pods_now(self, selector: str, per_replica: int = 1) -> PodCounts:
        return self._now.pods_now(selector, per_replica)

    def _once(self, parse: Callable[[Any], Any], item: Any) -> Any:
        version = item["metadata"]["resourceVersion"]
        if version not in self._parsed:
            self._parsed[version] = parse(item)
        return self._parsed[version]
