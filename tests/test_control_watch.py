"""Planners that look at watches: when the API server goes and comes, and when news are old."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.decision_log import DecisionLog
from hrl_planner.control.fleet import Planners
from hrl_planner.control.instruments import Instruments
from hrl_planner.control.pods import PodCounts
from hrl_planner.control.pool_list import PoolList
from hrl_planner.control.run import Key
from hrl_planner.control.serve import Service
from hrl_planner.control.targets import TargetState
from hrl_planner.control.watched import Watched
from hrl_planner.kube import ServingGroup, WorkerPool, accounts_of, budget_of, reflector
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.ledger import counted
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_objects, manifests, mirrors_of

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
PATIENCE_S = 60.0
MERGE = "application/merge-patch+json"


@pytest.fixture
def namespace(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[str]:
    with control_plane.namespace("watch") as name:
        for pool in SPEC.pools:
            body = deployment(pool.name, 1, pod_spec(["true"], pool.gpu_type))
            client.AppsV1Api(admin).create_namespaced_deployment(name, body)
        objects = client.CustomObjectsApi(admin)
        create_objects(objects, SPEC, name, allocator="static", scaler="quota", mode="active")
        yield name


def until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.05)


def patch_pool(admin: client.ApiClient, namespace: str, name: str, spec: dict[str, Any]) -> None:
    client.CustomObjectsApi(admin).patch_namespaced_custom_object(
        GROUP, VERSION, namespace, POOLS, name, {"spec": spec}, _content_type=MERGE
    )


class Picture:
    """What there was when it was taken, for a planner whose watches have stopped."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._group = connector.group(SPEC.name)
        self._pools = connector.pools()
        refs = [pool.spec.scale_target_ref for pool in self._pools.pools]
        self._targets = {ref: connector.target(ref) for ref in refs}
        selectors = [target.selector for target in self._targets.values()]
        self._pods = {selector: connector.pods(selector) for selector in selectors}

    def group(self, name: str) -> ServingGroup:
        return self._group

    def pool(self, name: str) -> WorkerPool:
        return next(pool for pool in self._pools.pools if pool.name == name)

    def pools(self, group: str | None = None) -> PoolList:
        return self._pools

    def pools_now(self, group: str | None = None) -> PoolList:
        return self._connector.pools(group)

    def target(self, ref: ScaleTargetRef) -> TargetState:
        return self._targets[ref]

    def pods(self, selector: str, per_replica: int = 1) -> PodCounts:
        return self._pods[selector]

    def pods_now(self, selector: str, per_replica: int = 1) -> PodCounts:
        return self._connector.pods(selector, per_replica)


def test_planners_with_old_news_grant_nothing_that_is_not_free_now(
    admin: client.ApiClient, namespace: str
) -> None:
    """One pool was given all that another planner, of an older picture, would give to others."""
    connector = Connector(admin, namespace)

    def planners(look: Any) -> list[GlobalPlanner | LocalPlanner]:
        names = [pool.name for pool in SPEC.pools]
        return [
            *(
                LocalPlanner(connector, n, NoMetrics(), lambda: 0.0, look=look, settle_s=0.0)
                for n in names
            ),
            GlobalPlanner(connector, SPEC.name, NoMetrics(), lambda: 0.0, look=look),
        ]

    def granted() -> dict[str, float]:
        group = connector.group(SPEC.name)
        pools = connector.pools(SPEC.name).pools
        return dict(counted(budget_of(group), accounts_of(group, pools), ()))

    for planner in planners(connector):
        planner.round()
    before = planners(Picture(connector))
    for _ in range(12):
        for planner in planners(connector):
            planner.round()
    full = granted()
    assert full == {kind: float(count) for kind, count in SPEC.budget.gpus.items()}
    quotas = {pool.name: pool.spec.quota for pool in connector.pools(SPEC.name).pools}
    for _ in range(3):
        for planner in before:
            planner.round()
            assert all(granted()[kind] <= n for kind, n in SPEC.budget.gpus.items())
    assert {p.name: p.spec.quota for p in connector.pools(SPEC.name).pools} == quotas


def test_a_watch_goes_on_when_the_api_server_is_back(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    name = SPEC.pools[0].name
    with mirrors_of(control_plane) as mirrors:
        watched = Watched(Connector(admin, namespace), mirrors, whole=True)
        assert watched.pool(name).spec.quota is None
        control_plane.restart("kube-apiserver")
        patch_pool(admin, namespace, name, {"quota": 3})
        until(lambda: watched.pool(name).spec.quota == 3, 10.0)


def test_what_watches_cannot_tell_is_asked_of_the_api_server(
    control_plane: ControlPlane, namespace: str
) -> None:
    """An account that may read and not watch sees the same, a request at a time."""
    admin = control_plane.client()
    rules = [{"apiGroups": [GROUP], "resources": ["*"], "verbs": ["get", "list"]}]
    api = client.RbacAuthorizationV1Api(admin)
    role: Any = {"metadata": {"name": "reads"}, "rules": rules}
    api.create_namespaced_role(namespace, role)
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    ref = {"kind": "Role", "name": "reads", "apiGroup": "rbac.authorization.k8s.io"}
    binding: Any = {"metadata": {"name": "reads"}, "subjects": [subject], "roleRef": ref}
    api.create_namespaced_role_binding(namespace, binding)
    limited = control_plane.client(service_account=(namespace, "default"))
    until(lambda: _may_list(limited, namespace))
    config = control_plane.service_account_kubeconfig(namespace, "default")
    with mirrors_of(control_plane, config) as mirrors:
        watched = Watched(Connector(limited, namespace), mirrors, whole=True)
        patch_pool(admin, namespace, SPEC.pools[0].name, {"quota": 5})
        assert watched.pool(SPEC.pools[0].name).spec.quota == 5
        patch_pool(admin, namespace, SPEC.pools[0].name, {"quota": 6})
        until(lambda: watched.pool(SPEC.pools[0].name).spec.quota == 6, 20.0)
        assert len(watched.pools(SPEC.name).pools) == len(SPEC.pools)


def _may_list(api: client.ApiClient, namespace: str) -> bool:
    try:
        client.CustomObjectsApi(api).list_namespaced_custom_object(GROUP, VERSION, namespace, POOLS)
    except client.ApiException:
        return False
    return True


def test_lists_come_in_pages(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_PAGE", 1)
    with mirrors_of(control_plane) as mirrors:
        watched = Watched(Connector(control_plane.client(), namespace), mirrors, whole=True)
        assert [pool.name for pool in watched.pools().pools] == sorted(p.name for p in SPEC.pools)


@contextmanager
def serving(plane: ControlPlane, namespace: str, keys: list[Key] | None = None) -> Iterator[Log]:
    connector = Connector(plane.client(), namespace)
    planners = Planners(connector, NoMetrics(), settle_s=0.0)
    log = Log()
    decisions = DecisionLog(logging.StreamHandler(log), "test", namespace)
    service = Service(
        connector, planners, plane.kubeconfig, keys, log=decisions, instruments=Instruments()
    )
    thread = threading.Thread(target=service.run, args=("127.0.0.1", 0))
    thread.start()
    try:
        yield log
    finally:
        service.stop()
        thread.join(PATIENCE_S)


class Log(io.StringIO):
    """A decision log."""

    def names(self) -> set[str]:
        lines = map(json.loads, self.getvalue().splitlines())
        return {line["name"] for line in lines if line["kind"] == "round"}


def leases(admin: client.ApiClient, namespace: str) -> set[str]:
    found: Any = client.CoordinationV1Api(admin).list_namespaced_lease(namespace)
    return {lease.metadata.name for lease in found.items}


def test_pools_and_groups_that_come_are_planned_for_and_those_that_go_are_let_go(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    objects = client.CustomObjectsApi(admin)
    gone, *others = [pool.name for pool in SPEC.pools]
    group, *pools = manifests(SPEC, namespace)
    with serving(control_plane, namespace) as log:
        until(lambda: {SPEC.name, gone, *others} <= log.names())
        late = group | {"metadata": {"name": "late", "namespace": namespace}}
        objects.create_namespaced_custom_object(GROUP, VERSION, namespace, GROUPS, late)
        new = pools[0] | {"metadata": {"name": "new", "namespace": namespace}}
        new["spec"] |= {"group": "late"}
        objects.create_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, new)
        until(lambda: {"late", "new"} <= log.names())
        objects.delete_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, gone)
        until(lambda: f"hrl-planner-local-{gone}" not in leases(admin, namespace))
        assert f"hrl-planner-local-{others[0]}" in leases(admin, namespace)
    assert not [name for name in leases(admin, namespace) if "process" in name]


@pytest.mark.slow
def test_planners_act_within_seconds_after_an_outage(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    client.CustomObjectsApi(admin).patch_namespaced_custom_object(
        GROUP, VERSION, namespace, GROUPS, SPEC.name, {"spec": {"intervals": {"localS": 1}}},
        _content_type=MERGE,
    )  # fmt: skip
    with serving(control_plane, namespace) as log:
        until(lambda: SPEC.name in log.names())
        control_plane.kill("kube-apiserver")
        time.sleep(12.0)  # longer than a lease is believed, and than pauses are long
        control_plane.restart("kube-apiserver")
        before = len(log.getvalue())
        until(lambda: len(log.getvalue()) > before, 10.0)


def test_a_planner_of_one_pool_watches_only_what_it_needs(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    name = SPEC.pools[0].name
    with serving(control_plane, namespace, [Key("local", name)]) as log:
        until(lambda: name in log.names())
        until(lambda: Connector(admin, namespace).pool(name).status.reserved == 1)
        patch_pool(admin, namespace, name, {"quota": 2})
        until(lambda: Connector(admin, namespace).pool(name).status.reserved == 2)
    assert log.names() == {name}


def test_pods_among_thousands_are_found_as_they_are_now(
    admin: client.ApiClient, namespace: str
) -> None:
    """Whether the API server's memory is new enough or not, what was made before is seen."""
    core, connector = client.CoreV1Api(admin), Connector(admin, namespace)
    until(lambda: connector.pods(f"app={SPEC.pools[0].name}").held == 1)
    for index in range(3):
        body: Any = {"metadata": {"name": f"pod-{index}", "labels": {"app": "many"}}}
        core.create_namespaced_pod(namespace, body | {"spec": pod_spec(["true"], "H100")})
        assert connector.pods("app=many", crowded=True).held == index + 1


def test_pools_among_hundreds_are_read_as_they_are_now(
    admin: client.ApiClient, namespace: str
) -> None:
    connector, name = Connector(admin, namespace), SPEC.pools[0].name
    for quota in (3, 1, 2):
        patch_pool(admin, namespace, name, {"quota": quota})
        read = connector.pools(SPEC.name, crowded=True).pools
        assert next(pool.spec.quota for pool in read if pool.name == name) == quota
        assert len(read) == len(SPEC.pools)
