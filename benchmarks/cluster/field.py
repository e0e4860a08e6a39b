"""A cluster to try planners on: objects on a real API server, pods that answer for workers.

Pods hold GPUs, start slowly and drain, and are no processes: the kubelet stand-in reports them and
`Workers` answers for them, so planners decide on numbers as real as a profile makes them, and two
cores can carry the whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from benchmarks.cluster.store import OnRevision, Store
from benchmarks.cluster.workers import Workers
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.localcluster import (
    DRAIN_ANNOTATION,
    GPU_RESOURCE,
    GPU_TYPE_LABEL,
    STARTUP_ANNOTATION,
    ControlPlane,
    Kubelet,
    Node,
)
from hrl_planner.localcluster.demo_objects import install_definitions
from hrl_planner.router.discovery.kubernetes import POOL_LABEL, PORT
from hrl_planner.spec import ClusterSpec, PoolSpec

MERGE = "application/merge-patch+json"
ETCD_PORT = 2379
_SITE = "hrl-planner.io/site"  # sites share a control plane, not machines


@dataclass(frozen=True)
class Clocks:
    """Seconds, much shorter than in production, so that minutes show what hours would.

    Attributes:
        local_s, global_s: between rounds, and between plans.
        scrape_s, lag_s, window_s: of metrics.
        startup_s: from being bound to serving.
        drain_s: from being deleted to being gone.
    """

    local_s: float = 1.0
    global_s: float = 3.0
    scrape_s: float = 1.0
    lag_s: float = 0.5
    window_s: float = 6.0
    startup_s: float = 3.0
    drain_s: float = 2.0


def quick(name: str, clocks: Clocks) -> ClusterSpec:
    """Return a shipped spec with short clocks."""
    data = ClusterSpec.load(name).model_dump(mode="json", exclude_none=True)
    data["intervals"] = {
        "local_s": clocks.local_s,
        "global_s": clocks.global_s,
        "scrape_s": clocks.scrape_s,
        "scrape_lag_s": clocks.lag_s,
        "window_s": clocks.window_s,
    }
    for pool in data["pools"]:
        startup = {"mean_s": clocks.startup_s, "cv": 0.2, "distribution": "lognormal"}
        pool["startup"] = startup
    return ClusterSpec.from_dict(data, where=name)


@dataclass
class Field:
    """A cluster with a group and its pools, and without planners.

    Attributes:
        plane: the control plane.
        namespace: of everything.
        spec: what group and pools were made from.
        clocks: of it.
        site: whose machines pods go to.
        store: its objects, revision by revision.
        workers: what its worker pods say.
    """

    plane: ControlPlane
    namespace: str
    spec: ClusterSpec
    clocks: Clocks
    site: str
    store: Store
    workers: Workers
    _api: client.ApiClient

    def patch_group(self, patch: Mapping[str, Any]) -> None:
        """Change the ServingGroup."""
        self._patch(GROUPS, self.spec.name, patch)

    def patch_pool(self, name: str, patch: Mapping[str, Any]) -> None:
        """Change a WorkerPool."""
        self._patch(POOLS, name, patch)

    def create_pool(self, name: str) -> None:
        """Create a WorkerPool as it was at first."""
        body = next(m for m in self._manifests() if m["metadata"]["name"] == name)
        self._objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, POOLS, body)

    def delete_pool(self, name: str) -> None:
        """Delete a WorkerPool; its planners let it go once it is empty."""
        self._objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, POOLS, name)

    def scale(self, name: str, replicas: int) -> int:
        """Ask a deployment for replicas, as with kubectl; returns the store's revision."""
        apps: Any = client.AppsV1Api(self._api)
        body = {"spec": {"replicas": replicas}}
        scaled = apps.patch_namespaced_deployment_scale(name, self.namespace, body)
        return int(scaled.metadata.resource_version)

    def delete_pod(self, name: str) -> None:
        """Delete a pod."""
        client.CoreV1Api(self._api).delete_namespaced_pod(name, self.namespace)

    def pool(self, name: str) -> dict[str, Any]:
        """Return a WorkerPool as stored."""
        with self.store.lock:
            return self.store.state.pools[name]

    def pool_names(self) -> list[str]:
        """Return the WorkerPools there are."""
        with self.store.lock:
            return list(self.store.state.pools)

    def group(self) -> dict[str, Any]:
        """Return the ServingGroup as stored."""
        with self.store.lock:
            return self.store.state.groups[self.spec.name]

    def targets(self) -> dict[str, int]:
        """Return what is asked of each deployment."""
        with self.store.lock:
            return dict(self.store.state.targets)

    def holding(self) -> dict[str, int]:
        """Return the pods that hold or will hold GPUs, by pool."""
        with self.store.lock:
            pods = [p.pool for p in self.store.state.pods.values() if p.holds]
        return {pool.name: pods.count(pool.name) for pool in self.spec.pools}

    @property
    def _objects(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self._api)

    def _patch(self, plural: str, name: str, patch: Mapping[str, Any]) -> None:
        self._objects.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, plural, name, dict(patch), _content_type=MERGE
        )

    def _manifests(self) -> list[dict[str, Any]]:
        targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in self.spec.pools}
        return manifests_of(self.spec, targets, self.namespace)

    def _create(self, policy: Mapping[str, str], replicas: Mapping[str, int]) -> None:
        apps: Any = client.AppsV1Api(self._api)
        for pool in self.spec.pools:
            count = replicas.get(pool.name, pool.initial)
            body = deployment(pool, count, self.workers.port, self.clocks, self.site)
            apps.create_namespaced_deployment(self.namespace, body)
        group, *pools = self._manifests()
        group["spec"]["policy"] |= {"mode": "active", **policy}
        self._objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, GROUPS, group)
        for body in pools:
            self._objects.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, POOLS, body
            )


def deployment(
    pool: PoolSpec, replicas: int, port: int, clocks: Clocks, site: str
) -> dict[str, Any]:
    """Return the deployment of a pool, for the machines of a site."""
    labels = {POOL_LABEL: pool.name}
    annotations = {
        STARTUP_ANNOTATION: str(clocks.startup_s),
        DRAIN_ANNOTATION: str(clocks.drain_s),
        PORT: str(port),
    }
    container = {
        "name": "engine",
        "image": "none",
        "resources": {"limits": {GPU_RESOURCE: str(pool.gpus_per_replica)}},
    }
    return {
        "metadata": {"name": pool.name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "nodeSelector": {GPU_TYPE_LABEL: pool.gpu_type, _SITE: site},
                    "containers": [container],
                },
            },
        },
    }


@contextlib.contextmanager
def field(
    plane: ControlPlane,
    spec: ClusterSpec,
    clocks: Clocks,
    policy: Mapping[str, str],
    *,
    replicas: Mapping[str, int] | None = None,
    site: str = "field",
    on_revision: OnRevision = lambda state, writes: None,
) -> Iterator[Field]:
    """Make a namespace with everything but planners; a kubelet must run already.

    Args:
        plane: with controllers.
        spec: the cluster; its clocks are the group's.
        clocks: for pods.
        policy: allocator and scaler of the group.
        replicas: of deployments at first, where they differ from the spec's.
        site: whose machines pods go to.
        on_revision: told of every change.
    """
    api = plane.client()
    install_definitions(api)
    url = f"http://{plane.network.address(2)}:{ETCD_PORT}"
    with plane.namespace("field") as namespace, Store(url, namespace, on_revision) as store:
        workers = Workers(spec, store.ready, store.pool_of)
        with workers:
            found = Field(plane, namespace, spec, clocks, site, store, workers, api)
            found._create(policy, replicas or {})
            yield found


@contextlib.contextmanager
def kubelet(plane: ControlPlane, gpus: Mapping[str, int], site: str = "field") -> Iterator[Kubelet]:
    """Run a kubelet whose pods are no processes, for a site with a machine per GPU type.

    The machines leave with it: pods bound to one that nobody runs would never end.
    """
    nodes = [
        Node(f"{site}-{kind.lower()}", kind, gpus=count, labels={_SITE: site})
        for kind, count in gpus.items()
    ]
    try:
        with Kubelet(plane, nodes, processes=False) as running:
            yield running
    finally:
        core = client.CoreV1Api(plane.client())
        for node in nodes:
            core.delete_node(node.name)
