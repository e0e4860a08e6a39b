"""The loads every router is put under, and what is kept of a run."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from hrl_planner.load import (
    Closed,
    LoadOptions,
    LoadResult,
    Offered,
    SloTarget,
    Target,
    replay,
    summarise,
)
from hrl_planner.load.options import Api
from hrl_planner.workload import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        requests_rps: whole answers per second.
        tokens_per_s: output tokens per second.
        failed: requests without a whole answer.
        ttft_p50_ms: over all requests, as is what follows.
        ttft_p99_ms: failed ones count as infinitely late.
        itl_p50_ms: mean inter-token latency of the median request.
        itl_p99_ms: that of the slowest in a hundred.
        itl_mean_ms: over all tokens.
        client_cores: processor time of the client over the run's time.
        stack_cores: that of the programs under measurement; NaN where not measured.
        stack_ms_per_request: their processor time per request.
        engines_ms_per_request: that of the engines among them; NaN where not measured.
        first_error: in words, empty without failures.
    """

    requests_rps: float
    tokens_per_s: float
    failed: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    itl_mean_ms: float
    client_cores: float
    stack_cores: float
    stack_ms_per_request: float
    engines_ms_per_request: float
    first_error: str

    @property
    def routers_ms_per_request(self) -> float:
        """Processor time per request of all that lies between client and engine."""
        return self.stack_ms_per_request - self.engines_ms_per_request

    def __str__(self) -> str:
        """One line for people."""
        text = (
            f"{self.requests_rps:,.1f} req/s, {self.tokens_per_s:,.0f} tokens/s, "
            f"TTFT p50 {self.ttft_p50_ms:.0f} p99 {self.ttft_p99_ms:.0f} ms, "
            f"ITL p50 {self.itl_p50_ms:.1f} p99 {self.itl_p99_ms:.1f} ms, "
            f"client {self.client_cores:.2f} cores"
        )
        if not np.isnan(self.stack_cores):
            text += f", stack {self.stack_cores:.2f} ({self.stack_ms_per_request:.1f} ms/request)"
        if not np.isnan(self.engines_ms_per_request):
            text += f", {self.engines_ms_per_request:.1f} of it the engines'"
        return text + (f", {self.failed} failed: {self.first_error[:120]}" if self.failed else "")


NOTHING_PROMISED = (SloTarget(),)


@dataclass(frozen=True)
class Shape:
    """What the requests of a load look like.

    Attributes:
        isl: prompt tokens, unique to each request.
        osl: output tokens.
        api: completions or chat.
        classes: what requests are promised; they take turns.
        seed: other prompts for another seed.
    """

    isl: int = 1000
    osl: int = 64
    api: Api = "completions"
    classes: tuple[SloTarget, ...] = NOTHING_PROMISED
    seed: int = 0


def closed_loop(
    url: str,
    model: str,
    shape: Shape,
    *,
    concurrency: int,
    duration_s: float | None = None,
    cpu_s: Callable[[], float] | None = None,
    engines_cpu_s: Callable[[], float] | None = None,
) -> Measured:
    """Keep so many requests on their way.

    Args:
        url: of the router.
        model: name to ask for.
        shape: of the requests.
        concurrency: requests at a time.
        duration_s: no request is sent after that; those on their way finish and count. None
            sends `concurrency` requests, all at once.
        cpu_s: processor time so far of what is measured.
        engines_cpu_s: of the engines in it.
    """
    offered = _offered(np.zeros(len(shape.classes)), shape)
    requests = concurrency if duration_s is None else None
    loop = Closed(concurrency, requests, duration_s)
    options = LoadOptions(loop=loop, seed=shape.seed)
    return _measure(url, model, shape, offered, options, cpu_s, engines_cpu_s)


def steady(
    url: str,
    model: str,
    shape: Shape,
    *,
    rate_rps: float,
    duration_s: float,
    cpu_s: Callable[[], float] | None = None,
    engines_cpu_s: Callable[[], float] | None = None,
) -> Measured:
    """Send requests at a constant rate, for latencies without queues; see `closed_loop`."""
    offered = _offered(np.arange(0.0, duration_s, 1.0 / rate_rps), shape)
    options = LoadOptions(seed=shape.seed)
    return _measure(url, model, shape, offered, options, cpu_s, engines_cpu_s)


def _offered(arrival_s: Floats, shape: Shape) -> Offered:
    n = len(arrival_s)
    lengths = np.full(n, shape.isl, np.int32), np.full(n, shape.osl, np.int32)
    name = f"{shape.isl}/{shape.osl} tokens"
    trace = Trace(name, arrival_s, *lengths, float(arrival_s[-1]) + 1.0)
    return Offered(trace, shape.classes, (np.arange(n) % len(shape.classes)).astype(np.int16))


def _measure(
    url: str,
    model: str,
    shape: Shape,
    offered: Offered,
    options: LoadOptions,
    cpu_s: Callable[[], float] | None = None,
    engines_cpu_s: Callable[[], float] | None = None,
) -> Measured:
    clocks = [clock or (lambda: np.nan) for clock in (cpu_s, engines_cpu_s)]
    before_s = [clock() for clock in clocks]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(replay(offered, Target(url, model, shape.api), options))
    return measured(result, *(clock() - b for clock, b in zip(clocks, before_s, strict=True)))


def measured(
    result: LoadResult, stack_cpu_s: float = np.nan, engines_cpu_s: float = np.nan
) -> Measured:
    """What is kept of a run."""
    summary = summarise(result)
    total = {name: float(v) for name, v in summary.total.items() if not isinstance(v, str)}
    return Measured(
        requests_rps=total["requests_rps"],
        tokens_per_s=total["tokens_per_s"],
        failed=int((~result.finished).sum()),
        ttft_p50_ms=total["ttft_p50_ms"],
        ttft_p99_ms=total["ttft_p99_ms"],
        itl_p50_ms=total["itl_p50_ms"],
        itl_p99_ms=total["itl_p99_ms"],
        itl_mean_ms=_mean_itl_ms(result),
        client_cores=result.client.cpu_share,
        stack_cores=stack_cpu_s / result.wall_s,
        stack_ms_per_request=1e3 * stack_cpu_s / len(result),
        engines_ms_per_request=1e3 * engines_cpu_s / len(result),
        first_error=next(iter(summary.errors.values()), ""),
    )


def _mean_itl_ms(result: LoadResult) -> float:
    whole = result.finished & (result.tokens > 1)
    streaming_s = (result.last_token_s - result.first_token_s)[whole].sum()
    return 1e3 * float(streaming_s / np.maximum((result.tokens - 1)[whole].sum(), 1))


def short_requests_rps(
    url: str, model: str, *, isl: int = 400, concurrency: int = 64, duration_s: float = 8.0
) -> float:
    """Requests of one token, not streamed, per second: what a router does with a request at all.

    A body of 400 tokens has 2 kB. `wrk` sends them where it is installed, at a tenth of what a
    Python client takes of the shared cores.
    """
    words = " ".join(f"t{n % 32_000}" for n in range(256, 256 + isl))
    body = f'{{"model":"{model}","prompt":"{words}","max_tokens":1}}'
    if shutil.which("wrk"):
        return _wrk_rps(url, body, concurrency, duration_s)
    shape = Shape(isl=isl, osl=1)
    options = LoadOptions(loop=Closed(concurrency, duration_s=duration_s), stream=False)
    return _measure(url, model, shape, _offered(np.zeros(1), shape), options).requests_rps


def _wrk_rps(url: str, body: str, concurrency: int, duration_s: float) -> float:
    script = (
        'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
        f"wrk.body = [[{body}]]\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "post.lua"
        path.write_text(script)
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{duration_s:.0f}s", "-s", str(path)]
        done = subprocess.run(
            [*command, f"{url}/v1/completions"], check=True, capture_output=True, text=True
        )
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    if found is None or bad is not None:
        raise RuntimeError(f"wrk could not load {url}: {done.stdout}{done.stderr}")
    return float(found[1])
