"""Child processes that cannot outlive this one, each with a log file of its own.

The kernel kills such a child when the *thread* that started it ends (PR_SET_PDEATHSIG), however
this process dies. So all are started by one thread that lives as long as the interpreter; whoever
starts or restarts a component may come from any other. `setpriv` of util-linux sets the signal,
because running Python code between fork and exec can deadlock in a process with threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hrl_planner.errors import LocalClusterError

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """The command, such that the kernel kills it when the thread that starts it ends."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LocalClusterError("setpriv is missing; a local cluster needs Linux with util-linux")
    return [setpriv, "--pdeathsig", "KILL", "--", *command]


@dataclass
class Component:
    """One server of the control plane: started, killed and started again with the same command.

    Attributes:
        name: what it is called in messages.
        command: program and arguments.
        log: its output, appended to over restarts.
        environment: variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, if only stopped by a signal."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise LocalClusterError(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start it; a no-operation while it runs."""
        if not self.alive:
            self._process = _spawner.submit(self._popen).result()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, as an experiment does: SIGSTOP and SIGCONT, SIGKILL."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()

    def stop(self, patience_s: float = 5.0) -> None:
        """Ask it to end, and insist after a while."""
        if self._process is None or not self.alive:
            return
        self._process.terminate()
        # A paused process hears nothing until it goes on.
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self.kill()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it wrote, for messages."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _popen(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                dies_with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                # Ctrl-C in the terminal is for this process, which then stops its children.
                start_new_session=True,
            )
