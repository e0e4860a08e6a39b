"""Planners hear from workers: the collector, run beside the planners' own thread.

Planners look when their round comes and never wait for a page. A thread with an event loop of its
own follows the pods and asks them once per scrape interval; a look copies the rows it has. Each
group has a collector of its own, since windows belong to the pools of one cluster.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from hrl_planner.collect import Collector, PageSource, PoolWorker, Replicas, Source, Target
from hrl_planner.observation import ClusterObservation, Float64Array
from hrl_planner.router.discovery import Discovery, Worker
from hrl_planner.spec import ClusterSpec

T = TypeVar("T")
log = logging.getLogger(__name__)

# A first look waits so long for the first pages; a later one never waits.
_FIRST_S = 10.0
_AGAIN_S = 1.0
_ANSWER_S = 120.0
_FORGET_S = 600.0


class CollectedMetrics:
    """Metrics of the workers that discovery knows, as `PoolMetrics`.

    Args:
        discovery: tells the workers of all pools.
        routers: `ip:port` of the routers' metrics, for what only they know of classes.
        listen_s: how long the first look at a cluster listens; rates take two pages at least.
        source: makes who asks the workers.
    """

    def __init__(
        self,
        discovery: Discovery,
        routers: Sequence[str] = (),
        listen_s: float = 0.0,
        source: Callable[[], Source] = PageSource,
    ) -> None:
        """See the class."""
        self._discovery = discovery
        self._listen_s = listen_s
        self._source = source
        self._known_once = asyncio.Event()
        self._routers = [Target(address, address) for address in routers]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="metrics", daemon=True)
        self._following: asyncio.Task[None] | None = None
        self._started = False
        self._workers: dict[str, PoolWorker] = {}
        self._listening: dict[str, _Listening] = {}

    def start(self) -> None:
        """Begin to follow the workers.

        Raises:
            HrlPlannerError: if nobody can tell them.
        """
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
        await self._forget()
        listening = self._listening.get(spec.name)
        if listening is None or (spec is not listening.spec and spec != listening.spec):
            listening = _Listening(
                spec, self._workers.values(), self._routers, self._listen_s, self._source()
            )
            before = self._listening.get(spec.name)
            self._listening[spec.name] = listening
            if before is not None:
                await before.close()
        if not self._known_once.is_set():  # no pool is known to have no workers
            serving = {name: max(count, 1) for name, count in serving.items()}
        return await listening.look(serving)

    async def _forget(self) -> None:
        """End listening to groups that nobody plans for any more."""
        until_s = time.monotonic() - _FORGET_S
        old = [name for name, each in self._listening.items() if each.looked_s < until_s]
        for name in old:
            await self._listening.pop(name).close()

    async def _follow_in_background(self) -> None:
        self._following = asyncio.create_task(self._keep_following())
        known = asyncio.create_task(self._known_once.wait())
        done, _ = await asyncio.wait(
            {self._following, known}, timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED
        )
        known.cancel()
        if self._following in done:
            self._following.result()  # it never ends but by an error
        elif not done:
            log.warning("no workers are known after %g s", _FIRST_S)
        self._started = True

    async def _keep_following(self) -> None:
        """Follow the workers, and begin anew whenever that ends; what ends the start ends it."""
        complaint = ""
        while True:
            try:
                await self._follow()
            except Exception as error:
                if not self._started:
                    raise
                level = logging.DEBUG if repr(error) == complaint else logging.WARNING
                complaint = repr(error)
                log.log(level, "workers are not followed: %s; again in %g s", complaint, _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)

    async def _follow(self) -> None:
        async for snapshot in self._discovery.snapshots():
            since_s = time.time() if self._known_once.is_set() else float("-inf")
            self._workers = {
                worker.name: self._known(worker, since_s) for worker in snapshot.workers
            }
            self._known_once.set()
            for listening in self._listening.values():
                listening.watch(self._workers.values(), self._routers)

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
        for listening in self._listening.values():
            await listening.close()
        # What discovery left behind when it was cancelled.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class _Listening:
    """What is heard of one group's cluster, from the moment this is made.

    Windows belong to the pools of one cluster: when its description changes, another begins.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        workers: Collection[PoolWorker],
        routers: Collection[Target],
        listen_s: float,
        source: Source,
    ) -> None:
        self.spec = spec
        self.looked_s = time.monotonic()
        self._collector = Collector(spec, source)
        self.watch(workers, routers)
        self._began = asyncio.create_task(self._begin(listen_s))

    def watch(self, workers: Collection[PoolWorker], routers: Collection[Target]) -> None:
        """Say who serves now."""
        self._collector.watch(workers, routers)

    async def look(self, serving: Mapping[str, int]) -> ClusterObservation:
        """Return what is known; the first looks wait for the first pages."""
        self.looked_s = time.monotonic()
        await asyncio.wait({self._began})
        # What else is known of replicas, planners put in themselves.
        replicas = {pool.name: Replicas(0, 0, serving[pool.name]) for pool in self.spec.pools}
        return self._collector.observe(replicas)

    async def close(self) -> None:
        """Stop asking."""
        self._began.cancel()
        await asyncio.gather(self._began, return_exceptions=True)
        await self._collector.close()

    async def _begin(self, listen_s: float) -> None:
        await self._collector.start()
        try:
            await asyncio.wait_for(self._collector.asked.wait(), _FIRST_S)
        except TimeoutError:
            log.warning("%s: not every worker has answered within %g s", self.spec.name, _FIRST_S)
        await asyncio.sleep(listen_s)
