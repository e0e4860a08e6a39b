"""Commands of the manifests as processes under their accounts: they work, and say no secrets."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

import yaml
from kubernetes import client

from hrl_planner.localcluster import ControlPlane
from hrl_planner.manifests import (
    Installation,
    accounts,
    planner_deployments,
    router_config,
    router_deployment,
)
from hrl_planner.manifests.installation import Layout
from hrl_planner.router.local import free_ports
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import apply_all, create_objects, install_definitions

pytestmark = [pytest.mark.kube, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
SPEC = ClusterSpec.load("small")
LAYOUTS: tuple[Layout, ...] = ("per-pool", "all-in-one")
PATIENCE_S = 120.0
STOP_S = 30.0


@pytest.fixture(scope="module")
def installation(control_plane: ControlPlane) -> Iterator[Installation]:
    admin = control_plane.client()
    install_definitions(admin)
    with control_plane.namespace("processes") as namespace:
        for pool in SPEC.pools:
            body = deployment(pool.name, 1, pod_spec(["true"], pool.gpu_type))
            client.AppsV1Api(admin).create_namespaced_deployment(namespace, body)
        made = Installation(SPEC, namespace)
        create_objects(client.CustomObjectsApi(admin), SPEC, namespace)
        for layout in LAYOUTS:
            apply_all(admin, accounts(dataclasses.replace(made, layout=layout)))
        yield made


@dataclass
class Running:
    """A process of a Deployment.

    Attributes:
        process: itself.
        token: of its account.
        said: lines it has written so far.
    """

    process: subprocess.Popen[str]
    token: str
    said: list[str] = field(default_factory=list)

    def wait_for(self, *words: str) -> None:
        """Read on until all words were said, or the process ended."""
        assert self.process.stdout is not None
        missing = set(words)
        while missing and (line := self.process.stdout.readline()):
            self.said.append(line)
            missing -= {word for word in missing if word in line}
        assert not missing, f"never said {missing}: {''.join(self.said)}"

    def stop(self) -> int:
        """Ask it to end, and read the rest."""
        self.process.terminate()
        rest, _ = self.process.communicate(timeout=STOP_S)
        self.said.append(rest)
        return self.process.returncode


@contextlib.contextmanager
def running(
    plane: ControlPlane, installation: Installation, deployed: Any, change: Callable[[str], str]
) -> Iterator[Running]:
    """Run a Deployment's command under its account; `change` adapts a word to this machine."""
    pod = deployed["spec"]["template"]["spec"]
    container = pod["containers"][0]
    kubeconfig = plane.service_account_kubeconfig(installation.namespace, pod["serviceAccountName"])
    known = {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": installation.namespace}
    words = [*container["command"][1:], *container["args"]]
    words = [change(word.replace("$(POD_NAMESPACE)", installation.namespace)) for word in words]
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT, env=os.environ | known,
    ) as process:  # fmt: skip
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        try:
            token = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
            yield Running(process, token)
        finally:
            watchdog.cancel()
            process.kill()


@pytest.mark.parametrize("level", ["global", "local", "all"])
def test_a_planner_plans_under_its_account_and_never_says_its_token(
    control_plane: ControlPlane, installation: Installation, level: str
) -> None:
    deployed = next(
        each
        for layout in LAYOUTS
        for each in planner_deployments(dataclasses.replace(installation, layout=layout))
        if each["metadata"]["name"].startswith(f"hrl-planner-{level}")
    )

    def here(word: str) -> str:
        return "--health-port=0" if word.startswith("--health-port") else word

    with running(control_plane, installation, deployed, here) as planner:
        planner.wait_for("leads", '"level":')
        assert planner.stop() == 0
    said = "".join(planner.said)
    assert " 403 " not in said
    assert "orbidden" not in said
    assert planner.token not in said


def test_the_router_starts_under_its_account_and_never_says_its_token(
    control_plane: ControlPlane, installation: Installation, tmp_path: Path
) -> None:
    listen, metrics, grpc, admin = free_ports(4)
    files = router_config(installation)["data"]
    config = yaml.safe_load(files["router.yaml"])
    config["picker"] |= {"http_port": metrics, "grpc": f"127.0.0.1:{grpc}"}
    config["envoy"] |= {"listen": f"0.0.0.0:{listen}", "admin_port": admin}
    (tmp_path / "router.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "spec.yaml").write_text(files["spec.yaml"])

    def here(word: str) -> str:
        return f"--config={tmp_path / 'router.yaml'}" if word.startswith("--config") else word

    deployed = router_deployment(installation)
    with running(control_plane, installation, deployed, here) as router:
        router.wait_for("picker ready", "envoy ready")
        # The probes of its Deployment: live without a worker, ready with one.
        for port in (listen, metrics):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
                assert answer.status == 200
            with pytest.raises(urllib.error.HTTPError) as not_ready:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            not_ready.value.close()
            assert not_ready.value.code == 503
        assert router.stop() == 0
    said = "".join(router.said)
    assert " 403 " not in said
    assert router.token not in said
