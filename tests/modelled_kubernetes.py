"""A Kubernetes API server in memory, for the kubernetes client: what planners ask, as it answers.

Objects have versions that never return, uids and generations. A write that names a version is
refused at any other; one that changes nothing changes no version. Statuses and scales are
subresources, patches merge, and a deleted object with finalizers stays until they are gone. Not
here: schemas and their defaults, permissions, watches. Objects are never changed in place, so a
copy of the dictionaries that hold them is a state of the past, and can be read like the present.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from kubernetes import client
from kubernetes.client import rest
from urllib3 import HTTPResponse

from hrl_planner.kube.crds import GROUPS, POOLS

Json = dict[str, Any]
Store = dict[str, dict[str, Json]]  # objects by plural and name

DEPLOYMENTS, PODS, EVENTS = "deployments", "pods", "events"
STORED = (GROUPS, POOLS, DEPLOYMENTS, PODS)
_SCALABLE = [
    {"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": ["get"]}
    for name, kind in ((DEPLOYMENTS, "Deployment"), (f"{DEPLOYMENTS}/scale", "Scale"))
]
_NAMES_OF_STATUSES = {404: "NotFound", 409: "Conflict", 422: "Invalid"}


class Request(NamedTuple):
    """What a client asks: nothing of a plural is discovery, no name is a list."""

    method: str
    plural: str
    name: str = ""
    part: str = ""
    labels: str = ""
    body: Json | None = None

    @property
    def writes(self) -> bool:
        return self.method != "GET" and self.plural != EVENTS

    @property
    def version(self) -> str | None:
        """The version without which it is refused."""
        found = ((self.body or {}).get("metadata") or {}).get("resourceVersion")
        return None if found is None else str(found)


class Answer(NamedTuple):
    """A status and an object."""

    status: int
    item: Json


class ModelClient(client.ApiClient):
    """A client whose requests go to a function."""

    def __init__(self, carry: Callable[[Request], Answer]) -> None:
        super().__init__(client.Configuration())
        self._carry = carry

    def call_api(
        self, method: str, url: str, header_params: Any = None, body: Any = None, *_: Any, **__: Any
    ) -> rest.RESTResponse:
        status, item = self._carry(_request_of(method, url, body))
        headers = {"Content-Type": "application/json"}
        raw = HTTPResponse(json.dumps(item).encode(), headers=headers, status=status)
        return rest.RESTResponse(raw)


def _request_of(method: str, url: str, body: Json | None) -> Request:
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    if "namespaces" not in path:
        return Request(method, "")
    plural, name, part = (*path[path.index("namespaces") + 2 :], "", "")[:3]
    labels = parse_qs(parts.query).get("labelSelector", [""])[0]
    return Request(method, plural, name, part, labels, body)


def refusal(status: int, request: Request) -> Answer:
    """Return what says no."""
    return Answer(
        status,
        {
            "kind": "Status",
            "reason": _NAMES_OF_STATUSES.get(status, "Refused"),
            "message": f"{request.plural} {request.name}: refused",
            "details": {"name": request.name},
        },
    )


class ModelApi:
    """The objects and what may be done to them.

    Attributes:
        objects: as they are.
    """

    def __init__(self) -> None:
        self.objects: Store = {plural: {} for plural in STORED}
        self._version = 100

    def next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def create(self, plural: str, item: Json) -> Json:
        """Add an object as it is given, under a uid of its own."""
        version = self.next_version()
        made = {"uid": version, "resourceVersion": version, "generation": 1}
        metadata = item["metadata"] | made | {"creationTimestamp": "2026-01-01T00:00:00Z"}
        created = item | {"metadata": metadata}
        self.objects[plural][metadata["name"]] = created
        return created

    def remove(self, plural: str, name: str) -> None:
        """Take an object away, whatever holds it."""
        del self.objects[plural][name]

    def patch(self, plural: str, name: str, body: Json, part: str = "") -> Answer:
        """Write without being asked by a client."""
        return self.answer(Request("PATCH", plural, name, part, "", body))

    def answer(self, request: Request) -> Answer:
        """Carry a request out."""
        if request.plural == EVENTS:
            return Answer(201, {"metadata": {}, "involvedObject": {}})
        if not request.writes:
            return read(self.objects, request)
        found = self.objects[request.plural].get(request.name)
        if found is None:
            return refusal(404, request)
        if request.version not in (None, found["metadata"]["resourceVersion"]):
            return refusal(409, request)
        if request.method == "DELETE":
            return Answer(200, self._delete(request.plural, found))
        wanted = _written(found, request)
        if wanted is None:
            return refusal(422, request)
        written = self._store(request.plural, found, wanted)
        return Answer(200, _scale(written) if request.part == "scale" else written)

    def _delete(self, plural: str, found: Json) -> Json:
        metadata = found["metadata"]
        if not metadata.get("finalizers"):
            self.remove(plural, metadata["name"])
            return found
        since = metadata.get("deletionTimestamp") or "2026-01-01T00:00:00Z"
        leaving = found | {"metadata": metadata | {"deletionTimestamp": since}}
        return self._store(plural, found, leaving)

    def _store(self, plural: str, found: Json, wanted: Json) -> Json:
        if wanted == found:
            return found
        metadata = wanted["metadata"] | {"resourceVersion": self.next_version()}
        left = [wanted.get("spec"), metadata.get("deletionTimestamp")]
        if left != [found.get("spec"), found["metadata"].get("deletionTimestamp")]:
            metadata["generation"] += 1
        written = wanted | {"metadata": metadata}
        self.objects[plural][metadata["name"]] = written
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.remove(plural, metadata["name"])
        return written


def read(objects: Store, request: Request) -> Answer:
    """Answer a read of the present or of a state of the past."""
    if not request.plural:
        listed = {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": _SCALABLE}
        return Answer(200, listed)
    kept = objects[request.plural]
    if request.name:
        item = kept.get(request.name)
        if item is None:
            return refusal(404, request)
        return Answer(200, _scale(item) if request.part == "scale" else item)
    wanted = {tuple(label.split("=")) for label in request.labels.split(",") if label}
    items = [i for i in kept.values() if wanted <= i["metadata"].get("labels", {}).items()]
    return Answer(200, {"metadata": {"resourceVersion": "0"}, "items": items})


def merged(old: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value (RFC 7386)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _written(found: Json, request: Request) -> Json | None:
    """Return the object a write makes of another; None if it makes no sense."""
    body = request.body or {}
    if request.part == "scale":
        return found | {"spec": found["spec"] | {"replicas": body["spec"]["replicas"]}}
    if request.part == "status":
        return found | {"status": merged(found.get("status", {}), body["status"])}
    wanted: Json = merged(found, {k: v for k, v in body.items() if k != "status"})
    now, then = wanted["metadata"], found["metadata"]
    added = set(now.get("finalizers", ())) - set(then.get("finalizers", ()))
    return None if added and then.get("deletionTimestamp") else wanted


def _scale(item: Json) -> Json:
    selector = f"app={item['metadata']['name']}"
    replicas = item.get("status", {}).get("replicas", 0)
    return {
        "metadata": item["metadata"],
        "spec": {"replicas": item["spec"]["replicas"]},
        "status": {"replicas": replicas, "selector": selector},
    }
