"""The planner's ears: asks a changing set of workers and routers, and says what it knows now.

`watch` takes the workers there are (from pods), `observe` the replica states (from the API server)
and returns the observation that the simulator returns too. In between a task asks everybody once
per scrape interval. Memory is bounded: a worker is remembered for a window, with one sample per
interval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hrl_planner.collect.assemble import Replicas, observe_cluster
from hrl_planner.collect.classes import ROUTER_PREFIXES, ClassWindow, read_router
from hrl_planner.collect.sample import WorkerSample
from hrl_planner.collect.source import Source, Target
from hrl_planner.collect.window import PoolTotals, PoolWindow, Timing
from hrl_planner.observation import ClusterObservation
from hrl_planner.spec import ClusterSpec
from hrl_planner.worker_metrics import HISTOGRAM_FAMILIES, SCALAR_FAMILIES, Series, read

log = logging.getLogger(__name__)
_WORKER_PREFIXES = tuple(SCALAR_FAMILIES | HISTOGRAM_FAMILIES)
# The least time a fresh engine compiles and fills caches, whatever the spec says of it.
GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class PoolWorker:
    """A worker that serves.

    Attributes:
        target: where its metrics are.
        pool: name of its pool.
        ready_since_s: when it became ready, by the collector's clock; minus infinity for one that
            was ready long before anybody looked.
    """

    target: Target
    pool: str
    ready_since_s: float


class Collector:
    """See the module.

    Args:
        spec: pools, classes and intervals.
        source: who asks.
        clock: seconds; the source's and that of `ready_since_s`.
        grace_s: at least so long after it was ready a worker's latencies are not believed.

    Attributes:
        asked: set once everybody was asked for the first time.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        source: Source,
        *,
        clock: Callable[[], float] = time.time,
        grace_s: float = GRACE_S,
    ) -> None:
        self._spec = spec
        self._source = source
        self._clock = clock
        self._interval_s = spec.intervals.scrape_s
        since_s = clock()
        self._windows = {
            pool.name: PoolWindow(
                Timing.of(spec.intervals, max(grace_s, pool.startup.warmup_s)), since_s
            )
            for pool in spec.pools
        }
        self._class_names = [kind.name for kind in spec.slo_classes]
        self._classes = ClassWindow(Timing.of(spec.intervals, 0.0), len(self._class_names), since_s)
        self._workers: dict[str, PoolWorker] = {}
        self._routers: dict[str, Target] = {}
        self._unreadable: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.asked = asyncio.Event()

    async def start(self) -> None:
        """Begin to ask."""
        await self._source.start()
        self._task = asyncio.create_task(self._run(), name="metrics collector")

    async def close(self) -> None:
        """Stop asking, and let go of all connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._source.close()

    def watch(self, workers: Iterable[PoolWorker], routers: Iterable[Target] = ()) -> None:
        """Say who serves now; workers of pools that the spec does not have are left alone."""
        self._workers = {w.target.name: w for w in workers if w.pool in self._windows}
        self._routers = {router.name: router for router in routers}
        self._unreadable &= {*self._workers, *self._routers}
        ready: dict[str, dict[str, float]] = {name: {} for name in self._windows}
        for name, worker in self._workers.items():
            ready[worker.pool][name] = worker.ready_since_s
        for pool, window in self._windows.items():
            window.set_workers(ready[pool])
        self._classes.set_routers(self._routers)

    def observe(
        self, replicas: Mapping[str, Replicas], now_s: float | None = None
    ) -> ClusterObservation:
        """Return what a policy may look at.

        Args:
            replicas: of every pool of the spec, by name.
            now_s: the clock's time where it is not given.
        """
        now_s = self._clock() if now_s is None else now_s
        watched = {worker.pool for worker in self._workers.values()}
        totals = {
            # Replicas that serve and that nobody told of: their traffic is unknown, not zero.
            name: window.totals(now_s)
            if name in watched or not replicas[name].ready
            else PoolTotals.unknown()
            for name, window in self._windows.items()
        }
        classes = self._classes.rows(now_s) if self._routers else None
        return observe_cluster(self._spec, now_s, replicas, totals, classes)

    async def _run(self) -> None:
        while True:
            began_s = time.monotonic()
            workers = [worker.target for worker in self._workers.values()]
            try:
                await asyncio.gather(
                    self._source.round(
                        workers, _WORKER_PREFIXES, self._interval_s, self._hear_worker
                    ),
                    self._source.round(
                        list(self._routers.values()),
                        ROUTER_PREFIXES,
                        self._interval_s,
                        self._hear_router,
                    ),
                )
            except Exception:  # a round must not be the last one
                log.exception("a round of metrics failed")
            self.asked.set()
            await asyncio.sleep(max(0.0, began_s + self._interval_s - time.monotonic()))

    def _hear_worker(self, name: str, at_s: float, series: Iterable[Series]) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return  # it went while it was asked
        sample = WorkerSample.of(read(series), at_s)
        if sample is None:
            self._tell_unreadable(name)
        else:
            self._windows[worker.pool].add(name, sample)

    def _hear_router(self, name: str, at_s: float, series: Iterable[Series]) -> None:
        counts = read_router(series, self._class_names)
        if counts is None:
            self._tell_unreadable(name)
        elif name in self._routers:
            self._classes.add(name, at_s, counts)

    def _tell_unreadable(self, name: str) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.warning("%s: a page has no known metrics", name)
