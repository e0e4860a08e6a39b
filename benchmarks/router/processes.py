"""Programs under measurement: started together, watched, and stopped whatever happens.

Each writes to a log of its own, and the last lines of it are the message when it ends early.
Processes are stopped by the ids that were started here, with their children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from hrl_planner.router.local import free_ports

_STOP_S = 10.0
_POLL_S = 0.1
_SHOWN_LINES = 15


class StartError(Exception):
    """A program did not come up; the message has the end of its log."""


class Stack(AbstractContextManager["Stack"]):
    """Processes that live as long as the block.

    Args:
        folder: for logs.
        env: added to this process's environment.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._env = {**os.environ, **(env or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        """Start a program in the stack's folder."""
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**self._env, **(env or {})},
                start_new_session=True,
            )

    def wait_for(self, url: str, contains: str = "", timeout_s: float = 60.0) -> None:
        """Wait until a GET answers 200 with `contains` in its body."""
        self._wait(lambda: contains in _get(url), f"{url} did not answer", timeout_s)

    def wait_for_post(self, url: str, body: bytes, timeout_s: float = 60.0) -> None:
        """Wait until a POST of a JSON body answers 200."""
        self._wait(lambda: _get(url, body) != "", f"{url} accepted no request", timeout_s)

    def _wait(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise StartError(f"{name} ended: {self._last_words(name)}")
            with suppress(OSError, urllib.error.URLError):
                if ready():
                    return
            time.sleep(_POLL_S)
        words = "\n".join(f"{name}: {self._last_words(name)}" for name in self._running)
        raise StartError(f"{what} within {timeout_s:.0f} s\n{words}")

    def cpu_s(self, prefix: str = "") -> float:
        """Processor time so far of all processes with such names, their threads included."""
        return sum(
            cpu_s(process.pid) for name, process in self._running.items() if name.startswith(prefix)
        )

    def _last_words(self, name: str) -> str:
        text = (self._folder / f"{name}.log").read_text(errors="replace").strip()
        return "\n".join(text.splitlines()[-_SHOWN_LINES:])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, politely first."""
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        until_s = time.monotonic() + _STOP_S
        for process in self._running.values():
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            _signal(process, signal.SIGKILL)  # children that outlived it, too
            process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    return free_ports(1)[0]


def _get(url: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode(errors="replace"))


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def cpu_s(pid: int) -> float:
    """User and system time of a process from /proc, 0 once it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
