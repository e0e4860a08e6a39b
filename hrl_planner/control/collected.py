"""Planners hear from workers: the collector, run beside the planners' own thread.

Planners look when their round comes and never wait for a page. A thread with an event loop of its
own follows the pods and asks them once per scrape interval; a look copies the rows it has.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from hrl_planner.collect import Collector, PageSource, PoolWorker, Replicas, Target
from hrl_planner.observation import ClusterObservation, Float64Array
from hrl_planner.router.discovery import Discovery, Worker
from hrl_planner.spec import ClusterSpec

T = TypeVar("T")
log = logging.getLogger(__name__)

# A first look waits so long for the first pages; a later one never waits.
_FIRST_S = 10.0
_ANSWER_S = 120.0


class CollectedMetrics:
    """Metrics of the workers that discovery knows, as `PoolMetrics`.

    Args:
        discovery: tells the workers of all pools.
        routers: `ip:port` of the routers' metrics, for what only they know of classes.
        listen_s: how long the first look at a cluster listens; rates take two pages at least.
    """

    def __init__(
        self, discovery: Discovery, routers: Sequence[str] = (), listen_s: float = 0.0
    ) -> None:
        """See the class."""
        self._discovery = discovery
        self._listen_s = listen_s
        self._known_once = asyncio.Event()
        self._routers = [Target(address, address) for address in routers]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="metrics", daemon=True)
        self._following: asyncio.Task[None] | None = None
        self._workers: dict[str, PoolWorker] = {}
        self._spec: ClusterSpec | None = None
        self._collector: Collector | None = None

    def start(self) -> None:
        """Begin to follow the workers."""
        self._thread.start()
        self._wait_for(self._follow_in_background())

    def close(self) -> None:
        """Stop following, and end the thread."""
        self._wait_for(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        """Return rows per pool and per SLO class, see `PoolMetrics`."""
        seen = self._wait_for(self._look(spec, serving))
        return seen.pools, seen.classes

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    async def _look(self, spec: ClusterSpec, serving: Mapping[str, int]) -> ClusterObservation:
        if self._collector is None or spec != self._spec:
            await self._listen_to(spec)
        assert self._collector is not None
        # What else is known of replicas, planners put in themselves. Before discovery has told of
        # any worker, no pool is known to have none.
        least = 0 if self._known_once.is_set() else 1
        replicas = {p.name: Replicas(0, 0, max(least, serving[p.name])) for p in spec.pools}
        return self._collector.observe(replicas)

    async def _listen_to(self, spec: ClusterSpec) -> None:
        """Begin anew with another cluster: windows belong to its pools."""
        if self._collector is not None:
            await self._collector.close()
        self._spec = spec
        self._collector = Collector(spec, PageSource())
        self._collector.watch(self._workers.values(), self._routers)
        await self._collector.start()
        try:
            await asyncio.wait_for(self._collector.asked.wait(), _FIRST_S)
        except TimeoutError:
            log.warning("not every worker has answered within %g s", _FIRST_S)
        await asyncio.sleep(self._listen_s)

    async def _follow_in_background(self) -> None:
        self._following = asyncio.create_task(self._follow())
        known = asyncio.create_task(self._known_once.wait())
        done, _ = await asyncio.wait(
            {self._following, known}, timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED
        )
        known.cancel()
        if self._following in done:
            self._following.result()  # it never ends but by an error
        elif not done:
            log.warning("no workers are known after %g s", _FIRST_S)

    async def _follow(self) -> None:
        first = True
        async for snapshot in self._discovery.snapshots():
            since_s = float("-inf") if first else time.time()
            first = False
            self._workers = {
                worker.name: self._known(worker, since_s) for worker in snapshot.workers
            }
            self._known_once.set()
            if self._collector is not None:
                self._collector.watch(self._workers.values(), self._routers)

    def _known(self, worker: Worker, since_s: float) -> PoolWorker:
        """Return a worker as it is known, or as one that is ready from now on."""
        target = Target(worker.name, worker.address)
        known = self._workers.get(worker.name)
        if known is not None and (known.target, known.pool) == (target, worker.pool):
            return known
        return PoolWorker(target, worker.pool, since_s)

    async def _end(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._collector is not None:
            await self._collector.close()
        # What discovery left behind when it was cancelled.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
