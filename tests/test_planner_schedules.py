"""The planners under random schedules of faults and hands (`planner_cluster.py`).

`PLANNER_SCHEDULES=20000 pytest -n0 tests/test_planner_schedules.py` runs as many as asked, each
schedule another one every time. `PLANNER_SEED` runs that one alone: a failure tells it.
"""

from __future__ import annotations

import os
import secrets

import pytest

pytest.importorskip("kubernetes")

from tests.planner_cluster import PlannerCluster

SCHEDULES = int(os.environ.get("PLANNER_SCHEDULES", "100"))


def seeds() -> range:
    if "PLANNER_SEED" in os.environ:
        one = int(os.environ["PLANNER_SEED"])
        return range(one, one + 1)
    first = secrets.randbelow(2**40) if "PLANNER_SCHEDULES" in os.environ else 0
    return range(first, first + SCHEDULES // 2)


@pytest.mark.parametrize("hands", [False, True], ids=["planners alone", "with hands"])
def test_the_budget_is_never_exceeded_and_the_plan_is_reached(hands: bool) -> None:
    for seed in seeds():
        PlannerCluster(seed, hands=hands).run()
