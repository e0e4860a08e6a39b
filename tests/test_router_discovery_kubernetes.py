"""Where the router learns of workers: pods and groups of Kubernetes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from hrl_planner.errors import RouterError
from hrl_planner.router.discovery import Snapshot, Worker
from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery, flows_of, worker_of
from tests.follower import Follower
from tests.toy_kubernetes import Json, ToyKubernetes

PODS = "/api/v1/namespaces/serving/pods"
GROUPS = "/apis/hrl-planner.io/v1alpha1/namespaces/serving/servinggroups"


def pod(name: str, ip: str = "10.0.0.1", *, ready: bool = True, **annotations: str) -> Json:
    return {
        "metadata": {
            "name": name,
            "labels": {"hrl-planner.io/pool": "fast"},
            "annotations": {
                f"hrl-planner.io/{key.replace('_', '-')}": value
                for key, value in annotations.items()
            },
        },
        "spec": {
            "containers": [
                {"name": "sidecar", "ports": [{"name": "metrics", "containerPort": 9090}]},
                {"name": "engine", "ports": [{"name": "http", "containerPort": 8000}]},
            ]
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def group(flows: Any) -> Json:
    return {"metadata": {"name": "chat"}, "status": {"flows": flows}}


def test_a_pod_may_name_itself_on_dynamos_event_plane() -> None:
    worker = worker_of(pod("w1", kv_events="dyn://prod.worker.generate"))
    assert worker is not None and worker.kv_events == "dyn://prod.worker.generate"


def test_a_ready_pod_is_a_worker() -> None:
    described = pod(
        "w1", port="9000", kv_events_port="5557", kv_replay_port="5558", bootstrap_port="8998"
    )
    described["metadata"]["labels"]["hrl-planner.io/engine"] = "sglang"
    assert worker_of(described) == Worker(
        "w1",
        "fast",
        "10.0.0.1:9000",
        engine="sglang",
        kv_events="tcp://10.0.0.1:5557",
        kv_replay="tcp://10.0.0.1:5558",
        bootstrap="10.0.0.1:8998",
    )


def test_without_annotations_the_port_named_http_serves() -> None:
    assert worker_of(pod("w1")) == Worker("w1", "fast", "10.0.0.1:8000")
    assert worker_of(pod("w1", ip="fd00::1")) == Worker("w1", "fast", "[fd00::1]:8000")


def test_a_pod_to_be_deleted_drains_whether_ready_or_not() -> None:
    leaving = pod("w1", ready=False)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    worker = worker_of(leaving)
    assert worker is not None
    assert worker.draining


def test_pods_that_serve_nothing_are_no_workers() -> None:
    starting = pod("w1", ready=False)
    unplaced = pod("w1")
    del unplaced["status"]["podIP"]
    finished = pod("w1")
    finished["status"]["phase"] = "Succeeded"
    foreign = pod("w1")
    foreign["metadata"]["labels"] = {}
    follower = pod("w1")
    follower["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] = "1"
    for each in (starting, unplaced, finished, foreign, follower):
        assert worker_of(each) is None


def test_a_pod_that_describes_itself_wrongly_is_refused() -> None:
    with pytest.raises(RouterError, match=r"pod w1: annotation .*/port: 'http' is no port"):
        worker_of(pod("w1", port="http"))
    strange = pod("w1")
    strange["metadata"]["labels"]["hrl-planner.io/engine"] = "tgi"
    with pytest.raises(RouterError, match="'tgi' is none of vllm, sglang"):
        worker_of(strange)


@pytest.mark.parametrize("flows", [["fast"], {"c": "fast"}, {"c": {"fast": "much"}}])
def test_flows_of_the_wrong_shape_are_refused(flows: Any) -> None:
    with pytest.raises(RouterError, match=r"ServingGroup chat: status\.flows"):
        flows_of(group(flows))


Scenario = Callable[[ToyKubernetes, Follower], Coroutine[Any, Any, None]]


def follow(scenario: Scenario, *, group_name: str | None = None) -> ToyKubernetes:
    """Run a scenario against a server with one ready pod."""

    async def run() -> ToyKubernetes:
        server = ToyKubernetes()
        url = await server.start()
        server.serves(PODS)
        await server.put(PODS, pod("w1"))

        async def configuration() -> Configuration:
            return Configuration(host=url)

        discovery = KubernetesDiscovery("serving", group=group_name, configuration=configuration)
        follower = Follower(discovery)
        try:
            await scenario(server, follower)
        finally:
            await follower.close()
            await server.stop()
        return server

    return asyncio.run(run())


def names(snapshot: Snapshot) -> list[str]:
    return [worker.name for worker in snapshot.workers]


def test_pods_come_change_and_go() -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        assert names(await follower.next()) == ["w1"]
        await server.put(PODS, pod("w2", ready=False))
        await server.put(PODS, pod("w2", "10.0.0.2"))
        snapshot = await follower.next()
        assert names(snapshot) == ["w1", "w2"]
        leaving = pod("w1")
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await server.put(PODS, leaving)
        assert [worker.draining for worker in (await follower.next()).workers] == [True, False]
        await server.delete(PODS, "w1")
        assert names(await follower.next()) == ["w2"]

    server = follow(scenario)
    listed, watched = (query for _, query in server.requests)
    assert "watch" not in listed
    assert listed["labelSelector"] == watched["labelSelector"] == "hrl-planner.io/pool"
    assert watched["resourceVersion"] == "101"
    assert watched["allowWatchBookmarks"] in ("true", "True")


def test_a_watch_that_breaks_goes_on_from_where_it_was() -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await follower.next()
        await server.put(PODS, pod("w2", "10.0.0.2"))
        await follower.next()
        server.cut()
        await server.put(PODS, pod("w3", "10.0.0.3"))
        assert names(await follower.next()) == ["w1", "w2", "w3"]

    server = follow(scenario)
    assert [query.get("resourceVersion") for _, query in server.requests] == [None, "101", "102"]


def test_bookmarks_move_the_place_on() -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await follower.next()
        mark = {"kind": "Pod", "metadata": {"resourceVersion": "150"}}
        await server.say(PODS, {"type": "BOOKMARK", "object": mark})
        server.version = 160
        while server.watches() == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        server.cut()
        await server.put(PODS, pod("w2", "10.0.0.2"))
        assert names(await follower.next()) == ["w1", "w2"]

    server = follow(scenario)
    assert server.requests[-1][1]["resourceVersion"] == "150"


@pytest.mark.parametrize("how", ["answer", "event"])
def test_a_forgotten_place_makes_it_list_anew(how: str) -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await follower.next()
        server.objects[PODS].clear()
        server.objects[PODS]["w9"] = pod("w9")
        server.forgotten = server.version = 500
        if how == "event":
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await server.say(PODS, {"type": "ERROR", "object": gone})
        else:
            server.cut()
        assert names(await follower.next()) == ["w9"]

    follow(scenario)


def test_an_api_server_that_is_away_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await follower.next()
        waiting = asyncio.create_task(follower.next())
        server.refuse_with = 503
        server.cut()
        asked = len(server.requests)
        while len(server.requests) < asked + 2:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.refuse_with = None
        await server.put(PODS, pod("w2", "10.0.0.2"))
        assert names(await waiting) == ["w1", "w2"]

    with caplog.at_level(logging.WARNING, "hrl_planner.router.discovery"):
        follow(scenario)
    assert any("pods: 503" in message for message in caplog.messages)


def test_a_pod_that_describes_itself_wrongly_is_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await follower.next()
        await server.put(PODS, pod("w2", "10.0.0.2", port="none"))
        await server.put(PODS, pod("w2", "10.0.0.2", port="none"))
        await server.put(PODS, pod("w3", "10.0.0.3"))
        assert names(await follower.until(lambda found: len(found.workers) == 2)) == ["w1", "w3"]

    follow(scenario)
    assert len([message for message in caplog.messages if "pod w2" in message]) == 1


def test_flows_are_those_of_the_group() -> None:
    async def scenario(server: ToyKubernetes, follower: Follower) -> None:
        await server.put(GROUPS, group({"interactive": {"fast": 2}}))
        first = await follower.until(lambda found: bool(found.flows))
        assert first.flows == {"interactive": {"fast": 2.0}}
        assert names(first) == ["w1"]
        await server.put(GROUPS, group({"interactive": {"fast": "much"}}))
        await server.put(GROUPS, group({"interactive": {"fast": 1, "cheap": 3}}))
        assert (await follower.next()).flows == {"interactive": {"fast": 1.0, "cheap": 3.0}}
        await server.delete(GROUPS, "chat")
        assert (await follower.next()).flows == {}

    def before(run: Scenario) -> Scenario:
        async def with_groups(server: ToyKubernetes, follower: Follower) -> None:
            server.serves(GROUPS)
            await run(server, follower)

        return with_groups

    follow(before(scenario), group_name="chat")


def test_without_the_planners_objects_there_are_workers_and_no_flows() -> None:
    async def scenario(_: ToyKubernetes, follower: Follower) -> None:
        snapshot = await follower.next()
        assert names(snapshot) == ["w1"]
        assert snapshot.flows == {}

    follow(scenario, group_name="chat")
