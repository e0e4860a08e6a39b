"""Accounts on a real API server: each planner and the router can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.election import EachItsOwn, OneHeartbeat
from hrl_planner.control.lease import Lease, Leases
from hrl_planner.kube.access import find_configuration
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import Installation, accounts
from hrl_planner.router.discovery import Snapshot
from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import apply_all, create_objects, install_definitions

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
POOL, OTHER = "decode-h100", "decode-l40s"
LOCAL, GLOBAL = f"hrl-planner-local-{POOL}", f"hrl-planner-global-{SPEC.name}"
# aiohttp does not wait until TLS connections are closed, and an open one is a warning later on.
GOOD_BYE_S = 0.5
ROUTER, ALL = f"hrl-planner-router-{SPEC.name}", f"hrl-planner-all-{SPEC.name}"


@dataclass
class Installed:
    """A namespace in which a group, its targets and all accounts are."""

    plane: ControlPlane
    namespace: str

    def connector(self, account: str | None) -> Connector:
        return Connector(self.api(account), self.namespace)

    def api(self, account: str | None) -> client.ApiClient:
        if account is None:
            return self.plane.client()
        return self.plane.client(service_account=(self.namespace, account))

    def leases(self, account: str | None) -> Leases:
        holder = account or "administrator"
        return Leases(self.api(account), self.namespace, holder, time.monotonic)

    def planner(self, account: str) -> GlobalPlanner:
        return GlobalPlanner(self.connector(account), SPEC.name, NoMetrics(), time.monotonic)

    def scaler(self, account: str, pool: str) -> LocalPlanner:
        connector = self.connector(account)
        return LocalPlanner(connector, pool, NoMetrics(), time.monotonic, settle_s=0.0)

    def read(self, plural: str, name: str) -> Any:
        objects = client.CustomObjectsApi(self.plane.client())
        return objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, name)


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[Installed]:
    admin = control_plane.client()
    install_definitions(admin)
    with control_plane.namespace("accounts") as namespace:
        for pool in SPEC.pools:
            body = deployment(pool.name, 1, pod_spec(["true"], pool.gpu_type))
            client.AppsV1Api(admin).create_namespaced_deployment(namespace, body)
        objects = client.CustomObjectsApi(admin)
        create_objects(objects, SPEC, namespace, allocator="static", scaler="quota", mode="active")
        apply_all(admin, accounts(Installation(SPEC, namespace)))
        whole = accounts(Installation(SPEC, namespace, layout="all-in-one"))
        apply_all(admin, [made for made in whole if made["metadata"]["name"] == ALL])
        yield Installed(control_plane, namespace)


def events(installed: Installed, reason: str) -> list[Any]:
    found = client.CoreV1Api(installed.api(None)).list_namespaced_event(installed.namespace)
    return [event for event in found.items if event.reason == reason]


def test_planners_bring_a_group_to_its_plan_each_under_its_own_account(
    installed: Installed,
) -> None:
    planner = installed.planner(GLOBAL)
    scalers = [installed.scaler(f"hrl-planner-local-{p.name}", p.name) for p in SPEC.pools]
    for scaler in scalers:
        scaler.round()
    written = planner.round().written
    assert any("quota" in words for words in written)
    for scaler in scalers:
        scaler.round()
    for pool in SPEC.pools:
        made = installed.read(POOLS, pool.name)
        assert made["metadata"]["finalizers"]
        assert made["status"]["desired"] == made["spec"]["quota"]
    assert installed.read(GROUPS, SPEC.name)["status"]["planned"]
    assert events(installed, "Planned")
    assert events(installed, "Scaled")


def test_one_process_plans_for_all_under_the_account_of_that_layout(installed: Installed) -> None:
    installed.planner(ALL).round()
    assert installed.scaler(ALL, POOL).round().error == ""


def test_a_planner_takes_its_lease_and_lets_it_go(installed: Installed) -> None:
    for account in (GLOBAL, LOCAL):
        keeper = EachItsOwn(installed.leases(account))
        assert keeper.keep([account]) == {account}
        assert not Lease(installed.leases(None), account).hold()
        keeper.release()
        other = Lease(installed.leases(None), account)
        assert other.hold()
        other.release()


def test_one_process_for_all_holds_their_leases_by_its_heartbeat(installed: Installed) -> None:
    keeper = OneHeartbeat(installed.leases(ALL))
    assert keeper.keep([GLOBAL, LOCAL]) == {GLOBAL, LOCAL}
    keeper.release()
    assert Lease(installed.leases(None), GLOBAL).hold()


@pytest.mark.parametrize("account", [ROUTER, GLOBAL, LOCAL])
def test_workers_and_flows_are_found_by_whoever_follows_them(
    installed: Installed, account: str
) -> None:
    kubeconfig = installed.plane.service_account_kubeconfig(installed.namespace, account)

    async def first() -> Snapshot:
        found = KubernetesDiscovery(
            installed.namespace,
            group=SPEC.name,
            configuration=partial(find_configuration, kubeconfig),
        )
        snapshots = found.snapshots()
        try:
            return await asyncio.wait_for(anext(snapshots), 10.0)
        finally:
            await snapshots.aclose()
            await asyncio.sleep(GOOD_BYE_S)

    assert asyncio.run(first()).workers == ()


CORE, APPS = "/api/v1/namespaces/NS", "/apis/apps/v1/namespaces/NS/deployments"
OURS = f"/apis/{GROUP}/{VERSION}/namespaces/NS"
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/NS"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/NS/leases"

# What the account of a pool, of a group and of a router may do: what they are refused is the rest.
POOLS_OWN = {
    f"GET {APPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3D{POOL}",
    f"PATCH {OURS}/{POOLS}/{POOL}/status",
    f"GET {APPS}/{POOL}",
    f"GET {APPS}/{POOL}/scale",
    f"PUT {APPS}/{POOL}/scale",
    f"PUT {LEASES}/{LOCAL}",
}
GROUPS_OWN = {
    f"PATCH {OURS}/{GROUPS}/{SPEC.name}/status",
    f"PATCH {OURS}/{POOLS}/{POOL}",
    f"PATCH {OURS}/{POOLS}/{OTHER}",
    f"PUT {LEASES}/{GLOBAL}",
}
PLANNERS_OWN = {
    f"GET {OURS}/{POOLS}",
    f"GET {OURS}/{GROUPS}/{SPEC.name}",
    f"POST {CORE}/events",
}
EVERYBODYS = {
    f"GET {CORE}/pods",
    f"GET {CORE}/pods?watch=true&timeoutSeconds=1",
    f"GET {OURS}/{GROUPS}?fieldSelector=metadata.name%3D{SPEC.name}",
    f"GET {OURS}/{GROUPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3D{SPEC.name}",
}
NOBODYS = {
    f"GET {CORE}/secrets",
    f"GET {CORE}/configmaps",
    f"POST {CORE}/pods",
    f"DELETE {CORE}/pods",
    f"DELETE {CORE}/pods/any",
    f"POST {CORE}/pods/any/eviction",
    f"POST {CORE}/pods/any/exec?command=id",
    f"GET {CORE}/pods/any/log",
    f"POST {CORE}/serviceaccounts/{GLOBAL}/token",
    f"PATCH {APPS}/{POOL}",
    f"PUT {APPS}/{POOL}",
    f"DELETE {APPS}/{POOL}",
    f"POST {APPS}",
    f"GET {APPS}",
    f"PATCH {APPS}/{OTHER}/scale",
    f"PATCH {OURS}/{GROUPS}/{SPEC.name}",
    f"DELETE {OURS}/{POOLS}/{POOL}",
    f"DELETE {OURS}/{POOLS}",
    f"POST {OURS}/{POOLS}",
    f"PATCH {OURS}/{POOLS}/{POOL}/scale",
    f"PUT {OURS}/{POOLS}/{POOL}",
    f"POST {LEASES}",
    f"GET {LEASES}",
    f"PUT {LEASES}/hrl-planner-local-{OTHER}",
    f"DELETE {LEASES}/{GLOBAL}",
    f"GET {RBAC}/roles",
    f"POST {RBAC}/roles",
    f"POST {RBAC}/rolebindings",
    "GET /api/v1/namespaces/kube-system/pods",
    "GET /api/v1/pods",
    "GET /api/v1/nodes",
    f"PATCH {OURS}/{POOLS}/{OTHER}/status",
    f"PUT {APPS}/{OTHER}/scale",
    f"GET {APPS}/{OTHER}",
}
ALL_REQUESTS = POOLS_OWN | GROUPS_OWN | PLANNERS_OWN | EVERYBODYS | NOBODYS


def answer(api: client.ApiClient, namespace: str, request: str) -> int:
    """The status of a request; permission is judged before anything is made of its body."""
    method, _, path = request.partition(" ")
    headers = api.default_headers | {"Accept": "application/json"}
    headers["Authorization"] = api.configuration.get_api_key_with_prefix("BearerToken") or ""
    url = api.configuration.host + path.replace("NS", namespace)
    pool: Any = api.rest_client.pool_manager
    return int(pool.request(method, url, headers=headers, retries=False).status)


@pytest.mark.parametrize(
    ("account", "own"),
    [
        (LOCAL, POOLS_OWN | PLANNERS_OWN | EVERYBODYS),
        (GLOBAL, GROUPS_OWN | PLANNERS_OWN | EVERYBODYS),
        (ROUTER, EVERYBODYS),
    ],
    ids=["planner of a pool", "planner of a group", "router"],
)
def test_an_account_may_do_its_work_and_is_refused_everything_else(
    installed: Installed, account: str, own: set[str]
) -> None:
    api = installed.api(account)
    statuses = {
        request: answer(api, installed.namespace, request) for request in sorted(ALL_REQUESTS)
    }
    assert 401 not in statuses.values()
    assert {request for request, status in statuses.items() if status != 403} == own


def test_deleted_pools_are_let_go_by_the_groups_account_in_shadow_mode(
    installed: Installed,
) -> None:
    """The first steps of taking an installation down."""
    hands = client.CustomObjectsApi(installed.api(None))
    where = (GROUP, VERSION, installed.namespace)
    shadow = {"spec": {"policy": {"mode": "shadow"}}}
    hands.patch_namespaced_custom_object(
        *where, GROUPS, SPEC.name, shadow, _content_type="application/merge-patch+json"
    )
    hands.delete_collection_namespaced_custom_object(*where, POOLS)
    installed.planner(GLOBAL).round()
    left: Any = hands.list_namespaced_custom_object(*where, POOLS)
    assert left["items"] == []
