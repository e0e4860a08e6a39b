"""The API server as planners see it: typed reads, and writes guarded by version.

A write answers whether it was accepted. Refused as outdated (409) and object gone (404) are no
errors: the next round sees what there is. All reads go to the API server, none to a watch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from kubernetes import client
from pydantic import BaseModel, ValidationError

from hrl_planner._spec_file import describe
from hrl_planner.control.pods import PodCounts, count_pods
from hrl_planner.control.requests import REQUEST_TIMEOUT_S, accepted, asked, kube_error
from hrl_planner.control.targets import Targets
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import FINALIZER, GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ServingGroup, WorkerPool
from hrl_planner.ledger import QuotaWrite

MERGE = "application/merge-patch+json"


class PoolList(NamedTuple):
    """The pools of a group, and those of it that cannot be understood, with the reason."""

    pools: tuple[WorkerPool, ...]
    unreadable: Mapping[str, str]


class Connector:
    """Reads and writes of one namespace.

    Args:
        api: an authenticated client.
        namespace: where group, pools and targets are.

    Attributes:
        targets: the scale targets of the namespace.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        """See the class."""
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self.targets = Targets(api, namespace)

    # Groups and pools.

    def group(self, name: str) -> ServingGroup:
        """Return a serving group.

        Raises:
            KubeError: if it does not exist, cannot be read, or is not as its definition says.
        """
        return _parsed(ServingGroup, self._get(GROUPS, name), f"servinggroup {name}")

    def pool(self, name: str) -> WorkerPool:
        """Return a worker pool; errors as for a group."""
        return _parsed(WorkerPool, self._get(POOLS, name), f"workerpool {name}")

    def pools(self, group: str | None = None) -> PoolList:
        """Return the pools of a group, or of the namespace, by name."""
        listed = asked(
            "list workerpools",
            lambda: self._objects.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, POOLS, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        pools, unreadable = [], {}
        for item in sorted(listed["items"], key=lambda item: str(item["metadata"]["name"])):
            if group is not None and item.get("spec", {}).get("group") != group:
                continue
            name = item["metadata"]["name"]
            try:
                pools.append(_parsed(WorkerPool, item, f"workerpool {name}"))
            except KubeError as error:
                unreadable[name] = str(error)
        return PoolList(tuple(pools), unreadable)

    def write_quota(self, write: QuotaWrite, pool: WorkerPool) -> bool:
        """Write a quota; the pool must give back its GPUs before it can go from then on."""
        finalizers = list(dict.fromkeys((*pool.metadata.finalizers, FINALIZER)))
        metadata: dict[str, Any] = {"resourceVersion": write.version}
        if pool.metadata.deletion_timestamp is None:
            metadata["finalizers"] = finalizers
        spec = {"quota": write.quota, "quotaSequence": pool.spec.quota_sequence + 1}
        return self._patch(POOLS, write.pool, {"metadata": metadata, "spec": spec})

    def release(self, pool: WorkerPool) -> bool:
        """Let a pool go that has given everything back."""
        finalizers = [f for f in pool.metadata.finalizers if f != FINALIZER]
        version = pool.metadata.resource_version
        metadata = {"resourceVersion": version, "finalizers": finalizers}
        return self._patch(POOLS, pool.name, {"metadata": metadata})

    def write_group_status(self, group: ServingGroup, status: Mapping[str, Any]) -> bool:
        """Change fields of a group's status, given as Kubernetes spells them."""
        return self._patch_status(GROUPS, group.metadata, status)

    def write_pool_status(self, pool: WorkerPool, status: Mapping[str, Any]) -> bool:
        """Change fields of a pool's status; a None removes the field."""
        return self._patch_status(POOLS, pool.metadata, status)

    # Pods and events.

    def pods(self, selector: str) -> PodCounts:
        """Return what there is of a target's pods; no selector selects none."""
        if not selector:
            return PodCounts()
        listed = asked(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        return count_pods(listed.items)

    def event(self, event: Any) -> None:
        """Create an event; a planner does not fail for want of one."""
        try:
            self._core.create_namespaced_event(
                self.namespace, event, _request_timeout=REQUEST_TIMEOUT_S
            )
        except client.ApiException as error:
            if error.status not in (403, 404, 409, 429):
                raise kube_error("create an event", error) from error

    # Their parts.

    def _get(self, plural: str, name: str) -> Any:
        return asked(
            f"read {plural}/{name}",
            lambda: self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )

    def _patch(self, plural: str, name: str, body: dict[str, Any]) -> bool:
        return accepted(
            f"patch {plural}/{name}",
            lambda: self._objects.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip

    def _patch_status(self, plural: str, metadata: Any, status: Mapping[str, Any]) -> bool:
        body = {"metadata": {"resourceVersion": metadata.resource_version}, "status": status}
        return accepted(
            f"patch the status of {plural}/{metadata.name}",
            lambda: self._objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, plural, metadata.name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip


_Model = TypeVar("_Model", bound=BaseModel)


def _parsed(model: type[_Model], data: Any, what: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise KubeError(describe(error, what)) from error
