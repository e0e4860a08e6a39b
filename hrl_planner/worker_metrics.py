"""What engines call the things we read of them: one table of names, and a fast reader of pages.

A *quantity* is what a router or planner wants to know (requests running, prompt tokens so far, a
histogram of TTFT). Engines have their own words for it, and they change: the table lists the
alternatives of each, best first, and the first that a page has counts. An alternative of several
families is their sum. Over the series of a family (ranks, models, reasons) counts are added and
shares averaged.

Nothing here knows time, pools or transport.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Gauge = Literal["running", "waiting", "kv_use"]
Counter = Literal[
    "arrived",
    "finished",
    "prompt_tokens",
    "generated_tokens",
    "cache_queries",
    "cache_hits",
    "preemptions",
]
Distribution = Literal["ttft_s", "itl_s", "e2e_s", "prompt_length", "answer_length"]

GAUGES: tuple[Gauge, ...] = get_args(Gauge)
COUNTERS: tuple[Counter, ...] = get_args(Counter)
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

# A Dynamo worker counts calls of all its endpoints; requests are those of this one.
_DYNAMO_REQUESTS = 'dynamo_endpoint="generate"'
# Dynamo's workers pass on what their engine says, so its own names come last.
SCALARS: Mapping[Gauge | Counter, tuple[tuple[str, ...], ...]] = {
    "running": (
        ("vllm:num_requests_running",),
        ("sglang:num_running_reqs",),
        ("dynamo_component_inflight_requests",),
    ),
    "waiting": (
        ("vllm:num_requests_waiting",),
        (
            "sglang:num_queue_reqs",
            # Requests whose KV cache is to be or being received; absent unless disaggregated.
            "sglang:num_prefill_prealloc_queue_reqs",
            "sglang:num_decode_prealloc_queue_reqs",
            "sglang:num_decode_transfer_queue_reqs",
        ),
    ),
    "kv_use": (
        ("vllm:kv_cache_usage_perc",),
        ("vllm:gpu_cache_usage_perc",),  # its name before 0.10
        ("sglang:token_usage",),
        ("dynamo_component_gpu_cache_usage_percent",),  # 0 to 1, whatever its name says
    ),
    "arrived": (("dynamo_component_requests_total",),),
    "finished": (
        ("vllm:request_success_total",),
        ("sglang:num_requests_total",),
        ("vllm:e2e_request_latency_seconds_count",),
        ("sglang:e2e_request_latency_seconds_count",),
    ),
    "prompt_tokens": (("vllm:prompt_tokens_total",), ("sglang:prompt_tokens_total",)),
    "generated_tokens": (("vllm:generation_tokens_total",), ("sglang:generation_tokens_total",)),
    "cache_queries": (
        ("vllm:prefix_cache_queries_total",),
        ("vllm:gpu_prefix_cache_queries_total",),  # its name before 0.10
        ("sglang:prompt_tokens_total",),
    ),
    "cache_hits": (
        ("vllm:prefix_cache_hits_total",),
        ("vllm:gpu_prefix_cache_hits_total",),
        ("sglang:cached_tokens_total",),
    ),
    "preemptions": (("vllm:num_preemptions_total",), ("sglang:num_retracted_requests_total",)),
}
HISTOGRAMS: Mapping[Distribution, tuple[str, ...]] = {
    "ttft_s": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "itl_s": (
        # Of a request's mean, which is what is promised; the others count every gap by itself.
        "vllm:request_time_per_output_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    "e2e_s": (
        "vllm:e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "dynamo_component_request_duration_seconds",
    ),
    "prompt_length": ("vllm:request_prompt_tokens", "sglang:prompt_tokens_histogram"),
    "answer_length": ("vllm:request_generation_tokens", "sglang:generation_tokens_histogram"),
}
SCALAR_FAMILIES: frozenset[str] = frozenset(
    name for rows in SCALARS.values() for names in rows for name in names
)
HISTOGRAM_FAMILIES = frozenset(name for names in HISTOGRAMS.values() for name in names)

_SERIES = re.compile(
    r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+([-+]?(?:[0-9.][\w.+-]*|Inf|NaN))(?:\s+-?\d+)?\s*",
    re.ASCII,
)
# A quote inside a label's value is escaped, so this cannot match there.
_UPPER_EDGE = re.compile(r'(?:^|,)\s*le="([^"]*)"')


class Series(NamedTuple):
    """One line of a page.

    Attributes:
        name: with its suffix (`_total`, `_bucket`, ...).
        labels: as text between the braces.
        value: the number.
    """

    name: str
    labels: str
    value: float


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """A histogram since the engine's start.

    Attributes:
        upper_edges: of the buckets, ascending, the last infinite.
        cumulative: observations at or below each edge.
        total: sum of the observed values, NaN where the page has none.
    """

    upper_edges: tuple[float, ...]
    cumulative: tuple[float, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one page says; a quantity that it does not say is missing.

    Attributes:
        scalars: gauges, and counters since the engine's start.
        histograms: distributions since the engine's start.
    """

    scalars: Mapping[str, float]
    histograms: Mapping[str, HistogramCounts]


def series_of(page: str, prefixes: tuple[str, ...]) -> Iterator[Series]:
    """Yield the lines of a page in Prometheus' text format that begin with one of `prefixes`.

    An engine's page is 60 kB. The parser of `prometheus_client` takes 29 ms for it, this 0.5 ms.

    Raises:
        ValueError: such a line is not in the format.
    """
    for line in page.splitlines():
        if line.startswith(prefixes):
            match = _SERIES.fullmatch(line)
            if match is None:
                raise ValueError(f"not a metric: {line[:200]!r}")
            name, labels, value = match.groups()
            yield Series(name, labels or "", float(value))


def read(series: Iterable[Series], *, histograms: bool = True) -> Reading:
    """Find the known quantities among the series of one worker."""
    values: dict[str, list[float]] = {}
    buckets: dict[str, dict[float, float]] = {}
    totals: dict[str, float] = {}
    for name, labels, value in series:
        if name.startswith("dynamo_component_") and _is_other_endpoint(labels):
            continue
        if name in SCALAR_FAMILIES:
            values.setdefault(name, []).append(value)
        if not histograms:
            continue
        family, _, suffix = name.rpartition("_")
        if family not in HISTOGRAM_FAMILIES:
            continue
        if suffix == "bucket" and (edge := _UPPER_EDGE.search(labels)) is not None:
            row = buckets.setdefault(family, {})
            row[float(edge[1])] = row.get(float(edge[1]), 0.0) + value
        elif suffix == "sum":
            totals[family] = totals.get(family, 0.0) + value
    return Reading(_scalars(values), _histograms(buckets, totals))


def _is_other_endpoint(labels: str) -> bool:
    return "dynamo_endpoint=" in labels and _DYNAMO_REQUESTS not in labels


def _scalars(values: Mapping[str, list[float]]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for what, alternatives in SCALARS.items():
        for names in alternatives:
            # The first name of a sum is the one that every version has.
            if names[0] in values:
                found = [value for name in names for value in values.get(name, ())]
                total = math.fsum(found)
                scalars[what] = total / len(found) if what == "kv_use" else total
                break
    return scalars


def _histograms(
    buckets: Mapping[str, Mapping[float, float]], totals: Mapping[str, float]
) -> dict[str, HistogramCounts]:
    histograms: dict[str, HistogramCounts] = {}
    for what, names in HISTOGRAMS.items():
        for name in names:
            if name in buckets:
                edges = tuple(sorted(buckets[name]))
                counts = tuple(buckets[name][edge] for edge in edges)
                histograms[what] = HistogramCounts(edges, counts, totals.get(name, math.nan))
                break
    return histograms
