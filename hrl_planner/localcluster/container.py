"""One container as a process: started, probed, started again after its end, ended on request.

`status()` is what a kubelet would report of it at this moment; `changed` is called whenever that
became something else. `StandIn` has the same face and no process behind it, for tests of scale.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp

from hrl_planner.localcluster.podspec import ContainerSpec, UnrunnableError
from hrl_planner.localcluster.probes import verdicts
from hrl_planner.localcluster.processes import dies_with_parent

_log = logging.getLogger(__name__)

RestartPolicy = Literal["Always", "OnFailure", "Never"]

# As a kubelet: the pause doubles up to this, and a run this long is forgiven.
_LONGEST_PAUSE_S = 300.0
_FORGIVEN_AFTER_S = 600.0


class Container(Protocol):
    """What a pod needs of its containers."""

    name: str

    async def run(self) -> None:
        """Run, and run again as the restart policy says, until the end or `terminate`."""

    async def terminate(self, grace_s: float) -> None:
        """End it for good: ask, wait up to `grace_s`, insist."""

    def status(self) -> dict[str, Any]:
        """Its entry in the pod's `containerStatuses`."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What all containers of a pod share.

    Attributes:
        address: the pod's address.
        directory: working directory where a container names none, and place of the logs.
        environment: variables below those of the container itself.
        restart_policy: of the pod.
        grace_s: between SIGTERM and SIGKILL when a liveness probe fails.
        first_pause_s: before the second restart; the first is at once.
        session: for probes.
        changed: called after every change of a status.
    """

    address: str
    directory: Path
    environment: Mapping[str, str]
    restart_policy: RestartPolicy
    grace_s: float
    first_pause_s: float
    session: aiohttp.ClientSession
    changed: Callable[[], None]


def now() -> str:
    """The time as the API writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Status:
    """The part of a container that everybody sees."""

    def __init__(self, name: str, image: str) -> None:
        self.name = name
        self.image = image
        self.ready = False
        self.started = False
        self.restarts = 0
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.last_state: dict[str, Any] = {}

    def running(self) -> None:
        self.state = {"running": {"startedAt": now()}}

    def terminated(self, exit_code: int) -> None:
        started_at = self.state.get("running", {}).get("startedAt", now())
        ended = {
            # A process ended by a signal reports 128 and the signal's number, as in a shell.
            "exitCode": exit_code if exit_code >= 0 else 128 - exit_code,
            "reason": "Completed" if exit_code == 0 else "Error",
            "startedAt": started_at,
            "finishedAt": now(),
        }
        self.state = {"terminated": ended}
        self.ready = self.started = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last_state,
        }


class ProcessContainer:
    """A container that is a process of this machine, the leader of its process group."""

    def __init__(self, spec: ContainerSpec, around: Surroundings) -> None:
        self.name = spec.name
        self._spec = spec
        self._around = around
        self._status = _Status(spec.name, spec.image)
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._environment = {**around.environment, **spec.environment}
        self._program = shutil.which(spec.command[0], path=self._environment.get("PATH"))
        if self._program is None:
            raise UnrunnableError(f"container {spec.name}: no program {spec.command[0]!r} here")
        if spec.working_directory and not Path(spec.working_directory).is_dir():
            raise UnrunnableError(f"container {spec.name}: no folder {spec.working_directory} here")

    def status(self) -> dict[str, Any]:
        """Its entry in the pod's `containerStatuses`."""
        return self._status.as_dict()

    async def run(self) -> None:
        """Run, and run again as the restart policy says, until the end or `terminate`."""
        pause_s = 0.0
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            began = clock()
            exit_code = await self._run_once()
            if self._stopping.is_set() or not self._restarts_after(exit_code):
                return
            if clock() - began > _FORGIVEN_AFTER_S:
                pause_s = 0.0
            self._status.last_state = self._status.state
            if pause_s:
                self._status.state = {"waiting": {"reason": "CrashLoopBackOff"}}
                self._around.changed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._stopping.wait()
            pause_s = min(max(2 * pause_s, self._around.first_pause_s), _LONGEST_PAUSE_S)
            self._status.restarts += 1

    async def terminate(self, grace_s: float) -> None:
        """End it for good: SIGTERM, up to `grace_s` seconds, SIGKILL."""
        self._stopping.set()
        await self._end(grace_s)

    def _restarts_after(self, exit_code: int) -> bool:
        policy = self._around.restart_policy
        return policy == "Always" or (policy == "OnFailure" and exit_code != 0)

    async def _run_once(self) -> int:
        directory = self._around.directory
        assert self._program is not None
        with (directory / f"{self.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *dies_with_parent([self._program, *self._spec.command[1:]]),
                cwd=self._spec.working_directory or directory,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        if self._stopping.is_set():  # asked to end while it was being started
            process.kill()
        self._status.running()
        self._around.changed()
        probing = asyncio.create_task(self._probe())
        exit_code = await process.wait()
        probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probing
        # What the process started goes with it, as everything in a container does.
        _signal_group(process.pid, signal.SIGKILL)
        self._status.terminated(exit_code)
        self._around.changed()
        return exit_code

    async def _probe(self) -> None:
        spec, address, session = self._spec, self._around.address, self._around.session
        if spec.startup:
            async with aclosing(verdicts(spec.startup, address, session)) as answers:
                async for alive in answers:
                    if alive:
                        break
                    await self._restart("startup")
                    return
        self._status.started = True
        self._set_ready(spec.readiness is None)
        async with asyncio.TaskGroup() as group:
            if spec.readiness:
                group.create_task(self._watch_readiness())
            if spec.liveness:
                group.create_task(self._watch_liveness())

    async def _watch_readiness(self) -> None:
        assert self._spec.readiness
        async for ready in verdicts(
            self._spec.readiness, self._around.address, self._around.session
        ):
            self._set_ready(ready)

    async def _watch_liveness(self) -> None:
        assert self._spec.liveness
        async for alive in verdicts(
            self._spec.liveness, self._around.address, self._around.session
        ):
            if not alive:
                await self._restart("liveness")
                return

    def _set_ready(self, ready: bool) -> None:
        if ready != self._status.ready:
            self._status.ready = ready
            self._around.changed()

    async def _restart(self, probe: str) -> None:
        """End the process; `run` starts it again."""
        _log.warning("%s: %s probe failed, ending it", self.name, probe)
        await self._end(self._around.grace_s)

    async def _end(self, grace_s: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            # Not wait_for: before 3.12 it loses a cancellation that meets the end of the process.
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            _signal_group(process.pid, signal.SIGKILL)
            await process.wait()


class StandIn:
    """A container without a process: running and ready at once, gone a while after it is asked."""

    def __init__(
        self, name: str, image: str, changed: Callable[[], None], drain_s: float = 0.0
    ) -> None:
        self.name = name
        self._status = _Status(name, image)
        self._changed = changed
        self._drain_s = drain_s
        self._stopping = asyncio.Event()

    def status(self) -> dict[str, Any]:
        """Its entry in the pod's `containerStatuses`."""
        return self._status.as_dict()

    async def run(self) -> None:
        """Be running until `terminate`."""
        self._status.running()
        self._status.ready = self._status.started = True
        self._changed()
        await self._stopping.wait()
        self._status.terminated(0)

    async def terminate(self, grace_s: float) -> None:
        """End after its drain, or its grace."""
        await asyncio.sleep(min(self._drain_s, grace_s))
        self._stopping.set()


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
