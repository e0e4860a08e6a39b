"""Planners on a control plane that lacks their definitions, or has others of the same name."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from benchmarks.cluster.store import wait_until
from hrl_planner.control import Connector, GlobalPlanner, NoMetrics
from hrl_planner.control.requests import MissingDefinitionError
from hrl_planner.kube.crds import definitions
from hrl_planner.localcluster import ControlPlane, KubeBinaries
from hrl_planner.spec import ClusterSpec
from tests.kube_objects import create_objects, install_definitions
from tests.scale_definitions import install, remove

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")


@pytest.fixture
def bare_plane(kube_binaries: KubeBinaries, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of the test's own: in the others' one the definitions have objects."""
    with ControlPlane.start(tmp_path / "plane", kube_binaries) as plane:
        yield plane


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return False


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_missing_definitions_are_named_and_a_planner_begins_once_they_are_installed(
    bare_plane: ControlPlane,
) -> None:
    admin = bare_plane.client()
    with bare_plane.namespace("none") as namespace:
        connector = Connector(admin, namespace)
        planner = GlobalPlanner(connector, SPEC.name, NoMetrics(), lambda: 0.0)
        with pytest.raises(MissingDefinitionError, match=r"servinggroups.hrl-planner.io is not"):
            planner.round()
        with pytest.raises(MissingDefinitionError, match=r"workerpools.hrl-planner.io is not"):
            connector.pools()
        other = definitions()["hrl-planner.io_servinggroups.yaml"]
        other["spec"]["versions"][0]["name"] = "v2"
        install(admin, other)
        with pytest.raises(MissingDefinitionError, match="version v2, and this planner reads"):
            planner.round()
        remove(admin, other)

        port = unused_port()
        where = [f"--namespace={namespace}", f"--kubeconfig={bare_plane.kubeconfig}"]
        command = [
            sys.executable, "-m", "hrl_planner.cli", "plan", "all", "--no-metrics",
            f"--health-port={port}", *where,
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                lines = iter(process.stderr.readline, "")
                said = next(line for line in lines if "is not installed" in line)
                assert "hrl-planner crds | kubectl apply -f -" in said
                assert not ready(port)
                install_definitions(admin)
                create_objects(client.CustomObjectsApi(admin), SPEC, namespace, allocator="static")
                assert json.loads(process.stdout.readline())["level"] in ("global", "local")
                assert wait_until(lambda: ready(port), 30.0)
            finally:
                process.terminate()
                _, rest = process.communicate(timeout=30)
        assert "cannot tell which planners there should be" not in rest  # said once
        assert planner.round().plan is not None
