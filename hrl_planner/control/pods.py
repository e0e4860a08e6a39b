"""Pods of a target, counted as replicas by what they hold and do.

A replica is one pod, or a group of pods on several nodes. Whose pods are labelled says which
group and which place in it a pod has: LeaderWorkerSet and Grove, on which Dynamo's multi-node
components stand. A group holds its GPUs while any pod of it lives, and it holds them twice while
a place is taken twice: by a pod on its way out and by the one that follows it.

Of a pod only its labels, its state and the size of its group are kept; what ended holds nothing
and is not kept at all.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hrl_planner.ledger import Pods

State = Literal["ready", "starting", "pending", "draining"]
Labels = Mapping[str, str]

_LWS = "leaderworkerset.sigs.k8s.io"
_GROVE = "grove.io"
SET_NAME = f"{_LWS}/name"
_SIZE = f"{_LWS}/size"


class _Labels(NamedTuple):
    """Labels that name a group of pods, and those that name a place in it."""

    group: tuple[str, ...]
    place: tuple[str, ...]


_KINDS_OF_GROUPS = (
    _Labels((SET_NAME, f"{_LWS}/group-index"), (f"{_LWS}/worker-index",)),
    _Labels(
        (f"{_GROVE}/podcliquescalinggroup", f"{_GROVE}/podcliquescalinggroup-replica-index"),
        (f"{_GROVE}/podclique", f"{_GROVE}/podclique-pod-index"),
    ),
)


@dataclass(frozen=True, slots=True)
class PodCounts:
    """Replicas by state; pods that ended hold nothing and are not counted.

    Pending ones have no machine yet, and may get one at any moment.
    """

    ready: int = 0
    starting: int = 0
    draining: int = 0
    pending: int = 0

    @property
    def held(self) -> int:
        """Replicas whose GPUs are taken, or may be at any moment."""
        return self.ready + self.starting + self.draining + self.pending

    @property
    def ledger(self) -> Pods:
        """The same for the ledger."""
        return Pods(self.ready + self.starting + self.pending, self.draining)

    def __add__(self, other: PodCounts) -> PodCounts:
        """Return both together."""
        return PodCounts(
            self.ready + other.ready,
            self.starting + other.starting,
            self.draining + other.draining,
            self.pending + other.pending,
        )


@dataclass(frozen=True, slots=True)
class Pod:
    """What planners know of a pod: its labels, what it does, and how many its group has."""

    labels: Labels
    state: State
    size: int = 1


def pod_of(item: Mapping[str, Any]) -> Pod | None:
    """Return the pod that the API server's data describe; None once it has ended."""
    metadata, status = item["metadata"], item.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    labels = {
        sys.intern(key): sys.intern(value) for key, value in metadata.get("labels", {}).items()
    }
    size = _size_of(metadata.get("annotations", {}))
    if metadata.get("deletionTimestamp") is not None:
        return Pod(labels, "draining", size)
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    if conditions.get("PodScheduled") == "False":
        return Pod(labels, "pending", size)
    return Pod(labels, "ready" if conditions.get("Ready") == "True" else "starting", size)


def _size_of(annotations: Mapping[str, str]) -> int:
    """Return how many pods a group has; anybody may write anything there, which tells nothing."""
    try:
        return int(annotations.get(_SIZE, "1"))
    except ValueError:
        return 1


def count_pods(pods: Iterable[Pod | None], per_replica: int = 1) -> PodCounts:
    """Count pods as replicas.

    Args:
        pods: of one target.
        per_replica: where no label tells which pods belong together.
    """
    groups: dict[tuple[str, ...], list[tuple[str, Pod]]] = defaultdict(list)
    alone = []
    for pod in pods:
        if pod is None:
            continue
        found = _place(pod.labels)
        if found is None:
            alone.append(pod)
        else:
            groups[found[0]].append((found[1], pod))
    return sum(map(_count_group, groups.values()), _count_alike(alone, per_replica))


def _place(labels: Labels) -> tuple[tuple[str, ...], str] | None:
    """Return the group of a pod and its place in it; None for a pod that stands alone."""
    for kind in _KINDS_OF_GROUPS:
        if all(name in labels for name in kind.group):
            # Pods that do not tell their place all share one, and then each counts.
            return (
                tuple(labels[name] for name in kind.group),
                "/".join(labels.get(name, "") for name in kind.place),
            )
    return None


def _count_group(pods: Sequence[tuple[str, Pod]]) -> PodCounts:
    living = [(place, pod) for place, pod in pods if pod.state != "draining"]
    held = max(Counter(place for place, _ in pods).values())
    live = max(Counter(place for place, _ in living).values(), default=0)
    whole = len(pods) == len(living) >= max(pod.size for _, pod in pods)
    ready = live if whole and all(pod.state == "ready" for _, pod in living) else 0
    if any(pod.state == "pending" for _, pod in living):
        return PodCounts(ready, 0, held - live, live - ready)
    return PodCounts(ready, live - ready, held - live)


def _count_alike(pods: Sequence[Pod], per_replica: int) -> PodCounts:
    states = Counter(pod.state for pod in pods)
    held = -(-len(pods) // per_replica)
    live = -(-(len(pods) - states["draining"]) // per_replica)
    ready = states["ready"] // per_replica
    pending = min(-(-states["pending"] // per_replica), live - ready)
    return PodCounts(ready, live - ready - pending, held - live, pending)
