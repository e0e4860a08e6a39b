"""`hrl-planner demo-cluster`: planners, router and engines as pods of a real Kubernetes API."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from hrl_planner.localcluster.demo import DemoOptions, DemoResult
    from hrl_planner.localcluster.demo_watch import Watch
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload import Trace

_SECONDS = 120.0


def demo_cluster(
    spec: Annotated[
        str, typer.Option(help="Cluster: a .yaml file, or small, reference, large.")
    ] = "small",
    scenario: Annotated[
        str | None,
        typer.Option(help=r"Named scenario. \[default: load that rises and falls]"),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace file (CSV or JSONL).")] = None,
    load: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Multiply the request rate.")
    ] = 1.0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=10.0,
            help=r"Requests of so many seconds are sent. \[default: the whole trace, 120 s "
            "without one]",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        float,
        typer.Option(min=0.1, max=100.0, help="Play cluster and trace so many times faster."),
    ] = 1.0,
    allocator: Annotated[str, typer.Option(help="Global policy, as in the group's spec.")] = "lp",
    scaler: Annotated[str, typer.Option(help="Local policy; quota: all it may have.")] = "rule",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A trained planner in place of both: a folder, or the spec one ships for.",
            show_default=False,
        ),
    ] = None,
    startup_scale: Annotated[
        float,
        typer.Option(
            min=0.0, help="Multiplies the spec's start-up times; but for 1, clocks are short, too."
        ),
    ] = 0.1,
    one_planner_pod: Annotated[
        bool, typer.Option(help="All planners in one pod, not one for the group and one per pool.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of classes and prompts.")] = 0,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Simulate the same, compare, and write report.html. "
            r"\[default: where the simulator is installed]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, logs and data.")] = Path(
        "out/demo-cluster"
    ),
) -> None:
    """Run a whole cluster on this machine, and compare it with the simulator.

    API server, scheduler, planners, router, engines and load. Needs Kubernetes' own programs
    (hrl-planner kube-binaries --build). Pods are processes: planners and router under accounts of
    their own, mock engines as fast as the spec's workers, each as slow to start as the spec says,
    times --startup-scale. GPUs that pods hold are counted ten times a second against the budget.
    At the end the same spec, trace and policy run in the simulator: OUT/report.html has both.

    [bold]Examples[/bold]

      hrl-planner demo-cluster --spec small --seconds 120

      hrl-planner demo-cluster --trace azure.csv --seconds 600 --speed 2 --allocator hpa
    """
    from rich.console import Console

    from hrl_planner.localcluster.demo import DemoOptions
    from hrl_planner.localcluster.demo_scale import at_speed, quick
    from hrl_planner.planner.checkpoint import find
    from hrl_planner.spec import ClusterSpec

    console = Console()
    cluster = quick(ClusterSpec.load(spec), startup_scale)
    requests = _requests(console, cluster, scenario, trace, load, seconds)
    policy: dict[str, Any] = {"allocator": allocator, "scaler": scaler}
    if checkpoint is not None:
        policy["checkpoint"] = str(find(checkpoint).absolute())
    options = DemoOptions(
        policy=policy, layout="all-in-one" if one_planner_pod else "per-pool", seed=seed
    )
    fast, played = at_speed(cluster, speed), requests.scale(time=1.0 / speed)
    result = _run(console, fast, played, out.absolute(), options)
    _report(console, result)
    if _can_compare() if compare is None else compare:
        _compare(console, result, cluster, options, speed, out)


def _can_compare() -> bool:
    """Say whether the extras `sim` and `report` are installed."""
    return all(importlib.util.find_spec(name) for name in ("numba", "pandas", "plotly", "jinja2"))


def _requests(
    console: Console,
    spec: ClusterSpec,
    scenario: str | None,
    trace: Path | None,
    load: float,
    seconds: float | None,
) -> Trace:
    """Return the requests of a scenario or trace, or a load that rises and falls again."""
    from hrl_planner.workload.curves import steps
    from hrl_planner.workload.generators import independent_requests
    from hrl_planner.workload.lengths import Lengths

    if scenario is not None and trace is not None:
        raise typer.BadParameter("give --scenario or --trace, not both")
    if scenario is None and trace is None:
        return independent_requests(
            steps([4.0 * load, 16.0 * load, 4.0 * load], seconds or _SECONDS, isl=3000, osl=60),
            seed=1,
            isl=Lengths(3000, cv=0.6, high=12_000),
            osl=Lengths(60, cv=0.4, high=200),
        )
    from agents.evaluate.cases import choose_workloads, load_case

    workloads = choose_workloads([scenario] if scenario else [], [str(trace)] if trace else [])
    case = load_case(workloads[0], spec, 0, load=load, until_s=seconds)
    if case.events:
        console.print("[yellow]events of the scenario are not played, only its requests[/]")
    return case.trace


def _run(
    console: Console, spec: ClusterSpec, trace: Trace, folder: Path, options: DemoOptions
) -> DemoResult:
    from rich.live import Live

    from hrl_planner.localcluster.demo import run

    console.print(
        f"{len(trace):,} requests in {trace.duration_s:.0f} s; logs in {folder}", highlight=False
    )
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        return run(spec, trace, folder, options, lambda watch: live.update(_view(watch)))


def _view(watch: Watch) -> RenderableType:
    """Return what there is to see now: pools, GPUs against the budget, attainment so far."""
    from rich.console import Group
    from rich.table import Table

    table = Table("pool", "quota", "desired", "ready", "starting", "draining", title=watch.phase)
    held = dict.fromkeys(watch.spec.budget.gpus, 0)
    for index, pool in enumerate(watch.spec.pools):
        now = watch.now(index)
        table.add_row(pool.name, *("-" if n < 0 else str(n) for n in now.values()))
        replicas = now["ready"] + now["starting"] + now["draining"]
        held[pool.gpu_type] += replicas * pool.gpus_per_replica
    budget = watch.spec.budget.gpus
    gpus = "GPUs held: " + ", ".join(f"{n} of {budget[kind]} {kind}" for kind, n in held.items())
    if watch.over:
        gpus += f"; over the budget in {watch.over} looks"
    kept = [f"{name} {share:.0%}" for name, share in watch.routed.attainment.items()]
    return Group(table, gpus, "attainment so far: " + (", ".join(kept) or "no request has ended"))


def _report(console: Console, result: DemoResult) -> None:
    from hrl_planner.cli._load_tables import print_summary
    from hrl_planner.load import summarise

    print_summary(summarise(result.load))
    watch, budget = result.watch, result.spec.budget.gpus
    most = ", ".join(f"{n} of {budget[kind]} {kind}" for kind, n in watch.most.items())
    console.print(
        f"GPUs held at most: {most}; over the budget in {watch.over} of {watch.samples:,} samples"
    )


def _compare(
    console: Console,
    result: DemoResult,
    spec: ClusterSpec,
    options: DemoOptions,
    speed: float,
    out: Path,
) -> None:
    import shlex
    import sys

    from agents.agreement import compare, terminal_table, write_report

    console.print("simulating the same")
    found = compare(result, spec, options, speed)
    command = shlex.join(["hrl-planner", *sys.argv[1:]])
    paths = write_report(found, out, command)
    console.print(terminal_table(found))
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
