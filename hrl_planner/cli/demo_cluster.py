"""`hrl-planner demo-cluster`: planners and router on a real Kubernetes API, pods as processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hrl_planner.localcluster.demo import DemoResult, Watch
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload import Trace


def demo_cluster(
    spec: Annotated[
        str, typer.Option(help="Cluster: a .yaml file, or small, reference, large.")
    ] = "small",
    scenario: Annotated[
        str | None,
        typer.Option(help=r"Named scenario. \[default: load that rises and falls]"),
    ] = None,
    load: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Multiply the request rate.")
    ] = 1.0,
    seconds: Annotated[float, typer.Option(min=10.0, help="How long requests are sent.")] = 120.0,
    allocator: Annotated[str, typer.Option(help="Global policy, as in the group's spec.")] = "lp",
    scaler: Annotated[str, typer.Option(help="Local policy; quota: all it may have.")] = "quota",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A trained planner in place of both.")
    ] = None,
    startup_scale: Annotated[
        float, typer.Option(min=0.0, help="Multiplies the spec's start-up times.")
    ] = 0.1,
    out: Annotated[Path, typer.Option(help="Folder for logs and data.")] = Path("out/demo-cluster"),
) -> None:
    """Run a whole cluster on this machine: API server, planners, router, engines, load.

    Needs Kubernetes' own programs (hrl-planner kube-binaries --build). Pods are processes: mock
    engines as fast as the spec's workers, and every pod starts as slowly as the spec says, times
    --startup-scale. GPUs that pods hold are counted ten times a second against the budget.

    [bold]Example[/bold]

      hrl-planner demo-cluster --spec small --seconds 120
    """
    from rich.console import Console
    from rich.live import Live

    from hrl_planner.localcluster.demo import DemoOptions, run

    console = Console()
    cluster = _quick(spec)
    trace = _trace(cluster, scenario, load, seconds)
    policy = {"allocator": allocator, "scaler": scaler}
    if checkpoint is not None:
        policy["checkpoint"] = str(checkpoint.absolute())
    options = DemoOptions(policy=policy, startup_scale=startup_scale)
    console.print(f"{len(trace):,} requests in {trace.duration_s:.0f} s; logs in {out}")
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        result = run(
            cluster, trace, out.absolute(), options, lambda watch: live.update(_table(watch))
        )
    _report(console, result)


def _quick(name: str) -> ClusterSpec:
    """Return a spec whose planners and metrics have shorter clocks, as its start-up has."""
    from hrl_planner.spec import ClusterSpec

    spec = ClusterSpec.load(name)
    clocks = {"local_s": 2.0, "global_s": 6.0, "scrape_s": 1.0, "scrape_lag_s": 0.5}
    return spec.replace(intervals={**clocks, "window_s": 15.0})


def _trace(spec: ClusterSpec, scenario: str | None, load: float, seconds: float) -> Trace:
    """Return the scenario's requests, or a load that rises to four times and falls again."""
    if scenario is not None:
        from agents.evaluate.cases import choose_workloads, load_case

        workload = choose_workloads([scenario], [])[0]
        return load_case(workload, spec, 0, load=load, until_s=seconds).trace
    from hrl_planner.workload.curves import steps
    from hrl_planner.workload.generators import independent_requests
    from hrl_planner.workload.lengths import Lengths

    return independent_requests(
        steps([4.0 * load, 16.0 * load, 4.0 * load], seconds, isl=3000, osl=60),
        seed=1,
        isl=Lengths(3000, cv=0.6, high=12_000),
        osl=Lengths(60, cv=0.4, high=200),
    )


def _table(watch: Watch) -> Table:
    from rich.table import Table

    table = Table("pool", "quota", "desired", "ready", "starting", "draining")
    for pool in watch.pools:
        numbers = (pool.quota, pool.desired, pool.ready, pool.starting, pool.draining)
        table.add_row(pool.name, *map(str, numbers))
    return table


def _report(console: Console, result: DemoResult) -> None:
    from hrl_planner.cli._load_tables import print_summary
    from hrl_planner.load import summarise

    print_summary(summarise(result.load))
    watch = result.watch
    most = ", ".join(f"{n} of {watch.budget[kind]} {kind}" for kind, n in watch.most.items())
    console.print(
        f"GPUs held at most: {most}; over the budget in {watch.over} of {watch.samples:,} samples"
    )
    for pool, rows in watch.history.items():
        steps = ", ".join(f"{count} at {at_s:.0f} s" for at_s, count in rows)
        console.print(f"  {pool}: ready {steps}")
