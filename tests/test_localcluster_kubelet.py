"""Pods on the local cluster: real processes that start, answer, crash, drain and wait for GPUs."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client, config

from hrl_planner.localcluster import STARTUP_ANNOTATION, ControlPlane, Kubelet, Node
from hrl_planner.localcluster.controlplane import API_SERVER
from tests.kube import (
    WEB_SERVER,
    deployment,
    pod_spec,
    ready,
    unschedulable,
    wait_for_pod,
    wait_for_pods,
)

pytestmark = pytest.mark.kube

GPU = "Tested-GPU"
FAKE_GPU = "Faked-GPU"
READINESS = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}

# Says when it is asked to end, and ends when its last request would be answered.
DRAINING = 'trap "echo draining; sleep 0.5; echo drained; exit 0" TERM; echo up; sleep 60 & wait'
DEAF = 'trap "" TERM; echo up; while true; do sleep 1; done'


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with Kubelet(control_plane, [Node("tested", GPU, gpus=4)], first_pause_s=0.2) as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane, kubelet: Kubelet) -> Iterator[str]:
    with control_plane.namespace("pods") as name:
        yield name


@pytest.fixture
def core(control_plane: ControlPlane) -> client.CoreV1Api:
    return client.CoreV1Api(control_plane.client())


@pytest.fixture
def apps(control_plane: ControlPlane) -> client.AppsV1Api:
    return client.AppsV1Api(control_plane.client())


def shell(script: str, **container: Any) -> Any:
    return pod_spec(["sh", "-c", script], GPU, **container)


def create(core: client.CoreV1Api, namespace: str, spec: Any, annotations: Any = None) -> str:
    metadata = {"generateName": "pod-", "annotations": annotations or {}}
    created = core.create_namespaced_pod(namespace, {"metadata": metadata, "spec": spec})
    return str(created.metadata.name)


def answer(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}:8000/", timeout=5) as response:
        return int(response.status)


def first(pod: Any) -> Any:
    """The status of a pod's only container."""
    return (pod.status.container_statuses or [None])[0]


def test_a_deployment_scales_up_and_down_with_a_real_server_per_pod(
    core: client.CoreV1Api, apps: client.AppsV1Api, namespace: str
) -> None:
    spec = pod_spec(WEB_SERVER, GPU, gpus=1, readinessProbe=READINESS)
    apps.create_namespaced_deployment(namespace, deployment("web", 1, spec))
    wait_for_pods(core, namespace, lambda pods: len(pods) == 1 and all(map(ready, pods)))
    apps.patch_namespaced_deployment_scale("web", namespace, {"spec": {"replicas": 3}})
    pods = wait_for_pods(core, namespace, lambda pods: len(pods) == 3 and all(map(ready, pods)))
    addresses = {pod.status.pod_ip for pod in pods}
    assert len(addresses) == 3
    assert [answer(address) for address in addresses] == [200] * 3
    apps.patch_namespaced_deployment_scale("web", namespace, {"spec": {"replicas": 0}})
    wait_for_pods(core, namespace, lambda pods: not pods)
    for address in addresses:
        with pytest.raises(OSError, match="refused"):
            answer(address)


def test_a_deleted_pod_ends_its_work_and_leaves_when_it_is_done(
    core: client.CoreV1Api, kubelet: Kubelet, namespace: str
) -> None:
    name = create(core, namespace, shell(DRAINING))
    wait_for_pod(core, namespace, name, ready)
    wait_for_log(kubelet, namespace, name, "up")
    core.delete_namespaced_pod(name, namespace)
    draining = core.read_namespaced_pod(name, namespace)
    assert draining.metadata.deletion_timestamp
    wait_for_pods(core, namespace, lambda pods: not pods)
    assert kubelet.log(namespace, name, "main").split() == ["up", "draining", "drained"]


def test_a_pod_that_does_not_listen_is_killed_after_its_grace(
    core: client.CoreV1Api, kubelet: Kubelet, namespace: str
) -> None:
    name = create(core, namespace, shell(DEAF))
    wait_for_pod(core, namespace, name, ready)
    wait_for_log(kubelet, namespace, name, "up")
    core.delete_namespaced_pod(name, namespace, grace_period_seconds=1)
    wait_for_pods(core, namespace, lambda pods: not pods)


def test_a_pod_without_a_gpu_waits_and_runs_as_soon_as_one_is_free(
    core: client.CoreV1Api, namespace: str
) -> None:
    holder = create(core, namespace, pod_spec(["sleep", "60"], GPU, gpus=3))
    wait_for_pod(core, namespace, holder, ready)
    waiting = create(core, namespace, pod_spec(["sleep", "60"], GPU, gpus=2))
    pending = wait_for_pod(core, namespace, waiting, unschedulable)
    assert pending.status.phase == "Pending" and pending.spec.node_name is None
    core.delete_namespaced_pod(holder, namespace)
    wait_for_pod(core, namespace, waiting, ready)


def test_a_pod_for_another_type_of_gpu_is_not_placed(
    core: client.CoreV1Api, namespace: str
) -> None:
    name = create(core, namespace, pod_spec(["sleep", "60"], "No-Such-GPU", gpus=1))
    wait_for_pod(core, namespace, name, unschedulable)


def test_a_pod_takes_its_start_up_time_and_holds_its_gpus_meanwhile(
    core: client.CoreV1Api, namespace: str
) -> None:
    spec = pod_spec(["sleep", "60"], GPU, gpus=1)
    name = create(core, namespace, spec, {STARTUP_ANNOTATION: "1.5"})
    starting = wait_for_pod(core, namespace, name, first)
    assert starting.status.phase == "Pending" and starting.spec.node_name == "tested"
    assert first(starting).state.waiting.reason == "ContainerCreating"
    running = wait_for_pod(core, namespace, name, ready)
    took = first(running).state.running.started_at - running.status.start_time
    assert took.total_seconds() >= 1  # the API keeps whole seconds


def test_a_pod_that_is_deleted_while_it_starts_never_runs(
    core: client.CoreV1Api, namespace: str
) -> None:
    name = create(core, namespace, shell("exit 0"), {STARTUP_ANNOTATION: "600"})
    wait_for_pod(core, namespace, name, first)
    core.delete_namespaced_pod(name, namespace)
    wait_for_pods(core, namespace, lambda pods: not pods)


def test_a_container_that_crashes_is_started_again_with_pauses(
    core: client.CoreV1Api, namespace: str
) -> None:
    name = create(core, namespace, shell("exit 3"))

    def in_pause(pod: Any) -> bool:
        status = first(pod)
        return bool(status and status.state.waiting and status.restart_count >= 2)

    status = first(wait_for_pod(core, namespace, name, in_pause))
    assert status.state.waiting.reason == "CrashLoopBackOff"
    assert status.last_state.terminated.exit_code == 3


@pytest.mark.parametrize(("script", "phase"), [("exit 0", "Succeeded"), ("exit 3", "Failed")])
def test_a_pod_that_is_never_restarted_has_an_end(
    core: client.CoreV1Api, namespace: str, script: str, phase: str
) -> None:
    name = create(core, namespace, {**shell(script), "restartPolicy": "Never"})
    wait_for_pod(core, namespace, name, lambda pod: pod.status.phase == phase)


def test_a_container_that_fails_its_liveness_probe_is_started_again(
    core: client.CoreV1Api, namespace: str
) -> None:
    probe = {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1}
    name = create(core, namespace, shell("exec sleep 60", livenessProbe=probe))
    pod = wait_for_pod(core, namespace, name, lambda pod: first(pod) and first(pod).restart_count)
    assert first(pod).last_state.terminated.exit_code == 128 + 15


def test_a_pod_speaks_to_the_api_server_as_its_service_account(
    core: client.CoreV1Api, apps: client.AppsV1Api, kubelet: Kubelet, namespace: str
) -> None:
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "planner"}})
    spec = {**shell('echo "$KUBECONFIG"; exec sleep 60'), "serviceAccountName": "planner"}
    # A controller tries again until the account is ready for pods.
    apps.create_namespaced_deployment(namespace, deployment("planner", 1, spec))
    [pod] = wait_for_pods(core, namespace, lambda pods: len(pods) == 1 and ready(pods[0]))
    log = wait_for_log(kubelet, namespace, pod.metadata.name, "kubeconfig")
    as_pod = config.new_client_from_config(config_file=log.strip())
    try:
        with pytest.raises(client.ApiException) as refused:
            client.CoreV1Api(as_pod).list_namespaced_pod(namespace)
    finally:
        as_pod.close()
    account = f"system:serviceaccount:{namespace}:planner"
    assert account in json.loads(refused.value.body)["message"]


def test_a_config_map_is_found_where_the_container_mounts_it(
    core: client.CoreV1Api, kubelet: Kubelet, namespace: str
) -> None:
    core.create_namespaced_config_map(
        namespace, {"metadata": {"name": "greeting"}, "data": {"text": "hello from a map"}}
    )
    mount = {"name": "words", "mountPath": "/etc/words"}
    spec = {**shell("cat /etc/words/text", volumeMounts=[mount]), "restartPolicy": "Never"}
    spec["volumes"] = [{"name": "words", "configMap": {"name": "greeting"}}]
    name = create(core, namespace, spec)
    wait_for_pod(core, namespace, name, lambda pod: pod.status.phase == "Succeeded")
    assert kubelet.log(namespace, name, "main") == "hello from a map"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": None}, "no command"),
        ({"command": ["no-such-program"]}, "no program 'no-such-program'"),
        ({"workingDir": "/no/such/folder"}, "no folder /no/such/folder"),
    ],
)
def test_what_cannot_run_as_a_process_says_why_in_its_status(
    core: client.CoreV1Api, namespace: str, change: Any, message: str
) -> None:
    spec = pod_spec(["sleep", "60"], GPU)
    spec["containers"][0].update(change)
    name = create(core, namespace, spec)

    def explained(pod: Any) -> bool:
        return bool(first(pod) and first(pod).state.waiting.message)

    pod = wait_for_pod(core, namespace, name, explained)
    assert first(pod).state.waiting.reason == "CreateContainerConfigError"
    assert message in first(pod).state.waiting.message


def test_pods_go_on_while_the_api_server_is_away_and_their_end_is_told_afterwards(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str, tmp_path: Path
) -> None:
    name = create(core, namespace, pod_spec(WEB_SERVER, GPU, readinessProbe=READINESS))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    ending = create(core, namespace, {**shell(f"read _ < {gate}"), "restartPolicy": "Never"})
    address = wait_for_pod(core, namespace, name, ready).status.pod_ip
    wait_for_pod(core, namespace, ending, ready)
    control_plane.kill(API_SERVER)
    gate.write_text("go\n")
    assert answer(address) == 200
    control_plane.restart(API_SERVER)
    wait_for_pod(core, namespace, ending, lambda pod: pod.status.phase == "Succeeded")
    survivor = core.read_namespaced_pod(name, namespace)
    assert ready(survivor) and first(survivor).restart_count == 0
    core.delete_namespaced_pod(name, namespace)
    wait_for_pods(core, namespace, lambda pods: [p.metadata.name for p in pods] == [ending])


def test_faked_pods_are_reported_and_nothing_runs(
    control_plane: ControlPlane, core: client.CoreV1Api, apps: client.AppsV1Api
) -> None:
    nodes = [Node("faked", FAKE_GPU, gpus=50)]
    with (
        Kubelet(control_plane, nodes, processes=False),
        control_plane.namespace("faked") as namespace,
    ):
        spec = pod_spec(["no-such-program"], FAKE_GPU, gpus=1)
        apps.create_namespaced_deployment(namespace, deployment("many", 50, spec))
        pods = wait_for_pods(core, namespace, lambda pods: sum(map(ready, pods)) == 50)
        assert len({pod.status.pod_ip for pod in pods}) == 50
        apps.patch_namespaced_deployment_scale("many", namespace, {"spec": {"replicas": 1}})
        wait_for_pods(core, namespace, lambda pods: len(pods) == 1)


def wait_for_log(kubelet: Kubelet, namespace: str, pod: str, words: str) -> str:
    """A container's output once it contains the words."""
    deadline = time.monotonic() + 20
    while words not in (log := kubelet.log(namespace, pod, "main")):
        assert time.monotonic() < deadline, f"no {words!r} in: {log}"
        time.sleep(0.02)
    return log
