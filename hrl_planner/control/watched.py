"""What planners look at first: groups, pools, targets and pods as watches tell them.

The same reads as a `Connector`'s, mostly without a request. What a watch does not know, or when
it cannot be believed, is asked of the API server. Either way the answer may be older than the
present: the ledger is told so, and names what has to be read fresh, by the connector.

A target is read by its scale subresource, which cannot be watched. So the target's own kind is
watched, and the target is read again when its version has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from kubernetes.aio.client import ApiClient, CoreV1Api, CustomObjectsApi

from hrl_planner.control.connector import (
    Connector,
    UnreadableError,
    parsed_group,
    pool_list,
    pool_or_error,
)
from hrl_planner.control.mirrors import Mirror, Mirrors
from hrl_planner.control.podindex import PodIndex, equalities
from hrl_planner.control.pods import Pod, PodCounts, count_pods, pod_of
from hrl_planner.control.pool_list import PoolList, taken_targets
from hrl_planner.control.targets import TargetState, identity
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.kube.reflector import Json, ListCall
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool

POOL_LABEL = f"{GROUP}/pool"
# More pods than this an API server should not be made to walk over for those of one target.
_CROWD = 1000
_MANY_POOLS = 50
_RIGHTS = " "  # no group's name: counts changes of who scales what
Wake = Callable[[str, str], None]


class Reader(Protocol):
    """What a planner reads; errors as those of `Connector`."""

    def group(self, name: str) -> ServingGroup:
        """Return a serving group."""

    def pool(self, name: str) -> WorkerPool:
        """Return a worker pool."""

    def pools(self, group: str | None = None) -> PoolList:
        """Return the pools of a group, or of the namespace, by name."""

    def pools_now(self, group: str | None = None) -> PoolList:
        """Return the same, as it is at this moment or later."""

    def target(self, ref: ScaleTargetRef) -> TargetState:
        """Return a scale target; missing ones are no error."""

    def pods(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return what there is of a target's pods, as replicas; no selector selects none."""

    def pods_now(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return the same, as it is at this moment or later."""


class Watched:
    """Reads of one namespace from watches.

    Args:
        connector: of the namespace, for what watches cannot tell.
        mirrors: keep the watches.
        whole: watch all groups, targets and pods of the namespace, for a process that plans for
            many pools; otherwise each one asked for, by name or selector, which needs no
            permission for others.
        wake: called in the watching thread with level and name of a planner for which something
            has changed that it can act on before its next decision.
    """

    def __init__(
        self,
        connector: Connector,
        mirrors: Mirrors,
        *,
        whole: bool,
        wake: Wake = lambda level, name: None,
    ) -> None:
        """See the class."""
        self._connector = connector
        self._namespace = connector.namespace
        self._mirrors = mirrors
        self._whole = whole
        self._wake = wake
        self._acted_on: dict[str, _ActedOn] = {}
        # Pool lists by group (None for all), and at which count of changes they were made.
        self._changes: Counter[str | None] = Counter()
        self._lists: dict[str | None, tuple[tuple[int, int], PoolList]] = {}
        self._taken: tuple[int, Mapping[str, str]] = (-1, {})
        self._read: dict[ScaleTargetRef, tuple[list[str | None], TargetState]] = {}
        self._pods: dict[str, PodIndex] = {}

    def group(self, name: str) -> ServingGroup:
        """Return a serving group."""
        return _known(self._groups(name), name) or self._connector.group(name)

    def pool(self, name: str) -> WorkerPool:
        """Return a worker pool."""
        return _known(self._all_pools(), name) or self._connector.pool(name)

    def groups(self) -> Collection[str] | None:
        """Return the names of all groups; None where watches cannot be believed."""
        mirror = self._groups("")
        return list(mirror.objects) if mirror.believed() else None

    def groups_afresh(self) -> Collection[str]:
        """Ask the API server for the names of all groups; errors as those of `Connector`."""
        return self._connector.groups()

    def pools(self, group: str | None = None) -> PoolList:
        """Return the pools of a group, or of the namespace, by name."""
        mirror = self._all_pools()
        if not mirror.believed():
            return self._connector.pools(group)
        at = (self._changes[group], self._changes[_RIGHTS])
        known_at, known = self._lists.get(group, (None, None))
        if known is None or known_at != at:
            # What changes meanwhile makes the list an old one before it is kept.
            pools = mirror.objects.copy()
            rights_at, taken = self._taken
            if rights_at != at[1]:
                taken = taken_targets(p for p in pools.values() if isinstance(p, WorkerPool))
                self._taken = (at[1], taken)
            known = pool_list(pools, group, taken)
            self._lists[group] = (at, known)
        return known

    def pools_now(self, group: str | None = None) -> PoolList:
        """Return the pools of a group, or of the namespace, as they are at this moment or later."""
        crowded = len(self._all_pools().objects) > _MANY_POOLS
        return self._connector.pools(group, crowded=crowded)

    def target(self, ref: ScaleTargetRef) -> TargetState:
        """Return a scale target as it was when last read, or when the watch saw it change last."""
        carriers = self._connector.targets.carriers(ref)
        mirrors = [self._targets(carrier) for carrier in carriers]
        if not all(mirror.believed() for mirror in mirrors):
            return self._connector.target(ref)
        known = [m.objects.get(c.name) for m, c in zip(mirrors, carriers, strict=True)]
        versions = [meta["resourceVersion"] if meta else None for meta in known]
        at, state = self._read.get(ref, (None, None))
        if state is None or versions not in (at, [state.target.version]):
            state = self._connector.targets.read(ref, known[0])
        if any(known):
            self._read[ref] = (versions, state)
        return state

    def pods_now(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return what there is of a target's pods at this moment or later."""
        whole = self._pods.get("")
        crowded = whole is not None and len(whole) > _CROWD
        return self._connector.pods(selector, per_replica, crowded=crowded)

    def pods(self, selector: str, per_replica: int = 1) -> PodCounts:
        """Return what there is of a target's pods, as replicas."""
        wanted = equalities(selector) if selector else None
        if not wanted:
            return self._connector.pods(selector, per_replica)
        watched = "" if self._whole else selector
        if not self._mirror_of_pods(watched).believed():
            return self._connector.pods(selector, per_replica)
        return count_pods(self._pods[watched].find(wanted), per_replica)

    # The watches.

    def _groups(self, name: str) -> Mirror[ServingGroup | KubeError]:
        only = "" if self._whole else f"metadata.name={name}"
        key = (self._namespace, GROUPS, only)
        call = partial(_custom, self._namespace, GROUP, VERSION, GROUPS, only)
        return self._mirrors.of(key, call, _group_or_error)

    def _all_pools(self) -> Mirror[WorkerPool | UnreadableError]:
        call = partial(_custom, self._namespace, GROUP, VERSION, POOLS, "")
        key = (self._namespace, POOLS, "")
        return self._mirrors.of(key, call, pool_or_error, self._pools_changed)

    def _targets(self, ref: ScaleTargetRef) -> Mirror[Json]:
        group, version, _, plural = self._connector.targets.path(ref)
        only = "" if self._whole else f"metadata.name={ref.name}"
        call = partial(_custom, self._namespace, group, version, plural, only)
        key = (self._namespace, f"{plural}.{group}/{version}", only)
        return self._mirrors.of(key, call, _identity)

    def _mirror_of_pods(self, selector: str) -> Mirror[Pod]:
        index = self._pods.setdefault(selector, PodIndex())

        def changed(pods: Mapping[str, Pod], names: Collection[str]) -> None:
            gone = index.update(pods, names)
            for name in {pod.labels.get(POOL_LABEL) for pod in gone}:
                if name is not None:
                    self._wake("local", name)

        def call(api: ApiClient) -> ListCall:
            pods = CoreV1Api(api).list_namespaced_pod_without_preload_content
            return partial(pods, self._namespace, label_selector=selector or None)

        return self._mirrors.of((self._namespace, "pods", selector), call, pod_of, changed)

    def _pools_changed(
        self, pools: Mapping[str, WorkerPool | UnreadableError], names: Collection[str]
    ) -> None:
        """Wake those whom the change of a book or of a quota lets go on."""
        for name in names:
            before = self._acted_on.pop(name, None)
            pool = pools.get(name)
            self._note_change(before, pool)
            if isinstance(pool, WorkerPool):
                self._acted_on[name] = after = _ActedOn.of(pool)
                if before is not None and before.quota != after.quota:
                    self._wake("local", name)
                if before != after:
                    self._wake("global", after.group)
            elif before is not None:
                self._wake("global", before.group)

    def _note_change(
        self, before: _ActedOn | None, after: WorkerPool | UnreadableError | None
    ) -> None:
        """Count a change of a pool for the lists that it is in, and of who scales what."""
        groups = {None, before and before.group}
        target = None
        if isinstance(after, WorkerPool):
            groups.add(after.spec.group)
            target = identity(after.spec.scale_target_ref)
        elif after is not None:
            groups.add(after.group)
        self._changes.update(groups)
        if target is None or before is None or before.target != target:
            self._changes[_RIGHTS] += 1


class _ActedOn(NamedTuple):
    """Of a pool, what the next step of its own planner or its group's depends on."""

    group: str
    target: tuple[str, str, str]
    quota: tuple[int | None, bool]
    book: Any

    @staticmethod
    def of(pool: WorkerPool) -> _ActedOn:
        leaving = pool.metadata.deletion_timestamp is not None
        book = (pool.status.reserved, pool.status.claim)
        target = identity(pool.spec.scale_target_ref)
        return _ActedOn(pool.spec.group, target, (pool.spec.quota, leaving), book)


def _known(mirror: Mirror[Any], name: str) -> Any:
    """Return what a watch knows of an object; None if it must be asked for."""
    if not mirror.believed():
        return None
    found = mirror.objects.get(name)
    if isinstance(found, KubeError):
        # It is kept, and every raise would add to the frames it was raised through before.
        raise found.with_traceback(None)
    return found


def _custom(
    namespace: str, group: str, version: str, plural: str, only: str, api: ApiClient
) -> ListCall:
    objects = CustomObjectsApi(api).list_namespaced_custom_object_without_preload_content
    return partial(objects, group, version, namespace, plural, field_selector=only or None)


def _identity(item: Json) -> Json:
    """Return what tells versions of a target, and of its spec."""
    meta = item["metadata"]
    return {name: meta.get(name) for name in ("uid", "resourceVersion", "generation")}


def _group_or_error(item: Json) -> ServingGroup | KubeError:
    try:
        return parsed_group(item)
    except KubeError as error:
        return error
