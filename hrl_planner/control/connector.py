"""The API server as planners see it: typed reads, and writes guarded by version.

A write answers whether it was accepted. Refused as outdated (409) and object gone (404) are no
errors: the next round sees what there is. All reads go to the API server, none to a watch; what
watches tell is in `watched.py`. What a write returns is the object as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from kubernetes import client
from pydantic import ValidationError

from hrl_planner._spec_file import describe
from hrl_planner.control.pods import PodCounts, count_pods, pod_of
from hrl_planner.control.requests import REQUEST_TIMEOUT_S, accepted, asked, kube_error
from hrl_planner.control.targets import Targets, TargetState
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import FINALIZER, GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
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
        api: the client, for what is no read or write of a planner.
        namespace: as given.
        targets: the scale targets of the namespace.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        """See the class."""
        self.api = api
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
        return parsed_group(self._get(GROUPS, name))

    def groups(self) -> list[str]:
        """Return the names of the groups of the namespace."""
        return sorted(item["metadata"]["name"] for item in self._list(GROUPS))

    def pool(self, name: str) -> WorkerPool:
        """Return a worker pool; errors as for a group."""
        return parsed_pool(self._get(POOLS, name))

    def pools(self, group: str | None = None) -> PoolList:
        """Return the pools of a group, or of the namespace, by name."""
        items = [i for i in self._list(POOLS) if group is None or _group_of(i) == group]
        return pool_list({item["metadata"]["name"]: pool_or_error(item) for item in items}, group)

    def target(self, ref: ScaleTargetRef) -> TargetState:
        """Return a scale target, see `Targets.read`."""
        return self.targets.read(ref)

    def write_quota(self, write: QuotaWrite, pool: WorkerPool) -> WorkerPool | None:
        """Write a quota; the pool must give back its GPUs before it can go from then on."""
        finalizers = list(dict.fromkeys((*pool.metadata.finalizers, FINALIZER)))
        metadata: dict[str, Any] = {"resourceVersion": write.version}
        if pool.metadata.deletion_timestamp is None:
            metadata["finalizers"] = finalizers
        spec = {"quota": write.quota, "quotaSequence": pool.spec.quota_sequence + 1}
        body = {"metadata": metadata, "spec": spec}
        return _parsed(parsed_pool, self._patch(POOLS, write.pool, body))

    def release(self, pool: WorkerPool) -> bool:
        """Let a pool go that has given everything back."""
        finalizers = [f for f in pool.metadata.finalizers if f != FINALIZER]
        version = pool.metadata.resource_version
        metadata = {"resourceVersion": version, "finalizers": finalizers}
        return self._patch(POOLS, pool.name, {"metadata": metadata}) is not None

    def write_group_status(
        self, group: ServingGroup, status: Mapping[str, Any]
    ) -> ServingGroup | None:
        """Change fields of a group's status, given as Kubernetes spells them."""
        return _parsed(parsed_group, self._patch_status(GROUPS, group.metadata, status))

    def write_pool_status(self, pool: WorkerPool, status: Mapping[str, Any]) -> WorkerPool | None:
        """Change fields of a pool's status; a None removes the field."""
        return _parsed(parsed_pool, self._patch_status(POOLS, pool.metadata, status))

    # Pods and events.

    def pods(self, selector: str) -> PodCounts:
        """Return what there is of a target's pods; no selector selects none."""
        if not selector:
            return PodCounts()
        listed = asked(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector,
                _preload_content=False, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip
        return count_pods(pod_of(item) for item in json.loads(listed.data)["items"])

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

    def _list(self, plural: str) -> list[Any]:
        listed = asked(
            f"list {plural}",
            lambda: self._objects.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        items: list[Any] = listed["items"]
        return items

    def _patch(self, plural: str, name: str, body: dict[str, Any]) -> Any:
        return accepted(
            f"patch {plural}/{name}",
            lambda: self._objects.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip

    def _patch_status(self, plural: str, metadata: Any, status: Mapping[str, Any]) -> Any:
        body = {"metadata": {"resourceVersion": metadata.resource_version}, "status": status}
        return accepted(
            f"patch the status of {plural}/{metadata.name}",
            lambda: self._objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, plural, metadata.name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip


class UnreadablePoolError(KubeError):
    """A pool is not as its definition says.

    Attributes:
        group: the group it says it belongs to.
    """

    def __init__(self, message: str, group: str) -> None:
        """See the class."""
        super().__init__(message)
        self.group = group


def parsed_group(item: Any) -> ServingGroup:
    """Return the group that the API server's data describe.

    Raises:
        KubeError: if they are not as the definition says.
    """
    try:
        return ServingGroup.model_validate(item)
    except ValidationError as error:
        name = item["metadata"]["name"]
        raise KubeError(describe(error, f"servinggroup {name}")) from error


def parsed_pool(item: Any) -> WorkerPool:
    """Return the pool that the API server's data describe.

    Raises:
        UnreadablePoolError: if they are not as the definition says.
    """
    try:
        return WorkerPool.model_validate(item)
    except ValidationError as error:
        what = describe(error, f"workerpool {item['metadata']['name']}")
        raise UnreadablePoolError(what, _group_of(item)) from error


def pool_or_error(item: Any) -> WorkerPool | UnreadablePoolError:
    """Return the pool, or why there is none to return."""
    try:
        return parsed_pool(item)
    except UnreadablePoolError as error:
        return error


def pool_list(pools: Mapping[str, WorkerPool | UnreadablePoolError], group: str | None) -> PoolList:
    """Return those of a group, or all, by name."""
    found, unreadable = [], {}
    for name, pool in sorted(pools.items()):
        if isinstance(pool, UnreadablePoolError):
            if group in (None, pool.group):
                unreadable[name] = str(pool)
        elif group in (None, pool.spec.group):
            found.append(pool)
    return PoolList(tuple(found), unreadable)


def _group_of(item: Any) -> str:
    return str(item.get("spec", {}).get("group", ""))


_Model = TypeVar("_Model", ServingGroup, WorkerPool)


def _parsed(parse: Callable[[Any], _Model], written: Any | None) -> _Model | None:
    return None if written is None else parse(written)
