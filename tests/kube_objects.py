"""Custom resources on a real API server, for tests: definitions, a cluster spec as objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.dynamic import DynamicClient

from hrl_planner.control.mirrors import Mirrors
from hrl_planner.kube.access import find_configuration
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION, definitions
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.localcluster import ControlPlane, demo_objects
from hrl_planner.spec import ClusterSpec


def install_definitions(admin: client.ApiClient) -> None:
    """Install both definitions; the server must find nothing wrong with their schemas."""
    demo_objects.install_definitions(admin)
    extensions = client.ApiextensionsV1Api(admin)
    for definition in definitions().values():
        read = extensions.read_custom_resource_definition(definition["metadata"]["name"])
        conditions = {c.type: c for c in read.status.conditions or []}
        broken = conditions.get("NonStructuralSchema")
        assert broken is None or broken.status == "False", broken
        assert conditions["Established"].status == "True"


def mirrors_of(plane: ControlPlane, kubeconfig: Path | None = None) -> Mirrors:
    """Watches of a control plane, as administrator or as a kubeconfig says."""
    return Mirrors(partial(find_configuration, kubeconfig or plane.kubeconfig))


def manifests(spec: ClusterSpec, namespace: str) -> list[dict[str, Any]]:
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
    return manifests_of(spec, targets, namespace)


def create_objects(
    api: client.CustomObjectsApi, spec: ClusterSpec, namespace: str, **policy: object
) -> None:
    """Create a spec's group, with a policy, and its pools."""
    group, *pools = manifests(spec, namespace)
    group["spec"]["policy"] |= policy
    api.create_namespaced_custom_object(GROUP, VERSION, namespace, GROUPS, group)
    for pool in pools:
        api.create_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, pool)


def apply_all(admin: client.ApiClient, objects: list[dict[str, Any]], **how: Any) -> None:
    """Apply objects of any kind as `kubectl apply --server-side` does; `dry_run="All"` only asks.

    Servers before 1.21 know disruption budgets, which mean the same there, as policy/v1beta1.
    """
    dynamic = DynamicClient(admin)
    for body in objects:
        version = body["apiVersion"]
        if version == "policy/v1" and not dynamic.resources.search(api_version=version):
            body = {**body, "apiVersion": "policy/v1beta1"}
        resource = dynamic.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        resource.server_side_apply(
            body=body, namespace=body["metadata"]["namespace"], field_manager="operator", **how
        )
