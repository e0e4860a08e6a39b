"""Rows of classes: from a router's page, and by guess from the pools where there is no router."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from envs.simulation import Simulation
from hrl_planner.collect import ClassWindow, PoolTotals, Timing, observe_cluster, read_router
from hrl_planner.collect.assemble import Replicas, class_shares
from hrl_planner.collect.classes import ROUTER_PREFIXES
from hrl_planner.collect.histogram import Histogram
from hrl_planner.observation import CLASS_FIELDS, ClassObservation
from hrl_planner.router.metrics import RouterMetrics
from hrl_planner.spec import AssignSpec
from hrl_planner.worker_metrics import COUNTERS, series_of
from hrl_planner.workload.classes import assign_classes
from tests.builders import cluster, pool, slo_class, trace

NAMES = ["tight", 'odd "name"']
TIMING = Timing(60.0)


def page(metrics: RouterMetrics) -> np.ndarray:
    counts = read_router(series_of(metrics.page().decode(), ROUTER_PREFIXES), NAMES)
    assert counts is not None
    return counts


def test_a_routers_page_agrees_with_the_simulators_router():
    """Two classes; the router's calls are made when the simulator's requests come and go."""
    classes = (
        slo_class("tight", ttft_ms=14.0, assign=AssignSpec(max_isl_tokens=400)),
        slo_class('odd "name"', ttft_ms=500.0, assign=AssignSpec(min_isl_tokens=401)),
    )
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(0.2, 700))
    isl = rng.integers(50, 1000, 700)
    requests = trace(arrivals, isl, rng.integers(1, 60, 700))
    spec = cluster(pool("aggregated"), slo_classes=classes)
    whole = Simulation(spec, requests)
    whole.advance_to(requests.duration_s)
    whole.finish()
    result = whole.result()
    metrics = RouterMetrics(tuple(NAMES))
    class_id = assign_classes(requests, spec, 0)

    def offer(k: int) -> None:
        metrics.offered(int(class_id[k]), int(isl[k]))

    def end(k: int) -> None:
        osl = int(requests.osl_tokens[k])
        ttft_s = result.first_token_s[k] - result.arrival_s[k]
        itl_s = (result.finish_s[k] - result.first_token_s[k]) / max(1, osl - 1)
        kind = classes[class_id[k]]
        kept = ttft_s <= kind.ttft_ms * 1e-3 and itl_s <= kind.itl_ms * 1e-3
        metrics.outcome(int(class_id[k]), "attained" if kept else "late_ttft")
        metrics.answered(int(class_id[k]), osl)
        metrics.resolved(int(class_id[k]))

    happenings = [(float(t), offer, k) for k, t in enumerate(result.arrival_s)]
    happenings += [(float(t), end, k) for k, t in enumerate(result.finish_s)]
    happenings.sort(key=lambda happening: happening[0])
    window = ClassWindow(Timing.of(spec.intervals, 0.0), 2, 0.0)
    window.set_routers(["r"])
    simulation, done = Simulation(spec, requests), 0
    window.add("r", 0.0, page(metrics))
    for t in np.arange(5.0, 130.0, 5.0):
        while happenings[done][0] <= t:
            _, happen, k = happenings[done]
            happen(k)
            done += 1
        window.add("r", float(t), page(metrics))
        simulation.advance_to(float(t) + 3.0)
        rows = window.rows(float(t) + 3.0)
        expected = simulation.observe()
        for index in range(2):
            for name in set(CLASS_FIELDS) - {"prefix_hit_rate"}:
                found = getattr(rows[index], name)
                true = expected.class_field(name)[index]
                assert found == pytest.approx(true, rel=1e-6, abs=1e-6, nan_ok=True), name
    assert expected.class_field("attainment")[0] < 0.999  # there was something to see


def test_hit_rates_come_from_where_requests_were_placed():
    counts = np.zeros((2, 10))
    window = ClassWindow(TIMING, 2, 0.0)
    window.set_routers(["r"])
    window.add("r", 0.0, counts)
    later = counts.copy()
    later[0, 4], later[0, 5] = 400.0, 100.0
    window.add("r", 10.0, later)
    rows = window.rows(10.0)
    assert rows[0].prefix_hit_rate == 0.25
    assert rows[0].arrivals_rps == 0.0 and math.isnan(rows[0].isl_mean_tokens)
    assert math.isnan(rows[1].prefix_hit_rate)


def counts_of(offered: float, resolved: float = 0.0) -> np.ndarray:
    counts = np.zeros((2, 10))
    counts[0, :2] = offered, resolved
    return counts


def test_routers_add_up_and_one_that_is_not_heard_does_what_the_other_does():
    window = ClassWindow(TIMING, 2, 0.0)
    window.set_routers(["a", "b"])
    for t in range(0, 61, 5):
        window.add("a", float(t), counts_of(2.0 * t, 2.0 * t - 3.0))
    assert window.rows(60.0)[0].arrivals_rps == pytest.approx(4.0)
    assert window.rows(60.0)[0].in_system == 6.0
    for t in range(0, 61, 5):
        window.add("b", float(t), counts_of(1.0 * t))
    assert window.rows(60.0)[0].arrivals_rps == pytest.approx(3.0)
    window.set_routers(["a"])
    assert window.rows(60.0)[0].in_system == 3.0


def test_a_restarted_router_counts_anew():
    window = ClassWindow(TIMING, 2, 0.0)
    window.set_routers(["a"])
    for t, offered in ((0.0, 1000.0), (5.0, 1010.0), (10.0, 4.0), (15.0, 14.0)):
        window.add("a", t, counts_of(offered))
    assert window.rows(15.0)[0].arrivals_rps == pytest.approx(24.0 / 15.0)


def test_silent_routers_say_nothing():
    window = ClassWindow(TIMING, 2, 0.0)
    window.set_routers(["a"])
    assert all(math.isnan(value) for value in astuple(window.rows(30.0)[0]))
    other = "# TYPE python_info gauge\npython_info 1\n"
    assert read_router(series_of(other, ROUTER_PREFIXES), NAMES) is None


# ---- without a router


def totals(arrived: float, **fields: object) -> PoolTotals:
    rates = dict.fromkeys(COUNTERS, 0.0) | {"arrived": arrived}
    known = {"waiting": 2.0, "running": 6.0, "kv_use": 0.5, "age_s": 1.0, "histograms": {}}
    return PoolTotals(rates=rates, **{**known, **fields})


def without_router(spec, **by_pool: PoolTotals) -> list[ClassObservation]:
    replicas = {p.name: Replicas(1, 1, 1) for p in spec.pools}
    rows = observe_cluster(spec, 100.0, replicas, by_pool).classes
    return [ClassObservation(*row) for row in rows.tolist()]


def test_a_class_gets_its_share_and_the_silent_ones_the_rest():
    kinds = [slo_class("a", assign=AssignSpec(share=0.5))]
    kinds += [slo_class(name, assign=AssignSpec(label=name)) for name in "bc"]
    spec = cluster(pool("prefill"), pool("decode"), slo_classes=tuple(kinds))
    assert class_shares(spec) == [0.5, 0.25, 0.25]
    rows = without_router(spec, prefill=totals(8.0), decode=totals(7.0))
    assert [row.arrivals_rps for row in rows] == [4.0, 2.0, 2.0]
    assert [row.in_system for row in rows] == [8.0, 4.0, 4.0]
    assert math.isnan(rows[0].attainment)


def test_where_one_side_is_not_heard_the_other_tells_the_traffic():
    spec = cluster(pool("prefill"), pool("decode"))
    (row,) = without_router(spec, prefill=totals(math.nan), decode=totals(7.0))
    assert row.arrivals_rps == 7.0
    (row,) = without_router(spec, prefill=totals(math.nan), decode=totals(math.nan))
    assert math.isnan(row.arrivals_rps)


def test_attainment_is_that_of_the_classs_own_targets():
    edges = np.array([0.1, 0.2, math.inf])
    seen = {
        "ttft_s": [Histogram(edges, np.array([5.0, 5.0, 0.0]), math.nan)],
        "itl_s": [Histogram(edges, np.array([10.0, 0.0, 0.0]), math.nan)],
    }
    kinds = (slo_class("a", ttft_ms=100.0), slo_class("b", ttft_ms=200.0))
    kinds = tuple(kind.model_copy(update={"assign": AssignSpec()}) for kind in kinds)
    spec = cluster(pool("aggregated"), slo_classes=kinds)
    rows = without_router(spec, aggregated=totals(4.0, histograms=seen))
    assert [row.attainment for row in rows] == [0.5, 1.0]


def test_starting_replicas_are_sorted_by_their_time():
    found = Replicas(9, 9, 1, starting_eta_s=(-5.0, 30.0, 31.0, 120.0, 121.0)).etas()
    assert found == (2.0, 1.0, 1.0, 1.0)
