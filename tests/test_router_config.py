"""Addresses of a router's config: refused where they cannot be, named where they are taken."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.errors import RouterError
from hrl_planner.router.app import run
from hrl_planner.router.config import RouterConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a workers file."""
    (tmp_path / "workers.yaml").write_text(
        "workers: [{name: d0, pool: decode-h100, address: '127.0.0.1:9'}]\n"
    )
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def write(folder: Path, **picker: object) -> Path:
    path = folder / "router.yaml"
    discovery = {"kind": "file", "path": "workers.yaml"}
    path.write_text(yaml.safe_dump({"spec": "small", "discovery": discovery, "picker": picker}))
    return path


def start(folder: Path, **picker: object) -> None:
    """Run a picker that is expected not to start."""
    config = RouterConfig.load(write(folder, **picker))
    asyncio.run(asyncio.wait_for(run(config), 60))


@pytest.mark.parametrize("address", ["nonsense", "unix:", "h:99999", "h:", ":1", "a b:1", "h/x:1"])
def test_a_picker_address_that_cannot_be_is_refused_with_the_field(
    folder: Path, address: str
) -> None:
    path = write(folder, grpc=address)
    done = CliRunner().invoke(app, ["router", "--config", str(path), "--check"])
    assert done.exit_code == 2
    assert f"error: {path}: picker.grpc: must be HOST:PORT" in done.output
    assert repr(address) in done.output


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "[::1]:9002", "picker.llm:65535", "unix:/run/p.sock", "unix:p.sock"]
)
def test_a_picker_may_listen_on_a_port_or_a_socket(folder: Path, address: str) -> None:
    assert RouterConfig.load(write(folder, grpc=address)).picker.grpc == address


def test_an_address_that_is_not_this_machines_is_named(folder: Path) -> None:
    with pytest.raises(RouterError, match=r"picker\.grpc: cannot listen on '192\.0\.2\.1:9002'"):
        start(folder, grpc="192.0.2.1:9002", http_port=0)


def test_a_taken_http_port_is_named(folder: Path, taken: int) -> None:
    said = f"picker.http_host, picker.http_port: cannot listen on '127.0.0.1', port {taken}: "
    with pytest.raises(RouterError, match=re.escape(said)):
        start(folder, grpc="127.0.0.1:0", http_port=taken)


@pytest.mark.parametrize("envoy", [{"listen": "127.0.0.1:99999"}, {"admin_port": 70000}])
def test_ports_of_envoy_that_cannot_be_are_refused(folder: Path, envoy: dict[str, object]) -> None:
    path = write(folder)
    path.write_text(path.read_text() + yaml.safe_dump({"envoy": envoy}))
    (field, value), *_ = envoy.items()
    with pytest.raises(RouterError, match=rf"envoy.*{field}.*{value}"):
        RouterConfig.load(path)


class _Ok(BaseHTTPRequestHandler):
    """Answers everything with 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_router_does_not_take_another_ones_answers_for_its_own(folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ok) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        path = write(folder, http_port=other.server_address[1])
        done = CliRunner().invoke(app, ["router", "--config", str(path)])
        other.shutdown()
    assert done.exit_code == 2
    assert "picker.http_port: something answers at" in done.output
