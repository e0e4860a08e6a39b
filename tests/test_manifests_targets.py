"""The role of a pool on a real API server: for every kind of target it suffices, and names one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control.targets import TargetError, Targets
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import Installation, accounts
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import apply_all
from tests.scale_definitions import ADAPTER, GRAPH, LEADER_WORKER_SET, install

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
POOL = SPEC.pools[0].name
LOCAL = f"hrl-planner-local-{POOL}"
TARGETS = {
    "StatefulSet": ScaleTargetRef(kind="StatefulSet", name="engines"),
    "LeaderWorkerSet": ScaleTargetRef(
        api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", name="engines"
    ),
    "component": ScaleTargetRef(
        api_version="nvidia.com/v1alpha1",
        kind="DynamoGraphDeployment",
        name="llm",
        component="Engines",
    ),
}


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    install(control_plane.client(), LEADER_WORKER_SET, GRAPH, ADAPTER)
    with control_plane.namespace("roles") as name:
        yield name


def objects(kind: str) -> list[dict[str, Any]]:
    """A target of a kind with two replicas."""
    if kind == "StatefulSet":
        body = deployment("engines", 2, pod_spec(["true"], "H100"))
        body["spec"]["serviceName"] = "engines"
        return [{"apiVersion": "apps/v1", "kind": kind, **body}]
    ref = TARGETS[kind]
    if kind == "LeaderWorkerSet":
        spec: Any = {"replicas": 2}
        named = {"metadata": {"name": "engines"}, "spec": spec}
        return [{"apiVersion": ref.api_version, "kind": kind, **named}]
    graph = {"services": {"Engines": {"replicas": 2, "scalingAdapter": {"enabled": True}}}}
    adapter = {"replicas": 2, "dgdRef": {"name": "llm", "serviceName": "Engines"}}
    return [
        {"apiVersion": ref.api_version, "kind": each, "metadata": {"name": name}, "spec": spec}
        for each, name, spec in (
            (ref.kind, "llm", graph),
            ("DynamoGraphDeploymentScalingAdapter", "llm-engines", adapter),
        )
    ]


@pytest.mark.parametrize("kind", TARGETS)
def test_a_planners_role_lets_it_scale_its_target_and_read_no_other(
    control_plane: ControlPlane, namespace: str, kind: str
) -> None:
    admin: client.ApiClient = control_plane.client()
    ref = TARGETS[kind]
    made = objects(kind)
    for each in made:
        each["metadata"]["namespace"] = namespace
    roles = accounts(Installation(SPEC, namespace, targets={POOL: ref}))
    apply_all(admin, made + [role for role in roles if role["metadata"]["name"] == LOCAL])
    mine = Targets(control_plane.client(service_account=(namespace, LOCAL)), namespace)
    state = mine.read(ref)
    while not mine.scale(ref, 5, state.target.version):
        state = mine.read(ref)  # its controller was faster
    assert mine.read(ref).target.replicas == 5
    with pytest.raises(TargetError) as refused:
        mine.read(ref.model_copy(update={"name": "others"}))
    assert refused.value.reason == "Denied"
