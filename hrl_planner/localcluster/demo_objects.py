"""Objects of the demonstration: pools as Deployments of mock engines, and the custom resources."""

from __future__ import annotations

import time
from typing import Any

from kubernetes import client

from hrl_planner.control.connector import MERGE
from hrl_planner.errors import KubeError
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION, definitions
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.localcluster.kubelet import GPU_RESOURCE, GPU_TYPE_LABEL
from hrl_planner.mock_engine.cluster import engine_command
from hrl_planner.router.discovery.kubernetes import (
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    POOL_LABEL,
    PORT,
)
from hrl_planner.spec import ClusterSpec, PoolSpec

_HTTP, _EVENTS, _REPLAY = 8000, 5557, 5558
_GRACE_S = 120
_SERVED_S = 30.0


def engines(spec: ClusterSpec, pool: PoolSpec) -> dict[str, Any]:
    """Return the Deployment of a pool: mock engines, each a process with its own address."""
    labels = {POOL_LABEL: pool.name}
    options = [o for o in engine_command(spec, pool, 1.0, False) if not o.startswith("--port")]
    start = pool.startup
    options += [f"--startup-s={start.mean_s}", f"--warmup-s={start.warmup_s}"]
    options.append(f"--warmup-slowdown={start.warmup_slowdown}")
    ports = [f"--port={_HTTP}", f"--kv-events-port={_EVENTS}", f"--kv-replay-port={_REPLAY}"]
    container = {
        "name": "engine",
        "image": "none",
        "command": ["python", "-m", "hrl_planner.cli", *options, *ports, "--host=$(POD_IP)"],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "OMP_NUM_THREADS", "value": "1"},
        ],
        "resources": {"limits": {GPU_RESOURCE: str(pool.gpus_per_replica)}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": _HTTP}, "periodSeconds": 1},
    }
    annotations = {
        PORT: str(_HTTP),
        KV_EVENTS_PORT: str(_EVENTS),
        KV_REPLAY_PORT: str(_REPLAY),
    }
    return {
        "metadata": {"name": pool.name},
        "spec": {
            "replicas": pool.initial,
            "selector": {"matchLabels": labels},
            # A surge would hold GPUs that the ledger has not given.
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "nodeSelector": {GPU_TYPE_LABEL: pool.gpu_type},
                    "terminationGracePeriodSeconds": _GRACE_S,
                    "containers": [container],
                },
            },
        },
    }


def install_definitions(admin: client.ApiClient) -> None:
    """Install the custom resources, and wait until the server knows them.

    Raises:
        KubeError: it does not in time.
    """
    extensions: Any = client.ApiextensionsV1Api(admin)  # takes plain data
    for definition in definitions().values():
        try:
            extensions.create_custom_resource_definition(definition)
        except client.ApiException as error:
            if error.status != 409:
                raise
    until_s = time.monotonic() + _SERVED_S
    for definition in definitions().values():
        name = definition["metadata"]["name"]
        while not _established(extensions, name):
            if time.monotonic() > until_s:
                raise KubeError(f"the API server does not serve {name}")
            time.sleep(0.1)


def _established(extensions: Any, name: str) -> bool:
    conditions = extensions.read_custom_resource_definition(name).status.conditions or ()
    return any(c.type == "Established" and c.status == "True" for c in conditions)


def create(
    admin: client.ApiClient,
    spec: ClusterSpec,
    namespace: str,
    policy: dict[str, Any],
) -> None:
    """Create engines, group and pools.

    Args:
        admin: may do everything.
        spec: the cluster.
        namespace: of all objects.
        policy: fields of the group's `policy`.
    """
    apps: Any = client.AppsV1Api(admin)
    objects = client.CustomObjectsApi(admin)
    for pool in spec.pools:
        apps.create_namespaced_deployment(namespace, engines(spec, pool))
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
    group, *pools = manifests_of(spec, targets, namespace)
    group["spec"]["policy"] |= policy
    objects.create_namespaced_custom_object(GROUP, VERSION, namespace, GROUPS, group)
    for body in pools:
        objects.create_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, body)


def activate(admin: client.ApiClient, spec: ClusterSpec, namespace: str) -> None:
    """Let planners carry out what they decide; until now they have been in shadow mode."""
    client.CustomObjectsApi(admin).patch_namespaced_custom_object(
        GROUP, VERSION, namespace, GROUPS, spec.name, {"spec": {"policy": {"mode": "active"}}},
        _content_type=MERGE,
    )  # fmt: skip
