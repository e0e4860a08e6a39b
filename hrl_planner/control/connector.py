"""The API server as planners see it: typed reads, and writes guarded by version.

A write answers whether it was accepted. Refused as outdated (409) and object gone (404) are no
errors: the next round sees what there is. All reads go to the API server, none to a watch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from kubernetes import client
from pydantic import BaseModel, ValidationError

from hrl_planner._spec_file import describe
from hrl_planner.control.pods import PodCounts, count_pods
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import FINALIZER, GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.ledger import QuotaWrite, Target
from hrl_planner.ledger.replicas import MISSING

MERGE = "application/merge-patch+json"
REQUEST_TIMEOUT_S = 10.0
_READS_OF_A_TARGET = 4


class TargetState:
    """A scale target as read: for the ledger, and what else its planner wants to know.

    Attributes:
        target: for the ledger.
        selector: of its pods.
        observed: replicas its controller reports; equal to those asked for once it caught up.
    """

    __slots__ = ("observed", "selector", "target")

    def __init__(self, target: Target, selector: str = "", observed: int = 0) -> None:
        """See the class."""
        self.target, self.selector, self.observed = target, selector, observed


class NotFoundError(KubeError):
    """What was asked for does not exist."""


class PoolList(NamedTuple):
    """The pools of a group, and those of it that cannot be understood, with the reason."""

    pools: tuple[WorkerPool, ...]
    unreadable: Mapping[str, str]


class Connector:
    """Reads and writes of one namespace.

    Args:
        api: an authenticated client.
        namespace: where group, pools and targets are.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        """See the class."""
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._plurals: dict[tuple[str, str], str] = {}

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
        listed = _asked(
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

    # Targets and pods.

    def target(self, ref: ScaleTargetRef) -> TargetState:
        """Return a scale target with the version of its spec; missing ones are no error."""
        for _ in range(_READS_OF_A_TARGET):
            try:
                scale: Any = self._objects.get_namespaced_custom_object_scale(
                    *self._path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                )
                whole: Any = self._objects.get_namespaced_custom_object(
                    *self._path(ref), ref.name, _request_timeout=REQUEST_TIMEOUT_S
                )
            except client.ApiException as error:
                if error.status == 404:
                    return TargetState(MISSING)
                raise _kube_error(f"read {ref.kind} {ref.name}", error) from error
            meta = whole["metadata"]
            if scale["metadata"]["resourceVersion"] == meta["resourceVersion"]:
                return _target_state(scale, meta)
        raise KubeError(f"{ref.kind} {ref.name}: changes faster than it can be read")

    def scale(self, ref: ScaleTargetRef, replicas: int, version: str) -> bool:
        """Ask a target for replicas, if it still has a version."""
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": ref.name,
                "namespace": self.namespace,
                "resourceVersion": version,
            },
            "spec": {"replicas": replicas},
        }
        return _accepted(
            f"scale {ref.kind} {ref.name}",
            lambda: self._objects.replace_namespaced_custom_object_scale(
                *self._path(ref), ref.name, body, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )

    def pods(self, selector: str) -> PodCounts:
        """Return what there is of a target's pods; no selector selects none."""
        if not selector:
            return PodCounts()
        listed = _asked(
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
                raise _kube_error("create an event", error) from error

    # Their parts.

    def _path(self, ref: ScaleTargetRef) -> tuple[str, str, str, str]:
        group, _, version = ref.api_version.rpartition("/")
        if not group:
            raise KubeError(f"scaleTargetRef: {ref.kind} of {ref.api_version} cannot be a target")
        key = (ref.api_version, ref.kind)
        if key not in self._plurals:
            found = _asked(
                f"discover {ref.api_version}",
                lambda: self._objects.get_api_resources(group, version),
            )
            scaled = {
                r.name.partition("/")[0] for r in found.resources if r.name.endswith("/scale")
            }
            names = [r.name for r in found.resources if r.kind == ref.kind and r.name in scaled]
            if not names:
                raise KubeError(f"scaleTargetRef: {ref.api_version} has no scalable {ref.kind}")
            self._plurals[key] = names[0]
        return group, version, self.namespace, self._plurals[key]

    def _get(self, plural: str, name: str) -> Any:
        return _asked(
            f"read {plural}/{name}",
            lambda: self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT_S
            ),
        )

    def _patch(self, plural: str, name: str, body: dict[str, Any]) -> bool:
        return _accepted(
            f"patch {plural}/{name}",
            lambda: self._objects.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip

    def _patch_status(self, plural: str, metadata: Any, status: Mapping[str, Any]) -> bool:
        body = {"metadata": {"resourceVersion": metadata.resource_version}, "status": status}
        return _accepted(
            f"patch the status of {plural}/{metadata.name}",
            lambda: self._objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, plural, metadata.name, body,
                _content_type=MERGE, _request_timeout=REQUEST_TIMEOUT_S,
            ),
        )  # fmt: skip


def _target_state(scale: Any, meta: Any) -> TargetState:
    version, generation = meta["resourceVersion"], meta.get("generation")
    # Where nothing counts changes of the spec, every change counts as one.
    spec_version = f"{meta['uid']}/{generation or f'version {version}'}"
    replicas = int(scale["spec"].get("replicas", 0))
    status = scale.get("status", {})
    target = Target(replicas, version, spec_version)
    return TargetState(target, status.get("selector", ""), int(status.get("replicas", 0)))


_Model = TypeVar("_Model", bound=BaseModel)


def _parsed(model: type[_Model], data: Any, what: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise KubeError(describe(error, what)) from error


def _asked(what: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except client.ApiException as error:
        raise _kube_error(what, error) from error


def _accepted(what: str, write: Callable[[], Any]) -> bool:
    try:
        write()
    except client.ApiException as error:
        if error.status in (404, 409):
            return False
        raise _kube_error(what, error) from error
    return True


def _kube_error(what: str, error: client.ApiException) -> KubeError:
    try:
        message = json.loads(error.body or "{}").get("message", error.reason)
    except ValueError:
        message = error.reason
    kind = NotFoundError if error.status == 404 else KubeError
    return kind(f"cannot {what}: {error.status} {message}")
