"""Status conditions and events: what a planner tells people."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from hrl_planner.control.requests import DeniedError
from hrl_planner.errors import CheckpointError, HrlPlannerError, PolicyError, SpecError
from hrl_planner.kube.crds import API_VERSION
from hrl_planner.kube.resources import Condition, Metadata

WAITS = "Waits"  # the reason of what passes by itself


def condition(
    before: Sequence[Condition], kind: str, holds: bool, reason: str, message: str = ""
) -> dict[str, Any]:
    """Return a condition; its time of change stays where its status does."""
    status = "True" if holds else "False"
    old = next((c for c in before if c.type == kind), None)
    same = old is not None and old.status == status and old.last_transition_time is not None
    since = old.last_transition_time if old is not None and same else now()
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:1024],
        "lastTransitionTime": since,
    }


def news(before: Sequence[Condition], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the conditions that people should hear of: troubles that came, changed or went.

    What stands as before is no news, however often it is written.
    """
    old = {c.type: _state(c.type, c.status, c.reason, c.message) for c in before}
    told = []
    for item in after:
        state = _state(item["type"], item["status"], item["reason"], item["message"])
        was = old.get(item["type"])
        if was != state and (_is_trouble(state) or (was is not None and _is_trouble(was))):
            told.append(dict(item))
    return told


def _state(kind: str, status: str, reason: str, message: str) -> tuple[str, str, str]:
    """Return what makes news; numbers in messages do not, names of pools do."""
    return status, reason, message if kind == "AllPoolsPlanned" else ""


def _is_trouble(state: tuple[str, str, str]) -> bool:
    return state[0] == "False" and state[1] != WAITS


def reason_of(error: HrlPlannerError, otherwise: str) -> str:
    """Return what is at fault, as the reason of a condition."""
    return next((reason for kind, reason in _FAULTS if isinstance(error, kind)), otherwise)


_FAULTS = (
    (CheckpointError, "BadCheckpoint"),
    (PolicyError, "BadPolicy"),
    (SpecError, "BadSpec"),
    (DeniedError, "Denied"),
)


def event(
    kind: str, metadata: Metadata, reason: str, message: str, component: str, *, warning: bool
) -> dict[str, Any]:
    """Return an event about an object."""
    time = now()
    return {
        "metadata": {"generateName": f"{metadata.name}.", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
        },
        "reason": reason,
        "message": message[:1024],
        "type": "Warning" if warning else "Normal",
        "source": {"component": component},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
