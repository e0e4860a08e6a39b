"""What is wrong around planners when they start: one line and status 2; without an API server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("kubernetes")

from hrl_planner.cli import app
from tests.toy_router import free_port


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """The way to an API server that is not there."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], "
        f'clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{free_port()}"}}}}], '
        "users: [{name: u, user: {}}]}"
    )
    return path


def refusal(kubeconfig: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["plan", *arguments, "--kubeconfig", str(kubeconfig)])
    assert done.exit_code == 2, done.output
    assert done.output.count("\n") == 1
    return done.output


@pytest.mark.parametrize("how", ["--once", "--dry-run"])
@pytest.mark.parametrize("which", ["all", "local --pool p", "global --group g"])
def test_an_api_server_that_does_not_answer_is_named(
    kubeconfig: Path, which: str, how: str
) -> None:
    told = refusal(kubeconfig, *which.split(), how, "--no-metrics")
    assert told.startswith("error: the API server http://127.0.0.1:")
    assert "does not answer: " in told
    assert "refused" in told


def test_a_health_port_that_is_taken_is_named(kubeconfig: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        where = ["--health-host", "127.0.0.1", "--health-port", port]
        told = refusal(kubeconfig, "local", "--pool", "p", "--no-metrics", *where)
    assert f"--health-host 127.0.0.1, --health-port {port}: cannot listen: " in told
    assert "in use" in told


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"])
def test_a_health_host_that_is_not_ours_is_named(kubeconfig: Path, host: str) -> None:
    where = ["--health-host", host, "--health-port", "0"]
    told = refusal(kubeconfig, "local", "--pool", "p", "--no-metrics", *where)
    assert f"--health-host {host}, --health-port 0: cannot listen: " in told


def test_a_prometheus_that_can_be_none_is_named(kubeconfig: Path) -> None:
    told = refusal(kubeconfig, "all", "--prometheus", "notaurl")
    assert "prometheus: 'notaurl' is no URL of a server" in told
