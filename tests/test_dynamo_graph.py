"""Pools that are components of one Dynamo graph: planned together, none in another's way.

There is no Dynamo operator here. A few lines stand in for it: they carry out what components and
adapters ask for, as pods, and report it where the operator does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.dynamo import adapter_name, pod_selector
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ScaleTargetRef, WorkerPool
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube import pod_spec
from tests.kube_objects import install_definitions
from tests.scale_definitions import ADAPTER, GRAPH, install
from tests.test_targets import MERGE, custom

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
NAMES = {pool.name: pool.name.title().replace("-", "") for pool in SPEC.pools}  # PrefillH100 ...
ROUNDS = 40


class Site:
    """A graph with a component per pool, the group over them, planners, and the operator."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.objects: Any = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)
        self.connector = Connector(api, namespace)
        self.global_planner = GlobalPlanner(self.connector, SPEC.name, NoMetrics(), lambda: 0.0)
        self.locals = [
            LocalPlanner(self.connector, p.name, NoMetrics(), lambda: 0.0, settle_s=0.0)
            for p in SPEC.pools
        ]

    def create(self, version: str, *, adapters: bool) -> None:
        parts = {
            name: {"replicas": 1} | ({"scalingAdapter": {}} if adapters else {})
            for name in NAMES.values()
        }
        spec: Any = {"services": parts}
        if version == "v1beta1":
            spec = {"components": [{"name": name, **part} for name, part in parts.items()]}
        custom(
            self.api, self.namespace, GRAPH, version, {"metadata": {"name": "llm"}, "spec": spec}
        )
        for component in NAMES.values() if adapters else ():
            body = {
                "metadata": {"name": adapter_name("llm", component)},
                "spec": {
                    "replicas": 1, "dgdRef": {"name": "llm", "serviceName": component},
                },
            }  # fmt: skip
            custom(self.api, self.namespace, ADAPTER, "v1alpha1", body)
        targets = {
            pool: ScaleTargetRef(
                api_version=f"nvidia.com/{version}",
                kind="DynamoGraphDeployment",
                name="llm",
                component=component,
            )
            for pool, component in NAMES.items()
        }
        group, *pools = manifests_of(SPEC, targets, self.namespace)
        group["spec"]["policy"] |= {"allocator": "static", "scaler": "quota", "mode": "active"}
        where = (GROUP, VERSION, self.namespace)
        self.objects.create_namespaced_custom_object(*where, GROUPS, group)
        for pool in pools:
            self.objects.create_namespaced_custom_object(*where, POOLS, pool)

    def asked(self) -> dict[str, int]:
        """Replicas asked of each component, by its adapter where it has one."""
        where = ("nvidia.com", "v1beta1", self.namespace)
        adapters = self.objects.list_namespaced_custom_object(
            *where, "dynamographdeploymentscalingadapters"
        )["items"]
        if adapters:
            return {a["spec"]["dgdRef"]["serviceName"]: a["spec"]["replicas"] for a in adapters}
        spec = self.graph()["spec"]
        parts = spec.get("services") or {c["name"]: c for c in spec["components"]}
        return {name: part["replicas"] for name, part in parts.items()}

    def graph(self) -> Any:
        return self.objects.get_namespaced_custom_object(
            "nvidia.com", "v1beta1", self.namespace, "dynamographdeployments", "llm"
        )

    def operate(self) -> None:
        """Carry out what is asked for, and report it."""
        where = ("nvidia.com", "v1beta1", self.namespace)
        for component, replicas in self.asked().items():
            selector = pod_selector("llm", component)
            pods = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
            for pod in pods[replicas:]:
                self.core.delete_namespaced_pod(pod.metadata.name, self.namespace)
            for _ in range(replicas - len(pods)):
                labels = dict(pair.split("=") for pair in selector.split(","))
                metadata = {"generateName": f"llm-{component.lower()}-", "labels": labels}
                body: Any = {"metadata": metadata, "spec": pod_spec(["true"], "H100")}
                self.core.create_namespaced_pod(self.namespace, body)
        reported = {name: {"replicas": n} for name, n in self.asked().items()}
        self.report("dynamographdeployments", "llm", {"components": reported})
        adapters = self.objects.list_namespaced_custom_object(
            *where, "dynamographdeploymentscalingadapters"
        )["items"]
        for adapter in adapters:
            selector = pod_selector("llm", adapter["spec"]["dgdRef"]["serviceName"])
            status = {"replicas": adapter["spec"]["replicas"], "selector": selector}
            self.report("dynamographdeploymentscalingadapters", adapter["metadata"]["name"], status)

    def report(self, plural: str, name: str, status: Any) -> None:
        self.objects.patch_namespaced_custom_object_status(
            "nvidia.com", "v1beta1", self.namespace, plural, name, {"status": status},
            _content_type=MERGE,
        )  # fmt: skip

    def pools(self) -> dict[str, WorkerPool]:
        return {pool.name: pool for pool in self.connector.pools(SPEC.name).pools}

    def within_budget(self) -> bool:
        held = dict.fromkeys(SPEC.budget.gpus, 0)
        for pool in SPEC.pools:
            selector = pod_selector("llm", NAMES[pool.name])
            pods = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
            held[pool.gpu_type] += len(pods) * pool.gpus_per_replica
        return all(held[kind] <= n for kind, n in SPEC.budget.gpus.items())


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> client.ApiClient:
    api = control_plane.client()
    install_definitions(api)
    install(api, GRAPH, ADAPTER)
    return api


@pytest.fixture
def site(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[Site]:
    with control_plane.namespace("graph") as name:
        yield Site(admin, name)


def settled(site: Site) -> bool:
    """Whether targets, quotas and books agree, and the plan is what runs."""
    asked = site.asked()
    planned = site.connector.group(SPEC.name).status.planned
    return bool(planned) and all(
        asked[NAMES[name]] == pool.spec.quota == pool.status.reserved == planned[name]
        for name, pool in site.pools().items()
    )


def rounds_until_settled(site: Site) -> None:
    for _ in range(ROUNDS):
        for planner in site.locals:
            planner.round()
            site.operate()  # between any two: their object changes all the time
        site.global_planner.round()
        assert site.within_budget()
        if settled(site):
            return
    raise AssertionError((site.asked(), site.pools()))


@pytest.mark.parametrize(
    ("version", "adapters"), [("v1beta1", False), ("v1alpha1", False), ("v1beta1", True)]
)
def test_four_pools_of_one_graph_reach_their_plan_and_none_starves_another(
    site: Site, version: str, adapters: bool
) -> None:
    site.create(version, adapters=adapters)
    rounds_until_settled(site)
    for pool in site.pools().values():
        assert {c.type: c.status for c in pool.status.conditions} == {
            "TargetFound": "True", "PodsCounted": "True", "Decided": "True", "Unhindered": "True"
        }  # fmt: skip
    if adapters:
        parts = {c["name"]: c["replicas"] for c in site.graph()["spec"]["components"]}
        assert set(parts.values()) == {1}


def test_gpus_are_given_back_although_neighbours_in_the_graph_are_scaled_all_the_time(
    site: Site,
) -> None:
    """The version of the graph changes with every neighbour; that of a pool's replicas must not."""
    site.create("v1beta1", adapters=False)
    rounds_until_settled(site)
    pool, neighbour = SPEC.pools[0].name, list(NAMES.values())[3]
    before = site.pools()[pool].spec.quota
    assert before is not None
    site.objects.patch_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, pool, {"spec": {"quota": before - 1}},
        _content_type=MERGE,
    )  # fmt: skip
    clock = [0.0]
    local = LocalPlanner(site.connector, pool, NoMetrics(), lambda: clock[0], settle_s=30.0)
    reserved = []
    for n in range(6):
        local.round()
        site.operate()
        reserved.append(site.pools()[pool].status.reserved)
        index = next(
            i for i, c in enumerate(site.graph()["spec"]["components"]) if c["name"] == neighbour
        )
        path = f"/spec/components/{index}/replicas"
        patch: Any = [{"op": "add", "path": path, "value": n % 2}]
        site.objects.patch_namespaced_custom_object(
            "nvidia.com", "v1beta1", site.namespace, "dynamographdeployments", "llm", patch,
            _content_type="application/json-patch+json",
        )  # fmt: skip
        clock[0] += 10.0
    assert site.asked()[NAMES[pool]] == before - 1
    assert reserved[0] == before  # not before its controller can be relied on
    assert reserved[-1] == before - 1
