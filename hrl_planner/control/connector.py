"""The API server as planners see it: typed reads, and writes guarded by version.

A write answers whether it was accepted. Refused as outdated (409) and object gone (404) are no
errors: the next round sees what there is. All reads go to the API server, none to a watch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kubernetes import client
from pydantic import BaseModel, ValidationError

from hrl_planner._spec_file import describe
from hrl_planner.control.pods import PodCounts, count_pods
from hrl_planner.control.pool_list import PoolList, taken_targets
from hrl_planner.control.requests import (
    REQUEST_TIMEOUT_S,
    MissingDefinitionError,
    NotServedError,
    accepted,
    asked,
    kube_error,
)
from hrl_planner.control.targets import Targets
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import FINALIZER, GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import Condition, Metadata, ServingGroup, WorkerPool
from hrl_planner.ledger import QuotaWrite

MERGE = "application/merge-patch+json"


class UnreadableError(KubeError):
    """An object is not as its definition says, or as this planner knows it.

    Attributes:
        kind: of the object.
        metadata: of the object.
        conditions: of its status, as far as they can be understood.
    """

    def __init__(
        self, message: str, kind: str, metadata: Metadata, conditions: tuple[Condition, ...]
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.kind, self.metadata, self.conditions = kind, metadata, conditions


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
        self._api = api
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
        listed = self._defined(
            "list workerpools",
            POOLS,
            lambda: self._objects.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, POOLS, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        pools, unreadable = [], {}
        for item in sorted(listed["items"], key=lambda item: str(item["metadata"]["name"])):
            name = item["metadata"]["name"]
            try:
                pools.append(_parsed(WorkerPool, item, f"workerpool {name}"))
            except UnreadableError as error:
                if group is None or (item.get("spec") or {}).get("group") == group:
                    unreadable[name] = str(error)
        taken = taken_targets(pools)
        wanted = tuple(pool for pool in pools if group is None or pool.spec.group == group)
        return PoolList(wanted, unreadable, taken)

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

    def write_conditions(self, error: UnreadableError, conditions: Sequence[Any]) -> bool:
        """Write the conditions of an object of which no more is understood than whose it is."""
        plural = GROUPS if error.kind == "ServingGroup" else POOLS
        return self._patch_status(plural, error.metadata, {"conditions": list(conditions)})

    # Pods and events.

    def pods(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return what there is of a target's pods, as replicas; no selector selects none."""
        if not selector:
            return PodCounts()
        listed = asked(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )
        return count_pods(listed.items, per_replica)

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

    def _defined(self, what: str, plural: str, ask: Callable[[], Any]) -> Any:
        """Ask for objects whose definition may be missing."""
        try:
            return asked(what, ask)
        except NotServedError as error:
            raise MissingDefinitionError(f"cannot {what}: {self._why_missing(plural)}") from error

    def _why_missing(self, plural: str) -> str:
        groups: Any = asked("discover API groups", client.ApisApi(self._api).get_api_versions)
        versions = [v.version for g in groups.groups if g.name == GROUP for v in g.versions]
        install = "install it with: hrl-planner crds | kubectl apply -f -"
        if not versions or VERSION in versions:
            return f"the definition of {plural}.{GROUP} is not installed; {install}"
        return (
            f"the API server has {GROUP} in version {', '.join(versions)}, and this planner reads "
            f"{VERSION}: run a planner of the definition's version, or {install}"
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
        raise UnreadableError(
            describe(error, what),
            model.__name__,
            Metadata.model_validate(data["metadata"]),
            _conditions(data),
        ) from error


def _conditions(data: Any) -> tuple[Condition, ...]:
    """Return the conditions of an object; none if they are what cannot be understood."""
    status = data.get("status") or {}
    try:
        return tuple(Condition.model_validate(c) for c in status.get("conditions") or ())
    except ValidationError:
        return ()
