"""Accounts on a real API server: each planner and the router can do its work, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import Installation, accounts
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_all, create_objects, install_definitions

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
POOL, OTHER = "decode-h100", "decode-l40s"
LOCAL, GLOBAL = f"hrl-planner-local-{POOL}", f"hrl-planner-global-{SPEC.name}"
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
        create_all(admin, accounts(Installation(SPEC, namespace)))
        whole = accounts(Installation(SPEC, namespace, layout="all-in-one"))
        create_all(admin, [made for made in whole if made["metadata"]["name"] == ALL])
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
