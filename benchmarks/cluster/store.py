"""Every change of a namespace's objects, in order, straight from etcd.

The API server may be dead, slow or lying; what is in the store is what there is. A watch of etcd
tells each revision exactly once, so nothing can happen between two looks, and a store that is
paused cannot change. Custom resources are stored as JSON; of pods and deployments, stored as
protobuf, the few fields that matter are read.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cluster.stored import PodSeen, deployment_replicas, pod_of

_PREFIX = b"/registry/"
_KINDS = {
    "pods": "pods",
    "deployments": "deployments",
    "hrl-planner.io/workerpools": "pools",
    "hrl-planner.io/servinggroups": "groups",
}
_RECONNECT_S = 0.1
# A stream that says nothing for so long is opened anew; a paused store is silent, too.
_SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Write:
    """A change of one object, as a line of history."""

    at_s: float
    revision: int
    what: str


@dataclass
class State:
    """The objects of a namespace at a revision.

    Attributes:
        revision: of the store.
        pods: by name.
        targets: replicas asked of each deployment.
        pools: WorkerPools as stored, by name.
        groups: ServingGroups as stored, by name.
    """

    revision: int = 0
    pods: dict[str, PodSeen] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)


OnRevision = Callable[[State, list[Write]], None]


class Store:
    """Follows a namespace in etcd from a thread of its own; a context manager.

    Args:
        url: of etcd.
        namespace: whose objects.
        on_revision: called in that thread after each revision that changed something.

    Attributes:
        state: as of the last revision; hold `lock` to read it.
    """

    def __init__(self, url: str, namespace: str, on_revision: OnRevision) -> None:
        self._url = url
        self._namespace = namespace
        self._on_revision = on_revision
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="store", daemon=True)
        self.state = State()
        self.lock = threading.RLock()
        self.error: BaseException | None = None

    def __enter__(self) -> Store:
        self._list()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def ready(self) -> dict[str, int]:
        """Return the workers that serve, by pool."""
        with self.lock:
            serving = [p.pool for p in self.state.pods.values() if p.ready and not p.leaving]
        return {pool: serving.count(pool) for pool in set(serving)}

    def pool_of(self, address: str) -> str | None:
        """Return the pool of a pod's address."""
        with self.lock:
            pods = self.state.pods.values()
            return next((pod.pool for pod in pods if pod.address == address), None)

    def _list(self) -> None:
        body = {"key": _b64(_PREFIX), "range_end": _b64(_after(_PREFIX))}
        with self._post("/v3/kv/range", body) as answer:
            found = json.loads(answer.read())
        with self.lock:
            for entry in found.get("kvs", ()):
                self._take(entry, deleted=False)
            self.state.revision = int(found["header"]["revision"])
            self._on_revision(self.state, [])

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._watch()
            except (OSError, ValueError):
                self._stop.wait(_RECONNECT_S)
            except BaseException as error:
                self.error = error
                raise

    def _watch(self) -> None:
        create = {
            "key": _b64(_PREFIX),
            "range_end": _b64(_after(_PREFIX)),
            "start_revision": str(self.state.revision + 1),
        }
        with self._post("/v3/watch", {"create_request": create}) as stream:
            for line in stream:
                if self._stop.is_set():
                    return
                result = json.loads(line)["result"]
                if result.get("canceled"):
                    raise ValueError(f"the watch of etcd ended: {result}")
                self._take_events(result.get("events", ()))

    def _take_events(self, events: Any) -> None:
        """Apply events, one revision at a time."""
        by_revision: dict[int, list[Any]] = {}
        for event in events:
            by_revision.setdefault(int(event["kv"]["mod_revision"]), []).append(event)
        for revision, changes in sorted(by_revision.items()):
            with self.lock:
                self.state.revision = revision
                words = [self._take(e["kv"], e.get("type") == "DELETE") for e in changes]
                writes = [Write(time.time(), revision, word) for word in words if word]
                if writes:
                    self._on_revision(self.state, writes)

    def _take(self, entry: Mapping[str, str], deleted: bool) -> str | None:
        """Apply a change; returns it in words if it concerns us."""
        path = base64.b64decode(entry["key"]).decode().removeprefix("/registry/")
        kind, _, name = path.rpartition(f"/{self._namespace}/")
        if kind not in _KINDS:
            return None
        if deleted:
            {
                "pods": self.state.pods,
                "deployments": self.state.targets,
                "pools": self.state.pools,
                "groups": self.state.groups,
            }[_KINDS[kind]].pop(name, None)
            return f"{_KINDS[kind]} {name}: deleted"
        value = base64.b64decode(entry["value"])
        if kind == "pods":
            self.state.pods[name] = pod = pod_of(value)
            return f"pod {name}: {pod}"
        if kind == "deployments":
            self.state.targets[name] = replicas = deployment_replicas(value)
            return f"deployment {name}: {replicas} replicas"
        item = json.loads(value)
        (self.state.pools if _KINDS[kind] == "pools" else self.state.groups)[name] = item
        return f"{_KINDS[kind]} {name}: {_in_short(item)}"

    def _post(self, path: str, body: object) -> Any:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode())
        return urllib.request.urlopen(request, timeout=_SILENCE_S)


def _in_short(item: Mapping[str, Any]) -> str:
    spec, status = item.get("spec", {}), item.get("status", {})
    fields = {key: spec.get(key) for key in ("quota", "budget") if key in spec}
    names = ("reserved", "claim", "claims", "desired", "wanted", "planned", "waits")
    fields |= {key: status[key] for key in names if key in status}
    if "deletionTimestamp" in item["metadata"]:
        fields["leaving"] = True
    return json.dumps(fields)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _after(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def pods_by_pool(state: State) -> Iterator[tuple[str, int]]:
    """Yield pools and how many of their pods hold GPUs."""
    holding = [pod.pool for pod in state.pods.values() if pod.holds]
    for pool in set(holding):
        yield pool, holding.count(pool)


def wait_until(holds: Callable[[], bool], patience_s: float, poll_s: float = 0.05) -> bool:
    """Poll until something holds; say whether it did in time."""
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        with suppress(KeyError):
            if holds():
                return True
        time.sleep(poll_s)
    return False
