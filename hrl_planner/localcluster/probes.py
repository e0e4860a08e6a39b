"""Probes of containers: asked again and again, and what counts is several answers in a row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import aiohttp

from hrl_planner.localcluster.podspec import Probe


async def verdicts(
    probe: Probe, address: str, session: aiohttp.ClientSession
) -> AsyncGenerator[bool, None]:
    """Yield each time a threshold is reached: True after enough successes, False after failures."""
    await asyncio.sleep(probe.delay_s)
    good = bad = 0
    while True:
        if await _ask(probe, address, session):
            good, bad = good + 1, 0
        else:
            good, bad = 0, bad + 1
        if good >= probe.successes:
            yield True
        elif bad >= probe.failures:
            yield False
        await asyncio.sleep(probe.period_s)


async def _ask(probe: Probe, address: str, session: aiohttp.ClientSession) -> bool:
    host = probe.host or address
    try:
        async with asyncio.timeout(probe.timeout_s):
            if probe.path is None:
                _, writer = await asyncio.open_connection(host, probe.port)
                writer.close()
                return True
            scheme = "https" if probe.https else "http"
            url = f"{scheme}://{host}:{probe.port}/{probe.path.lstrip('/')}"
            async with session.get(url, headers=dict(probe.headers), ssl=False) as response:
                return 200 <= response.status < 400
    except (OSError, aiohttp.ClientError, TimeoutError):
        return False
