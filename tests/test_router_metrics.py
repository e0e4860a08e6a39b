from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.router.osl import OutputLengths
from hrl_planner.router.request import Refusal
from tests.routers import Bench, aggregated_spec

DASHBOARD = Path(__file__).parent.parent / "deploy/grafana/router.json"


def page_names(metrics: RouterMetrics) -> set[str]:
    """Names a scrape would find, of metrics that have not been counted yet too."""
    names = set()
    for family in metrics.registry.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "gauge": ("",),
        }[family.type]
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_metric_of_the_dashboard_exists():
    bench = Bench(aggregated_spec())
    for name in ("waiting", "under_way", "sessions", "kv_event_blocks", "kv_routed_blocks"):
        bench.metrics.gauge(name, "As the app makes it.", lambda: 0.0)
    names = page_names(bench.metrics)
    dashboard = json.loads(DASHBOARD.read_text())
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"hrl_router_\w+", target["expr"])
    }
    assert used and used <= names, used - names


def test_a_decision_and_a_refusal_can_be_read_off_the_page():
    bench = Bench(aggregated_spec())
    bench.desk.arrive(bench.ask("tight"), "", 0.0)
    bench.metrics.refused(Refusal(429, "no", reason="shed"))
    page = bench.metrics.page().decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    decision = (("class", "tight"), ("pool", "fast"), ("reason", "rules"))
    assert samples["hrl_router_decisions_total", decision] == 1.0
    assert samples["hrl_router_refusals_total", (("reason", "shed"), ("status", "429"))] == 1.0


def test_output_tokens_are_learnt_from_bytes_and_the_workers_counters():
    lengths = OutputLengths(1)
    assert lengths.expected(0, None) == 256 and lengths.expected(0, 40) == 40
    lengths.saw_generated("w", 1000.0)
    for k in range(1, 21):
        tokens = lengths.of_answer(30_000, None)
        lengths.saw_answer(0, 30_000, tokens)
        lengths.saw_generated("w", 1000.0 + 100.0 * k)
    assert lengths.bytes_per_token == pytest.approx(300.0)
    assert lengths.of_answer(30_000, None) == 100
    assert lengths.of_answer(30_000, 60) == 60
    lengths.saw_generated("w", 5.0)  # the worker was restarted: its counter began anew
    assert lengths.bytes_per_token == pytest.approx(300.0)


def test_a_limit_far_above_the_usual_answer_reserves_no_more_than_twice_that():
    lengths = OutputLengths(1)
    lengths.saw_answer(0, 22_000, 100)
    assert lengths.expected(0, 8192) == 200 and lengths.expected(0, 50) == 50
