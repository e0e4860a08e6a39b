"""A router as a child process on free ports of this machine: for demos, tests and benchmarks."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from hrl_planner.errors import RouterError

_READY_S = 180.0  # the rules may have to be compiled first
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class LocalRouter:
    """A running router.

    Attributes:
        url: for clients.
        picker_url: `/metrics`, `/debug/state`.
        admin_url: Envoy's.
        process: the supervisor.
        folder: where its config and log lie.
    """

    url: str
    picker_url: str
    admin_url: str
    process: asyncio.subprocess.Process
    folder: Path

    async def children(self) -> dict[str, int]:
        """Return the process ids of picker and Envoy, by `picker` and `envoy`."""
        found = {}
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in path.read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found["envoy" if b"--config-path" in command else "picker"] = int(pid)
        return found


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@asynccontextmanager
async def local_router(config: Mapping[str, Any], folder: Path) -> AsyncIterator[LocalRouter]:
    """Run a router until the block ends.

    Args:
        config: a router config; addresses are filled in.
        folder: for its config and log.

    Raises:
        RouterError: it did not become ready.
    """
    listen, admin, grpc, http = free_ports(4)
    envoy = {"listen": f"127.0.0.1:{listen}", "admin_port": admin, "concurrency": 1}
    picker = {"grpc": f"127.0.0.1:{grpc}", "http_port": http}
    data = {
        **config,
        "envoy": {**config.get("envoy", {}), **envoy},
        "picker": {**config.get("picker", {}), **picker},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "router.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    log_path = folder / "router.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hrl_planner.cli",
            "router",
            f"--config={path}",
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    router = LocalRouter(
        f"http://127.0.0.1:{listen}",
        f"http://127.0.0.1:{http}",
        f"http://127.0.0.1:{admin}",
        process,
        folder,
    )
    try:
        await _ready(router, log_path)
        yield router
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _ready(router: LocalRouter, log_path: Path) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _READY_S
    async with aiohttp.ClientSession() as session:
        while loop.time() < until_s and router.process.returncode is None:
            try:
                async with session.get(f"{router.url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    tail = log_path.read_text(errors="replace")[-2000:]
    raise RouterError(f"the router did not become ready; its log {log_path} ends:\n{tail}")
