"""Metrics over offered requests, on results small enough to work out by hand."""

import dataclasses
import io

import numpy as np
import pytest

from agents.evaluate import metrics
from agents.evaluate.curves import reduce_run
from agents.evaluate.tables import class_table, pool_table, write_run
from envs.kernel.layout import SAMPLE_FIELDS
from envs.simulation import SimResult
from hrl_planner.spec import AssignSpec, BudgetSpec
from tests.builders import GPU, cluster, pool, slo_class

FINISHED, REJECTED, UNFINISHED = 1, 2, 0
HOUR = 3600.0


def timeline(target, ready=None, starting=None, every_s=5.0):
    target = np.atleast_2d(np.asarray(target))
    samples, pools = target.shape
    kinds = [(name, "<f4" if name == "kv_use" else "<i4", (pools,)) for name in SAMPLE_FIELDS]
    rows = np.zeros(samples, [("t_s", "<f8"), *kinds])
    rows["t_s"] = every_s * np.arange(samples)
    rows["target"] = target
    rows["ready"] = target if ready is None else ready
    rows["starting"] = 0 if starting is None else starting
    return rows


def result(arrival_s, ttft_s, itl_s, status=None, class_id=None, spec=None, **fields):
    """A result of requests with 11 output tokens each."""
    spec = spec or cluster(pool("aggregated"))
    n, pools = len(arrival_s), len(spec.pools)
    arrival = np.asarray(arrival_s, np.float64)
    first = arrival + np.asarray(ttft_s, np.float64)
    columns = {
        "spec": spec,
        "duration_s": 100.0,
        "arrival_s": arrival,
        "class_id": np.asarray(class_id if class_id is not None else [0] * n, np.int16),
        "isl_tokens": np.full(n, 100, np.int32),
        "osl_tokens": np.full(n, 11, np.int32),
        "prefill_pool": np.zeros(n, np.int32),
        "decode_pool": np.zeros(n, np.int32),
        "cached_tokens": np.zeros(n, np.int32),
        "first_token_s": first,
        "finish_s": first + 10 * np.asarray(itl_s, np.float64),
        "status": np.asarray(status if status is not None else [FINISHED] * n, np.int8),
        "restarts": np.zeros(n, np.int8),
        "timeline": timeline([[1] * pools]),
        "gpu_seconds": np.zeros(pools),
        "scale_ups": np.zeros(pools, np.int64),
        "scale_downs": np.zeros(pools, np.int64),
        "failures": np.zeros(pools, np.int64),
    }
    return SimResult(**{**columns, **fields})


# Targets of the builders' class: TTFT 1 s, ITL 0.1 s.
@pytest.fixture
def mixed():
    """One request in time, one with a late first token, one slow, one rejected, one unfinished."""
    nan = np.nan
    return result(
        arrival_s=[0, 10, 20, 30, 40],
        ttft_s=[0.5, 2.0, 0.5, nan, 0.5],
        itl_s=[0.05, 0.05, 0.2, nan, nan],
        status=[FINISHED, FINISHED, FINISHED, REJECTED, UNFINISHED],
    )


def test_shares_are_of_offered_requests(mixed):
    total = metrics.compute(mixed)[0]
    assert total["offered"] == 5
    assert total["attainment"] == pytest.approx(1 / 5)
    assert total["ttft_attainment"] == pytest.approx(3 / 5)
    assert total["itl_attainment"] == pytest.approx(2 / 5)
    assert total["goodput_rps"] == pytest.approx(1 / 100)
    assert (total["rejected"], total["unfinished"]) == (1, 1)


def test_what_never_happened_is_infinitely_late(mixed):
    total = metrics.compute(mixed)[0]
    assert total["ttft_p50_ms"] == pytest.approx(500)
    assert total["ttft_p95_ms"] == np.inf
    # Two of five have no ITL, so the median is the slowest that has one.
    assert total["itl_p50_ms"] == pytest.approx(200)
    assert total["itl_p99_ms"] == np.inf


def test_value_weighs_classes():
    spec = cluster(
        pool("aggregated"),
        slo_classes=(
            slo_class("dear", value=3.0, assign=AssignSpec(share=0.5)),
            slo_class("cheap", value=1.0, assign=AssignSpec(share=0.5)),
        ),
    )
    rows = metrics.compute(
        result([0, 1], ttft_s=[0.1, 9.0], itl_s=[0.01, 0.01], class_id=[0, 1], spec=spec)
    )
    assert [row["class"] for row in rows] == ["all", "dear", "cheap"]
    assert rows[0]["attainment"] == pytest.approx(0.5)
    assert rows[0]["value_attainment"] == pytest.approx(3 / 4)
    assert (rows[1]["attainment"], rows[2]["attainment"]) == (1.0, 0.0)


def test_cost_is_gpu_hours_at_each_pools_price():
    spec = cluster(pool("prefill", price_per_gpu_hour=2.0), pool("decode", price_per_gpu_hour=5.0))
    total = metrics.compute(
        result([0], [0.1], [0.01], spec=spec, gpu_seconds=np.array([HOUR, 2 * HOUR]))
    )[0]
    assert total["gpu_hours"] == pytest.approx(3.0)
    assert total[metrics.gpu_hours_column(GPU)] == pytest.approx(3.0)
    assert total["cost"] == pytest.approx(2.0 + 10.0)
    assert total["cost_per_1k"] == pytest.approx(12_000.0)


def test_cost_per_attained_request_is_unknown_when_none_attained():
    total = metrics.compute(result([0], [9.0], [0.01], gpu_seconds=np.array([HOUR])))[0]
    assert np.isnan(total["cost_per_1k"])


def test_an_empty_trace_has_no_shares():
    total = metrics.compute(result([], [], []))[0]
    assert total["offered"] == 0
    assert np.isnan(total["attainment"]) and np.isnan(total["ttft_p50_ms"])


def test_reversals_are_changes_of_direction_within_ten_minutes():
    t = np.array([0, 100, 200, 300, 1000, 1100], float)
    one_way = np.array([1, 2, 3, 3, 4, 4])[:, None]
    assert [x.sum() for x in metrics.scaling_actions(t, one_way)] == [3, 0]
    up_and_down = np.array([1, 2, 1, 1, 2, 2])[:, None]
    # Down 100 s after up is a reversal; up again 800 s later is not.
    assert [x.sum() for x in metrics.scaling_actions(t, up_and_down)] == [3, 1]


def test_the_budget_counts_starting_and_draining_replicas():
    spec = cluster(pool("aggregated", max_replicas=8), budget=BudgetSpec(gpus={GPU: 4}))
    within = timeline([[4], [4]], ready=[[3], [4]], starting=[[1], [0]])
    over = timeline([[4], [4]], ready=[[4], [4]], starting=[[1], [0]])
    held = result([0], [0.1], [0.01], spec=spec, timeline=within)
    assert metrics.budget_violations(held) == 0
    assert metrics.budget_violations(dataclasses.replace(held, timeline=over)) == 1


def test_the_budget_may_be_in_watts_or_in_all_gpus():
    ready = timeline([[3]])
    for limits, violations in (
        ({"total_gpus": 3}, 0),
        ({"total_gpus": 2}, 1),
        ({"watts": 300.0}, 0),
        ({"watts": 299.0}, 1),
    ):
        spec = cluster(pool("aggregated"), budget=BudgetSpec(gpus={GPU: 4}, **limits))
        held = result([0], [0.1], [0.01], spec=spec, timeline=ready)
        assert metrics.budget_violations(held) == violations, limits


@pytest.mark.parametrize(
    ("bad_minutes", "expected_s"),
    [([], 0), ([2], 60), ([2, 3, 5], 120), ([8, 9], 120)],
    ids=["no dip", "one minute", "the longer of two", "until the end"],
)
def test_recovery_is_the_longest_dip(bad_minutes, expected_s):
    arrival = np.arange(0.0, 600.0, 5.0)
    attained = ~np.isin((arrival // 60).astype(int), bad_minutes)
    assert metrics.recovery_s(arrival, attained, np.ones(arrival.size), 600.0) == expected_s


def test_a_quiet_spell_does_not_end_a_dip():
    arrival = np.array([10.0, 70.0, 250.0, 310.0])
    attained = np.array([True, False, False, True])
    # Bad in minutes 1 and 4, nothing between: one dip from 60 s to 300 s.
    assert metrics.recovery_s(arrival, attained, np.ones(4), 360.0) == 240.0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("attainment", 0.98765, "98.8 %"),
        ("cost", 1234.5, "$1,234.50"),
        ("ttft_p95_ms", np.inf, "never"),
        ("itl_p95_ms", np.nan, "-"),
        ("scaling_actions", 3.0, "3"),
    ],
)
def test_values_read_well(name, value, text):
    assert metrics.METRICS[name].format(value) == text


def test_every_metric_is_computed(mixed):
    rows = metrics.compute(mixed)
    assert not set(metrics.METRICS) - set(rows[0])
    assert not {n for n, m in metrics.METRICS.items() if m.per_class} - set(rows[1])


def test_curves_count_every_request_once_and_end_where_service_ends(mixed):
    curves = reduce_run(mixed)
    assert np.sum(curves["offered"]) == 5
    assert np.sum(curves["attained"]) == 1
    served = [v for v in curves["ttft_ms"][0] if v is not None]
    share = curves["quantiles"][len(served) - 1]
    assert 0.75 <= share <= 0.8  # 4 of 5 got a first token
    assert curves["budget"] == {GPU: 4}


def test_a_run_is_shown_and_written(mixed, tmp_path):
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(class_table(mixed), pool_table(mixed))
    text = console.export_text()
    assert "20.0 %" in text and "aggregated" in text

    import pandas as pd

    requests, samples = (pd.read_parquet(path) for path in write_run(mixed, tmp_path / "run"))
    assert requests["attained"].tolist() == [True, False, False, False, False]
    assert requests["class"].unique().tolist() == ["any"]
    assert samples[["pool", "ready"]].to_numpy().tolist() == [["aggregated", 1]]
