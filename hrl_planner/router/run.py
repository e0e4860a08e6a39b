"""The router as a process: a supervisor over Envoy and the picker, or the picker alone."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp
import uvloop

from hrl_planner.errors import RouterError
from hrl_planner.router import envoy
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.logs import set_up
from hrl_planner.router.supervisor import Child, Patience, supervise

# The first picker after an update compiles the rules.
_READY_S = 300.0


def run_picker(config: RouterConfig) -> int:
    """Serve questions until a signal; returns the exit status."""
    from hrl_planner.router.app import run

    set_up(config.log, "picker")
    uvloop.run(run(config))
    return 0


def run_router(path: Path, config: RouterConfig) -> int:
    """Keep Envoy and a picker running until a signal; returns the exit status."""
    set_up(config.log, "router")
    return asyncio.run(_supervise(path, config))


async def _supervise(path: Path, config: RouterConfig) -> int:
    data_plane = config.data_plane()
    metrics = f"http://{data_plane.picker_http}/metrics"
    # Its answers would pass for those of the picker that is started here.
    if await _answers(metrics):
        raise RouterError(
            f"picker.http_port: something answers at {metrics} already, another router perhaps"
        )
    picker = Child(
        "picker",
        (sys.executable, "-m", "hrl_planner.cli", "router", f"--config={path}", "--no-envoy"),
        ready=lambda: _answers(metrics),
    )
    with tempfile.TemporaryDirectory(prefix="hrl-planner-router-") as folder:
        children = [picker, envoy.child(data_plane, Path(folder) / "envoy.json")]
        return await supervise(
            children,
            drain=lambda: envoy.drain(data_plane),
            patience=Patience(ready_s=_READY_S),
        )


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False
