"""Pods of a target, counted by what they hold and do.

Of a pod only its labels and its state are kept; what ended holds nothing and is not kept at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hrl_planner.ledger import Pods

State = Literal["ready", "starting", "draining"]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PodCounts:
    """Replicas by state; pods that ended hold nothing and are not counted."""

    ready: int = 0
    starting: int = 0
    draining: int = 0

    @property
    def ledger(self) -> Pods:
        """The same for the ledger."""
        return Pods(self.ready + self.starting, self.draining)


@dataclass(frozen=True, slots=True)
class Pod:
    """What planners know of a pod."""

    labels: Labels
    state: State


def pod_of(item: Mapping[str, Any]) -> Pod | None:
    """Return the pod that the API server's data describe; None once it has ended."""
    metadata, status = item["metadata"], item.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    labels = {
        sys.intern(key): sys.intern(value) for key, value in metadata.get("labels", {}).items()
    }
    if metadata.get("deletionTimestamp") is not None:
        return Pod(labels, "draining")
    conditions = status.get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return Pod(labels, "ready" if ready else "starting")


def count_pods(pods: Iterable[Pod | None]) -> PodCounts:
    """Count pods by state."""
    counts: dict[State, int] = {"ready": 0, "starting": 0, "draining": 0}
    for pod in pods:
        if pod is not None:
            counts[pod.state] += 1
    return PodCounts(**counts)
