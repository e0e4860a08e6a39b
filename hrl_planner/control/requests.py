"""Requests to the API server as planners word them: what failed, why, and what is no failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client

from hrl_planner.errors import KubeError

REQUEST_TIMEOUT_S = 10.0


class NotFoundError(KubeError):
    """What was asked for does not exist."""


def asked(what: str, ask: Callable[[], Any]) -> Any:
    """Return an answer.

    Raises:
        KubeError: if it was refused, with what was asked.
    """
    try:
        return ask()
    except client.ApiException as error:
        raise kube_error(what, error) from error


def accepted(what: str, write: Callable[[], Any]) -> Any | None:
    """Return what was written, or None: outdated (409) and object gone (404) are no errors."""
    try:
        return write()
    except client.ApiException as error:
        if error.status in (404, 409):
            return None
        raise kube_error(what, error) from error


def kube_error(what: str, error: client.ApiException) -> KubeError:
    """Return the server's refusal in its own words."""
    try:
        message = json.loads(error.body or "{}").get("message", error.reason)
    except ValueError:
        message = error.reason
    kind = NotFoundError if error.status == 404 else KubeError
    return kind(f"cannot {what}: {error.status} {message}")
