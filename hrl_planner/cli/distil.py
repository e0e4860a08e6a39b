"""`hrl-planner distil`: one checkpoint of many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def distil(
    checkpoint: Annotated[list[Path], typer.Argument(help="folders, two or more")],
    out: Annotated[Path, typer.Option(help="folder of the checkpoint that is made")],
    name: Annotated[str, typer.Option(help="of the checkpoint")] = "distilled",
    rounds: Annotated[int, typer.Option(min=1, help="of playing training days and fitting")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
) -> None:
    """Distil the checkpoints of several training seeds into one that answers their mean.

    It takes some minutes, most of them for the scale of the answers, and writes nothing before
    its end: after Ctrl-C call it again.

    [bold]Example[/bold]

      hrl-planner distil out/train/main/seed-*/checkpoint --out out/train/distilled/checkpoint
    """
    # Read when numba starts its threads: idle ones must not spin on the core that learns.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from agents.train.distil import distil as run

    columns = (
        "{task.description}",
        "{task.completed}/{task.total} rounds",
        "{task.fields[missed]}",
    )
    with Progress(
        TextColumn(columns[0]), BarColumn(), *map(TextColumn, columns[1:]), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("playing and fitting", total=rounds, missed="")

        def on_round(number: int, missed: float) -> None:
            doing = "finding the scale" if number == rounds else "playing and fitting"
            bar.update(
                task, completed=number, description=doing, missed=f"misses {100 * missed:.3f} %"
            )

        found = run(checkpoint, out, name=name, rounds=rounds, seed=seed, on_round=on_round)
    shrunk = found.shrunk
    typer.echo(
        f"scaled by {shrunk.scale:g}: gains {shrunk.gain:+.4f} (standard error {shrunk.error:.4f}) "
        f"in score, {100 * shrunk.attained:+.2f} points of value attained, on validation days"
    )
    typer.echo(f"checkpoint: {found.path}")
