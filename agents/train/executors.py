"""Where jobs run: processes of this machine, or a Ray cluster; one face for both.

A job is a module-level function of plain arguments that returns something plain. One that raises,
or whose process dies, fails alone: `result` says why, and the others go on. So every local job has
a process of its own; a pool is lost as a whole with one worker that runs out of memory. Ray never
touches the learner: it carries whole training runs to whatever machines it has, and needs a file
system they share for the run folders.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any, Protocol

from agents._workers import children, end_with_parent, one_thread_each
from hrl_planner.errors import HrlPlannerError, TrainingError

BACKENDS = ("local", "ray")
# Spawned: a fork after numba's threads have started does not survive.
_SPAWN = multiprocessing.get_context("spawn")
# A node of Ray that is not up within Ray's own 30 s is begun again: on a busy machine the first
# start reads its programs from the disk, the next ones do not.
_RAY_STARTS = 3
# An interpreter that has answered takes a moment to end; one that hangs then is not waited for.
_LEAVE_S = 10.0


class JobFailed(Exception):
    """A job raised, or its process died: the message says which and why."""


class Executor(Protocol):
    """Runs jobs side by side."""

    width: int

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Begin a job; return a handle of it."""

    def finished(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return the handles of jobs that ended, after at most so long."""

    def result(self, handle: Any) -> Any:
        """Return what a job that ended returned.

        Raises:
            JobFailed: there is nothing, and why.
        """

    def close(self) -> None:
        """Stop everything."""


@dataclass(frozen=True)
class _Answer:
    """What a job came to.

    Attributes:
        value: what it returned.
        failure: why it returned nothing; None where it did.
    """

    value: Any = None
    failure: str | None = None

    def unwrap(self) -> Any:
        """Return the value, or raise JobFailed."""
        if self.failure is not None:
            raise JobFailed(self.failure)
        return self.value


def _attempt(job: Callable[..., Any], arguments: tuple[Any, ...]) -> _Answer:
    """Do a job where it was carried to."""
    try:
        return _Answer(job(*arguments))
    except HrlPlannerError as error:
        return _Answer(failure=str(error))
    except Exception as error:  # whatever it is, the other jobs must not be lost with it
        traceback.print_exc()  # a fault of the program: the message does not say where
        return _Answer(failure=f"{type(error).__name__}: {error}")


@dataclass(eq=False)
class _LocalJob:
    """A job of this machine.

    Attributes:
        job: the function.
        arguments: its arguments.
        answer: None until it ended.
    """

    job: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: _Answer | None = None


class LocalExecutor:
    """One process per core, each with one thread: better than threads inside one run.

    Args:
        width: jobs side by side; None for the cores there are.
    """

    def __init__(self, width: int | None = None) -> None:
        """See the class."""
        self.width = width or len(os.sched_getaffinity(0))
        self._waiting: deque[_LocalJob] = deque()
        self._running: dict[Connection, tuple[_LocalJob, SpawnProcess]] = {}

    def submit(self, job: Callable[..., Any], *arguments: Any) -> _LocalJob:
        """Begin a job, now or as soon as a core is free and `finished` is asked."""
        handle = _LocalJob(job, arguments)
        self._waiting.append(handle)
        self._start()
        return handle

    def finished(self, handles: Sequence[_LocalJob], timeout_s: float) -> list[_LocalJob]:
        """Return the jobs that ended."""
        if all(handle.answer is None for handle in handles):
            for pipe in multiprocessing.connection.wait(list(self._running), timeout_s):
                assert isinstance(pipe, Connection)
                self._collect(pipe)
            self._start()
        return [handle for handle in handles if handle.answer is not None]

    def result(self, handle: _LocalJob) -> Any:
        """Return what a job returned."""
        assert handle.answer is not None
        return handle.answer.unwrap()

    def close(self) -> None:
        """Stop everything; runs are saved at every update, so that they may be killed."""
        self._waiting.clear()
        processes = [process for _, process in self._running.values() if process.pid is not None]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for pipe in self._running:
            pipe.close()
        self._running.clear()

    def _start(self) -> None:
        """Give every free core a job."""
        while self._waiting and len(self._running) < self.width:
            handle = self._waiting.popleft()
            here, there = _SPAWN.Pipe(duplex=False)
            process = _SPAWN.Process(target=_work, args=(there, handle.job, handle.arguments))
            # Noted before it starts: a Ctrl-C in between must not leave it to itself.
            self._running[here] = (handle, process)
            with one_thread_each():
                process.start()
            there.close()  # so that the pipe ends with the process

    def _collect(self, pipe: Connection) -> None:
        """Take a job's answer, or note that its process ended without one."""
        handle, process = self._running.pop(pipe)
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            answer = None
        pipe.close()
        process.join(_LEAVE_S)
        if process.is_alive():
            process.kill()
            process.join()
        handle.answer = answer or _Answer(failure=_last_words(process.exitcode))


def _work(pipe: Connection, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Do a job in a process of its own, which leaves Ctrl-C to the parent and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    pipe.send(_attempt(job, arguments))


def _last_words(exitcode: int | None) -> str:
    """Return how a process ended that did not answer."""
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode}"
    guess = " (out of memory?)" if -exitcode == signal.SIGKILL else ""
    return f"its process died of signal {-exitcode}, {signal.strsignal(-exitcode)}{guess}"


class RayExecutor:
    """Jobs as Ray tasks of one core each, on the cluster of RAY_ADDRESS or a local one.

    Raises:
        TrainingError: there is no such cluster, or a local one does not start.
    """

    def __init__(self) -> None:
        """See the class."""
        import ray

        self._ray = ray
        if not ray.is_initialized():
            _start_ray(ray)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.width = max(1, int(resources.get("CPU", 1)))
        self._attempt = ray.remote(num_cpus=1, max_retries=0)(_attempt)

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Begin a job."""
        return self._attempt.remote(job, arguments)

    def finished(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return the jobs that ended."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)
        return list(done)

    def result(self, handle: Any) -> Any:
        """Return what a job returned."""
        try:
            answer: _Answer = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            raise JobFailed(f"{type(error).__name__}: {error}") from error
        return answer.unwrap()

    def close(self) -> None:
        """Leave the cluster; tasks of this driver end with it."""
        self._ray.shutdown()


def _start_ray(ray: ModuleType) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one.

    Raises:
        TrainingError: see RayExecutor.
    """
    for start in range(1, _RAY_STARTS + 1):
        others = children()
        try:
            ray.init(log_to_driver=False, configure_logging=True, include_dashboard=False)
            return
        except Exception as error:  # Ray raises plain ones too, as where a node starts too slowly
            ray.shutdown()
            # What a start that failed leaves behind, Ray itself forgets.
            for pid in children() - others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if start == _RAY_STARTS or "RAY_ADDRESS" in os.environ:
                raise TrainingError(f"backend ray: no cluster to work on: {error}") from error


@contextmanager
def open_executor(backend: str) -> Iterator[Executor]:
    """Return an executor that is closed afterwards.

    Raises:
        TrainingError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise TrainingError(f"--backend: unknown {backend!r}; one of {', '.join(BACKENDS)}")
    executor: Executor = RayExecutor() if backend == "ray" else LocalExecutor()
    try:
        yield executor
    finally:
        executor.close()
