"""Requests to the API server as planners word them: what failed, why, and what is no failure.

The kinds of refusal are told apart by what helps against them: an object that is not there, a
resource nobody defined, a permission nobody gave. The server's own message names verb, resource
and account.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client

from hrl_planner.errors import KubeError

REQUEST_TIMEOUT_S = 10.0


class NotFoundError(KubeError):
    """An object does not exist."""


class NotServedError(KubeError):
    """The API server does not know the resource at all, or not in this version."""


class MissingDefinitionError(KubeError):
    """The definitions of the planners' own resources are not installed, or not in this version."""


class DeniedError(KubeError):
    """The account may not do this."""


class InvalidError(KubeError):
    """What was to be written makes no sense to the server, or a patch does not fit."""


class ConflictError(KubeError):
    """A write was based on something that has changed, or what it is about is gone."""


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
    """Return what was written, or None: outdated (409) and object gone (404) are no errors.

    Raises:
        KubeError: if it was refused for another reason.
    """
    try:
        return asked(what, write)
    except (NotFoundError, ConflictError):
        return None


def kube_error(what: str, error: client.ApiException) -> KubeError:
    """Return the server's refusal in its own words."""
    status = _status(error)
    message = status.get("message", error.reason)
    kind = _KINDS.get(error.status or 0, KubeError)
    if kind is NotFoundError and not status.get("details", {}).get("name"):
        # No handler: the server answers with a page instead of naming an object.
        return NotServedError(f"cannot {what}: the API server does not serve it")
    return kind(f"cannot {what}: {error.status} {message}")


_KINDS: dict[int, type[KubeError]] = {
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
}


def _status(error: client.ApiException) -> dict[str, Any]:
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}
