"""`hrl-planner tune`: search hyper-parameters of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def tune(
    config: Annotated[Path, typer.Option(help="tuning config, see experiments/tune/")],
    out: Annotated[Path, typer.Option(help="folder of the study; continued if it exists")],
    trials: Annotated[int, typer.Option(min=1, help="trials in all")] = 20,
    backend: Annotated[str, typer.Option(help="local or ray")] = "local",
) -> None:
    """Search hyper-parameters of training with Optuna.

    [bold]Example[/bold]

      hrl-planner tune --config experiments/tune/allocator.yaml --out out/tune --trials 30
    """
    from rich.console import Console
    from rich.table import Table

    from agents.train.tune import FAILURE, load_tuning
    from agents.train.tune import tune as search

    console = Console()

    def on_trial(study: Any, number: int) -> None:
        trial = study.trials[number]
        outcome = (
            f"failed: {trial.user_attrs.get(FAILURE)}"
            if trial.value is None
            else f"gain {trial.value:+.4f}"
        )
        # No markup: a message may hold brackets.
        console.print(f"trial {number}: {outcome}  {trial.params}", markup=False)

    study = search(load_tuning(config), out, trials=trials, backend=backend, on_trial=on_trial)
    done = [trial for trial in study.trials if trial.value is not None]
    table = Table("trial", "gain over action 0", "parameters", title="best trials")
    for trial in sorted(done, key=lambda t: -float(t.value or 0.0))[:5]:
        table.add_row(str(trial.number), f"{trial.value:+.4f}", str(trial.params))
    console.print(table)
    if not done:
        raise typer.Exit(1)
