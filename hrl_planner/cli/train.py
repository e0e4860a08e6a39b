"""`hrl-planner train`: a checkpoint from a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from agents.train.callbacks import Progress
    from agents.train.config import StageConfig, TrainConfig


def train(
    config: Annotated[Path, typer.Option(help="training config, see experiments/train/")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; default out/train/NAME-seed-SEED")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="instead of the config's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue what is there")] = False,
    stage: Annotated[
        int | None, typer.Option(min=1, help="stop after this stage; later calls go on")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="field.field=value over the config's, again and again"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="train so many runs, seeds 0 to N-1, one per folder")
    ] = None,
    backend: Annotated[str, typer.Option(help="with --seeds: local or ray")] = "local",
) -> None:
    """Train agents offline and write a checkpoint.

    Every update is saved: after Ctrl-C or a crash the same command with [bold]--resume[/bold] goes
    on as if nothing had happened. TensorBoard: tensorboard --logdir out/train

    [bold]Examples[/bold]

      hrl-planner train --config experiments/train/reference.yaml

      hrl-planner train --config experiments/train/reference.yaml --seeds 10 --backend ray
    """
    # Read when numba starts its threads: idle ones must not spin on the core that learns.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from agents.train.config import load_config
    from hrl_planner.errors import TrainingError

    changes = tuple(change or ())
    if seed is not None:
        changes = (*changes, f"seed={seed}")
    settings = load_config(config, changes)
    if seeds is not None and seed is not None:
        raise TrainingError("--seed: many runs have seeds 0 to N-1; leave out --seed or --seeds")
    if seeds is not None and stage is not None:
        raise TrainingError("--stage: many seeds are trained whole; leave out --stage or --seeds")
    if seeds is None and backend != "local":
        raise TrainingError("--backend: is for many seeds; give --seeds too")
    if seeds is not None:
        _many(settings, out, seeds, backend, resume)
        return
    folder = out or Path("out/train") / f"{settings.name}-seed-{settings.seed}"
    from agents.train.run import train as run

    with _bar() as bar:
        path = run(settings, folder, resume=resume, on_progress=_Report(bar), only=stage)
    if path is None:
        typer.echo(f"stage {stage} is trained; go on with --resume")
    else:
        typer.echo(f"checkpoint: {path}")
        typer.echo(
            f"compare it: hrl-planner evaluate --spec {settings.spec} --scenario "
            f"diurnal-mix --policy lp --policy learned:path={path} --out out/compare"
        )


def _many(settings: TrainConfig, out: Path | None, seeds: int, backend: str, resume: bool) -> None:
    from agents.train.many import failed, train_many

    folder = out or Path("out/train") / settings.name
    with _bar() as bar:
        tasks = {seed: bar.add_task(f"seed {seed}", total=None, score="") for seed in range(seeds)}

        def on_status(seed: int, status: dict[str, Any]) -> None:
            if status:
                score = f"best {status['best_score']:.4f}, action 0 {status['prior_score']:.4f}"
                name = f"seed {seed}, stage {status['stage']}: {status['level']}"
                bar.update(
                    tasks[seed],
                    description=name,
                    total=status["updates"],
                    completed=status["update"],
                    score=score,
                )

        outcomes = train_many(
            settings, folder, range(seeds), backend=backend, resume=resume, on_status=on_status
        )
    for seed, outcome in sorted(outcomes.items()):
        typer.echo(f"seed {seed}: {outcome}")
    if any(failed(outcome) for outcome in outcomes.values()):
        raise typer.Exit(1)


def _bar() -> Bar:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} updates"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
    )


class _Report:
    """Shows stages as bars."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._tasks: dict[int, object] = {}

    def __call__(self, index: int, stage: StageConfig, progress: Progress, updates: int) -> None:
        score = f"best {progress.best_score:.4f}, action 0 {progress.prior_score:.4f}"
        if index not in self._tasks:
            name = f"stage {index + 1}: {stage.level}"
            self._tasks[index] = self._bar.add_task(
                name, total=updates, completed=progress.update - 1, score=score
            )
        self._bar.update(self._tasks[index], completed=progress.update, score=score)  # type: ignore[arg-type]
