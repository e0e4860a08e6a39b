"""A client of the API server that tells every request it makes: verb, resource, answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class CountedApiClient(client.ApiClient):
    """See the module.

    Args:
        configuration: the way to the server.
        told: called with verb and resource as roles of Kubernetes name them, and the status of the
            answer, or `error` where there was none.
    """

    def __init__(
        self, configuration: client.Configuration, told: Callable[[str, str, str], None]
    ) -> None:
        """See the class."""
        super().__init__(configuration)
        self._told = told

    def call_api(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        """Make a request."""
        verb, resource = verb_and_resource(method, url)
        try:
            response = super().call_api(method, url, *args, **kwargs)
        except Exception:
            self._told(verb, resource, "error")
            raise
        self._told(verb, resource, str(response.status))
        return response


def verb_and_resource(method: str, url: str) -> tuple[str, str]:
    """Return what a role must allow for a request: `patch`, `workerpools/status`."""
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    # /api/VERSION/... or /apis/GROUP/VERSION/..., then perhaps namespaces/NAME
    path = path[path.index("apis") + 3 :] if "apis" in path else path[path.index("api") + 2 :]
    if len(path) > 2 and path[0] == "namespaces":
        path = path[2:]
    if not path:
        return "get", "discovery"
    resource = "/".join([path[0], *path[2:3]])
    if method != "GET":
        return _VERBS.get(method, method.lower()), resource
    if parse_qs(parts.query).get("watch", [""])[0].lower() == "true":
        return "watch", resource
    return ("get" if len(path) > 1 else "list"), resource
