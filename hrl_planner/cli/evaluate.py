"""`hrl-planner evaluate`: compare policies in pairs and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrl_planner.cli._runs import INTERRUPTED, cores, runs_bar

if TYPE_CHECKING:
    from agents.evaluate import Evaluation, EvaluationConfig

FAILED_CELLS = 1


def evaluate(
    policy: Annotated[
        list[str],
        typer.Option(
            help="Policy to compare; repeat for more. Parameters follow a colon: lp:headroom=0.2."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results and report.", file_okay=False)],
    spec: Annotated[
        str | None,
        typer.Option(
            help="Cluster: a .yaml file, or small, reference, large. "
            r"\[default: the scenario's own, else reference]",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Named scenario; repeat for more, or 'all'.")
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option(help="Trace file (CSV or JSONL); repeat for more.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per policy and workload.")] = 5,
    load: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Multiply every request rate.")
    ] = 1.0,
    until: Annotated[
        float | None, typer.Option(min=1.0, help="Cut every workload after this many seconds.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-j",
            min=1,
            help=r"Parallel processes. \[default: one per core]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Discard runs of another configuration found in --out."),
    ] = False,
) -> None:
    """Compare policies on the same requests and the same luck; write tables and report.html.

    Every policy runs on every workload with seeds 0, 1, ... A seed gives all
    policies the same requests and the same start-up times, so they are
    compared in pairs. For a scenario the seed makes the trace; for a trace file
    it draws start-up times and class assignment.

    Finished runs are kept under OUT/cells. Call again after Ctrl-C, or with
    more seeds, policies or workloads, and only what is missing runs.
    Exit status: 1 if some runs failed, 2 for bad input.

    [bold]Examples[/bold]

      hrl-planner evaluate --scenario spill-over --policy hpa --policy lp --out out/a

      hrl-planner evaluate --spec small --trace azure.csv --policy lp --out out/b

      hrl-planner evaluate --scenario all --policy lp --until 900 --out out/c
    """
    from agents.evaluate import EvaluationConfig
    from agents.evaluate.cases import choose_workloads, load_spec

    workloads = choose_workloads(scenario or [], trace or [])
    config = EvaluationConfig(
        spec=load_spec(spec, workloads),
        workloads=workloads,
        policies=tuple(policy),
        seeds=seeds,
        load=load,
        until_s=until,
    )
    done = _run(config, out, workers or cores(), force)
    _print(done)
    if done.failures:
        raise typer.Exit(FAILED_CELLS)


def _run(config: EvaluationConfig, out: Path, workers: int, force: bool) -> Evaluation:
    """Evaluate under a progress bar; Ctrl-C ends it with a word on how to go on."""
    import shlex
    import sys

    from rich.console import Console

    from agents.evaluate import evaluate as run

    console = Console(stderr=True)
    with runs_bar(console) as bar:
        try:
            return run(
                config,
                out,
                workers=workers,
                on_progress=bar,
                command=shlex.join(["hrl-planner", *sys.argv[1:]]),
                force=force,
            )
        except KeyboardInterrupt:
            bar.bar.stop()
            console.print(
                f"stopped; {bar.kept} of {bar.total} runs are kept in {out}. "
                "The same command goes on from there."
            )
            raise typer.Exit(INTERRUPTED) from None


def _print(done: Evaluation) -> None:
    from rich.console import Console
    from rich.markup import escape

    from agents.evaluate.summary import terminal_table

    console = Console()
    if done.results is not None:
        console.print(terminal_table(done.results, console.width))
    for failure in done.failures:
        message = failure.message.splitlines()[0] if failure.message else ""
        console.print(f"[red]failed[/] {escape(str(failure.cell))}: {escape(message)}")
        console.print(f"       details in {failure.log}", highlight=False, soft_wrap=True)
    if done.report is not None:
        console.print(f"report: {done.report}", highlight=False, soft_wrap=True)
