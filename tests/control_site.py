"""A group, its pools and their deployments on a real API server, and planners for all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.mirrors import Mirrors
from hrl_planner.control.watched import Reader, Watched
from hrl_planner.errors import KubeError
from hrl_planner.kube import WorkerPool, accounts_of, budget_of
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import Condition
from hrl_planner.ledger import counted
from hrl_planner.planner import PlanContext
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_objects

SPEC = ClusterSpec.load("small")
POOL = SPEC.pools[0].name
MERGE = "application/merge-patch+json"
ROUNDS = 40


@dataclass
class Site:
    """One namespace of them."""

    api: client.ApiClient
    namespace: str
    mirrors: Mirrors
    spec: ClusterSpec = SPEC
    metrics: PoolMetrics = field(default_factory=NoMetrics)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.connector = Connector(self.api, self.namespace)
        self.watched = Watched(self.connector, self.mirrors, whole=True)
        self.objects = client.CustomObjectsApi(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.restart()

    def restart(self) -> None:
        """Planners with empty memory."""
        self.global_planner = GlobalPlanner(
            self.connector, self.spec.name, self.metrics, self.clock, look=self.watched
        )
        self.locals = [
            LocalPlanner(
                self.connector, p.name, self.metrics, self.clock, look=self.watched, settle_s=0.0
            )
            for p in self.spec.pools
        ]

    def clock(self) -> float:
        return self.now_s

    def create(self, replicas: int | Mapping[str, int], **policy: str) -> None:
        for pool in self.spec.pools:
            count = replicas if isinstance(replicas, int) else replicas[pool.name]
            body = deployment(pool.name, count, pod_spec(["true"], pool.gpu_type))
            self.apps.create_namespaced_deployment(self.namespace, body)
        create_objects(self.objects, self.spec, self.namespace, **policy)

    def round(self) -> None:
        for planner in self.locals:
            self.catch_up()
            planner.round()
        self.catch_up()
        self.global_planner.round()
        self.count_held()

    def catch_up(self) -> None:
        """Wait until watches tell what is there, so that one round does what one round can."""
        until_s = time.monotonic() + 10.0
        while self.known(self.watched) != self.known(self.connector):
            assert time.monotonic() < until_s, "the watches lag behind"
            time.sleep(0.01)

    def known(self, reader: Reader) -> list[object]:
        pools = reader.pools().pools
        versions: list[object] = [pool.metadata.resource_version for pool in pools]
        versions += [reader.target(pool.spec.scale_target_ref).target for pool in pools]
        return [*versions, *(reader.pods(f"app={pool.name}") for pool in pools)]

    def pools(self) -> dict[str, WorkerPool]:
        return {pool.name: pool for pool in self.connector.pools(self.spec.name).pools}

    def replicas(self) -> dict[str, int]:
        found = self.apps.list_namespaced_deployment(self.namespace).items
        return {d.metadata.name: d.spec.replicas for d in found}

    def quotas(self) -> dict[str, int | None]:
        return {name: pool.spec.quota for name, pool in self.pools().items()}

    def until(self, replicas: dict[str, int]) -> None:
        for _ in range(ROUNDS):
            self.round()
            reserved = {name: p.status.reserved for name, p in self.pools().items()}
            if self.replicas() == self.quotas() == reserved == replicas:
                return
        raise AssertionError((self.replicas(), self.quotas(), self.pools()))

    def used(self) -> dict[str, float]:
        group = self.connector.group(self.spec.name)
        pools = list(self.pools().values())
        return dict(counted(budget_of(group), accounts_of(group, pools), ()))

    def count_held(self) -> None:
        held = dict.fromkeys(self.spec.budget.gpus, 0)
        core = client.CoreV1Api(self.api)
        for pool in self.spec.pools:
            pods = core.list_namespaced_pod(self.namespace, label_selector=f"app={pool.name}")
            held[pool.gpu_type] += len(pods.items) * pool.gpus_per_replica
        self.held = held

    def patch_group(self, spec: dict[str, Any]) -> None:
        self.objects.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, GROUPS, self.spec.name, {"spec": spec},
            _content_type=MERGE,
        )  # fmt: skip


def equal_split() -> dict[str, int]:
    policy = make_policy("static")
    policy.reset(PlanContext(SPEC))
    replicas = policy.decide(None).replicas  # type: ignore[arg-type]
    return {pool.name: int(n) for pool, n in zip(SPEC.pools, replicas, strict=True)}


class Broken(Site):
    """Planners that look at the API server itself: for what is broken, no watch can be awaited."""

    def restart(self) -> None:
        self.global_planner = GlobalPlanner(
            self.connector, self.spec.name, self.metrics, self.clock
        )
        self.locals = [
            LocalPlanner(self.connector, p.name, self.metrics, self.clock, settle_s=0.0)
            for p in self.spec.pools
        ]

    def catch_up(self) -> None:
        """Nothing lags."""


def patch_pool(site: Site, name: str, spec: dict[str, Any]) -> None:
    site.objects.patch_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, name, {"spec": spec}, _content_type=MERGE
    )


def told(site: Site, plural: str, name: str) -> dict[str, Condition]:
    """Conditions of an object, whatever else it says."""
    item: Any = site.objects.get_namespaced_custom_object(
        GROUP, VERSION, site.namespace, plural, name
    )
    conditions = item.get("status", {}).get("conditions", [])
    return {c["type"]: Condition.model_validate(c) for c in conditions}


def of_pool(site: Site, name: str = POOL) -> dict[str, Condition]:
    return told(site, POOLS, name)


def of_group(site: Site) -> dict[str, Condition]:
    return told(site, GROUPS, SPEC.name)


def events(site: Site, reason: str, name: str = POOL) -> list[str]:
    found = client.CoreV1Api(site.api).list_namespaced_event(site.namespace).items
    return [e.message for e in found if e.reason == reason and e.involved_object.name == name]


def rounds(site: Site, count: int = 4) -> None:
    """Rounds of all planners, as the process makes them: what fails is logged and tried again."""
    for _ in range(count):
        for planner in (*site.locals, site.global_planner):
            try:
                planner.round()
            except KubeError as error:
                logging.getLogger("round").warning("%s: %s", planner.name, error)


def others_work(site: Site) -> bool:
    """Whether the pools of the other GPU type have what the plan gives them.

    Those of the same type may have to wait: what the broken pool holds is not known.
    """
    replicas, plan = site.replicas(), equal_split()
    others = [pool.name for pool in SPEC.pools if pool.gpu_type != SPEC.pools[0].gpu_type]
    return all(replicas[name] == plan[name] > 1 for name in others)
