"""Kubeconfigs that are none: one line that names the file, for programs of both kinds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("kubernetes")

from hrl_planner.cli import app
from hrl_planner.errors import KubeError
from hrl_planner.kube.access import blocking_client, find_configuration

CONFIG = (
    b"{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], "
    b'clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", %s}}], '
    b"users: [{name: u, user: {client-certificate-data: Z2FyYmFnZQ==, "
    b"client-key-data: Z2FyYmFnZQ==}}]}"
)
BROKEN = {
    "bytes that are no text": b"\xff\xfe\x00",
    "no mapping": b"[]\n",
    "no context": b"a: 1\n",
    "no YAML": b"a: [\n",
    "a context of another type": b"current-context: a\ncontexts: [{name: a, context: x}]\n",
    "an authority that is no certificate": CONFIG % b"certificate-authority-data: Z2FyYmFnZQ==",
    "a client certificate that is none": CONFIG % b"insecure-skip-tls-verify: true",
    "a list of other things": b"current-context: a\ncontexts: [1]\n",
}


@pytest.fixture(params=BROKEN.values(), ids=list(BROKEN))
def kubeconfig(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(request.param)
    return path


def test_a_file_that_is_no_kubeconfig_is_named_in_one_line(kubeconfig: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "all", "--kubeconfig", str(kubeconfig)])
    assert done.exit_code == 2
    assert done.output.startswith(f"error: no way to the API server: kubeconfig {kubeconfig}: ")
    assert done.output.count("\n") == 1


def test_programs_of_an_event_loop_are_told_the_same(kubeconfig: Path) -> None:
    with pytest.raises(KubeError, match=f"kubeconfig {kubeconfig}: "):
        asyncio.run(find_configuration(kubeconfig))


def test_the_file_of_the_environment_is_named_too(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeError, match=f"kubeconfig {kubeconfig}: "):
        blocking_client()


def test_in_a_pod_it_is_the_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT", raising=False)
    with pytest.raises(KubeError, match="the pod's service account: "):
        blocking_client()
