"""What workers say of themselves: their metrics, and whether they are there at all.

Per worker two tasks. One asks `/metrics` each interval and reads the few families a router needs,
whatever the engine calls them. The other holds an idle TCP connection open: its end, a moment
after a process died, is followed by an attempt to open another, and a refusal means that the
worker is gone. Servers also close idle connections for no reason; then the attempt succeeds and
nobody hears of it. A worker that takes connections but leaves several scrapes in a row unanswered
hangs, and counts as gone until it answers one.

Nothing here knows pools, load or routing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from hrl_planner.router.discovery.base import Worker
from hrl_planner.worker_metrics import SCALARS, Counter, Gauge, read, series_of

_log = logging.getLogger(__name__)

# The few families a router needs: gauges and token counters, no histograms.
_WANTED: tuple[Gauge | Counter, ...] = (
    "running",
    "waiting",
    "kv_use",
    "prompt_tokens",
    "generated_tokens",
)
_PREFIXES = tuple({name for what in _WANTED for names in SCALARS[what] for name in names})
_AT_ONCE = 64
_LONGEST_PAGE_BYTES = 4 << 20
_SILENT_SCRAPES = 5
_CONNECT_S = 2.0
_GONE_RETRY_S = 0.5
# A connection that ended sooner than this was not idle; the next attempts take their time.
_SHORT_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """One scrape of one worker; NaN where its engine does not say.

    Attributes:
        running: requests in the batch.
        waiting: requests in the engine's queue.
        kv_use: share of KV blocks in use, 0 to 1.
        prompt_tokens_total: prompt tokens computed since the engine's start.
        generation_tokens_total: tokens generated since then.
        at_s: monotonic time of the scrape.
    """

    running: float
    waiting: float
    kv_use: float
    prompt_tokens_total: float
    generation_tokens_total: float
    at_s: float


def parse(page: str, at_s: float) -> WorkerMetrics | None:
    """Read a page of metrics; None if it has none of the known families.

    Raises:
        ValueError: one of them is not in the format.
    """
    found = read(series_of(page, _PREFIXES), histograms=False).scalars
    if not found:
        return None
    return WorkerMetrics(
        running=found.get("running", math.nan),
        waiting=found.get("waiting", 0.0),
        kv_use=found.get("kv_use", math.nan),
        prompt_tokens_total=found.get("prompt_tokens", math.nan),
        generation_tokens_total=found.get("generated_tokens", math.nan),
        at_s=at_s,
    )


class Scraper:
    """Watches a changing set of workers.

    Args:
        interval_s: between two scrapes of one worker.
        timeout_s: of one scrape.
        on_metrics: called with a worker's name and each scrape.
        on_presence: called with a worker's name and whether it is there, once at the beginning and
            then whenever that changes.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        timeout_s: float,
        on_metrics: Callable[[str, WorkerMetrics], None],
        on_presence: Callable[[str, bool], None],
    ) -> None:
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.on_metrics = on_metrics
        self.on_presence = on_presence
        self.at_once = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self._watches: dict[str, _Watch] = {}

    async def start(self) -> None:
        """Get ready; `watch` says whom to watch."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(self.timeout_s)
        )

    async def close(self) -> None:
        """Stop watching, and wait for it to have stopped."""
        if self._session is None:
            return
        watches = list(self._watches.values())
        self.watch([])
        await asyncio.gather(*(watch.ended() for watch in watches))
        await self._session.close()

    def watch(self, workers: Iterable[Worker]) -> None:
        """Watch these workers from now on and no others."""
        if self._session is None:
            raise RuntimeError("start() comes first")
        wanted = {worker.name: worker.address for worker in workers}
        for name, watch in list(self._watches.items()):
            if wanted.get(name) != watch.address:
                watch.cancel()
                del self._watches[name]
        for name, address in wanted.items():
            if name not in self._watches:
                self._watches[name] = _Watch(name, address, self, self._session)


class _Watch:
    """One worker under watch."""

    def __init__(
        self, name: str, address: str, scraper: Scraper, session: aiohttp.ClientSession
    ) -> None:
        self.address = address
        self._name = name
        self._scraper = scraper
        self._session = session
        self._connected = asyncio.Event()
        self._silent_scrapes = 0
        self._told: bool | None = None
        self._tasks = [
            asyncio.create_task(self._hold(), name=f"presence of {name}"),
            asyncio.create_task(self._scrape(), name=f"metrics of {name}"),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        await asyncio.wait(self._tasks)

    def _tell(self) -> None:
        alive = self._connected.is_set() and self._silent_scrapes < _SILENT_SCRAPES
        if alive != self._told:
            self._told = alive
            self._scraper.on_presence(self._name, alive)

    async def _hold(self) -> None:
        """Hold a connection open; its end is the first sign of a death."""
        host, _, port = self.address.rpartition(":")
        pause_s = 0.0
        while True:
            opened_s = time.monotonic()
            try:
                async with asyncio.timeout(_CONNECT_S):
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, TimeoutError):
                self._connected.clear()
                self._silent_scrapes = 0
                self._tell()
                await asyncio.sleep(_GONE_RETRY_S)
                continue
            try:
                _probe_when_idle(writer)
                self._connected.set()
                self._tell()
                await reader.read(1)
            except OSError:
                pass
            finally:
                writer.close()
            lived_s = time.monotonic() - opened_s
            pause_s = min(1.0, 2 * pause_s + 0.02) if lived_s < _SHORT_S else 0.0
            await asyncio.sleep(pause_s)

    async def _scrape(self) -> None:
        interval_s = self._scraper.interval_s
        await asyncio.sleep(random.random() * interval_s)
        while True:
            await self._connected.wait()
            async with self._scraper.at_once:
                metrics, answered = await self._ask()
            self._silent_scrapes = 0 if answered else self._silent_scrapes + 1
            self._tell()
            if metrics is not None:
                self._scraper.on_metrics(self._name, metrics)
            await asyncio.sleep(interval_s * random.uniform(0.9, 1.1))

    async def _ask(self) -> tuple[WorkerMetrics | None, bool]:
        """Return what `/metrics` says, and whether it answered at all."""
        try:
            async with self._session.get(f"http://{self.address}/metrics") as response:
                if response.status != 200:
                    return None, True
                page = bytearray()
                async for chunk in response.content.iter_any():
                    page += chunk
                    if len(page) > _LONGEST_PAGE_BYTES:
                        return None, True
            return parse(page.decode(errors="replace"), time.monotonic()), True
        except ValueError:
            return None, True
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None, False


def _probe_when_idle(writer: asyncio.StreamWriter) -> None:
    """Notice within some 11 s a host that is gone without a word."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended", task.get_name(), exc_info=error)
