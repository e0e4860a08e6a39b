"""Definitions of others that scale: the fields planners use, retyped, with their true scale paths.

Facts: `kubernetes-sigs/lws` api/leaderworkerset/v1/leaderworkerset_types.go, and `ai-dynamo/dynamo`
deploy/operator/api (DynamoGraphDeployment in v1beta1 and v1alpha1, and its scaling adapter).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kubernetes import client

from tests.kube import PATIENCE_S

Schema = dict[str, Any]

_INTEGER: Schema = {"type": "integer", "minimum": 0}
_STRING: Schema = {"type": "string"}
_OPEN: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _definition(
    group: str, kind: str, plural: str, versions: dict[str, Schema], scale: dict[str, str] | None
) -> dict[str, Any]:
    made = []
    for name, schema in versions.items():
        subresources: Schema = {"status": {}} | ({"scale": scale} if scale else {})
        made.append(
            {
                "name": name,
                "served": True,
                "storage": not made,
                "schema": {"openAPIV3Schema": schema},
                "subresources": subresources,
            }
        )
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
            },
            "versions": made,
        },
    }


LEADER_WORKER_SET = _definition(
    "leaderworkerset.x-k8s.io",
    "LeaderWorkerSet",
    "leaderworkersets",
    {
        "v1": _object(
            spec=_object(
                replicas={**_INTEGER, "default": 1},
                leaderWorkerTemplate=_object(size={**_INTEGER, "default": 1}, workerTemplate=_OPEN),
            ),
            status=_object(replicas=_INTEGER, readyReplicas=_INTEGER, hpaPodSelector=_STRING),
        )
    },
    {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.hpaPodSelector",
    },
)

ODDLY_NAMED = _definition(
    "serving.example.com",
    "EngineFleet",
    "enginefleets",
    {
        "v1": _object(
            spec=_object(size=_INTEGER),
            status=_object(running=_INTEGER, labels=_STRING),
        )
    },
    {
        "specReplicasPath": ".spec.size",
        "statusReplicasPath": ".status.running",
        "labelSelectorPath": ".status.labels",
    },
)

_COMPONENT = _object(
    name=_STRING,
    type=_STRING,
    replicas=_INTEGER,
    scalingAdapter=_OPEN,
    podTemplate=_OPEN,
    sharedMemorySize={"x-kubernetes-int-or-string": True},
    multinode=_object(nodeCount=_INTEGER),
)
_REPORTED = {
    "type": "object",
    "additionalProperties": _object(replicas=_INTEGER, readyReplicas=_INTEGER),
}
_SERVICE = _object(
    componentType=_STRING,
    subComponentType=_STRING,
    replicas=_INTEGER,
    scalingAdapter=_OPEN,
    extraPodSpec=_OPEN,
)
# Both schemas in both versions: without the operator's webhook nothing converts them, and an
# object stays in the one it was created in.
_GRAPH = _object(
    spec=_object(
        backendFramework=_STRING,
        components={
            "type": "array",
            "items": {**_COMPONENT, "required": ["name"]},
            "maxItems": 25,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
        services={"type": "object", "additionalProperties": _SERVICE},
    ),
    status=_object(observedGeneration=_INTEGER, components=_REPORTED, services=_REPORTED),
)
GRAPH = _definition(
    "nvidia.com",
    "DynamoGraphDeployment",
    "dynamographdeployments",
    {"v1beta1": _GRAPH, "v1alpha1": _GRAPH},
    None,
)

_ADAPTER = _object(
    spec={
        **_object(
            replicas=_INTEGER,
            dgdRef=_object(name=_STRING, serviceName=_STRING, componentName=_STRING),
        ),
        "required": ["replicas", "dgdRef"],
    },
    status=_object(replicas=_INTEGER, selector=_STRING),
)
ADAPTER = _definition(
    "nvidia.com",
    "DynamoGraphDeploymentScalingAdapter",
    "dynamographdeploymentscalingadapters",
    {"v1alpha1": _ADAPTER, "v1beta1": _ADAPTER},
    {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)


def install(admin: client.ApiClient, *definitions: dict[str, Any]) -> None:
    """Install definitions and wait until discovery names them; those that are there stay."""
    extensions: Any = client.ApiextensionsV1Api(admin)
    objects = client.CustomObjectsApi(admin)
    for definition in definitions:
        try:
            extensions.create_custom_resource_definition(definition)
        except client.ApiException as error:
            if error.status != 409:
                raise
    for definition in definitions:
        spec = definition["spec"]
        for version in spec["versions"]:
            _until(lambda v=version, s=spec: _served(objects, s, v["name"]))


def remove(admin: client.ApiClient, definition: dict[str, Any]) -> None:
    """Take a definition away with all its objects, and wait until it is gone."""
    extensions = client.ApiextensionsV1Api(admin)
    name = definition["metadata"]["name"]
    extensions.delete_custom_resource_definition(name)
    _until(
        lambda: (
            name
            not in [d.metadata.name for d in extensions.list_custom_resource_definition().items]
        )
    )


def _served(objects: client.CustomObjectsApi, spec: Any, version: str) -> bool:
    try:
        found: Any = objects.get_api_resources(spec["group"], version)
    except client.ApiException as error:
        if error.status in (404, 503):
            return False
        raise
    return spec["names"]["plural"] in [r.name for r in found.resources]


def _until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, "the API server takes too long"
        time.sleep(0.1)
