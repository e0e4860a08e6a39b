"""Where jobs run: processes of this machine, or a Ray cluster; one face for both.

A job is a module-level function of plain arguments that returns something plain. Ray never touches
the learner: it carries whole training runs to whatever machines it has, and needs a file system
they share for the run folders.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

from agents._threads import one_thread_each
from hrl_planner.errors import TrainingError

BACKENDS = ("local", "ray")


class Executor(Protocol):
    """Runs jobs side by side."""

    width: int

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Begin a job; return a handle of it."""

    def finished(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return the handles of jobs that ended, after at most so long."""

    def result(self, handle: Any) -> Any:
        """Return what a job that ended returned, or raise what it raised."""

    def close(self) -> None:
        """Stop everything."""


class LocalExecutor:
    """One process per core, each with one thread: better than threads inside one run.

    Args:
        width: jobs side by side; None for the cores there are.
    """

    def __init__(self, width: int | None = None) -> None:
        """See the class."""
        self.width = width or len(os.sched_getaffinity(0))
        with one_thread_each():
            # Spawned: a fork after numba's threads have started does not survive.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.width, context, max_tasks_per_child=1)

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a job."""
        with one_thread_each():
            return self._pool.submit(job, *arguments)

    def finished(self, handles: Sequence[Future[Any]], timeout_s: float) -> list[Future[Any]]:
        """Return the jobs that ended."""
        done, _ = wait(handles, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [handle for handle in handles if handle in done]

    def result(self, handle: Future[Any]) -> Any:
        """Return what a job returned."""
        return handle.result()

    def close(self) -> None:
        """Stop everything; runs are saved at every update."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


class RayExecutor:
    """Jobs as Ray tasks of one core each, on the cluster of RAY_ADDRESS or a local one."""

    def __init__(self) -> None:
        """See the class."""
        import ray

        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=True, include_dashboard=False)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.width = max(1, int(resources.get("CPU", 1)))

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Begin a job."""
        remote = self._ray.remote(num_cpus=1, max_retries=0)(job)
        return remote.remote(*arguments)

    def finished(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return the jobs that ended."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)
        return list(done)

    def result(self, handle: Any) -> Any:
        """Return what a job returned."""
        return self._ray.get(handle)

    def close(self) -> None:
        """Leave the cluster; tasks of this driver end with it."""
        self._ray.shutdown()


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
