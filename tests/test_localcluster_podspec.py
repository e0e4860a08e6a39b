"""What a process learns from its pod: command, variables, probes, as a kubelet would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hrl_planner.localcluster.podspec import (
    STARTUP_ANNOTATION,
    Probe,
    UnrunnableError,
    container_specs,
    expand,
    startup_delay_s,
)
from hrl_planner.localcluster.volumes import volumes_of

ADDRESS = "127.20.1.1"


def pod(annotations: Any = None, **container: Any) -> Any:
    return {
        "metadata": {
            "name": "web-0",
            "namespace": "prod",
            "uid": "u",
            "labels": {"pool": "decode"},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": "h100-0",
            "serviceAccountName": "bot",
            "containers": [{"name": "main", "image": "i", "command": ["run"], **container}],
        },
    }


def field(path: str) -> Any:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("--at=$(HOST):$(PORT)", "--at=h:1"),
        ("$(UNKNOWN) stays", "$(UNKNOWN) stays"),
        ("$$(HOST)", "$(HOST)"),
        ("$HOST and 5$", "$HOST and 5$"),
    ],
)
def test_references_are_expanded_as_a_kubelet_does(text: str, expanded: str) -> None:
    assert expand(text, {"HOST": "h", "PORT": "1"}) == expanded


def test_a_variable_may_refer_to_those_before_it_and_the_command_to_all() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C"}]
    [spec] = container_specs(pod(env=env, args=["$(B)"]), ADDRESS)
    assert spec.environment == {"A": "1", "B": "12", "C": ""}
    assert spec.command == ("run", "12")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status.podIP", ADDRESS),
        ("metadata.name", "web-0"),
        ("metadata.namespace", "prod"),
        ("metadata.labels['pool']", "decode"),
        ("metadata.labels['absent']", ""),
        ("spec.nodeName", "h100-0"),
        ("spec.serviceAccountName", "bot"),
    ],
)
def test_a_pod_can_ask_about_itself(path: str, value: str) -> None:
    [spec] = container_specs(pod(env=[field(path)]), ADDRESS)
    assert spec.environment == {"X": value}


def test_probes_have_the_defaults_of_kubernetes_and_ports_go_by_name() -> None:
    [spec] = container_specs(
        pod(
            ports=[{"name": "http", "containerPort": 8000}],
            readinessProbe={"httpGet": {"port": "http", "path": "/ready"}},
            livenessProbe={"tcpSocket": {"port": 9}, "periodSeconds": 2, "failureThreshold": 1},
        ),
        ADDRESS,
    )
    assert spec.readiness == Probe(8000, "/ready", period_s=10, timeout_s=1, failures=3)
    assert spec.liveness == Probe(9, period_s=2, failures=1)
    assert spec.startup is None


def test_the_start_up_time_is_an_annotation() -> None:
    assert startup_delay_s(pod()) == 0
    assert startup_delay_s(pod({STARTUP_ANNOTATION: "2.5"})) == 2.5
    with pytest.raises(UnrunnableError, match="'soon' is no number"):
        startup_delay_s(pod({STARTUP_ANNOTATION: "soon"}))


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"command": None}, "no command"),
        ({"envFrom": [{"configMapRef": {"name": "c"}}]}, "envFrom"),
        ({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {}}}]}, "secretKeyRef"),
        ({"env": [field("status.qosClass")]}, r"unknown field status\.qosClass"),
        ({"readinessProbe": {"exec": {"command": ["true"]}}}, "only httpGet and tcpSocket"),
        ({"readinessProbe": {"httpGet": {"port": "web"}}}, "no port is named web"),
    ],
)
def test_what_a_process_cannot_have_is_refused_by_name(container: Any, message: str) -> None:
    with pytest.raises(UnrunnableError, match=message):
        container_specs(pod(**container), ADDRESS)


def test_a_pod_with_init_containers_is_refused() -> None:
    asks = pod()
    asks["spec"]["initContainers"] = [{"name": "first"}]
    with pytest.raises(UnrunnableError, match="initContainers"):
        container_specs(asks, ADDRESS)


CONFIG = {
    "volumeMounts": [
        {"name": "config", "mountPath": "/etc/app"},
        {"name": "certs", "mountPath": "/etc/app/certs", "subPath": "tls"},
        {"name": "models", "mountPath": "/models"},
    ]
}


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("--config=/etc/app/a.yaml", "--config=/pod/config/a.yaml"),
        ("/etc/app", "/pod/config"),
        ("/etc/app/certs/ca.pem", "/pod/certs/tls/ca.pem"),
        ("cat /etc/app/a '/etc/app/b'", "cat /pod/config/a '/pod/config/b'"),
        ("/etc/application", "/etc/application"),
        ("http://host/etc/app", "http://host/etc/app"),
        ("/models/llama", "/models/llama"),
    ],
)
def test_paths_under_a_mount_lead_to_the_volumes_folder(text: str, placed: str) -> None:
    asks = pod(**CONFIG, args=[text], env=[{"name": "X", "value": text}])
    folders = {"config": Path("/pod/config"), "certs": Path("/pod/certs")}
    [spec] = container_specs(asks, ADDRESS, folders)
    assert spec.command == ("run", placed)
    assert spec.environment == {"X": placed}


def test_a_config_map_gives_all_its_keys_or_those_asked_for_under_other_names() -> None:
    data = {"data": {"a": "1", "b": "2"}, "binaryData": {"c": "Mw=="}}
    volumes = [
        {"name": "all", "configMap": {"name": "m"}},
        {"name": "some", "configMap": {"name": "m", "items": [{"key": "a", "path": "x/y"}]}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "weights", "hostPath": {"path": "/models"}},
    ]
    asks = pod()
    asks["spec"]["volumes"] = volumes
    whole, part, scratch = volumes_of(asks)
    assert whole.files(data) == {"a": b"1", "b": b"2", "c": b"3"}
    assert part.files(data) == {"x/y": b"1"}
    assert scratch.config_map is None
