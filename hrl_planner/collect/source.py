"""Where samples come from: workers' pages themselves, or a Prometheus that scrapes them.

A source works in rounds: it is told whom to ask and within what time, and hands over what it heard
of each. It knows nothing of pools or windows, and keeps nothing but its connections.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from hrl_planner.worker_metrics import Series, series_of

log = logging.getLogger(__name__)
_LONGEST_PAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Somebody to ask.

    Attributes:
        name: of the worker or router, unique in the cluster; its pod's name under Prometheus.
        address: `host:port` of its HTTP server.
        path: of its page.
    """

    name: str
    address: str
    path: str = "/metrics"


Heard = Callable[[str, float, Iterable[Series]], None]
"""Called with a target's name, the time of the sample and its series."""


class Source(Protocol):
    """Asks targets."""

    async def start(self) -> None:
        """Get ready."""

    async def close(self) -> None:
        """Let go of all connections."""

    async def round(
        self, targets: Sequence[Target], prefixes: tuple[str, ...], within_s: float, heard: Heard
    ) -> None:
        """Ask every target once for the series whose names begin with one of `prefixes`.

        A target that does not answer is not heard; nothing is raised for it.
        """


class PageSource:
    """Asks the targets themselves.

    Every target has its moment in a round, by its name, so that they are not all asked at once and
    the time between two samples of one is steady.

    Args:
        clock: time of the samples, seconds.
        timeout_s: for one page.
        at_once: pages asked for at a time.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, timeout_s: float = 2.0, at_once: int = 64
    ) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._at_once = asyncio.Semaphore(at_once)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """See Source."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )

    async def close(self) -> None:
        """See Source."""
        if self._session is not None:
            await self._session.close()

    async def round(
        self, targets: Sequence[Target], prefixes: tuple[str, ...], within_s: float, heard: Heard
    ) -> None:
        """See Source."""
        spread_s = max(0.0, within_s - self._timeout_s)
        await asyncio.gather(*(self._ask(t, prefixes, spread_s, heard) for t in targets))

    async def _ask(
        self, target: Target, prefixes: tuple[str, ...], spread_s: float, heard: Heard
    ) -> None:
        assert self._session is not None, "start() comes first"
        await asyncio.sleep(spread_s * _phase(target.name))
        try:
            async with (
                self._at_once,
                self._session.get(f"http://{target.address}{target.path}") as response,
            ):
                response.raise_for_status()
                page = bytearray()
                async for chunk in response.content.iter_any():
                    page += chunk
                    if len(page) > _LONGEST_PAGE_BYTES:
                        raise ValueError(f"a page of more than {_LONGEST_PAGE_BYTES} bytes")
                at_s = self._clock()
            heard(target.name, at_s, list(series_of(page.decode(errors="replace"), prefixes)))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.debug("%s: no metrics: %s", target.name, str(error) or repr(error))


def _phase(name: str) -> float:
    """Return a number in [0, 1) that is always the same for a name."""
    return zlib.crc32(name.encode()) / 2**32
