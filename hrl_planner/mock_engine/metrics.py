"""What an engine counts, under vLLM's names, labels and buckets.

Names and buckets are those of vLLM's `v1/metrics/loggers.py`. The time between tokens is there
three times: by its name, by its older name, and as every request's mean. All requests of a decode
batch see the same interval between tokens, so a step books it once with its weight: a token costs
nothing here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from hrl_planner.mock_engine.engine import Engine, Job, StepReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FINISHED_REASONS = ("stop", "length", "abort")


def token_buckets(max_model_len: int) -> list[float]:
    """Return 1, 2, 5, 10, 20, 50 and so on up to the longest request."""
    steps = (m * 10**e for e in range(len(str(max_model_len))) for m in (1, 2, 5))
    return [float(step) for step in steps if step <= max_model_len]


class Histogram:
    """Observations in buckets, each with a weight."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with none."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it was seen."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return cumulative counts by upper bound, and the sum of values."""
        total, rows = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows, self._sum


class EngineMetrics:
    """Counts one engine's steps and requests; a Prometheus collector.

    Args:
        model: the served name, a label of every metric.
        max_model_len: ends the buckets of token counts.
    """

    def __init__(self, model: str, max_model_len: int) -> None:
        """Count from 0."""
        self._model = model
        self._engine: Engine | None = None
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._cache_queries = 0
        self._cache_hits = 0
        self._success = dict.fromkeys(_FINISHED_REASONS, 0)
        lengths = token_buckets(max_model_len)
        self._ttft = Histogram(_TTFT_S)
        self._itl = Histogram(_ITL_S)
        self._mean_itl = Histogram(_ITL_S)
        self._e2e = Histogram(_LATENCY_S)
        self._queue_time = Histogram(_LATENCY_S)
        self._prompt_length = Histogram(lengths)
        self._answer_length = Histogram(lengths)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch(self, engine: Engine) -> None:
        """Read the gauges of an engine from now on."""
        self._engine = engine

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def on_step(self, report: StepReport) -> None:
        """Count a step that has ended."""
        step, end, now = report.step, report.end, report.ended_s
        continuing = 0
        for job in step.decoding:
            if job.generated > 1:
                continuing += 1
            else:  # its prompt was computed elsewhere
                self._on_first_token(job, now)
        if continuing:
            self._itl.observe(now - report.began_s, continuing)
        for job in end.completed:
            self._cache_queries += job.isl
            self._cache_hits += job.cached_tokens
            self._on_first_token(job, now)
            if not job.decodes_here:
                self._on_finished(job, now, generated=1)
        self._generation_tokens += len(step.decoding) + len(end.completed)
        for job in end.finished:
            self._on_finished(job, now, generated=job.osl)

    def on_abort(self) -> None:
        """Count a request whose client went away."""
        self._success["abort"] += 1

    def _on_first_token(self, job: Job, now: float) -> None:
        self._prompt_tokens += job.isl
        self._ttft.observe(max(0.0, now - job.arrival_s))
        if job.started_s is not None:
            self._queue_time.observe(max(0.0, job.started_s - job.arrival_s))

    def _on_finished(self, job: Job, now: float, generated: int) -> None:
        self._success["length"] += 1
        # Of an answer with one token vLLM says 0, too.
        decoding_s = now - job.first_token_s if generated > 1 else 0.0
        self._mean_itl.observe(max(0.0, decoding_s) / max(1, generated - 1))
        self._e2e.observe(max(0.0, now - job.arrival_s))
        self._prompt_length.observe(job.isl)
        self._answer_length.observe(generated)

    # ---- what prometheus_client asks of a collector

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: the registry is this collector's own."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it is now."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        engine = self._engine
        if engine is None:
            return
        for name, text, value in (
            ("num_requests_running", "Requests in model execution batches.", engine.n_running),
            ("num_requests_waiting", "Requests waiting to be processed.", engine.n_waiting),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.kv_usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            gauge.add_metric([self._model, "0"], value)
            yield gauge
        lag = CounterMetricFamily(
            "mock_engine_lag_seconds", "Time given up because this process could not keep up."
        )
        lag.add_metric([], engine.lag_s)
        yield lag

    def _counters(self) -> Iterator[Metric]:
        for name, text, value in (
            ("prompt_tokens", "Prefill tokens processed.", self._prompt_tokens),
            ("generation_tokens", "Generation tokens processed.", self._generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up.", self._cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", self._cache_hits),
            ("num_preemptions", "Preemptions; this engine reserves and has none.", 0),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            counter.add_metric([self._model, "0"], value)
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success",
            "Requests that ended, by reason.",
            labels=["model_name", "engine", "finished_reason"],
        )
        for reason, value in self._success.items():
            success.add_metric([self._model, "0", reason], value)
        yield success

    def _histograms(self) -> Iterator[Metric]:
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Arrival to first token.", self._ttft),
            ("inter_token_latency_seconds", "Between two tokens of a request.", self._itl),
            ("time_per_output_token_seconds", "Older name of inter_token_latency.", self._itl),
            ("request_time_per_output_token_seconds", "Mean of a request.", self._mean_itl),
            ("e2e_request_latency_seconds", "Arrival to last token.", self._e2e),
            ("request_queue_time_seconds", "Arrival to the first step.", self._queue_time),
            ("request_prompt_tokens", "Prompt tokens per request.", self._prompt_length),
            ("request_generation_tokens", "Tokens per answer.", self._answer_length),
        ):
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
            buckets, total = histogram.buckets()
            family.add_metric([self._model, "0"], buckets=buckets, sum_value=total)
            yield family
