"""A mirror of one kind of object, when objects or the way to the server are not as they should be.

What it does when all is well, and when the server goes and comes, the router's discovery shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes.aio.client import ApiClient, Configuration, CoreV1Api
from kubernetes.config import ConfigException

from hrl_planner.control.pods import pod_of
from hrl_planner.kube.reflector import ListCall, Reflector
from tests.toy_kubernetes import Json, ToyKubernetes
from tests.toy_router import eventually

PODS = "/api/v1/namespaces/serving/pods"
SIZE = "leaderworkerset.sigs.k8s.io/size"
Scenario = Callable[[ToyKubernetes, Reflector[Any]], Coroutine[Any, Any, None]]


def pod(name: str, **annotations: str) -> Json:
    metadata = {"name": name, "labels": {"app": "it"}, "annotations": annotations}
    return {"metadata": metadata, "status": {"phase": "Running"}}


def mirrored(
    scenario: Scenario,
    keep: Callable[[Json], Any] = pod_of,
    through: Callable[[ListCall], ListCall] = lambda call: call,
) -> None:
    """Run a scenario beside a mirror of a server with one pod.

    Args:
        scenario: what happens.
        keep: what is kept of a pod.
        through: what lies between mirror and server.
    """

    async def run() -> None:
        server = ToyKubernetes()
        url = await server.start()
        await server.put(PODS, pod("first"))
        async with ApiClient(Configuration(host=url)) as api:
            pods = CoreV1Api(api).list_namespaced_pod_without_preload_content
            reflector = Reflector("pods", through(partial(pods, "serving")), keep)

            async def follow() -> None:
                async for _ in reflector.changes():
                    pass

            following = asyncio.create_task(follow())
            try:
                await scenario(server, reflector)
                assert not following.done()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await server.stop()

    asyncio.run(run())


def test_a_pod_with_a_strange_annotation_is_a_pod_like_others() -> None:
    async def scenario(server: ToyKubernetes, reflector: Reflector[Any]) -> None:
        await eventually(lambda: server.watches() == 1)
        await server.put(PODS, pod("strange", **{SIZE: "x"}))
        await server.put(PODS, pod("last"))
        await eventually(lambda: set(reflector.objects) == {"first", "strange", "last"})
        assert reflector.behind_s() == 0.0

    mirrored(scenario)


@pytest.mark.parametrize("fault", [ValueError, KeyError, AttributeError])
def test_an_event_that_could_not_be_understood_is_not_lost(
    fault: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    faults = [fault("odd")]

    def keep(item: Json) -> str | None:
        if item["metadata"]["name"] == "odd" and faults:
            raise faults.pop()
        return str(item["metadata"]["name"])

    async def scenario(server: ToyKubernetes, reflector: Reflector[Any]) -> None:
        await eventually(lambda: server.watches() == 1)
        await server.put(PODS, pod("odd"))
        await eventually(lambda: "odd" in reflector.objects)

    mirrored(scenario, keep)
    assert any(f"pods: {fault.__name__}('odd')" in message for message in caplog.messages)


@pytest.mark.parametrize("fault", [ConfigException("no token"), KeyError("metadata")])
def test_a_way_to_the_server_that_is_lost_is_looked_for_again(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [fault]

    def through(call: ListCall) -> ListCall:
        async def ask(**query: Any) -> Any:
            if faults:
                raise faults.pop()
            return await call(**query)

        return ask

    async def scenario(_: ToyKubernetes, reflector: Reflector[Any]) -> None:
        await eventually(lambda: set(reflector.objects) == {"first"})

    mirrored(scenario, through=through)
    assert any(type(fault).__name__ in message for message in caplog.messages)
