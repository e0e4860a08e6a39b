"""API server, scheduler, planners, router and engines together: what `demo-cluster` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")
pytest.importorskip("gymnasium")

from agents.agreement import Agreement, compare, write_report
from hrl_planner.errors import HrlPlannerError
from hrl_planner.localcluster import find_binaries
from hrl_planner.localcluster.demo import DemoOptions, DemoResult, run
from hrl_planner.localcluster.demo_scale import quick
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.lengths import Lengths

pytestmark = [pytest.mark.kube, pytest.mark.slow]


def programs_are_there() -> bool:
    try:
        find_binaries()
    except HrlPlannerError:
        return False
    return True


def steady_cluster() -> ClusterSpec:
    """Start-up within 5 s, short metrics windows, and a promise that a busy machine can keep."""
    small = quick(ClusterSpec.load("small"), 0.05)
    promise = {"name": "any", "ttft_ms": 4000, "itl_ms": 100, "assign": {"share": 1.0}}
    intervals = {**small.intervals.model_dump(), "window_s": 6.0}
    return small.replace(intervals=intervals, slo_classes=[promise])


@pytest.fixture(scope="module")
def options() -> DemoOptions:
    return DemoOptions(policy={"allocator": "lp", "scaler": "quota"})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, options: DemoOptions) -> DemoResult:
    if not programs_are_there():
        pytest.skip("hrl-planner kube-binaries --build first")
    trace = independent_requests(
        constant(8.0, 24.0, isl=4000, osl=30),
        seed=1,
        isl=Lengths(4000, cv=0.3, high=9000),
        osl=Lengths(30, cv=0.3, high=60),
    )
    folder = tmp_path_factory.mktemp("demo")
    return run(steady_cluster(), trace, folder, options, lambda watch: None)


@pytest.fixture(scope="module")
def agreement(demo: DemoResult, options: DemoOptions) -> Agreement:
    return compare(demo, demo.spec, options, 1.0)


def test_planners_scale_engines_within_the_budget_while_the_router_serves(demo: DemoResult):
    assert demo.load.finished.mean() > 0.97
    assert demo.watch.samples > 100 and demo.watch.over == 0
    ready = demo.watch.timeline(demo.start_s)[1]["ready"]
    # The plan is not what it began with, and pods followed it.
    assert (ready.max(axis=0) > ready[0].clip(min=1)).any(), ready
    assert demo.watch.routed.attainment["any"] > 0.9


def test_planners_and_router_are_pods_with_an_account_each(demo: DemoResult):
    accounts = set(demo.accounts.values())
    assert accounts == {
        "hrl-planner-global-small",
        "hrl-planner-router-small",
        *(f"hrl-planner-local-{pool.name}" for pool in demo.spec.pools),
    }
    assert len(demo.accounts) == len(accounts)


def test_the_simulator_does_the_same_with_the_same(agreement: Agreement):
    """Within 5 points of attainment, and a plan that one run makes the other makes by its next.

    Or by the one after that: a busy machine is late with pods, and so with what is planned on them.
    """
    for one in agreement.attainment.values():
        assert abs(one.cluster - one.simulator) <= 5.0
    longest_s = max(one.longest_s for one in agreement.trajectories)
    assert longest_s <= 2.0 * agreement.spec.intervals.global_s, agreement.findings


def test_the_report_holds_both_runs(agreement: Agreement, tmp_path: Path):
    written = {path.name for path in write_report(agreement, tmp_path, "hrl-planner demo-cluster")}
    assert {"report.html", "report.md", "agreement.json"} <= written
    assert json.loads((tmp_path / "agreement.json").read_text())["looks_over_budget"] == 0
    page = (tmp_path / "report.html").read_text()
    for figure in ("trajectories", "gpus", "attainment", "latency"):
        assert f'data-figure="{figure}"' in page and f'"{figure}":' in page
