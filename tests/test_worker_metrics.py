"""Pages of engines, as their documentation names the families."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hrl_planner.mock_engine.metrics import EngineMetrics
from hrl_planner.worker_metrics import HISTOGRAM_FAMILIES, SCALAR_FAMILIES, Series, read, series_of

EVERYTHING = tuple(SCALAR_FAMILIES | HISTOGRAM_FAMILIES)

# docs.vllm.ai/en/stable/usage/metrics
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m {x} \\"y\\""} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.7
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 250.0
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1e+06
vllm:generation_tokens_total{engine="0",model_name="m"} 250.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 7.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="m"} 9.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 10.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.25",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="m"} 1.0
vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 0.05
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 99.0
vllm:request_time_per_output_token_seconds_bucket{engine="0",le="0.025",model_name="m"} 6.0
vllm:request_time_per_output_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 12.0
vllm:request_time_per_output_token_seconds_sum{engine="0",model_name="m"} 0.3
vllm:request_prompt_tokens_bucket{engine="0",le="1000.0",model_name="m"} 12.0
vllm:request_prompt_tokens_bucket{engine="0",le="+Inf",model_name="m"} 13.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 9000.0
"""

# docs.sglang.ai/references/production_metrics.html, and the families of a disaggregated engine
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 162.0
sglang:num_queue_reqs{model_name="m"} 28.0
sglang:num_decode_prealloc_queue_reqs{model_name="m"} 3.0
sglang:num_decode_transfer_queue_reqs{model_name="m"} 2.0
sglang:num_prefill_inflight_queue_reqs{model_name="m"} 50.0
sglang:token_usage{model_name="m"} 0.28
sglang:prompt_tokens_total{model_name="m"} 8.128902e+06
sglang:generation_tokens_total{model_name="m"} 7.557572e+06
sglang:cached_tokens_total{cache_source="device",model_name="m"} 60000.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 1000.0
sglang:num_requests_total{model_name="m"} 11228.0
sglang:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 9.0
sglang:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 11228.0
sglang:time_to_first_token_seconds_sum{model_name="m"} 2.35e+06
sglang:time_per_output_token_seconds_bucket{le="0.02",model_name="m"} 73.0
sglang:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 7400757.0
sglang:prompt_tokens_histogram_bucket{le="100.0",model_name="m"} 1.0
sglang:prompt_tokens_histogram_bucket{le="+Inf",model_name="m"} 2.0
sglang:prompt_tokens_histogram_sum{model_name="m"} 700.0
"""

# A mocker's system port: Dynamo's own names beside those of vLLM that the mocker has.
DYNAMO = """\
# TYPE dynamo_component_requests_total counter
dynamo_component_requests_total{dynamo_component="backend",dynamo_endpoint="generate"} 40
dynamo_component_requests_total{dynamo_component="backend",dynamo_endpoint="clear_kv_blocks"} 7
dynamo_component_inflight_requests{dynamo_component="backend",dynamo_endpoint="generate"} 5
dynamo_component_inflight_requests{dynamo_component="backend",dynamo_endpoint="load_metrics"} 1
dynamo_component_gpu_cache_usage_percent{dynamo_component="backend",worker_id="7"} 0.4
dynamo_component_request_duration_seconds_bucket{dynamo_endpoint="generate",le="+Inf"} 35
dynamo_component_request_duration_seconds_sum{dynamo_endpoint="generate"} 70
"""


def parse(page: str):
    return read(series_of(page, EVERYTHING))


def test_vllm():
    found = parse(VLLM)
    assert found.scalars == {
        "running": 7.0,
        "waiting": 2.0,
        "kv_use": 0.6,
        "finished": 13.0,
        "preemptions": 1.0,
        "prompt_tokens": 1e6,
        "generated_tokens": 250.0,
        "cache_queries": 1000.0,
        "cache_hits": 250.0,
    }
    ttft = found.histograms["ttft_s"]
    assert ttft.upper_edges == (0.1, 0.25, math.inf)
    assert ttft.cumulative == (5.0, 10.0, 11.0)
    assert ttft.total == pytest.approx(1.55)
    assert found.histograms["prompt_length"].total == 9000.0


def test_the_mean_of_a_request_is_read_before_single_intervals():
    assert parse(VLLM).histograms["itl_s"].cumulative == (6.0, 12.0)
    older = VLLM.replace("vllm:request_time_per_output_token_seconds", "vllm:something_else")
    assert parse(older).histograms["itl_s"].cumulative == (99.0,)


def test_sglang_with_the_queues_of_a_disaggregated_engine():
    found = parse(SGLANG)
    assert found.scalars["waiting"] == 33.0  # those in flight have been served
    assert found.scalars["running"] == 162.0
    assert found.scalars["cache_hits"] == 61000.0
    assert found.scalars["cache_queries"] == found.scalars["prompt_tokens"]
    assert found.scalars["finished"] == 11228.0
    assert found.histograms["itl_s"].cumulative == (73.0, 7400757.0)
    assert math.isnan(found.histograms["itl_s"].total)
    assert found.histograms["prompt_length"].total == 700.0


def test_dynamo_counts_calls_of_its_generate_endpoint():
    found = parse(DYNAMO)
    assert found.scalars == {"arrived": 40.0, "running": 5.0, "kv_use": 0.4}
    assert found.histograms["e2e_s"].total == 70.0
    beside = parse(DYNAMO + VLLM)
    assert (beside.scalars["running"], beside.scalars["arrived"]) == (7.0, 40.0)


def test_older_names():
    page = 'vllm:gpu_cache_usage_perc{m="x"} 0.25\nvllm:gpu_prefix_cache_hits_total 3\n'
    assert parse(page).scalars == {"kv_use": 0.25, "cache_hits": 3.0}


def test_the_reader_reads_what_prometheus_client_writes():
    registry = CollectorRegistry()
    odd = 'a "b" {c} \\ d,le="7"\ne'
    Gauge("vllm:num_requests_running", "x", ["m"], registry=registry).labels(odd).set(math.nan)
    Counter("vllm:prompt_tokens", "x", ["m"], registry=registry).labels(odd).inc(1e21)
    histogram = Histogram("vllm:request_prompt_tokens", "x", ["m"], registry=registry)
    histogram.labels(odd).observe(3.0)
    found = parse(generate_latest(registry).decode())
    assert math.isnan(found.scalars["running"])
    assert found.scalars["prompt_tokens"] == 1e21
    assert found.histograms["prompt_length"].upper_edges[-1] == math.inf
    assert found.histograms["prompt_length"].cumulative[-1] == 1.0


def test_a_mock_engines_page_has_every_quantity_but_arrivals():
    page = EngineMetrics("m", 4096).exposition().decode()
    found = parse(page)  # gauges need an engine
    assert set(found.scalars) == {
        *("finished", "prompt_tokens", "generated_tokens", "preemptions"),
        *("cache_queries", "cache_hits"),
    }
    assert set(found.histograms) == {"ttft_s", "itl_s", "e2e_s", "prompt_length", "answer_length"}


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running{ 3 not a metric",
        "vllm:num_requests_running",
        'vllm:kv_cache_usage_perc{a="b"} x',
    ],
)
def test_a_line_that_is_no_metric_is_an_error(line: str):
    with pytest.raises(ValueError, match="not a metric"):
        parse(line)


def test_timestamps_and_other_lines_are_passed_over():
    page = "# vllm:kv_cache_usage_perc\nvllm:kv_cache_usage_perc 0.5 1700000000000\npython_info 1\n"
    assert list(series_of(page, ("vllm:",))) == [Series("vllm:kv_cache_usage_perc", "", 0.5)]
