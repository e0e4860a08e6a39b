"""Planner processes: started by their command line, heard by their decision lines, killed at will.

Each planner has replicas, one of which leads. Whoever ends is started again after a moment, as a
Deployment of one pod each would do. A round is a JSON line with `level`, `name` and `time` on a
planner's output; nothing else of it is relied on.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrl_planner.localcluster.processes import Component

RESTART_S = 1.0
_POLL_S = 0.05

PlannerId = tuple[str, str]  # level and name


@dataclass(frozen=True, slots=True)
class Round:
    """A round that a planner has completed.

    Attributes:
        at_s: its end, seconds since the epoch.
        planner: level and name.
        process: name of the process.
        line: the decision log's.
    """

    at_s: float
    planner: PlannerId
    process: str
    line: dict[str, Any]


@dataclass
class _Process:
    component: Component
    planners: tuple[PlannerId, ...]
    read_bytes: int = 0
    rest: bytes = b""
    restart_s: float | None = None


class Planners:
    """All planner processes of a group; a context manager.

    Args:
        group: name of the ServingGroup.
        pools: names of its WorkerPools.
        namespace: of all of them.
        kubeconfig: of an account that may do what planners do.
        folder: for their output.
        replicas: processes per planner.
        together: one process has all planners (`plan all`), else each its own.
        settle_s: `--settle-s` of local planners.
    """

    def __init__(
        self,
        group: str,
        pools: Sequence[str],
        namespace: str,
        kubeconfig: Path,
        folder: Path,
        *,
        replicas: int = 2,
        together: bool = False,
        settle_s: float = 3.0,
    ) -> None:
        self.ids: tuple[PlannerId, ...] = (("global", group), *(("local", p) for p in pools))
        self._processes: dict[str, _Process] = {}
        self._rounds: list[Round] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._mind, name="planners", daemon=True)
        where = ["--namespace", namespace, "--kubeconfig", str(kubeconfig), "--health-port", "0"]
        settle = ["--settle-s", str(settle_s)]
        commands: dict[str, tuple[list[str], tuple[PlannerId, ...]]] = {}
        if together:
            commands["all"] = (["all", "--group", group, *settle], self.ids)
        else:
            commands["global"] = (["global", "--group", group], self.ids[:1])
            for pool in pools:
                found = (["local", "--pool", pool, *settle], (("local", pool),))
                commands[f"local-{pool}"] = found
        for name, (words, planners) in commands.items():
            for index in range(replicas):
                each = f"{name}-{index}"
                command = [sys.executable, "-m", "hrl_planner.cli", "plan", *words, *where]
                component = Component(each, command, folder / f"{each}.log", _THREADS)
                self._processes[each] = _Process(component, planners)

    def __enter__(self) -> Planners:
        for process in self._processes.values():
            process.component.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for process in self._processes.values():
            process.component.kill()

    def rounds(self, since_s: float = 0.0) -> list[Round]:
        """Return rounds that ended after a time, oldest first."""
        with self._lock:
            return [r for r in self._rounds if r.at_s > since_s]

    def leader(self, planner: PlannerId) -> str | None:
        """Return the process that has acted for a planner last."""
        with self._lock:
            return next((r.process for r in reversed(self._rounds) if r.planner == planner), None)

    def led_by(self, process: str) -> list[PlannerId]:
        """Return the planners a process has acted for last."""
        return [planner for planner in self.ids if self.leader(planner) == process]

    def replicas_of(self, planner: PlannerId) -> list[str]:
        """Return the processes that can act for a planner."""
        return [name for name, p in self._processes.items() if planner in p.planners]

    def kill(self, process: str) -> float:
        """End a process at once; returns when."""
        self._processes[process].component.kill()
        return time.time()

    def pause(self, process: str) -> float:
        """Stop a process where it is; returns when."""
        self._processes[process].component.signal(signal.SIGSTOP)
        return time.time()

    def go_on(self, process: str) -> None:
        """Let a paused process go on."""
        self._processes[process].component.signal(signal.SIGCONT)

    def log(self, process: str) -> str:
        """What a process has written last."""
        return self._processes[process].component.log_tail(40)

    def _mind(self) -> None:
        """Read what they write, and start again whoever ended."""
        while not self._stop.wait(_POLL_S):
            for process in self._processes.values():
                self._read(process)
                if process.component.alive:
                    process.restart_s = None
                elif process.restart_s is None:
                    process.restart_s = time.monotonic() + RESTART_S
                elif time.monotonic() > process.restart_s:
                    process.component.start()

    def _read(self, process: _Process) -> None:
        path = process.component.log
        if not path.exists() or path.stat().st_size == process.read_bytes:
            return
        with path.open("rb") as file:
            file.seek(process.read_bytes)
            data = file.read()
        process.read_bytes += len(data)
        *lines, process.rest = (process.rest + data).split(b"\n")
        found = [r for line in lines if (r := round_of(line, process.component.name))]
        if found:
            with self._lock:
                self._rounds += found


# Many processes share few cores: a library with a thread per core in each would thrash.
_THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def round_of(line: bytes, process: str) -> Round | None:
    """Return the round a line of output tells of; what who does not lead decides is none."""
    if not line.startswith(b"{"):
        return None
    try:
        found = json.loads(line)
        planner = (str(found["level"]), str(found["name"]))
    except (ValueError, KeyError, TypeError):
        return None
    if found["mode"] == "standby":
        return None
    return Round(float(found.get("time", time.time())), planner, process, found)


def first_rounds(
    planners: Planners, ids: Sequence[PlannerId], since_s: float, *, but: str = ""
) -> dict[PlannerId, Round]:
    """Return each planner's first round after a time, by another process than `but`."""
    found: dict[PlannerId, Round] = {}
    for each in planners.rounds(since_s):
        if each.planner in ids and each.process != but:
            found.setdefault(each.planner, each)
    return found
