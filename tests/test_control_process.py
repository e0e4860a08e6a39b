"""Planners as processes: one round by hand, election, hand-over, health, and what goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.control import Connector, LocalPlanner, NoMetrics
from hrl_planner.control.health import Health
from hrl_planner.control.lease import Lease, Leases
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_objects, install_definitions
from tests.toy_router import free_port

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    install_definitions(control_plane.client())
    with control_plane.namespace("process") as name:
        yield name


@pytest.fixture
def group(control_plane: ControlPlane, namespace: str) -> str:
    api = control_plane.client()
    for pool in SPEC.pools:
        body = deployment(pool.name, 1, pod_spec(["true"], pool.gpu_type))
        client.AppsV1Api(api).create_namespaced_deployment(namespace, body)
    objects = client.CustomObjectsApi(api)
    create_objects(objects, SPEC, namespace, allocator="static", scaler="quota", mode="active")
    return SPEC.name


def command(plane: ControlPlane, namespace: str, *args: str) -> list[str]:
    where = ["--namespace", namespace, "--kubeconfig", str(plane.kubeconfig)]
    return [sys.executable, "-m", "hrl_planner.cli", "plan", *args, *where]


def test_one_dry_round_prints_what_every_planner_would_do(
    control_plane: ControlPlane, namespace: str, group: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(control_plane, namespace, "all", "--group", group, "--dry-run", "--look-s", "2"),
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert [line["level"] for line in rounds] == ["local"] * len(SPEC.pools) + ["global"]
    assert set(rounds[-1]["decision"]["replicas"]) == {pool.name for pool in SPEC.pools}
    log = tmp_path / "planner.log"
    log.write_text(done.stdout)
    again = CliRunner().invoke(app, ["replay-log", str(log)])
    assert again.exit_code == 0, again.output


def test_a_group_that_does_not_exist_is_one_line_and_status_2(
    control_plane: ControlPlane, namespace: str
) -> None:
    done = subprocess.run(
        command(control_plane, namespace, "global", "--group", "nobody", "--once"),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "servinggroups/nobody" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_planner_told_to_stop_ends_and_leaves_its_lease_to_the_next(
    control_plane: ControlPlane, namespace: str, group: str
) -> None:
    api = control_plane.client()
    for pool in SPEC.pools:  # the first plan waits for all to have reported
        LocalPlanner(Connector(api, namespace), pool.name, NoMetrics(), time.monotonic).round()
    port = str(free_port())
    args = command(control_plane, namespace, "global", "--group", group, "--health-port", port)
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            lines: Iterator[dict[str, Any]] = map(json.loads, process.stdout)
            cluster = next(lines)
            first = next(line for line in lines if line.get("mode") == "active")
            assert (first["level"], first["decision"]["cluster"]) == ("global", cluster["hash"])
            leads = f'hrl_planner_leader{{level="global",name="{group}"}} 1.0'
            page, until_s = "", time.monotonic() + 20.0
            while leads not in page:  # is told twice a second
                assert time.monotonic() < until_s, page
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    page = answer.read().decode()
            assert 'hrl_planner_rounds_total{level="global",result="done"}' in page
            assert 'resource="servinggroups/status",verb="patch"' in page
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    leases = Leases(api, namespace, "next", lambda: 0.0)
    assert Lease(leases, f"hrl-planner-global-{group}").hold()


def test_a_lease_is_taken_over_only_when_it_was_not_renewed(
    control_plane: ControlPlane, namespace: str
) -> None:
    api, now = control_plane.client(), [0.0]
    mine = Lease(Leases(api, namespace, "mine", lambda: now[0]), "one")
    other = Lease(Leases(api, namespace, "other", lambda: now[0]), "one")
    assert mine.hold()
    assert not other.hold()
    now[0] = 9.0
    assert mine.hold()
    assert not other.hold()
    now[0] = 18.0
    assert not other.hold()
    now[0] = 20.0
    assert other.hold()
    assert not mine.hold()


def test_health_answers_what_it_is_told() -> None:
    ready = threading.Event()
    with Health(0, lambda: True, ready.is_set, host="127.0.0.1") as health:
        address = f"http://127.0.0.1:{health.port}"
        with urllib.request.urlopen(f"{address}/healthz") as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/readyz")
        refused.value.close()
        assert refused.value.code == 503
        ready.set()
        with urllib.request.urlopen(f"{address}/readyz") as answer:
            assert answer.status == 200
