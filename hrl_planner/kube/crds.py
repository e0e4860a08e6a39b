"""The two CustomResourceDefinitions, made of the models in `resources.py`.

`hrl-planner crds` prints them; the copies in `deploy/crds` must equal its output.
"""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from hrl_planner.kube.resources import (
    ServingGroupSpec,
    ServingGroupStatus,
    WorkerPoolSpec,
    WorkerPoolStatus,
)
from hrl_planner.kube.schema import Schema, structural

GROUP = "hrl-planner.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
GROUPS = "servinggroups"
POOLS = "workerpools"
FINALIZER = f"{GROUP}/gives-back-gpus"

Column = dict[str, Any]


def definitions() -> dict[str, dict[str, Any]]:
    """Return the definitions by file name."""
    return {
        f"{GROUP}_{GROUPS}.yaml": _definition(
            "ServingGroup",
            GROUPS,
            ["sgroup"],
            ServingGroupSpec,
            ServingGroupStatus,
            [
                _column("Model", "string", ".spec.model"),
                _column("Mode", "string", ".spec.policy.mode"),
                _column("Allocator", "string", ".spec.policy.allocator"),
                _column("Fits", "string", _condition("WithinBudget")),
                _column("Reason", "string", ".status.reason", priority=1),
            ],
        ),
        f"{GROUP}_{POOLS}.yaml": _definition(
            "WorkerPool",
            POOLS,
            ["wpool"],
            WorkerPoolSpec,
            WorkerPoolStatus,
            [
                _column("Group", "string", ".spec.group", priority=1),
                _column("Role", "string", ".spec.role"),
                _column("GPU", "string", ".spec.gpuType"),
                _column("Quota", "integer", ".spec.quota"),
                _column("Desired", "integer", ".status.desired"),
                _column("Ready", "integer", ".status.ready"),
                _column("Starting", "integer", ".status.starting", priority=1),
                _column("Draining", "integer", ".status.draining", priority=1),
                _column("Reserved", "integer", ".status.reserved", priority=1),
                _column("Attainment", "number", ".status.attainment"),
                _column("Reason", "string", ".status.reason", priority=1),
            ],
            scale={
                "specReplicasPath": ".spec.quota",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        ),
    }


def to_yaml(definition: dict[str, Any]) -> str:
    """Return a definition as it is checked in."""
    return yaml.safe_dump(definition, sort_keys=False, width=100, allow_unicode=True)


def _definition(
    kind: str,
    plural: str,
    short_names: list[str],
    spec: type[BaseModel],
    status: type[BaseModel],
    columns: list[Column],
    scale: dict[str, str] | None = None,
) -> dict[str, Any]:
    schema: Schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(spec),
            "status": _with_list_maps(structural(status)),
        },
    }
    age = _column("Age", "date", ".metadata.creationTimestamp")
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, **({"scale": scale} if scale else {})},
        "additionalPrinterColumns": [*columns, age],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": ["hrl-planner"],
            },
            "versions": [version],
        },
    }


def _with_list_maps(status: Schema) -> Schema:
    # No defaults in a status: an absent `reserved` must stay absent, and so must all beside it.
    for field in status["properties"].values():
        field.pop("default", None)
    conditions = status["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    for field in conditions["items"]["properties"].values():
        field.pop("default", None)
    return status


def _column(name: str, kind: str, path: str, priority: int = 0) -> Column:
    column: Column = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _condition(kind: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].status'
