"""Workers are pods with a label; the planner's weights come from its ServingGroup.

A pod is a worker once it is ready, and a draining one from the moment it is to be deleted until it
is gone. What a pod cannot say by its status it says by labels and annotations:

    label       hrl-planner.io/pool            pool of the spec; without it a pod is no worker
    label       hrl-planner.io/engine          vllm (default) or sglang
    annotation  hrl-planner.io/port            of the OpenAI server; else the container port named
                                               http, else the first one
    annotation  hrl-planner.io/kv-events-port  ZMQ port of KV events
    annotation  hrl-planner.io/kv-events       name on Dynamo's event plane instead, dyn://...
    annotation  hrl-planner.io/kv-replay-port  ZMQ port of their replay
    annotation  hrl-planner.io/bootstrap-port  of an SGLang prefill worker

Of a worker that spans several pods (LeaderWorkerSet) only the leader serves. A server that does
not know the kind ServingGroup has no planner: then there are no weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from kubernetes.aio.client import ApiClient, Configuration, CoreV1Api, CustomObjectsApi

from hrl_planner.errors import RouterError
from hrl_planner.kube.access import find_configuration, own_namespace
from hrl_planner.kube.reflector import Json, Reflector
from hrl_planner.router.discovery.base import Engine, Snapshot, Worker

_log = logging.getLogger(__name__)

API_GROUP = "hrl-planner.io"
API_VERSION = "v1alpha1"
POOL_LABEL = f"{API_GROUP}/pool"
ENGINE_LABEL = f"{API_GROUP}/engine"
PORT = f"{API_GROUP}/port"
KV_EVENTS = f"{API_GROUP}/kv-events"
KV_EVENTS_PORT = f"{API_GROUP}/kv-events-port"
KV_REPLAY_PORT = f"{API_GROUP}/kv-replay-port"
BOOTSTRAP_PORT = f"{API_GROUP}/bootstrap-port"
_LWS_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
_ENGINES: Mapping[str, Engine] = {"vllm": "vllm", "sglang": "sglang"}
# A rollout changes many pods at a time.
_GATHER_S = 0.05


class KubernetesDiscovery:
    """Pods of a namespace as a source of snapshots.

    Args:
        namespace: of the pods and the group; None for the router's own.
        selector: label selector of worker pods.
        group: ServingGroup whose flows are followed; None for none.
        configuration: finds the way to the API server.
    """

    def __init__(
        self,
        namespace: str | None,
        selector: str = POOL_LABEL,
        group: str | None = None,
        *,
        configuration: Callable[[], Awaitable[Configuration]] = find_configuration,
    ) -> None:
        self._namespace = namespace or own_namespace()
        self._selector = selector
        self._group = group
        self._configuration = configuration
        self._pods: Mapping[str, tuple[Worker | None]] | None = None
        self._flows: Mapping[str, Mapping[str, float]] | None = None if group else {}
        self._changed = asyncio.Event()
        self._refused: set[str] = set()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield what the API server says, then again whenever it says something else.

        Raises:
            KubeError: where there is no way to an API server.
        """
        configuration = await self._configuration()
        async with ApiClient(configuration) as api:
            followers = [asyncio.create_task(self._follow_pods(api))]
            if self._group is not None:
                followers.append(asyncio.create_task(self._follow_group(api, self._group)))
            try:
                known: Snapshot | None = None
                while True:
                    found = await self._next(followers)
                    if found is not None and found != known:
                        known = found
                        yield known
            finally:
                for follower in followers:
                    follower.cancel()
                await asyncio.gather(*followers, return_exceptions=True)

    async def _next(self, followers: list[asyncio.Task[None]]) -> Snapshot | None:
        changed = asyncio.create_task(self._changed.wait())
        done, _ = await asyncio.wait({changed, *followers}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        for follower in done & set(followers):
            follower.result()
        await asyncio.sleep(_GATHER_S)
        self._changed.clear()
        if self._pods is None or self._flows is None:
            return None
        workers = (worker for _, (worker,) in sorted(self._pods.items()))
        return Snapshot(tuple(each for each in workers if each is not None), self._flows)

    async def _follow_pods(self, api: ApiClient) -> None:
        call = partial(
            CoreV1Api(api).list_namespaced_pod_without_preload_content,
            self._namespace,
            label_selector=self._selector,
        )
        reflector = Reflector("pods", call, self._worker)
        async for _ in reflector.changes():
            self._pods = reflector.objects
            self._refused &= self._pods.keys()
            self._changed.set()

    async def _follow_group(self, api: ApiClient, group: str) -> None:
        call = partial(
            CustomObjectsApi(api).list_namespaced_custom_object_without_preload_content,
            API_GROUP,
            API_VERSION,
            self._namespace,
            "servinggroups",
            field_selector=f"metadata.name={group}",
        )
        reflector = Reflector(
            f"ServingGroup {group}", call, self._flows_of_group, may_be_absent=True
        )
        async for _ in reflector.changes():
            self._flows = reflector.objects.get(group, {})
            self._changed.set()

    def _flows_of_group(self, group: Json) -> Mapping[str, Mapping[str, float]]:
        try:
            return flows_of(group)
        except RouterError as error:
            _log.error("%s; the weights of before stay", error)
            return self._flows or {}

    def _worker(self, pod: Json) -> tuple[Worker | None]:
        try:
            return (worker_of(pod),)
        except RouterError as error:
            name = pod["metadata"]["name"]
            if name not in self._refused:
                _log.error("%s; it gets no requests", error)
                self._refused.add(name)
            return (None,)


def worker_of(pod: Json) -> Worker | None:
    """Return the worker that a pod is; None while it serves nothing.

    Raises:
        RouterError: the pod describes itself in a way that cannot be.
    """
    metadata, status = pod["metadata"], pod.get("status", {})
    labels = metadata.get("labels", {})
    pool, ip = labels.get(POOL_LABEL), status.get("podIP")
    draining = "deletionTimestamp" in metadata
    if not pool or not ip or status.get("phase") != "Running":
        return None
    if labels.get(_LWS_INDEX, "0") != "0" or not (draining or _is_ready(status)):
        return None
    host = f"[{ip}]" if ":" in ip else ip
    ports = {key: _port(pod, key) for key in (KV_EVENTS_PORT, KV_REPLAY_PORT, BOOTSTRAP_PORT)}
    events, replay, bootstrap = ports.values()
    on_plane = metadata.get("annotations", {}).get(KV_EVENTS)
    engine = labels.get(ENGINE_LABEL, "vllm")
    if engine not in _ENGINES:
        raise RouterError(
            f"pod {metadata['name']}: label {ENGINE_LABEL}: {engine!r} is none of "
            + ", ".join(_ENGINES)
        )
    return Worker(
        name=metadata["name"],
        pool=pool,
        address=f"{host}:{_port(pod, PORT) or _http_port(pod)}",
        draining=draining,
        engine=_ENGINES[engine],
        kv_events=on_plane or (f"tcp://{host}:{events}" if events else None),
        kv_replay=f"tcp://{host}:{replay}" if replay else None,
        bootstrap=f"{host}:{bootstrap}" if bootstrap else None,
    )


def flows_of(group: Json) -> dict[str, dict[str, float]]:
    """Return `status.flows` of a ServingGroup, where the global planner writes them.

    Raises:
        RouterError: it is no mapping of class to pool to weight.
    """
    flows: Any = group.get("status", {}).get("flows") or {}
    try:
        found = {
            str(slo_class): {str(pool): float(weight) for pool, weight in pools.items()}
            for slo_class, pools in flows.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        name = group["metadata"]["name"]
        raise RouterError(
            f"ServingGroup {name}: status.flows: class -> pool -> weight expected, "
            f"got {flows!r:.200}"
        ) from error
    for slo_class, pools in found.items():
        for pool, weight in pools.items():
            if not 0 <= weight < float("inf"):
                name = group["metadata"]["name"]
                raise RouterError(
                    f"ServingGroup {name}: status.flows.{slo_class}.{pool}: {weight} is no weight"
                )
    return found


def _is_ready(status: Json) -> bool:
    conditions = status.get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _port(pod: Json, annotation: str) -> int | None:
    text = pod["metadata"].get("annotations", {}).get(annotation)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise RouterError(
            f"pod {pod['metadata']['name']}: annotation {annotation}: {text!r} is no port"
        )
    return int(text)


def _http_port(pod: Json) -> int:
    ports = [port for c in pod["spec"]["containers"] for port in c.get("ports", ())]
    if not ports:
        raise RouterError(
            f"pod {pod['metadata']['name']}: no container port, and no annotation {PORT}"
        )
    named = next((port for port in ports if port.get("name") == "http"), ports[0])
    return int(named["containerPort"])
