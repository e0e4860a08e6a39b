"""Pods of a target, counted as replicas by what they hold and do.

A replica is one pod, or a group of pods on several nodes. Whose pods are labelled says which
group and which place in it a pod has: LeaderWorkerSet and Grove, on which Dynamo's multi-node
components stand. A group holds its GPUs while any pod of it lives, and it holds them twice while
a place is taken twice: by a pod on its way out and by the one that follows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hrl_planner.ledger import Pods

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
    """Replicas by state; pods that ended hold nothing and are not counted."""

    ready: int = 0
    starting: int = 0
    draining: int = 0

    @property
    def held(self) -> int:
        """Replicas whose GPUs are taken."""
        return self.ready + self.starting + self.draining

    @property
    def ledger(self) -> Pods:
        """The same for the ledger."""
        return Pods(self.ready + self.starting, self.draining)

    def __add__(self, other: PodCounts) -> PodCounts:
        """Return both together."""
        return PodCounts(
            self.ready + other.ready,
            self.starting + other.starting,
            self.draining + other.draining,
        )


def count_pods(pods: Iterable[Any], pods_per_replica: int = 1) -> PodCounts:
    """Count V1Pods.

    Args:
        pods: of one target.
        pods_per_replica: where no label tells which pods belong together.
    """
    groups: dict[tuple[str, ...], list[tuple[str, Any]]] = defaultdict(list)
    alone = []
    for pod in pods:
        if pod.status.phase in ("Succeeded", "Failed"):
            continue
        found = _place(pod.metadata.labels or {})
        if found is None:
            alone.append(pod)
        else:
            groups[found[0]].append((found[1], pod))
    return sum(map(_count_group, groups.values()), _count_alike(alone, pods_per_replica))


def _place(labels: Mapping[str, str]) -> tuple[tuple[str, ...], str] | None:
    """Return the group of a pod and its place in it; None for a pod that stands alone."""
    for kind in _KINDS_OF_GROUPS:
        if all(name in labels for name in kind.group):
            # Pods that do not tell their place all share one, and then each counts.
            return (
                tuple(labels[name] for name in kind.group),
                "/".join(labels.get(name, "") for name in kind.place),
            )
    return None


def _count_group(pods: Sequence[tuple[str, Any]]) -> PodCounts:
    living = [(place, pod) for place, pod in pods if not _drains(pod)]
    held = max(Counter(place for place, _ in pods).values())
    live = max(Counter(place for place, _ in living).values(), default=0)
    size = max(int((pod.metadata.annotations or {}).get(_SIZE, "1")) for _, pod in pods)
    complete = len(pods) == len(living) >= size and all(_ready(pod) for _, pod in living)
    ready = live if complete else 0
    return PodCounts(ready, live - ready, held - live)


def _count_alike(pods: Sequence[Any], per_replica: int) -> PodCounts:
    living = [pod for pod in pods if not _drains(pod)]
    held, live = -(-len(pods) // per_replica), -(-len(living) // per_replica)
    ready = sum(map(_ready, living)) // per_replica
    return PodCounts(ready, live - ready, held - live)


def _drains(pod: Any) -> bool:
    return pod.metadata.deletion_timestamp is not None


def _ready(pod: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
