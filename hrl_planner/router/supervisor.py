"""A small supervisor: children that are started, restarted when they die, drained, and ended.

Each child has a keeper that starts it, waits for its end and starts it again after a back-off; no
child's death touches another. SIGTERM or SIGINT drains: the caller's `drain` is awaited, up to a
limit, while the children go on (and are still restarted), then they are ended. A second signal ends
them at once. A child that dies again and again, or never becomes ready, also ends the whole, with
status 1 for whoever runs us to see; one that was given bad input (status 2 before it was ever
ready) does so at once, with status 2. Should the supervisor itself be killed, the kernel kills
them.

Nothing here knows what the children do.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_BAD_INPUT = 2  # what commands end with, argparse's as ours


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running.

    Attributes:
        name: in log lines.
        argv: the command.
        env: variables added to our own.
        ready: whether it does its work by now; asked again until it says so. None: once started.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Attributes:
        first_pause_s: before the first restart; doubles with each death in a row.
        longest_pause_s: where the doubling ends.
        steady_s: a child that lived this long is no longer in a row of deaths.
        deaths: in a row, that make a crash loop.
        ready_s: a child not ready by then is killed, which counts as a death.
        drain_s: how long a drain may take.
        stop_s: between SIGTERM and SIGKILL of a child.
    """

    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    steady_s: float = 30.0
    deaths: int = 6
    ready_s: float = 60.0
    drain_s: float = 120.0
    stop_s: float = 10.0


class _Hopeless(Exception):
    """A child cannot be kept running."""

    status = 1


class _CrashLoop(_Hopeless):
    """A child keeps dying."""


class _BadInput(_Hopeless):
    """A child was given what it cannot work with."""

    status = _BAD_INPUT


async def supervise(
    children: Iterable[Child],
    *,
    drain: Callable[[], Awaitable[None]],
    patience: Patience = Patience(),
) -> int:
    """Keep the children running until a signal or a hopeless one; returns the exit status."""
    keepers = [_Keeper(child, patience) for child in children]
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    told = asyncio.create_task(signals.get())
    keeping = [asyncio.create_task(keeper.keep()) for keeper in keepers]
    grace_s = patience.stop_s
    try:
        done, _ = await asyncio.wait({told, *keeping}, return_when=asyncio.FIRST_COMPLETED)
        failed = [task.exception() for task in keeping if task in done]
        for error in failed:
            _log.error("%s", error)
        _log.info("%s: draining", told.result().name if told in done else "a child is lost")
        told.cancel()
        # After a crash loop too: the other children may be in the middle of something.
        if not await _drained(signals, drain, patience.drain_s):
            grace_s = 0.0
        return max((getattr(error, "status", 1) for error in failed), default=0)
    finally:
        told.cancel()
        for task in keeping:
            task.cancel()
        await asyncio.gather(told, *keeping, return_exceptions=True)
        await asyncio.gather(*(keeper.stop(grace_s) for keeper in keepers))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _drained(
    signals: asyncio.Queue[signal.Signals], drain: Callable[[], Awaitable[None]], limit_s: float
) -> bool:
    """Wait for the drain, up to its limit; returns False once a signal asks for no more of that."""
    draining = asyncio.ensure_future(drain())
    again = asyncio.create_task(signals.get())
    try:
        done, _ = await asyncio.wait(
            {draining, again}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        draining.cancel()
        again.cancel()
    if again in done:
        _log.warning("%s again: stopping now", again.result().name)
        return False
    if draining not in done:
        _log.warning("not drained within %g s", limit_s)
    elif (error := draining.exception()) is not None:
        _log.warning("could not drain: %r", error)
    return True


class _Keeper:
    """Keeps one child running."""

    def __init__(self, child: Child, patience: Patience) -> None:
        self.child = child
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._was_ready = False

    async def keep(self) -> None:
        """Start the child over and over; ends only by raising."""
        deaths = 0
        pause_s = self._patience.first_pause_s
        while True:
            started_s = time.monotonic()
            how = await self._run_once()
            lived_s = time.monotonic() - started_s
            if not self._was_ready and self._status() == _BAD_INPUT:
                raise _BadInput(f"{self.child.name} cannot start: {how}; giving up")
            if lived_s >= self._patience.steady_s:
                deaths, pause_s = 0, self._patience.first_pause_s
            deaths += 1
            if deaths >= self._patience.deaths:
                raise _CrashLoop(
                    f"{self.child.name} died {deaths} times in a row, the last time after "
                    f"{lived_s:.1f} s: {how}; giving up"
                )
            _log.error(
                "%s died after %.1f s: %s; starting it again in %g s",
                self.child.name,
                lived_s,
                how,
                pause_s,
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._patience.longest_pause_s)

    async def _run_once(self) -> str:
        """Run the child to its end; returns how it ended."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.child.argv,
                env={**os.environ, **self.child.env},
                # A terminal's Ctrl-C is for us alone; we drain first.
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()),
            )
        except OSError as error:
            return f"{self.child.argv[0]}: {error.strerror}"
        _log.info("%s started, pid %d", self.child.name, self._process.pid)
        ended = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._wait_ready())
        try:
            await asyncio.wait(
                {ended, ready},
                timeout=self._patience.ready_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not ended.done() and not ready.done():
                self._process.kill()
                await ended
                return f"not ready within {self._patience.ready_s:g} s, killed"
            return _ending(await ended)
        finally:
            ready.cancel()
            ended.cancel()

    def _status(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def _wait_ready(self) -> None:
        started_s = time.monotonic()
        while self.child.ready is not None and not await self.child.ready():
            await asyncio.sleep(0.05)
        self._was_ready = True
        _log.info("%s ready after %.1f s", self.child.name, time.monotonic() - started_s)

    async def stop(self, grace_s: float) -> None:
        """End the child, by force after the grace."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if grace_s > 0:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_s)
                return
            except TimeoutError:
                _log.warning("%s did not stop within %g s: killed", self.child.name, grace_s)
        process.kill()
        await process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


# Looked up before any fork: a child between fork and exec must not import or lock.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with(parent: int) -> None:
    """Runs in the child: the kernel shall kill it when its parent ends, however that ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
