"""Dynamo's graph deployments (DGD) as scale targets: one object that holds many pools' replicas.

A component that opted in has a DynamoGraphDeploymentScalingAdapter of its own, which owns its
replicas and has a scale subresource. Without one the replicas stand in the DGD itself, in one of
two schemas: `spec.components[]` (v1beta1) or `spec.services{}` (v1alpha1). Pure functions over
the objects as the API server returns them; docs/dgd.md says where each fact is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DYNAMO_GROUP = "nvidia.com"
GRAPH, ADAPTER = "DynamoGraphDeployment", "DynamoGraphDeploymentScalingAdapter"
VERSIONS = ("v1beta1", "v1alpha1")
_REPLICAS_IF_ABSENT = 1  # what the operator takes for a component that says nothing

Object = Mapping[str, Any]


def adapter_name(graph: str, component: str) -> str:
    """Return the name the operator gives a component's adapter."""
    return f"{graph}-{component.lower()}"


def pod_selector(graph: str, component: str) -> str:
    """Return the labels of a component's pods, leaders and workers of several nodes alike."""
    return (
        f"{DYNAMO_GROUP}/dynamo-graph-deployment-name={graph},"
        f"{DYNAMO_GROUP}/dynamo-component={component}"
    )


def components(graph: Object) -> dict[str, Object]:
    """Return the components of a DGD by name, in either schema."""
    spec = graph.get("spec") or {}
    if "components" in spec:
        return {str(item.get("name")): item for item in spec["components"] or ()}
    return dict(spec.get("services") or {})


def replicas(component: Object) -> int:
    """Return the replicas asked of a component."""
    asked = component.get("replicas")
    return _REPLICAS_IF_ABSENT if asked is None else int(asked)


def has_adapter(component: Object) -> bool:
    """Say whether a component's replicas are left to an adapter."""
    adapter = component.get("scalingAdapter")
    return adapter is not None and adapter.get("enabled", True) is not False


def observed(graph: Object, component: str) -> int | None:
    """Return the replicas that the operator reports; None where it reports none yet."""
    status = graph.get("status") or {}
    reported = (status.get("components") or status.get("services") or {}).get(component, {})
    count = reported.get("replicas")
    return None if count is None else int(count)


def scaling(graph: Object, component: str, replicas: int, version: str) -> list[dict[str, Any]]:
    """Return the JSON patch that scales one component of a DGD as read, at a version of it.

    A list is addressed by index, so the patch tests that the index still names the component.
    """
    guard = {"op": "replace", "path": "/metadata/resourceVersion", "value": version}
    spec = graph.get("spec") or {}
    if "components" not in spec:
        path = f"/spec/services/{component.replace('~', '~0').replace('/', '~1')}"
        return [guard, {"op": "add", "path": f"{path}/replicas", "value": replicas}]
    names = [item.get("name") for item in spec["components"]]
    path = f"/spec/components/{names.index(component)}"
    return [
        guard,
        {"op": "test", "path": f"{path}/name", "value": component},
        {"op": "add", "path": f"{path}/replicas", "value": replicas},
    ]
