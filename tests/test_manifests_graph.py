"""The example of one Dynamo graph: as checked in, accepted by a server, and enough to plan with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

import yaml
from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.dynamo import adapter_name
from hrl_planner.control.targets import TargetError
from hrl_planner.kube.crds import GROUP, GROUPS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import Installation, documents, graph_manifests
from hrl_planner.spec import ClusterSpec
from tests.kube_objects import apply_all, install_definitions
from tests.scale_definitions import ADAPTER, GRAPH, install, remove
from tests.test_targets import MERGE, custom

pytestmark = pytest.mark.kube

EXAMPLES = Path(__file__).parent.parent / "deploy" / "examples"
SPEC = ClusterSpec.load(EXAMPLES / "dgd-cluster.yaml")
REAL = os.environ.get("HRL_PLANNER_DYNAMO_CRDS")  # a folder with Dynamo's own definitions


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> client.ApiClient:
    api = control_plane.client()
    install_definitions(api)
    install(api, GRAPH, ADAPTER)
    return api


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    with control_plane.namespace("dgd") as name:
        yield name


def made(namespace: str) -> list[Any]:
    return graph_manifests(Installation(SPEC, namespace))


def test_the_checked_in_example_is_what_is_made_of_its_spec() -> None:
    assert (EXAMPLES / "dgd.yaml").read_text(encoding="utf-8") == documents(made("llm")), (
        "old: hrl-planner manifests deploy/examples/dgd-cluster.yaml --as-dgd --namespace llm "
        "--out deploy/examples"
    )


def test_one_graph_has_several_components_of_a_role_and_names_no_replicas_of_pools() -> None:
    graph = made("llm")[-1]
    components = {c["name"]: c for c in graph["spec"]["components"]}
    roles = [components[pool.name]["type"] for pool in SPEC.pools]
    assert (roles.count("prefill"), roles.count("decode")) == (2, 2)
    shapes = {
        (c["podTemplate"]["spec"]["nodeSelector"]["nvidia.com/gpu.product"],
         c["podTemplate"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for name, c in components.items() if name in {p.name for p in SPEC.pools}
    }  # fmt: skip
    assert shapes == {(p.gpu_type, str(p.gpus_per_replica)) for p in SPEC.pools}
    assert not any("replicas" in components[pool.name] for pool in SPEC.pools)
    planners = {"hrl-planner-global-qwen3", *(f"hrl-planner-local-{p.name}" for p in SPEC.pools)}
    assert set(components) == planners | {p.name for p in SPEC.pools} | {"hrl-planner-router-qwen3"}
    assert not any(each["kind"] == "Deployment" for each in made("llm"))


def test_the_server_accepts_the_example_and_knows_every_field_of_the_graph(
    admin: client.ApiClient, namespace: str
) -> None:
    *others, graph = made(namespace)
    apply_all(admin, others, dry_run="All")
    objects = client.CustomObjectsApi(admin)
    read: Any = objects.create_namespaced_custom_object(
        "nvidia.com", "v1beta1", namespace, "dynamographdeployments", graph
    )
    assert read["spec"] == graph["spec"]  # what a server does not know, it drops


def test_each_planner_may_scale_its_component_and_no_other(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    *others, graph = made(namespace)
    apply_all(admin, others)
    objects: Any = client.CustomObjectsApi(admin)
    objects.create_namespaced_custom_object(
        "nvidia.com", "v1beta1", namespace, "dynamographdeployments", graph
    )
    for pool in SPEC.pools:
        body = {
            "metadata": {"name": adapter_name("qwen3", pool.name)},
            "spec": {"replicas": 1, "dgdRef": {"name": "qwen3", "componentName": pool.name}},
            "status": {"replicas": 1},
        }
        custom(admin, namespace, ADAPTER, "v1beta1", body)
    policy = {"policy": {"allocator": "static", "scaler": "quota", "mode": "active"}}
    objects.patch_namespaced_custom_object(
        GROUP, VERSION, namespace, GROUPS, "qwen3", {"spec": policy}, _content_type=MERGE
    )

    def connector(account: str) -> Connector:
        return Connector(control_plane.client(service_account=(namespace, account)), namespace)

    group = GlobalPlanner(connector("hrl-planner-global-qwen3"), "qwen3", NoMetrics(), lambda: 0.0)
    pools = [
        LocalPlanner(
            connector(f"hrl-planner-local-{p.name}"), p.name, NoMetrics(), lambda: 0.0, settle_s=0.0
        )
        for p in SPEC.pools
    ]
    for _ in range(4):
        assert [planner.round().error for planner in (*pools, group)] == [""] * 5
        for pool in SPEC.pools:  # the operator has caught up
            name = adapter_name("qwen3", pool.name)
            where = ("nvidia.com", "v1beta1", namespace, "dynamographdeploymentscalingadapters")
            asked = objects.get_namespaced_custom_object(*where, name)["spec"]["replicas"]
            objects.patch_namespaced_custom_object_status(
                *where, name, {"status": {"replicas": asked}}, _content_type=MERGE
            )
    listed = Connector(admin, namespace).pools("qwen3").pools
    assert all(pool.status.desired == pool.spec.quota for pool in listed)
    assert sum(pool.status.desired or 0 for pool in listed) > len(SPEC.pools)
    stranger = connector("hrl-planner-local-prefill-h200-tp1")
    other = next(p for p in listed if p.name == "decode-h200-tp2")
    with pytest.raises(TargetError, match="cannot get resource"):
        stranger.targets.read(other.spec.scale_target_ref)


@pytest.mark.skipif(REAL is None, reason="HRL_PLANNER_DYNAMO_CRDS names no folder of definitions")
def test_dynamos_own_definitions_accept_the_graph(namespace: str, admin: client.ApiClient) -> None:
    (path,) = Path(REAL or "").glob("*dynamographdeployments.yaml")
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    definition["spec"].pop("conversion", None)  # its webhook is not here
    remove(admin, GRAPH)
    try:
        install(admin, definition)
        read: Any = client.CustomObjectsApi(admin).create_namespaced_custom_object(
            "nvidia.com", "v1beta1", namespace, "dynamographdeployments", made(namespace)[-1]
        )
        assert len(read["spec"]["components"]) == len(SPEC.pools) * 2 + 2
    finally:
        remove(admin, definition)
        install(admin, GRAPH)
