"""Where the router learns of workers: a file that changes in every way files do, and Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.errors import RouterError
from hrl_planner.router.app import run
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.discovery import Discovery, Snapshot, Worker
from hrl_planner.router.discovery.file import FileDiscovery, read_workers
from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery, flows_of, worker_of
from tests.toy_kubernetes import Json, ToyKubernetes

ONE = "workers: [{name: w1, pool: fast, address: '10.0.0.1:8000'}]\n"
TWO = "workers: [{name: w1, pool: fast, address: '10.0.0.1:8000', draining: true}]\n"


class Follower:
    """Reads snapshots one at a time."""

    def __init__(self, discovery: Discovery) -> None:
        self._snapshots: AsyncIterator[Snapshot] = discovery.snapshots()

    async def next(self) -> Snapshot:
        return await asyncio.wait_for(anext(self._snapshots), 20)

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        while not holds(snapshot := await self.next()):
            pass
        return snapshot

    async def close(self) -> None:
        await self._snapshots.aclose()  # type: ignore[attr-defined]


# ---- file


@pytest.fixture
def without_workers(tmp_path: Path) -> Path:
    """A config whose workers file is not there."""
    path = tmp_path / "router.yaml"
    path.write_text("{spec: small, discovery: {kind: file, path: none.yaml}}")
    return path


@pytest.mark.parametrize("words", [(), ("--no-envoy",)])
def test_without_its_workers_file_a_router_ends_with_one_line_and_status_2(
    without_workers: Path, words: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(app, ["router", "--config", str(without_workers), *words])
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {without_workers.parent / 'none.yaml'}: cannot be read")
    assert done.output.count("\n") == 1


def test_a_picker_whose_discovery_fails_at_the_start_ends(without_workers: Path) -> None:
    config = RouterConfig.load(without_workers)
    with pytest.raises(RouterError, match=r"none\.yaml"):
        asyncio.run(asyncio.wait_for(run(config), 60))


def test_a_file_says_workers_and_flows(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text("""
workers:
  - {name: p0, pool: prefill, address: "10.0.0.5:8000", engine: sglang,
     kv_events: "tcp://10.0.0.5:5557", kv_replay: "tcp://10.0.0.5:5558",
     bootstrap: "10.0.0.5:8998"}
  - {name: d0, pool: decode, address: "[::1]:8000", draining: true,
     kv_events: "dyn://prod.worker.generate/7"}
flows:
  interactive: {prefill: 1, decode: 0.5}
""")
    prefill, decode = read_workers(path).workers
    assert prefill == Worker(
        "p0",
        "prefill",
        "10.0.0.5:8000",
        engine="sglang",
        kv_events="tcp://10.0.0.5:5557",
        kv_replay="tcp://10.0.0.5:5558",
        bootstrap="10.0.0.5:8998",
    )
    assert decode == Worker(
        "d0", "decode", "[::1]:8000", draining=True, kv_events="dyn://prod.worker.generate/7"
    )
    assert read_workers(path).flows == {"interactive": {"prefill": 1.0, "decode": 0.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: [{name: a, pool: x, address: nowhere}]", "workers[0].address: .* got 'nowhere'"),
        (
            "workers: [{name: a, pool: x, address: 'h:99999'}]",
            "workers[0].address: .* got 'h:99999'",
        ),
        ("workers: [{name: a, pool: x, address: 'h:0'}]", "workers[0].address: .* got 'h:0'"),
        (
            "workers: [{name: a, pool: x, address: 'h:1', bootstrap: 'h:70000'}]",
            "workers[0].bootstrap: .* got 'h:70000'",
        ),
        ("workers: [{name: a, pool: x, adress: 'h:1'}]", "workers[0].adress: Extra inputs"),
        ("workers: [{name: a, pool: x, address: 'h:1', engine: tgi}]", "workers[0].engine: "),
        (
            "workers: [{name: a, pool: x, address: 'h:1'}, {name: a, pool: y, address: 'h:2'}]",
            "two workers are named 'a'",
        ),
        ("workers: []\nflows: {c: {p: -1}}", "flows.c.p: .* got -1"),
        ("workers: []\nflows: {c: {p: .nan}}", "flows.c.p: "),
        ("flows: {}", "workers: Field required"),
        ("workers: [}", "not valid YAML"),
        ("", "is a mapping"),
    ],
)
def test_a_broken_file_is_refused_with_file_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    with pytest.raises(RouterError, match=message.replace("[", r"\[")) as refused:
        read_workers(path)
    assert str(path) in str(refused.value)


def _in_place(path: Path, text: str) -> None:
    path.write_text(text)


def _renamed_over(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.rename(path)


def _removed_and_made_anew(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("write", [_in_place, _renamed_over, _removed_and_made_anew])
def test_a_changed_file_is_read_again(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    async def scenario() -> None:
        path = tmp_path / "workers.yaml"
        path.write_text(ONE)
        follower = Follower(FileDiscovery(path))
        assert not (await follower.next()).workers[0].draining
        write(path, TWO)
        assert (await follower.next()).workers[0].draining
        await follower.close()

    asyncio.run(scenario())


def test_a_config_map_that_is_swapped_is_read_again(tmp_path: Path) -> None:
    """As the kubelet does it: a link to a folder, replaced by renaming another link over it."""

    def publish(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "workers.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    async def scenario() -> None:
        publish("..1", ONE)
        (tmp_path / "workers.yaml").symlink_to("..data/workers.yaml")
        follower = Follower(FileDiscovery(tmp_path / "workers.yaml"))
        assert not (await follower.next()).workers[0].draining
        publish("..2", TWO)
        assert (await follower.next()).workers[0].draining
        await follower.close()

    asyncio.run(scenario())


def test_a_file_that_breaks_keeps_the_last_good_snapshot_and_complains_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = tmp_path / "workers.yaml"
        path.write_text(ONE)
        follower = Follower(FileDiscovery(path))
        await follower.next()
        reading = asyncio.create_task(follower.next())
        for broken in ("workers: [{name: w1", "workers: [{name: w1"):
            path.write_text(broken)
            while not caplog.records:
                await asyncio.sleep(0.01)
            os.utime(path)
        path.unlink()
        while len(caplog.records) < 2:
            await asyncio.sleep(0.01)
        assert not reading.done()
        path.write_text(TWO)
        assert (await reading).workers[0].draining
        await follower.close()

    with caplog.at_level(logging.ERROR, "hrl_planner.router.discovery.file"):
        asyncio.run(scenario())
    syntax, gone = caplog.messages
    assert f"{tmp_path}/workers.yaml, line 1" in syntax
    assert "the 1 workers of before stay" in syntax
    assert "cannot be read" in gone


def test_a_file_that_is_broken_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="cannot be read"):
        asyncio.run(Follower(FileDiscovery(tmp_path / "absent.yaml")).next())


# ---- Kubernetes

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
