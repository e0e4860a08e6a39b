"""Where jobs run: each alone with its faults, all with one thread, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.train.executors import Executor, JobFailed, LocalExecutor, open_executor
from hrl_planner.errors import TrainingError

BACKENDS = ["local", pytest.param("ray", marks=pytest.mark.slow)]


def same(value: Any) -> Any:
    return value


def first_environment() -> dict[str, str]:
    """What this process was started with, before any import could read it."""
    pairs = Path("/proc/self/environ").read_bytes().decode().strip("\0").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def refuse() -> None:
    raise TrainingError("steps: 0 are too few")


def err() -> None:
    raise RuntimeError("the tensors do not fit")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def linger(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(120.0)


def outcomes(executor: Executor, *jobs: tuple[Callable[..., Any], *tuple[Any, ...]]) -> list[Any]:
    """What every job returned, or why it failed."""
    handles = [executor.submit(*job) for job in jobs]
    waiting = list(handles)
    while waiting:
        for handle in executor.finished(waiting, 0.5):
            waiting.remove(handle)
    return [outcome(executor, handle) for handle in handles]


def outcome(executor: Executor, handle: Any) -> Any:
    try:
        return executor.result(handle)
    except JobFailed as error:
        return f"failed: {error}"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return condition()


def ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""  # ended, but nobody noticed yet
    except FileNotFoundError:
        return True


def test_every_job_starts_with_one_thread_per_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "7")
    executor = LocalExecutor(1)
    seen = outcomes(executor, *[(first_environment,)] * 3)
    executor.close()
    assert [[env[name] for name in names] for env in seen] == [["1", "1", "1"]] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_fails_alone(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "ray":
        request.getfixturevalue("ray_alone")
    with open_executor(backend) as executor:
        got = outcomes(executor, (same, 1), (refuse,), (err,), (die,), (leave,), (same, 2))
    assert (got[0], got[-1]) == (1, 2)
    assert got[1] == "failed: steps: 0 are too few"
    assert got[2] == "failed: RuntimeError: the tensors do not fit"
    died = ("signal 9", "status 3") if backend == "local" else ("WorkerCrashed", "WorkerCrashed")
    for reason, said in zip(got[3:5], died, strict=True):
        assert reason.startswith("failed: ")
        assert said in reason


def test_nothing_is_left_once_the_last_result_is_in(capfd: pytest.CaptureFixture[str]) -> None:
    executor = LocalExecutor(2)
    assert outcomes(executor, *((same, i) for i in range(5))) == list(range(5))
    assert multiprocessing.active_children() == []
    executor.close()
    assert capfd.readouterr().err == ""


def test_closing_ends_at_once_what_runs_and_what_waits(tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    for name in ("runs", "waits"):
        executor.submit(linger, str(tmp_path / name))
    assert wait_for(lambda: (tmp_path / "runs").exists())
    began_s = time.monotonic()
    executor.close()
    assert time.monotonic() - began_s < 10.0
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "waits").exists()


def test_jobs_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = tmp_path / "script.py"
    script.write_text(
        "from agents.train.executors import LocalExecutor\n"
        "from tests.test_train_executors import linger\n"
        "if __name__ == '__main__':\n"
        "    executor = LocalExecutor(1)\n"
        f"    executor.finished([executor.submit(linger, {str(note)!r})], 120.0)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    assert wait_for(lambda: note.exists() and note.read_text() != "")
    parent.kill()
    parent.wait()
    assert wait_for(lambda: ended(note.read_text()), 20.0)


class SlowRay:
    """Stands in for `ray.init` where a node is too slow: its servers run on, it gives up."""

    def __init__(self) -> None:
        self.servers: list[subprocess.Popen[bytes]] = []

    def __call__(self, **_: object) -> None:
        self.servers.append(subprocess.Popen(["sleep", "120"]))
        raise Exception("the node timed out during startup")

    def ended(self) -> list[int]:
        return [server.wait(10.0) for server in self.servers]


@pytest.mark.parametrize(("address", "starts"), [("", 3), ("10.0.0.1:6379", 1)])
def test_a_cluster_of_ray_that_does_not_start_is_said_in_one_line(
    address: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of this machine is begun again; nothing of what was begun stays."""
    ray, init = pytest.importorskip("ray"), SlowRay()
    monkeypatch.setattr(ray, "init", init)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(TrainingError, match=r"backend ray: no cluster.*timed out"),
        open_executor("ray"),
    ):
        pass
    assert init.ended() == [-signal.SIGKILL] * starts
