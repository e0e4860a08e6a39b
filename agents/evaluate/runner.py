"""Runs the cells of an evaluation in parallel processes and survives what may happen to them.

Workers are spawned, never forked: numba's threads and compiled state do not survive a fork. Each
worker writes its cell to the store itself, so a finished run is safe whatever becomes of the
parent. A cell that raises is recorded and the others go on. A worker that dies takes the whole
pool with it (that is how `ProcessPoolExecutor` works); the pool is rebuilt and the cells that were
under way are tried once more, one at a time, so that the one to blame is known.

What a cell is, how it is run and where it is kept, the runner does not know: `Jobs` and `CellStore`
are all it asks for, and both must be picklable.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from agents._workers import end_with_parent, one_thread_each
from hrl_planner.errors import HrlPlannerError

_POLL_S = 0.2


class Jobs(Protocol):
    """What is to be run. A cell is one run: hashable, and as text a name for people."""

    def cells(self) -> Sequence[Any]:
        """All runs, in the order in which they should be done."""

    def run(self, cell: Any, on_share: Callable[[float], None]) -> dict[str, Any]:
        """Do one run; `on_share` is told the share of it that is done."""

    def compile(self) -> None:
        """Compile what every run needs."""


class CellStore(Protocol):
    """Where finished runs are kept."""

    def has(self, cell: Any) -> bool:
        """Whether a run is finished."""

    def write(self, cell: Any, data: dict[str, Any]) -> None:
        """Keep a finished run, so that a kill at any moment leaves all of it or nothing."""

    def write_failure(self, cell: Any, details: str) -> Path:
        """Keep why a run failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that did not finish.

    Attributes:
        cell: which run.
        message: one line for people.
        log: file with the details.
    """

    cell: Hashable
    message: str
    log: Path


@dataclass(slots=True)
class Progress:
    """Where an evaluation stands, for a progress bar.

    Attributes:
        total: cells of the evaluation.
        skipped: cells that an earlier call had finished.
        done: cells finished by this call.
        failures: cells that failed in this call.
        under_way: simulated share, 0 to 1, of each cell that is running.
        compiling: the simulator is being compiled; happens once after it was changed.
    """

    total: int
    skipped: int
    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    under_way: dict[Hashable, float] = field(default_factory=dict)
    compiling: bool = False

    @property
    def share(self) -> float:
        """Share of this call's cells that is done, parts of running cells included."""
        todo = self.total - self.skipped
        finished = self.done + len(self.failures) + sum(self.under_way.values())
        return finished / todo if todo else 1.0


OnProgress = Callable[[Progress], None]


def run_cells(
    jobs: Jobs,
    store: CellStore,
    *,
    workers: int,
    on_progress: OnProgress,
    stop: Callable[[], bool] = lambda: False,
) -> list[Failure]:
    """Run every cell that the store does not have yet.

    Args:
        jobs: the runs.
        store: where finished ones are.
        workers: parallel processes; 1 runs in this process.
        on_progress: called several times a second.
        stop: asked before a cell is begun; once it says yes, what is under way is finished.

    Returns:
        The cells that failed.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the workers have been stopped.
    """
    cells = jobs.cells()
    todo = [cell for cell in cells if not store.has(cell)]
    progress = Progress(total=len(cells), skipped=len(cells) - len(todo))
    on_progress(progress)
    with _terminate_as_interrupt():
        if workers <= 1 or len(todo) <= 1:
            for cell in todo:
                if stop():
                    break
                _run_here(jobs, store, cell, progress, on_progress)
        else:
            _compile_once(jobs, progress, on_progress)
            _Pool(jobs, store, min(workers, len(todo)), progress, on_progress, stop).run(todo)
    return progress.failures


def _compile_once(jobs: Jobs, progress: Progress, on_progress: OnProgress) -> None:
    progress.compiling = True
    on_progress(progress)
    # What goes wrong here goes wrong in the cells too, and is reported there.
    with suppress(Exception):
        jobs.compile()
    progress.compiling = False
    on_progress(progress)


def _run_here(
    jobs: Jobs,
    store: CellStore,
    cell: Hashable,
    progress: Progress,
    on_progress: OnProgress,
) -> None:
    def on_share(share: float) -> None:
        progress.under_way[cell] = share
        on_progress(progress)

    problem = _attempt(jobs, store, cell, on_share)
    _settle(store, cell, problem, progress)
    on_progress(progress)


def _attempt(
    jobs: Jobs, store: CellStore, cell: Hashable, on_share: Callable[[float], None]
) -> tuple[str, str] | None:
    """Run and store a cell; None, or what went wrong as (message, details)."""
    try:
        store.write(cell, jobs.run(cell, on_share))
    except HrlPlannerError as error:
        return str(error), traceback.format_exc()
    except Exception as error:  # whatever it is, the other cells must not be lost with it
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    return None


def _settle(
    store: CellStore, cell: Hashable, problem: tuple[str, str] | None, progress: Progress
) -> None:
    progress.under_way.pop(cell, None)
    if problem is None:
        progress.done += 1
    else:
        message, details = problem
        log = store.write_failure(cell, details)
        progress.failures.append(Failure(cell, message, log))


class _Pool:
    """Worker processes, with at most one cell under way in each."""

    def __init__(
        self,
        jobs: Jobs,
        store: CellStore,
        workers: int,
        progress: Progress,
        on_progress: OnProgress,
        stop: Callable[[], bool],
    ) -> None:
        self._jobs = jobs
        self._stop = stop
        self._store = store
        self._workers = workers
        self._progress = progress
        self._on_progress = on_progress
        self._spawn = multiprocessing.get_context("spawn")
        # Shared memory through which workers tell how far they are; a slot per running cell.
        self._shares = self._spawn.Array("d", workers, lock=False)

    def run(self, cells: Sequence[Hashable]) -> None:
        """Run all cells."""
        waiting = deque(cells)
        suspects: deque[Hashable] = deque()
        while (waiting or suspects) and not self._stop():
            with one_thread_each():
                executor = ProcessPoolExecutor(
                    self._workers,
                    mp_context=self._spawn,
                    initializer=_initialize,
                    initargs=(self._shares,),
                )
                try:
                    died = self._drive(executor, waiting, suspects)
                except BaseException:
                    _stop(executor)
                    raise
                executor.shutdown(wait=True, cancel_futures=True)
            if len(died) == 1:
                problem = (
                    "the worker process died (out of memory?)",
                    "no traceback: it was killed",
                )
                _settle(self._store, died[0], problem, self._progress)
            suspects.extend(died if len(died) > 1 else ())

    def _drive(
        self, executor: ProcessPoolExecutor, waiting: deque[Hashable], suspects: deque[Hashable]
    ) -> list[Hashable]:
        """Feed the pool until all is done or it breaks; the cells that were then under way."""
        running: dict[Future[Any], tuple[Hashable, int]] = {}
        free = list(range(self._workers))
        while running or ((waiting or suspects) and not self._stop()):
            limit = 1 if suspects else self._workers
            while (waiting or suspects) and len(running) < limit and not self._stop():
                cell = suspects.popleft() if suspects else waiting.popleft()
                slot = free.pop()
                self._shares[slot] = 0.0
                try:
                    future = executor.submit(_work, self._jobs, self._store, cell, slot)
                except BrokenProcessPool:
                    return [cell, *(cell for cell, _ in running.values())]
                running[future] = (cell, slot)
            done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                return self._survivors(running)
            for future in done:
                cell, slot = running.pop(future)
                free.append(slot)
                _settle(self._store, cell, future.result(), self._progress)
            self._progress.under_way = {c: self._shares[s] for c, s in running.values()}
            self._on_progress(self._progress)
        return []

    def _survivors(self, running: dict[Future[Any], tuple[Hashable, int]]) -> list[Hashable]:
        """Settle what finished before the pool broke; the rest was lost with it."""
        lost = []
        for future, (cell, _) in running.items():
            if future.done() and future.exception() is None:
                _settle(self._store, cell, future.result(), self._progress)
            else:
                lost.append(cell)
        self._progress.under_way = {}
        return lost


_worker_shares: Any = None


def _initialize(shares: Any) -> None:
    """Set a worker up: it leaves Ctrl-C to the parent, which stops it, and ends with it."""
    global _worker_shares
    _worker_shares = shares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _work(jobs: Jobs, store: CellStore, cell: Hashable, slot: int) -> tuple[str, str] | None:
    def on_share(share: float) -> None:
        _worker_shares[slot] = share

    return _attempt(jobs, store, cell, on_share)


def _stop(executor: ProcessPoolExecutor) -> None:
    """End the workers now; what they were doing is not stored and will be done again."""
    executor.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM stops the evaluation as Ctrl-C does: workers ended, finished cells kept."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
