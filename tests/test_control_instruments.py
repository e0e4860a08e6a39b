"""What planners show to Prometheus, and what they no longer show."""

from __future__ import annotations

import json
import logging
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hrl_planner.control.counted_api import verb_and_resource
from hrl_planner.control.decision_log import DecisionLog
from hrl_planner.control.health import Health
from hrl_planner.control.instruments import Instruments
from hrl_planner.ledger import Settlement
from hrl_planner.planner.shield import Intervention
from hrl_planner.spec import ClusterSpec
from tests.decisions import Site

SPEC = ClusterSpec.load("small")
POOL = "decode-h100"

DASHBOARDS = Path(__file__).parent.parent / "deploy/grafana"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def site() -> Iterator[Site]:
    yield Site(SPEC, DecisionLog(logging.StreamHandler(StringIO()), "a", "default"))


def samples(instruments: Instruments, name: str) -> Samples:
    """Values of one metric by their label values, in the order of the labels' names."""
    page = instruments.page().decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"hrl_planner_{name}"
    }


def test_rounds_of_both_levels_are_shown(site: Site) -> None:
    shown = Instruments(clock=lambda: 1000.0)
    shown.led("global", "small", True)
    shown.rounded("global", "small", site.global_round(), 0.3)
    local = site.local_round(POOL)
    shown.rounded("local", POOL, local, 0.02)
    assert samples(shown, "leader") == {("global", "small"): 1.0}
    assert samples(shown, "rounds_total") == {("global", "done"): 1.0, ("local", "done"): 1.0}
    assert samples(shown, "round_duration_seconds_sum")["global",] == 0.3
    assert samples(shown, "pool_quota_replicas")["small", POOL] == site.quotas[POOL]
    assert set(samples(shown, "pool_marginal_value_per_gpu")) == {
        ("small", pool.name) for pool in SPEC.pools
    }
    assert samples(shown, "budget_gpus") == {
        ("small", kind): float(count) for kind, count in SPEC.budget.gpus.items()
    }
    classes = {cls.name for cls in SPEC.slo_classes}
    assert {cls for cls, _ in samples(shown, "class_attainment_ratio")} == classes
    assert samples(shown, "pool_replicas")["small", POOL, "ready"] == local.pods.ready
    # The age of the samples is two seconds at most.
    assert 998.0 <= samples(shown, "pool_metrics_timestamp_seconds")["small", POOL] < 999.0
    decision = local.decision
    assert decision is not None
    assert samples(shown, "pool_attainment_ratio")["small", POOL] == decision.attainment(POOL)
    assert samples(shown, "decision_timestamp_seconds")["local", POOL] == 1000.0


def test_what_is_heard_between_plans_does_not_hide_the_plan(site: Site) -> None:
    now = [1000.0]
    shown = Instruments(clock=lambda: now[0])
    shown.rounded("global", "small", site.global_round(), 0.1)
    plan = {name: samples(shown, name) for name in ("pool_marginal_value_per_gpu",
            "class_planned_requests_per_second", "decision_timestamp_seconds")}  # fmt: skip
    rates = samples(shown, "class_requests_per_second")
    now[0] += 10.0
    site.now_s += 10.0
    shown.rounded("global", "small", site.listen(), 0.1)
    assert all(plan.values())
    assert plan == {name: samples(shown, name) for name in plan}
    assert samples(shown, "class_requests_per_second") != rates


def test_a_pool_that_was_deleted_leaves_nothing(site: Site) -> None:
    shown = Instruments()
    done = site.global_round()
    shown.rounded("global", "small", done, 0.1)
    quotas = {name: quota for name, quota in done.quotas.items() if name != POOL}
    shown.rounded("global", "small", replace(done, plan=None, quotas=quotas), 0.1)
    assert f'pool="{POOL}"' not in shown.page().decode()
    assert samples(shown, "class_attainment_ratio")  # of the last decision
    shown.rounded("local", POOL, site.local_round(POOL), 0.1)
    shown.failed("local", POOL, 0.1, gone=True)
    assert f'pool="{POOL}"' not in shown.page().decode()
    assert samples(shown, "rounds_total")["local", "failed"] == 1.0


def test_a_planner_that_no_longer_leads_shows_only_that(site: Site) -> None:
    shown = Instruments()
    shown.led("global", "small", True)
    shown.rounded("global", "small", site.global_round(), 0.1)
    shown.led("global", "small", False)
    assert samples(shown, "leader") == {("global", "small"): 0.0}
    assert 'group="small"' not in shown.page().decode()
    shown.ended("global", "small")
    assert samples(shown, "leader") == {}


def test_waits_errors_and_interventions_are_counted_in_few_words(site: Site) -> None:
    shown = Instruments()
    done = site.global_round()
    assert done.plan is not None
    entry = Intervention(0.0, "allocator", "hold", "stale", "the newest metrics are 61 s old")
    decision = replace(done.plan.decision, interventions=(entry, entry))
    waiting = replace(
        done,
        plan=replace(done.plan, decision=decision),
        settlement=Settlement(waits={POOL: "2 of H100 are still held"}),
        error="no solution",
        used={"H100": float("inf")},
    )
    shown.rounded("global", "small", waiting, 0.1)
    assert samples(shown, "rounds_total") == {("global", "held"): 1.0}
    assert samples(shown, "shield_interventions_total") == {("hold", "stale", "global"): 2.0}
    assert samples(shown, "pool_quota_waits")["small", POOL] == 1.0
    assert samples(shown, "granted_gpus")["small", "H100"] == np.inf


def test_a_pool_nobody_hears_of_keeps_the_time_it_was_heard_last(site: Site) -> None:
    now = [1000.0]
    shown = Instruments(clock=lambda: now[0])
    first = site.local_round(POOL)
    shown.rounded("local", POOL, first, 0.1)
    assert first.decision is not None
    silent = first.decision.observation
    silent = replace(silent, pools=np.full_like(silent.pools, np.nan))
    now[0] += 100.0
    shown.rounded(
        "local", POOL, replace(first, decision=replace(first.decision, observation=silent)), 0.1
    )
    assert 998.0 <= samples(shown, "pool_metrics_timestamp_seconds")["small", POOL] < 999.0
    assert ("small", POOL) not in samples(shown, "pool_attainment_ratio")


def test_the_page_is_served_beside_the_probes() -> None:
    shown = Instruments()
    with Health(0, lambda: True, lambda: False, shown.page, host="127.0.0.1") as health:
        with urllib.request.urlopen(f"http://127.0.0.1:{health.port}/metrics") as answer:
            page = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "hrl_planner_build_info{" in page and "process_cpu_seconds_total" in page


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/api/v1/namespaces/a/pods?labelSelector=x", ("list", "pods")),
        ("GET", "/api/v1/namespaces/a/pods?watch=True", ("watch", "pods")),
        ("GET", "/apis/apps/v1/namespaces/a/deployments/d/scale", ("get", "deployments/scale")),
        ("PUT", "/apis/apps/v1/namespaces/a/deployments/d/scale", ("update", "deployments/scale")),
        ("PATCH", "/apis/hrl-planner.io/v1alpha1/namespaces/a/workerpools/p/status",
         ("patch", "workerpools/status")),
        ("POST", "/api/v1/namespaces/a/events", ("create", "events")),
        ("GET", "/apis/apps/v1", ("get", "discovery")),
        ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x",
         ("get", "customresourcedefinitions")),
    ],
)  # fmt: skip
def test_requests_are_named_as_roles_name_them(
    method: str, path: str, found: tuple[str, str]
) -> None:
    assert verb_and_resource(method, f"https://10.0.0.1:6443{path}") == found


@pytest.mark.parametrize("dashboard", ["planner", "pools"])
def test_every_metric_and_label_of_the_dashboards_exists(dashboard: str, site: Site) -> None:
    shown = Instruments()
    shown.led("local", POOL, True)
    shown.rounded("global", "small", site.global_round(), 0.1)
    shown.rounded("local", POOL, site.local_round(POOL), 0.1)
    shown.asked("get", "pods", "200")
    families = list(shown.registry.collect())
    names = {f"{family.name}{end}" for family in families for end in SUFFIXES[family.type]}
    labels = {sample.name: {*sample.labels} for family in families for sample in family.samples}
    text = json.loads((DASHBOARDS / f"{dashboard}.json").read_text())
    queries = [t["expr"] for panel in text["panels"] for t in panel.get("targets", ())]
    assert len(queries) > 10
    queries += [v["query"]["query"] for v in text["templating"]["list"] if v["type"] == "query"]
    for query in queries:
        for name, matchers in re.findall(r"(hrl_planner_\w+)(?:{(.*?)})?", query):
            assert name in names
            known = {"namespace", *labels.get(name, {"group", "level", "action", "cause"})}
            grouped = ",".join(re.findall(r"by \((.*?)\)", query)).replace(" ", "")
            used = {*re.findall(r"(\w+)[=!]~?\"", matchers), *filter(None, grouped.split(","))}
            assert used <= known, (query, used - known)
