"""How two runs are compared, without a cluster: step functions with patience, played times."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from agents.agreement.compare import Attainment, envelope
from agents.agreement.runs import Steps, slowed
from agents.agreement.simulated import simulated
from agents.evaluate.metrics import compute
from hrl_planner.kube.resources import PolicySpec
from hrl_planner.localcluster.demo_scale import at_speed, quick
from hrl_planner.localcluster.demo_watch import routed_of
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import steps
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.lengths import Lengths

LP = PolicySpec(allocator="lp", scaler="rule")
STATIC = PolicySpec(allocator="static", scaler="quota")


def test_a_step_may_come_an_interval_sooner_or_later() -> None:
    model = Steps(np.array([0.0, 10.0]), np.array([[1], [3]]))
    low, high = envelope(model, 0, np.array([7.9, 8.1, 11.9, 12.1]), 2.0)
    assert low.tolist() == [1, 1, 1, 3]
    assert high.tolist() == [1, 3, 3, 3]


def test_a_difference_that_the_simulator_has_from_itself_is_told_apart() -> None:
    assert Attainment(cluster=90.0, simulator=94.0, low=94.0, high=94.0).verdict == "agrees"
    assert Attainment(cluster=84.0, simulator=94.0, low=88.0, high=95.0).verdict == "spread"
    assert Attainment(cluster=80.0, simulator=94.0, low=88.0, high=95.0).verdict == "differs"


def test_before_the_first_look_things_were_as_at_the_first_look() -> None:
    steps_ = Steps(np.array([1.0, 2.0]), np.array([[4], [5]]))
    assert steps_.at(np.array([0.0, 1.5, 9.0]))[:, 0].tolist() == [4, 4, 5]


def test_a_cluster_played_faster_is_the_same_cluster() -> None:
    spec = quick(ClusterSpec.load("small"), 0.1)
    trace = independent_requests(
        steps([4.0, 12.0], 40.0, isl=2000, osl=40),
        seed=3,
        isl=Lengths(2000, cv=0.5, high=6000),
        osl=Lengths(40, cv=0.3, high=100),
    )
    plain = simulated(spec, trace, STATIC, 0, 20.0)
    fast = simulated(
        at_speed(spec, 4.0),
        trace.scale(time=0.25),
        STATIC,
        0,
        5.0,
    )
    again = slowed(fast, spec, 4.0)
    for one, other in zip(compute(plain.result), compute(again.result), strict=True):
        for name in ("attainment", "ttft_p95_ms", "itl_p50_ms", "gpu_hours"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=0.02), (one["class"], name)


def test_an_idle_cluster_before_the_first_request_does_not_count() -> None:
    spec = quick(ClusterSpec.load("small"), 0.1)
    trace = independent_requests(
        steps([4.0], 30.0, isl=1000, osl=20), seed=1, isl=Lengths(1000), osl=Lengths(20)
    )
    run = simulated(spec, trace, LP, 0, 20.0)
    assert run.result.duration_s == 30.0
    assert np.allclose(run.result.arrival_s, trace.arrival_s)
    held = sum(pool.initial * pool.gpus_per_replica for pool in spec.pools)
    assert run.result.gpu_seconds.sum() >= 0.9 * held * 30.0
    assert run.result.gpu_seconds.sum() < held * 45.0


def test_what_became_of_requests_is_read_off_the_routers_page() -> None:
    page = (
        "# HELP hrl_router_slo_total Routed requests by how they ended.\n"
        "# TYPE hrl_router_slo_total counter\n"
        'hrl_router_slo_total{class="a",outcome="attained"} 6.0\n'
        'hrl_router_slo_total{class="a",outcome="late_ttft"} 2.0\n'
        'hrl_router_slo_total{class="a",outcome="cancelled"} 5.0\n'
        "# TYPE hrl_router_decisions_total counter\n"
        'hrl_router_decisions_total{class="a",pool="p",reason="flows"} 4.0\n'
        'hrl_router_decisions_total{class="a",pool="p",reason="cheapest"} 3.0\n'
    )
    routed = routed_of(page)
    assert routed.attainment == {"a": 0.75}
    assert routed.placed == {("a", "p"): 7}
