"""A load run: send requests when they are due, and keep a measurement of each.

    open loop: due when the trace says         ->  Client -> Exchange -> LoadResult
    closed loop: due when a place is free      ->

The run and the server share a machine more often than not, so the client watches itself: how late
it sends, how late its event loop is, how much processor time it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hrl_planner.errors import LoadError
from hrl_planner.load._limits import raise_open_files
from hrl_planner.load.connection import Client, ErrorKind, Exchange, monotonic_s
from hrl_planner.load.options import Closed, LoadOptions, Pace, Target
from hrl_planner.load.prompts import Offered, RequestWriter, SloTarget, offer, offer_as
from hrl_planner.load.result import ClientHealth, LoadResult, Sent, collect
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace

_WATCH_S = 0.05
_PROGRESS_EVERY = 10  # watches
_YIELD_EVERY = 16  # requests sent in one go: answers must be read meanwhile


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    elapsed_s: float
    sent: int
    ended: int
    failed: int
    tokens: int


OnProgress = Callable[[Progress], None]


async def replay(
    requests: Trace | Offered,
    target: Target,
    options: LoadOptions | None = None,
    *,
    spec: ClusterSpec | None = None,
    slo: SloTarget | None = None,
    on_progress: OnProgress | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Send requests to an OpenAI endpoint and measure what comes back.

    Args:
        requests: a trace, or one whose requests have their classes already.
        target: where to.
        options: how.
        spec: gives each request of a trace its class, as the simulator does with the same seed.
        slo: without a spec, what every request of a trace was promised; None is nothing.
        on_progress: called twice a second.
        stop: ends the run once set; what was measured is kept, and requests on their way are
            marked "interrupted".

    Raises:
        LoadError: the trace is empty or the url is not one.
    """
    options = options or LoadOptions()
    if isinstance(requests, Offered):
        offered = requests
    elif spec is not None:
        offered = offer(requests, spec, options.seed)
    else:
        offered = offer_as(requests, slo or SloTarget())
    if len(offered.trace) == 0:
        raise LoadError(f"trace {offered.trace.name}: has no requests to send")
    raise_open_files()
    run = _Run(offered, target, options)
    return await run.result(on_progress, stop or asyncio.Event())


class _Run:
    """The state of one run."""

    def __init__(self, offered: Offered, target: Target, options: LoadOptions) -> None:
        self._offered, self._target, self._options = offered, target, options
        self._writer = RequestWriter(offered, target, options)
        self._client = Client(target.url, options.timeout_s, self._on_end)
        self._sent: list[Sent] = []
        self._ended = 0
        self._failed = 0
        self._tokens = 0
        self._stalls_s: list[float] = []
        self._start_s = 0.0
        self._duration_s = 0.0  # real seconds
        self._some_ended = asyncio.Event()

    async def result(self, on_progress: OnProgress | None, stop: asyncio.Event) -> LoadResult:
        cpu_s = time.process_time()
        self._start_s = monotonic_s()
        sending = asyncio.create_task(self._send())
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch(on_progress))
        try:
            done, _ = await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            interrupted = sending not in done
            if not interrupted:
                await sending  # for what went wrong in it
            self._give_up("interrupted" if interrupted else "unfinished")
        finally:
            tasks = (sending, stopping, watching)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()
        wall_s = monotonic_s() - self._start_s
        if interrupted:
            self._duration_s = wall_s
        return self._collect(wall_s, time.process_time() - cpu_s, interrupted)

    def _collect(self, wall_s: float, cpu_s: float, interrupted: bool) -> LoadResult:
        lags_s = [sent.exchange.sent_s - sent.due_s for sent in self._sent]
        return collect(
            self._sent,
            self._offered,
            self._target,
            self._options,
            self._start_s,
            duration_s=self._duration_s * self._options.engine_speed,
            wall_s=wall_s,
            interrupted=interrupted,
            client=ClientHealth(_p99_ms(lags_s), _p99_ms(self._stalls_s), cpu_s / wall_s),
        )

    # --- Sending --------------------------------------------------------------------------------

    async def _send(self) -> None:
        loop = self._options.loop
        if isinstance(loop, Pace):
            await self._send_at_pace(loop.speed)
        else:
            await self._send_closed(loop)

    async def _send_at_pace(self, speed: float) -> None:
        trace = self._offered.trace
        self._duration_s = trace.duration_s / speed
        for row, arrival_s in enumerate(trace.arrival_s.tolist()):
            request = self._writer.write(row)  # before it is due, so as not to make it late
            due_s = self._start_s + arrival_s / speed
            wait_s = due_s - monotonic_s()
            if wait_s > 0 or row % _YIELD_EVERY == 0:
                await asyncio.sleep(max(wait_s, 0.0))
            self._begin(row, request, due_s)
        await self._wait_for_rest()

    async def _send_closed(self, loop: Closed) -> None:
        """Keep so many requests on their way, then let the last ones end."""
        try:
            async with asyncio.timeout(loop.duration_s):
                await self._keep_sending(loop)
        except TimeoutError:
            self._duration_s = monotonic_s() - self._start_s
            await self._wait_for_rest()
        else:
            await self._wait_for_rest()
            self._duration_s = monotonic_s() - self._start_s

    async def _keep_sending(self, loop: Closed) -> None:
        rows = len(self._offered.trace)
        bound = loop.requests
        if bound is None and loop.duration_s is None:
            bound = rows
        while bound is None or len(self._sent) < bound:
            if len(self._client.running) >= loop.concurrency:
                await self._next_end()
                continue
            number = len(self._sent)
            request = self._writer.write(number % rows, number // rows)
            self._begin(number % rows, request, monotonic_s())
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _begin(self, row: int, request: bytes, due_s: float) -> None:
        exchange = Exchange(len(self._sent), request, self._options.stream)
        self._sent.append(Sent(row, due_s, exchange))
        self._client.send(exchange)

    def _on_end(self, exchange: Exchange) -> None:
        exchange.request = b""  # a long run need not keep every prompt
        self._ended += 1
        self._failed += exchange.error != ""
        self._tokens += exchange.meter.tokens if exchange.meter is not None else 0
        self._some_ended.set()

    async def _next_end(self) -> None:
        self._some_ended.clear()
        await self._some_ended.wait()

    async def _wait_for_rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.grace_s):
                while self._client.running:
                    await self._next_end()

    def _give_up(self, kind: ErrorKind) -> None:
        for exchange in list(self._client.running):
            self._client.stop(exchange, kind, "still running when the run ended")

    # --- Watching oneself -----------------------------------------------------------------------

    async def _watch(self, on_progress: OnProgress | None) -> None:
        due_s = monotonic_s()
        watches = 0
        while True:
            due_s += _WATCH_S
            await asyncio.sleep(due_s - monotonic_s())
            self._stalls_s.append(monotonic_s() - due_s)
            due_s = max(due_s, monotonic_s() - _WATCH_S)
            watches += 1
            if on_progress is not None and watches % _PROGRESS_EVERY == 0:
                elapsed_s = monotonic_s() - self._start_s
                on_progress(
                    Progress(elapsed_s, len(self._sent), self._ended, self._failed, self._tokens)
                )


def _p99_ms(values_s: list[float]) -> float:
    return 1e3 * float(np.quantile(values_s, 0.99)) if values_s else 0.0
