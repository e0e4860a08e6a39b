"""Status conditions and events: what a planner tells people."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from hrl_planner.kube.crds import API_VERSION
from hrl_planner.kube.resources import Condition, Metadata


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
