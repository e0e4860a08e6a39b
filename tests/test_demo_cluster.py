"""API server, scheduler, planners, router and engines together: what `demo-cluster` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from hrl_planner.errors import HrlPlannerError
from hrl_planner.localcluster import find_binaries
from hrl_planner.localcluster.demo import DemoOptions, run
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


@pytest.mark.skipif(not programs_are_there(), reason="hrl-planner kube-binaries --build first")
def test_planners_scale_engines_within_the_budget_while_the_router_serves(tmp_path: Path):
    small = ClusterSpec.load("small")
    clocks = {"local_s": 2.0, "global_s": 6.0, "scrape_s": 1.0, "scrape_lag_s": 0.5}
    # Nothing is refused: on a busy machine requests are late, and still must not be lost.
    promise = {"name": "any", "ttft_ms": 300, "itl_ms": 18, "assign": {"share": 1.0}}
    spec = small.replace(
        intervals={**clocks, "window_s": 10.0}, slo_classes=[promise], router={"kind": "kv_slo"}
    )
    trace = independent_requests(
        constant(6.0, 40.0, isl=2000, osl=40),
        seed=1,
        isl=Lengths(2000, cv=0.5, high=6000),
        osl=Lengths(40, cv=0.3, high=100),
    )
    options = DemoOptions(policy={"allocator": "lp", "scaler": "quota"}, startup_scale=0.05)
    result = run(spec, trace, tmp_path, options, lambda watch: None)
    assert result.load.finished.mean() > 0.97
    watch = result.watch
    assert watch.samples > 200 and watch.over == 0
    # The plan is not what it began with, and pods followed it.
    changed = [pool for pool, rows in watch.history.items() if len(rows) > 2]
    assert changed, watch.history
