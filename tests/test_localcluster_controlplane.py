"""The control plane on this machine is a real one: storage, permissions, tokens, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

from hrl_planner.errors import LocalClusterError
from hrl_planner.localcluster import ControlPlane, KubeBinaries
from hrl_planner.localcluster.controlplane import API_SERVER, ETCD

pytestmark = pytest.mark.kube


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    with control_plane.namespace("plane") as name:
        yield name


@pytest.fixture
def core(control_plane: ControlPlane) -> client.CoreV1Api:
    return client.CoreV1Api(control_plane.client())


def config_map(name: str, **data: str) -> Any:
    return {"metadata": {"name": name}, "data": data}


def allow(plane: ControlPlane, namespace: str, subject: Any) -> None:
    """Let a subject read config maps of one namespace."""
    rbac = client.RbacAuthorizationV1Api(plane.client())
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "reader"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [subject],
    }
    rbac.create_namespaced_role_binding(namespace, binding)


def test_objects_are_stored_changed_and_watched(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", x="1"))
    version = core.list_namespaced_config_map(namespace).metadata.resource_version
    core.patch_namespaced_config_map("a", namespace, {"data": {"x": "2"}})
    core.delete_namespaced_config_map("a", namespace)
    seen = []
    for event in watch.Watch().stream(
        core.list_namespaced_config_map, namespace, resource_version=version, timeout_seconds=20
    ):
        seen.append((event["type"], event["object"].data))
        if event["type"] == "DELETED":
            break
    assert seen == [("MODIFIED", {"x": "2"}), ("DELETED", {"x": "2"})]


def test_a_replace_of_what_has_changed_meanwhile_is_refused(
    core: client.CoreV1Api, namespace: str
) -> None:
    old = core.create_namespaced_config_map(namespace, config_map("a", x="1"))
    core.patch_namespaced_config_map("a", namespace, {"data": {"x": "2"}})
    with pytest.raises(client.ApiException) as refused:
        core.replace_namespaced_config_map("a", namespace, old)
    assert refused.value.status == 409


def test_a_user_may_do_what_a_role_says_and_nothing_else(
    control_plane: ControlPlane, namespace: str
) -> None:
    alice = client.CoreV1Api(control_plane.client(user="alice"))
    with pytest.raises(client.ApiException) as refused:
        alice.list_namespaced_config_map(namespace)
    assert refused.value.status == 403
    allow(control_plane, namespace, {"kind": "User", "name": "alice"})
    eventually_allowed(alice, namespace)
    with pytest.raises(client.ApiException) as refused:
        alice.list_namespaced_secret(namespace)
    assert refused.value.status == 403


def test_a_service_account_acts_with_its_own_token(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str
) -> None:
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "bot"}})
    bot = client.CoreV1Api(control_plane.client(service_account=(namespace, "bot")))
    with pytest.raises(client.ApiException) as refused:
        bot.list_namespaced_config_map(namespace)
    assert f"system:serviceaccount:{namespace}:bot" in refused.value.body
    subject = {"kind": "ServiceAccount", "name": "bot", "namespace": namespace}
    allow(control_plane, namespace, subject)
    eventually_allowed(bot, namespace)
    with pytest.raises(client.ApiException) as refused:
        bot.list_config_map_for_all_namespaces()
    assert refused.value.status == 403


def eventually_allowed(api: client.CoreV1Api, namespace: str) -> None:
    """The authorizer learns of a binding through a watch, moments after it is stored."""
    for _ in range(200):
        try:
            api.list_namespaced_config_map(namespace)
            return
        except client.ApiException as error:
            assert error.status == 403
    raise AssertionError("still refused")


def test_a_pod_can_be_created_in_a_new_namespace_at_once(
    core: client.CoreV1Api, namespace: str
) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
    assert core.create_namespaced_pod(namespace, pod).spec.service_account_name == "default"


def test_objects_outlive_a_killed_api_server(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str
) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", x="1"))
    control_plane.kill(API_SERVER)
    with pytest.raises(HTTPError):
        core.read_namespaced_config_map("a", namespace, _request_timeout=1)
    control_plane.restart(API_SERVER)
    assert core.read_namespaced_config_map("a", namespace).data == {"x": "1"}


def test_objects_outlive_a_killed_store(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str
) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", x="1"))
    control_plane.restart(ETCD)
    assert core.read_namespaced_config_map("a", namespace).data == {"x": "1"}


def test_while_the_store_is_paused_nothing_is_written(
    control_plane: ControlPlane, core: client.CoreV1Api, namespace: str
) -> None:
    with control_plane.paused(ETCD), pytest.raises(HTTPError):
        core.create_namespaced_config_map(
            namespace, config_map("late", x="1"), _request_timeout=0.5
        )
    control_plane.wait_ready()
    core.create_namespaced_config_map(namespace, config_map("later", x="1"))


def test_a_server_that_dies_at_the_start_is_named_with_its_log(tmp_path: Path) -> None:
    scripts = {"etcd": "echo the disk is on fire; exit 1", "kube-apiserver": "exec sleep 60"}
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(LocalClusterError, match=r"(?s)etcd ended.*the disk is on fire"):
        ControlPlane.start(tmp_path / "run", KubeBinaries(tmp_path, "test"), controllers=False)


_PARENT = """
import os, signal, sys
from pathlib import Path
from kubernetes import client
from hrl_planner.localcluster import ControlPlane, Kubelet, Node
from tests.kube import ready, wait_for_pod
plane = ControlPlane.start(Path(sys.argv[1]), controllers=False)
kubelet = Kubelet(plane, [Node("n")])
kubelet.start()
container = {"name": "c", "image": "none", "command": ["sh", "-c", "echo $$$$; exec sleep 600"]}
pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [container]}}
core = client.CoreV1Api(plane.client())
core.create_namespaced_pod("default", pod)
wait_for_pod(core, "default", "p", ready)
while not (log := kubelet.log("default", "p", "c")):
    pass
print(log, *(component.pid for component in plane.components.values()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_and_pods_die_with_the_process_that_started_them(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", _PARENT, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert parent.returncode == -signal.SIGKILL
    pids = [int(word) for word in parent.stdout.split()]
    assert len(pids) == 3
    for pid in pids:
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Until a process that is no child of ours has ended, reaped or not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    try:
        assert select.select([descriptor], [], [], 20.0)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)
