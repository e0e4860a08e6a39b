"""Manifests on a real API server: accepted as they are, and harmless when applied again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

import yaml
from kubernetes import client

from hrl_planner.kube.crds import GROUP, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import Installation, tree
from hrl_planner.spec import ClusterSpec
from tests.kube_objects import apply_all

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
POOL = SPEC.pools[0].name
MONITORS = {"servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor"}


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    with control_plane.namespace("manifests") as name:
        yield name


def documents(files: dict[str, str], *folders: str) -> list[dict[str, Any]]:
    """All objects of some folders of a tree, without what is for kustomize alone."""
    return [
        made
        for name, text in files.items()
        if name.startswith(folders) and Path(name).name != "kustomization.yaml"
        for made in yaml.safe_load_all(text)
    ]


def define_monitors(admin: client.ApiClient) -> None:
    """Teach the server the Prometheus operator's kinds, without their schemas."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    extensions: Any = client.ApiextensionsV1Api(admin)  # takes plain data
    for plural, kind in MONITORS.items():
        version = {"name": "v1", "served": True, "storage": True}
        extensions.create_custom_resource_definition(
            {
                "metadata": {"name": f"{plural}.monitoring.coreos.com"},
                "spec": {
                    "group": "monitoring.coreos.com",
                    "scope": "Namespaced",
                    "names": {"plural": plural, "kind": kind},
                    "versions": [version | {"schema": {"openAPIV3Schema": schema}}],
                },
            }
        )


@pytest.mark.parametrize("layout", ["per-pool", "all-in-one"])
def test_the_server_accepts_every_object(
    admin: client.ApiClient, namespace: str, layout: Any
) -> None:
    files = tree(Installation(SPEC, namespace, layout=layout))
    for overlay in ("deployments", "demo"):
        apply_all(admin, documents(files, "base", f"overlays/{overlay}"), dry_run="All")


def test_the_server_accepts_the_monitors_where_it_knows_such(
    admin: client.ApiClient, namespace: str
) -> None:
    define_monitors(admin)
    files = tree(Installation(SPEC, namespace))
    apply_all(admin, documents(files, "components/monitoring"), dry_run="All")


def test_applied_again_manifests_leave_quotas_and_replicas_to_the_planners(
    admin: client.ApiClient, namespace: str
) -> None:
    made = documents(tree(Installation(SPEC, namespace)), "base/pools", "overlays/demo")
    objects, apps = client.CustomObjectsApi(admin), client.AppsV1Api(admin)
    apply_all(admin, made)
    quota = {"metadata": {"finalizers": ["hrl-planner.io/gives-back-gpus"]}}
    quota["spec"] = {"quota": 3, "quotaSequence": 5}  # type: ignore[dict-item]
    pool = (GROUP, VERSION, namespace, POOLS, POOL)
    objects.patch_namespaced_custom_object(
        *pool, quota, _content_type="application/merge-patch+json"
    )
    apps.patch_namespaced_deployment_scale(POOL, namespace, {"spec": {"replicas": 3}})
    apply_all(admin, made)
    read: Any = objects.get_namespaced_custom_object(*pool)
    assert (read["spec"]["quota"], read["spec"]["quotaSequence"]) == (3, 5)
    assert read["metadata"]["finalizers"]
    assert apps.read_namespaced_deployment(POOL, namespace).spec.replicas == 3
    # What planners wrote last must go before the namespace can.
    nothing: dict[str, Any] = {"metadata": {"finalizers": []}}
    objects.patch_namespaced_custom_object(
        *pool, nothing, _content_type="application/merge-patch+json"
    )
