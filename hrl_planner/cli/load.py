"""`hrl-planner load`: a trace against a real endpoint, and what its clients saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrl_planner.errors import LoadError

if TYPE_CHECKING:
    from hrl_planner.load import Closed, LoadOptions, LoadResult, Offered, Pace, Target
    from hrl_planner.spec import ClusterSpec
    from hrl_planner.workload import Trace

_SUFFIXES = (".parquet", ".jsonl")
_DURATION_S = 60.0


def load(
    url: Annotated[str, typer.Argument(help="Endpoint, as http://127.0.0.1:8000.")],
    model: Annotated[
        str | None,
        typer.Option(help=r"\[default: the first of /v1/models]", show_default=False),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            help="Cluster whose SLO classes the requests get: a .yaml file, or small, reference, "
            r"large. \[default: the scenario's own, else none]",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Named scenario.")] = None,
    trace: Annotated[str | None, typer.Option(help="Trace file (CSV or JSONL).")] = None,
    isl: Annotated[
        int, typer.Option(min=1, help="Prompt tokens, without a scenario or trace.")
    ] = 1000,
    osl: Annotated[
        int, typer.Option(min=1, help="Output tokens, without a scenario or trace.")
    ] = 100,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Poisson arrivals per second, instead of those.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Replay the trace so many times faster.")] = 1.0,
    load_factor: Annotated[
        float, typer.Option("--load", min=0.001, max=1000.0, help="Multiply the request rate.")
    ] = 1.0,
    until: Annotated[
        float | None, typer.Option(min=1.0, help="Cut the workload after this many seconds of it.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(help="Closed loop: so many requests at a time, arrival times ignored."),
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Closed loop: how many in all.")] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            help=r"Seconds to send for (closed loop, or with --rate). \[default with --rate: 60]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of requests, classes and prompts.")] = 0,
    ttft: Annotated[
        float | None, typer.Option(min=0.001, help="TTFT target in ms, without a spec.")
    ] = None,
    itl: Annotated[
        float | None, typer.Option(min=0.001, help="ITL target in ms, without a spec.")
    ] = None,
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    prompt: Annotated[
        str, typer.Option(help="words (one token each) or ids (completions only).")
    ] = "words",
    vocabulary: Annotated[int, typer.Option(help="Token ids and words stay below it.")] = 32_000,
    header: Annotated[
        list[str] | None, typer.Option(help="'Name: value', sent with every request; repeatable.")
    ] = None,
    stream: Annotated[bool, typer.Option(help="Stream answers.")] = True,
    send_slo: Annotated[bool, typer.Option(help="Send targets as nvext.router.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds a request gets.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds running requests get at the end.")] = 120.0,
    engine_speed: Annotated[
        float, typer.Option(help="Engines run so many times faster; times are multiplied by it.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a row per request: a .parquet or .jsonl file.", dir_okay=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Send a trace to an OpenAI endpoint and show what its clients saw, by SLO class.

    Open loop by default: requests go out when the trace says, whatever becomes of those before.
    Attainment counts offered requests: one that was rejected, failed or came late misses its SLO.
    Ctrl-C ends the run and keeps what was measured.

    [bold]Examples[/bold]

      hrl-planner load http://127.0.0.1:8000 --scenario diurnal-mix --until 600

      hrl-planner load http://127.0.0.1:8000 --trace day.csv --spec small --speed 4 --out r.parquet

      hrl-planner load http://127.0.0.1:8000 --concurrency 64 --duration 30 --isl 1000 --osl 64

      hrl-planner load http://127.0.0.1:8000 --rate 5 --duration 60 --ttft 500 --itl 50 --json
    """
    from hrl_planner.load import LoadOptions, SloTarget, Target
    from hrl_planner.load.prompts import offer, offer_as

    if out is not None and out.suffix not in _SUFFIXES:
        raise LoadError(f"out {out}: must end in {' or '.join(_SUFFIXES)}")
    loop = _loop(speed, concurrency, requests, duration, rate)
    requests_, cluster = _requests(
        (scenario, trace), spec, (isl, osl), rate, duration, seed, load_factor, until
    )
    options = LoadOptions(
        loop=loop,
        stream=stream,
        send_slo=send_slo,
        seed=seed,
        timeout_s=timeout,
        grace_s=grace,
        engine_speed=engine_speed,
    )
    target = Target(
        url=url,
        model=model or _first_model(url, header or []),
        api=api,  # type: ignore[arg-type]  # checked by Target, which has the better message
        prompt=prompt,  # type: ignore[arg-type]
        vocabulary=vocabulary,
        headers=_headers(header or []),
    )
    if cluster is not None:
        offered = offer(requests_, cluster, seed)
    else:
        offered = offer_as(requests_, SloTarget("", ttft or float("inf"), itl or float("inf")))
    result = _run(offered, target, options)
    _report(result, out, json_)


def _loop(
    speed: float,
    concurrency: int | None,
    requests: int | None,
    duration: float | None,
    rate: float | None,
) -> Pace | Closed:
    from hrl_planner.load import Closed, Pace

    if concurrency is not None:
        if speed != 1.0:
            raise LoadError("speed: a closed loop (--concurrency) has no arrival times to speed up")
        return Closed(concurrency, requests, duration)
    if requests is not None or (duration is not None and rate is None):
        raise LoadError(
            "requests, duration: bound a closed loop; give --concurrency, or cut a trace with "
            "--until"
        )
    return Pace(speed)


def _requests(
    named: tuple[str | None, str | None],
    spec: str | None,
    lengths: tuple[int, int],
    rate: float | None,
    duration: float | None,
    seed: int,
    load_factor: float,
    until: float | None,
) -> tuple[Trace, ClusterSpec | None]:
    """The trace, and the spec whose classes its requests get."""
    scenario, trace = named
    if scenario is None and trace is None:
        from hrl_planner.spec import ClusterSpec

        cluster = ClusterSpec.load(spec) if spec is not None else None
        return _uniform(*lengths, rate, duration, seed), cluster
    if rate is not None:
        raise LoadError("rate: a scenario or trace has its own arrivals; --load multiplies them")
    from agents.evaluate.cases import choose_workloads, load_case, load_spec

    workloads = choose_workloads([scenario] if scenario else [], [trace] if trace else [])
    if len(workloads) != 1:
        raise LoadError("give one --scenario or one --trace, not both")
    # A trace file without --spec has requests but no promises; any spec will do to read it.
    cluster = load_spec(spec, workloads)
    case = load_case(workloads[0], cluster, seed, load=load_factor, until_s=until)
    return case.trace, case.spec if spec is not None or scenario is not None else None


def _uniform(isl: int, osl: int, rate: float | None, duration: float | None, seed: int) -> Trace:
    """Requests of one length: one for a closed loop to repeat, or Poisson arrivals."""
    import numpy as np

    from hrl_planner.workload import Trace

    length_s = _DURATION_S if duration is None else duration
    _check_uniform(isl, osl, rate, length_s)
    arrival_s = np.zeros(1)
    if rate is not None:
        rng = np.random.default_rng(seed)
        # Given their number, Poisson arrivals are uniform.
        arrival_s = np.sort(rng.uniform(0, length_s, max(1, rng.poisson(rate * length_s))))
    n = len(arrival_s)
    return Trace(
        f"{isl}/{osl} tokens",
        arrival_s,
        np.full(n, isl, dtype=np.int32),
        np.full(n, osl, dtype=np.int32),
        length_s,
    )


def _check_uniform(isl: int, osl: int, rate: float | None, length_s: float) -> None:
    """Refuse what no requests can be made of.

    Raises:
        LoadError: with option and value.
    """
    import math

    from hrl_planner.workload.curves import MAX_REQUESTS
    from hrl_planner.workload.trace import MAX_TOKENS

    for option, tokens in (("isl", isl), ("osl", osl)):
        if tokens > MAX_TOKENS:
            raise LoadError(f"{option} {tokens}: at most {MAX_TOKENS} tokens")
    for option, value in (("rate", rate), ("duration", length_s)):
        if value is not None and not 0 < value < math.inf:
            raise LoadError(f"{option} {value}: a finite number above 0")
    if rate is not None and rate * length_s > MAX_REQUESTS:
        raise LoadError(
            f"rate {rate:g}, duration {length_s:g}: {rate * length_s:.3g} requests, at most "
            f"{MAX_REQUESTS}"
        )


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for line in given:
        name, colon, value = line.partition(":")
        if not colon:
            raise LoadError(f"header {line!r}: expected 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def _first_model(url: str, header: list[str]) -> str:
    """Ask the server what it serves."""
    import json
    import urllib.error
    import urllib.request

    from hrl_planner.load.connection import Address

    Address.parse(url)
    asked = f"{url.rstrip('/').removesuffix('/v1')}/v1/models"
    request = urllib.request.Request(asked, headers=_headers(header))
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except urllib.error.URLError as error:
        raise LoadError(f"url {url}: nothing answers: {error.reason}") from error
    except OSError as error:
        raise LoadError(f"url {url}: nothing answers: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise LoadError(f"{asked}: names no model; give one with --model") from error


def _run(offered: Offered, target: Target, options: LoadOptions) -> LoadResult:
    """Replay under a progress bar; Ctrl-C stops sending and keeps what was measured."""
    import asyncio
    import signal

    import uvloop
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeElapsedColumn

    from hrl_planner.load import Progress, replay

    bar = Bar(
        TextColumn(offered.trace.name),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
        transient=True,
    )

    async def run() -> LoadResult:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)

        def on_progress(now: Progress) -> None:
            failed = f", {now.failed:,} failed" if now.failed else ""
            state = f"{now.sent:,} sent, {now.sent - now.ended:,} running{failed}"
            rate = now.tokens / now.elapsed_s
            bar.update(task, state=f"{state}, {rate:,.0f} tokens/s")

        return await replay(offered, target, options, on_progress=on_progress, stop=stop)

    with bar, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        task = bar.add_task("", total=None, state="")
        return runner.run(run())


def _report(result: LoadResult, out: Path | None, as_json: bool) -> None:
    import json

    from hrl_planner.cli._load_tables import print_summary, write_requests
    from hrl_planner.cli._runs import INTERRUPTED
    from hrl_planner.load import summarise

    summary = summarise(result)
    if out is not None:
        write_requests(result, out)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    else:
        print_summary(summary)
        if out is not None:
            typer.echo(f"wrote {out}")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
