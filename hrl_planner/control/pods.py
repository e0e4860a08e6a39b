"""Pods of a target, counted by what they hold and do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hrl_planner.ledger import Pods


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


def count_pods(pods: Iterable[Any]) -> PodCounts:
    """Count V1Pods."""
    ready = starting = draining = 0
    for pod in pods:
        if pod.status.phase in ("Succeeded", "Failed"):
            continue
        if pod.metadata.deletion_timestamp is not None:
            draining += 1
        elif any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ()):
            ready += 1
        else:
            starting += 1
    return PodCounts(ready, starting, draining)
