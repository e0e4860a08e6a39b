"""The API server as planners see it: typed reads, and writes guarded by version.

A write answers whether it was accepted. Refused as outdated (409) and object gone (404) are no
errors: the next round sees what there is. All reads go to the API server, none to a watch; what
watches tell is in `watched.py`. What a write returns is the object as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from kubernetes import client
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from hrl_planner._spec_file import describe
from hrl_planner.control.pods import PodCounts, count_pods, pod_of
from hrl_planner.control.pool_list import PoolList, taken_targets
from hrl_planner.control.requests import (
    REQUEST_TIMEOUT_S,
    MissingDefinitionError,
    NotServedError,
    accepted,
    asked,
    kube_error,
)
from hrl_planner.control.targets import Targets, TargetState
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import FINALIZER, GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import Condition, Metadata, ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.ledger import QuotaWrite

MERGE = "application/merge-patch+json"
_IN_TIME = {"_request_timeout": REQUEST_TIMEOUT_S}
_PATIENCE_S = 0.5  # about what walking over etcd takes, see `_newest`


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
        return sorted(item["metadata"]["name"] for item in self._list(GROUPS)["items"])

    def pool(self, name: str) -> WorkerPool:
        """Return a worker pool; errors as for a group."""
        return parsed_pool(self._get(POOLS, name))

    def pools(self, group: str | None = None, *, crowded: bool = False) -> PoolList:
        """Return the pools of a group, or of the namespace, by name.

        Args:
            group: absent: all.
            crowded: there are hundreds, see `_newest`.
        """
        find = partial(self._list, POOLS)
        items = (_newest(find) if crowded else find())["items"]
        return pool_list({item["metadata"]["name"]: pool_or_error(item) for item in items}, group)

    def pools_now(self, group: str | None = None) -> PoolList:
        """Return the same, as it is at this moment or later; what the connector reads always is."""
        return self.pools(group)

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

    def write_conditions(self, error: UnreadableError, conditions: Sequence[Any]) -> bool:
        """Write the conditions of an object of which no more is understood than whose it is."""
        plural = GROUPS if error.kind == "ServingGroup" else POOLS
        status = {"conditions": list(conditions)}
        return self._patch_status(plural, error.metadata, status) is not None

    # Pods and events.

    def pods(self, selector: str, per_replica: int = 1, *, crowded: bool = False) -> PodCounts:
        """Return what there is of a target's pods, as replicas; no selector selects none.

        Args:
            selector: of the pods.
            per_replica: see `count_pods`.
            crowded: there are thousands of others, see `_newest`.
        """
        if not selector:
            return PodCounts()
        find = partial(_newest, self._pods) if crowded else self._pods
        found = find(label_selector=selector)
        return count_pods(map(pod_of, found["items"]), per_replica)

    def pods_now(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return the same, as it is at this moment or later; what the connector reads always is."""
        return self.pods(selector, per_replica)

    def _pods(self, **query: Any) -> Any:
        listed = asked(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self.namespace,
                _preload_content=False,
                **_IN_TIME | query,
            ),
        )
        return json.loads(listed.data)

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
        return self._defined(
            f"read {plural}/{name}",
            plural,
            lambda: self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )

    def _list(self, plural: str, **query: Any) -> Any:
        return self._defined(
            f"list {plural}",
            plural,
            lambda: self._objects.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, **_IN_TIME | query
            ),
        )

    def _defined(self, what: str, plural: str, ask: Callable[[], Any]) -> Any:
        """Ask for objects whose definition may be missing."""
        try:
            return asked(what, ask)
        except NotServedError as error:
            raise MissingDefinitionError(f"cannot {what}: {self._why_missing(plural)}") from error

    def _why_missing(self, plural: str) -> str:
        groups: Any = asked("discover API groups", client.ApisApi(self.api).get_api_versions)
        versions = [v.version for g in groups.groups if g.name == GROUP for v in g.versions]
        install = "install it with: hrl-planner crds | kubectl apply -f -"
        if not versions or VERSION in versions:
            return f"the definition of {plural}.{GROUP} is not installed; {install}"
        return (
            f"the API server has {GROUP} in version {', '.join(versions)}, and this planner reads "
            f"{VERSION}: run a planner of the definition's version, or {install}"
        )

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


class UnreadableError(KubeError):
    """An object is not as its definition says, or as this planner knows it.

    Attributes:
        kind: of the object.
        metadata: of the object.
        conditions: of its status, as far as they can be understood.
        group: of a pool, the group it says it belongs to.
    """

    def __init__(self, error: ValidationError, kind: str, item: Any) -> None:
        """See the class."""
        super().__init__(describe(error, f"{kind.lower()} {item['metadata']['name']}"))
        self.kind = kind
        self.metadata = Metadata.model_validate(item["metadata"])
        self.conditions = _conditions_of(item)
        self.group = str((item.get("spec") or {}).get("group", ""))


def parsed_group(item: Any) -> ServingGroup:
    """Return the group that the API server's data describe.

    Raises:
        UnreadableError: if they are not as the definition says.
    """
    try:
        return ServingGroup.model_validate(item)
    except ValidationError as error:
        raise UnreadableError(error, "ServingGroup", item) from error


def parsed_pool(item: Any) -> WorkerPool:
    """Return the pool that the API server's data describe.

    Raises:
        UnreadableError: if they are not as the definition says.
    """
    try:
        return WorkerPool.model_validate(item)
    except ValidationError as error:
        raise UnreadableError(error, "WorkerPool", item) from error


def pool_or_error(item: Any) -> WorkerPool | UnreadableError:
    """Return the pool, or why there is none to return."""
    try:
        return parsed_pool(item)
    except UnreadableError as error:
        return error


def pool_list(
    pools: Mapping[str, WorkerPool | UnreadableError],
    group: str | None,
    taken: Mapping[str, str] | None = None,
) -> PoolList:
    """Return those of a group, or all, by name.

    Args:
        pools: of the namespace.
        group: its name; None for all.
        taken: of `taken_targets`, where it is known already.
    """
    found, unreadable = [], {}
    for name, pool in sorted(pools.items()):
        if not isinstance(pool, WorkerPool):
            if group in (None, pool.group):
                unreadable[name] = str(pool)
        elif group in (None, pool.spec.group):
            found.append(pool)
    if taken is None:
        taken = taken_targets(pool for pool in pools.values() if isinstance(pool, WorkerPool))
    return PoolList(tuple(found), unreadable, taken)


def _conditions_of(item: Any) -> tuple[Condition, ...]:
    """Return the conditions of an object; none if they are what cannot be understood."""
    status = item.get("status") or {}
    try:
        return tuple(Condition.model_validate(c) for c in status.get("conditions") or ())
    except ValidationError:
        return ()


def _newest(find: Callable[..., Any], **query: Any) -> Any:
    """Return a list as new as one from etcd, out of the API server's own memory where it can.

    An API server before 1.31 walks over all of a namespace in etcd, up to a second's work; what it
    has in memory it walks over in milliseconds, and it can be told how new that must be. It learns
    how new that is with the next change of the kind, and would wait 3 s for one.
    """
    now = find(limit=1)["metadata"]["resourceVersion"]  # of anything: a selector would be a walk
    new = {"resource_version": now, "resource_version_match": "NotOlderThan"}
    try:
        return find(**query, **new, _request_timeout=_PATIENCE_S)
    except (KubeError, HTTPError):  # its memory is not that new yet
        return find(**query)


_Model = TypeVar("_Model", ServingGroup, WorkerPool)


def _parsed(parse: Callable[[Any], _Model], written: Any | None) -> _Model | None:
    return None if written is None else parse(written)
