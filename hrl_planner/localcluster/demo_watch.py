"""What happens in the demonstration's cluster, seen from outside: pods, quotas, attainment.

Ten times a second the pods of all pools are counted, whatever planners believe of them, and the
GPUs they hold are compared with the budget. A row is kept of every look.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from kubernetes import client
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from hrl_planner.kube.crds import GROUP, POOLS, VERSION
from hrl_planner.router.discovery.kubernetes import POOL_LABEL
from hrl_planner.spec import ClusterSpec

LOOK_S = 0.1
OBJECTS_S = 0.2  # between two looks at quotas and targets, which change seldom
_COUNTS_S = 1.0

NO_QUOTA = -1  # none yet
FIELDS = ("quota", "target", "ready", "starting", "draining")


@dataclass(frozen=True)
class Routed:
    """What the router counted.

    Attributes:
        attainment: share of requests within their targets, by class.
        placed: requests by class and pool; one with two workers counts in two pools.
    """

    attainment: Mapping[str, float]
    placed: Mapping[tuple[str, str], int]


@dataclass
class Watch:
    """What the watcher saw so far.

    Attributes:
        spec: the cluster.
        phase: what is going on, for people.
        most: most GPUs that pods held at once, by type.
        over: looks at which pods held more than the budget.
        routed: what the router counted.
        times_s: monotonic time of each look.
        rows: per look, int (P, len(FIELDS)).
    """

    spec: ClusterSpec
    phase: str = "starting"
    most: dict[str, int] = field(default_factory=dict)
    over: int = 0
    routed: Routed = field(default_factory=lambda: Routed({}, {}))
    times_s: list[float] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How often it looked."""
        return len(self.rows)

    def now(self, pool: int) -> dict[str, int]:
        """Return the fields of a pool at the last look."""
        last = self.rows[-1][pool] if self.rows else np.zeros(len(FIELDS), np.int64)
        return dict(zip(FIELDS, last.tolist(), strict=True))

    def timeline(self, start_s: float) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
        """Return seconds since a monotonic time, shape (S,), and each field, shape (S, P)."""
        rows = np.stack(self.rows)
        fields = {name: rows[:, :, index] for index, name in enumerate(FIELDS)}
        return np.array(self.times_s) - start_s, fields


@contextlib.contextmanager
def watching(
    admin: client.ApiClient, spec: ClusterSpec, namespace: str, router: str
) -> Iterator[Watch]:
    """Look at pools and pods until the block ends.

    Args:
        admin: may read everything.
        spec: the cluster.
        namespace: of its objects.
        router: `ip:port` of the router's metrics.
    """
    watch = Watch(spec)
    stop = threading.Event()
    watcher = _Watcher(admin, namespace, router, watch)
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
    if watcher.error is not None:
        raise watcher.error


class _Watcher:
    def __init__(self, admin: client.ApiClient, namespace: str, router: str, watch: Watch) -> None:
        self._core: Any = client.CoreV1Api(admin)
        self._apps: Any = client.AppsV1Api(admin)
        self._objects: Any = client.CustomObjectsApi(admin)
        self._namespace, self._router, self._watch = namespace, router, watch
        self._index = {pool.name: index for index, pool in enumerate(watch.spec.pools)}
        self._row = np.zeros((len(self._index), len(FIELDS)), np.int64)
        self.error: Exception | None = None

    def run(self, stop: threading.Event) -> None:
        objects_s = counts_s = -math.inf
        try:
            while not stop.wait(LOOK_S):
                now_s = time.monotonic()
                if now_s - objects_s >= OBJECTS_S:
                    self._look_at_objects()
                    objects_s = now_s
                if now_s - counts_s >= _COUNTS_S:
                    self._look_at_router()
                    counts_s = now_s
                self._look_at_pods()
            self._look_at_router()
        except Exception as error:  # told by the thread that waits for this one
            self.error = error

    def _look_at_objects(self) -> None:
        pools = _items(
            self._objects.list_namespaced_custom_object(
                GROUP, VERSION, self._namespace, POOLS, _preload_content=False
            )
        )
        targets = _items(
            self._apps.list_namespaced_deployment(self._namespace, _preload_content=False)
        )
        for item in pools:
            self._note("quota", item["metadata"]["name"], item["spec"].get("quota", NO_QUOTA))
        for item in targets:
            self._note("target", item["metadata"]["name"], item["spec"]["replicas"])

    def _note(self, field: str, name: str, value: int) -> None:
        if name in self._index:
            self._row[self._index[name], FIELDS.index(field)] = value

    def _look_at_pods(self) -> None:
        watch, spec = self._watch, self._watch.spec
        pods = _items(
            self._core.list_namespaced_pod(
                self._namespace, label_selector=POOL_LABEL, _preload_content=False
            )
        )
        row = self._row.copy()
        row[:, FIELDS.index("ready") :] = 0
        for pod in pods:
            if (state := _state(pod)) is not None:
                pool = pod["metadata"]["labels"][POOL_LABEL]
                row[self._index[pool], FIELDS.index(state)] += 1
        held = dict.fromkeys(spec.budget.gpus, 0)
        replicas = row[:, FIELDS.index("ready") :].sum(axis=1)
        for pool, count in zip(spec.pools, replicas.tolist(), strict=True):
            held[pool.gpu_type] += count * pool.gpus_per_replica
        watch.over += any(held[kind] > most for kind, most in spec.budget.gpus.items())
        watch.most = {kind: max(n, watch.most.get(kind, 0)) for kind, n in held.items()}
        watch.times_s.append(time.monotonic())
        watch.rows.append(row)

    def _look_at_router(self) -> None:
        try:
            with urlopen(f"http://{self._router}/metrics", timeout=2.0) as answer:
                page = answer.read().decode()
        except (URLError, OSError):
            return  # not there yet, or busy: the last numbers stay
        self._watch.routed = routed_of(page)


def routed_of(page: str) -> Routed:
    """Return what a router's page of metrics says."""
    attained: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    placed: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "hrl_router_decisions_total":
                placed[labels["class"], labels["pool"]] += int(sample.value)
            elif sample.name == "hrl_router_slo_total" and labels["outcome"] != "cancelled":
                ended[labels["class"]] += int(sample.value)
                if labels["outcome"] == "attained":
                    attained[labels["class"]] += int(sample.value)
    shares = {name: attained[name] / count for name, count in ended.items() if count}
    return Routed(shares, placed)


def _state(pod: dict[str, Any]) -> str | None:
    status = pod.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    if "deletionTimestamp" in pod["metadata"]:
        return "draining"
    conditions = status.get("conditions") or ()
    serves = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return "ready" if serves else "starting"


def _items(response: Any) -> list[dict[str, Any]]:
    """Return the objects of a list as plain data; the client's own classes take far longer."""
    items: list[dict[str, Any]] = json.loads(response.data)["items"]
    return items
