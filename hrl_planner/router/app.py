"""The picker process: every part built, joined, run, and taken down in order.

discovery ---> fleet, KV index, scraper      (a snapshot at a time)
scraper -----> fleet (alive), flights (true load), lengths (tokens generated)
Envoy -------> picker -> router -> Envoy     (a question at a time)
Envoy -------> picker -> outcomes            (ended answers, in batches)
clock -------> router.look                   (requests that wait, pauses that end)
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections import Counter

from hrl_planner.errors import RouterError
from hrl_planner.router.classes import Classes
from hrl_planner.router.config import DynamoFilesConfig, FileDiscoveryConfig, RouterConfig
from hrl_planner.router.desk import Desk
from hrl_planner.router.discovery import Discovery, Snapshot
from hrl_planner.router.fleet import Fleet
from hrl_planner.router.handoff import Handoff
from hrl_planner.router.hasher import PromptHasher
from hrl_planner.router.http import AdminServer
from hrl_planner.router.kv import FeedState, KvIndex
from hrl_planner.router.kv.plane import Store
from hrl_planner.router.kv.plane.file_store import FileStore
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.outcome import Outcomes
from hrl_planner.router.picker import Picker
from hrl_planner.router.progress import Progress
from hrl_planner.router.scrape import Scraper, WorkerMetrics
from hrl_planner.router.service import Router
from hrl_planner.router.warm import warm
from hrl_planner.routing import NOBODY

log = logging.getLogger(__name__)

# How often time is let pass: while requests wait for a place, and while none does.
_BUSY_TICK_S = 0.01
_IDLE_TICK_S = 0.1
_SWEEP_S = 30.0
_STOP_GRACE_S = 5.0


class PickerApp:
    """One picker: `start`, then `stop`."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        spec = config.cluster()
        classes = Classes(spec)
        self.metrics = RouterMetrics(classes.names)
        self.fleet = Fleet(spec, classes)
        hasher = PromptHasher(config.tokenizer, spec.kv_block_tokens)
        self.index = KvIndex(
            spec.kv_block_tokens,
            by_tokens=config.tokenizer.kind != "text",
            ttl_s=config.kv.ttl_s,
            dynamo=make_store(config),
        )
        self._handoff = Handoff(config.handoff)
        desk = Desk(config, self.fleet, self.index, self.metrics)
        self.router = Router(config, desk, classes, hasher, self._handoff, self.metrics)
        outcomes = Outcomes(self.router, self.metrics, log_requests=config.log.requests)
        self._picker = Picker(self.router, outcomes.refused, outcomes.ended)
        self._admin = AdminServer(
            self.router, self.metrics, config.served_models(), before_page=self._count_workers
        )
        self._scraper = Scraper(
            interval_s=config.scrape.interval_s,
            timeout_s=config.scrape.timeout_s,
            on_metrics=self._measured,
            on_presence=self._present,
        )
        self._progress = Progress(config.scrape.stalled_after_s)
        self._discovery = make_discovery(config)
        self._tasks: list[asyncio.Task[None]] = []
        self._known = asyncio.Event()
        self._gauges()

    async def start(self) -> tuple[str, int]:
        """Start everything; return the gRPC address and the HTTP port.

        Raises:
            RouterError: if discovery cannot say which workers there are, or an address of the
                picker cannot be listened on; KubeError where it is Kubernetes that cannot.
        """
        warm(self._config.cluster())
        await self._handoff.start()
        await self.index.start()
        await self._scraper.start()
        self._tasks += [asyncio.create_task(run) for run in (self._follow(), self._tick())]
        # Not before the first snapshot: an empty fleet would make requests wait for nothing.
        known = asyncio.create_task(self._known.wait())
        try:
            await asyncio.wait({known, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            known.cancel()
        for task in self._tasks:
            if task.done():
                task.result()
            task.add_done_callback(_die_with)
        address, port = await self._listen()
        log.info("picker is ready", extra={"grpc": address, "http_port": port})
        return address, port

    async def _listen(self) -> tuple[str, int]:
        """Open both addresses.

        Raises:
            RouterError: one is taken, or none of this machine's.
        """
        picker = self._config.picker
        try:
            address = await self._picker.start(picker.grpc)
        except RuntimeError as error:  # gRPC's own text does not say why either
            raise RouterError(
                f"picker.grpc: cannot listen on {picker.grpc!r}: taken, or no address of this "
                "machine"
            ) from error
        try:
            port = await self._admin.start(picker.http_host, picker.http_port)
        except OSError as error:
            raise RouterError(
                f"picker.http_host, picker.http_port: cannot listen on {picker.http_host!r}, port "
                f"{picker.http_port}: {error.strerror}"
            ) from error
        return address, port

    async def stop(self) -> None:
        """Finish the questions under way, then take everything down."""
        await self._picker.stop(_STOP_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._admin.stop()
        await self._scraper.close()
        await self.index.close()
        await self._handoff.close()

    async def _follow(self) -> None:
        async for snapshot in self._discovery.snapshots():
            self.take(snapshot)
            self._known.set()

    def take(self, snapshot: Snapshot) -> None:
        """Take over what discovery says."""
        gone = self.fleet.apply(snapshot, time.monotonic())
        for slot, name in gone.items():
            self.router.desk.flights.vacated(slot)
            self.index.drop_worker(slot)
            self.router.lengths.forget(name)
            self._progress.forget(name)
        for place in self.fleet:
            blocks = int(self.fleet.state.pools[place.pool]["kv_capacity_blocks"])
            self.index.add_worker(place.slot, place.worker, blocks)
        self._scraper.watch([place.worker for place in self.fleet])
        self.router.look()

    async def _tick(self) -> None:
        swept_s = time.monotonic()
        while True:
            busy = self.router.somebody_waits
            await asyncio.sleep(_BUSY_TICK_S if busy else _IDLE_TICK_S)
            self.router.look()
            if time.monotonic() - swept_s > _SWEEP_S:
                swept_s = time.monotonic()
                self.router.sweep()

    def _measured(self, name: str, found: WorkerMetrics) -> None:
        """Correct the books by a worker's metrics."""
        slot = self.fleet.slot(name)
        if slot == NOBODY:
            return
        if math.isfinite(found.generation_tokens_total):
            self.router.lengths.saw_generated(name, found.generation_tokens_total)
        if not math.isfinite(found.running):
            return
        stalled = self._progress.stalled(name, found)
        if self.fleet.set_stalled(name, stalled, time.monotonic()):
            log.warning("worker stalls" if stalled else "worker goes on", extra={"worker": name})
            self.router.look()
        in_engine = round(found.running + found.waiting)
        if self.router.desk.flights.correct(slot, time.monotonic(), in_engine, found.kv_use):
            self.router.look()

    def _present(self, name: str, alive: bool) -> None:
        """Note that a worker's process came or went."""
        if not alive:
            log.warning("worker is gone", extra={"worker": name})
        self.fleet.set_alive(name, alive, time.monotonic())
        self.router.look()

    def _count_workers(self) -> None:
        counts = Counter(
            {(pool.name, state): 0 for pool in self.fleet.spec.pools for state in _STATES}
        )
        for place in self.fleet:
            accepts = bool(self.fleet.state.load[place.slot]["accepting"])
            state = "draining" if place.worker.draining else "accepting" if accepts else "down"
            counts[place.worker.pool, state] += 1
        self.metrics.workers(dict(counts))
        states = Counter({state: 0 for state in FeedState})
        states.update(self.index.states().values())
        self.metrics.kv_states({state.value: count for state, count in states.items()})

    def _gauges(self) -> None:
        router, sizes = self.router, self.index.sizes
        gauge = self.metrics.gauge
        gauge("waiting", "Requests that wait for a place.", lambda: len(router.waiting))
        gauge("under_way", "Answers under way.", lambda: router.under_way)
        gauge("sessions", "Sessions remembered.", lambda: len(router.desk.sessions))
        gauge("kv_event_blocks", "Blocks told by engines.", lambda: sizes().event_blocks)
        gauge("kv_routed_blocks", "Blocks of own decisions.", lambda: sizes().routed_blocks)
        gauge(
            "bytes_per_token", "Bytes of a streamed token.", lambda: router.lengths.bytes_per_token
        )


_STATES = ("accepting", "draining", "down")


def make_discovery(config: RouterConfig) -> Discovery:
    """Return the configured source of workers."""
    if isinstance(config.discovery, FileDiscoveryConfig):
        from hrl_planner.router.discovery.file import FileDiscovery

        return FileDiscovery(config.discovery.path)
    from hrl_planner.router.discovery.kubernetes import KubernetesDiscovery

    found = config.discovery
    return KubernetesDiscovery(found.namespace, found.selector, found.group)


def make_store(config: RouterConfig) -> Store | None:
    """Return where Dynamo's workers tell of themselves, where there are any."""
    found = config.kv.dynamo
    if found is None:
        return None
    if isinstance(found, DynamoFilesConfig):
        return FileStore(found.path)
    from hrl_planner.router.kv.plane.kubernetes_store import KubernetesStore

    return KubernetesStore(found.namespace)


def _die_with(task: asyncio.Task[None]) -> None:
    """A picker whose inner loop has died must not go on answering: end, and be started anew."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("an inner loop ended", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


async def run(config: RouterConfig) -> None:
    """Run a picker until SIGTERM or SIGINT.

    Raises:
        RouterError: if discovery cannot say at the start which workers there are, or an address of
            the picker cannot be listened on; KubeError where it is Kubernetes that cannot.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    told = asyncio.create_task(ended.wait())
    app = PickerApp(config)
    starting = asyncio.create_task(app.start())
    try:
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await told
    finally:
        starting.cancel()
        told.cancel()
        await asyncio.gather(starting, told, return_exceptions=True)
        await app.stop()
