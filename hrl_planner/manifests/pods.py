"""What pods of planners and router have in common: confinement, probes, identity."""

from __future__ import annotations

from collections.abc import Mapping

from hrl_planner.manifests.installation import Installation, Json

# As in the image; above the ids that hosts give to people and services.
USER_ID = 10001

CONFINED: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "readOnlyRootFilesystem": True,
}
POD_NAMESPACE: Json = {
    "name": "POD_NAMESPACE",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
}


def pod_spec(name: str, container: Json, volumes: list[Json]) -> Json:
    """Return the spec of a pod that runs as the account of its name."""
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def deployment(
    installation: Installation,
    name: str,
    labels: Mapping[str, str],
    pod: Json,
    annotations: Mapping[str, str] | None = None,
    replicas: int = 1,
) -> Json:
    """Return the Deployment of a process."""
    template: Json = {"metadata": {"labels": dict(labels)}, "spec": pod}
    if annotations:
        template["metadata"]["annotations"] = dict(annotations)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": installation.metadata(name, labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": dict(labels)},
            "template": template,
        },
    }


def disruption_budget(
    installation: Installation, name: str, labels: Mapping[str, str], bound: Mapping[str, int]
) -> Json:
    """Return how many of a process's pods a drain of nodes may take at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": installation.metadata(name, labels),
        "spec": {**bound, "selector": {"matchLabels": dict(labels)}},
    }


def rolling(surge: int, unavailable: int) -> Json:
    """Return how a Deployment's pods are replaced."""
    # Named in full: `kubectl apply` would find a change in every absent default.
    bounds = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"type": "RollingUpdate", "rollingUpdate": bounds}


def scratch(name: str, size: str) -> Json:
    """Return a volume for what a read-only root file system cannot take."""
    return {"name": name, "emptyDir": {"sizeLimit": size}}


def http_probe(path: str, port: str, **often: int) -> Json:
    """Return a probe by HTTP."""
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 3, **often}


def container_port(name: str, port: int) -> Json:
    """Return a port; server-side apply tells ports apart by protocol, and old servers add none."""
    return {"name": name, "containerPort": port, "protocol": "TCP"}
