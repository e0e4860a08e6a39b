"""Records of Dynamo's Kubernetes discovery: an object `DynamoWorkerMetadata` per worker pod.

The pod owns its object, so it goes with the pod. Feeds look only while they follow nobody; all of
them share one look a second. The router's role needs `list` on `dynamoworkermetadatas` of the
group `nvidia.com`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, cast

import msgspec
from kubernetes.aio.client import ApiClient, Configuration, CustomObjectsApi
from kubernetes.aio.client.exceptions import ApiException

from hrl_planner.errors import KubeError, RouterError
from hrl_planner.kube.access import find_configuration, own_namespace
from hrl_planner.router.kv.plane.records import Channel, Model, Source, SourceName, Told, source

GROUP, VERSION, PLURAL = "nvidia.com", "v1alpha1", "dynamoworkermetadatas"
_FRESH_S = 0.9
Json = dict[str, Any]


class KubernetesStore:
    """The records of a namespace.

    Args:
        namespace: of the worker pods; None for the router's own.
        configuration: of the API client; None for the pod's service account, else the kubeconfig.
    """

    def __init__(
        self, namespace: str | None, *, configuration: Configuration | None = None
    ) -> None:
        self._namespace = namespace or own_namespace()
        self._configuration = configuration
        self._one_at_a_time = asyncio.Lock()
        self._objects: list[Json] = []
        self._read_s = -_FRESH_S

    async def sources(self, name: SourceName) -> list[Source]:
        """Return the publishers of an endpoint; see `Store`."""
        async with self._one_at_a_time:
            if time.monotonic() - self._read_s > _FRESH_S:
                self._objects = await self._list()
                self._read_s = time.monotonic()
        return [found for item in self._objects for found in _sources(item, name)]

    async def _list(self) -> list[Json]:
        try:
            configuration = self._configuration or await find_configuration()
            async with ApiClient(configuration) as api:
                found = await CustomObjectsApi(api).list_namespaced_custom_object(
                    GROUP, VERSION, self._namespace, PLURAL
                )
        except (ApiException, KubeError, OSError) as error:
            what = getattr(error, "reason", None) or error
            raise RouterError(f"{PLURAL}.{GROUP} in {self._namespace}: {what}") from error
        return cast("list[Json]", cast("Json", found)["items"])


def _sources(item: Json, name: SourceName) -> Iterator[Source]:
    data = item.get("spec", {}).get("data", {})
    for key, channel in data.get("event_channels", {}).items():
        told = data.get("event_sources", {}).get(key)
        if told is None or not key.startswith(name.key_prefix):
            continue
        where = f"{PLURAL} {item['metadata']['name']}: event_channels.{key}"
        try:
            of_source = msgspec.convert(told, Told)
            model = _model(data, of_source.metadata.worker.worker_id)
            if model is not None:
                yield source(where, msgspec.convert(channel, Channel), of_source, model)
        except msgspec.ValidationError as error:
            raise RouterError(f"{where}: {error}") from error


def _model(data: Json, worker_id: int) -> Model | None:
    for key, card in data.get("model_cards", {}).items():
        if key.endswith(f"/{worker_id:x}"):
            return msgspec.convert(card, Model)
    return None
