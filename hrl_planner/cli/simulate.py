"""`hrl-planner simulate`: one run of one policy, looked at closely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agents.evaluate.cell import Run
    from hrl_planner.workload.scenarios import ScenarioCase


def simulate(
    spec: Annotated[
        str | None,
        typer.Option(
            help="Cluster: a .yaml file, or small, reference, large. "
            r"\[default: the scenario's own, else reference]",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Named scenario.")] = None,
    trace: Annotated[str | None, typer.Option(help="Trace file (CSV or JSONL).")] = None,
    policy: Annotated[
        str, typer.Option(help="Policy; parameters follow a colon: lp:headroom=0.2.")
    ] = "lp",
    seed: Annotated[int, typer.Option(min=0, help="Of requests, classes and start-up times.")] = 0,
    load: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Multiply the request rate.")
    ] = 1.0,
    until: Annotated[
        float | None, typer.Option(min=1.0, help="Cut the workload after this many seconds.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write requests.parquet and timeline.parquet to this folder.", file_okay=False
        ),
    ] = None,
) -> None:
    """Simulate a cluster under one policy and show what came of every class and pool.

    Attainment counts offered requests: one that was rejected or never finished misses its SLO.

    [bold]Examples[/bold]

      hrl-planner simulate --scenario cold-start-ramp --policy lp

      hrl-planner simulate --spec small --trace azure.csv --policy hpa --until 1800 --out out/run
    """
    from agents.evaluate.cases import choose_workloads, load_case, load_spec

    workloads = choose_workloads([scenario] if scenario else [], [trace] if trace else [])
    if len(workloads) != 1:
        raise typer.BadParameter("give one --scenario or one --trace, not both")
    cluster = load_spec(spec, workloads)
    case = load_case(workloads[0], cluster, seed, load=load, until_s=until)
    run = _run(case, policy, seed)
    _print(run, policy, seed)
    if out is not None:
        from agents.evaluate.tables import write_run

        for path in write_run(run.result, out):
            typer.echo(f"wrote {path}")


def _run(case: ScenarioCase, policy: str, seed: int) -> Run:
    """Simulate under a progress bar that tells simulated time and the cluster's state."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from agents.evaluate.cell import run_case
    from agents.evaluate.config import GRACE_S
    from envs.simulation import Simulation

    bar = Progress(
        TextColumn(case.trace.name),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}  left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=case.trace.duration_s, state="")

        def on_progress(simulation: Simulation) -> None:
            state = f"{simulation.now_s:,.0f} s simulated"
            bar.update(task, completed=simulation.now_s, state=state)

        return run_case(case, policy, seed, grace_s=GRACE_S, on_progress=on_progress)


def _print(run: Run, policy: str, seed: int) -> None:
    from rich.console import Console

    from agents.evaluate.tables import class_table, pool_table

    console = Console()
    result, case = run.result, run.case
    console.print(
        f"[bold]{case.trace.name}[/bold] on {case.spec.name}, policy {policy}, seed {seed}: "
        f"{len(case.trace):,} requests in {case.trace.duration_s:,.0f} s, "
        f"simulated in {run.wall_s:.1f} s",
        highlight=False,
    )
    console.print(class_table(result))
    console.print(pool_table(result))
