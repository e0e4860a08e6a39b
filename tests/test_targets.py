"""Scale targets of every kind on a real API server: read, scaled, guarded, and counted in pods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, dynamo
from hrl_planner.control.requests import DeniedError
from hrl_planner.control.targets import TargetError, Targets, identity
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.ledger.replicas import MISSING
from hrl_planner.localcluster import ControlPlane
from tests.kube import deployment, pod_spec, wait_for_pods
from tests.scale_definitions import ADAPTER, GRAPH, LEADER_WORKER_SET, ODDLY_NAMED, install

pytestmark = pytest.mark.kube

JSON_PATCH, MERGE = "application/json-patch+json", "application/merge-patch+json"
KINDS = ("Deployment", "StatefulSet", "LeaderWorkerSet", "EngineFleet")
LWS = "leaderworkerset.sigs.k8s.io"


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> client.ApiClient:
    api = control_plane.client()
    install(api, LEADER_WORKER_SET, ODDLY_NAMED, GRAPH, ADAPTER)
    return api


@pytest.fixture
def namespace(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[str]:
    with control_plane.namespace("targets") as name:
        yield name


@pytest.fixture
def targets(admin: client.ApiClient, namespace: str) -> Targets:
    return Targets(admin, namespace)


def custom(
    admin: client.ApiClient, namespace: str, definition: Any, version: str, body: Any
) -> None:
    """Create an object of a definition, with its status."""
    objects: Any = client.CustomObjectsApi(admin)
    spec = definition["spec"]
    where = (spec["group"], version, namespace, spec["names"]["plural"])
    whole = {"apiVersion": f"{spec['group']}/{version}", "kind": spec["names"]["kind"], **body}
    objects.create_namespaced_custom_object(*where, whole)
    objects.patch_namespaced_custom_object_status(
        *where, body["metadata"]["name"], {"status": body.get("status", {})}, _content_type=MERGE
    )


def made(admin: client.ApiClient, namespace: str, kind: str) -> ScaleTargetRef:
    """Create a target of a kind with two replicas, named `it`."""
    apps, name = client.AppsV1Api(admin), {"name": "it"}
    body = deployment("it", 2, pod_spec(["true"], "H100"))
    if kind == "Deployment":
        apps.create_namespaced_deployment(namespace, body)
        return ScaleTargetRef(kind=kind, name="it")
    if kind == "StatefulSet":
        body["spec"] |= {"serviceName": "it", "podManagementPolicy": "Parallel"}
        apps.create_namespaced_stateful_set(namespace, body)
        return ScaleTargetRef(kind=kind, name="it")
    if kind == "LeaderWorkerSet":
        selector = f"{LWS}/name=it,{LWS}/worker-index=0"
        status = {"replicas": 2, "hpaPodSelector": selector}
        body = {"metadata": name, "spec": {"replicas": 2}, "status": status}
        custom(admin, namespace, LEADER_WORKER_SET, "v1", body)
        return ScaleTargetRef(api_version="leaderworkerset.x-k8s.io/v1", kind=kind, name="it")
    status = {"running": 2, "labels": "fleet=it"}
    custom(
        admin, namespace, ODDLY_NAMED, "v1",
        {"metadata": name, "spec": {"size": 2}, "status": status},
    )  # fmt: skip
    return ScaleTargetRef(api_version="serving.example.com/v1", kind=kind, name="it")


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_with_a_scale_is_read_and_scaled_at_its_version_alone(
    admin: client.ApiClient, namespace: str, targets: Targets, kind: str
) -> None:
    ref = made(admin, namespace, kind)
    before = targets.read(ref)
    assert before.target.replicas == 2
    while not targets.scale(ref, 5, before.target.version):
        before = targets.read(ref)  # its controller was faster
    after = targets.read(ref)
    assert after.target.replicas == 5
    assert after.target.spec_version != before.target.spec_version
    assert not targets.scale(ref, 7, before.target.version)
    assert targets.read(ref).target.replicas == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_does_not_exist_is_missing_and_says_so(targets: Targets, kind: str) -> None:
    groups = {"LeaderWorkerSet": "leaderworkerset.x-k8s.io", "EngineFleet": "serving.example.com"}
    ref = ScaleTargetRef(api_version=f"{groups.get(kind, 'apps')}/v1", kind=kind, name="nobody")
    state = targets.read(ref)
    assert (state.target, state.missing) == (MISSING, f"{kind} nobody does not exist")
    assert not targets.scale(ref, 1, "1")


@pytest.mark.parametrize(
    ("api_version", "kind", "reason", "words"),
    [
        ("apps/v1", "Deploymint", "UnknownKind", "no Deploymint in apps/v1"),
        ("argoproj.io/v1alpha1", "Rollout", "UnknownKind", "does not know argoproj.io/v1alpha1"),
        ("apps/v1", "DaemonSet", "NotScalable", "no scale subresource"),
        ("v1", "ReplicationController", "UnknownKind", "core group"),
        ("nvidia.com/v1beta1", "DynamoGraphDeployment", "NotScalable", "scaleTargetRef.component"),
    ],
)
def test_what_cannot_be_a_target_is_told_by_kind(
    targets: Targets, api_version: str, kind: str, reason: str, words: str
) -> None:
    with pytest.raises(TargetError, match=words) as told:
        targets.read(ScaleTargetRef(api_version=api_version, kind=kind, name="it"))
    assert told.value.reason == reason


def test_a_refusal_names_verb_resource_and_account(
    control_plane: ControlPlane, admin: client.ApiClient, namespace: str
) -> None:
    ref = made(admin, namespace, "Deployment")
    stranger = Targets(control_plane.client(user="mallory"), namespace)
    refused = '"mallory" cannot get resource "deployments/scale"'
    with pytest.raises(TargetError, match=refused) as no:
        stranger.read(ref)
    assert no.value.reason == "Denied"
    with pytest.raises(DeniedError, match='"mallory" cannot update resource "deployments/scale"'):
        stranger.scale(ref, 1, "1")


def test_replicas_of_a_stateful_set_are_counted_from_its_pods(
    admin: client.ApiClient, namespace: str, targets: Targets
) -> None:
    ref, core = made(admin, namespace, "StatefulSet"), client.CoreV1Api(admin)
    wait_for_pods(core, namespace, lambda pods: len(pods) == 2)
    while not targets.scale(ref, 3, targets.read(ref).target.version):
        pass
    wait_for_pods(core, namespace, lambda pods: len(pods) == 3)
    while (state := targets.read(ref)).observed != 3:
        pass
    assert Connector(admin, namespace).pods(state.selector).held == 3


def test_workers_of_a_leader_worker_set_are_found_although_its_scale_names_leaders_alone(
    admin: client.ApiClient, namespace: str, targets: Targets
) -> None:
    state = targets.read(made(admin, namespace, "LeaderWorkerSet"))
    core = client.CoreV1Api(admin)
    for group in range(2):
        for worker in range(3):
            labels = {"name": "it", "group-index": str(group), "worker-index": str(worker)}
            metadata = {
                "name": f"it-{group}-{worker}",
                "labels": {f"{LWS}/{key}": value for key, value in labels.items()},
                "annotations": {f"{LWS}/size": "3"},
                "finalizers": ["tests.example.com/drains"],
            }
            body: Any = {"metadata": metadata, "spec": pod_spec(["true"], "H100")}
            core.create_namespaced_pod(namespace, body)

    def counts() -> tuple[int, int]:
        """Live and draining replicas; whether a machine was found does not matter here."""
        return astuple(Connector(admin, namespace).pods(state.selector).ledger)

    try:
        assert counts() == (2, 0)
        # The leader is gone at once, its workers drain: the group holds its GPUs.
        let_go(core, namespace, "it-1-0")
        for worker in (0, 1, 2):
            # Another test's node may have taken it, whose kubelet is gone and ends nothing.
            core.delete_namespaced_pod(f"it-1-{worker}", namespace, grace_period_seconds=0)
            assert sum(counts()) == 2
        assert counts() == (1, 1)
        let_go(core, namespace, "it-1-1")
        assert counts() == (1, 1)
        let_go(core, namespace, "it-1-2")
        wait_for_pods(core, namespace, lambda _: counts() == (1, 0))
    finally:
        for pod in core.list_namespaced_pod(namespace).items:
            let_go(core, namespace, pod.metadata.name)


def let_go(core: client.CoreV1Api, namespace: str, name: str) -> None:
    patch: Any = {"metadata": {"finalizers": None}}
    core.patch_namespaced_pod(name, namespace, patch)


def component(name: str, version: str = "v1beta1") -> ScaleTargetRef:
    return ScaleTargetRef(
        api_version=f"nvidia.com/{version}",
        kind="DynamoGraphDeployment",
        name="llm",
        component=name,
    )


def create_graph(admin: client.ApiClient, namespace: str, version: str, **adapters: Any) -> None:
    """Two components; one says nothing of its replicas, the other wants 2."""
    named = {"PrefillA": {}, "DecodeB": {"replicas": 2}}
    parts = {name: {**part, **adapters.get(name, {})} for name, part in named.items()}
    if version == "v1beta1":
        spec: Any = {"components": [{"name": name, **part} for name, part in parts.items()]}
        status: Any = {"components": {"DecodeB": {"replicas": 2}}}
    else:
        spec, status = {"services": parts}, {"services": {"DecodeB": {"replicas": 2}}}
    body = {"metadata": {"name": "llm"}, "spec": spec, "status": status}
    custom(admin, namespace, GRAPH, version, body)


def create_adapter(admin: client.ApiClient, namespace: str, name: str, replicas: int) -> None:
    ref = {"name": "llm", "serviceName": "DecodeB"}
    labels = "nvidia.com/dynamo-component=DecodeB,nvidia.com/dynamo-graph-deployment-name=llm"
    body = {
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "dgdRef": ref},
        "status": {"replicas": replicas, "selector": labels},
    }
    custom(admin, namespace, ADAPTER, "v1alpha1", body)


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_a_component_without_adapter_is_scaled_in_the_graph_itself(
    admin: client.ApiClient, namespace: str, targets: Targets, version: str
) -> None:
    create_graph(admin, namespace, version)
    first, second = component("PrefillA", version), component("DecodeB", version)
    assert targets.read(first).target.replicas == 1  # what the operator takes for nothing said
    assert (targets.read(first).observed, targets.read(second).observed) == (-1, 2)
    before = targets.read(second)
    assert before.shared
    assert targets.scale(second, 4, before.target.version)
    assert targets.read(second).target.replicas == 4
    assert targets.read(first).target.replicas == 1
    assert not targets.scale(first, 3, before.target.version)  # what one changes, the other sees
    assert targets.read(first).target.replicas == 1
    assert targets.read(second).selector == (
        "nvidia.com/dynamo-graph-deployment-name=llm,nvidia.com/dynamo-component=DecodeB"
    )


def patch_graph(admin: client.ApiClient, namespace: str, patch: Any, kind: str = MERGE) -> None:
    objects: Any = client.CustomObjectsApi(admin)
    objects.patch_namespaced_custom_object(
        "nvidia.com", "v1beta1", namespace, "dynamographdeployments", "llm", patch,
        _content_type=kind,
    )  # fmt: skip


def read_graph(admin: client.ApiClient, namespace: str) -> Any:
    return client.CustomObjectsApi(admin).get_namespaced_custom_object(
        "nvidia.com", "v1beta1", namespace, "dynamographdeployments", "llm"
    )


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_the_patch_of_a_graph_that_has_changed_since_is_refused_by_the_server(
    admin: client.ApiClient, namespace: str, version: str
) -> None:
    create_graph(admin, namespace, version)
    graph = read_graph(admin, namespace)
    patch_graph(admin, namespace, {"metadata": {"labels": {"any": "change"}}})
    patch = dynamo.scaling(graph, "DecodeB", 9, graph["metadata"]["resourceVersion"])
    with pytest.raises(client.ApiException) as refused:
        patch_graph(admin, namespace, patch, JSON_PATCH)
    assert refused.value.status == 409


def test_components_that_change_places_are_not_mistaken_for_each_other(
    admin: client.ApiClient, namespace: str, targets: Targets
) -> None:
    create_graph(admin, namespace, "v1beta1")
    graph = read_graph(admin, namespace)
    version = graph["metadata"]["resourceVersion"]
    swapped = [{"name": "DecodeB", "replicas": 2}, {"name": "PrefillA", "replicas": 1}]
    patch_graph(admin, namespace, {"spec": {"components": swapped}})
    assert not targets.scale(component("DecodeB"), 9, version)
    with pytest.raises(client.ApiException) as refused:
        late = dynamo.scaling(graph, "DecodeB", 9, version)
        patch_graph(admin, namespace, late, JSON_PATCH)
    assert refused.value.status == 422
    assert targets.read(component("DecodeB")).target.replicas == 2
    assert targets.read(component("PrefillA")).target.replicas == 1


def test_a_component_with_an_adapter_is_scaled_through_it(
    admin: client.ApiClient, namespace: str, targets: Targets
) -> None:
    create_graph(admin, namespace, "v1beta1", DecodeB={"scalingAdapter": {}})
    with pytest.raises(TargetError, match="llm-decodeb does not exist yet") as waits:
        targets.read(component("DecodeB"))
    assert waits.value.reason == "AdapterMissing"
    create_adapter(admin, namespace, "llm-decodeb", 2)
    state = targets.read(component("DecodeB"))
    assert (state.target.replicas, state.observed, state.shared) == (2, 2, False)
    assert targets.scale(component("DecodeB"), 3, state.target.version)
    by_name = ScaleTargetRef(
        api_version="nvidia.com/v1alpha1",
        kind="DynamoGraphDeploymentScalingAdapter",
        name="llm-decodeb",
    )
    assert targets.read(by_name).target == targets.read(component("DecodeB")).target
    graph = read_graph(admin, namespace)
    assert graph["spec"]["components"][1]["replicas"] == 2  # the operator's to change


def test_an_unknown_component_is_missing_and_the_known_ones_are_named(
    admin: client.ApiClient, namespace: str, targets: Targets
) -> None:
    create_graph(admin, namespace, "v1beta1")
    state = targets.read(component("Decode"))
    assert state.target == MISSING
    assert "has no component Decode; it has: PrefillA, DecodeB" in state.missing


def test_a_component_is_the_same_target_as_its_adapter_in_any_version() -> None:
    adapter = ScaleTargetRef(
        api_version="nvidia.com/v1alpha1",
        kind="DynamoGraphDeploymentScalingAdapter",
        name="llm-decodeb",
    )
    assert identity(component("DecodeB")) == identity(component("DecodeB", "v1alpha1"))
    assert identity(component("DecodeB")) == identity(adapter) != identity(component("PrefillA"))
