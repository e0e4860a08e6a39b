"""Small words for tests on a Kubernetes API server: pods, deployments, waiting for a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kubernetes import client, watch

PATIENCE_S = 30

POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
WEB_SERVER = ("python", "-m", "http.server", "--bind", "$(POD_IP)", "8000")


def pod_spec(command: Sequence[str], gpu_type: str, gpus: int = 0, **container: Any) -> Any:
    """A pod of one container that asks for GPUs of one type."""
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {
        "nodeSelector": {"nvidia.com/gpu.product": gpu_type},
        "containers": [
            {
                "name": "main",
                "image": "none",
                "command": list(command),
                "env": [POD_IP],
                "resources": resources,
                **container,
            }
        ],
    }


def deployment(name: str, replicas: int, spec: Any, annotations: Any = None) -> Any:
    """A deployment whose pods carry the label `app: name`."""
    labels = {"app": name}
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations or {}},
                "spec": spec,
            },
        },
    }


def ready(pod: Any) -> bool:
    """Whether a pod's Ready condition holds."""
    conditions = pod.status.conditions or []
    return any(c.type == "Ready" and c.status == "True" for c in conditions)


def unschedulable(pod: Any) -> bool:
    """Whether the scheduler found no room for a pod."""
    return any(
        c.type == "PodScheduled" and c.status == "False" and c.reason == "Unschedulable"
        for c in pod.status.conditions or []
    )


def wait_for_pods(
    api: client.CoreV1Api, namespace: str, condition: Callable[[list[Any]], bool]
) -> list[Any]:
    """The pods of a namespace, as soon as they are as wanted."""
    seen = api.list_namespaced_pod(namespace)
    if condition(seen.items):
        return list(seen.items)
    changes = watch.Watch().stream(
        api.list_namespaced_pod,
        namespace,
        resource_version=seen.metadata.resource_version,
        timeout_seconds=PATIENCE_S,
    )
    for _ in changes:
        pods = list(api.list_namespaced_pod(namespace).items)
        if condition(pods):
            return pods
    pods = api.list_namespaced_pod(namespace).items
    raise AssertionError(f"not as wanted after {PATIENCE_S} s: {[p.status for p in pods]}")


def wait_for_pod(
    api: client.CoreV1Api, namespace: str, name: str, condition: Callable[[Any], object]
) -> Any:
    """One pod, as soon as it is as wanted."""
    found: list[Any] = []

    def is_so(pods: list[Any]) -> bool:
        found[:] = [pod for pod in pods if pod.metadata.name == name and condition(pod)]
        return bool(found)

    wait_for_pods(api, namespace, is_so)
    return found[0]
