"""The progress bar over many runs, shared by the commands that make them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from agents.evaluate import Progress

INTERRUPTED = 130


@dataclass
class RunsBar:
    """Shows where the runs stand; called by the runner.

    Attributes:
        kept: finished runs so far, those of earlier calls included.
        total: runs of the whole.
    """

    bar: Bar
    task: TaskID
    kept: int = 0
    total: int = 0

    def __call__(self, standing: Progress) -> None:
        """Show the state of the runs."""
        self.kept, self.total = standing.skipped + standing.done, standing.total
        failed = f", {len(standing.failures)} failed" if standing.failures else ""
        self.bar.update(
            self.task,
            description="compiling the simulator, once" if standing.compiling else "runs",
            completed=standing.share,
            runs=f"{self.kept}/{self.total} runs{failed}",
        )


@contextmanager
def runs_bar(console: Console) -> Iterator[RunsBar]:
    """A bar with the share done, the number of runs and the time left."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[runs]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        yield RunsBar(bar, bar.add_task("runs", total=1.0, runs=""))


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
