"""What a local planner saw of its pool, and what of it the pool's status tells.

Pure functions: numbers, conditions and the book, as Kubernetes spells them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hrl_planner.control.conditions import WAITS, condition
from hrl_planner.control.decision import Decision
from hrl_planner.control.pods import PodCounts
from hrl_planner.control.targets import TargetState
from hrl_planner.kube.resources import WorkerPool
from hrl_planner.ledger import Reservation
from hrl_planner.ledger.replicas import MISSING

_ATTAINMENT_STEP = 0.02  # a smaller change of a measured share is not worth a write


class Trouble(NamedTuple):
    """Why a condition does not hold."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look showed; with a trouble, target and pods are not known and nothing may follow."""

    pool: WorkerPool
    target: TargetState = field(default_factory=lambda: TargetState(MISSING))
    pods: PodCounts = field(default_factory=PodCounts)
    settled: bool = False
    fresh: bool = False
    selector: str = ""
    trouble: Trouble | None = None


def selector_of(pool: WorkerPool, target: TargetState) -> str:
    """Return the labels of a target's pods; empty where nobody tells them."""
    labels = pool.spec.pod_selector
    selector = ",".join(f"{key}={value}" for key, value in labels.items()) or target.selector
    # Pods of a target that is gone still hold GPUs until they are.
    return selector or (pool.status.selector if target.target == MISSING else "")


def no_selector(pool: WorkerPool) -> Trouble:
    """Return why pods that may hold GPUs cannot be counted."""
    ref = pool.spec.scale_target_ref
    message = f"{ref.kind} {ref.name} does not tell which pods are its own: name spec.podSelector"
    return Trouble("PodsCounted", "NoSelector", message)


def numbers_of(seen: Seen, wanted: int | None) -> dict[str, Any]:
    """Return the part of a status that tells of target and pods."""
    pool, target, pods = seen.pool, seen.target.target, seen.pods
    numbers: dict[str, Any] = {
        "desired": target.replicas,
        "wanted": wanted,
        "replicas": pods.held,
        "ready": pods.ready,
        "starting": pods.starting,
        "draining": pods.draining,
        "pending": pods.pending,
        "heldGpus": pods.held * (pool.spec.gpus_per_replica or 0),
        "selector": seen.selector,
    }
    if pool.spec.quota is not None and target.replicas <= pool.spec.quota:
        acknowledged = {"quota": pool.spec.quota, "sequence": pool.spec.quota_sequence}
        numbers["acknowledged"] = acknowledged
    return numbers


def attainment_of(pool: WorkerPool, decision: Decision | None) -> float | None:
    """Return the share to report: the one reported already while it is still nearly so."""
    now = math.nan if decision is None else decision.attainment(pool.name)
    told = pool.status.attainment
    if math.isnan(now):
        return None
    return told if told is not None and abs(now - told) < _ATTAINMENT_STEP else round(now, 2)


def conditions_of(seen: Seen, waits: str, troubles: Sequence[Trouble]) -> list[dict[str, Any]]:
    """Return the conditions of a pool, those nobody looked into as they were."""
    before = seen.pool.status.conditions
    found = seen.target.target != MISSING
    made = {
        "TargetFound": condition(
            before, "TargetFound", found, "Found" if found else "NotFound", seen.target.missing
        ),
        "PodsCounted": condition(before, "PodsCounted", True, "Counted"),
        "Decided": condition(before, "Decided", True, "Policy"),
        "Unhindered": condition(before, "Unhindered", not waits, WAITS if waits else "Free", waits),
    }
    for trouble in troubles:
        made[trouble.kind] = condition(before, trouble.kind, False, trouble.reason, trouble.message)
    if seen.trouble is not None and seen.trouble.kind == "TargetFound":
        del made["PodsCounted"]  # nobody looked
    kept = [c.model_dump(by_alias=True) for c in before if c.type not in made]
    # As the status is read back, so that an unchanged one is recognised.
    return [*({**c, "observedGeneration": None} for c in made.values()), *kept]


def book_of(reservation: Reservation) -> dict[str, Any]:
    """Return the fields of the book."""
    claim = reservation.claim
    return {
        "reserved": reservation.replicas,
        "claim": claim
        and {
            "start": claim.start,
            "to": claim.to,
            "version": claim.version,
            "specVersion": claim.spec_version,
        },
    }
