"""`hrl-planner trace`: look at request traces, convert them, generate new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hrl_planner.workload.curves import RateCurve
    from hrl_planner.workload.trace import Trace

app = typer.Typer(
    no_args_is_help=True,
    help="Request traces: show statistics, convert formats, generate, list scenarios.",
    rich_markup_mode="rich",
)

_BARS = " ▁▂▃▄▅▆▇█"
_KINDS = (
    "poisson",
    "bursts",
    "diurnal",
    "ramp",
    "step",
    "sinusoid",
    "drift",
    "conversation",
    "agentic",
    "assistant",
)

InputFile = Annotated[Path, typer.Argument(help="A trace or a rate curve; .gz is fine.")]
Format = Annotated[
    str | None,
    typer.Option(help="own, azure, burstgpt, mooncake or rates; absent: found out by looking."),
]
Start = Annotated[float, typer.Option(help="Leave out what comes before, seconds.", min=0.0)]
End = Annotated[float | None, typer.Option(help="Leave out what comes from here on, seconds.")]
Rate = Annotated[float, typer.Option(help="Multiply the number of requests.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
SkipFailed = Annotated[bool, typer.Option("--skip-failed", help="BurstGPT: drop failed requests.")]


@app.command()
def show(
    file: InputFile,
    format: Format = None,
    start: Start = 0.0,
    end: End = None,
    rate: Rate = 1.0,
    seed: Seed = 0,
    skip_failed: SkipFailed = False,
) -> None:
    """Show what is in a trace: rate over time, lengths, sessions, prefix reuse.

    [bold]Examples[/bold]

      hrl-planner trace show azure2023_conv.csv

      hrl-planner trace show rates.csv --start 3600 --end 7200
    """
    from hrl_planner.workload import read_trace

    _print_statistics(
        read_trace(
            file,
            format,
            start_s=start,
            end_s=end,
            rate=rate,
            seed=seed,
            skip_failed=skip_failed,
        )
    )


@app.command()
def convert(
    file: InputFile,
    out: Annotated[Path, typer.Argument(help="Where to write; .gz compresses.", dir_okay=False)],
    format: Format = None,
    start: Start = 0.0,
    end: End = None,
    rate: Rate = 1.0,
    time: Annotated[float, typer.Option(help="Stretch time: 2 is half as busy.")] = 1.0,
    label: Annotated[str | None, typer.Option(help="Label all requests so.")] = None,
    seed: Seed = 0,
    skip_failed: SkipFailed = False,
) -> None:
    """Write any trace in our own CSV format: cut, scaled and labelled on the way.

    [bold]Examples[/bold]

      hrl-planner trace convert conversation.jsonl agentic.csv.gz --label agentic --rate 2
    """
    from hrl_planner.workload import read_trace, write_trace

    trace = read_trace(
        file, format, start_s=start, end_s=end, rate=rate, seed=seed, skip_failed=skip_failed
    ).scale(time=time)
    if label is not None:
        trace = trace.with_labels(label)
    write_trace(trace, out)
    typer.echo(f"{len(trace):,} requests over {trace.duration_s:,.0f} s written to {out}")


@app.command()
def generate(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(_KINDS)}.")],
    out: Annotated[Path, typer.Argument(help="Where to write; .gz compresses.", dir_okay=False)],
    rate: Annotated[float, typer.Option(help="Requests/s; the highest where it varies.")] = 5.0,
    low: Annotated[
        float | None, typer.Option(help="The lowest rate where it varies; absent: a quarter.")
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds.", min=1.0)] = 3600.0,
    isl: Annotated[float, typer.Option(help="Mean prompt tokens (not for sessions).")] = 1024.0,
    osl: Annotated[float, typer.Option(help="Mean output tokens (not for sessions).")] = 256.0,
    period: Annotated[
        float | None, typer.Option(help="Of a sinusoid or a day, seconds; absent: the duration.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label all requests so.")] = None,
    seed: Seed = 0,
) -> None:
    """Generate a trace and write it in our own CSV format.

    [bold]poisson, bursts, diurnal, ramp, step, sinusoid[/bold] shape the rate; [bold]drift[/bold]
    moves the lengths from 2x to 0.5x prompt and 0.5x to 2x output at a constant rate;
    [bold]conversation, agentic, assistant[/bold] are sessions with system prompts and prefixes.

    [bold]Examples[/bold]

      hrl-planner trace generate diurnal day.csv --rate 20 --duration 7200 --seed 1

      hrl-planner trace generate conversation chats.csv.gz --rate 3.4
    """
    import math

    from hrl_planner.errors import TraceError
    from hrl_planner.workload import write_trace
    from hrl_planner.workload.generators import independent_requests, sessions
    from hrl_planner.workload.prefixes import SESSION_MODELS

    if kind not in _KINDS:
        raise TraceError(f"unknown kind of trace {kind!r}; one of: {', '.join(_KINDS)}")
    quiet = rate / 4 if low is None else low
    if not (0 <= quiet <= rate and rate > 0):
        raise TraceError(f"options --low {quiet}, --rate {rate}: needs 0 <= low <= rate, rate > 0")
    period_s = duration if period is None else period
    if not 0 < period_s < math.inf:
        raise TraceError(f"option --period {period_s}: needs a finite number above 0")
    curve = _curve(kind, rate, quiet, duration, isl, osl, period_s, seed)
    if kind in SESSION_MODELS:
        trace = sessions(curve, SESSION_MODELS[kind], seed=seed, label=label, name=kind)
    else:
        trace = independent_requests(curve, seed=seed, label=label, name=kind)
    write_trace(trace, out)
    _print_statistics(trace)
    typer.echo(f"written to {out}")


@app.command()
def scenarios(
    name: Annotated[str | None, typer.Argument(help="Tell more about this one.")] = None,
) -> None:
    """List the named scenarios and where they come from, or explain one.

    [bold]Examples[/bold]

      hrl-planner trace scenarios cold-start-ramp
    """
    from rich.console import Console
    from rich.table import Table

    from hrl_planner.workload.scenarios import SCENARIOS, find_scenario

    console = Console()
    if name is not None:
        scenario = find_scenario(name)
        console.print(f"[bold]{scenario.name}[/bold]: {scenario.title} ({scenario.source})")
        console.print(scenario.description)
        console.print(f"{scenario.duration_s / 60:g} minutes on the spec {scenario.spec}")
        return
    table = Table(box=None, header_style="bold")
    for column in ("scenario", "what happens", "source"):
        table.add_column(column, no_wrap=column == "scenario")
    for scenario in SCENARIOS.values():
        table.add_row(scenario.name, scenario.title, scenario.source)
    console.print(table)


def _curve(
    kind: str,
    rate: float,
    low: float,
    duration: float,
    isl: float,
    osl: float,
    period: float,
    seed: int,
) -> RateCurve:
    from hrl_planner.workload import curves

    if kind == "bursts":
        return curves.bursts(low, rate, duration, seed=seed, isl=isl, osl=osl)
    if kind == "diurnal":
        trough = low / rate
        return curves.diurnal(rate, duration, trough=trough, day_s=period, isl=isl, osl=osl)
    if kind == "ramp":
        return curves.ramp(low, rate, duration, isl=isl, osl=osl)
    if kind == "step":
        return curves.steps([low, rate], duration, isl=isl, osl=osl)
    if kind == "sinusoid":
        return curves.sinusoid(low, rate, duration, period_s=period, isl=isl, osl=osl)
    curve = curves.constant(rate, duration, isl=isl, osl=osl)
    if kind == "drift":
        return curves.drift(curve, isl=(2 * isl, isl / 2), osl=(osl / 2, 2 * osl))
    return curve


def _print_statistics(trace: Trace) -> None:
    from rich.console import Console
    from rich.table import Table

    from hrl_planner.workload.statistics import describe

    stats = describe(trace)
    console = Console()
    console.print(f"[bold]{trace.name}[/bold]: {stats.requests:,} requests, {_span(trace)}")
    top = max(stats.peak_rps, 1e-12)
    bars = "".join(_BARS[round(float(r) / top * (len(_BARS) - 1))] for r in stats.rates_rps)
    console.print(f"rate  {bars}", highlight=False)
    console.print(
        f"      mean {stats.rate_rps:.3g}/s, peak {stats.peak_rps:.3g}/s in "
        f"{stats.window_s:.3g} s; dispersion {stats.dispersion:.2f} (Poisson: 1)"
    )
    table = Table(box=None, header_style="bold")
    table.add_column("tokens")
    for column in ("mean", "cv", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    for name, values in (("prompt", stats.isl), ("output", stats.osl)):
        mean, cv, *rest = values
        table.add_row(name, f"{mean:,.0f}", f"{cv:.2f}", *(f"{value:,.0f}" for value in rest))
    console.print(table)
    if trace.labels:
        parts = [f"{n} {(trace.label == i).mean():.1%}" for i, n in enumerate(trace.labels)]
        console.print("labels: " + ", ".join(parts))
    if stats.sessions:
        per = (trace.session_id >= 0).sum() / stats.sessions
        console.print(f"sessions: {stats.sessions:,}, {per:.2f} requests each")
    if stats.n_blocks:
        console.print(
            f"prefixes: {stats.n_blocks:,} blocks of {trace.block_tokens} tokens; an unlimited "
            f"cache would save {stats.reuse:.1%} of the prompt tokens"
        )


def _span(trace: Trace) -> str:
    seconds = trace.duration_s
    return f"{seconds / 3600:.2f} h" if seconds >= 7200 else f"{seconds:,.0f} s"
